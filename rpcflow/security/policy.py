# SPDX-License-Identifier: Apache-2.0
"""The policy file: who is known, and what each of them may do.

TOML, read again when it has changed. Whatever in it is not understood is an error, never passed over: a limit with a
slip in its name would be no limit. Nothing in a file that is wrong is shown in an error but the names of its tables
and keys, since what stands in the wrong place may be a token.
"""

import hmac
import logging
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import attrs

from rpcflow.devices import DEVICE_TYPES, device_name, device_type
from rpcflow.errors import AuthenticationError

from .grant import EVERYTHING, Grant, matches
from .tokens import hash_token, is_hash

ANONYMOUS: Final = "anonymous"
"""The name of a client that has shown nothing; no other has it."""
_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]{1,19}) ?(|B|KiB|MiB|GiB|TiB)", re.ASCII)
_MOST: Final = 2**63 - 1
"""What a limit of the system's can hold."""
_READS: Final = 5
"""How often a file is read that somebody is writing to."""
_UNKNOWN: Final = "the server does not know a client that shows this"
_log: Final = logging.getLogger("rpcflow.security")
_Stamp = tuple[int, ...]


@attrs.frozen
class Policy:
    """What those may do whom it is for. What is not said is not limited.

    Args:
        name: its own.
        keys: patterns of the keys that may be asked for (:func:`rpcflow.security.grant.matches`).
        offers: patterns of the keys under which servers may be offered, at trackers and proxies. None unless said:
            whoever offers a server is sent others' clients.
        limits: what one session may do, without anybody's name.
        max_sessions: how many one client may have at a time.
        session_seconds: how long one may last.
    """

    name: str
    keys: tuple[str, ...] = ("*",)
    offers: tuple[str, ...] = ()
    limits: Grant = EVERYTHING
    max_sessions: int | None = None
    session_seconds: float | None = None

    def grant(self, who: str) -> Grant:
        """What a session of that client may do."""
        return attrs.evolve(self.limits, who=who)

    def allows_key(self, key: str) -> bool:
        """Whether that key may be asked for."""
        return matches(self.keys, key)

    def allows_offer(self, key: str) -> bool:
        """Whether servers may be offered under that key."""
        return matches(self.offers, key)


@attrs.frozen
class Client:
    """Somebody we know.

    Args:
        name: for logs and errors.
        policy: what they may do.
    """

    name: str
    policy: Policy


@attrs.frozen
class _Entry:
    """A client, and how it shows who it is. ``every``: whether each kind that is given here has to be shown."""

    client: Client
    tokens: tuple[str, ...]
    certificates: tuple[str, ...]
    subjects: tuple[str, ...]
    every: bool


class Rules:
    """One version of a policy file.

    Args:
        entries: its clients.
        anonymous: who shows nothing; None where they are refused.
    """

    def __init__(self, entries: tuple[_Entry, ...], anonymous: Client | None) -> None:
        self._entries = entries
        self._anonymous = anonymous

    def identify(self, token: str, certificate: str | None, subject: str | None) -> Client:
        """Who that is.

        Args:
            token: the token shown; empty for none.
            certificate: the pin of a client's certificate that has been verified.
            subject: its common name, where one of our authorities has issued it.

        Raises:
            AuthenticationError: nobody we know. The text does not tell what of it was wrong.
        """
        hashed = hash_token(token).encode("ascii") if token else b""
        by_token = by_certificate = by_subject = None
        for entry in self._entries:
            for kept in entry.tokens:  # all of them, whether it has been found or not
                if hmac.compare_digest(hashed, kept.encode("ascii")):
                    by_token = entry
            if certificate is not None and certificate in entry.certificates:
                by_certificate = entry
            if subject and subject in entry.subjects:
                by_subject = entry
        found = [entry for entry in (by_token, by_certificate, by_subject) if entry is not None]
        if not found and not token:
            if self._anonymous is not None:
                return self._anonymous
            if certificate is None:
                raise AuthenticationError("the server takes no clients that show neither a token nor a certificate")
        if not found or (token and by_token is None) or any(entry is not found[0] for entry in found):
            raise AuthenticationError(_UNKNOWN)
        entry = found[0]
        shown = (
            (entry.tokens, by_token),
            (entry.certificates, by_certificate),
            (entry.subjects, by_subject),
        )
        if entry.every and any(asked and seen is None for asked, seen in shown):
            raise AuthenticationError(_UNKNOWN)
        return entry.client


class PolicyFile:
    """A policy file, kept up with. It is for one thread.

    Args:
        path: where it is.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no policy, or everybody may write to it; names the file, the table and the key.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._rules, stamp = _load(self.path)
        self._tried: _Stamp | None = stamp

    def current(self) -> Rules:
        """The rules in force: the file's, or while that is broken, those it had before."""
        try:
            stamp: _Stamp | None = _stamp_of(os.stat(self.path))
        except OSError:
            stamp = None
        if stamp == self._tried:
            return self._rules
        self._tried = stamp
        try:
            self._rules, self._tried = _load(self.path)
        except (OSError, ValueError) as error:
            _log.error("the policy stays as it was: %s", error)
        else:
            _log.info("the policy has been read again: %s", self.path)
        return self._rules


def _stamp_of(status: os.stat_result) -> _Stamp:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _load(path: str) -> tuple[Rules, _Stamp]:
    """A file's rules, and by what to know that it is still the same."""
    for _ in range(_READS):
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
            stamp = _stamp_of(os.fstat(file.fileno()))
        if stamp == _stamp_of(status):
            break
    else:
        raise ValueError(f"{path}: is being written to all the time")
    if os.name == "posix" and status.st_mode & stat.S_IWOTH:
        raise ValueError(f"{path}: everybody may write to this file (chmod o-w)")
    try:
        tables = tomllib.loads(data.decode())
    except ValueError as error:  # not TOML, or not even UTF-8
        raise ValueError(f"{path}: {error}") from None
    return _rules(path, tables), stamp


class _Table:
    """One table of the file, read key by key.

    Args:
        where: file and table, for errors.
        content: what is in it.
    """

    def __init__(self, where: str, content: object) -> None:
        self._where = where
        if not isinstance(content, dict):
            raise ValueError(f"{where}: is to be a table")
        self._content: dict[str, Any] = dict(content)

    def take(self, key: str, convert: Callable[[Any], Any], default: Any = None) -> Any:
        """The value of a key, converted; ``convert`` raises ValueError with what it is to be."""
        if key not in self._content:
            return default
        try:
            return convert(self._content.pop(key))
        except ValueError as error:
            self.wrong(key, str(error))

    def wrong(self, key: str, text: str) -> NoReturn:
        """That key is wrong."""
        raise ValueError(f"{self._where} {key}: {text}")

    def end(self) -> None:
        """Everything has been taken that is known."""
        for key in self._content:
            raise ValueError(f"{self._where}: there is no key {key!r}")


def _rules(path: str, tables: dict[str, Any]) -> Rules:
    for name in tables:
        if name not in ("policy", "client", ANONYMOUS):
            raise ValueError(f"{path}: there is no table [{name}]")
    policies = {
        name: _policy(name, _Table(f"{path}: [policy.{name}]", content))
        for name, content in _named(path, tables, "policy").items()
    }
    entries = tuple(
        _entry(name, _Table(f"{path}: [client.{name}]", content), policies)
        for name, content in _named(path, tables, "client").items()
    )
    _refuse_twins(path, entries)
    anonymous = None
    if ANONYMOUS in tables:
        table = _Table(f"{path}: [{ANONYMOUS}]", tables[ANONYMOUS])
        anonymous = Client(ANONYMOUS, _policy_of(table, policies))
        table.end()
    return Rules(entries, anonymous)


def _named(path: str, tables: dict[str, Any], kind: str) -> dict[str, Any]:
    """The tables ``[kind.NAME]`` by name."""
    found = tables.get(kind, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: [{kind}]: is to be a table")
    for name in found:
        if not name or not name.isprintable():
            raise ValueError(f"{path}: [{kind}.{name!r}]: a name is made of printable characters")
    return found


def _policy(name: str, table: _Table) -> Policy:
    limits = Grant(
        functions=table.take("functions", _patterns, ("*",)),
        constructors=table.take("constructors", _patterns, ("*",)),
        upload=table.take("upload", _yes_or_no, True),
        load=table.take("load", _yes_or_no, True),
        devices=table.take("devices", _devices, ("*",)),
        memory_nbytes=table.take("memory", _nbytes),
        cpu_seconds=table.take("cpu_seconds", _count),
        processes=table.take("processes", _count),
        file_nbytes=table.take("file", _nbytes),
        folder_nbytes=table.take("folder", _nbytes),
    )
    keys = table.take("keys", _patterns, ("*",))
    offers = table.take("offers", _patterns, ())
    policy = Policy(
        name, keys, offers, limits, table.take("max_sessions", _count), table.take("session_seconds", _seconds)
    )
    table.end()
    return policy


def _policy_of(table: _Table, policies: Mapping[str, Policy]) -> Policy:
    name = table.take("policy", _text)
    if name is None:
        table.wrong("policy", "is missing")
    if name not in policies:
        table.wrong("policy", f"there is no [policy.{name}]")
    return policies[name]


def _entry(name: str, table: _Table, policies: Mapping[str, Policy]) -> _Entry:
    if name == ANONYMOUS:
        table.wrong("as a whole", f"that is the name of those who show nothing, and their table is [{ANONYMOUS}]")
    entry = _Entry(
        Client(name, _policy_of(table, policies)),
        table.take("token", _hashes, ()),
        table.take("certificate", _hashes, ()),
        table.take("subject", _texts, ()),
        table.take("require", _any_or_all, False),
    )
    table.end()
    if not (entry.tokens or entry.certificates or entry.subjects):
        table.wrong("token", "is missing, and so are certificate and subject: nobody could be this client")
    return entry


def _refuse_twins(path: str, entries: tuple[_Entry, ...]) -> None:
    """What is shown has to tell one client from the other."""
    for key in ("tokens", "certificates", "subjects"):
        owners: dict[str, str] = {}
        for entry in entries:
            for value in getattr(entry, key):
                if value in owners:
                    name = entry.client.name
                    raise ValueError(f"{path}: [client.{name}] {key[:-1]}: [client.{owners[value]}] has the same")
                owners[value] = entry.client.name


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is to be a text that is not empty")
    return value


def _texts(value: object) -> tuple[str, ...]:
    """One, or a list of them."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) and one for one in values):
        raise ValueError("is to be a text or a list of texts, none of them empty")
    return tuple(values)


def _hashes(value: object) -> tuple[str, ...]:
    values = _texts(value)
    if not all(is_hash(one) for one in values):
        raise ValueError(
            "is to be 'sha256:' and 64 hex digits in small letters: the hash, never the token or key itself"
        )
    return values


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError("is to be a list of patterns")
    if value and value[0].startswith("!"):
        raise ValueError("the first pattern takes out what none has let in; put '*' before it")
    return tuple(value)


def _devices(value: object) -> tuple[str, ...]:
    """Patterns of ``NAME:ID``. A name that no device has would let in, behind a ``!``, what it is to keep out."""
    patterns = []
    for pattern in _patterns(value):
        sign, rest = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
        kind, colon, number = rest.partition(":")
        if rest != "*" and not (colon and number):
            raise ValueError("is to be a list of patterns like 'cuda:0', 'cuda:*' or '*'")
        if colon and not set(kind) & set("*?["):
            try:
                kind = device_name(device_type(kind))  # what a device is called by others as well
            except ValueError:
                raise ValueError(f"names a kind of device that is none of {', '.join(DEVICE_TYPES)}") from None
        patterns.append(sign + kind + colon + number)
    return tuple(patterns)


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is to be true or false")
    return value


def _any_or_all(value: object) -> bool:
    if value not in ("any", "all"):
        raise ValueError("is to be 'any' or 'all'")
    return value == "all"


def _count(value: object) -> int:
    if type(value) is not int or not 0 < value <= _MOST:
        raise ValueError("is to be a whole number, 1 or more")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError("is to be a number of seconds")
    assert isinstance(value, int | float)
    if not 0 < value <= _MOST or not math.isfinite(value):
        raise ValueError("is to be a number of seconds, more than none")
    return float(value)


def _nbytes(value: object) -> int:
    """A size: bytes, or with a unit."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    number = int(found[1]) * _UNITS[found[2]] if found else value
    if type(number) is not int or not 0 < number <= _MOST:
        raise ValueError("is to be a size of 1 byte or more, like 1000, '512MiB' or '4GiB'")
    return number
