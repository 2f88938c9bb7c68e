# SPDX-License-Identifier: Apache-2.0
"""Files of a session whose device keeps none: they stay here, and every call for files answers as a server would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import rpcflow
from rpcflow import sync
from rpcflow.server.linking import LinkError

from ..client.lifted import Lifted, lower

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["trio", "asyncio", "sync"])
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(api: str) -> str:
    return "trio" if api == "sync" else api


@asynccontextmanager
async def connected(api: str, program: Path, **options: Any) -> AsyncIterator[Any]:
    if api == "sync":
        with sync.connect(f"popen://{program}", **options) as blocking:
            yield Lifted(blocking)
    else:
        async with rpcflow.connect(f"popen://{program}", **options) as session:
            yield session


@pytest.fixture
async def session(api: str, device_program: Path) -> AsyncIterator[Any]:
    async with connected(api, device_program) as opened:
        yield opened


async def test_up_and_down_again(session: Any, tmp_path: Path) -> None:
    (tmp_path / "local.bin").write_bytes(b"from a file")
    await session.upload(tmp_path / "local.bin")
    await session.upload(bytes(100_000), "deep/er/zeros")
    back = await session.download("local.bin")
    assert type(back) is bytearray
    assert back == b"from a file"
    assert await session.download("./deep/../deep/er/zeros") == bytes(100_000)
    assert await session.listdir(".") == "deep,local.bin"
    assert await session.listdir("deep") == "er"
    await session.upload(b"again", "local.bin")
    assert await session.download("local.bin") == b"again"
    await session.remove("local.bin")
    for _ in range(2):
        assert await session.remove("local.bin") is None  # of what is not there: as servers do
    assert await session.listdir("") == "deep"


@pytest.mark.parametrize("first", ["download", "load_module", "download_linked_module"])
async def test_what_is_not_there(session: Any, first: str) -> None:
    with pytest.raises(rpcflow.RemoteError, match=r"there is no file 'k\.o'"):
        await getattr(session, first)("k.o")
    assert await session.listdir(".") == ""
    assert await session.remove("k.o") is None


async def test_listing_first(session: Any) -> None:
    assert await session.listdir(".") == ""


@pytest.mark.parametrize("name", ["/etc/passwd", "../f", "deep/../../f", "", "nul\0l"])
async def test_no_way_out(session: Any, name: str) -> None:
    uses = [lambda: session.download(name), lambda: session.load_module(name), lambda: session.upload(b"x", name)]
    uses += [lambda: session.remove(name)] if name else []
    for use in uses:
        with pytest.raises(rpcflow.PermissionDeniedError):
            await use()


async def test_names_that_are_no_text(session: Any) -> None:
    for use in (session.download, session.remove, session.listdir, session.load_module):
        with pytest.raises(TypeError):
            await use(7)


async def test_one_question_is_enough(session: Any) -> None:
    """The device is asked whether it keeps files, once."""
    await session.upload(b"x", "f")
    core = lower(session)._core
    asked = []
    lookup = core.machine.lookup
    core.machine.lookup = lambda name: asked.append(name) or lookup(name)
    await session.upload(b"x", "g")
    await session.download("f")
    await session.remove("f")
    await session.listdir(".")
    assert asked == []


async def test_sessions_do_not_share_them(api: str, device_program: Path) -> None:
    async with connected(api, device_program) as one, connected(api, device_program) as other:
        await one.upload(b"x", "f")
        assert await other.listdir(".") == ""


async def test_modules_for_a_process(api: str, device_program: Path) -> None:
    """Kernels are part of the program of such a device, see ``with_minrpc``."""
    async with connected(api, device_program, firmware=device_program) as session:
        await session.upload(b"\x7fELF", "k.o")
        with pytest.raises(LinkError, match=r"is a program for .* loaded into firmware for little-endian ARM"):
            await session.load_module("k.o")
        assert await session.listdir(".") == "k.o"
