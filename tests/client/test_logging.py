# SPDX-License-Identifier: Apache-2.0
"""What ``enable_logging`` writes: each request and its outcome."""

import logging

import pytest

import rpcflow

from .conftest import Connect, call

pytestmark = pytest.mark.anyio


async def test_each_request_and_its_outcome(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rpcflow.session")
    async with connect(enable_logging=True) as session:
        await call(session, "echo", 1)
        with pytest.raises(rpcflow.RemoteError):
            await call(session, "fail", "ValueError", "the reason")
        await session.cpu().tensor([1.0])
        caplog.clear()
        await call(session, "echo", 1)
        with pytest.raises(rpcflow.RemoteError):
            await call(session, "fail", "ValueError", "the reason")
    records = [record for record in caplog.records if record.name == "rpcflow.session"]
    assert {record.levelno for record in records} == {logging.INFO}
    lines = [record.getMessage() for record in records]
    assert any("t.echo" in line and "done" in line for line in lines)
    assert any("t.fail" in line and "the reason" in line for line in lines)
    assert len([line for line in lines if "t." in line]) == 4


async def test_not_unless_asked_for(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rpcflow.session")
    async with connect() as session:
        await call(session, "echo", 1)
    assert not [record for record in caplog.records if record.name == "rpcflow.session"]
