# SPDX-License-Identifier: Apache-2.0
"""A server's registration with a tracker: which match keys are out there, and that there are as many as free turns.

A match key is good for one session. It is *offered* from when it is put to the tracker, *gone* once the tracker has
handed it to somebody, *taken* when that client comes here with it. One that is gone and not taken in time is void, and
another is offered in its place. When the tracker dies, what was offered is *late*: others are offered at once, but
whom it had sent here is let in all the same. One task speaks to the tracker, for as long as the server runs.
"""

import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import anyio
import attrs

from rpcflow.errors import AuthenticationError, ConnectionLostError, PermissionDeniedError, RPCError
from rpcflow.tracker import questions
from rpcflow.tracker.link import TrackerLink
from rpcflow.tracker.retrying import Retrying
from rpcflow.transports import Url

POLL_SECONDS: Final = 2.0
"""How often the tracker is asked which match keys are still there; stock's interval."""
ON_THE_WAY_SECONDS: Final = 5.0
"""How long a client may take from the tracker to us."""
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0
_log: Final = logging.getLogger("rpcflow.server")


@attrs.define(eq=False)
class _Offer:
    """A match key that a client may come with.

    Args:
        key: the match key.
        until: when it is void (by ``time.monotonic``).
        late: whether it was with a tracker that is no more.
    """

    key: str = attrs.field(repr=False)
    until: float = math.inf
    late: bool = False


class Registration:
    """Keeps a server registered. Run :meth:`run` in a task.

    Args:
        tracker: where it is.
        key: what clients ask for; may hold colons.
        port: where we listen.
        custom_addr: the host clients are to be told; None for the one the tracker sees us come from.
        turns: how many sessions may run at a time.
        log_level: of what is merely worth knowing.
        pin: of our key, where clients are to come by TLS; the tracker hands it on in the place of the host, as
            ``tls://HOST?pin=PIN``.

    Attributes:
        refused: why the tracker does not serve us, if it has said so before we were ever registered; ``registered``
            is set then too.
    """

    def __init__(
        self,
        tracker: Url,
        key: str,
        port: int,
        custom_addr: str | None,
        turns: int,
        log_level: int = logging.INFO,
        pin: str = "",
    ) -> None:
        self._tracker = tracker
        self._key = key
        self._port = port
        self._custom_addr = custom_addr
        self._turns = turns
        self._log_level = log_level
        self._pin = pin
        self._host = custom_addr
        self.refused: RPCError | None = None
        self._offers: dict[str, _Offer] = {}
        self._taken = 0
        self._idle: anyio.CancelScope | None = None
        self._retrying = Retrying(f"not registered with the tracker at {tracker}", _log)
        self.registered = anyio.Event()

    @property
    def failure(self) -> str:
        """Why the last try failed."""
        return self._retrying.failure

    @property
    def offered(self) -> int:
        """How many match keys are with the tracker, as far as we know."""
        return sum(offer.until == math.inf for offer in self._offers.values())

    # ---- for connections

    def take(self, key: str) -> Callable[[], None] | None:
        """Let a client in that has come with this key, once. What is to be called when its turn is over; None for a
        key that is not, or no longer, one of ours."""
        offer = self._offers.pop(key, None)
        if offer is None:
            return None
        self._wake()
        if offer.until <= time.monotonic():
            return None
        self._taken += 1
        return self._give_back

    def _give_back(self) -> None:
        self._taken -= 1
        self._wake()

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()

    # ---- the task

    async def run(self) -> None:
        """Stay registered until cancelled; then leave the tracker."""
        while True:
            self._retrying.begin()
            try:
                await self._stay()
            except (RPCError, OSError) as error:
                self._let_go()
                if isinstance(error, (AuthenticationError, PermissionDeniedError)) and not self.registered.is_set():
                    self.refused = error
                    self.registered.set()
                await self._retrying.failed(str(error))

    async def _stay(self) -> NoReturn:
        """Register, and offer what is free, until the line goes."""
        link = await _connect(self._tracker)
        try:
            if self._pin:
                self._host = questions.secure_host(self._custom_addr or link.local_host, self._pin)
            info = questions.update_info(self._key, self._host, self._port)
            questions.check_done(await _ask(link, info))
            await self._offer_what_is_free(link)
            _log.log(self._log_level, "registered as %r with the tracker at %s", self._key, self._tracker)
            self._retrying.succeeded()
            self.registered.set()
            next_poll = time.monotonic() + POLL_SECONDS
            while True:
                await self._wait(link, next_poll)
                if time.monotonic() >= next_poll:
                    next_poll = time.monotonic() + POLL_SECONDS
                    await self._look_what_is_gone(link)
                await self._offer_what_is_free(link)
        finally:
            link.close()

    async def _offer_what_is_free(self, link: TrackerLink) -> None:
        self._forget_void()
        while self._counted() < self._turns:
            offer = _Offer(f"{self._key}:{secrets.token_hex(16)}")
            self._offers[offer.key] = offer  # before it is put: the client may be quicker than the answer
            message = questions.put(self._key, self._port, offer.key, self._host)
            questions.check_done(await _ask(link, message))
        if self.offered and self._counted() > self._turns:
            # Somebody came with a late key. Leaving the tracker takes back what nobody has yet.
            raise ConnectionLostError("more was offered there than is free now")

    def _counted(self) -> int:
        """How many turns are promised or in use."""
        return self._taken + sum(not offer.late for offer in self._offers.values())

    async def _wait(self, link: TrackerLink, next_poll: float) -> None:
        """Until there may be something to do."""
        due = min((offer.until for offer in self._offers.values()), default=math.inf)
        if self.offered:
            due = min(due, next_poll)
        with anyio.move_on_after(max(0.0, due - time.monotonic())) as self._idle:
            try:
                await link.watch()
            finally:
                self._idle = None

    async def _look_what_is_gone(self, link: TrackerLink) -> None:
        if not self.offered:
            return
        pending = questions.read_pending(await _ask(link, questions.PENDING))
        until = time.monotonic() + ON_THE_WAY_SECONDS
        for offer in self._offers.values():
            if offer.until == math.inf and offer.key not in pending:
                offer.until = until

    def _forget_void(self) -> None:
        now = time.monotonic()
        for offer in [offer for offer in self._offers.values() if offer.until <= now]:
            _log.log(self._log_level, "nobody came with a match key that the tracker had given out")
            del self._offers[offer.key]

    def _let_go(self) -> None:
        """The tracker is gone, and with it what we had offered."""
        until = time.monotonic() + ON_THE_WAY_SECONDS
        for offer in self._offers.values():
            if offer.until == math.inf:
                offer.until, offer.late = until, True


async def _connect(tracker: Url) -> TrackerLink:
    with anyio.move_on_after(_CONNECT_SECONDS):
        return await TrackerLink.connect(tracker)
    raise ConnectionLostError(f"nobody has answered within {_CONNECT_SECONDS:g} s")


async def _ask(link: TrackerLink, message: list[Any]) -> Any:
    with anyio.move_on_after(_ANSWER_SECONDS):
        return await link.call(message)
    raise ConnectionLostError(f"it has not answered within {_ANSWER_SECONDS:g} s")
