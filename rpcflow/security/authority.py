# SPDX-License-Identifier: Apache-2.0
"""A small authority: a key that signs certificates for the machines and people of one lab, and takes them back.

Three files in the configuration folder: ``authorities/NAME.pem`` (its key and certificate, for its owner alone),
``NAME.crt`` (the certificate, to be given to whoever is to trust it) and ``NAME.crl`` (what it has revoked; a server
looks for it beside its ``client_ca``).
"""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from . import certificates as x
from .folder import check_name, config_folder, locked, read_secret, write_file
from .identity import Identity, identity_path, load_identity
from .pins import pin_of

AUTHORITY_DAYS: Final = 3650.0
DAYS: Final = 365.0


@attrs.frozen
class Authority:
    """What may be known of one. The key stays in its file.

    Args:
        name: of the authority.
        certificate: the file with its certificate.
        crl: the file of what it has revoked.
        pin: of its key.
        not_after: until when its certificate is valid, and whatever it has issued with it.
        revoked: serial numbers of what it has revoked.
    """

    name: str
    certificate: Path
    crl: Path
    pin: str
    not_after: datetime.datetime
    revoked: tuple[int, ...]

    def expired(self, now: datetime.datetime | None = None) -> bool:
        """Whether its certificate is not valid any more."""
        return (now or x.now()) > self.not_after


@attrs.frozen
class _Signer:
    key: x.Key = attrs.field(repr=False)
    certificate: x.Certificate
    crl: x.RevocationList


def authorities() -> list[str]:
    """Names of all in the configuration folder, sorted."""
    return sorted(path.stem for path in _folder().glob("*.pem"))


def init_authority(
    name: str, *, algorithm: str = "p256", days: float = AUTHORITY_DAYS, replace: bool = False
) -> Authority:
    """Make one.

    Args:
        algorithm: ``p256`` or ``ed25519``.
        days: how long its certificate is valid.
        replace: in the place of one that is there; what that has issued is worth nothing then.

    Raises:
        FileExistsError: there is one.
        ValueError: an argument that cannot be.
        OSError: it cannot be written.
    """
    path = _path(name)
    key = x.make_key(algorithm)
    made = x.make_certificate(key, name, days=days, authority=True)
    with locked(path):
        if path.exists() and not replace:
            raise FileExistsError(f"there is an authority {name!r} already: {path}")
        # The key comes last: without it the others are nobody's, and the next try writes over them.
        write_file(path.with_suffix(".crt"), x.pem(made))
        write_file(path.with_suffix(".crl"), x.make_crl(key, made, ()))
        write_file(path, x.key_pem(key) + x.pem(made), secret=True)
    return load_authority(name)


def load_authority(name: str) -> Authority:
    """What is known of one.

    Raises:
        FileNotFoundError: there is none, or its list of what it has revoked has gone.
        PermissionError: others may read its key.
        ValueError: one of its files makes no sense.
    """
    path, signer = _path(name), _signer(name)
    return Authority(
        name,
        path.with_suffix(".crt"),
        path.with_suffix(".crl"),
        pin_of(x.der(signer.certificate)),
        signer.certificate.not_valid_after_utc,
        tuple(entry.serial_number for entry in signer.crl),
    )


def issue(
    name: str,
    authority: str,
    *,
    hosts: Sequence[str] = (),
    days: float = DAYS,
    server: bool = True,
    client: bool = True,
    algorithm: str = "p256",
    path: str | os.PathLike[str] | None = None,
    replace: bool = False,
) -> Identity:
    """Make an identity whose certificate an authority signs.

    Args:
        name: of the identity, and its common name: for policies, who this is.
        authority: who signs.
        hosts: names and addresses by which it is reached, where it is a server's.
        days: how long the certificate is valid, but no longer than the authority's; 0 or less for one that is not any
            more.
        server, client: what it is good for.
        algorithm: of its key.
        path: a file for it, to be taken to another machine; by default it is one of ours.
        replace: in the place of one that is there.

    Raises:
        FileExistsError: there is one.
        FileNotFoundError: there is no such authority.
        ValueError: an argument that cannot be.
        OSError: it cannot be written.
    """
    check_name(name)
    where = identity_path(name) if path is None else Path(path)
    key = x.make_key(algorithm)
    with locked(_existing(authority)):
        signer = _signer(authority)
        above = signer.certificate
        if above.not_valid_after_utc < x.now():
            raise ValueError(f"the authority {authority!r} has expired: rpcflow identity init {authority} --ca --force")
        issuer = signer.key, above
        made = x.make_certificate(key, name, days=days, hosts=hosts, issuer=issuer, server=server, client=client)
        try:
            write_file(where, x.key_pem(key) + x.pem(made) + x.pem(above), secret=True, replace=replace)
        except FileExistsError:
            raise FileExistsError(f"there is an identity {name!r} already: {where}") from None
        _write_crl(authority, signer)
    return load_identity(name if path is None else where)


def revoke(what: str, authority: str) -> int:
    """Take a certificate back.

    Args:
        what: the name of one of our identities, its file, or the serial number of the certificate, in decimal.

    Returns:
        The serial number.

    Raises:
        FileNotFoundError: there is no such identity, or no such authority.
        ValueError: another has issued it, or no certificate can have that number.
    """
    with locked(_existing(authority)):
        signer = _signer(authority)
        serial = _serial(what, authority, signer.certificate)
        known = {entry.serial_number for entry in signer.crl}
        _write_crl(authority, signer, () if serial in known else (serial,))
    return serial


def _serial(what: str, authority: str, above: x.Certificate) -> int:
    if what.isdecimal() and not identity_path(what).exists():
        return int(what)
    try:
        found = load_identity(what)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no identity {what!r} here: give its file, or its serial number") from None
    if not x.issued_by(x.read_der(found.certificate), above):
        raise ValueError(f"{found.name!r} was issued by {found.issuer!r}, not by this authority {authority!r}")
    return found.serial


def _folder() -> Path:
    return config_folder() / "authorities"


def _path(name: str) -> Path:
    return _folder() / f"{check_name(name)}.pem"


def _existing(name: str) -> Path:
    path = _path(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no authority {name!r}: rpcflow identity init {name} --ca makes one")
    return path


def _signer(name: str) -> _Signer:
    path = _existing(name)
    key, chain = x.read_pem(path, read_secret(path))
    crl = path.with_suffix(".crl")
    try:
        revoked = x.read_crl(crl.read_bytes(), chain[0])
    except FileNotFoundError:
        # To begin a new list would let in again whoever is on the old one.
        raise FileNotFoundError(f"{crl} is missing: put it back from where a server has it") from None
    except ValueError as error:
        raise ValueError(f"{crl} is not the authority's list of what it has revoked: {error}") from None
    return _Signer(key, chain[0], revoked)


def _write_crl(name: str, signer: _Signer, serials: Sequence[int] = ()) -> None:
    crl = x.make_crl(signer.key, signer.certificate, serials, signer.crl)
    write_file(_path(name).with_suffix(".crl"), crl)
