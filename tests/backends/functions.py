# SPDX-License-Identifier: Apache-2.0
"""What servers of these tests offer beside kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rpcflow


def resident() -> int:
    """Bytes of memory that this process has, cleaned up first."""
    import gc

    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def offer(prepare: Callable[[], Any] | None) -> Callable[[], None]:
    """For ``server_init_callback``."""

    def offered() -> None:
        rpcflow.register("rpcflow.test.resident", resident, override=True)
        rpcflow.register("rpcflow.test.pause", lambda: time.sleep(0.001), override=True)
        if prepare is not None:
            prepare()

    return offered
