# SPDX-License-Identifier: Apache-2.0
"""Identities: a private key and its certificate, in one file that only its owner may read.

A self-signed one is known by its pin, one that an authority has issued by its name.
"""

import datetime
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from . import certificates as x
from .folder import check_name, config_folder, read_secret, write_file
from .pins import pin_of

DEFAULT: Final = "default"
DAYS: Final = 3650.0
"""A self-signed certificate is known as it is, by its pin or to those we have paired with: to let it expire soon would
lock us out and keep nobody else out."""
_log: Final = logging.getLogger("rpcflow.security")
RENEW_DAYS: Final = 30.0
"""With fewer left, a self-signed certificate is renewed when it is used."""


@attrs.frozen
class Identity:
    """What may be known of an identity. The key stays in its file.

    Args:
        name: of the identity; that of its file where it is none of the configuration folder's.
        path: the file.
        pin: of its key.
        subject: its certificate's common name.
        issuer: that of who has signed it; the same for a self-signed one.
        hosts: names and addresses that the certificate is for.
        not_before, not_after: when it is valid.
        serial: number of the certificate.
        self_signed: whether nobody but its own key has signed it.
        certificate: in DER.
    """

    name: str
    path: Path
    pin: str
    subject: str
    issuer: str
    hosts: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime
    serial: int
    self_signed: bool
    certificate: bytes = attrs.field(repr=False)

    def expired(self, now: datetime.datetime | None = None) -> bool:
        """Whether its certificate is not valid any more."""
        return (now or x.now()) > self.not_after

    def left(self, now: datetime.datetime | None = None) -> datetime.timedelta:
        """How long it is valid still."""
        return self.not_after - (now or x.now())


def identity_path(name: str) -> Path:
    """The file of an identity of the configuration folder.

    Raises:
        ValueError: that cannot be its name.
    """
    return config_folder() / "identities" / f"{check_name(name)}.pem"


def load_identity(name_or_path: str | os.PathLike[str] = DEFAULT) -> Identity:
    """What is known of an identity.

    Args:
        name_or_path: its name, or a file with a private key and its certificates; with a slash, or ending with
            ``.pem``, it is a file.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: others may read the key.
        ValueError: the file does not hold a key with its certificate.
        ImportError: the packages of an extra are missing.
    """
    text = os.fspath(name_or_path)
    is_path = not isinstance(name_or_path, str) or os.sep in text or text.endswith(".pem")
    path = Path(text) if is_path else identity_path(text)
    _, chain = _read(path, text, is_path)
    return _described(path.stem if is_path else text, path, chain[0])


def _read(path: Path, text: str, is_path: bool = False) -> tuple[x.Key, list[x.Certificate]]:
    try:
        data = read_secret(path)
    except FileNotFoundError:
        how = "" if is_path else f": rpcflow identity init {text} makes one"
        raise FileNotFoundError(f"there is no identity {text!r}{how}") from None
    return x.read_pem(path, data)


def init_identity(
    name: str = DEFAULT,
    *,
    algorithm: str = "p256",
    days: float = DAYS,
    hosts: Sequence[str] = (),
    replace: bool = False,
) -> Identity:
    """Make a key and a self-signed certificate.

    Args:
        algorithm: ``p256`` or ``ed25519``.
        days: how long the certificate is valid.
        hosts: names and addresses for it; by default those of this machine.
        replace: in the place of one that is there; whoever has its pin does not know us any more then.

    Raises:
        FileExistsError: there is one.
        ValueError: an argument that cannot be.
        OSError: it cannot be written.
    """
    path = identity_path(name)
    key = x.make_key(algorithm)
    made = x.make_certificate(key, _subject(name), days=days, hosts=tuple(hosts) or own_hosts())
    try:
        write_file(path, x.key_pem(key) + x.pem(made), secret=True, replace=replace)
    except FileExistsError:
        raise FileExistsError(f"there is an identity {name!r} already: {path}") from None
    return _described(name, path, made)


def ensure_identity(name: str = DEFAULT) -> Identity:
    """The identity; made if there is none, renewed if it is self-signed and soon to expire. Errors as
    :func:`load_identity` and :func:`init_identity`."""
    for _ in range(2):
        try:
            found = load_identity(name)
        except FileNotFoundError:
            try:
                return init_identity(name)
            except FileExistsError:
                continue  # somebody has just made it
        if not found.self_signed or found.left() >= datetime.timedelta(days=RENEW_DAYS):
            return found
        try:
            return renew(name)
        except OSError as error:
            if found.expired():
                raise
            _log.warning("%s cannot be renewed, and expires %s: %s", found.path, found.not_after.date(), error)
            return found
    return load_identity(name)


def renew(name_or_path: str | os.PathLike[str] = DEFAULT, *, days: float = DAYS) -> Identity:
    """A new certificate for the same key, so that its pin stays. Self-signed ones only: whoever has issued another has
    to issue it again. Servers that we have paired with know the old certificate, and have to be paired with again.

    Raises:
        ValueError: it is not self-signed, or an authority. Other errors as :func:`load_identity`.
    """
    found = load_identity(name_or_path)
    key, chain = _read(found.path, found.name)
    if not x.issued_by(chain[0], chain[0]):
        raise ValueError(f"{found.name!r} was issued by {found.issuer!r}, who has to issue it again")
    if x.is_authority(chain[0]):
        raise ValueError(f"{found.path} is an authority, not an identity")
    made = x.make_certificate(key, found.subject, days=days, hosts=found.hosts)
    write_file(found.path, x.key_pem(key) + x.pem(made), secret=True)
    return _described(found.name, found.path, made)


def identities() -> list[str]:
    """Names of all in the configuration folder, sorted."""
    return sorted(path.stem for path in (config_folder() / "identities").glob("*.pem"))


def own_hosts() -> tuple[str, ...]:
    """What this machine is called."""
    names = ["localhost", "127.0.0.1", "::1"]
    name = socket.gethostname()
    try:
        x.host_name(name)
    except ValueError:
        return tuple(names)
    return tuple(dict.fromkeys([*names, name]))


def _subject(name: str) -> str:
    return f"{name}@{socket.gethostname()}"[:64] if name == DEFAULT else name


def _described(name: str, path: Path, certificate: x.Certificate) -> Identity:
    der = x.der(certificate)
    return Identity(
        name,
        path,
        pin_of(der),
        x.common_name(certificate.subject),
        x.common_name(certificate.issuer),
        x.host_names(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.serial_number,
        x.issued_by(certificate, certificate),
        der,
    )
