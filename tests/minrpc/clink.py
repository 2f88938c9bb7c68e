# SPDX-License-Identifier: Apache-2.0
"""The C link built as a shared library, in the sizes that a test asks for, and called through ctypes."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

RUNTIME = Path(__file__).parents[2] / "rpcflow" / "minrpc" / "runtime"
SOURCES = [RUNTIME / "src" / name for name in ("link_frame.c", "link.c", "link_stream.c")]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
OK, ENDED = 0, 1
NOTHING, PAYLOAD, FRAME, DAMAGED = range(4)

GREETING = bytes.fromhex("7e01efbe000040014000d27d5e67b17e")
"""HELLO of session 0xBEEF."""

_Call = ctypes.CFUNCTYPE(None)


class _Line(ctypes.Structure):
    _fields_ = [(name, _Call) for name in ("lock", "unlock", "kick", "wait")]


@cache
def library(payload: int = 256, receive: int = 4, send: int = 4, xonxoff: bool = False) -> ctypes.CDLL:
    """The link with these sizes; checked for undefined behaviour, which ends the process with a word about it."""
    if shutil.which("gcc") is None:
        pytest.skip("SKIPPED, gcc is missing: the C link is not tested (Debian: apt-get install gcc)")
    sizes = [
        f"-DRPCFLOW_LINK_PAYLOAD_NBYTES={payload}",
        f"-DRPCFLOW_LINK_RECEIVE_FRAMES={receive}",
        f"-DRPCFLOW_LINK_SEND_FRAMES={send}",
        f"-DRPCFLOW_LINK_XONXOFF={int(xonxoff)}",
    ]
    with TemporaryDirectory() as folder:
        built = Path(folder) / "link.so"
        sources = [*SOURCES, Path(__file__).with_name("link_probe.c")]
        include = ["-I", str(RUNTIME / "include"), "-I", str(RUNTIME / "src")]
        command = ["gcc", *STRICT, *UNDEFINED, "-O1", "-g", "-shared", "-fPIC", *sizes, *include]
        ran = subprocess.run(
            [*command, *map(str, sources), "-o", str(built)], capture_output=True, text=True, timeout=100, check=False
        )
        assert ran.returncode == 0, ran.stderr
        loaded = ctypes.CDLL(str(built))
    loaded.probe_link_nbytes.restype = loaded.probe_encode.restype = loaded.probe_transmit.restype = ctypes.c_size_t
    loaded.probe_decoder.restype = ctypes.c_void_p
    return loaded


class CLink:
    """A device's link. Its line is in the test's hands: :meth:`receive`, :meth:`tick`, :meth:`transmit`.

    Args:
        library: of :func:`library`.
        wait: called when the program has to wait, to let the line do something.
        now_ms: time at the start.
    """

    def __init__(self, library: ctypes.CDLL, wait: Callable[[], None], now_ms: int = 0) -> None:
        self._library = library
        self._wait = wait
        self._locked = False
        self.kicked = 0
        self.between: Callable[[], None] | None = None
        """Called once, when the program next lets the line side in: what an interrupt does there."""
        self.failed: BaseException | None = None
        """What went wrong in a call-back: C can not pass it on."""
        self._calls = _Line(*map(_Call, (self._lock, self._unlock, self._kick, self._waited)))
        self._state = ctypes.create_string_buffer(library.probe_link_nbytes() + 64)
        self._state[-64:] = b"\xa5" * 64  # nobody's
        library.rpcflow_link_start(self._state, ctypes.byref(self._calls), ctypes.c_uint32(now_ms))

    def _lock(self) -> None:
        self._expect(not self._locked)
        self._locked = True

    def _unlock(self) -> None:
        self._expect(self._locked)
        self._locked = False
        between, self.between = self.between, None
        if between is not None:
            between()

    def _kick(self) -> None:
        self._expect(self._locked)
        self.kicked += 1

    def _waited(self) -> None:
        self._expect(self._locked)
        self._locked = False
        try:
            self._wait()
        except BaseException as error:
            print("while the C link waited:", repr(error), file=sys.stderr)
            self.failed = self.failed or error
            self.receive(GREETING)  # a new session ends what waits
        self._locked = True

    def _expect(self, condition: bool) -> None:
        if not condition:
            self.failed = AssertionError("the lock was not used as it should be")

    # ---- the line side

    def receive(self, line: bytes) -> None:
        self._library.probe_receive(self._state, line, len(line))

    def transmit(self, nbytes: int = 1 << 17) -> bytes:
        line = ctypes.create_string_buffer(nbytes)
        count = self._library.probe_transmit(self._state, line, nbytes)
        return line.raw[:count]

    def tick(self, now_ms: int) -> None:
        self._library.rpcflow_link_tick(self._state, ctypes.c_uint32(now_ms & 0xFFFFFFFF))

    # ---- the stream side

    def accept(self) -> None:
        self._library.rpcflow_link_accept(self._state)
        self.check()

    def read(self, nbytes: int) -> bytes | None:
        """None: the session is over."""
        data = ctypes.create_string_buffer(nbytes)
        status = self._library.probe_read(self._state, data, nbytes)
        self.check()
        assert status in (OK, ENDED)
        return data.raw if status == OK else None

    def write(self, data: bytes) -> bool:
        """False: the session is over."""
        status = self._library.probe_write(self._state, data, len(data))
        if status == OK:
            status = self._library.probe_flush(self._state)
        self.check()
        assert status in (OK, ENDED)
        return bool(status == OK)

    def check(self) -> None:
        """Raise what went wrong in a call-back, or AssertionError for bytes written behind the link."""
        if self.failed is not None:
            raise self.failed
        assert not self._locked
        assert self._state[-64:] == b"\xa5" * 64


def encode(library: ctypes.CDLL, fields: bytes, payload: bytes) -> bytes:
    """The frame on the line, flags included."""
    line = ctypes.create_string_buffer(2 * len(payload) + 32)
    count = library.probe_encode(fields, payload, len(payload), line)
    return line.raw[:count]


def decode(library: ctypes.CDLL, line: bytes) -> list[tuple[bytes, bytes] | None]:
    """Fields and payload of all frames in ``line``, None for a damaged one."""
    decoder = ctypes.c_void_p(library.probe_decoder())
    fields, payload = ctypes.create_string_buffer(6), ctypes.create_string_buffer(1024)
    count = ctypes.c_uint16()
    found: list[tuple[bytes, bytes] | None] = []
    for byte in line:
        came = library.probe_decode(decoder, ctypes.c_uint8(byte), fields, payload, ctypes.byref(count))
        if came == FRAME:
            found.append((fields.raw, payload.raw[: count.value]))
        elif came == DAMAGED:
            found.append(None)
    return found
