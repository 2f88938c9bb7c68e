# SPDX-License-Identifier: Apache-2.0
"""What is asked of a tracker, and what its answers mean; pure. Section 10 of the wire notes is the specification."""

import re
from collections import Counter
from typing import Any, Final

import attrs

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.protocol.handshake import check_key
from rpcflow.protocol.tracker import FrameReader, TrackerCode, check_refusal
from rpcflow.transports import Url

CONNECT_SECONDS: Final = 30.0
"""A tracker that takes longer to accept and to answer our magic is none."""
RECEIVE_NBYTES: Final = 1 << 16
_SECURE_HOST: Final = re.compile(
    r"tls://(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>\w[\w.-]*))\?"
    r"(?:proxy=(?P<proxy>plain|sha256:[0-9a-f]{64})&)?pin=(?P<pin>sha256:[0-9a-f]{64})",
    re.ASCII,
)
SUMMARY: Final = [TrackerCode.SUMMARY.value]
PENDING: Final = [TrackerCode.GET_PENDING_MATCHKEYS.value]


@attrs.frozen
class Grant:
    """A server that a tracker has given us. ``key``: the match key; whoever has it may use the server once."""

    url: Url
    key: str = attrs.field(repr=False)


def new_reader() -> FrameReader:
    """What takes a tracker's magic and answers out of the stream."""
    return FrameReader(answers=True)


def update_info(key: str, host: str | None, port: int) -> list[Any]:
    """Says who offers what follows; must come before the first :func:`put`."""
    return [TrackerCode.UPDATE_INFO.value, {"key": f"server:{key}", "addr": [host, port]}]


def put(key: str, port: int, match_key: str, custom_addr: str | None) -> list[Any]:
    """Offers one session."""
    return [TrackerCode.PUT.value, key, [port, match_key], custom_addr]


def secure_host(host: str, pin: str, proxy: str = "") -> str:
    """What is told in the place of a host where clients are to come by TLS: an address without a port, with the pin of
    the server's key in it.

    Args:
        proxy: how the proxy is spoken to that stands there in the server's place; empty for none.
    """
    host = f"[{host}]" if ":" in host else host
    return f"tls://{host}?{f'proxy={proxy}&' if proxy else ''}pin={pin}"


def place_url(host: str, port: int) -> Url:
    """Where that is: a host is a host whatever it looks like, but for what :func:`secure_host` makes of one."""
    secure = _SECURE_HOST.fullmatch(host)
    if secure is None:
        return Url("tcp", host.removeprefix("[").removesuffix("]"), port)
    query = [(name, secure[name]) for name in ("proxy", "pin") if secure[name]]
    return Url("tls", secure["six"] or secure["host"], port, query=tuple(query))


def request(key: str, priority: int) -> list[Any]:
    """Asks for a server; the answer comes when there is one."""
    return [TrackerCode.REQUEST.value, key, "", priority]


def check_done(answer: Any) -> None:
    """The answer to :func:`update_info` and :func:`put`.

    Raises:
        ProtocolError: it is not the one that trackers give.
    """
    check_refusal(answer)
    if isinstance(answer, bool) or answer != 0:
        raise ProtocolError(f"the tracker answered {_short(answer)} to what we offered it")


def read_pending(answer: Any) -> frozenset[str]:
    """The match keys of ours that nobody has taken yet.

    Raises:
        ProtocolError: they are not a list of texts.
    """
    check_refusal(answer)
    if not isinstance(answer, list) or not all(isinstance(key, str) for key in answer):
        raise ProtocolError(f"the tracker answered {_short(answer)} when asked for match keys")
    return frozenset(answer)


def read_grant(answer: Any) -> Grant:
    """The server in the answer to :func:`request`. Whatever the tracker calls its host is only ever a host, or what
    :func:`secure_host` makes of one: never another URL, with which a tracker could make us start a program.

    Raises:
        ConnectionLostError: there is one that nobody can reach: its owner told the tracker nonsense.
        ProtocolError: there is none in it.
    """
    check_refusal(answer)
    match answer:
        case [0, [str(host), int(port), str(key)]] if host and 0 < port < 65536 and not isinstance(port, bool):
            try:
                check_key(key)
            except ValueError as error:
                raise ConnectionLostError(f"the tracker named a server with an impossible key: {error}") from None
            return Grant(place_url(host, port), key)
        case [0, [_, _, _]]:
            raise ConnectionLostError(f"the tracker named a server that cannot be: {_short(answer)}")
    raise ProtocolError(f"the tracker answered {_short(answer)} to a request")


def read_summary(answer: Any) -> dict[str, Any]:
    """The answer to :data:`SUMMARY`, as the tracker says it.

    Raises:
        ProtocolError: it is not one.
    """
    check_refusal(answer)
    match answer:
        case [0, {"queue_info": dict(), "server_info": list()}]:
            summary: dict[str, Any] = answer[1]
            return summary
    raise ProtocolError(f"the tracker answered {_short(answer)} when asked for a summary")


def text_summary(summary: dict[str, Any]) -> str:
    """A summary in two tables, laid out as the stock client's.

    Where that one counts wrongly we do not follow: it cuts keys at colons, and passes over what proxies offer.
    """
    servers = sorted((_server(info) for info in summary["server_info"]), key=lambda server: server[1])
    total = Counter(key for _, name in servers for key in _keys(name))
    queues = {_plain(key): _queue(info) for key, info in sorted(summary["queue_info"].items())}
    width = max(map(len, queues), default=0)
    rule = "-" * 30
    head = f"{'key':<{width}}   total  free  pending"
    line = "-" * (len(head) + 1)
    lines = ["Server List", rule, f"{'server-address':<21}    key", rule]
    lines += [f"{address:<21}    {name}" for address, name in servers]
    lines += [rule, "", "Queue Status", line, head, line]
    lines += [
        f"{key:<{width}}   {total[key]:<5}  {free:<4}  {pending:<7}"
        for key, (free, pending) in queues.items()
        if total[key] or free or pending
    ]
    return "\n".join([*lines, line, ""])


def _server(info: Any) -> tuple[str, str]:
    """Address and name; anybody may have told the tracker anything there."""
    if not isinstance(info, dict):
        return "?", "?"
    address = info.get("addr")
    text = ":".join(map(str, address)) if isinstance(address, list) else str(address)
    return _plain(text), _plain(str(info.get("key")))


def _plain(text: str) -> str:
    """Without what would move the cursor about."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _keys(name: str) -> list[str]:
    key = name.partition(":")[2]
    if key.startswith("proxy[") and key.endswith("]"):
        return key[len("proxy[") : -1].split(",")
    return [key]


def _queue(info: Any) -> tuple[int, int]:
    counts = [info.get(name) if isinstance(info, dict) else 0 for name in ("free", "pending")]
    free, pending = (count if isinstance(count, int) else 0 for count in counts)
    return free, pending


def _short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 100 else f"{text[:100]}..."
