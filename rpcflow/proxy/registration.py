# SPDX-License-Identifier: Apache-2.0
"""A proxy's registration with a tracker: the servers that wait at the proxy are put there under match keys."""

import logging
import time
from typing import Any, Final, NoReturn

import anyio

from rpcflow.errors import ConnectionLostError, RPCError
from rpcflow.tracker import questions
from rpcflow.tracker.link import TrackerLink
from rpcflow.tracker.retrying import Retrying
from rpcflow.transports import Url

from .pairing import TrackedPairing
from .peers import Peer

POLL_SECONDS: Final = 2.0
"""How often the tracker is asked which match keys are still there; stock's interval."""
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0
_log: Final = logging.getLogger("rpcflow.proxy")


class ProxyRegistration:
    """Keeps what waits at a proxy known to a tracker. Run :meth:`run` in a task.

    Args:
        tracker: where it is.
        port: where clients and servers find the proxy.
        pairing: who waits; calls of :meth:`changed` say that it has changed.
        pin: of the proxy's own key, where it is spoken to by TLS.
    """

    def __init__(self, tracker: Url, port: int, pairing: TrackedPairing[Peer], pin: str = "") -> None:
        self._tracker = tracker
        self._port = port
        self._pairing = pairing
        self._pin = pin
        self._idle: anyio.CancelScope | None = None
        self._retrying = Retrying(f"not registered with the tracker at {tracker}", _log)
        self.registered = anyio.Event()

    def changed(self) -> None:
        """There is something new to tell."""
        if self._idle is not None:
            self._idle.cancel()

    async def wait_registered(self, seconds: float) -> None:
        """Wait until it is registered for the first time.

        Raises:
            ConnectionLostError: it was not within so many seconds.
        """
        with anyio.move_on_after(seconds):
            await self.registered.wait()
        if not self.registered.is_set():
            raise ConnectionLostError(f"cannot register with the tracker at {self._tracker}: {self._retrying.failure}")

    async def run(self) -> None:
        """Stay registered until cancelled; then leave the tracker."""
        while True:
            self._retrying.begin()
            try:
                await self._stay()
            except (RPCError, OSError) as error:
                await self._retrying.failed(str(error))

    async def _stay(self) -> NoReturn:
        link = await self._connect()
        try:
            self._pairing.connected()
            await self._tell(link)
            _log.info("registered with the tracker at %s", self._tracker)
            self._retrying.succeeded()
            self.registered.set()
            next_poll = time.monotonic() + POLL_SECONDS
            while True:
                await self._wait(link, next_poll)
                now = time.monotonic()
                if now >= next_poll:
                    next_poll = now + POLL_SECONDS
                    if await self._look(link):
                        # No message takes back what was offered; leaving does.
                        link.close()
                        link = await self._connect()
                        self._pairing.connected()
                await self._tell(link)
        finally:
            link.close()

    async def _tell(self, link: TrackerLink) -> None:
        """The name goes first: what a connection without a name has put outlives it."""
        name = self._pairing.name()
        if name is not None:
            await self._do(link, questions.update_info(name.removeprefix("server:"), None, self._port))
        for key, match_key in self._pairing.puts():
            await self._do(link, questions.put(key, self._port, match_key, self._host(link, match_key)))
            self._pairing.was_put(match_key)

    def _host(self, link: TrackerLink, match_key: str) -> str | None:
        """What clients are to be told in the place of our host; None for the address that the tracker sees."""
        peer = self._pairing.peer(match_key)
        if peer is None or not (peer.pin or self._pin):
            return None
        if not peer.pin:
            return questions.secure_host(link.local_host, self._pin)
        return questions.secure_host(link.local_host, peer.pin, self._pin or "plain")

    async def _look(self, link: TrackerLink) -> bool:
        """See what the tracker has handed out; whether it offers what is not there any more."""
        pending = questions.read_pending(await _ask(link, questions.PENDING))
        self._pairing.pending(pending, time.monotonic())
        return self._pairing.stale(pending)

    async def _wait(self, link: TrackerLink, until: float) -> None:
        """Until there may be something to do; a line that goes is noticed."""
        if self._pairing.puts():
            return
        with anyio.move_on_after(max(0.0, until - time.monotonic())) as self._idle:
            try:
                await link.watch()
            finally:
                self._idle = None

    async def _do(self, link: TrackerLink, message: list[Any]) -> None:
        questions.check_done(await _ask(link, message))

    async def _connect(self) -> TrackerLink:
        with anyio.move_on_after(_CONNECT_SECONDS):
            return await TrackerLink.connect(self._tracker)
        raise ConnectionLostError(f"it has not answered within {_CONNECT_SECONDS:g} s")


async def _ask(link: TrackerLink, message: list[Any]) -> Any:
    with anyio.move_on_after(_ANSWER_SECONDS):
        return await link.call(message)
    raise ConnectionLostError(f"it has not answered within {_ANSWER_SECONDS:g} s")
