# SPDX-License-Identifier: Apache-2.0
"""Whom we have met: pins of servers by where they are, certificates of clients that have paired."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Final

import attrs

from .folder import config_folder, locked, write_file
from .pins import check_pin, pin_of, same_pin

_HEAD: Final = "# HOST:PORT and the pin of the server there, a line each; written by `rpcflow pair`."
_PLACE: Final = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+):([0-9]{1,5})")
_HOST: Final = re.compile(r"[^\s#\[\]/?@]+")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.@-]+")


class KnownHosts:
    """Pins of servers.

    Args:
        path: the file; by default ``known_hosts`` in the configuration folder.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = config_folder() / "known_hosts" if path is None else Path(path)

    def lookup(self, host: str, port: int) -> str | None:
        """The pin of the server there; None where we do not know it.

        Raises:
            ValueError: the file makes no sense, or that is no host and port.
            OSError: it cannot be read.
        """
        return self.read().get(_place(host, port))

    def read(self) -> dict[str, str]:
        """All of them, by ``host:port``. Errors as :meth:`lookup`."""
        return self._parse(self._lines())

    def add(self, host: str, port: int, pin: str) -> None:
        """From now on this is the server there, in the place of another we knew. Errors as :meth:`lookup`."""
        place, pin = _place(host, port), check_pin(pin)
        with locked(self.path):
            lines = self._lines() or [_HEAD.encode()]
            known = self._parse(lines)
            if known.get(place) != pin:
                self._write([*self._without(lines, place), f"{place} {pin}".encode()])

    def remove(self, host: str, port: int) -> bool:
        """Forget the server there; whether we knew one. Errors as :meth:`lookup`."""
        place = _place(host, port)
        if place not in self.read():
            return False
        with locked(self.path):
            lines = self._lines()
            found = place in self._parse(lines)
            if found:
                self._write(self._without(lines, place))
            return found

    def _lines(self) -> list[bytes]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return data.removesuffix(b"\n").split(b"\n") if data else []

    def _write(self, lines: list[bytes]) -> None:
        write_file(self.path, b"".join(line + b"\n" for line in lines))

    def _parse(self, lines: list[bytes]) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = _entry(line)
                if entry is None:
                    continue
                place, pin = entry
                if found.setdefault(place, pin) != pin:
                    raise ValueError(f"another line has another pin for {place}")
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from None
        return found

    @staticmethod
    def _without(lines: list[bytes], place: str) -> list[bytes]:
        """All lines but those of one place: people's own remarks stay."""
        return [line for line in lines if (entry := _entry(line)) is None or entry[0] != place]


def _entry(line: bytes) -> tuple[str, str] | None:
    """What a line says; None for nothing.

    Raises:
        ValueError: it makes no sense.
    """
    words = line.split()
    if not words or words[0].startswith(b"#"):
        return None
    try:
        place, pin = (word.decode() for word in words)
    except ValueError:  # not two, or not text
        raise ValueError("it is not HOST:PORT and a pin") from None
    match = _PLACE.fullmatch(place)
    if match is None:
        raise ValueError(f"{place!r} is not HOST:PORT")
    return _place(match[1], int(match[2])), check_pin(pin)


def _place(host: str, port: int) -> str:
    host = host.removeprefix("[").removesuffix("]").lower()
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if ":" in host or not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a host") from None
    if not 0 < port < 1 << 16:
        raise ValueError(f"{port} is not a port")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@attrs.frozen
class KnownClient:
    """A client that has paired.

    Args:
        name: what it is known as.
        pin: of its key.
        certificate: in PEM.
    """

    name: str
    pin: str
    certificate: bytes = attrs.field(repr=False)


class KnownClients:
    """Certificates of clients that have paired, a file each.

    Args:
        folder: where they are; by default ``known_clients`` in the configuration folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = config_folder() / "known_clients" if folder is None else Path(folder)

    def add(self, name: str, certificate: bytes) -> str:
        """Keep a certificate (PEM or DER).

        Returns:
            The name it is kept under: ``name`` as far as it can be one, with a number if another has that.

        Raises:
            ValueError: that is no certificate, or one whose key could vouch for others.
            OSError: it cannot be written.
        """
        from . import certificates as x

        made = x.read_certificate(certificate)
        if x.is_authority(x.read_one(made)):
            raise ValueError("that is the certificate of an authority, not of a client")
        plain = _UNFIT.sub("-", name).strip("-.")[:48] or "client"
        for number in range(1, 1000):
            fit = plain if number == 1 else f"{plain}-{number}"
            path = self.folder / f"{fit}.crt"
            try:
                write_file(path, made, replace=False)
            except FileExistsError:
                if path.read_bytes() == made:
                    return fit
            else:
                return fit
        raise ValueError(f"too many clients are called {plain!r}")

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.crt"))

    def load(self, name: str) -> KnownClient:
        """A client.

        Raises:
            FileNotFoundError: there is no such client.
            ValueError: its file holds no certificate.
        """
        from . import certificates as x

        path = self._path(name)
        try:
            made = x.read_certificate(path.read_bytes())
            return KnownClient(name, pin_of(x.der(x.read_one(made))), made)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def certificate(self, name: str) -> bytes:
        """A client's certificate, PEM. Errors as :meth:`load`."""
        return self.load(name).certificate

    def all(self) -> list[KnownClient]:
        """All of them, sorted by name. Errors as :meth:`load`."""
        return [self.load(name) for name in self.names()]

    def certificates(self) -> list[bytes]:
        """Their certificates, PEM. Errors as :meth:`load`."""
        return [client.certificate for client in self.all()]

    def remove(self, name: str) -> list[str]:
        """A client that is not let in any more, by whatever name it has paired.

        Returns:
            All names it was known as.

        Raises:
            FileNotFoundError: there is no such client.
            OSError: its file cannot be removed.
        """
        path = self._path(name)
        pins = {one: self._pin(one) for one in self.names()}
        also = [one for one, pin in pins.items() if one != name and pin and same_pin(pin, pins[name])]
        for one in also:
            (self.folder / f"{one}.crt").unlink(missing_ok=True)
        path.unlink()
        return sorted([name, *also])

    def _pin(self, name: str) -> str:
        """Its pin; empty where the file makes no sense, for it can be removed nevertheless."""
        try:
            return self.load(name).pin
        except (OSError, ValueError):
            return ""

    def _path(self, name: str) -> Path:
        if name not in self.names():
            raise FileNotFoundError(f"there is no paired client {name!r} in {self.folder}")
        return self.folder / f"{name}.crt"
