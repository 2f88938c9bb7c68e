# SPDX-License-Identifier: Apache-2.0
"""Tensors and kernels on an OpenCL device: of a session's server, and of this process by pyopencl itself."""

import time
from typing import Any, Self

from benchmarks.clients.blocking import RpcflowClient

SOURCE = """
__kernel void vadd(__global const float *a, __global const float *b, __global float *c, int n) {
    int i = get_global_id(0);
    if (i < n) c[i] = a[i] + b[i];
}
"""
BLOCK = 64


class DeviceClient(RpcflowClient):
    """`kind`: of device that tensors are on."""

    def __init__(self, kind: str = "cpu", **options: Any) -> None:
        super().__init__(**options)
        self._kind = kind

    def _tensor(self, array: Any) -> Any:
        return self._session.device(self._kind).tensor(array)

    def nothings(self, count: int, warm: int) -> float:
        """Microseconds a call of a function that takes what a launch takes, and does nothing."""
        import numpy

        if "nothing" not in self._kept:
            device = self._session.device(self._kind)
            tensors = [device.tensor(numpy.ones(BLOCK, "float32")) for _ in range(3)]
            self._kept["nothing"] = (self._session.get_function("bench.nothing"), tensors)
        nothing, (a, b, c) = self._kept["nothing"]
        start = 0.0
        for turn in range(-warm, count):
            if turn == 0:
                start = time.perf_counter()
            nothing(a, b, c, BLOCK, 1, 1, 1, BLOCK, 1, 1)
        return (time.perf_counter() - start) / count * 1e6

    def launches(self, count: int, warm: int) -> float:
        """Microseconds a launch of a kernel that does next to nothing. The device is idle each time: if it were not, a
        device that is a processor would be told at no cost where launches come quickly enough, and not where not."""
        import numpy

        if "launch" not in self._kept:
            device = self._session.device(self._kind)
            self._session.upload(SOURCE.encode(), "vadd.cl")
            tensors = [device.tensor(numpy.ones(BLOCK, "float32")) for _ in range(3)]
            self._kept["launch"] = (device, self._session.load_module("vadd.cl")["vadd"], tensors)
        device, vadd, (a, b, c) = self._kept["launch"]
        took = 0.0
        for turn in range(-warm, count):
            start = time.perf_counter()
            vadd(a, b, c, BLOCK, 1, 1, 1, BLOCK, 1, 1)
            took += time.perf_counter() - start if turn >= 0 else 0.0
            device.sync()
        if not (c.numpy() == 2).all():
            raise RuntimeError("the kernel is wrong")
        return took / count * 1e6


class LocalOpenCL:
    """The same launch without anything between."""

    def __init__(self, port: int = 0) -> None:
        self._ready: Any = None

    def __enter__(self) -> Self:
        import numpy
        import pyopencl

        context = pyopencl.Context([pyopencl.get_platforms()[0].get_devices()[0]])
        queue = pyopencl.CommandQueue(context, properties=pyopencl.command_queue_properties.PROFILING_ENABLE)
        vadd = pyopencl.Program(context, SOURCE).build().vadd
        vadd.set_scalar_arg_dtypes([None, None, None, numpy.int32])
        flags = pyopencl.mem_flags
        ones = numpy.ones(BLOCK, "float32")
        buffers = [pyopencl.Buffer(context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=ones) for _ in range(3)]
        self._ready = (queue, vadd, buffers)
        return self

    def __exit__(self, *_: object) -> None:
        self._ready = None

    def launches(self, count: int, warm: int) -> float:
        queue, vadd, (a, b, c) = self._ready
        took = 0.0
        for turn in range(-warm, count):
            start = time.perf_counter()
            vadd(queue, (BLOCK,), (BLOCK,), a, b, c, BLOCK)
            took += time.perf_counter() - start if turn >= 0 else 0.0
            queue.finish()
        return took / count * 1e6
