# SPDX-License-Identifier: Apache-2.0
"""Kernels of Metal: what they take, and their launch."""

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from rpcflow.protocol.dtype import DataType, DTypeCode

from .base import KernelError, KernelSource
from .kernels import TENSOR, Param, check_launch, parse_params, scalar
from .metal_source import Declared

if TYPE_CHECKING:
    from .metal import MetalBackend

_BUFFER: Final = 0
_THREADGROUP: Final = 1
_READ_ONLY: Final = 0
"""MTLBindingType and MTLBindingAccess; those of MTLArgument have the same numbers."""
_SCALARS: Final = {
    3: "float32",
    16: "float16",
    29: "int32",
    33: "uint32",
    37: "int16",
    41: "uint16",
    45: "int8",
    49: "uint8",
    53: "bool",
    81: "int64",
    85: "uint64",
}
"""Dtypes by MTLDataType."""
_FORMATS: Final = {
    "float32": "<f",
    "float16": "<e",
    "int32": "<i",
    "uint32": "<I",
    "int16": "<h",
    "uint16": "<H",
    "int8": "<b",
    "uint8": "<B",
    "bool": "<?",
    "int64": "<q",
    "uint64": "<Q",
}
_LOCAL_ALIGNMENT: Final = 16
_CONSTANT_ALIGNMENT: Final = 32
"""Bytes, on those Macs whose GPU is not Apple's; 4 elsewhere."""
_MOST_BLOCKS: Final = ((1 << 32) - 1,) * 3


@attrs.frozen
class Slot:
    """What reflection says of a parameter. ``dtype``: of the buffer's elements where they are scalars; ``nbytes``: of
    one; ``alignment``: of the buffer, as the kernel needs it."""

    name: str
    index: int
    local: bool
    read_only: bool
    dtype: str
    nbytes: int
    alignment: int


def slots(kernel: str, reflection: Any) -> tuple[Slot, ...]:
    """The parameters of a kernel that are to be set: buffers by their index, then memory of a threadgroup by its index.

    Raises:
        KernelError: it takes something else as well.
    """
    modern = hasattr(reflection, "bindings")  # since macOS 13
    found = []
    for binding in reflection.bindings() if modern else reflection.arguments():
        name, kind = str(binding.name()), int(binding.type())
        index = int(binding.index())
        if kind == _THREADGROUP:
            found.append(Slot(name, index, True, False, "", 0, 1))
        elif kind == _BUFFER:
            read_only = int(binding.access()) == _READ_ONLY
            dtype = _SCALARS.get(int(binding.bufferDataType()), "")
            alignment = max(int(binding.bufferAlignment()), 1)
            found.append(Slot(name, index, False, read_only, dtype, int(binding.bufferDataSize()), alignment))
        else:
            raise KernelError(f"{kernel!r} takes {name!r}, which is neither a buffer nor a scalar", kernel=kernel)
    return tuple(sorted(found, key=lambda slot: (slot.local, slot.index)))


def reflected(kernel: str, slot: Slot, declared: Declared | None) -> Param:
    """A parameter by what reflection and the source say.

    Raises:
        KernelError: they do not say enough, or it is something that cannot be passed.
    """
    if slot.local:
        return Param(DataType(DTypeCode.INT, 64), slot.name, local=True)
    if not slot.read_only:
        return attrs.evolve(TENSOR, name=slot.name)
    if declared is None or not declared.space:
        raise KernelError(
            f"whether {slot.name!r} of {kernel!r} is a tensor or a scalar does not show: write the parameter out in "
            "the source, or give load_module a signature",
            kernel=kernel,
        )
    if declared.pointer or declared.space == "device":
        return attrs.evolve(TENSOR, name=slot.name)
    if not slot.dtype:
        raise KernelError(
            f"{kernel!r} takes {slot.name!r}, a reference to what is no scalar, which cannot be passed: make it a "
            "pointer, or say in the signature that it is a tensor",
            kernel=kernel,
        )
    return scalar(kernel, DataType.parse(slot.dtype), slot.name)


def checked(kernel: str, params: tuple[Param, ...], found: tuple[Slot, ...]) -> tuple[Param, ...]:
    """The parameters of a signature, which has to fit.

    Raises:
        KernelError: it does not.
    """
    if len(params) != len(found):
        raise KernelError(
            f"the signature of {kernel!r} has {len(params)} parameters; it takes {len(found)}", kernel=kernel
        )
    for i, (param, slot) in enumerate(zip(params, found, strict=True)):
        if param.local != slot.local:
            what = "local memory" if slot.local else "a buffer"
            raise KernelError(f"the signature of {kernel!r}: parameter {i} ({slot.name}) is {what}", kernel=kernel)
        if param.dtype is None or param.local:
            continue
        if str(param.dtype) not in _FORMATS:
            raise KernelError(f"the signature of {kernel!r}: Metal has no {param.dtype}", kernel=kernel)
        if param.dtype.itemsize != slot.nbytes or not slot.read_only:
            what = f"{slot.nbytes} bytes" if slot.read_only else "a buffer that is written to"
            raise KernelError(
                f"the signature of {kernel!r}: parameter {i} ({slot.name}) is {what}, no {param.dtype}", kernel=kernel
            )
    return tuple(attrs.evolve(param, name=slot.name) for param, slot in zip(params, found, strict=True))


class MetalKernel:
    """A kernel of a library; see :class:`rpcflow.backends.base.Kernel`.

    Args:
        backend: whose it is.
        source: it comes from.
        name: its own.
        libraries: the compiled source, by device; more are added as they are needed.
        declared: its parameters as they stand in the source.
    """

    block: tuple[int, int, int] | None = None

    def __init__(
        self,
        backend: "MetalBackend",
        source: KernelSource,
        name: str,
        libraries: dict[int, Any],
        declared: Mapping[str, Declared],
    ) -> None:
        self.name = name
        self._backend = backend
        self._source = source
        self._libraries = libraries
        pipeline, reflection = backend.pipeline(backend.device(source.dev_id), libraries[source.dev_id], name)
        self._ready: dict[int, tuple[Any, int]] = {
            source.dev_id: (pipeline, int(pipeline.maxTotalThreadsPerThreadgroup()))
        }
        if reflection is None:
            raise KernelError(f"the driver does not say what {name!r} takes", kernel=name)
        found = slots(name, reflection)
        given = source.signature.get(name)
        self.params: tuple[Param, ...]
        if given is not None:
            self.params = checked(name, parse_params(name, given), found)
        else:
            self.params = tuple(reflected(name, slot, declared.get(slot.name)) for slot in found)
        self._setters: list[tuple[int, int, Callable[..., bytes] | None]] = []
        """Index, alignment of a tensor (0 for local memory), and what makes bytes of a scalar."""
        for param, slot in zip(self.params, found, strict=True):
            if param.local:
                self._setters.append((slot.index, 0, None))
            elif param.dtype is None:
                how = declared.get(slot.name)
                constant = slot.read_only and (how is None or how.space != "device")
                least = _CONSTANT_ALIGNMENT if constant and not backend.unified else 1
                self._setters.append((slot.index, max(slot.alignment, least), None))
            else:
                self._setters.append((slot.index, 0, struct.Struct(_FORMATS[str(param.dtype)]).pack))

    def launch(self, dev_id: int, args: list[Any], grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        backend = self._backend
        dev = backend.device(dev_id)
        ready = self._ready.get(dev_id)
        if ready is None:
            if dev_id not in self._libraries:
                self._libraries[dev_id] = backend.compile(dev, self._source)
            pipeline, _ = backend.pipeline(dev, self._libraries[dev_id], self.name)
            ready = self._ready[dev_id] = pipeline, int(pipeline.maxTotalThreadsPerThreadgroup())
        pipeline, most = ready
        check_launch(self.name, grid, block, _MOST_BLOCKS, dev.most_threads, most)
        find = backend.space.find
        local = 0
        for i, (_, alignment, pack) in enumerate(self._setters):
            if pack is not None:
                args[i] = pack(args[i])
            elif alignment:
                memory, offset = args[i] = find(args[i])
                if offset % alignment or (offset and offset == memory.nbytes):
                    raise self._misplaced(i, offset, alignment)
            else:
                args[i] = self._local_nbytes(i, args[i])
                local += args[i]
        if local > dev.most_local:
            raise KernelError(
                f"{self.name}: a block has at most {dev.most_local} bytes of local memory, not {local}",
                kernel=self.name,
            )
        queue = backend.streams.get(dev_id, 0)
        with backend.told(dev_id):
            commands = queue.begin()
            encoder = commands.computeCommandEncoder()
            try:  # an encoder that is dropped before its end takes the process with it
                encoder.setComputePipelineState_(pipeline)
                for (index, alignment, pack), value in zip(self._setters, args, strict=True):
                    if pack is not None:
                        encoder.setBytes_length_atIndex_(value, len(value), index)
                    elif alignment:
                        encoder.setBuffer_offset_atIndex_(value[0].raw.buffer, value[1], index)
                    else:
                        encoder.setThreadgroupMemoryLength_atIndex_(value, index)
                encoder.dispatchThreadgroups_threadsPerThreadgroup_(backend.size(*grid), backend.size(*block))
            finally:
                encoder.endEncoding()
            queue.commit(commands)

    def _local_nbytes(self, i: int, nbytes: int) -> int:
        if nbytes < 1:
            raise KernelError(f"{self.name}: argument {i} is {nbytes} bytes of local memory", kernel=self.name)
        return -(-nbytes // _LOCAL_ALIGNMENT) * _LOCAL_ALIGNMENT

    def _misplaced(self, i: int, offset: int, alignment: int) -> KernelError:
        if offset % alignment:
            text = (
                f"begins {offset} bytes into its memory; the kernel wants it to begin at multiples of {alignment} bytes"
            )
        else:
            text = "is a view of no bytes at the end of its memory"
        return KernelError(f"{self.name}: argument {i} {text}", kernel=self.name)
