# SPDX-License-Identifier: Apache-2.0
"""A client that goes in the middle of a copy to a device: its session ends, and the next one begins."""

from __future__ import annotations

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.protocol.packets import CopyToRemote, encode

from .rigs import prepared

NBYTES = 8 << 20


@pytest.mark.parametrize("sent", [0, 1, NBYTES // 2, NBYTES - 1])
@pytest.mark.parametrize("kind", ["cpu", "opencl", "vulkan", "webgpu"])
def test_gone_in_the_middle(kind: str, sent: int, capfd: pytest.CaptureFixture[str]) -> None:
    prepared(kind)
    with sync.Server("127.0.0.1", 0) as server:  # for one session at a time
        lost = sync.connect("127.0.0.1", server.port)
        tensor = lost.device(kind).empty(NBYTES, "uint8")
        channel = lost._core._channel
        channel.send([*encode(CopyToRemote(tensor._view, NBYTES)), bytes(sent)])
        channel.close()
        with sync.connect("127.0.0.1", server.port, wait_timeout=60) as session:
            assert session.device(kind).tensor(np.ones(10)).numpy().sum() == 10
    assert "Traceback" not in capfd.readouterr().err
