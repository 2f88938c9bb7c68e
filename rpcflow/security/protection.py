# SPDX-License-Identifier: Apache-2.0
"""The security options that server, tracker and proxy share, checked before anything is done."""

import os
from typing import TYPE_CHECKING, Any, TypedDict

import attrs

from rpcflow.transports import tcp

from .server_context import TlsSettings

if TYPE_CHECKING:
    from .policy import PolicyFile


@attrs.frozen
class Protection:
    """What a service is protected by.

    Args:
        tls: what TLS needs; None where lines are plain.
        pin: of our own key, for clients; empty without TLS.
        policy: who may do what; None where everyone may do everything.
        pairing: whether new clients may pair.
        known_clients: the folder of those who have.
    """

    tls: TlsSettings | None = None
    pin: str = ""
    policy: "PolicyFile | None" = None
    pairing: bool = False
    known_clients: str | None = None

    @property
    def open(self) -> bool:
        """Whether whoever reaches us is served."""
        return self.policy is None and not (self.tls is not None and self.tls.require_client)


def protect(
    *,
    tls: bool = False,
    identity: str | os.PathLike[str] | None = None,
    client_ca: str | os.PathLike[str] | None = None,
    require_client: bool = False,
    policy: str | os.PathLike[str] | None = None,
    pair: bool = False,
) -> Protection:
    """What a service's options come to. Makes the identity ``default`` where TLS is wanted and there is none.

    Args:
        tls: end TLS; any of the others but ``policy`` means this too.
        identity: name or file of our key and certificate.
        client_ca: file with authorities whose certificates clients may show, or the name of one of ours.
        require_client: let in only clients with a certificate: paired, or issued by ``client_ca``.
        policy: file of who may do what.
        pair: let new clients pair, by a one-time code; only paired ones are served.

    Raises:
        ImportError: the packages of ``rpcflow[security]`` are missing.
        ValueError, OSError: a file is not what it should be.
    """
    rules = None
    if policy is not None:
        from .policy import PolicyFile

        rules = PolicyFile(os.path.abspath(policy))
    if not (tls or identity is not None or client_ca is not None or require_client or pair):
        return Protection(policy=rules)
    from .folder import authority_file, config_folder
    from .identity import ensure_identity, load_identity

    own = ensure_identity() if identity is None else load_identity(identity)
    known_clients = str(config_folder() / "known_clients")
    authorities = None if client_ca is None else authority_file(client_ca)
    settings = TlsSettings(os.path.abspath(own.path), authorities, known_clients, require_client or pair, pair)
    return Protection(settings, own.pin, rules, pair, known_clients)


def check_reach(host: str, protection: Protection, insecure: bool, instead: str) -> None:
    """Whether a service may listen there.

    Raises:
        ValueError: others can reach it, and the line is not encrypted.
    """
    if protection.tls is None and not insecure and not tcp.is_loopback(host):
        raise ValueError(
            f"{host!r} can be reached from other machines and the line is not encrypted: "
            f"encrypt it with tls=True (--tls), {instead}, or say insecure=True (--insecure)"
        )


class SecurityOptions(TypedDict, total=False):
    """The options of :func:`protect`, for services that pass them on. ``pair`` is for servers alone."""

    tls: bool
    identity: str | os.PathLike[str] | None
    client_ca: str | os.PathLike[str] | None
    require_client: bool
    policy: str | os.PathLike[str] | None
    pair: bool


def elsewhere(options: SecurityOptions) -> dict[str, Any]:
    """The same for a process of its own, whose current folder may be another.

    Raises:
        TypeError: one of them is not known.
    """
    unknown = options.keys() - SecurityOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    plain: dict[str, Any] = dict(options)
    if plain.get("policy") is not None:
        plain["policy"] = os.path.abspath(plain["policy"])
    for name in ("client_ca", "identity"):
        if plain.get(name) is not None and os.path.exists(plain[name]):  # else it is a name
            plain[name] = os.path.abspath(plain[name])
    return plain


def encrypted(options: SecurityOptions) -> bool:
    """Whether a service with these options speaks TLS."""
    return any(options.get(name) for name in ("tls", "identity", "client_ca", "require_client", "pair"))
