# SPDX-License-Identifier: Apache-2.0
"""Which hop on the way to a server, tracker or proxy fails, and what to do about it. Occupies no device.

Hop after hop is gone until one fails: name, connection, what answers there; at a tracker also what is registered, and
whether the addresses it gives to clients can be reached from here. What can be found out about who answers, and how,
is in :mod:`rpcflow.client.probing`.
"""

import contextlib
import errno
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import anyio
import attrs

from rpcflow.errors import AuthenticationError, ConnectionLostError, ProtocolError, RPCError
from rpcflow.tracker import questions
from rpcflow.tracker.link import TrackerLink
from rpcflow.transports import AsyncChannel, Url, check_url, connecting, find_meeting_transport, find_transport
from rpcflow.transports.async_sockets import AsyncSocketChannel
from rpcflow.transports.tcp import is_loopback
from rpcflow.transports.tls import proxy_url

from .probing import Found, Kind, find_out
from .registered import Place, Registered, ago, plain

MOST_PLACES: Final = 8
"""Addresses given by a tracker that are tried."""
_MOST_ADDRESSES: Final = 4
"""Addresses of one name that are tried."""


class Mark(StrEnum):
    """How a hop is. ``UNSURE``: it cannot be told without occupying something."""

    OK = "ok"
    FAIL = "FAIL"
    UNSURE = "?"


@attrs.frozen
class Hop:
    """A step of the way.

    Args:
        mark: how it is.
        name: which step.
        text: what was found, in a line.
        advice: what to do about it, if there is something.
    """

    mark: Mark
    name: str
    text: str
    advice: str = ""


Report = Callable[[Hop], None]


@attrs.frozen
class Patience:
    """Seconds to wait: ``connect`` for a name, and for a connection to each of its addresses; ``quiet`` until who says
    nothing is spoken to again; ``answer`` for each answer."""

    connect: float = 5.0
    quiet: float = 2.0
    answer: float = 4.0


async def diagnose(url: Url, key: str | None, report: Report, patience: Patience | None = None) -> None:
    """Go the way to ``url`` and report each hop, in order, as soon as it is known. The last may have failed.

    Cancelled, it leaves nothing. It ends in bounded time, whatever is there.

    Args:
        url: of a server, tracker or proxy.
        key: the kind of device wanted; None if that is not the question.
        report: is given the hops.
        patience: how long to wait for what.

    Raises:
        ValueError: the URL's scheme is not known, or leads to no service.
    """
    find_meeting_transport(url.scheme)
    check_url(url)
    if "proxy" in dict(url.query):
        url = proxy_url(url)
        report(Hop(Mark.UNSURE, "proxy", f"it is the proxy, {url}, that is looked at, not the server behind it"))
    await _Way(url, report, patience or Patience()).go(key)


class _Way:
    def __init__(self, url: Url, report: Report, patience: Patience) -> None:
        self._url = url
        self._report = report
        self._patience = patience
        self._addresses: list[connecting.Address] = []
        self._only_here = url.scheme == "unix"
        """Whether what we speak to is on this machine."""

    async def go(self, key: str | None) -> None:
        found = await self.reach()
        if found is None:
            return
        self._report(_answer_hop(self._url, found, self._patience))
        if found.kind is Kind.TRACKER:
            await self._ask_tracker(key)
        elif key is not None and (hop := _key_hop(found, key)):
            self._report(hop)

    async def reach(self) -> Found | None:
        """Who answers; None if nobody does, which has then been reported."""
        if self._url.host and not await self._resolve():
            return None
        try:
            channel = await self._dial()
        except ConnectionLostError as error:
            self._report(_connection_hop(self._url, error))
            return None
        except (AuthenticationError, ProtocolError) as error:
            self._report(_trust_hop(self._url, error))
            return None
        except ImportError as error:
            self._report(Hop(Mark.FAIL, "connection", str(error), "install what is missing here"))
            return None
        except OSError as error:  # a file that the address names
            self._report(Hop(Mark.FAIL, "credentials", plain(str(error)), "check ca=, identity= and token_file="))
            return None
        self._report(Hop(Mark.OK, "connection", f"{self._url} accepts connections"))
        try:
            return await find_out(channel, self._dial, self._patience.quiet, self._patience.answer)
        except (AuthenticationError, ProtocolError) as error:  # in TLS 1.3 it may come only then
            self._report(_trust_hop(self._url, error))
            return None

    async def _resolve(self) -> bool:
        host = plain(self._url.host)
        with anyio.move_on_after(self._patience.connect):
            try:
                found = await connecting.resolve(self._url.host, self._url.port)
            except ConnectionLostError as error:
                cause = error.__cause__
                why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause or error)
                advice = f"check how {host!r} is spelled, and that this machine's DNS or /etc/hosts knows it"
                self._report(Hop(Mark.FAIL, "name", f"{host} is not known: {why}", advice))
                return False
            self._addresses = found[:_MOST_ADDRESSES]
            texts = list(dict.fromkeys(str(address[3][0]) for address in found))
            if texts != [self._url.host]:
                self._report(Hop(Mark.OK, "name", f"{host} is {', '.join(texts[:_MOST_ADDRESSES])}"))
            return True
        advice = "this machine's name server does not answer: try the address in place of the name"
        text = f"nobody has said within {self._patience.connect:g} s what address {host} has"
        self._report(Hop(Mark.FAIL, "name", text, advice))
        return False

    async def _dial(self) -> AsyncChannel:
        if self._url.scheme != "tcp":
            return await self._dial_by_transport()
        last = ConnectionLostError(f"{self._url} has no address")
        for address in self._addresses:
            try:
                with anyio.move_on_after(self._patience.connect):
                    sock = await connecting.connect([address], str(self._url))
                    self._look(sock)
                    return AsyncSocketChannel(sock, poll=False)
                last = self._no_answer()
            except ConnectionLostError as error:
                last = error
        raise last

    async def _dial_by_transport(self) -> AsyncChannel:
        with anyio.move_on_after(self._patience.connect):
            return await find_transport(self._url.scheme).connect(self._url, poll=False)
        raise self._no_answer()

    def _no_answer(self) -> ConnectionLostError:
        error = ConnectionLostError(f"nobody has answered within {self._patience.connect:g} s")
        error.__cause__ = TimeoutError(errno.ETIMEDOUT, "no answer")
        return error

    def _look(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone already, which the next to use it finds out
            self._only_here = sock.getsockname()[0] == sock.getpeername()[0]

    # ---- at a tracker

    async def _ask_tracker(self, key: str | None) -> None:
        seconds = self._patience.connect + self._patience.answer
        text = f"the tracker has not answered within {seconds:g} s"
        summary = None
        try:
            with anyio.move_on_after(seconds):
                with contextlib.closing(await TrackerLink.connect(self._url)) as link:
                    summary = questions.read_summary(await link.call(questions.SUMMARY))
        except RPCError as error:
            text = plain(str(error))
        if summary is None:
            advice = "the tracker is overloaded, or broken: look at what it logs, and start it anew"
            self._report(Hop(Mark.FAIL, "summary", text, advice))
            return
        registered = Registered(summary)
        self._report(_registration_hop(registered, key))
        await self._try_places(registered.places(key))

    async def _try_places(self, places: list[Place]) -> None:
        """Whether clients get to where the tracker sends them; all tried at the same time, reported in order."""
        unique = list({place.shown: place for place in places}.values())
        some = unique[:MOST_PLACES]
        hops: dict[str, Hop] = {}

        async def look(place: Place) -> None:
            hops[place.shown] = await self._place_hop(place)

        async with anyio.create_task_group() as tasks:
            for place in some:
                tasks.start_soon(look, place)
        for place in some:
            self._report(hops[place.shown])
        if len(unique) > len(some):
            text = f"{len(unique) - len(some)} more addresses have not been tried"
            self._report(Hop(Mark.UNSURE, "address", text))

    async def _place_hop(self, place: Place) -> Hop:
        """Whether somebody serves where clients are sent for a device."""
        what = f"{place.shown} ({plain(place.key)})" if place.key else place.shown
        if not place.host:
            return Hop(Mark.FAIL, "address", f"{what} is no address", "start that server anew, without --custom-addr")
        loopback = is_loopback(place.host)
        if loopback and not self._only_here:
            text = f"{what} is what the tracker tells clients, and to each of them that is its own machine"
            return Hop(Mark.FAIL, "address", text, _CUSTOM_ADDRESS)
        hops: list[Hop] = []
        url = place.url or Url("tcp", place.host, place.port)
        if "proxy" in dict(url.query):
            url = proxy_url(url)
        found = await _Way(url, hops.append, self._patience).reach()
        if found is None:
            advice = f"{hops[-1].advice}. Or this is not where its server is to be found: {_CUSTOM_ADDRESS}"
            return Hop(Mark.FAIL, "address", f"{what}: {hops[-1].text}", advice)
        if found.kind is Kind.SILENT:
            text = f"{what} accepts connections and is silent, as a stock server is while it serves somebody"
            return Hop(Mark.UNSURE, "address", text)
        if found.kind is not Kind.SERVER:
            text = f"{what} is not a server: {_answer_hop(self._url, found, self._patience).text}"
            return Hop(Mark.FAIL, "address", text, _CUSTOM_ADDRESS)
        note = ", from this machine only" if loopback else ""
        return Hop(Mark.OK, "address", f"{what} answers as a server does{note}", _OTHERS if loopback else "")


_CUSTOM_ADDRESS: Final = (
    "start that server with --custom-addr and the address by which clients reach it, or behind a proxy (--proxy)"
)
_OTHERS: Final = (
    "the tracker sends clients to a loopback address, which works on its own machine only: for others, let the server "
    "listen on an address of the network (--host, --insecure) and register by that, or with --custom-addr"
)
_SECURE: Final = frozenset({"tls", "wss"})
_NO_TLS: Final = (
    "if nobody ends TLS there, the scheme is tcp:// or ws://; a server, tracker or proxy does with --tls; wss:// leads "
    "to the web port of a proxy"
)
_TRUST: Final = (
    "take the address as the READY line there shows it, with its pin; or pair with it (rpcflow pair); or say with ca= "
    "and name= who has issued its certificate, and for whom. Where it is we who are not trusted, the identity is the "
    "one named by identity=, or else `default`"
)
_WORDS: Final = 500
_AT_ONCE: Final = "it may have no room for more clients, or be a port forwarder with nothing behind it"


def _connection_hop(url: Url, error: ConnectionLostError) -> Hop:
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    where = str(url) if url.path else plain(f"{url.host}:{url.port}")
    match number:
        case errno.ECONNREFUSED if url.scheme == "unix":
            text, advice = "nobody listens at that socket any more", "start the server"
        case errno.ECONNREFUSED:
            text = "that machine is there, and nobody listens at that port"
            advice = (
                "start the server, tracker or proxy, or look for the port in its READY line (by default 9091, a "
                "tracker's 9190); one that was started without --host listens to its own machine alone"
            )
        case errno.ENOENT:
            text, advice = "there is no such socket", "start the server, or check the path"
        case errno.EACCES | errno.EPERM:
            text, advice = "this user may not connect there", "check the permissions, or the firewall of this machine"
        case errno.ETIMEDOUT:
            text = "nobody answers"
            advice = (
                "the machine is off, a firewall drops what is sent to it (then try a proxy, also with ws://), or it is "
                "a stock server that serves somebody while others wait already"
            )
        case errno.ENETUNREACH | errno.EHOSTUNREACH | errno.EHOSTDOWN:
            text, advice = f"there is no way to it: {error}", "check this machine's network, and the address"
        case _ if url.scheme in _SECURE:
            text = plain(str(error).removeprefix(str(url)).strip())
            advice = _NO_TLS
        case _:
            text = plain(str(error).removeprefix(str(url)).strip())
            advice = "check the address; for ws:// it must be the web port of a proxy"
    return Hop(Mark.FAIL, "connection", f"{where}: {text}", advice)


def _trust_hop(url: Url, error: RPCError) -> Hop:
    """One of us does not trust the other; or there is nothing that could be trusted."""
    text = str(error).removeprefix(str(url)).removeprefix(":").strip()
    advice = _NO_TLS if isinstance(error, ProtocolError) else _TRUST
    return Hop(Mark.FAIL, "trust", plain(f"{url.host}:{url.port} {text}", _WORDS), advice)


def _answer_hop(url: Url, found: Found, patience: Patience) -> Hop:
    match found.kind:
        case Kind.SERVER:
            text = "a server that refuses a made-up key at once, as it should (or a proxy that works with a tracker)"
            return Hop(Mark.OK, "answer", text)
        case Kind.TRACKER:
            return Hop(Mark.OK, "answer", "a tracker")
        case Kind.PROXY:
            return Hop(Mark.OK, "answer", "a proxy, where clients and servers wait for each other")
        case Kind.ANY_KEY if url.scheme in _SECURE:
            text = "a server that takes whatever key one comes with, and says who may come in when a session begins"
            return Hop(Mark.OK, "answer", text)
        case Kind.ANY_KEY:
            return Hop(Mark.OK, "answer", "a server that takes whatever key one comes with")
        case Kind.SILENT:
            text = f"it accepts connections and says nothing for {patience.quiet + patience.answer:g} s"
            advice = (
                "if it is a stock server, it serves somebody, and says nothing to others until that ends: try again "
                "later (an rpcflow server answers also while it is busy). If not, it hangs: start it anew"
            )
            return Hop(Mark.FAIL, "answer", text, advice)
        case Kind.CLOSES:
            text = "it closes every connection without a word"
            return Hop(Mark.FAIL, "answer", text, f"no server, tracker or proxy does that: {_AT_ONCE}")
    advice = "check the port: the READY line of a server, tracker or proxy names it"
    if found.words == "an HTTP server" and url.scheme == "tcp":
        advice += f"; if it is the web port of a proxy, say ws://{_netloc(url)}/ws"
    return Hop(Mark.FAIL, "answer", f"neither a server nor a tracker nor a proxy, but {found.words}", advice)


def _key_hop(found: Found, key: str) -> Hop | None:
    match found.kind:
        case Kind.SERVER:
            text = f"whether it answers to {key!r} cannot be told without beginning a session"
            advice = (
                "connect with the key: a server with another one refuses at once (KeyMismatchError). A server that is "
                "registered with a tracker takes only clients that the tracker sends: ask there"
            )
        case Kind.PROXY:
            text = f"whether a server waits there under {key!r} cannot be told without taking its place or its time"
            advice = "connect with the key and a wait_timeout: if none comes by then, none is there or all are busy"
        case _:
            return None
    return Hop(Mark.UNSURE, "key", text, advice)


def _registration_hop(registered: Registered, key: str | None) -> Hop:
    keys = registered.keys()
    kinds = ", ".join(f"{plain(kind)!r} ({count})" for kind, count in list(keys.items())[:10])
    if len(keys) > 10:
        kinds += " ..."
    if key is None:
        return Hop(Mark.OK, "registration", f"devices, by key: {kinds}" if keys else "no device is registered")
    free, pending = registered.queue(key)
    count = keys.get(key, 0)
    if count or free:
        text = f"{key!r}: {max(count, free)} registered, {free} free, {pending} waiting requests"
        return Hop(Mark.OK, "registration", text)
    text = f"no device is registered as {key!r}" + (f"; there are {kinds}" if keys else ", and none as anything else")
    gone = registered.gone(key)
    if gone is not None and gone.since is not None:
        text = f"{text}; the last one, at {gone.shown}, went {ago(gone.since)}"
    advice = f"start a server with --key {key} and --tracker; its log says whether it gets through to the tracker"
    return Hop(Mark.FAIL, "registration", text, advice)


def _netloc(url: Url) -> str:
    return f"[{url.host}]:{url.port}" if ":" in url.host else f"{url.host}:{url.port}"
