# SPDX-License-Identifier: Apache-2.0
"""Looking at a server from outside: its processes, its files, its wire."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.protocol.handshake import MAGIC, encode_hello

HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds after which a test gives up; far more than anything here takes, also on a machine that does much else."""
ROOT = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], Any], what: str = "it", seconds: float = PATIENCE) -> Any:
    """Wait for a condition; what it gave at last."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)
    return value


async def until_async(condition: Callable[[], Any], what: str = "it", seconds: float = PATIENCE) -> Any:
    """As :func:`until`, in a task."""
    with anyio.move_on_after(seconds):
        while not (value := condition()):  # what is waited for happens in another process
            await anyio.sleep(0.01)
        return value
    raise AssertionError(f"{what} did not come true within {seconds} s")


def exists(pid: int) -> bool:
    """Whether a process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def sleeps(pid: int) -> bool:
    """Whether a process waits for something: a worker that has answered, for the next request."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def children(pid: int) -> list[int]:
    """The living children of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if exists(int(word))]


def descriptors() -> int:
    """How many descriptors this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Traces:
    """All that a server and what it starts may leave behind: processes are known by a word in their environment, which
    they have from us and hand on; files by lying in ``folder``, which is to be empty."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._word = f"RPCFLOW_TEST={folder}".encode()
        patch.setenv("RPCFLOW_TEST", str(folder))
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))

    def processes(self) -> list[int]:
        """What runs."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid():
                try:
                    words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if self._word in words and exists(int(name)):
                    found.append(int(name))
        return found

    def files(self) -> list[str]:
        """What lies about."""
        return sorted(os.listdir(self.folder))

    def none(self) -> bool:
        """Whether there is nothing."""
        return not self.processes() and not self.files()


# ---------------------------------------------------------------------------------------------- sessions


def connect(server: Any, key: str = "", **options: Any) -> sync.RPCSession:
    """A session of the blocking API, that does not wait for ever."""
    return sync.connect(HOST, server.port, key, **{"wait_timeout": PATIENCE, **options})


def call(session: sync.RPCSession, name: str, *args: Any) -> Any:
    """Call a function of the server."""
    return session.get_function(name)(*args)


def works(server: Any, **options: Any) -> None:
    """A session can be had and does its work."""
    with connect(server, **options) as session:
        assert call(session, "t.echo", 17) == 17


async def call_async(session: rpcflow.Session, name: str, *args: Any) -> Any:
    """Call a function of the server."""
    return await (await session.get_function(name))(*args)


@contextlib.contextmanager
def script(source: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A program of its own; its standard output is read from ``stdout``. Killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    process = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, args)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a program says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# ---------------------------------------------------------------------------------------------- the wire

VERSION = b"0.8.0"
SHUTDOWN, INIT, CALL, RETURN, EXCEPTION, COPY_FROM, COPY_TO, COPY_ACK, FIND, FREE = range(1, 11)
ALLOC, FREE_DATA, ALLOC_SCOPE = 13, 14, 17


def packet(code: int, payload: bytes = b"") -> bytes:
    return struct.pack("<Qi", 4 + len(payload), code) + payload


def values(*encoded: bytes) -> bytes:
    return struct.pack("<i", len(encoded)) + b"".join(encoded)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<iQ", 8, len(data)) + data


def integer(value: int) -> bytes:
    return struct.pack("<iq", 1, value)


def pointer(value: int) -> bytes:
    return struct.pack("<iQ", 4, value)


def view(data: int, shape: tuple[int, ...], offset: int = 0, bits: int = 32) -> bytes:
    """A tensor of floats on the CPU, as it stands in copies."""
    head = struct.pack("<QiiiBBH", data, 1, 0, len(shape), 2, bits, 1)
    return head + struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<Q", offset)


def tensor(*args: Any, **options: Any) -> bytes:
    """The same as an argument."""
    return struct.pack("<i", 7) + view(*args, **options)


def init(*constructor: str) -> bytes:
    return packet(INIT, struct.pack("<Q", len(VERSION)) + VERSION + values(*map(text, constructor)))


def find(name: str) -> bytes:
    return packet(FIND, values(text(name)))


def invoke(handle: int, *args: bytes) -> bytes:
    return packet(CALL, struct.pack("<Q", handle) + values(*args))


def free(handle: int) -> bytes:
    return packet(FREE, values(pointer(handle)))


def hello(key: str = "", words: str = "") -> bytes:
    return encode_hello(f"client:{key}{words}")


class Raw:
    """A client without manners."""

    def __init__(self, server: Any, first: bytes = b"") -> None:
        self.socket = socket.create_connection((HOST, server.port), PATIENCE)
        if first:
            self.send(first)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, size: int) -> bytes:
        """So many bytes, or fewer at the end of the line."""
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionError:
                break
            if not more:
                break
            data += more
        return data

    def answer(self) -> int | None:
        """The code of the handshake's answer, its key taken too; None at the end of the line."""
        data = self.take(4)
        if len(data) < 4:
            return None
        code: int = struct.unpack("<i", data)[0]
        if code == MAGIC:
            self.take(struct.unpack("<i", self.take(4))[0])
        return code

    def packet(self) -> tuple[int, bytes] | None:
        """The next packet's code and payload; None at the end of the line."""
        data = self.take(8)
        if len(data) < 8:
            return None
        body = self.take(struct.unpack("<Q", data)[0])
        return struct.unpack_from("<i", body)[0], body[4:]

    def error(self) -> str:
        """The words of an Exception, which must come next."""
        got = self.packet()
        assert got is not None, "the line ended without a word"
        assert got[0] == EXCEPTION, got
        return got[1][16:].decode()

    def handle(self) -> int:
        """The handle that a request was answered with."""
        got = self.packet()
        assert got is not None
        assert got[0] == RETURN, got
        number: int = struct.unpack("<Q", got[1][-8:])[0]
        return number

    def ended(self) -> bool:
        """Whether the other side has closed."""
        return self.take(1) == b""

    def open(self, key: str = "") -> Raw:
        """Say key and version, and take the answers."""
        self.send(hello(key) + init())
        assert self.answer() == MAGIC
        got = self.packet()
        assert got is not None
        assert got[0] == RETURN, got
        return self
