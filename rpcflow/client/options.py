# SPDX-License-Identifier: Apache-2.0
"""The options of ``connect``, checked before anything is done."""

import errno
import os
from collections.abc import Sequence
from typing import Any

from rpcflow.protocol.handshake import KeyText, Side, check_key
from rpcflow.transports import Transport, Url, find_transport


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


def firmware_path(address: Url, firmware: Any) -> str | None:
    """The file of what the device runs, by the option or else by the address (``serial:///dev/...?firmware=fw.elf``).

    Raises:
        TypeError: the option is no path.
        FileNotFoundError: there is no such file.
    """
    if firmware is None:
        firmware = dict(address.query).get("firmware") if address.scheme == "serial" else None
        if firmware is None:
            return None
    path = os.fspath(firmware)
    if not isinstance(path, str):
        raise TypeError(f"firmware is the path of a file, not {firmware!r}")
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "there is no such firmware file", path)
    return os.path.abspath(path)  # of the folder that is current now


def greets(transport: Transport) -> bool:
    """Whether a session over it begins with keys. Where it does not, its other end is a device that knows of no
    timeout either: ending the session in time is ours alone."""
    return bool(getattr(transport, "greets", True))


def check_timeouts(wait_timeout: float | None, call_timeout: float | None) -> None:
    """Whether these two can be.

    Raises:
        ValueError: one of them cannot.
    """
    for name, value in (("wait_timeout", wait_timeout), ("call_timeout", call_timeout)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value!r} is not a number of seconds above 0")


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
    check_timeouts(wait_timeout, call_timeout)
    if not greets(find_transport(address.scheme)) and key:
        raise ValueError(f"{address.scheme}: lines have no keys: leave key={key!r} out")
    return address, KeyText(Side.CLIENT, key, session_timeout or None)
