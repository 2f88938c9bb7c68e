# SPDX-License-Identifier: Apache-2.0
"""A server in the client's own process, at the other end of a channel that is no line at all."""

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Sequence

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.protocol.values import FilePayload, Part, TensorView
from rpcflow.session.server import State

from .dlpack import DLPackExporter
from .executor import Executor
from .folder import SessionFolder


class LocalChannel:
    """A blocking channel whose other end carries out requests while they are sent."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="rpcflow-local-")
        self._executor = Executor(SessionFolder(self._folder), files_by_handle=False, tell=False)
        self._answers: deque[memoryview] = deque()
        self._open = True
        self._busy = False
        self._lock = threading.RLock()  # devices are used by one thread at a time

    def send(self, parts: Sequence[Part], deadline: float | None = None) -> None:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
        self._busy = True
        try:
            with self._lock:
                self._take(parts)
        finally:
            self._busy = False
            closed = self._was_closed()
            if closed:  # by another thread, or by what was called: now it can go
                self._end()
        if closed:
            raise ConnectionLostError("the connection is closed")

    def _was_closed(self) -> bool:
        return not self._open

    def _take(self, parts: Sequence[Part]) -> None:
        reader = self._executor.machine.reader
        for part in parts:
            assert not isinstance(part, FilePayload)
            rest = memoryview(part).cast("B")
            while len(rest):
                room = reader.get_buffer()
                step = min(len(room), len(rest))
                room[:step] = rest[:step]
                rest = rest[step:]
                reader.received(step)
                self._work()

    def _work(self) -> None:
        machine = self._executor.machine
        while True:
            try:
                action = machine.next_action()
            except ProtocolError as error:
                machine.fault(error)
                action = None
            if action is not None:
                self._executor.perform(action)
            for part in machine.take_outgoing():
                assert not isinstance(part, FilePayload)
                self._answers.append(memoryview(part).cast("B"))
            if action is None:
                return

    def receive_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        if not self._open:
            raise ConnectionLostError("the connection is closed")
        if not self._answers:
            if self._executor.machine.state is State.CLOSED:
                return 0
            raise ConnectionLostError("an answer was awaited that no request had asked for")
        first = self._answers.popleft()
        step = min(len(first), len(buffer))
        buffer[:step] = first[:step]
        if step < len(first):
            self._answers.appendleft(first[step:])
        return step

    def share(self, view: TensorView) -> DLPackExporter:
        """The memory of a tensor, as it is, for other libraries of this process.

        Raises:
            BufferError: they could not follow there.
            ConnectionLostError: the session is over.
        """
        if not self._open:
            raise ConnectionLostError("the connection is closed")
        with self._lock:
            return self._executor.share(view)

    def close(self) -> None:
        if self._open:
            self._open = False
            if not self._busy:
                self._end()

    def _end(self) -> None:
        self._answers.clear()
        try:
            self._executor.close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
