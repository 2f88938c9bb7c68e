# SPDX-License-Identifier: Apache-2.0
"""A device process of the C runtime, spoken to in sessions or in packets."""

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rpcflow.protocol.packets import Code, InitServer, SysCall, encode
from rpcflow.session.client import ClientMachine
from rpcflow.sync.connecting import initialize
from rpcflow.sync.connection import Connection
from rpcflow.sync.session import RPCSession
from rpcflow.transports.sockets import BlockingSocketChannel

INIT = b"".join(map(bytes, encode(InitServer("0.8.0", []))))
SHUTDOWN = bytes.fromhex("040000000000000001000000")
RETURN, EXCEPTION, COPY_ACK = 4, 5, 8
NONE = bytes.fromhex("0100000000000000")
"""A Return's contents: None."""


class Device:
    """One process of a posix_pipe program, at the other end of a socket.

    Leaving the block makes sure that the process has ended well: of itself, with status 0 and nothing on standard
    error; ``broken`` says that it was meant to end otherwise.
    """

    def __init__(self, program: Path, environment: Mapping[str, str] | None = None, *, blocking: bool = True) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(blocking)
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [str(program), str(number), str(number)],
                pass_fds=[number],
                stderr=subprocess.PIPE,
                env=dict(environment) if environment is not None else None,
            )
        self.socket = ours
        self.socket.settimeout(60)
        self.broken = False
        self.status: int | None = None
        self.words = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if error is None and not self.broken:
            assert (self.status, self.words) == (0, "")
        elif error is not None and self.words:
            error.add_note(f"the device said: {self.words}")

    def end(self) -> None:
        """Hang up, and wait for the process."""
        self.socket.close()
        try:
            _, words = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, words = self.process.communicate()
        self.words, self.status = words.decode(errors="replace"), self.process.returncode

    @contextlib.contextmanager
    def session(self) -> Iterator[RPCSession]:
        """The public blocking API on it."""
        self.socket.settimeout(None)
        core = Connection(BlockingSocketChannel(self.socket), ClientMachine(), "the device", call_timeout=60)
        initialize(core, None)
        with RPCSession(core) as session:
            yield session

    def receive(self, nbytes: int) -> bytes:
        received = bytearray()
        while len(received) < nbytes:
            piece = self.socket.recv(nbytes - len(received))
            if not piece:
                raise EOFError(f"the device hung up after {len(received)} of {nbytes} bytes")
            received += piece
        return bytes(received)

    def answer(self) -> tuple[int, bytes]:
        """The next packet: its code, and what follows."""
        (length,) = struct.unpack("<Q", self.receive(8))
        assert 4 <= length < 1 << 32, length
        (code,) = struct.unpack("<i", self.receive(4))
        return code, self.receive(length - 4)

    def ask(self, packet: bytes) -> tuple[int, bytes]:
        """Send a packet and take its answer."""
        self.socket.sendall(packet)
        return self.answer()

    def refused(self, packet: bytes) -> str:
        """Send a packet that is answered by an Exception; its words."""
        code, contents = self.ask(packet)
        assert code == EXCEPTION, contents
        count, kind, nbytes = struct.unpack_from("<iiQ", contents)
        assert (count, kind, nbytes) == (1, 8, len(contents) - 16)
        return contents[16:].decode()

    def pointer(self, packet: bytes) -> int:
        """Send a packet that is answered by a pointer, or by a function or module."""
        code, contents = self.ask(packet)
        assert code == RETURN, contents
        return int.from_bytes(contents[-8:], "little")

    def find(self, name: str) -> int:
        """The handle of a function."""
        return self.pointer(packet(SysCall(Code.GET_GLOBAL_FUNC, [name])))


def packet(*parts: Any) -> bytes:
    """Packets and payloads one behind the other, as bytes."""
    return b"".join(part if isinstance(part, bytes) else b"".join(map(bytes, encode(part))) for part in parts)


def raw(contents: bytes) -> bytes:
    """A packet of any contents."""
    return struct.pack("<Q", len(contents)) + contents
