# SPDX-License-Identifier: Apache-2.0
"""Whom a connecting end trusts, and who it says it is, by its address.

The other end is checked by its key's pin (in the address, or known from pairing), or else by name, against the
authorities that ``ca`` names or those of the system.
"""

import logging
import ssl
from typing import Final

import attrs

from rpcflow.errors import AuthenticationError, ProtocolError
from rpcflow.transports.tls_stream import TlsStream
from rpcflow.transports.url import Url

from . import need
from .folder import authority_file

PARAMETERS: Final = ("ca", "identity", "name", "pin", "proxy", "token_file")
"""What may stand in an address that leads to TLS."""
_log: Final = logging.getLogger("rpcflow.security")


@attrs.frozen
class ClientTls:
    """The connecting end of TLS to one address. Made by :meth:`of`.

    Args:
        where: the address, for errors.
        context: it checks the name where there is no pin.
        hostname: the name of the other end.
        pin: of its key; None where it is checked by name.
        alpn: what must be spoken inside; None where it does not matter.
    """

    where: str
    context: ssl.SSLContext
    hostname: str
    pin: str | None
    alpn: str | None

    @classmethod
    def of(cls, url: Url, alpn: str = "rpcflow", insist: bool = True) -> "ClientTls":
        """For an address.

        Args:
            alpn: what is to be spoken.
            insist: whether it must be agreed on.

        Raises:
            ValueError: the address has parameters that cannot be; an identity is not what it should be.
            FileNotFoundError, PermissionError: an identity, or a file with authorities, cannot be had.
            ImportError: the packages of an extra are missing.
        """
        need("cryptography")
        check_parameters(url)
        from .known import KnownHosts
        from .pins import check_pin

        given = dict(url.query)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # a line that is cut is not one that ended
        context.set_alpn_protocols([alpn])
        pin = given.get("pin")
        if pin is not None:
            pin = check_pin(pin)
        elif "ca" in given:
            path = authority_file(given["ca"])
            try:
                context.load_verify_locations(path)
            except ssl.SSLError as error:
                raise ValueError(f"{path} holds no certificates: {error.reason}") from None
        else:
            if "proxy" not in given:  # else who is known there is the proxy
                pin = KnownHosts().lookup(url.host, url.port)
            if pin is None:
                context.load_default_certs()
        if pin is not None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the key is checked instead, once it has proved to be there
        _show(context, given.get("identity"))
        name = given.get("name", url.host).partition("%")[0]
        return cls(str(url), context, name, pin, alpn if insist else None)

    def stream(self) -> TlsStream:
        """A new line's end."""
        return TlsStream(self.context, self.hostname, self.where)

    def check(self, stream: TlsStream) -> None:
        """Whether a handshake that is done was with the right one. To be called before anything is said inside.

        Raises:
            AuthenticationError: it was not.
            ProtocolError: it speaks something else.
        """
        if self.alpn is not None and stream.protocol != self.alpn:
            raise ProtocolError(f"{self.where} speaks TLS, but is nothing of rpcflow's")
        if self.pin is None:
            return
        from .certificates import valid_now
        from .pins import pin_of, same_pin

        try:
            found = pin_of(stream.certificate)
        except ValueError as error:
            raise AuthenticationError(f"{self.where} showed a certificate that makes no sense: {error}") from None
        if not same_pin(found, self.pin):
            raise AuthenticationError(
                f"{self.where} is not who it should be: its key is {found}, expected was {self.pin}. If it was set up "
                "anew, pair again (rpcflow identity forget, rpcflow pair), or take the address that its READY shows"
            )
        problem = valid_now(stream.certificate)
        if problem:
            raise AuthenticationError(f"{self.where}: its certificate {problem}")


def check_parameters(url: Url) -> None:
    """Whether an address has only what is known, and that can be. Reads no files.

    Raises:
        ValueError: it has not.
    """
    from .pins import check_pin

    names = [name for name, _ in url.query]
    unknown = sorted(set(names) - set(PARAMETERS))
    if unknown:
        raise ValueError(f"{url}: {', '.join(unknown)}: not known; known are {', '.join(PARAMETERS)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{url}: {', '.join(twice)}: given twice")
    given = dict(url.query)
    if "pin" in given:
        check_pin(given["pin"])
    if given.get("name", "-")[:1] in ("", "."):
        raise ValueError(f"{url}: name= is the name of a host")
    if (how := given.get("proxy")) is not None:
        if how not in ("plain", "ca"):
            try:
                check_pin(how)
            except ValueError:
                raise ValueError(f"{url}: proxy= is plain, ca, or the pin of the proxy's key") from None
        if "pin" not in given and "name" not in given:
            raise ValueError(f"{url}: with proxy=, pin= or name= says which server behind it is the right one")


def _show(context: ssl.SSLContext, identity: str | None) -> None:
    """Have a certificate ready for who asks for one: what was asked for, or the default one if there is one."""
    if identity == "":
        return
    from .identity import DEFAULT, identity_path, load_identity

    if identity is None and not identity_path(DEFAULT).is_file():
        return
    try:
        own = load_identity(DEFAULT if identity is None else identity)
        if own.expired():
            raise ValueError(f"the certificate of the identity {own.name!r} has expired on {own.not_after:%Y-%m-%d}")
        context.load_cert_chain(own.path)
    except (OSError, ValueError) as error:
        if identity is not None:
            raise
        _log.warning("going without the default identity: %s", error)
