# SPDX-License-Identifier: Apache-2.0
"""Who may come in, and what they may do: identities, certificates, tokens, policies, the gate that ends TLS.

Nothing here is imported by a session's process but :mod:`rpcflow.security.grant`, which holds no secret.
"""

from importlib.util import find_spec


def need(package: str) -> None:
    """Say how to get a package of the extra ``security``, if it is missing.

    Raises:
        ImportError: it is.
    """
    if find_spec(package) is None:
        raise ImportError("TLS, identities and pairing need the packages of an extra: pip install 'rpcflow[security]'")
