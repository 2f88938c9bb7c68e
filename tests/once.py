# SPDX-License-Identifier: Apache-2.0
"""What takes long to make and is only read is made once a run, whichever of the test processes first asks for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The file of that name that ``make`` writes, or the folder that it fills. If it fails or skips, the next to ask
    tries again. ``name`` stands for all that the outcome depends on."""
    import fcntl

    # Processes side by side have folders within that of the run, which is new; one alone has that of the run.
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"
    folder.mkdir(exist_ok=True)
    made, mark = folder / name, folder / f"{name}.made"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists():
            make(made)
            mark.touch()
    return made
