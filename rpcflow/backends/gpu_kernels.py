# SPDX-License-Identifier: Apache-2.0
"""Kernels of CUDA and HIP: files of them on several devices, and how arguments are laid out for a launch."""

import ctypes
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from rpcflow.protocol.dtype import DTypeCode

from .base import KernelError, KernelSource
from .kernels import Param, check_launch, parse_params
from .ptx import Entry, aliases

if TYPE_CHECKING:
    from .cuda_like import CudaLikeBackend, GpuDevice

_LETTERS: Final = {
    (DTypeCode.INT, 8): "b",
    (DTypeCode.INT, 16): "h",
    (DTypeCode.INT, 32): "i",
    (DTypeCode.INT, 64): "q",
    (DTypeCode.UINT, 8): "B",
    (DTypeCode.UINT, 16): "H",
    (DTypeCode.UINT, 32): "I",
    (DTypeCode.UINT, 64): "Q",
    (DTypeCode.FLOAT, 16): "e",
    (DTypeCode.FLOAT, 32): "f",
    (DTypeCode.FLOAT, 64): "d",
}
_SLOT: Final = 8
_SPARE: Final = 64
"""Parameters that a kernel may have beyond those that its signature names."""
_SPARE_NBYTES: Final = 4096


@attrs.frozen(eq=False)
class Image:
    """What is loaded on a device: ``data``, and the kernels in it."""

    data: bytes
    entries: Mapping[str, Entry]


class Program:
    """A file of kernels, compiled for each kind of device and loaded on each device that shall run them."""

    def __init__(self, backend: "CudaLikeBackend", source: KernelSource) -> None:
        self.backend = backend
        self.source = source
        self._images: dict[str, Image] = {}
        self._modules: dict[int, _Module] = {}

    def image(self, dev: "GpuDevice") -> Image:
        """What a device is given.

        Raises:
            KernelError: it does not compile.
        """
        image = self._images.get(dev.target)
        if image is None:
            image = self._images[dev.target] = self.backend.image(dev, self.source)
        return image

    def module(self, dev: "GpuDevice") -> Any:
        """The driver's module on a device.

        Raises:
            KernelError: the driver does not take it.
        """
        module = self._modules.get(dev.dev_id)
        if module is None:
            image = self.image(dev)
            self.backend.enter(dev)
            raw = self.backend.load_image(dev, self.source.name, image)
            module = self._modules[dev.dev_id] = _Module(self.backend, dev, raw)
        return module.raw


class _Module:
    """A driver's module, unloaded with the last kernel of it."""

    def __init__(self, backend: "CudaLikeBackend", dev: "GpuDevice", raw: Any) -> None:
        self._backend = backend
        self._dev = dev
        self.raw = raw

    def __del__(self) -> None:
        if self._dev.lost or self._backend.closed:
            return
        self._backend.enter(self._dev)
        self._backend.driver.wait_all()  # for launches of its kernels
        self._backend.driver.unload(self.raw)


class Kernels(Mapping[str, "DeviceKernel"]):
    """The kernels of a program by name, also by the plain name of a mangled one. Each is made when it is asked for: one
    that lacks a signature is in nobody's way.

    Raises:
        KernelError: on access, where it is not known how to pass arguments, or the signature does not fit.
    """

    def __init__(self, program: Program, entries: Mapping[str, Entry]) -> None:
        self._program = program
        self._entries = entries
        self._aliases = aliases(entries)
        self._made: dict[str, DeviceKernel] = {}

    def __getitem__(self, name: str) -> "DeviceKernel":
        full = self._aliases.get(name, name)
        kernel = self._made.get(full)
        if kernel is None:
            plain = next((short for short, long in self._aliases.items() if long == full), full)
            kernel = self._made[full] = DeviceKernel(self._program, self._entries[full], plain)
        return kernel

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from self._aliases

    def __len__(self) -> int:
        return len(self._entries) + len(self._aliases)


class DeviceKernel:
    """A kernel of a program; see :class:`rpcflow.backends.base.Kernel`."""

    def __init__(self, program: Program, entry: Entry, plain: str) -> None:
        self.name = plain
        self.block = entry.block
        self._entry = entry
        self._program = program
        self._backend = program.backend
        self._driver = program.backend.driver
        self.params = self._chosen()
        self._pack = struct.Struct("<" + "".join(_slot(param) for param in self.params)).pack_into
        self._room, self._pointers = _places(len(self.params))
        self._ready: dict[int, tuple[GpuDevice, Any, int]] = {}
        self._prepare(program.source.dev_id)

    def launch(self, dev_id: int, args: list[Any], grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        dev, function, most = self._ready.get(dev_id) or self._prepare(dev_id)
        check_launch(self.name, grid, block, dev.max_grid, dev.max_block, most)
        self._pack(self._room, 0, *args)
        backend, driver = self._backend, self._driver
        backend.enter(dev)
        (status,) = driver.launch(
            function,
            *grid,
            *block,
            0,
            backend.streams.get(dev_id, 0),
            self._pointers.address,
            driver.nothing,
        )
        if status:
            if status in driver.refused:
                backend.forget_error()
                raise KernelError(f"{self.name} cannot be launched so: {backend.told(status)}", kernel=self.name)
            raise backend.failure(dev, status)

    def _chosen(self) -> tuple[Param, ...]:
        entry, signature = self._entry, self._program.source.signature
        given = signature.get(self.name, signature.get(entry.name))
        if given is not None:
            params = parse_params(self.name, given)
            if any(param.local for param in params):
                raise KernelError(
                    f"the signature of {self.name!r}: memory that a block shares is no parameter of a "
                    f"{self._backend.kind} kernel",
                    kernel=self.name,
                )
            if entry.sizes is not None:
                check_sizes(self.name, params, entry.sizes)
            return params
        if entry.params is None or entry.trouble:
            why = entry.trouble or f"{self._program.source.name} does not say what {self.name!r} takes"
            raise KernelError(
                f"{why}: give load_module(signature=...) the types of its parameters, as in "
                f'{{"{self.name}": "float32*, int32"}}',
                kernel=self.name,
            )
        return entry.params

    def _prepare(self, dev_id: int) -> "tuple[GpuDevice, Any, int]":
        backend = self._backend
        dev: GpuDevice = backend.device(dev_id)
        module = self._program.module(dev)
        backend.enter(dev)
        result = self._driver.function(module, self._entry.name.encode())
        if result[0]:
            backend.forget_error()
            raise KernelError(f"the driver does not find {self.name!r}: {backend.told(result[0])}", kernel=self.name)
        sizes = backend.param_sizes(result[1])
        if sizes is not None:
            check_sizes(self.name, self.params, sizes)
        most = min(backend.most_threads(dev, result[1]), dev.max_threads)
        made = self._ready[dev_id] = (dev, result[1], most)
        return made


def check_sizes(name: str, params: tuple[Param, ...], sizes: tuple[int, ...]) -> None:
    """Raise KernelError where a signature does not fit a kernel with parameters of these sizes."""
    if len(params) != len(sizes):
        raise KernelError(f"the signature of {name!r} has {len(params)} parameters; it takes {len(sizes)}", kernel=name)
    for i, (param, size) in enumerate(zip(params, sizes, strict=True)):
        given = _SLOT if param.dtype is None else param.dtype.itemsize
        if given != size:
            raise KernelError(
                f"the signature of {name!r}: parameter {i} ({param}) has {given} bytes; the kernel takes {size}",
                kernel=name,
            )


def _slot(param: Param) -> str:
    """How :mod:`struct` writes an argument, into eight bytes."""
    if param.dtype is None:
        return "Q"
    letter = "?" if param.dtype.code == DTypeCode.BOOL else _LETTERS[DTypeCode(param.dtype.code), param.dtype.bits]
    return f"{letter}{_SLOT - struct.calcsize('<' + letter)}x"


class _Pointers:
    """What a launch is given: the address of each argument, in turn."""

    def __init__(self, places: list[int], room: Any) -> None:
        self._array = (ctypes.c_void_p * len(places))(*places)
        self._room = room
        self.address = ctypes.addressof(self._array)


def _places(count: int) -> tuple[Any, _Pointers]:
    """Room for so many arguments, and the pointers to them.

    The driver takes as much from each as the kernel declares. Where nobody could compare a signature with that, one
    that is too short or too narrow must not let it read beyond: behind the arguments are zeros, and pointers to them.
    """
    room = (ctypes.c_char * (count * _SLOT + _SPARE_NBYTES))()
    begin = ctypes.addressof(room)
    places = [begin + i * _SLOT for i in range(count)] + [begin + count * _SLOT] * _SPARE
    return room, _Pointers(places, room)
