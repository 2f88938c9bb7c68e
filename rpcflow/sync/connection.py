# SPDX-License-Identifier: Apache-2.0
"""The blocking driver of a client machine: one channel, threads that take turns. No event loop, no thread of ours."""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from rpcflow.client.aside import Aside
from rpcflow.client.core import Operation, SessionCore
from rpcflow.errors import CallTimeoutError, ConnectionLostError, RPCError
from rpcflow.protocol.shortcut import MISS
from rpcflow.session.client import MAX_FREES, Request, State
from rpcflow.transports import BlockingChannel

T = TypeVar("T")
_CLOSE_SECONDS: Final = 0.5
_log: Final = logging.getLogger("rpcflow.session")


class Connection(SessionCore):
    """A session's line. It is closed when nothing refers to it any more."""

    def __init__(self, channel: BlockingChannel, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._channel = channel
        self.crashed = getattr(channel, "crashed", None)
        self._lock = threading.RLock()
        self._closed = False
        self._late_request: Request | None = None
        self._process = os.getpid()

    def run(self, operation: Operation[T], deadline: float | None = None) -> T:
        """Carry an operation out, by ``deadline`` if that is given (a reading of ``time.monotonic``).

        Raises:
            RPCError: it failed.
        """
        with self._lock:
            if deadline is None:
                deadline = self._deadline()
            self._drain(deadline)
            try:
                request = next(operation)
                while True:
                    try:
                        if isinstance(request, Aside):
                            value = self._aside(request, deadline)
                        else:
                            value = self._roundtrip(request, deadline)
                    except RPCError as error:
                        request = operation.throw(error)
                    else:
                        request = operation.send(value)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                operation.close()

    def call(self, number: int, args: tuple[Any, ...], label: str) -> Any:
        """Call a function; its result as the machine gives it."""
        values = self.arguments(args)
        with self._lock:
            if self.call_timeout is None and not self.session_timeout and self._late_request is None and not self.log:
                packet = self.machine.lone_call(number, values)
                if packet is not None:
                    return self._lone_roundtrip(packet, label)
            deadline = self._deadline()
            if self._late_request is not None:
                self._drain(deadline)
            return self._roundtrip(self.machine.call(number, values, label), deadline)

    def _lone_roundtrip(self, packet: bytes, label: str) -> Any:
        """The usual call: nothing else is under way, and a small answer comes whole; else see :meth:`_roundtrip`."""
        machine, channel = self.machine, self._channel
        room = machine.reader.fresh_buffer()
        assert room is not None  # nothing is under way
        sent = False
        try:
            channel.send([packet])
            sent = True
            count = channel.receive_into(room)
            value = machine.lone_answer(room, count)
            if value is not MISS:
                return value
        except ConnectionLostError as error:
            lost = error
        except BaseException:  # KeyboardInterrupt, say
            if sent or getattr(channel, "sent_whole", False):
                self._abandon(machine.resume(label))
            else:
                self._cut_short()
            raise
        else:
            return self._roundtrip(machine.resume(label), None, partial(self._received, count))
        return self._roundtrip(machine.resume(label), None, partial(self._line_lost, lost, sent))

    def _line_lost(self, error: ConnectionLostError, sent: bool) -> None:
        if sent:
            self.machine.connection_lost(str(error))
        self._last_words(error)

    def _drain(self, deadline: float | None) -> None:
        """Take the answer that a call given up has left on the line. It may be large: a server that cannot get rid of
        it would not take our next request."""
        request = self._late_request
        if request is None:
            return
        try:
            while not request.done:
                self._receive(deadline)
        except TimeoutError as error:
            if isinstance(error, RPCError):
                raise
            raise self._late(request) from None
        except RPCError as error:
            if self.machine.state is State.CLOSED:
                self._channel.close()
            raise self.lost(error) from error.__cause__
        self._late_request = None

    def _deadline(self) -> float | None:
        if self.call_timeout is None:
            return self.hard_deadline
        call = time.monotonic() + self.call_timeout
        return call if self.hard_deadline is None else min(call, self.hard_deadline)

    def _roundtrip(self, request: Request, deadline: float | None, first: Callable[[], None] | None = None) -> Any:
        machine = self.machine
        began = time.perf_counter() if self.log else 0.0
        try:
            if first is None:
                self._send(deadline)
            else:
                first()
            while not request.done:
                self._receive(deadline)
            if machine.dropped > MAX_FREES:
                self._give_back(deadline)
            value = request.result()
        except TimeoutError as error:
            if isinstance(error, RPCError):
                raise
            raise self._late(request) from None
        except RPCError as error:
            if machine.state is State.CLOSED:
                self._channel.close()
            if self.log:
                _log.info("%s: %s after %.6f s", request.label, error, time.perf_counter() - began)
            request.error = None  # else it and this frame, which it will hold on to, would keep each other
            raise self.lost(error, request.label) from error.__cause__
        except BaseException:  # KeyboardInterrupt, say
            self._abandon(request)
            raise
        if self.log:
            _log.info("%s: done in %.6f s", request.label, time.perf_counter() - began)
        return value

    def _send(self, deadline: float | None) -> None:
        parts = self.machine.take_outgoing()
        if not parts:
            return
        try:
            self._channel.send(parts, deadline)
        except ConnectionLostError as error:
            self._last_words(error)
        except BaseException:
            self._cut_short()
            raise

    def _cut_short(self) -> None:
        self.machine.close("the session was closed because a request was cut short while it was being sent")
        self._channel.close()

    def _receive(self, deadline: float | None) -> None:
        machine = self.machine
        reader = machine.reader
        try:
            count = self._channel.receive_into(reader.get_buffer(), deadline)
        except ConnectionLostError as error:
            machine.connection_lost(str(error))
        self._received(count)

    def _received(self, count: int) -> None:
        machine = self.machine
        if count == 0:
            machine.connection_lost("the server closed the connection")
        machine.reader.received(count)
        machine.process()

    def _last_words(self, error: ConnectionLostError) -> None:
        """The line does not take more: perhaps the server has said why."""
        try:
            while True:
                self._receive(time.monotonic() + 1.0)
        except TimeoutError:
            self.machine.connection_lost(str(error))

    def _give_back(self, deadline: float | None) -> None:
        while self.machine.dropped > MAX_FREES:
            request = self.machine.give_back()
            if request is None:
                return
            self._send(deadline)
            while not request.done:
                self._receive(deadline)

    def _aside(self, work: Aside, deadline: float | None) -> Any:
        try:
            return work.run(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        except TimeoutError as error:
            if isinstance(error, RPCError):
                raise
            raise self._late(None) from None

    def _late(self, request: Request | None) -> RPCError:
        """A deadline has passed: the call's, or the end of the session."""
        hard = self.hard_deadline
        if hard is not None and time.monotonic() >= hard:
            lost = self.lost(
                ConnectionLostError("the server did not keep to session_timeout"), request.label if request else ""
            )
            self.machine.lost = lost
            self.machine.close()
            self._channel.close()
            return lost
        if request is not None:
            self._abandon(request)
        return CallTimeoutError(
            f"the call took longer than {self.call_timeout} s; the option call_timeout raises that",
            call_timeout=self.call_timeout,
        )

    def _abandon(self, request: Request) -> None:
        self.machine.abandon(request)
        if not request.done:
            self._late_request = request
        if self.log:
            _log.info("%s: given up", request.label)

    def close(self) -> None:
        """Say good-bye and close. Safe to call again, and while another thread is in a call: that fails."""
        if self._closed:
            return
        self._closed = True
        free = self._lock.acquire(blocking=False)
        polite = False
        try:
            if free and self.machine.state in (State.OPEN, State.OPENING):
                self.machine.shutdown()
                try:
                    self._channel.send(self.machine.take_outgoing(), time.monotonic() + _CLOSE_SECONDS)
                except (TimeoutError, ConnectionLostError):
                    pass  # leaving on a dead line is silent
                polite = self._late_request is None
        finally:
            if self.machine.state is not State.CLOSED:
                self.machine.close()
            if polite and hasattr(self._channel, "finish"):
                self._channel.finish()
            self._channel.close()
            if free:
                self._lock.release()

    def __del__(self) -> None:
        # A forked child has the same line; that it lets go of its copy must not end the parent's session.
        if getattr(self, "_process", None) == os.getpid():
            self.close()
