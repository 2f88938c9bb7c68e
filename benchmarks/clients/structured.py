# SPDX-License-Identifier: Apache-2.0
"""One open session by rpcflow's structured API, on trio and on asyncio."""

import time
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self

from benchmarks.servers.ports import place


class StructuredClient:
    event_loop: ClassVar[str]

    def __init__(self, port: int, size: int = 0, file: str = "", poll: bool = True) -> None:
        self._port, self._size, self._file, self._poll = port, size, file, poll
        self._stack = AsyncExitStack()
        self._session: Any = None
        self._kept: tuple[Any, Any] | None = None

    async def __aenter__(self) -> Self:
        import rpcflow

        made = rpcflow.connect(*place(self._port), poll=None if self._poll else False)
        self._session = await self._stack.enter_async_context(made)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._kept = None
        await self._stack.aclose()

    async def calls(self, count: int, warm: int) -> float:
        """Microseconds a call of an int echo."""
        echo = await self._session.get_function("testing.echo")
        if await echo(7) != 7:
            raise RuntimeError("the echo is wrong")
        start = 0.0
        for turn in range(-warm, count):
            if turn == 0:
                start = time.perf_counter()
            await echo(7)
        return (time.perf_counter() - start) / count * 1e6

    async def _bulk(self) -> tuple[Any, Any]:
        import numpy

        if self._kept is None:
            array = numpy.random.default_rng(0).integers(0, 256, self._size, dtype=numpy.uint8)
            tensor = await self._session.cpu(0).tensor(array)
            if not numpy.array_equal(await tensor.numpy(), array):
                raise RuntimeError("what came back is not what was sent")
            self._kept = array, tensor
        return self._kept

    async def up(self) -> float:
        """Seconds to copy the host's array into a tensor that is there already."""
        array, tensor = await self._bulk()
        start = time.perf_counter()
        await tensor.copyfrom(array)
        return time.perf_counter() - start

    async def down(self, fresh: bool) -> float:
        """Seconds to get the tensor; its memory here is always fresh."""
        _, tensor = await self._bulk()
        start = time.perf_counter()
        await tensor.numpy()
        return time.perf_counter() - start

    async def upload(self) -> float:
        start = time.perf_counter()
        await self._session.upload(self._file, "bench.bin")
        return time.perf_counter() - start

    async def download(self) -> float:
        start = time.perf_counter()
        blob = await self._session.download("bench.bin")
        took = time.perf_counter() - start
        if len(blob) != self._size:
            raise RuntimeError("not all of it arrived")
        return took


class TrioClient(StructuredClient):
    event_loop = "trio"


class AsyncioClient(StructuredClient):
    event_loop = "asyncio"
