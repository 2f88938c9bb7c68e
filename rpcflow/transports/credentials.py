# SPDX-License-Identifier: Apache-2.0
"""The token that goes with an address: where it is kept, and over which lines it may go."""

from pathlib import Path
from typing import Final

from rpcflow.errors import AuthenticationError
from rpcflow.protocol.credentials import TOKEN_NBYTES, encode_credentials

from .url import Url

_OPEN: Final = frozenset({"tcp", "ws"})


def credentials(url: Url) -> bytes:
    """What is to be sent first on the line to ``url``; nothing where no token goes with it.

    Raises:
        AuthenticationError: the line can be read by others, and a token is not for those.
        ValueError: that is no token.
        OSError: the file that it is in cannot be read.
    """
    token = url.token
    path = dict(url.query).get("token_file")
    if token is None and path is not None:
        with Path(path).open("rb") as file:
            token = file.read(TOKEN_NBYTES + 2).decode("ascii", "replace").rstrip("\r\n")
    if token is None:
        return b""
    if url.scheme in _OPEN:
        from .tcp import is_loopback

        if not is_loopback(url.host):
            raise AuthenticationError(
                f"a token is sent only inside TLS, or on this machine: {url} is a line that others can read"
            )
    return encode_credentials(token)
