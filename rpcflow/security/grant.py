# SPDX-License-Identifier: Apache-2.0
"""What one session may do. Made by the supervisor of a policy, told to the worker, which keeps to it. No secrets."""

import json
from fnmatch import fnmatchcase
from typing import Any

import attrs


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a name is let through. Patterns are those of :mod:`fnmatch`; one that begins with ``!`` takes out again
    what the ones before it let in."""
    good = False
    for pattern in patterns:
        if pattern.startswith("!"):
            good = good and not fnmatchcase(name, pattern[1:])
        else:
            good = good or fnmatchcase(name, pattern)
    return good


@attrs.frozen
class Grant:
    """What one session may do; without arguments: everything, as where there is no policy.

    Args:
        who: the client's name, for logs and errors; empty where it has none.
        functions: patterns of names that may be looked up (:func:`matches`), the server's own ``tvm.rpc.server.*``
            among them.
        constructors: patterns of session constructors; ``rpc.LocalSession`` stands for none at all.
        upload: whether files may be written.
        load: whether modules may be loaded.
        devices: patterns of ``NAME:ID`` (``cpu:0``, ``cuda:*``).
        memory_nbytes: of private memory; None for no limit.
        cpu_seconds: of processor time of the worker.
        processes: how many processes and threads it may have.
        file_nbytes: of one file.
        folder_nbytes: of all files of the session together.
    """

    who: str = ""
    functions: tuple[str, ...] = ("*",)
    constructors: tuple[str, ...] = ("*",)
    upload: bool = True
    load: bool = True
    devices: tuple[str, ...] = ("*",)
    memory_nbytes: int | None = None
    cpu_seconds: int | None = None
    processes: int | None = None
    file_nbytes: int | None = None
    folder_nbytes: int | None = None

    def to_json(self) -> str:
        """For the worker."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Grant":
        """The worker's end of :meth:`to_json`."""
        fields: dict[str, Any] = json.loads(text)
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = tuple(value)
        return cls(**fields)


EVERYTHING = Grant()
