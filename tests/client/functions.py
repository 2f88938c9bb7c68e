# SPDX-License-Identifier: Apache-2.0
"""What the test servers offer. A closure, so that it travels by value."""

from collections.abc import Callable
from typing import Any


def offer(prefix: str = "t.") -> Callable[[], None]:
    """What a server runs once before its sessions."""

    def init() -> None:
        import os
        import time
        import weakref

        import numpy as np
        import tvm_ffi

        from rpcflow import register

        live = {"function": 0, "tensor": 0, "object": 0}

        def watched(kind: str, thing: Any) -> Any:
            live[kind] += 1

            def gone() -> None:
                live[kind] -= 1

            weakref.finalize(thing, gone)
            return thing

        def fail(kind: str, text: str) -> None:
            kinds: dict[str, Any] = {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}
            raise kinds[str(kind)](str(text))

        def types(*values: Any) -> str:
            return ",".join(type(value).__name__ for value in values)

        def show(*values: Any) -> str:
            return "|".join(str(value) for value in values)

        def sleep(seconds: float) -> float:
            time.sleep(seconds)
            return seconds

        def wait_for(path: str) -> str:
            """Until a file is there."""
            while not os.path.exists(path):
                time.sleep(0.005)
            return "it came"

        def begin_and_wait_for(begun: str, path: str) -> Any:
            """Say that it runs, wait, and return something that takes a handle."""
            open(begun, "w").close()
            wait_for(path)
            return adder(1)

        def tick(path: str) -> None:
            """Write on and on."""
            while True:
                with open(path, "a") as file:
                    file.write(".")
                time.sleep(0.01)

        def adder(left: Any) -> Any:
            def add(right: Any) -> Any:
                return left + right

            return watched("function", add)

        class Watched(np.ndarray):
            pass

        def tensor(n: int) -> Any:
            array = watched("tensor", np.arange(n, dtype="float32").view(Watched))
            return tvm_ffi.from_dlpack(array)

        class Thing:
            def __init__(self, name: str) -> None:
                self.name = name

        def host(t: Any) -> Any:
            return np.from_dlpack(t)

        def describe(t: Any) -> str:
            return f"{tuple(int(n) for n in t.shape)} {t.dtype} {t.data_ptr() % 64}"

        def fill(t: Any, value: float) -> None:
            host(t)[...] = value

        def make_bytes(n: int) -> bytes:
            return (bytes(range(256)) * (n // 256 + 1))[:n]

        functions = {
            "echo": lambda x: x,
            "none": lambda *_: None,
            "add": lambda a, b: a + b,
            "count": lambda *values: len(values),
            "fail": fail,
            "types": types,
            "show": show,
            "len": len,
            "sleep": sleep,
            "wait_for": wait_for,
            "begin_and_wait_for": begin_and_wait_for,
            "tick": tick,
            "adder": adder,
            "tensor": tensor,
            "thing": lambda name: watched("object", Thing(str(name))),
            "thing_name": lambda thing: thing.name,
            "live": lambda kind: live[str(kind)],
            "call": lambda f, *args: f(*args),
            "sum": lambda t: float(host(t).astype("float64").sum()),
            "fill": fill,
            "raw": lambda t: bytes(np.ascontiguousarray(host(t)).view(np.uint8)),
            "describe": describe,
            "dtype": lambda name: tvm_ffi.dtype(str(name)),
            "device": lambda: tvm_ffi.device("cpu", 0),
            "shape": lambda *extents: tvm_ffi.Shape(extents),
            "module": lambda: tvm_ffi.system_lib(),
            "bytes": make_bytes,
            "text": lambda n: "ä" * n,
            "nan": lambda: float("nan"),
            "pid": os.getpid,
            "cwd": os.getcwd,
            "exit": lambda status: os._exit(status),
            "crash": lambda: os.abort(),
        }
        for name, function in functions.items():
            register(prefix + name, function)

    return init
