# SPDX-License-Identifier: Apache-2.0
"""What the server's policy makes of a client: whether it may come in, for how long, and what its session may do."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from rpcflow.errors import AuthenticationError, PermissionDeniedError
from rpcflow.security.door import Visitor
from rpcflow.security.grant import EVERYTHING, Grant

if TYPE_CHECKING:
    from rpcflow.security.policy import Client, PolicyFile


@attrs.frozen
class Right:
    """What a client has been allowed. ``leave`` is to be called when its turn is over.

    Args:
        seconds: how long its session may last; None for no limit of the policy's.
        grant: what the session may do.
        leave: takes it out of the count.
    """

    grant: Grant = EVERYTHING
    seconds: float | None = None
    leave: Callable[[], None] = lambda: None

    def budget(self, asked: float | None) -> float | None:
        """How long a session may last whose client has asked for so many seconds."""
        if self.seconds is None:
            return asked
        return self.seconds if asked is None else min(asked, self.seconds)


class Rights:
    """The policy at work.

    Args:
        policy: who may do what; None where everyone may do everything.
    """

    def __init__(self, policy: "PolicyFile | None") -> None:
        self._policy = policy
        self._sessions: Counter[str] = Counter()

    def identify(self, visitor: Visitor, token: str) -> "Client | None":
        """Who somebody is; None where that does not matter.

        Raises:
            AuthenticationError: nobody we know.
        """
        if visitor.refused is not None:
            raise AuthenticationError(visitor.refused)
        if token and not visitor.private:
            raise AuthenticationError(
                "a token came over a line that others can read: it is of no use any more, and is taken only inside "
                "TLS or on this machine"
            )
        if self._policy is None:
            return None
        return self._policy.current().identify(token, visitor.certificate, visitor.subject)

    def allow(self, client: "Client | None", key: str) -> Right:
        """What a client may do here that has asked for a key.

        Raises:
            PermissionDeniedError: not that key, or no further session.
        """
        if client is None:
            return Right()
        policy = client.policy
        if not policy.allows_key(key):
            raise _no_key(client, key)
        most = policy.max_sessions
        if most is not None and self._sessions[client.name] >= most:
            raise PermissionDeniedError(f"the server's policy lets {client.name!r} have {most} sessions at a time")
        self._sessions[client.name] += 1
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._sessions[client.name] -= 1
                self._sessions += Counter()  # forgets who has none

        return Right(policy.grant(client.name), policy.session_seconds, leave)

    def renew(self, right: Right, visitor: Visitor, token: str, key: str) -> Right:
        """The same for one who has waited, by the policy as it is now.

        Raises:
            AuthenticationError, PermissionDeniedError: it is to come in no more.
        """
        client = self.identify(visitor, token)
        if client is None:
            return right
        policy = client.policy
        if not policy.allows_key(key):
            raise _no_key(client, key)
        return attrs.evolve(right, grant=policy.grant(client.name), seconds=policy.session_seconds)


def _no_key(client: "Client", key: str) -> PermissionDeniedError:
    return PermissionDeniedError(f"the server's policy does not let {client.name!r} use the key {key!r}")
