# SPDX-License-Identifier: Apache-2.0
"""An accelerator driven by functions in Python."""

from __future__ import annotations

from .fakes import accelerator
from .rigs import Rig


def make() -> Rig:
    return Rig("hexagon", prepare=accelerator.register)
