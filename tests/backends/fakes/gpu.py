# SPDX-License-Identifier: Apache-2.0
"""What the fake CUDA and the fake HIP are made of: two devices in host memory, a compiler that knows five kernels.

It is strict where a driver is: memory belongs to a device, which has to be the thread's current one; a kernel that
reaches beyond what was allocated is told of at the next wait, and its device is of no use from then on.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DEVICES = 2
NBYTES = 1 << 30
ROOM = 3 << 28
"""Of the memory that a device says it has, this much can be had."""
MOST_THREADS = 512
MAX_GRID = ((1 << 31) - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)

SOURCE = """
extern "C" __global__ void vadd(const float *a, const float *b, float *c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

extern "C" __global__ void __launch_bounds__(64) matmul(const float *a, const float *b, float *c, int n) {
    __shared__ float ta[8][8], tb[8][8];
    int x = threadIdx.x, y = threadIdx.y, column = blockIdx.x * 8 + x, row = blockIdx.y * 8 + y;
    float sum = 0.0f;
    for (int k = 0; k < n; k += 8) {
        ta[y][x] = a[row * n + k + x];
        tb[y][x] = b[(k + y) * n + column];
        __syncthreads();
        for (int i = 0; i < 8; i++) sum += ta[y][i] * tb[i][x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}

extern "C" __global__ void scale(float *x, float alpha, unsigned int n) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= alpha;
}
"""
"""In CUDA's language and HIP's, and what this compiler takes."""
ECHO = """
__global__ void echo(double *out, signed char a, unsigned char b, short c, unsigned short d, int e, unsigned int f,
                     float g, double h, bool i) {
    out[0] = a, out[1] = b, out[2] = c, out[3] = d, out[4] = e, out[5] = f, out[6] = g, out[7] = h, out[8] = i;
}
"""
BROKEN = 'extern "C" __global__ void f(float *x) { x[0] = undeclared_thing; }\n'

_KERNEL = re.compile(r'(extern "C"\s+)?__global__\s+void\s+(?:__launch_bounds__\(\d+\)\s*)?(\w+)\s*\(([^)]*)\)')
_TYPES = {
    "char": "b",
    "signed char": "b",
    "unsigned char": "B",
    "bool": "?",
    "short": "h",
    "unsigned short": "H",
    "int": "i",
    "unsigned int": "I",
    "long long": "q",
    "__half": "e",
    "float": "f",
    "double": "d",
}


class Failed(Exception):
    """A function of the driver does not succeed; ``status``: which one, without the beginning of its name."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Gpu:
    """All devices of one fake driver."""

    def __init__(self) -> None:
        self.memory: dict[int, tuple[int, Any, int]] = {}
        self.current: dict[int, int] = {}
        self.lost: dict[int, str] = {}
        self.pending: dict[int, str] = {}
        self.streams: set[int] = set()
        self.events: dict[int, float | None] = {}
        self.modules: dict[int, list[str]] = {}
        self.retained = [0] * DEVICES
        self.launches = 0
        self._last = 0x1000

    def number(self) -> int:
        """A handle that nothing else has."""
        self._last += 16
        return self._last

    def device(self) -> int:
        """This thread's current device."""
        dev = self.current.get(threading.get_ident())
        if dev is None:
            raise Failed("INVALID_CONTEXT")
        if dev in self.lost:
            raise Failed(self.lost[dev])
        return dev

    def allocate(self, nbytes: int) -> int:
        dev = self.device()
        if nbytes <= 0:
            raise Failed("INVALID_VALUE")
        if nbytes + sum(size for owner, _, size in self.memory.values() if owner == dev) > ROOM:
            raise Failed("OUT_OF_MEMORY")
        room = np.empty(nbytes + 256, np.uint8)
        address = -(-room.ctypes.data // 256) * 256
        self.memory[address] = (dev, room, nbytes)
        return address

    def free(self, address: int) -> None:
        dev = self.device()
        if self.memory.get(address, (None,))[0] != dev:
            raise Failed("INVALID_VALUE")
        del self.memory[address]

    def check(self, address: int, nbytes: int) -> None:
        """Fail where the current device has no such memory."""
        dev = self.device()
        for begin, (owner, _, size) in self.memory.items():
            if owner == dev and begin <= address and address + nbytes <= begin + size:
                return
        raise Failed("INVALID_VALUE")

    def write(self, to: int, begin: int, nbytes: int, stream: int) -> None:
        self.use(stream)
        self.check(to, nbytes)
        ctypes.memmove(to, begin, nbytes)

    def read(self, to: int, begin: int, nbytes: int, stream: int) -> None:
        self.use(stream)
        self.check(begin, nbytes)
        ctypes.memmove(to, begin, nbytes)

    def copy(self, to: int, begin: int, nbytes: int, stream: int) -> None:
        """Forwards in small steps, as no driver promises otherwise: what overlaps comes out wrong."""
        self.use(stream)
        self.check(begin, nbytes)
        self.check(to, nbytes)
        overlap = abs(to - begin) < nbytes
        for at in range(0, nbytes, 4) if overlap else (0,):
            ctypes.memmove(to + at, begin + at, min(4, nbytes - at) if overlap else nbytes)

    def use(self, stream: int) -> None:
        """Fail where there is no such stream."""
        self.device()
        if stream and stream not in self.streams:
            raise Failed("INVALID_HANDLE")

    def wait(self, stream: int) -> None:
        self.use(stream)
        self.wait_all()

    def wait_all(self) -> None:
        dev = self.device()
        if dev in self.pending:
            self.lost[dev] = self.pending[dev]
            raise Failed(self.lost[dev])

    def new_stream(self) -> int:
        self.device()
        self.streams.add(stream := self.number())
        return stream

    def free_stream(self, stream: int) -> None:
        self.use(stream)
        self.streams.remove(stream)

    def new_event(self) -> int:
        self.device()
        self.events[event := self.number()] = None
        return event

    def record(self, event: int, stream: int) -> None:
        self.use(stream)
        self.events[event] = time.perf_counter()

    def elapsed(self, begin: int, end: int) -> float:
        """Milliseconds."""
        times = self.events[begin], self.events[end]
        if times[0] is None or times[1] is None:
            raise Failed("INVALID_HANDLE")
        return (times[1] - times[0]) * 1e3

    def load(self, names: list[str]) -> int:
        self.device()
        self.modules[module := self.number()] = names
        return module

    def unload(self, module: int) -> None:
        self.device()
        del self.modules[module]

    def function(self, module: int, name: str) -> str:
        self.device()
        if name not in self.modules[module]:
            raise Failed("NOT_FOUND")
        return name

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], stream: int, params: int) -> None:
        self.use(stream)
        if any(n < 1 or n > most for n, most in zip((*grid, *block), (*MAX_GRID, *MAX_BLOCK), strict=True)):
            raise Failed("INVALID_VALUE")
        types, run = KERNELS.get(plain(name), ("", None))
        pointers = (ctypes.c_void_p * (len(types) + 1)).from_address(params)
        values = [read_value(letter, pointers[i] or 0) for i, letter in enumerate(types)]
        self.launches += 1
        if run is None:
            return
        try:
            run(self, grid[0] * block[0], *values)
        except Failed:
            self.pending[self.device()] = "ILLEGAL_ADDRESS"

    def view(self, address: int, count: int, dtype: str) -> Any:
        """So many elements of device memory."""
        nbytes = count * np.dtype(dtype).itemsize
        self.check(address, nbytes)
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype)


def read_value(letter: str, address: int) -> Any:
    """An argument, as a kernel of that type takes it from where its pointer points to."""
    letter = "Q" if letter == "P" else letter
    return struct.unpack("<" + letter, ctypes.string_at(address, struct.calcsize("<" + letter)))[0]


def plain(name: str) -> str:
    """The name in the source."""
    match = re.match(r"_Z(\d+)", name)
    return name[match.end() : match.end() + int(match[1])] if match else name


def _vadd(gpu: Gpu, threads: int, a: int, b: int, c: int, n: int) -> None:
    count = min(threads, n)
    if count > 0:
        gpu.view(c, count, "float32")[:] = gpu.view(a, count, "float32") + gpu.view(b, count, "float32")


def _matmul(gpu: Gpu, threads: int, a: int, b: int, c: int, n: int) -> None:
    x, y, z = (gpu.view(at, n * n, "float32").reshape(n, n) for at in (a, b, c))
    z[:] = x @ y


def _scale(gpu: Gpu, threads: int, x: int, alpha: float, n: int) -> None:
    gpu.view(x, min(threads, n), "float32")[:] *= np.float32(alpha)


def _echo(gpu: Gpu, threads: int, out: int, *values: Any) -> None:
    gpu.view(out, len(values), "float64")[:] = values


KERNELS: dict[str, tuple[str, Callable[..., None] | None]] = {
    "vadd": ("PPPi", _vadd),
    "matmul": ("PPPi", _matmul),
    "scale": ("PfI", _scale),
    "echo": ("PbBhHiIfd?", _echo),
    "nothing": ("", None),
}


def sizes(name: str) -> list[int]:
    """Of a kernel's parameters, in bytes."""
    types = KERNELS.get(plain(name), ("", None))[0]
    return [8 if letter == "P" else struct.calcsize("<" + letter) for letter in types]


def compile_source(text: str, name: str) -> tuple[list[tuple[str, str]], str]:
    """The kernels in a source with the types of their parameters, or the complaints."""
    if "undeclared_thing" in text:
        return [], f'{name}(1): error: identifier "undeclared_thing" is undefined\n'
    made = []
    for match in _KERNEL.finditer(text):
        types = "".join(_type(param) for param in match[3].split(",") if param.strip())
        made.append((match[2] if match[1] else f"_Z{len(match[2])}{match[2]}v", types))
    return made, ""


def _type(param: str) -> str:
    return "P" if "*" in param else _TYPES.get(" ".join(param.split()[:-1]), "S")


def elf(symbols: list[tuple[str, int, int]]) -> bytes:
    """An ELF file of a symbol table: name, ``st_info``, ``st_other``."""
    names, table = b"\0", bytes(24)
    for name, info, other in symbols:
        table += struct.pack("<IBBHQQ", len(names), info, other, 1, 0, 0)
        names += name.encode() + b"\0"
    begin = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, begin, len(table), 2, 0, 8, 24),
        struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, begin + len(table), len(names), 0, 0, 1, 0),
    ]
    at = begin + len(table) + len(names)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 190, 1, 0, 0, at, 0, 64, 0, 0, 64, len(sections), 0)
    return header + table + names + b"".join(sections)
