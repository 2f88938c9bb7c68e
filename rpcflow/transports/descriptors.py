# SPDX-License-Identifier: Apache-2.0
"""How many descriptors this process may have: services that hold thousands of connections want many."""

import contextlib
import sys

if sys.platform != "win32":  # which has no such limit
    import resource


def raise_limit() -> None:
    """Raise this process's soft limit as far as it may. For processes of our own, not for a program's."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS gives less than it says; then it stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit(most: int, kept: int = 64, each: int = 1) -> int:
    """How many connections a service may hold: ``most``, or what the soft limit leaves if that is fewer.

    Args:
        most: no more than this.
        kept: descriptors that must stay free for others.
        each: descriptors a connection takes.
    """
    if sys.platform != "win32":
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return max(16, min(most, (soft - kept) // each))
    return most
