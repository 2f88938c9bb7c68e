# SPDX-License-Identifier: Apache-2.0
"""Whom we have met: pins of servers by where they are, certificates of clients that have paired."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .folder import config_folder, make_folder, write_file
from .pins import check_pin

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HEAD: Final = "# HOST:PORT and the pin of the server there, a line each; written by `rpcflow pair`.\n"
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
            ValueError: the file makes no sense.
        """
        return self.read().get(_place(host, port))

    def read(self) -> dict[str, str]:
        """All of them, by ``host:port``. Errors as :meth:`lookup`."""
        try:
            text = self.path.read_bytes().decode()
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is not text") from None
        found = {}
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or ":" not in words[0]:
                raise ValueError(f"{self.path}, line {number}: it is HOST:PORT and a pin")
            try:
                found[words[0]] = check_pin(words[1])
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from None
        return found

    def add(self, host: str, port: int, pin: str) -> None:
        """From now on this is the server there, in the place of another we knew."""
        with self._changed() as known:
            known[_place(host, port)] = check_pin(pin)

    def remove(self, host: str, port: int) -> bool:
        """Forget the server there; whether we knew one."""
        with self._changed() as known:
            return known.pop(_place(host, port), None) is not None

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, str]]:
        """Everything, to be changed; nobody else changes it meanwhile."""
        make_folder(self.path.parent)
        with open(f"{self.path}.lock", "a") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.read()
            yield known
            lines = "".join(f"{place} {pin}\n" for place, pin in known.items())
            write_file(self.path, (_HEAD + lines).encode())


def _place(host: str, port: int) -> str:
    host = host.removeprefix("[").removesuffix("]").lower()
    if not host or len(host.split()) != 1 or host.startswith("#"):
        raise ValueError(f"{host!r} is not a host")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
            ValueError: that is no certificate.
        """
        from .certificates import read_certificate

        made = read_certificate(certificate)
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

    def certificate(self, name: str) -> bytes:
        """A client's certificate, PEM.

        Raises:
            FileNotFoundError: there is no such client.
        """
        return self._path(name).read_bytes()

    def remove(self, name: str) -> None:
        """A client that is not let in any more.

        Raises:
            FileNotFoundError: there is no such client.
        """
        self._path(name).unlink()

    def _path(self, name: str) -> Path:
        if name not in self.names():
            raise FileNotFoundError(f"there is no paired client {name!r} in {self.folder}")
        return self.folder / f"{name}.crt"
