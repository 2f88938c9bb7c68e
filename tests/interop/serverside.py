"""Functions that the test servers offer, stock and rpcflow alike.

`callback` gives a closure, so that it travels by value: neither server's process needs to find this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def callback(max_packet: int | None = None) -> Callable[[], None]:
    """What a server runs once before its sessions; `max_packet` is answered to the packet size lookup."""

    def init() -> None:
        import ctypes
        import math
        import os
        import time
        import weakref

        import numpy as np
        import tvm_ffi

        known = set(tvm_ffi.registry.list_global_func_names())
        live = {"functions": 0, "tensors": 0}
        counts: dict[str, int] = {}

        def offer(name: Any, func: Any, always: Any = True) -> Any:
            if always or name not in known:
                tvm_ffi.register_global_func(name, func, override=True)

        def compiled_address() -> Any:
            """For tvm-ffi before 0.1.13, whose tensors do not tell. An argument is a DLTensor, or an object with one
            behind 24 bytes."""
            import subprocess
            import tempfile

            source = """
            #include <stdint.h>
            typedef struct { int32_t index; uint32_t pad; union { int64_t number; char* pointer; } value; } Any;
            int __tvm_ffi_address(void* self, const Any* args, int32_t count, Any* result) {
              char* tensor = args[0].value.pointer + (args[0].index == 7 ? 0 : 24);
              result->index = 1;
              result->pad = 0;
              result->value.number = *(int64_t*)tensor + *(int64_t*)(tensor + 40);
              return 0;
            }
            """
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "address.so")
                command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path]
                subprocess.run(command, input=source.encode(), check=True)
                return tvm_ffi.load_module(path)["address"]

        pointer = getattr(tvm_ffi.Tensor, "data_ptr", None)
        address = pointer or compiled_address()

        def memory(tensor: Any) -> Any:
            """The memory of a contiguous tensor. Its pointer has the byte offset in it; the DLPack way
            round would crash: an argument is a bare DLTensor that has no owner to keep alive."""
            bits = tensor.dtype.bits * tensor.dtype.lanes
            size = (math.prod(int(n) for n in tensor.shape) * bits + 7) // 8
            return (ctypes.c_char * size).from_address(address(tensor)) if size else bytearray()

        def host(tensor: Any) -> Any:
            shape = tuple(int(n) for n in tensor.shape)
            return np.frombuffer(memory(tensor), str(tensor.dtype)).reshape(shape)

        def watched(kind: Any, thing: Any) -> Any:
            live[kind] += 1

            def gone() -> Any:
                live[kind] -= 1

            weakref.finalize(thing, gone)
            return thing

        # -- the functions named in the README of the recordings
        def describe(tensor: Any) -> Any:
            kind, number = tensor.device.dlpack_device_type(), tensor.device.index
            name = {1: "cpu", 2: "cuda"}.get(kind, str(kind))
            return f"{tuple(int(n) for n in tensor.shape)} {tensor.dtype} {name}:{number}"

        def add_one(tensor: Any) -> Any:
            array = host(tensor)
            array += 1

        def name_types(*values: Any) -> Any:
            return ",".join(f"{type(value).__name__}:{value!r}" for value in values)

        def sleep(seconds: Any) -> Any:
            time.sleep(seconds)
            return seconds

        offer("wire.make_tensor", lambda n: tvm_ffi.from_dlpack(np.arange(n, dtype="float32")))
        offer("wire.tensor_sum", lambda t: float(host(t).sum()))
        offer("wire.add_one_inplace", add_one)
        offer("wire.describe_tensor", describe)
        offer("wire.ret_dtype", lambda: tvm_ffi.dtype("float16"))
        offer("wire.ret_device", lambda: tvm_ffi.device("cpu", 0))
        offer("wire.ret_array", lambda: tvm_ffi.Array([1, 2, 3]))
        offer("wire.ret_map", lambda: tvm_ffi.Map({"a": 1}))
        offer("wire.ret_bytes", lambda n: bytes(i % 256 for i in range(n)))
        offer("wire.ret_str_nul", lambda: "ab\0cd")
        offer("wire.ret_module", lambda: tvm_ffi.system_lib())
        offer("wire.type_name", name_types)
        offer("wire.sleep", sleep)
        if max_packet is not None:
            offer("tvm.rpc.server.GetCRTMaxPacketSize", lambda: max_packet)

        # -- those of `tvm.rpc.testing`, where TVM is not there to bring them
        def fail(text: Any) -> Any:
            raise ValueError(text)

        offer("rpc.test.addone", lambda x: x + 1, False)
        offer("rpc.test.strcat", lambda name, x: f"{name}:{x}", False)
        offer("rpc.test.except", fail, False)
        offer("rpc.test.add_to_lhs", lambda x: lambda y: x + y, False)
        offer("rpc.testing.GetShapeSize", len, False)

        def element(shape: Any, index: Any) -> Any:
            if not 0 <= index < len(shape):
                raise IndexError(f"index {index} of a shape of {len(shape)}")
            return shape[index]

        offer("rpc.testing.GetShapeElem", element, False)

        # -- ours
        def make_adder(left: Any) -> Any:
            def adder(right: Any) -> Any:
                return left + right

            return watched("functions", adder)

        class Watched(np.ndarray):
            pass

        def make_watched(n: Any) -> Any:
            array = watched("tensors", np.zeros(n, "float32").view(Watched))
            return tvm_ffi.from_dlpack(array)

        def count(name: Any, *_: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1

        def rss() -> Any:
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def many_kinds(*values: Any) -> Any:
            return "|".join(str(value) if not isinstance(value, bytes | bytearray) else value.hex() for value in values)

        def touch(tensor: Any) -> Any:
            host(tensor)[...] = 1

        offer("interop.make_adder", make_adder)
        offer("interop.touch", touch)
        offer("interop.make_watched", make_watched)
        offer("interop.live", lambda kind: live[kind])
        offer("interop.count_a", lambda *_: count("a"))
        offer("interop.count_b", lambda *_: count("b"))
        offer("interop.counted", lambda name: counts.get(name, 0))
        offer("interop.rss", rss)
        offer("interop.pid", os.getpid)
        offer("interop.cwd", os.getcwd)
        offer("interop.show", many_kinds)
        offer("interop.raw_bytes", lambda t: bytes(memory(t)))
        offer("interop.number_of_args", lambda *values: len(values))
        offer("interop.array_sum", lambda array: sum(int(x) for x in array))
        offer("interop.map_get", lambda mapping, key: mapping[key])

    return init
