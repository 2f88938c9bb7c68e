# SPDX-License-Identifier: Apache-2.0
"""Channels for tests, ours and yours: one that plays a script, and one that spoils another.

Both come for tasks (``AsyncScriptedChannel``, ``AsyncFaultyChannel``) and for threads (``ScriptedChannel``,
``FaultyChannel``). None of them looks at a clock. Pairs that are connected to each other are in
:mod:`rpcflow.transports.memory`.
"""

import os
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import anyio
import attrs

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.values import FilePayload, Part

from .base import AsyncChannel, BlockingChannel

_FILE_STEP: Final = 1 << 20


class _Silence:
    def __repr__(self) -> str:
        return "SILENCE"


SILENCE: Final = _Silence()
"""In a script: from here on nothing comes. A deadline passes at once; a task waits until it is cancelled."""

Step = bytes | bytearray | memoryview | BaseException | _Silence
"""Of a script: bytes that arrive, an error to be raised, or :data:`SILENCE`."""


class _Script:
    """What both scripted channels share."""

    def __init__(self, script: Iterable[Step]) -> None:
        self._steps: list[Step] = list(script)
        self.sends: list[bytes] = []
        self.closed = False

    @property
    def sent(self) -> bytes:
        """All that was sent, joined."""
        return b"".join(self.sends)

    @property
    def played(self) -> bool:
        """Whether nothing is left of the script."""
        return not self._steps

    def close(self) -> None:
        """Close it; ``closed`` tells."""
        self.closed = True

    def _send(self, parts: Sequence[Part]) -> None:
        if self.closed:
            raise ConnectionLostError("the connection is closed")
        self.sends.append(b"".join(bytes(piece) for part in parts for piece in _pieces(part)))

    def _receive_into(self, buffer: memoryview) -> int | None:
        """None: silence."""
        if self.closed:
            raise ConnectionLostError("the connection is closed")
        if not self._steps:
            return 0
        step = self._steps[0]
        if isinstance(step, _Silence):
            return None
        if isinstance(step, BaseException):
            del self._steps[0]
            raise step
        data = memoryview(step).cast("B")
        count = min(len(data), len(buffer))
        buffer[:count] = data[:count]
        if count < len(data):
            self._steps[0] = data[count:]
        else:
            del self._steps[0]
        return count


class ScriptedChannel(_Script):
    """A blocking channel that receives what a script says, then the end of the stream; what is sent is kept.

    Args:
        script: what each ``receive_into`` gets; an error among it is raised. A step longer than the buffer takes
            several.

    ``sends`` holds what each ``send`` sent, ``sent`` all of it; ``closed`` and ``played`` tell how far things are.
    """

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        """Keep ``parts``."""
        self._send(parts)

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        """The script's next bytes."""
        count = self._receive_into(buffer)
        if count is None:
            if deadline is None:
                raise AssertionError("the script is silent, and nobody set a deadline: this would wait for ever")
            raise TimeoutError
        return count


class AsyncScriptedChannel(_Script):
    """As :class:`ScriptedChannel`, for tasks."""

    def __init__(self, script: Iterable[Step]) -> None:
        super().__init__(script)
        self._closing: anyio.Event | None = None

    async def send(self, parts: Sequence[Part]) -> None:
        """Keep ``parts``."""
        self._send(parts)

    async def receive_into(self, buffer: memoryview) -> int:
        """The script's next bytes."""
        await anyio.lowlevel.checkpoint()
        count = self._receive_into(buffer)
        if count is None:
            self._closing = anyio.Event()
            await self._closing.wait()
            raise ConnectionLostError("the connection is closed")
        return count

    def close(self) -> None:
        """Close it; whoever waits is told."""
        super().close()
        if self._closing is not None:
            self._closing.set()


class Gate(Protocol):
    """What a channel waits for: a ``threading.Event``."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, for at most ``timeout`` seconds; whether it is open."""


class AsyncGate(Protocol):
    """What a channel waits for: an event of trio, asyncio or anyio."""

    def wait(self) -> Awaitable[Any]:
        """Wait until it is open."""


@attrs.frozen
class Faults:
    """What goes wrong on a line. Positions count the bytes of one direction from where the channel was wrapped.

    Args:
        receive_cut_at: here receiving fails with ConnectionLostError.
        receive_end_at: here the stream ends.
        receive_step: at most so many bytes at once.
        receive_flips: by position, the bits to turn over.
        send_cut_at: so many bytes are sent, then sending fails with ConnectionLostError.
        send_step: at most so many bytes in one write.
        send_flips: by position, the bits to turn over.
    """

    receive_cut_at: int | None = None
    receive_end_at: int | None = None
    receive_step: int | None = None
    receive_flips: Mapping[int, int] = attrs.Factory(dict)
    send_cut_at: int | None = None
    send_step: int | None = None
    send_flips: Mapping[int, int] = attrs.Factory(dict)

    @property
    def _spoils_sending(self) -> bool:
        return self.send_cut_at is not None or self.send_step is not None or bool(self.send_flips)


class _Spoiler:
    """What both faulty channels share: counts, and where to stop."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.received = 0
        self.sent = 0
        self.closed = False

    def _room(self, buffer: memoryview) -> memoryview:
        """As much of ``buffer`` as may be filled now; nothing at the end of the stream."""
        if self.closed:
            raise ConnectionLostError("the connection is closed")
        faults = self.faults
        limits = [len(buffer)]
        if faults.receive_step is not None:
            limits.append(faults.receive_step)
        if faults.receive_end_at is not None:
            limits.append(max(faults.receive_end_at - self.received, 0))
        if faults.receive_cut_at is not None:
            left = faults.receive_cut_at - self.received
            if left <= 0:
                raise ConnectionLostError("the connection was lost: it was cut, for a test")
            limits.append(left)
        return buffer[: min(limits)]

    def _took(self, data: memoryview) -> None:
        for position, bits in self.faults.receive_flips.items():
            if self.received <= position < self.received + len(data):
                data[position - self.received] ^= bits
        self.received += len(data)

    def _chunks(self, parts: Sequence[Part]) -> Iterator[Part]:
        """What to send, piece by piece; ends with the error that is due."""
        if self.closed:
            raise ConnectionLostError("the connection is closed")
        faults = self.faults
        for part in parts:
            for piece in _pieces(part):
                rest = piece
                while len(rest):
                    step = len(rest) if faults.send_step is None else min(faults.send_step, len(rest))
                    if faults.send_cut_at is not None:
                        step = min(step, faults.send_cut_at - self.sent)
                        if step <= 0:
                            raise ConnectionLostError("the connection was lost: it was cut, for a test")
                    chunk = rest[:step]
                    spoilt = {p: b for p, b in faults.send_flips.items() if 0 <= p - self.sent < step}
                    if spoilt:
                        copy = bytearray(chunk)
                        for position, bits in spoilt.items():
                            copy[position - self.sent] ^= bits
                        yield copy
                    else:
                        yield chunk
                    self.sent += step
                    rest = rest[step:]


class FaultyChannel(_Spoiler):
    """A blocking channel with another inside, and faults between.

    Args:
        channel: the other; it is this one's from now on.
        faults: what goes wrong; ``channel.faults`` may be replaced while it is in use.
        receive_gate: nothing is received before it is set.
        send_gate: nothing is sent before it is set.

    ``received`` and ``sent`` count bytes.
    """

    def __init__(
        self,
        channel: BlockingChannel,
        faults: Faults | None = None,
        *,
        receive_gate: Gate | None = None,
        send_gate: Gate | None = None,
    ) -> None:
        super().__init__(faults or Faults())
        self._channel = channel
        self._receive_gate = receive_gate
        self._send_gate = send_gate

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        """Send, but for the faults."""
        _pass(self._send_gate, deadline)
        if self.faults._spoils_sending:
            for chunk in self._chunks(parts):
                self._channel.send([chunk], deadline)
        else:
            self._channel.send(parts, deadline)
            self.sent += _nbytes(parts)

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        """Receive, but for the faults."""
        _pass(self._receive_gate, deadline)
        room = self._room(buffer)
        if len(room) == 0:
            return 0
        count = self._channel.receive_into(room, deadline)
        self._took(room[:count])
        return count

    def close(self) -> None:
        """Close both."""
        self.closed = True
        self._channel.close()


class AsyncFaultyChannel(_Spoiler):
    """As :class:`FaultyChannel`, for tasks; the gates are events of the event loop."""

    def __init__(
        self,
        channel: AsyncChannel,
        faults: Faults | None = None,
        *,
        receive_gate: AsyncGate | None = None,
        send_gate: AsyncGate | None = None,
    ) -> None:
        super().__init__(faults or Faults())
        self._channel = channel
        self._receive_gate = receive_gate
        self._send_gate = send_gate

    async def send(self, parts: Sequence[Part]) -> None:
        """Send, but for the faults."""
        if self._send_gate is not None:
            await self._send_gate.wait()
        if self.faults._spoils_sending:
            for chunk in self._chunks(parts):
                await self._channel.send([chunk])
        else:
            await self._channel.send(parts)
            self.sent += _nbytes(parts)

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive, but for the faults."""
        if self._receive_gate is not None:
            await self._receive_gate.wait()
        room = self._room(buffer)
        if len(room) == 0:
            return 0
        count = await self._channel.receive_into(room)
        self._took(room[:count])
        return count

    def close(self) -> None:
        """Close both."""
        self.closed = True
        self._channel.close()


def _pieces(part: Part) -> Iterator[memoryview]:
    if not isinstance(part, FilePayload):
        yield memoryview(part).cast("B")
        return
    position, end = part.offset, part.offset + part.nbytes
    while position < end:
        data = os.pread(part.fd, min(_FILE_STEP, end - position), position)
        if not data:
            raise ConnectionLostError("the file became shorter while it was sent")
        yield memoryview(data)
        position += len(data)


def _nbytes(parts: Sequence[Part]) -> int:
    return sum(part.nbytes if isinstance(part, FilePayload) else memoryview(part).nbytes for part in parts)


def _pass(gate: Gate | None, deadline: float | None) -> None:
    if gate is None:
        return
    from time import monotonic

    if not gate.wait(None if deadline is None else max(deadline - monotonic(), 0.0)):
        raise TimeoutError


__all__ = [
    "SILENCE",
    "AsyncFaultyChannel",
    "AsyncScriptedChannel",
    "Faults",
    "FaultyChannel",
    "ScriptedChannel",
    "Step",
]
