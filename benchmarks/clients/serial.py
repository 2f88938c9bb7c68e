# SPDX-License-Identifier: Apache-2.0
"""Hosts of devices on serial lines, and plain bytes on the same lines."""

import os
import select
import threading
import time
import tty
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from rpcflow import RPCError
from rpcflow import sync as rpc

PATIENCE = 120.0


class SerialClient:
    """A session over ``serial://``; ``port`` is the terminal's path."""

    def __init__(self, port: str, size: int, baud: int = 115200) -> None:
        self._url = f"serial://{port}?baud={baud}"
        self._data = np.random.default_rng(1).integers(0, 256, size, dtype="uint8")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            session = stack.enter_context(rpc.connect(self._url, call_timeout=PATIENCE))
            self._session = session
            self._tensor = session.cpu().tensor(self._data)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def up(self) -> float:
        """Bytes a second to the device. The copy is over when the device has said so."""
        began = time.perf_counter()
        self._tensor.copyfrom(self._data)
        return float(self._data.nbytes / (time.perf_counter() - began))

    def down(self) -> float:
        """Bytes a second from the device."""
        began = time.perf_counter()
        got = self._tensor.numpy()
        seconds = time.perf_counter() - began
        assert np.array_equal(got, self._data)
        return float(self._data.nbytes / seconds)

    def call(self, count: int) -> float:
        """Seconds that a small call takes."""
        function = self._session.get_function("next")
        function(0)
        began = time.perf_counter()
        for i in range(count):
            assert function(i) == i + 1
        return (time.perf_counter() - began) / count

    def exact(self, count: int) -> dict[str, float]:
        """Calls on a line that may be bad: a second, how many were right and wrong, ended in which errors, and how
        often the function ran more often than it was called."""
        function, runs = self._session.get_function("next"), self._session.get_function("runs")
        before = runs()
        right = wrong = errors = 0
        began = time.perf_counter()
        for i in range(count):
            try:
                value = function(i)
            except RPCError:
                errors += 1
            else:
                right += value == i + 1
                wrong += value != i + 1
        rate = count / (time.perf_counter() - began)
        return {"rate": rate, "right": right, "wrong": wrong, "errors": errors, "twice": runs() - before - count}


class RawClient:
    """Plain bytes on the same line. ``far``: the paths of the ends are all it has; the far end is an agent's."""

    def __init__(self, port: str, size: int, **_: Any) -> None:
        self._path = port
        self._data = os.urandom(size)

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def give(self) -> float:
        """Begin to write; when, by the clock that all processes share."""
        began = time.monotonic()
        threading.Thread(target=_write, args=(self._fd, self._data), daemon=True).start()
        return began

    def take(self) -> float:
        """Read as much as was to be sent; when the last of it came."""
        _read(self._fd, len(self._data))
        return time.monotonic()

    def echo(self) -> float:
        """Bytes a second that go out and come back."""
        began = time.perf_counter()
        threading.Thread(target=_write, args=(self._fd, self._data), daemon=True).start()
        _read(self._fd, len(self._data))
        return len(self._data) / (time.perf_counter() - began)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, nbytes: int) -> None:
    got = 0
    while got < nbytes:
        if not select.select([fd], [], [], PATIENCE)[0]:
            raise TimeoutError(f"{got} of {nbytes} bytes came")
        got += len(os.read(fd, 65536))
