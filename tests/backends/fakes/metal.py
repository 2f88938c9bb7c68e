# SPDX-License-Identifier: Apache-2.0
"""As much of pyobjc's ``Metal`` and ``objc`` as rpcflow uses, with NumPy for a GPU.

It is as unhelpful as the real one may be: command buffers run when somebody waits, or when there are too many of them;
what Metal's documentation forbids is an error; what would leak, or take the process with it, is an AssertionError. The
compiler reads kernels' parameters, expands simple macros, and knows the kernels by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

_UNDER_WAY = 64
_MOST_BYTES = 1 << 34
_TYPES = {
    "float": (3, "float32"),
    "half": (16, "float16"),
    "int": (29, "int32"),
    "uint": (33, "uint32"),
    "short": (37, "int16"),
    "ushort": (41, "uint16"),
    "char": (45, "int8"),
    "uchar": (49, "uint8"),
    "bool": (53, "bool"),
    "long": (81, "int64"),
    "ulong": (85, "uint64"),
}
_STRUCT = 1
_BUFFER, _THREADGROUP, _TEXTURE = 0, 1, 2
_KERNEL = re.compile(r"(?:\bkernel\s+void|\[\[kernel\]\]\s*void)\s+(\w+)\s*\(")
_VERTEX = re.compile(r"\bvertex\s+float4\s+(\w+)\s*\(")
_PARAMETER = re.compile(
    r"(?P<const>const\s+)?(?P<space>device|constant|threadgroup)\s+(?P<late>const\s+)?(?P<type>\w+)\s*[*&]\s*(?P<name>\w+)"
    r"\s*\[\[\s*(?:buffer|threadgroup)\(\s*(?P<index>\d+)\s*\)\s*\]\]"
)
_TEXTURE_PARAMETER = re.compile(r"\btexture2d<\w+>\s+(?P<name>\w+)\s*\[\[\s*texture\((?P<index>\d+)\)\s*\]\]")


class Error(Exception):
    """An NSException."""


class NSError:
    def __init__(self, words: str) -> None:
        self._words = words

    def localizedDescription(self) -> str:
        return self._words


class Pools:
    """How many autorelease pools there are around the current call."""

    def __init__(self) -> None:
        self.depth = 0

    @contextlib.contextmanager
    def autorelease_pool(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def check(self) -> None:
        assert self.depth, "nobody will ever release this"


POOLS = Pools()


class Size(NamedTuple):
    width: int
    height: int
    depth: int


class Binding:
    """An MTLBinding, or an MTLArgument."""

    def __init__(self, name: str, kind: int, access: int, index: int, data: tuple[int, int, int] = (0, 0, 1)) -> None:
        self._values = (name, kind, access, index, *data)

    def name(self) -> str:
        return self._values[0]

    def type(self) -> int:
        return self._values[1]

    def access(self) -> int:
        return self._values[2]

    def index(self) -> int:
        return self._values[3]

    def bufferDataType(self) -> int:
        return self._values[4]

    def bufferDataSize(self) -> int:
        return self._values[5]

    def bufferAlignment(self) -> int:
        return self._values[6]


class Reflection:
    """Of macOS 13 and newer."""

    def __init__(self, found: list[Binding]) -> None:
        self._found = found

    def bindings(self) -> list[Binding]:
        return self._found


class OldReflection:
    """Of older ones."""

    def __init__(self, found: list[Binding]) -> None:
        self._found = found

    def arguments(self) -> list[Binding]:
        return self._found


class Function:
    def __init__(self, name: str, kind: int, bindings: list[Binding]) -> None:
        self.name, self.kind, self.bindings = name, kind, bindings

    def functionType(self) -> int:
        return self.kind


class Library:
    def __init__(self, functions: dict[str, Function]) -> None:
        self._functions = functions

    def functionNames(self) -> tuple[str, ...]:
        return tuple(self._functions)

    def newFunctionWithName_(self, name: str) -> Function | None:
        return self._functions.get(name)


class CompileOptions:
    def __init__(self) -> None:
        self.macros: dict[str, str] = {}
        self.fast = True

    @classmethod
    def alloc(cls) -> type[CompileOptions]:
        return cls

    @classmethod
    def init(cls) -> CompileOptions:
        return cls()

    def setPreprocessorMacros_(self, macros: dict[str, str]) -> None:
        self.macros = dict(macros)

    def setFastMathEnabled_(self, fast: bool) -> None:
        self.fast = fast


class Pipeline:
    def __init__(self, function: Function) -> None:
        self.function = function

    def maxTotalThreadsPerThreadgroup(self) -> int:
        return 512


class VarList:
    def __init__(self, data: Any) -> None:
        self._data = data

    def as_buffer(self, count: int) -> memoryview:
        return memoryview(self._data)[:count]


class Buffer:
    def __init__(self, device: Device, nbytes: int) -> None:
        self.device = device
        self.data = np.zeros(nbytes, np.uint8)

    def contents(self) -> VarList:
        return VarList(self.data)


class Encoder:
    """Of either kind."""

    def __init__(self, commands: CommandBuffer) -> None:
        self._commands = commands
        self._pipeline: Pipeline | None = None
        self._values: dict[tuple[str, int], Any] = {}
        self._ended = False

    def __del__(self) -> None:
        if not self._ended:
            print("an encoder was released without endEncoding", file=sys.stderr, flush=True)
            ctypes.CDLL(None).abort()

    def setComputePipelineState_(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def setBuffer_offset_atIndex_(self, buffer: Buffer, offset: int, index: int) -> None:
        if buffer.device is not self._commands.device:
            raise Error("NSInvalidArgumentException - a buffer of another device")
        if offset >= len(buffer.data):
            raise Error("NSInvalidArgumentException - the offset is not within the buffer")
        self._values["buffer", index] = buffer.data[offset:]

    def setBytes_length_atIndex_(self, data: bytes, length: int, index: int) -> None:
        self._values["buffer", index] = np.frombuffer(bytes(data[:length]), np.uint8)

    def setThreadgroupMemoryLength_atIndex_(self, nbytes: int, index: int) -> None:
        if nbytes % 16:
            raise Error("NSInvalidArgumentException - the length is no multiple of 16")
        self._values["threadgroup", index] = nbytes

    def dispatchThreadgroups_threadsPerThreadgroup_(self, grid: Size, block: Size) -> None:
        assert self._pipeline is not None
        assert isinstance(grid, Size)
        threads = block.width * block.height * block.depth
        if threads > self._pipeline.maxTotalThreadsPerThreadgroup():
            raise Error("NSInvalidArgumentException - too many threads")
        values = []
        for binding in sorted(self._pipeline.function.bindings, key=lambda one: (one.type(), one.index())):
            key = "threadgroup" if binding.type() == _THREADGROUP else "buffer"
            if (key, binding.index()) not in self._values:
                raise Error(f"NSInvalidArgumentException - nothing is bound to {binding.name()}")
            values.append(self._values[key, binding.index()])
        implementation = IMPLEMENTATIONS[self._pipeline.function.name]
        self._commands.steps.append(lambda: implementation(grid, block, *values))

    def copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(
        self, source: Buffer, source_offset: int, target: Buffer, target_offset: int, nbytes: int
    ) -> None:
        if (source_offset | target_offset | nbytes) % 4:
            raise Error("NSInvalidArgumentException - a blit of what is no multiple of 4 bytes")
        if source is target and abs(source_offset - target_offset) < nbytes:
            raise Error("NSInvalidArgumentException - a blit that overlaps")

        def run() -> None:
            target.data[target_offset : target_offset + nbytes] = source.data[source_offset : source_offset + nbytes]

        self._commands.steps.append(run)

    def endEncoding(self) -> None:
        assert not self._ended
        self._ended = True


class CommandBuffer:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.device = queue.device
        self.steps: list[Callable[[], None]] = []
        self._status = 0
        self._error: NSError | None = None
        self._times = (0.0, 0.0)

    def _encoder(self) -> Encoder:
        POOLS.check()
        return Encoder(self)

    computeCommandEncoder = blitCommandEncoder = _encoder

    def commit(self) -> None:
        assert self._status == 0
        self._status = 2
        self._queue.under_way.append(self)

    def waitUntilCompleted(self) -> None:
        while self._status < 4:
            self._queue.run_one()

    def run(self) -> None:
        began = next(self._queue.clock)
        try:
            for step in self.steps:
                step()
            self._status = 4
        except FloatingPointError as error:
            self._error = NSError(str(error))
            self._status = 5
        self.steps.clear()
        self._times = (began * 1e-3, began * 1e-3 + 0.5e-3)

    def status(self) -> int:
        return self._status

    def error(self) -> NSError | None:
        POOLS.check()
        return self._error

    def GPUStartTime(self) -> float:
        return self._times[0]

    def GPUEndTime(self) -> float:
        return self._times[1]


class Queue:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.under_way: deque[CommandBuffer] = deque()
        self.clock = itertools.count(1000)

    def commandBuffer(self) -> CommandBuffer:
        POOLS.check()
        if len(self.under_way) >= _UNDER_WAY:
            self.run_one()
        return CommandBuffer(self)

    def run_one(self) -> None:
        self.under_way.popleft().run()


class Device:
    def __init__(self, number: int) -> None:
        self._number = number
        self.modern = number == 0

    def name(self) -> str:
        return f"Fake M{self._number + 1}"

    def registryID(self) -> int:
        return 100 + self._number

    def hasUnifiedMemory(self) -> bool:
        return True

    def maxThreadsPerThreadgroup(self) -> Size:
        return Size(1024, 1024, 1024)

    def maxThreadgroupMemoryLength(self) -> int:
        return 32768

    def maxBufferLength(self) -> int:
        return _MOST_BYTES

    def recommendedMaxWorkingSetSize(self) -> int:
        return _MOST_BYTES

    def currentAllocatedSize(self) -> int:
        return 0

    def newCommandQueue(self) -> Queue:
        return Queue(self)

    def newBufferWithLength_options_(self, nbytes: int, options: int) -> Buffer | None:
        assert options == 0
        return Buffer(self, nbytes) if 0 < nbytes <= _MOST_BYTES // 4 else None

    def newLibraryWithSource_options_error_(
        self, source: str, options: CompileOptions, error: None
    ) -> tuple[Library | None, NSError | None]:
        POOLS.check()
        try:
            return Library(compiled(source, options)), None
        except ValueError as failed:
            return None, NSError(f"program_source:1:1: error: {failed}\n")

    def newComputePipelineStateWithFunction_error_(
        self, function: Function, error: None
    ) -> tuple[Pipeline | None, NSError | None]:
        POOLS.check()
        if function.name == "too_large":
            return None, NSError("Compute function exceeds available temporary registers")
        return Pipeline(function), None

    def newComputePipelineStateWithFunction_options_completionHandler_(
        self, function: Function, options: int, handler: Callable[..., None]
    ) -> None:
        assert options == 3
        state, _ = self.newComputePipelineStateWithFunction_error_(function, None)
        reflection = Reflection if self.modern else OldReflection
        handler(state, reflection(function.bindings) if state else None)  # and not the error: so are pyobjc's metadata


def compiled(source: str, options: CompileOptions) -> dict[str, Function]:
    """What is in a source. ValueError: the compiler's complaint."""
    source = re.sub(r"//[^\n]*", "", source)
    macros = dict(re.findall(r"^#define\s+(\w+)\s+(.+)$", source, re.MULTILINE)) | options.macros
    source = re.sub(r"^#.*$", "", source, flags=re.MULTILINE)
    source = re.sub(r"\w+", lambda word: macros.get(word[0], word[0]), source)
    found = {}
    for match in _KERNEL.finditer(source):
        if match[1] not in IMPLEMENTATIONS:
            raise ValueError(f"there is no GPU in here that could run '{match[1]}'")
        parameters = source[match.end() : source.index("{", match.end())]
        found[match[1]] = Function(match[1], 3, _bindings(parameters))
    for match in _VERTEX.finditer(source):
        found[match[1]] = Function(match[1], 1, [])
    if "undeclared_thing" in source:
        raise ValueError("use of undeclared identifier 'undeclared_thing'")
    if not found and source.strip() and "using" not in source:
        raise ValueError("expected unqualified-id")
    return found


def _bindings(parameters: str) -> list[Binding]:
    found = []
    for match in _PARAMETER.finditer(parameters):
        number, dtype = _TYPES.get(match["type"], (_STRUCT, "V8"))
        nbytes = np.dtype(dtype).itemsize
        if match["space"] == "threadgroup":
            found.append(Binding(match["name"], _THREADGROUP, 1, int(match["index"])))
        else:
            read_only = match["space"] == "constant" or match["const"] or match["late"]
            data = (number, nbytes, nbytes)
            found.append(Binding(match["name"], _BUFFER, 0 if read_only else 1, int(match["index"]), data))
    for match in _TEXTURE_PARAMETER.finditer(parameters):
        found.append(Binding(match["name"], _TEXTURE, 0, int(match["index"])))
    return found[::-1]  # in no particular order


# ------------------------------------------------------------------------------------------------ the kernels


def _count(grid: Size, block: Size, n: Any) -> int:
    return min(int(n), grid.width * block.width)


def _vadd(grid: Size, block: Size, a: Any, b: Any, c: Any, n: Any) -> None:
    count = _count(grid, block, n.view("int32")[0])
    x, y, z = (one[: count * 4].view("float32") for one in (a, b, c))
    z[:] = x + y


def _matmul(grid: Size, block: Size, a: Any, b: Any, c: Any, n: Any) -> None:
    side = int(n.view("int32")[0])
    assert grid == (side // 8, side // 8, 1)
    assert block == (8, 8, 1)
    x, y, z = (one[: side * side * 4].view("float32").reshape(side, side) for one in (a, b, c))
    z[:] = x @ y


def _scale(grid: Size, block: Size, x: Any, alpha: Any, n: Any) -> None:
    count = _count(grid, block, n.view("uint32")[0])
    x[: count * 4].view("float32")[:] *= alpha.view("float32")[0]


def _half(grid: Size, block: Size, x: Any, n: Any) -> None:
    x[: _count(grid, block, n.view("uint32")[0]) * 2].view("float16")[:] *= 2


def _with_local(grid: Size, block: Size, x: Any, local: int) -> None:
    x[:8].view("int64")[0] = local


def _fault(grid: Size, block: Size, x: Any) -> None:
    raise FloatingPointError("Caused GPU Address Fault Error")


def _all_scalars(grid: Size, block: Size, out: Any, *values: Any) -> None:
    end = 0
    for value in values:
        out[end : end + len(value)] = value
        end += len(value)


def _fill(grid: Size, block: Size, x: Any, value: Any) -> None:
    x[:4] = value[:4]


IMPLEMENTATIONS: dict[str, Callable[..., None]] = {
    "vadd": _vadd,
    "matmul": _matmul,
    "scale": _scale,
    "half_": _half,
    "with_local": _with_local,
    "fault": _fault,
    "all_scalars": _all_scalars,
    "fill": _fill,
    "too_large": _fault,
    "unusual": _fault,
}


def install() -> None:
    """Put it where ``import Metal`` finds it."""
    devices = [Device(1), Device(0)]
    metal: Any = types.ModuleType("Metal")
    metal.MTLCopyAllDevices = lambda: tuple(devices)
    metal.MTLCreateSystemDefaultDevice = lambda: devices[1]
    metal.MTLSize = Size
    metal.MTLResourceStorageModeShared = 0
    metal.MTLCompileOptions = CompileOptions
    objc: Any = types.ModuleType("objc")
    objc.error = Error
    objc.autorelease_pool = POOLS.autorelease_pool
    sys.modules["Metal"], sys.modules["objc"] = metal, objc
