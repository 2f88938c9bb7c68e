# SPDX-License-Identifier: Apache-2.0
"""``connect`` of the blocking API."""

import os
import time
from collections.abc import Sequence
from typing import Any

from rpcflow.client.core import Operation
from rpcflow.client.credentials import Credentials
from rpcflow.client.options import checked_options, constructor_arguments, firmware_path, greets
from rpcflow.errors import CallTimeoutError, WaitTimeoutError
from rpcflow.session.client import ClientMachine
from rpcflow.transports import BlockingChannel, check_url, find_transport
from rpcflow.transports.greeting import greet

from .connection import Connection
from .session import RPCSession


def connect(
    url: str,
    port: int | None = None,
    key: str = "",
    session_timeout: float = 0,
    session_constructor_args: Sequence[Any] | None = None,
    enable_logging: bool = False,
    *,
    wait_timeout: float | None = None,
    call_timeout: float | None = None,
    poll: bool | None = None,
    firmware: str | os.PathLike[str] | None = None,
    token: str | None = None,
    pin: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
) -> RPCSession:
    """A session with a server.

    Args:
        url: host or address, or a whole URL (``tcp://host:port``, ``tls://host:port``, ``unix:///path`` ...).
        port: where ``url`` has none; 9091 by default.
        key: what the server answers to.
        session_timeout: seconds from when the server starts serving until it ends the session; 0 for none.
        session_constructor_args: where the session shall run: name of a constructor of the server
            (``"rpc.LocalSession"``, ``"rpc.Connect"``, ``"rpc.PopenSession"``, ``"rpc.CreatePipeClient"``) and its
            arguments.
        enable_logging: log each request to the logger ``rpcflow.session``.
        wait_timeout: seconds to wait for a server that is busy; None for ever.
        call_timeout: seconds for one operation; None for ever.
        poll: None polls adaptively before sleeping; False never does.
        firmware: path of the ELF file of what a device without Python runs; it lets
            :meth:`RPCSession.load_module` link modules for it. In a ``serial:`` address, ``?firmware=`` says the same.
        token: bearer token, sent first, inside TLS or on lines that do not leave this machine.
        pin, ca: whom to trust, for ``tls:`` and ``wss:``: the pin of the other end's key, or a file with authorities
            (or the name of one of ours). By default the pin known from pairing, or else the system's authorities.
        identity: name or file of the key and certificate to show if asked; "" for none. By default the identity
            ``default``, if there is one.

    Raises:
        ValueError: an argument that cannot be.
        FileNotFoundError: there is no file ``firmware``.
        ConnectionLostError: nobody answers.
        WaitTimeoutError: the server stayed busy.
        KeyMismatchError: it answers to another key.
        AuthenticationError: the other end is not who it should be, or does not know us.
        PermissionDeniedError: it knows us, and does not let us do that.
        RemoteError: it refused the session constructor.
    """
    address, key_text = checked_options(url, port, key, session_timeout, wait_timeout, call_timeout)
    address = check_url(Credentials(token, pin, ca, identity).on(address, key))
    elf = firmware_path(address, firmware)
    transport = find_transport(address.scheme)
    deadline = None if wait_timeout is None else time.monotonic() + wait_timeout
    channel: BlockingChannel | None = None
    try:
        channel = transport.connect_blocking(address, deadline=deadline, poll=poll)
        if greets(transport):
            greet(channel, key_text, deadline)
    except TimeoutError:
        if channel is not None:
            channel.close()
        raise WaitTimeoutError(
            f"{address} had no time for us within {wait_timeout:g} s", wait_timeout=wait_timeout
        ) from None
    except BaseException:
        if channel is not None:
            channel.close()
        raise
    core = Connection(channel, ClientMachine(), str(address), session_timeout or None, call_timeout, enable_logging)
    core.firmware = elf
    core.timed_here = not greets(transport)
    try:
        initialize(core, session_constructor_args, deadline)
    except CallTimeoutError:
        core.close()
        raise WaitTimeoutError(
            f"{address} did not begin the session within {wait_timeout:g} s", wait_timeout=wait_timeout
        ) from None
    except BaseException:
        core.close()
        raise
    return RPCSession(core)


def initialize(core: Connection, constructor: Sequence[Any] | None, deadline: float | None = None) -> None:
    """Begin the session on a line whose handshake is done."""
    values = core.arguments(constructor_arguments(constructor))

    def operation() -> Operation[None]:
        yield core.machine.init(values)

    core.run(operation(), deadline)
