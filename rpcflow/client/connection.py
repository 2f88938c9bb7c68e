# SPDX-License-Identifier: Apache-2.0
"""The async driver of a client machine: one channel, tasks that take turns."""

import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import trio

from rpcflow.errors import CallTimeoutError, ConnectionLostError, RPCError
from rpcflow.protocol.shortcut import MISS
from rpcflow.session.client import MAX_FREES, Request, State
from rpcflow.transports import AsyncChannel
from rpcflow.transports.async_sockets import on_trio

from .aside import Aside
from .core import Operation, SessionCore

T = TypeVar("T")
_CLOSE_SECONDS: Final = 0.5
_SLICE_SECONDS: Final = 1e-3
_log: Final = logging.getLogger("rpcflow.session")


class Connection(SessionCore):
    """A session's line. Operations of several tasks queue in order.

    A task cancelled while it waits for an answer leaves the session usable; cut in the middle of sending, it closes
    the session.
    """

    def __init__(self, channel: AsyncChannel, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._channel = channel
        self.crashed = getattr(channel, "crashed", None)
        self._busy = False
        self._waiting: deque[anyio.Event] = deque()
        self._closed = False
        self._late: Request | None = None
        self._on_trio = on_trio()
        self._ran_others = 0.0

    async def run(self, operation: Operation[T]) -> T:
        """Carry an operation out.

        Raises:
            RPCError: it failed.
        """
        with _Deadline(self):
            await self._acquire()
            try:
                await self._drain()
                try:
                    request = next(operation)
                    while True:
                        try:
                            if isinstance(request, Aside):
                                value = await request.arun()
                            else:
                                value = await self._roundtrip(request)
                        except RPCError as error:
                            request = operation.throw(error)
                        else:
                            request = operation.send(value)
                except StopIteration as stop:
                    return stop.value  # type: ignore[no-any-return]
                finally:
                    operation.close()
            finally:
                self._release()

    async def call(self, number: int, args: tuple[Any, ...], label: str) -> Any:
        """Call a function; its result as the machine gives it."""
        values = self.arguments(args)
        if self.call_timeout is None and self.session_timeout is None:
            await self._acquire()
            try:
                if self._late is not None:
                    await self._drain()
                packet = None if self.log else self.machine.lone_call(number, values)
                if packet is not None:
                    return await self._lone_roundtrip(packet, label)
                return await self._roundtrip(self.machine.call(number, values, label))
            finally:
                self._release()
        with _Deadline(self):
            await self._acquire()
            try:
                await self._drain()
                return await self._roundtrip(self.machine.call(number, values, label))
            finally:
                self._release()

    async def _lone_roundtrip(self, packet: bytes, label: str) -> Any:
        """The usual call: nothing else is under way, and a small answer comes whole; else see :meth:`_roundtrip`."""
        machine, channel = self.machine, self._channel
        room = machine.reader.fresh_buffer()
        assert room is not None  # nothing is under way
        sent = False
        try:
            await channel.send([packet])
            sent = True
            count = await channel.receive_into(room)
            value = machine.lone_answer(room, count)
            if value is not MISS:
                return value
        except ConnectionLostError as error:
            lost = error
        except BaseException:
            if not sent:
                self._cut_short()
            else:
                request = machine.resume(label)
                machine.abandon(request)
                if not request.done:
                    self._late = request
            raise
        else:
            return await self._roundtrip(machine.resume(label), partial(self._take, count))
        return await self._roundtrip(machine.resume(label), partial(self._line_lost, lost, sent))

    async def _take(self, count: int) -> None:
        self._received(count)

    async def _line_lost(self, error: ConnectionLostError, sent: bool) -> None:
        if sent:
            self.machine.connection_lost(str(error))
        await self._last_words(error)

    async def _drain(self) -> None:
        """Take the answer that a cancelled call has left on the line. It may be large: a server that cannot get rid of
        it would not take our next request."""
        if self._late is None:
            return
        try:
            while not self._late.done:
                await self._receive()
        except RPCError as error:
            self._after_error()
            raise self.lost(error) from error.__cause__
        self._late = None

    async def _acquire(self) -> None:
        # The place in the queue is taken before anybody else can run: calls are served in the order they are made.
        if not self._busy:
            self._busy = True
            try:
                await self._checkpoint()
            except BaseException:
                self._release()
                raise
            return
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._release()
            else:
                self._waiting.remove(turn)
            raise

    async def _checkpoint(self) -> None:
        """Every call is a point at which it can be cancelled and others can run. A call that finds its answer by
        polling never sleeps, so it lets others run by itself: those that are ready at once (the channel looks for
        them before it polls), the rest a thousand times a second."""
        if not self._on_trio:
            await anyio.lowlevel.checkpoint()
            return
        now = time.perf_counter()
        if now - self._ran_others < _SLICE_SECONDS:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._ran_others = now
            await trio.lowlevel.checkpoint()

    def _release(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._busy = False

    async def _roundtrip(self, request: Request, first: Callable[[], Awaitable[None]] | None = None) -> Any:
        machine = self.machine
        began = time.perf_counter() if self.log else 0.0
        try:
            if first is None:
                await self._send(request)
            else:
                await first()
            while not request.done:
                await self._receive()
            if machine.dropped > MAX_FREES:
                await self._give_back()
            value = request.result()
        except RPCError as error:
            self._after_error()
            if self.log:
                _log.info("%s: %s after %.6f s", request.label, error, time.perf_counter() - began)
            request.error = None  # else it and this frame, which it will hold on to, would keep each other
            raise self.lost(error, request.label) from error.__cause__
        except BaseException:
            machine.abandon(request)
            if not request.done:
                self._late = request
            if self.log:
                _log.info("%s: given up after %.6f s", request.label, time.perf_counter() - began)
            raise
        if self.log:
            _log.info("%s: done in %.6f s", request.label, time.perf_counter() - began)
        return value

    async def _send(self, request: Request) -> None:
        parts = self.machine.take_outgoing()
        if not parts:
            return
        try:
            await self._channel.send(parts)
        except ConnectionLostError as error:
            await self._last_words(error)
        except BaseException:
            self._cut_short()
            raise

    def _cut_short(self) -> None:
        self.machine.close("the session was closed because a request was cut short while it was being sent")
        self._channel.close()

    async def _receive(self) -> None:
        machine = self.machine
        reader = machine.reader
        try:
            count = await self._channel.receive_into(reader.get_buffer())
        except ConnectionLostError as error:
            machine.connection_lost(str(error))
        self._received(count)

    def _received(self, count: int) -> None:
        machine = self.machine
        if count == 0:
            machine.connection_lost("the server closed the connection")
        machine.reader.received(count)
        machine.process()

    async def _last_words(self, error: ConnectionLostError) -> None:
        """The line does not take more: perhaps the server has said why."""
        with anyio.move_on_after(1.0):
            while True:
                await self._receive()
        self.machine.connection_lost(str(error))

    async def _give_back(self) -> None:
        while self.machine.dropped > MAX_FREES:
            request = self.machine.give_back()
            if request is None:
                return
            await self._send(request)
            while not request.done:
                await self._receive()

    def _after_error(self) -> None:
        if self.machine.state is State.CLOSED:
            self._channel.close()

    async def aclose(self) -> None:
        """Say good-bye and close. Safe to call again, and while calls run: they fail."""
        if self._closed:
            return
        self._closed = True
        polite = False
        try:
            if not self._busy and self.machine.state in (State.OPEN, State.OPENING):
                self.machine.shutdown()
                parts = self.machine.take_outgoing()
                with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                    try:
                        await self._channel.send(parts)
                    except ConnectionLostError:
                        pass  # leaving on a dead line is silent
                polite = self._late is None
        finally:
            if self.machine.state is not State.CLOSED:
                self.machine.close()
            if polite and hasattr(self._channel, "finish"):
                await self._channel.finish()
            self._channel.close()


class _Deadline:
    """Bounds an operation by ``call_timeout`` and by the end of the session."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        call = connection.call_timeout
        left = math.inf
        if connection.hard_deadline is not None:
            left = connection.hard_deadline - time.monotonic()
        self._is_call = call is not None and call < left
        seconds = min(left, math.inf if call is None else call)
        self._scope = None if seconds == math.inf else anyio.move_on_after(max(seconds, 0.0))

    def __enter__(self) -> None:
        if self._scope is not None:
            self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scope is None:
            return
        self._scope.__exit__(kind, error, trace)  # what this gives says nothing: trio's is true without an error too
        if not self._scope.cancelled_caught:
            return
        connection = self._connection
        if self._is_call:
            raise CallTimeoutError(
                f"the call took longer than {connection.call_timeout:g} s; the option call_timeout raises that",
                call_timeout=connection.call_timeout,
            )
        label = "" if connection._late is None else connection._late.label
        lost = connection.lost(ConnectionLostError("the server did not keep to session_timeout"), label)
        connection.machine.lost = lost
        connection.machine.close()
        connection._channel.close()
        raise lost
