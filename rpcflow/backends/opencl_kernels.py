# SPDX-License-Identifier: Apache-2.0
"""OpenCL kernels: what they take, as the driver or a signature says, and launching them."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from rpcflow.protocol.dtype import DataType, DTypeCode

from .base import KernelError, KernelSource
from .kernels import TENSOR, Param, agreed, check_launch, parse_params, scalar

if TYPE_CHECKING:
    from .opencl import OpenCLBackend, OpenCLDevice

_SCALARS: Final = {
    "char": "int8",
    "uchar": "uint8",
    "unsigned char": "uint8",
    "short": "int16",
    "ushort": "uint16",
    "unsigned short": "uint16",
    "int": "int32",
    "uint": "uint32",
    "unsigned int": "uint32",
    "long": "int64",
    "ulong": "uint64",
    "unsigned long": "uint64",
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "bool": "uint8",
}
"""OpenCL C's scalar types (chapter 6.3.1 of its specification) by the names that drivers report."""
_VECTOR: Final = re.compile(r"(.*?)(?:2|3|4|8|16)?\Z")
_OBJECT: Final = re.compile(r"image[123]d\w*_t|sampler_t|event_t|queue_t|clk_event_t|reserve_id_t|ndrange_t|pipe\b.*")
"""What is no memory and no number. Drivers take anything for it, and crash."""
_MOST_BLOCKS: Final = ((1 << 32) - 1,) * 3


class OpenCLKernel:
    """A kernel of a program; see :class:`rpcflow.backends.base.Kernel`.

    Args:
        backend: whose it is.
        source: what it was built from.
        name: the kernel's.
        programs: what was built so far, by device: that of the source's is there.
    """

    def __init__(self, backend: "OpenCLBackend", source: KernelSource, name: str, programs: dict[int, Any]) -> None:
        self.name = name
        self._backend = backend
        self._source = source
        self._programs = programs
        self._cl = backend.cl
        first = source.dev_id
        dev = backend.device(first)
        kernel = self._cl.Kernel(programs[first], name)
        self.params: Sequence[Param] = self._parameters(kernel, source.signature.get(name))
        info = self._cl.kernel_work_group_info
        block = tuple(int(n) for n in kernel.get_work_group_info(info.COMPILE_WORK_GROUP_SIZE, dev.device))
        self.block: tuple[int, int, int] | None = (block[0], block[1], block[2]) if all(block) else None
        self._has_local = any(param.local for param in self.params)
        self._ready: dict[int, tuple[Any, int, int]] = {first: self._prepared(kernel, dev)}

    # ---- what it takes

    def _parameters(self, kernel: Any, signature: Sequence[str] | None) -> Sequence[Param]:
        told = [self._told(kernel, i) for i in range(kernel.num_args)]
        if signature is not None:
            return agreed(self.name, parse_params(self.name, signature), told)
        params = []
        for i, param in enumerate(told):
            if param is None:
                raise KernelError(
                    f"the driver does not say what argument {i} of {self.name!r} is, {self._written(kernel, i)}: give "
                    "load_module a signature, if it is a scalar; structures cannot be passed",
                    kernel=self.name,
                )
            params.append(param)
        return params

    def _told(self, kernel: Any, i: int) -> Param | None:
        """What the driver says of a parameter; None where that is nothing, or a name that may stand for a scalar."""
        info, space = self._cl.kernel_arg_info, self._cl.kernel_arg_address_qualifier
        try:
            qualifier = kernel.get_arg_info(i, info.ADDRESS_QUALIFIER)
            written = kernel.get_arg_info(i, info.TYPE_NAME).replace("\0", "").strip()
            name = kernel.get_arg_info(i, info.NAME).replace("\0", "")
            pipe = kernel.get_arg_info(i, info.TYPE_QUALIFIER) & self._cl.kernel_arg_type_qualifier.PIPE
        except (self._cl.Error, AttributeError):
            return None
        pointer = written.endswith("*")
        if pipe or _OBJECT.fullmatch(written) or (qualifier in (space.GLOBAL, space.CONSTANT) and not pointer):
            raise KernelError(
                f"{self.name!r} takes {name!r} of the type {'pipe' if pipe else written}, which cannot be passed: "
                "scalars and pointers can",
                kernel=self.name,
            )
        if qualifier == space.LOCAL:
            return Param(DataType(DTypeCode.INT, 64), name, local=True)
        if pointer:
            return attrs.evolve(TENSOR, name=name, element=_element(written.rstrip("* ")))
        if written in _SCALARS:
            return scalar(self.name, DataType.parse(_SCALARS[written]), name)
        return None

    def _written(self, kernel: Any, i: int) -> str:
        try:
            return f"of the type {kernel.get_arg_info(i, self._cl.kernel_arg_info.TYPE_NAME)}".replace("\0", "")
        except self._cl.Error:
            return "or of the others"

    # ---- launching

    def _prepared(self, kernel: Any, dev: "OpenCLDevice") -> tuple[Any, int, int]:
        """The kernel, ready for its arguments; the most threads of a block; bytes of memory that a block may share
        beside what the kernel itself declares."""
        from rpcflow.arrays import numpy_dtype

        dtypes: list[Any] = []
        for param in self.params:
            if param.dtype is None or param.local:
                dtypes.append(None)
            else:
                dtypes.append(np.dtype(np.uint8) if param.dtype.code == DTypeCode.BOOL else numpy_dtype(param.dtype))
        kernel.set_scalar_arg_dtypes(dtypes)
        info = self._cl.kernel_work_group_info
        most = int(kernel.get_work_group_info(info.WORK_GROUP_SIZE, dev.device))
        own = int(kernel.get_work_group_info(info.LOCAL_MEM_SIZE, dev.device))
        return kernel, most, int(dev.device.local_mem_size) - own

    def launch(self, dev_id: int, args: list[Any], grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        backend = self._backend
        dev: OpenCLDevice = backend.device(dev_id)
        ready = self._ready.get(dev_id)
        if ready is None:
            if dev_id not in self._programs:
                self._programs[dev_id] = backend.build(dev, self._source)
            made = self._cl.Kernel(self._programs[dev_id], self.name)
            ready = self._ready[dev_id] = self._prepared(made, dev)
        kernel, most, shared = ready
        check_launch(self.name, grid, block, _MOST_BLOCKS, dev.max_items, most)
        if self._has_local:
            self._check_local(args, shared)
        for i, param in enumerate(self.params):
            if param.dtype is None:
                args[i] = self._buffer(dev, args[i], i)
            elif param.local:
                args[i] = self._cl.LocalMemory(args[i])
        sizes = (grid[0] * block[0], grid[1] * block[1], grid[2] * block[2])
        with backend.told(dev):
            event = kernel(backend.streams.get(dev_id, 0), sizes, block, *args)
        if backend.timing is not None:
            backend.timing.add(event)

    def _check_local(self, args: list[Any], shared: int) -> None:
        left = shared
        for i, param in enumerate(self.params):
            if param.local:
                if not 1 <= args[i] <= left:
                    raise KernelError(
                        f"{self.name}: argument {i} ({param}) must be from 1 to {max(left, 0)} bytes, not {args[i]}",
                        kernel=self.name,
                    )
                left -= args[i]

    def _buffer(self, dev: "OpenCLDevice", address: int, i: int) -> Any:
        block, offset = self._backend.space.find(address)
        if not offset:
            return block.raw
        if offset % dev.base_align:
            raise KernelError(
                f"{self.name}: argument {i} begins {offset} bytes into its memory; the device wants views to begin at "
                f"multiples of {dev.base_align} bytes",
                kernel=self.name,
            )
        if offset == block.nbytes:
            raise KernelError(f"{self.name}: argument {i} is a view of no bytes at the end of its memory")
        with self._backend.told(dev):
            return block.raw.get_sub_region(offset, block.nbytes - offset, self._cl.mem_flags.READ_WRITE)


def _element(written: str) -> DataType | None:
    """The scalars that a pointer's elements are made of; None for what is not known."""
    match = _VECTOR.match(written)
    assert match is not None
    known = _SCALARS.get(match[1])
    return None if known is None else DataType.parse(known)
