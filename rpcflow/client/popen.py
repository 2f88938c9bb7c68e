# SPDX-License-Identifier: Apache-2.0
"""A session with a program that we start, for ``async with``."""

from collections.abc import Sequence

import anyio

from rpcflow.errors import WaitTimeoutError
from rpcflow.session.client import ClientMachine
from rpcflow.transports.async_popen import AsyncPopenChannel
from rpcflow.transports.child import Binary, check

from .connection import Connection
from .options import check_timeouts
from .session import SessionContext, initialize


class PopenSession(SessionContext):
    """A session with a program that is started for it and ends with it.

    The program is given two more arguments, the numbers of the descriptors that it reads from and writes to, as stock's
    minrpc servers expect. What it prints comes out at our standard error. Leaving the block asks it to end; one that
    has not ended a second later, or that is in a call, is killed.

    Args:
        binary: its path, or its bytes, which leave no file behind.
        args: further arguments, before the two.
        enable_logging: log each request to the logger ``rpcflow.session``.
        wait_timeout: seconds until it must have answered; None for ever.
        call_timeout: seconds for one operation; None for ever.
        poll: None polls adaptively before sleeping; False never does.

    Raises:
        TypeError, ValueError: an argument that cannot be.
        OSError: it cannot be started, on entering the block (as the next ones): FileNotFoundError, PermissionError ...
        SessionCrashedError: it has ended, in a call too: its exit status or signal, and the last it printed.
        WaitTimeoutError: it did not answer.
    """

    def __init__(
        self,
        binary: Binary,
        *,
        args: Sequence[str] = (),
        enable_logging: bool = False,
        wait_timeout: float | None = None,
        call_timeout: float | None = None,
        poll: bool | None = None,
    ) -> None:
        name = check(binary, args)
        check_timeouts(wait_timeout, call_timeout)

        async def make() -> Connection:
            channel: AsyncPopenChannel | None = None
            try:
                with anyio.move_on_after(wait_timeout):
                    channel = await AsyncPopenChannel.start(binary, args, poll=poll)
                    core = Connection(channel, ClientMachine(), f"the process {name}", log=enable_logging)
                    await initialize(core, None)
                    channel.child.serves()
                    core.call_timeout = call_timeout
                    return core
                raise WaitTimeoutError(
                    f"the process {name} did not answer within {wait_timeout:g} s", wait_timeout=wait_timeout
                )
            except BaseException:
                if channel is not None:
                    channel.close()
                raise

        super().__init__(make)
