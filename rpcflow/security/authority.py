# SPDX-License-Identifier: Apache-2.0
"""A small authority: a key that signs certificates for the machines and people of one lab, and takes them back.

Three files in the configuration folder: ``authorities/NAME.pem`` (its key and certificate, for its owner alone),
``NAME.crt`` (the certificate, to be given to whoever is to trust it) and ``NAME.crl`` (what it has revoked; a server
looks for it beside its ``client_ca``).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from . import certificates as x
from .folder import check_name, config_folder, read_secret, write_file
from .identity import Identity, identity_path, load_identity

AUTHORITY_DAYS: Final = 3650.0
DAYS: Final = 365.0


@attrs.frozen
class Authority:
    """What may be known of one.

    Args:
        name: of the authority.
        certificate: the file with its certificate.
        crl: the file of what it has revoked.
        revoked: serial numbers of that.
    """

    name: str
    certificate: Path
    crl: Path
    revoked: tuple[int, ...]


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
    try:
        write_file(path, x.key_pem(key) + x.pem(made), secret=True, replace=replace)
    except FileExistsError:
        raise FileExistsError(f"there is an authority {name!r} already: {path}") from None
    write_file(path.with_suffix(".crt"), x.pem(made))
    write_file(path.with_suffix(".crl"), x.make_crl(key, made, ()))
    return load_authority(name)


def load_authority(name: str) -> Authority:
    """What is known of one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its list of what it has revoked makes no sense.
    """
    path = _path(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no authority {name!r}: rpcflow identity init {name} --ca makes one")
    crl = path.with_suffix(".crl")
    return Authority(name, path.with_suffix(".crt"), crl, _revoked(crl))


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
        days: how long the certificate is valid; 0 or less for one that is not any more.
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
    signer = x.read_pem(_existing(authority), read_secret(_existing(authority)))
    key = x.make_key(algorithm)
    issuer = signer[0], signer[1][0]
    made = x.make_certificate(key, name, days=days, hosts=hosts, issuer=issuer, server=server, client=client)
    where = identity_path(name) if path is None else Path(path)
    try:
        write_file(where, x.key_pem(key) + x.pem(made) + x.pem(issuer[1]), secret=True, replace=replace)
    except FileExistsError:
        raise FileExistsError(f"there is an identity {name!r} already: {where}") from None
    return load_identity(name if path is None else where)


def revoke(what: str, authority: str) -> int:
    """Take a certificate back.

    Args:
        what: the name of one of our identities, its file, or the serial number of the certificate, in decimal.

    Returns:
        The serial number.

    Raises:
        FileNotFoundError: there is no such identity, or no such authority.
        ValueError: another has issued it.
    """
    path = _existing(authority)
    key, chain = x.read_pem(path, read_secret(path))
    if what.isdecimal():
        serial = int(what)
    else:
        found = load_identity(what)
        if found.issuer != x.common_name(chain[0].subject):
            raise ValueError(f"{found.name!r} was issued by {found.issuer!r}, not by {authority!r}")
        serial = found.serial
    known = load_authority(authority)
    if serial not in known.revoked:
        write_file(known.crl, x.make_crl(key, chain[0], (*known.revoked, serial)))
    return serial


def _folder() -> Path:
    return config_folder() / "authorities"


def _path(name: str) -> Path:
    return _folder() / f"{check_name(name)}.pem"


def _existing(name: str) -> Path:
    load_authority(name)
    return _path(name)


def _revoked(path: Path) -> tuple[int, ...]:
    try:
        return x.read_crl(path.read_bytes())
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
