# SPDX-License-Identifier: Apache-2.0
"""The gate: a process of one thread that ends TLS for a service, and hands it plain lines.

It alone has the service's private key, and runs nobody's code but ours. It accepts at the listening sockets itself, so
that strangers are its burden and not the service's: half-open connections are limited by address, handshakes have a
deadline, take turns by address, and get a share of the time. What a session says and hears goes through a carrier,
a fork of the gate with that one line, so that neither strangers nor other sessions slow it down.

Messages on the control socket, each a JSON object:

=====================================================  ===========================================================
``{"ready": pid}``                                     (to the service) in service
``{"failed": text}``                                   (to the service) cannot be
``{"line": n, "listener": i, "address": [host, port],  (to the service) a line, whose plain end comes with it;
"alpn": name, "certificate": pin, "subject": name,     ``refused``: why its client is not to be served, which the
"refused": text}`` and a descriptor                    service tells it
``{"log": [level, text]}``                             (to the service) for its log
``{"broken": n, "why": text}``                         (to the service) a line given by ``secure`` came to nothing
``{"secure": n, "address": [host, port]}`` and a       do the handshake on this line
descriptor
``{"known": n}``                                       its client is a stranger no more, and favoured from now on
``{"carry": n}``                                       it is a session: give it a carrier
=====================================================  ===========================================================

End of stream means that the service is gone: all lines are closed.
"""

import gc
import json
import logging
import os
import select
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from rpcflow.errors import AuthenticationError
from rpcflow.processes import die_with_parent, prctl
from rpcflow.transports.admission import Admission, Ticket, network
from rpcflow.transports.descriptors import raise_limit
from rpcflow.transports.logs import LimitedLog
from rpcflow.transports.sockets import tune
from rpcflow.transports.turns import Budget, FairTurns

from .carrying import Carried
from .gate_carriers import LINGER_SECONDS, Carriers
from .gate_config import GateConfig
from .gate_link import LinkHandler, ServiceLink
from .server_context import ALPN_PAIR, ALPN_WEB, Contexts, handshake_problem

_TICK_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
"""For which files that have changed need not count, of a flood each line of which would have us look."""
_REPORT_SECONDS: Final = 5.0
_SHARE: Final = 0.5
"""Of one processor, for strangers' handshakes."""
_ACCEPTS: Final = 64
_BACKLOG: Final = 4096
"""Lines that wait in the kernel to be accepted. What finds no room there tries again after a second, and a friend's
line is among them."""
_STEPS_SECONDS: Final = 0.005
"""Time for handshakes before the lines that are through have their turn."""
_PLAIN_NBYTES: Final = 1 << 20
_PR_SET_DUMPABLE: Final = 4
_GIVEN: Final = -1
"""Number of the listener of lines that the service has given us."""


@attrs.define(eq=False)
class _Line:
    """A connection."""

    number: int
    listener: int
    host: str
    port: int
    tls: ssl.SSLSocket
    ticket: Ticket | None
    deadline: float
    queued: bool = False
    carried: Carried | None = None
    pairs: bool = False
    events: tuple[int, int] = (0, -1)

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


class Gate:
    """The loop."""

    def __init__(self, control: socket.socket, config: GateConfig) -> None:
        self._link = ServiceLink(control)
        self._config = config
        logging.getLogger("rpcflow").addHandler(LinkHandler(self._link))
        self._logger = logging.getLogger("rpcflow.gate")
        self._log = LimitedLog(self._logger)
        self._listeners = [socket.socket(fileno=fd) for fd, _ in config.listeners]
        alpns = [alpn for _, alpn in config.listeners]
        self._contexts = Contexts(config.tls, alpns or ["rpcflow"])
        self._admission = Admission(
            most=config.most,
            strangers=config.strangers,
            per_address=config.per_address,
            strangers_per_address=config.strangers_per_address,
        )
        self._turns: FairTurns[_Line] = FairTurns(drop=self._give_way)
        self._budget = Budget(_SHARE, time.monotonic)
        self._epoll = select.epoll()
        self._by_fd: dict[int, tuple[Literal["tls", "plain"], _Line]] = {}
        self._lines: dict[int, _Line] = {}
        self._shaking: dict[_Line, None] = {}
        self._ending: dict[_Line, float] = {}
        self._restless: dict[_Line, None] = {}
        self._numbers = 0
        self._carriers: Carriers[_Line] = Carriers(config.poll)
        self._tick_at = 0.0
        self._look_at = 0.0
        self._report_at = 0.0

    def run(self) -> None:
        """Serve until the service is gone."""
        self._carriers.listen()
        self._epoll.register(self._link, select.EPOLLIN)
        self._epoll.register(self._carriers.wakeup, select.EPOLLIN)
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(_BACKLOG)
            self._epoll.register(listener, select.EPOLLIN)
        listeners = {listener.fileno(): i for i, listener in enumerate(self._listeners)}
        self._link.tell({"ready": os.getpid()})
        while True:
            ready: dict[int, tuple[int, int]] = {}
            found = self._epoll.poll(self._pause())
            self._watch_clock()  # before whoever comes now, however long we have slept: for a new client, a new file
            for fd, events in found:
                if fd == self._link.fileno():
                    if not self._commands():
                        return
                elif fd == self._carriers.wakeup:
                    for line in self._carriers.reap():
                        if line.ticket is not None:
                            line.ticket.leave()
                elif fd in listeners:
                    self._accept(listeners[fd])
                elif fd in self._by_fd:
                    side, line = self._by_fd[fd]
                    if line in self._ending and line.carried is None:
                        self._drain(line)
                    elif line.carried is None:
                        self._queue(line)
                    else:
                        before = ready.get(line.number, (0, 0))
                        ready[line.number] = (events, before[1]) if side == "tls" else (before[0], events)
            for number, (tls, plain) in ready.items():
                if number in self._lines:
                    self._move(self._lines[number], tls, plain)
            restless, self._restless = self._restless, {}
            for line in restless:
                if line.number in self._lines:
                    self._move(line, 0, 0)
            self._shake()

    # ---- the service

    def _commands(self) -> bool:
        """Hear all that the service has to say; False if it is gone. Whoever is known is so before others come, who
        would have it give way as a stranger."""
        while True:
            try:
                message, sock = self._link.hear()
            except BlockingIOError:
                return True
            except EOFError:
                return False
            if "secure" in message:
                host, port = message["address"]
                if sock is None:
                    self._link.tell({"broken": message["secure"], "why": "there is no room for it"})
                else:
                    self._begin(sock, _GIVEN, host, port, None, -message["secure"])
            elif "known" in message:
                line = self._lines.get(message["known"])
                if line is not None and line.ticket is not None:
                    line.ticket.known()
                    self._turns.favour(network(line.host))
            else:
                line = self._lines.get(message["carry"])
                if line is not None and line.carried is not None:
                    self._fork(line)

    # ---- strangers

    def _accept(self, listener: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = self._listeners[listener].accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError as error:
                self._log.error("accept", "cannot accept: %s", error)
                time.sleep(0.01)  # out of descriptors: nothing tells when there are some again
                return
            host, port = (address[0], address[1]) if isinstance(address, tuple) else ("", 0)
            self._numbers += 1
            number = self._numbers

            def drop(number: int = number) -> None:
                line = self._lines.get(number)
                if line is not None:
                    line.ticket = None
                    self._remove(line)

            ticket = self._admission.enter(host, drop)
            if ticket is None:
                sock.close()
                continue
            self._begin(sock, listener, host, port, ticket, number)

    def _begin(
        self, sock: socket.socket, listener: int, host: str, port: int, ticket: Ticket | None, number: int
    ) -> None:
        try:
            sock.setblocking(False)
            tune(sock, self._config.peer_timeout, self._config.user_timeout)
            context = self._contexts.get(max(listener, 0))
            tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            sock.close()
            if ticket is not None:
                ticket.leave()
            if listener == _GIVEN:
                self._link.tell({"broken": -number, "why": ""})
            return
        line = _Line(number, listener, host, port, tls, ticket, time.monotonic() + self._config.handshake_timeout)
        self._lines[number] = line
        self._by_fd[tls.fileno()] = ("tls", line)
        self._shaking[line] = None
        self._epoll.register(tls, select.EPOLLIN)
        line.events = (select.EPOLLIN, -1)

    def _queue(self, line: _Line) -> None:
        """It has said something: it gets its turn for the next step."""
        if line.queued:
            return
        if self._turns.add(network(line.host), line):
            line.queued = True
            self._listen(line, (0, -1))
        else:
            self._give_way(line)

    def _give_way(self, line: _Line) -> None:
        """Too many wait for their turns."""
        line.queued = False
        if line.listener == _GIVEN:
            self._link.tell({"broken": -line.number, "why": "too many wait for their TLS handshake"})
        self._remove(line)

    def _shake(self) -> None:
        """Handshakes, one step each, as long as strangers may have time."""
        until = time.monotonic() + _STEPS_SECONDS
        while self._turns and self._budget.ready_in() <= 0 and time.monotonic() < until:
            line = self._turns.next()
            if line is None:
                return
            line.queued = False
            if line.number not in self._lines:
                continue
            begin = time.thread_time()  # what others take meanwhile is not strangers' share
            try:
                line.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._listen(line, (select.EPOLLIN, -1))
            except ssl.SSLWantWriteError:
                self._listen(line, (select.EPOLLOUT, -1))
            except (OSError, ValueError) as error:
                self._failed(line, handshake_problem(error))
            else:
                self._shaken(line)
            self._budget.spent(time.thread_time() - begin)

    def _failed(self, line: _Line, why: str) -> None:
        if line.listener == _GIVEN:
            self._link.tell({"broken": -line.number, "why": why})
        if why:
            self._log.info("handshake", "%s: %s", line.name, why)
        if line.queued:
            self._turns.discard(line)
            line.queued = False
        try:
            line.tls.shutdown(socket.SHUT_WR)
        except OSError:
            self._remove(line)  # it has gone
            return
        # To close with its bytes unread would reset the line, and our alert with it.
        self._shaking.pop(line, None)
        self._ending[line] = time.monotonic() + LINGER_SECONDS
        self._listen(line, (select.EPOLLIN, -1))
        self._drain(line)

    def _drain(self, line: _Line) -> None:
        """Throw away what comes, until the other end has read our last word and gone."""
        for _ in range(_ACCEPTS):
            try:
                data = socket.socket.recv(line.tls, 65536)  # past the cipher
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._remove(line)
                return

    def _shaken(self, line: _Line) -> None:
        tls = line.tls
        alpn = tls.selected_alpn_protocol()
        web = line.listener >= 0 and self._config.listeners[line.listener][1] == ALPN_WEB
        if alpn is None and not web:
            self._failed(line, "spoke TLS, but not for rpcflow (no ALPN)")
            return
        refused = certificate = None
        try:
            certificate = self._contexts.check(tls)
        except AuthenticationError as error:
            refused = str(error)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._log.error("no plain line", "%s is closed: %s", line.name, error)  # out of descriptors
            self._failed(line, "")
            return
        try:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PLAIN_NBYTES)
            ours.setblocking(False)
            told = self._link.tell(
                {
                    "line": line.number,
                    "listener": line.listener,
                    "address": [line.host, line.port],
                    "alpn": alpn,
                    "certificate": certificate and certificate.pin,
                    "subject": certificate and certificate.subject,
                    "refused": refused,
                },
                [theirs.fileno()],
            )
        finally:
            theirs.close()
        self._shaking.pop(line, None)
        if not told:
            ours.close()
            self._remove(line)
            return
        line.pairs = alpn == ALPN_PAIR
        line.carried = Carried(tls, ours)
        self._by_fd[ours.fileno()] = ("plain", line)
        self._move(line, select.EPOLLIN, 0)

    # ---- lines that are through

    def _move(self, line: _Line, tls: int, plain: int) -> None:
        carried = line.carried
        assert carried is not None
        number = carried.plain.fileno()
        carried.move(tls, plain)
        if line.pairs:
            self._look_at = 0.0  # by the time its client hears that it is known, it is
        if carried.ending and line not in self._ending and not carried.over:
            self._by_fd.pop(number, None)  # the kernel has forgotten it at its close
            line.events = (line.events[0], -1)
            self._ending[line] = time.monotonic() + LINGER_SECONDS
        if carried.over:
            self._remove(line)
            return
        if carried.restless:
            self._restless[line] = None
        self._listen(line, carried.wants())

    def _listen(self, line: _Line, wanted: tuple[int, int]) -> None:
        if wanted == line.events:
            return
        if wanted[0] != line.events[0]:
            self._epoll.modify(line.tls, wanted[0])
        if wanted[1] != line.events[1] and line.carried is not None:
            plain = line.carried.plain
            if wanted[1] == -1:
                self._epoll.unregister(plain)
            elif line.events[1] == -1:
                self._epoll.register(plain, wanted[1])
            else:
                self._epoll.modify(plain, wanted[1])
        line.events = wanted

    def _fork(self, line: _Line) -> None:
        """Give a line a process of its own."""
        assert line.carried is not None
        try:
            self._carriers.start(line.carried, line, lambda: self._forsake(line))
        except OSError as error:
            self._log.warning("fork", "%s gets no carrier of its own: %s", line.name, error)
            return  # it is carried here then
        # The kernel would go on telling us of a line that lives on elsewhere.
        self._forget(line)
        # No closing as usual, which would say goodbye on what is the carrier's line now.
        line.carried.plain.close()
        os.close(line.tls.detach())

    def _forsake(self, line: _Line) -> None:
        """In a carrier: close our copies of all that is not its line."""
        self._link.forsake()
        self._epoll.close()
        for listener in self._listeners:
            os.close(listener.detach())
        for other in self._lines.values():
            if other is not line:
                os.close(other.tls.detach())
                if other.carried is not None and other.carried.plain.fileno() >= 0:
                    os.close(other.carried.plain.detach())

    # ---- the end of lines

    def _forget(self, line: _Line) -> None:
        """It is not ours any more."""
        self._lines.pop(line.number, None)
        for lines in (self._shaking, self._ending, self._restless):
            lines.pop(line, None)
        if line.queued:
            self._turns.discard(line)
        self._by_fd.pop(line.tls.fileno(), None)
        self._epoll.unregister(line.tls)
        if line.carried is not None and line.carried.plain.fileno() >= 0:
            self._by_fd.pop(line.carried.plain.fileno(), None)
            if line.events[1] != -1:
                self._epoll.unregister(line.carried.plain)

    def _remove(self, line: _Line) -> None:
        """Close it."""
        self._forget(line)
        if line.carried is not None:
            line.carried.close()
        line.tls.close()
        if line.ticket is not None:
            line.ticket.leave()

    # ---- time

    def _pause(self) -> float | None:
        """How long there is nothing to do unless somebody says something."""
        if self._restless:
            return 0.0
        pause = _TICK_SECONDS if self._shaking or self._ending or self._admission.shed else None
        if self._turns:
            pause = min(max(self._budget.ready_in(), 0.0), _TICK_SECONDS)
        return pause

    def _watch_clock(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._contexts.refresh()
        if now < self._tick_at:
            return
        self._tick_at = now + _TICK_SECONDS
        for line in [line for line in self._shaking if line.deadline <= now]:
            self._failed(line, "did not finish the TLS handshake in time")
        for line in [line for line, until in self._ending.items() if until <= now]:
            self._remove(line)
        if now >= self._report_at:
            report = self._admission.report()
            if report:
                self._report_at = now + _REPORT_SECONDS
                self._logger.warning("%s", report)  # in our own words, and seldom


def main(argv: Sequence[str]) -> int:
    """``control_fd config_fd service_pid``."""
    control_fd, config_fd, service = (int(word) for word in argv)
    os.set_inheritable(control_fd, False)
    die_with_parent(service)
    control = socket.socket(fileno=control_fd)
    with os.fdopen(config_fd) as file:
        config = GateConfig.from_json(file.read())
    for fd, _ in config.listeners:
        os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl(_PR_SET_DUMPABLE, 0)  # other processes of our user, which may run anybody's code, cannot look into this one
    logging.getLogger().setLevel(logging.INFO)
    raise_limit()
    try:
        gate = Gate(control, config)
    except (OSError, ValueError, ImportError) as error:
        control.send(json.dumps({"failed": str(error)}).encode())
        return 1
    gc.collect()
    gc.freeze()
    gate.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
