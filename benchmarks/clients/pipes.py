# SPDX-License-Identifier: Apache-2.0
"""A session with a program on a pipe; and two plain processes between which pipes move the same bytes."""

import fcntl
import os
import time
from collections.abc import Sequence
from typing import Any, Self

from benchmarks.clients.blocking import RpcflowClient


class PipeClient(RpcflowClient):
    """`program`: the executable; `cores`: where it may run, anywhere if empty; `poll`, `size`: as over TCP."""

    def __init__(self, port: int, program: str, cores: Sequence[int] = (), size: int = 0, poll: bool = True) -> None:
        super().__init__(port, size, "", poll)
        self._program, self._cores = program, cores

    def _connect(self) -> Any:
        from rpcflow import sync as rpc

        session = rpc.PopenSession(self._program, poll=None if self._poll else False)
        if self._cores:
            os.sched_setaffinity(session._core._channel.child.pid, self._cores)
        return session


class RawPipe:
    """Large reads and writes, no protocol but a byte that says which way; `nbytes`: what each pipe holds, the system's
    own choice if 0."""

    def __init__(self, port: int, size: int = 0, nbytes: int = 0) -> None:
        self._size = size
        self._data = memoryview(bytearray(b"\2") * size)
        (self._reading, theirs_writing), (theirs_reading, self._writing) = os.pipe(), os.pipe()
        if nbytes:
            for fd in (self._reading, self._writing):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, nbytes)
        self._pid = os.fork()
        if not self._pid:
            try:
                os.close(self._reading)
                os.close(self._writing)
                self._serve(theirs_reading, theirs_writing)
            finally:
                os._exit(0)
        os.close(theirs_reading)
        os.close(theirs_writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._writing)
        os.close(self._reading)
        os.waitpid(self._pid, 0)

    def _serve(self, reading: int, writing: int) -> None:
        for i in range(0, self._size, 4096):
            self._data[i] = 1  # a copy of its own, before anything is measured
        while way := os.read(reading, 1):
            if way == b"u":
                _fill(reading, self._data)
                os.write(writing, b".")
            else:
                _empty(writing, self._data)

    def up(self) -> float:
        """Seconds to move the data into memory that is there already."""
        start = time.perf_counter()
        os.write(self._writing, b"u")
        _empty(self._writing, self._data)
        os.read(self._reading, 1)
        return time.perf_counter() - start

    def down(self, fresh: bool) -> float:
        """Seconds to get the data, into memory just taken from the system or into memory in use."""
        import numpy

        start = time.perf_counter()
        os.write(self._writing, b"d")
        _fill(self._reading, numpy.empty(self._size, "uint8").data if fresh else self._data)
        return time.perf_counter() - start


def _fill(fd: int, view: memoryview) -> None:
    got = 0
    while got < len(view):
        more = os.readv(fd, [view[got:]])
        if not more:
            raise EOFError
        got += more


def _empty(fd: int, view: memoryview) -> None:
    sent = 0
    while sent < len(view):
        sent += os.write(fd, view[sent:])
