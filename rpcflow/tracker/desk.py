# SPDX-License-Identifier: Apache-2.0
"""The tracker's answers: a message of a peer in, frames for it and for others out. Pure, as the scheduler.

The messages are those of section 10 of the wire notes. What a peer must not say is a ProtocolError; its line is then
to be closed, and only its.
"""

import hmac
import json
from collections.abc import Callable
from typing import Any, Final, Protocol

import attrs

from rpcflow.errors import ProtocolError
from rpcflow.protocol.limits import DEFAULT_LIMITS, Limits
from rpcflow.protocol.tracker import TrackerCode, encode_frame, frame

from .devices import Device, DeviceList
from .scheduler import Match, Request, Resource, Scheduler

_DONE: Final = encode_frame(0)
_REFUSED: Final = encode_frame(-1)
_HOST_CHARACTERS: Final = 255
_USER_CHARACTERS: Final = 100
_KEY_CHARACTERS: Final = 2048
_MATCH_KEY_CHARACTERS: Final = 4096
_INFO_CHARACTERS: Final = 256 * 1024
"""What one connection may say of itself. A proxy names all its keys there."""
_INFO_CHARACTERS_IN_ALL: Final = 64 * 1024 * 1024
MAX_REQUESTS: Final = 2048
"""Requests of one connection that may wait."""
MAX_DEVICES: Final = 16_384
"""Devices one connection may offer: a proxy, say, with that many servers behind it."""
MAX_DEVICES_IN_ALL: Final = 131_072
MAX_REQUESTS_IN_ALL: Final = 131_072


class Peer(Protocol):
    """A connection, as the desk sees it. It is compared by identity."""

    host: str
    """Its address as we see it."""
    port: int

    def send(self, data: bytes) -> bool:
        """Send a frame, soon if not now; False if the connection has ended."""

    def alive(self) -> bool:
        """Whether its other end is still there, as far as can be known without waiting."""

    def end(self) -> None:
        """Close it soon. The desk has forgotten it already."""

    def __hash__(self) -> int: ...


@attrs.define
class _Info:
    text: str
    listed: bool


class Desk:
    """Everything the tracker knows.

    Args:
        stop_key: who knows it may stop the tracker.
        monotonic: a clock for how long somebody waits.
        now: a clock for when something happened, in seconds of the Unix epoch.
        limits: of what is sent and received.
    """

    def __init__(
        self,
        stop_key: str,
        monotonic: Callable[[], float],
        now: Callable[[], float],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._stop_key = stop_key
        self._monotonic = monotonic
        self._now = now
        self._limits = limits
        self._scheduler = Scheduler()
        self._devices = DeviceList()
        self._infos: dict[Peer, _Info] = {}
        self._info_characters = 0
        self._summary: bytes | None = None
        self._answers = {
            TrackerCode.PING: self._ping,
            TrackerCode.STOP: self._stop,
            TrackerCode.PUT: self._put,
            TrackerCode.REQUEST: self._request,
            TrackerCode.UPDATE_INFO: self._update_info,
            TrackerCode.SUMMARY: self._summarize,
            TrackerCode.GET_PENDING_MATCHKEYS: self._pending,
        }
        self.stopped = False

    @property
    def devices(self) -> int:
        """How many devices are free or busy."""
        return self._devices.online

    def take(self, peer: Peer, message: Any) -> None:
        """Answer a message; REQUEST is answered when there is something to answer.

        Raises:
            ProtocolError: it cannot be answered; the peer is to be closed.
        """
        code = message[0] if isinstance(message, list) and message else None
        answer = self._answers.get(code) if isinstance(code, int) else None  # type: ignore[call-overload]
        if answer is None:
            raise ProtocolError("not a message to a tracker")
        answer(peer, message)

    def gone(self, peer: Peer) -> None:
        """A connection has ended: what it offered and nobody took is withdrawn, what it waited for forgotten."""
        self._scheduler.drop(peer)
        self._leave(peer)

    # ---- one for each message

    def _ping(self, peer: Peer, message: list[Any]) -> None:
        peer.send(_DONE)

    def _stop(self, peer: Peer, message: list[Any]) -> None:
        key = message[1] if len(message) > 1 else None
        right = isinstance(key, str) and hmac.compare_digest(_bytes(key), _bytes(self._stop_key))
        peer.send(_DONE if right else _REFUSED)
        self.stopped |= right

    def _put(self, peer: Peer, message: list[Any]) -> None:
        if not 3 <= len(message) <= 4 or not isinstance(message[2], list) or len(message[2]) != 2:
            raise ProtocolError("PUT is key, [port, match key] and perhaps an address")
        key = _text(message[1], _KEY_CHARACTERS)
        port = _port(message[2][0])
        match_key = _text(message[2][1], _MATCH_KEY_CHARACTERS)
        host = message[3] if len(message) > 3 else None
        if host is None:
            host = peer.host
        elif not isinstance(host, str) or not 0 < len(host) <= _HOST_CHARACTERS:
            raise ProtocolError("the address of a PUT is a text or null")
        if self._scheduler.offers(peer, match_key):
            peer.send(_DONE)  # it is offered once, however often that is said
            return
        if self._devices.count(peer) >= MAX_DEVICES or self._devices.online >= MAX_DEVICES_IN_ALL:
            raise ProtocolError("too many devices")
        self._summary = None
        device = self._devices.offered(peer, key, (host, port), self._now())
        match = self._scheduler.put(Resource(peer, key, match_key, device))
        peer.send(_DONE)
        self._hand_out(match)

    def _request(self, peer: Peer, message: list[Any]) -> None:
        if len(message) < 4:
            raise ProtocolError("REQUEST is key, user and priority")
        key = _text(message[1], _KEY_CHARACTERS)
        user = message[2][:_USER_CHARACTERS] if isinstance(message[2], str) else ""
        if self._scheduler.outstanding(peer) >= MAX_REQUESTS or self._scheduler.waiting >= MAX_REQUESTS_IN_ALL:
            raise ProtocolError("too many requests at a time")
        self._summary = None
        request = Request(peer, key, message[3], user)
        try:
            match = self._scheduler.request(request, self._monotonic())
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        self._hand_out(match)

    def _update_info(self, peer: Peer, message: list[Any]) -> None:
        said = message[1] if len(message) > 1 else None
        address = said.get("addr") if isinstance(said, dict) else None
        if not isinstance(said, dict) or not isinstance(address, list) or len(address) != 2:
            raise ProtocolError("UPDATE_INFO is an object with addr, a host and a port")
        if address[0] is None:
            address[0] = peer.host
        elif not isinstance(address[0], str):
            raise ProtocolError("the host of UPDATE_INFO is a text or null")
        _port(address[1])
        if not isinstance(said.get("key", ""), str):
            raise ProtocolError("the key of UPDATE_INFO is a text")
        before = self._infos.get(peer)
        merged = {**json.loads(before.text), **said} if before else said
        try:
            text = json.dumps(merged)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"UPDATE_INFO cannot be kept: {error}") from None
        in_all = self._info_characters + len(text) - (len(before.text) if before else 0)
        if len(text) > _INFO_CHARACTERS or in_all > _INFO_CHARACTERS_IN_ALL:
            raise ProtocolError(f"UPDATE_INFO is too long: {len(text)} bytes of at most {_INFO_CHARACTERS}")
        self._summary = None
        self._info_characters = in_all
        # Stock lists every key that begins with "server"; its clients cut it at the colon, and fail where none is.
        self._infos[peer] = _Info(text, merged.get("key", "").startswith("server:"))
        peer.send(_DONE)

    def _summarize(self, peer: Peer, message: list[Any]) -> None:
        if self._summary is None:
            self._summary = self._encode_summary()
        peer.send(self._summary)

    def _pending(self, peer: Peer, message: list[Any]) -> None:
        peer.send(frame(json.dumps(self._scheduler.unused(peer)).encode(), self._limits.tracker_answer_nbytes))

    # ---- inside

    def _hand_out(self, match: Match | None) -> None:
        """Bring a match about, or the one that follows where one side of it has gone unnoticed."""
        while match is not None:
            self._summary = None
            request, resource = match.request, match.resource
            owner: Any = resource.owner
            requester: Any = request.requester
            device: Device = resource.value
            if not owner.alive():
                match = self._scheduler.resume(match)
                self._leave(owner)
                owner.end()
                continue
            answer = encode_frame([0, [*device.address, resource.match_key]])
            if requester.alive() and requester.send(answer):
                whom = f"{requester.host}:{requester.port}"
                self._devices.taken(device, f"{request.value} ({whom})" if request.value else whom, self._now())
                return
            match = self._scheduler.decline(match)
            self._leave(requester)
            requester.end()

    def _leave(self, peer: Peer) -> None:
        self._devices.gone(peer, self._now())
        if info := self._infos.pop(peer, None):
            self._info_characters -= len(info.text)
        self._summary = None

    def _encode_summary(self) -> bytes:
        queues = ", ".join(
            f'{json.dumps(key)}: {{"free": {free}, "pending": {pending}}}'
            for key, free, pending in self._scheduler.status()
        )
        servers = ", ".join(info.text for info in self._infos.values() if info.listed)
        devices = ", ".join(self._devices.texts())
        stock = f'[0, {{"queue_info": {{{queues}}}, "server_info": [{servers}]'
        return frame(f'{stock}, "devices": [{devices}]}}]'.encode(), self._limits.tracker_answer_nbytes)


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ProtocolError(f"a key is a text of at most {most} characters")
    return value


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 65536:
        raise ProtocolError("a port is a number from 0 to 65535")
    return value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
