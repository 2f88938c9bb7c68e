# SPDX-License-Identifier: Apache-2.0
"""The options of ``connect``, checked before anything is done."""

from collections.abc import Sequence
from typing import Any

from rpcflow.protocol.handshake import KeyText, Side, check_key
from rpcflow.transports import Url, find_transport


def constructor_arguments(constructor: Sequence[Any] | None) -> Sequence[Any]:
    """Session constructor arguments, checked.

    Raises:
        TypeError: they are not a list that begins with a name.
    """
    if not constructor:
        return ()
    if isinstance(constructor, str) or not isinstance(constructor[0], str):
        raise TypeError("session_constructor_args is a list: the name of a constructor, then its arguments")
    return constructor


def checked_options(
    url: str,
    port: int | None,
    key: str,
    session_timeout: float,
    wait_timeout: float | None,
    call_timeout: float | None,
) -> tuple[Url, KeyText]:
    """The address and the key text for the options of ``connect``.

    Raises:
        ValueError: one of them cannot be.
    """
    address = Url.parse(url, port)
    check_key(key)
    if isinstance(session_timeout, bool) or not 0 <= session_timeout < float("inf"):
        raise ValueError(f"session_timeout={session_timeout!r} is not a number of seconds")
    for name, value in (("wait_timeout", wait_timeout), ("call_timeout", call_timeout)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value!r} is not a number of seconds above 0")
    find_transport(address.scheme)
    return address, KeyText(Side.CLIENT, key, session_timeout or None)
