# SPDX-License-Identifier: Apache-2.0
"""One open session by a blocking client: rpcflow.sync or tvm.rpc, whose programs read the same."""

import gc
import os
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.proc import PeakMemory
from benchmarks.servers.ports import place

EVALUATOR = "runtime.RPCTimeEvaluator"


class BlockingClient:
    """What both do alike. `size`: bytes of the tensor; `file`: a local file of that size."""

    def __init__(self, port: int, size: int = 0, file: str = "", poll: bool = True, key: str = "") -> None:
        self._port, self._size, self._file, self._poll, self._key = port, size, file, poll, key
        self._session: Any = None
        self._kept: dict[str, Any] = {}

    def _connect(self) -> Any:
        raise NotImplementedError

    def _tensor(self, array: Any) -> Any:
        raise NotImplementedError

    def _disconnect(self) -> None:
        self._kept.clear()
        self._session = None
        gc.collect()

    def __enter__(self) -> Self:
        self._session = self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()

    def worker(self) -> int:
        """The number of the process that serves this session."""
        return int(self._session.get_function("bench.pid")())

    def calls(self, count: int, warm: int) -> float:
        """Microseconds a call of an int echo."""
        echo = self._session.get_function("testing.echo")
        if echo(7) != 7:
            raise RuntimeError("the echo is wrong")
        start = 0.0
        for turn in range(-warm, count):
            if turn == 0:
                start = time.perf_counter()
            echo(7)
        return (time.perf_counter() - start) / count * 1e6

    def _bulk(self) -> tuple[Any, Any]:
        """The host array and the remote tensor, made once; checked once that what goes up comes down."""
        import numpy

        if not self._kept:
            array = numpy.random.default_rng(0).integers(0, 256, self._size, dtype=numpy.uint8)
            self._kept["array"], self._kept["tensor"] = array, self._tensor(array)
            if not numpy.array_equal(self._kept["tensor"].numpy(), array):
                raise RuntimeError("what came back is not what was sent")
        return self._kept["array"], self._kept["tensor"]

    def up(self) -> float:
        """Seconds to copy the host's array into a tensor that is there already."""
        array, tensor = self._bulk()
        start = time.perf_counter()
        tensor.copyfrom(array)
        return time.perf_counter() - start

    def down(self, fresh: bool) -> float:
        """Seconds to get the tensor; its memory here is always fresh."""
        _, tensor = self._bulk()
        start = time.perf_counter()
        tensor.numpy()
        return time.perf_counter() - start

    def tensor_memory(self) -> dict[str, float]:
        """Bytes beyond the tensor itself that each end held at its worst; to be asked of a new session."""
        import numpy

        array = numpy.random.default_rng(0).integers(0, 256, self._size, dtype=numpy.uint8)
        peak = PeakMemory([os.getpid(), self.worker()])
        tensor = self._tensor(array)
        tensor.copyfrom(array)
        client_up, worker_up = peak.extra()
        tensor.numpy()
        client_down, worker_down = peak.extra()
        return {
            "up, client": client_up,
            "up, worker": max(0, worker_up - self._size),
            "down, client": max(0, client_down - self._size),
            "down, worker": max(0, worker_down - self._size),
        }

    def upload(self) -> float:
        start = time.perf_counter()
        self._session.upload(self._file, "bench.bin")
        return time.perf_counter() - start

    def download(self) -> float:
        start = time.perf_counter()
        blob = self._session.download("bench.bin")
        took = time.perf_counter() - start
        if len(blob) != self._size:
            raise RuntimeError("not all of it arrived")
        return took

    def file_memory(self) -> dict[str, float]:
        """Bytes each end held at its worst, the file's own among them; to be asked of a new session."""
        peak = PeakMemory([os.getpid(), self.worker()])
        self.upload()
        client_up, worker_up = peak.extra()
        self.download()
        client_down, worker_down = peak.extra()
        return {
            "upload, client": client_up,
            "upload, worker": worker_up,
            "download, client": client_down,
            "download, worker": worker_down,
        }

    def load(self, path: str) -> None:
        """Take a compiled library there and load it."""
        self._session.upload(path)
        self._kept["module"] = self._session.load_module(Path(path).name)

    def kernel(self, name: str, number: int) -> float:
        """Microseconds a run of a function of the loaded library."""
        evaluate = self._kept["module"].time_evaluator(name, self._session.cpu(0), number=number)
        return float(evaluate().mean) * 1e6

    def global_kernel(self, name: str, number: int) -> float:
        """Microseconds a run of one of the server's own functions."""
        import struct

        make = self._session.get_function(EVALUATOR)
        evaluate = make(None, name, 1, 0, number, 1, 0, 100, 0, 1, 0, "")
        (seconds,) = struct.unpack("<d", bytes(evaluate()))
        return float(seconds) * 1e6


class RpcflowClient(BlockingClient):
    def _connect(self) -> Any:
        from rpcflow import sync as rpc

        return rpc.connect(*place(self._port), self._key, poll=None if self._poll else False)

    def _tensor(self, array: Any) -> Any:
        return self._session.cpu(0).tensor(array)

    def _disconnect(self) -> None:
        self._session.close()
        super()._disconnect()

    def global_kernel(self, name: str, number: int) -> float:
        evaluate = self._session.system_lib().time_evaluator(name, self._session.cpu(0), number=number)
        return float(evaluate().mean) * 1e6


class StockClient(BlockingClient):
    """Its session closes when nothing refers to it or to what it gave out."""

    def _connect(self) -> Any:
        from tvm import rpc

        return rpc.connect("127.0.0.1", self._port, self._key)

    def _tensor(self, array: Any) -> Any:
        import tvm

        return tvm.runtime.tensor(array, self._session.cpu(0))
