# SPDX-License-Identifier: Apache-2.0
"""The blocking API with awaits in front, so that one test says what all APIs do."""

import inspect
from typing import Any

_PLAIN = {"cpu", "cuda", "cl", "vulkan", "metal", "rocm", "ext_dev", "hexagon", "webgpu", "device", "view"}


class Lifted:
    """An object of ``rpcflow.sync`` that looks like its async sister."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, "close" if name == "aclose" else name)
        if not inspect.ismethod(value):
            return lift(value)
        if name in _PLAIN:
            return lambda *args, **named: lift(value(*map(lower, args), **named))

        async def method(*args: Any, **named: Any) -> Any:
            return lift(value(*map(lower, args), **{key: lower(arg) for key, arg in named.items()}))

        return method

    def __getitem__(self, name: str) -> Any:
        return lift(self.target[name])

    async def __call__(self, *args: Any) -> Any:
        return lift(self.target(*map(lower, args)))

    def __eq__(self, other: object) -> bool:
        return bool(self.target == lower(other))

    def __hash__(self) -> int:
        return hash(self.target)

    def __len__(self) -> int:
        return len(self.target)

    def __repr__(self) -> str:
        return repr(self.target)


def lift(value: Any) -> Any:
    return Lifted(value) if type(value).__module__.startswith(("rpcflow.sync", "rpcflow.client.core")) else value


def lower(value: Any) -> Any:
    return value.target if isinstance(value, Lifted) else value
