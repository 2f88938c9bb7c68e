# SPDX-License-Identifier: Apache-2.0
"""A session that runs on another server, or in a program that is started for it: this one moves bytes.

Handles, errors and limits are the last server's, so there is nothing to do here but to know where its packets end:
words of this server (a timeout, the end of that program) may only go between two of them.
"""

import select
import socket
from collections.abc import Callable
from typing import Any, Final

from rpcflow.errors import ConnectionLostError, RPCError, SessionCrashedError
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.protocol.packets import ExceptionPacket, encode
from rpcflow.protocol.values import U64, Value
from rpcflow.session.client import ClientMachine
from rpcflow.session.wire_errors import to_text
from rpcflow.transports import Url, find_transport
from rpcflow.transports.child import start
from rpcflow.transports.greeting import greet
from rpcflow.transports.popen import BlockingPopenChannel
from rpcflow.transports.sockets import BlockingSocketChannel

_CHUNK: Final = 1 << 18


class Forwarding:
    """A session opened elsewhere.

    Args:
        name: of the constructor.
        args: of ``rpc.Connect``: host or URL, port, key, whether to log, then the next hop's own constructor; of
            ``rpc.PopenSession``: a program, its path or its bytes; of ``rpc.CreatePipeClient``: a program's path and
            its arguments.

    Raises:
        RPCError: it cannot be reached, or refuses, or ends.
        OSError: it cannot be started.
    """

    def __init__(self, name: str, args: list[Value]) -> None:
        where, channel, constructor = _connect(args) if name == "rpc.Connect" else _start(name, args)
        try:
            machine = ClientMachine()
            request = machine.init(constructor, ask=False)
            channel.send(machine.take_outgoing())
            while machine.pending:
                count = channel.receive_into(machine.reader.get_buffer())
                if not count:
                    raise ConnectionLostError(f"{where} ended the session")
                machine.reader.received(count)
                machine.process()
            request.result()
        except ConnectionLostError as error:
            channel.close()
            raise _crash(channel) or error from None
        except BaseException:
            channel.close()
            raise
        self._child = channel.child if isinstance(channel, BlockingPopenChannel) else None
        if self._child is not None:
            self._child.serves()
        self._channel = channel
        self._socket = channel.socket

    def close(self) -> None:
        """Close the line to where it runs."""
        if isinstance(self._channel, BlockingPopenChannel):
            self._channel.finish()
        else:
            self._channel.close()

    def run(self, client: socket.socket, unread: bytes, set_sending: Callable[[bool], None]) -> None:
        """Move bytes until either end closes. ``unread``: what has been taken off the client's line already."""
        ends = _PacketEnds()
        towards = _Flow(client, self._socket, unread)
        back = _Flow(self._socket, client, b"")
        client.setblocking(False)
        self._socket.setblocking(False)
        words = None if self._child is None else self._child.words
        watch = None if self._child is None else self._child.watch
        ended = False  # the child, whose line another may hold open
        poller = select.poll()
        if watch is not None:
            poller.register(watch, select.POLLIN)
        while True:
            if words is not None and not words.ended:
                poller.register(words.fd, select.POLLIN)
            for sock, incoming, outgoing in ((client, towards, back), (self._socket, back, towards)):
                events = (0 if incoming.pending else select.POLLIN) | (select.POLLOUT if outgoing.pending else 0)
                poller.register(sock, events)
            ready = dict(poller.poll())
            if words is not None and words.fd in ready:
                poller.unregister(words.fd)
                words.look()
            if watch is not None and watch.fileno() in ready:
                poller.unregister(watch)
                ended = True  # what it has said before that is there by now
            if (towards.pending or ready.get(client.fileno(), 0) & ~select.POLLOUT) and not towards.move():
                return
            if ended or back.pending or ready.get(self._socket.fileno(), 0) & ~select.POLLOUT:
                data = back.pending or back.receive()
                if data is None or (ended and not data):
                    if self._child is not None and ends.between:
                        self._say_why(client)
                    return
                if not back.pending:
                    continue
                before = len(back.pending)
                set_sending(True)
                try:
                    back.send()
                except OSError:
                    return  # the client has gone
                ends.passed(data[: before - len(back.pending)])
                if ends.between:
                    set_sending(False)

    def _say_why(self, client: socket.socket) -> None:
        assert self._child is not None
        self._child.fall()
        crash = _crash(self._channel)
        if crash is not None:
            packet = encode(ExceptionPacket(to_text(crash, structured=False)))
            try:
                client.send(b"".join(bytes(part) for part in packet if not isinstance(part, tuple)))
            except OSError:
                pass  # the client has gone, or takes nothing


class _Flow:
    """One direction, with at most one chunk under way."""

    def __init__(self, source: socket.socket, target: socket.socket, pending: bytes) -> None:
        self._source = source
        self._target = target
        self.pending = memoryview(pending)

    def receive(self) -> memoryview | None:
        """Take a chunk; None at the end of the stream."""
        try:
            data = self._source.recv(_CHUNK)
        except BlockingIOError:
            return self.pending
        except OSError:
            return None
        self.pending = memoryview(data)
        return self.pending if data else None

    def send(self) -> None:
        """Pass on as much as is taken."""
        try:
            self.pending = self.pending[self._target.send(self.pending) :]
        except BlockingIOError:
            pass  # poll says when

    def move(self) -> bool:
        """Receive and pass on; False at the end."""
        try:
            if not self.pending and self.receive() is None:
                return False
            if self.pending:
                self.send()
        except OSError:
            return False
        return True


class _PacketEnds:
    """Follows the lengths in a stream of packets."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0

    @property
    def between(self) -> bool:
        """Whether what has passed ends with a packet."""
        return not self._left and not self._head

    def passed(self, data: Any) -> None:
        """So much more of the stream has passed."""
        while len(data):
            if self._left:
                step = min(self._left, len(data))
                self._left -= step
            else:
                step = min(8 - len(self._head), len(data))
                self._head += data[:step]
                if len(self._head) == 8:
                    (self._left,) = U64.unpack(self._head)
                    self._head.clear()
            data = data[step:]


def _connect(args: list[Value]) -> tuple[str, BlockingSocketChannel, list[Value]]:
    if len(args) < 3 or not isinstance(args[0], str) or type(args[1]) is not int or not isinstance(args[2], str):
        raise RPCError("rpc.Connect takes a host, a port, a key, and whether to log")
    url = Url.parse(str(args[0]), args[1])
    transport = find_transport(url.scheme)
    # What moves the bytes waits on sockets alone. A device is not to be reset just to find that out.
    channel = transport.connect_blocking(url) if getattr(transport, "sockets", True) else None
    if not isinstance(channel, BlockingSocketChannel):
        if channel is not None:
            channel.close()
        raise RPCError(f"a session is not forwarded over {url.scheme}: only over tcp, unix and popen")
    if getattr(transport, "greets", True):
        try:
            greet(channel, KeyText(Side.CLIENT, str(args[2])))
        except BaseException:
            channel.close()
            raise
    return str(url), channel, list(args[4:])


def _start(name: str, args: list[Value]) -> tuple[str, BlockingPopenChannel, list[Value]]:
    if name == "rpc.PopenSession" and len(args) == 1 and isinstance(args[0], str | bytes | bytearray | memoryview):
        binary = str(args[0]) if isinstance(args[0], str) else args[0]
        return "the program", BlockingPopenChannel(start(binary)), []
    if name == "rpc.CreatePipeClient" and args and all(isinstance(arg, str) for arg in args):
        path, *rest = map(str, args)
        return "the program", BlockingPopenChannel(start(path, rest)), []
    takes = "a program: its path, or its bytes" if name == "rpc.PopenSession" else "a program's path and its arguments"
    raise RPCError(f"{name} takes {takes}")


def _crash(channel: BlockingSocketChannel) -> SessionCrashedError | None:
    return channel.crashed() if isinstance(channel, BlockingPopenChannel) else None
