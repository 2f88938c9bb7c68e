# SPDX-License-Identifier: Apache-2.0
"""The backends that the conformance suite is run against, each with the same kernels in its own language.

vadd: c[i] = a[i] + b[i] for i below n; in blocks of 64. matmul: c = a b, of n x n, n a multiple of 8, in blocks of
8 x 8 by way of memory that a block shares. scale: x[i] *= alpha for i below n; in blocks of 64. half: as scale by 2,
of float16, where the device has it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest

WITH_KERNELS = ("opencl", "vulkan", "webgpu", "cuda", "rocm", "metal")
KINDS = ("cpu", *WITH_KERNELS, "hexagon", "ext_dev")


@attrs.frozen
class Rig:
    """One backend to be tested.

    ``kind``: of device; ``files``: name and contents of the file that each kernel is in; ``signature``: for those that
    do not say it themselves; ``broken``: a file that does not compile, and words of its compiler; ``prepare``: called
    in the server before anything (puts a fake driver in place); ``absent``: why it cannot be tested here.
    """

    kind: str
    files: Mapping[str, tuple[str, bytes]] = attrs.field(factory=dict)
    broken: tuple[str, bytes, str] = ("", b"", "")
    signature: Mapping[str, str] | None = None
    float16: bool = False
    prepare: Callable[[], Any] | None = None
    absent: str | None = None

    def load(self, session: Any, kernel: str) -> Any:
        """The module with a kernel, uploaded and loaded in a blocking session."""
        name, data = self.files[kernel]
        session.upload(data, name)
        return session.load_module(name, signature=self.signature)


def prepared(kind: str) -> Rig:
    """The rig of a backend, as ``make()`` in tests/backends/rig_KIND.py gives it; skips the test where it is absent."""
    if kind == "cpu":
        return Rig("cpu")
    made: Rig = importlib.import_module(f"tests.backends.rig_{kind}").make()
    if made.absent:
        pytest.skip(f"{kind}: {made.absent}")
    return made
