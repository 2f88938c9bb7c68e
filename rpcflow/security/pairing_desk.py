# SPDX-License-Identifier: Apache-2.0
"""Where new clients pair with a server: one code, for one client, for ten minutes, for ten guesses.

Guesses are looked at one at a time, and after a wrong one nobody's next is looked at before a delay that doubles is
over. Whoever has not sent its confirmation holds up nobody, and has learnt nothing, so it does not count.
"""

import logging
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import anyio

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.transports.base import AsyncChannel
from rpcflow.transports.logs import LimitedLog

from .pairing import ServerConversation
from .pairing_frames import Frame, Kind, Reason, refusal
from .pairing_line import STEP_SECONDS, FrameLine

CODE_SECONDS: Final = 600.0
MOST_WRONG: Final = 10
MOST_DELAY: Final = 60.0
CONVERSATION_SECONDS: Final = 120.0
"""From the first byte to the last, the wait for one's turn among them."""
MOST_CONVERSATIONS: Final = 8
MOST_WAITING: Final = 3
"""Guesses that wait for their turn, the one whose turn it is among them."""
PACE_SECONDS: Final = 0.05
"""What each half of the exchange takes at least: it is computed in Python, in a time that depends on the code."""
_CODE_DIGITS: Final = 8
_NAME_CHARACTERS: Final = 40
_SOME_NAME: Final = "client"


class KnownClientsLike(Protocol):
    """Where the certificates of paired clients are kept."""

    def add(self, name: str, certificate: bytes) -> str:
        """Keep one, under this name or one like it; under which."""


class PairingDesk:
    """Takes one new client, by a one-time code.

    Args:
        server_pin: of the certificate that lines for pairing begin with.
        known_clients: where the new client's certificate goes.
        clock: seconds, going on also when no event loop runs.
        sleep: waits so many seconds.

    Attributes:
        code: eight digits, for the eyes of whoever may let a client in.
        finished: set when pairing is over, whatever the reason; after ten minutes, by :meth:`wait_over`.
        paired: the name of the client that has paired; None before that.
    """

    def __init__(
        self,
        server_pin: str,
        known_clients: KnownClientsLike,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = anyio.sleep,
    ) -> None:
        self.code = f"{secrets.randbelow(10**_CODE_DIGITS):0{_CODE_DIGITS}d}"
        self.finished = anyio.Event()
        self.paired: str | None = None
        self._server_pin = server_pin
        self._known_clients = known_clients
        self._clock = clock
        self._sleep = sleep
        self._ends = clock() + CODE_SECONDS
        self._not_before = clock()
        self._wrong = 0
        self._present = 0
        self._waiting = 0
        self._opening = anyio.Lock()
        self._turn = anyio.Lock()
        self._log = LimitedLog(logging.getLogger("rpcflow.security"))

    @property
    def on(self) -> bool:
        """Whether a client can pair."""
        return not self.finished.is_set() and self._clock() < self._ends

    async def wait_over(self) -> None:
        """Return when no client can pair any more, and set ``finished``."""
        while self.on:
            with anyio.move_on_after(self._ends - self._clock()):
                await self.finished.wait()
        self.finished.set()

    async def serve(self, channel: AsyncChannel, peer_name: str) -> None:
        """Converse with one who wants to pair, and close its line. Raises nothing, whatever it does.

        Args:
            peer_name: what the log calls it.
        """
        line = FrameLine(channel)
        try:
            if self._present >= MOST_CONVERSATIONS:
                await self._say_last(line, self._refuse(Reason.BUSY, peer_name, "too many want to at once"))
                return
            self._present += 1
            try:
                last = await self._attend(line, peer_name)
                if last is not None:
                    await self._say_last(line, last)
            finally:
                self._present -= 1
        finally:
            channel.close()

    async def _attend(self, line: FrameLine, peer_name: str) -> Frame | None:
        """Converse, in good time; what is to be said last, where there is somebody to say it to."""
        try:
            with anyio.move_on_after(CONVERSATION_SECONDS):
                return await self._converse(line, peer_name)
            return self._refuse(Reason.BUSY, peer_name, "its turn did not come in time")
        except ProtocolError as error:
            return self._refuse(Reason.MALFORMED, peer_name, str(error))
        except TimeoutError:
            self._log.warning("not paired", "%s did not pair: it said nothing for %s s", peer_name, STEP_SECONDS)
        except ConnectionLostError:
            self._log.warning("not paired", "%s did not pair: it went away", peer_name)
        return None

    async def _converse(self, line: FrameLine, peer_name: str) -> Frame:
        hello = await line.receive(STEP_SECONDS)
        if not self.on:
            return self._refuse(Reason.NO_PAIRING, peer_name, "pairing is off")
        conversation = ServerConversation(self.code, self._server_pin)
        async with self._opening:
            reply = await self._paced(lambda: conversation.reply(hello))
        await line.send(reply)
        confirmation = await line.receive(STEP_SECONDS)
        if confirmation.kind is not Kind.CLIENT_CONFIRM:
            raise ProtocolError(f"a {confirmation.kind.name} where a confirmation is due")
        if self._waiting >= MOST_WAITING:
            return self._refuse(Reason.BUSY, peer_name, "too many others wait for their turn")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._judge(line, conversation, confirmation, peer_name)
        finally:
            self._waiting -= 1

    async def _judge(
        self, line: FrameLine, conversation: ServerConversation, confirmation: Frame, peer_name: str
    ) -> Frame:
        """It is this one's turn."""
        while self.on and (left := self._not_before - self._clock()) > 0:
            await self._sleep(left)
        if not self.on:
            return self._refuse(Reason.NO_PAIRING, peer_name, "pairing is off")
        answer = await self._paced(lambda: self._look(conversation, confirmation))
        if answer is None:
            rest = f"the next is looked at in {self._delay():.0f} s" if self.on else "pairing is off now"
            return self._refuse(Reason.WRONG_CODE, peer_name, f"its code was wrong, number {self._wrong}; {rest}")
        await line.send(answer)
        wish, certificate = conversation.introduced(await line.receive(STEP_SECONDS))
        try:
            check_certificate(certificate)
            name = self._known_clients.add(clean_name(wish), certificate)
        except (OSError, ValueError) as error:
            return self._refuse(Reason.NOT_STORED, peer_name, f"its certificate is not kept: {error}")
        self.paired = name
        self.finished.set()
        self._log.info("paired", "%s has paired, and is known as %s; pairing is off now", peer_name, name)
        return conversation.stored(name)

    def _look(self, conversation: ServerConversation, confirmation: Frame) -> Frame | None:
        """Look at a guess; a wrong one is counted before anything else can happen."""
        answer = conversation.confirm(confirmation)
        if answer is None:
            self._wrong += 1
            self._not_before = self._clock() + self._delay()
            if self._wrong >= MOST_WRONG:
                self.finished.set()
        return answer

    def _delay(self) -> float:
        return min(MOST_DELAY, 2.0 ** (self._wrong - 1))

    async def _paced(self, compute: Callable[[], Any]) -> Any:
        ends = self._clock() + PACE_SECONDS
        result = compute()
        await self._sleep(max(0.0, ends - self._clock()))
        return result

    def _refuse(self, reason: Reason, peer_name: str, why: str) -> Frame:
        self._log.warning("not paired", "%s did not pair: %s", peer_name, why)
        return refusal(reason)

    async def _say_last(self, line: FrameLine, frame: Frame) -> None:
        try:
            with anyio.move_on_after(STEP_SECONDS):
                await line.send(frame)
                await line.goodbye()
        except ConnectionLostError:
            pass  # it does not want to know


def clean_name(wish: str) -> str:
    """A name for a file and for a log, as near to the wish as can be."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in wish)
    return kept[:_NAME_CHARACTERS].strip(".-") or _SOME_NAME


def check_certificate(der: bytes) -> None:
    """Whether a certificate may be trusted as that of one client, and of nobody whom it might vouch for.

    Raises:
        ValueError: it could be used to issue others, or is none that TLS can be given.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=der)
        certificate = x509.load_der_x509_certificate(der)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise ValueError("it does not say that it issues no others") from None
    except (
        ssl.SSLError,
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ValueError(f"it is not as it should be: {error}") from None
    if constraints.ca:
        raise ValueError("it is an authority's")
    if certificate.issuer != certificate.subject:  # TLS would go on to ask who has issued it
        raise ValueError("it was issued by an authority, which --client-ca is for: pair with a self-signed one")
