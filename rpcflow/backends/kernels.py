# SPDX-License-Identifier: Apache-2.0
"""Kernels as functions of a module: what they take, and that what they are given fits, before anything is launched."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from rpcflow.devices import DEVICE_TYPES
from rpcflow.errors import FunctionNotFoundError
from rpcflow.protocol.dtype import DataType, DTypeCode

from .base import Backend, Kernel, KernelError

LAUNCH_ARGUMENTS: Final = 6
"""Behind a kernel's own: the grid's extents x, y, z in blocks, then the block's in threads; all 0 for a block as the
kernel itself says."""
_FLOAT_BITS: Final = (16, 32, 64)
_FLOAT_MAX: Final = {16: 65504.0, 32: 3.4028234663852886e38, 64: math.inf}


@attrs.frozen
class Param:
    """One parameter of a kernel.

    ``dtype``: None for a tensor. ``local``: it is memory that the threads of a block share, of as many bytes as the
    argument says. ``name``: for errors; empty where it is not known. ``wraps``: nobody says whether the integer is
    signed, so that negative numbers are taken too, as their two's complement; ``dtype`` is the unsigned one. ``note``:
    for errors: what else there is to say of it. ``element``: what a tensor's elements have to be, where that is known;
    for vectors one of their components.
    """

    dtype: DataType | None
    name: str = ""
    local: bool = False
    wraps: bool = False
    note: str = ""
    element: DataType | None = None

    def __str__(self) -> str:
        kind = "local memory" if self.local else str(self.dtype)
        if self.dtype is None:
            kind = "tensor" if self.element is None else f"{self.element}*"
        if self.wraps:
            kind = f"{kind.removeprefix('u')} or {kind}"
        if self.note:
            kind = f"{kind}, {self.note}"
        return f"{self.name}: {kind}" if self.name else kind


TENSOR: Final = Param(None)


class Location(NamedTuple):
    """Where a tensor lies."""

    dev_type: int
    dev_id: int
    address: int
    dtype: DataType | None = None  # of its elements, where anything goes


def parse_params(function: str, types: Sequence[str]) -> tuple[Param, ...]:
    """The parameters that a signature names: dtypes, with ``*`` behind for tensors of it; ``void*`` for tensors of
    anything; ``local``.

    Raises:
        KernelError: one is no type.
    """
    params = []
    for text in types:
        word = text.strip()
        if word == "local":
            params.append(Param(DataType(DTypeCode.INT, 64), local=True))
            continue
        word = word.removeprefix("const ").strip()
        if word.replace(" ", "") == "void*":
            params.append(TENSOR)
            continue
        try:
            dtype = DataType.parse(word.removesuffix("*").rstrip())
        except ValueError as error:
            raise KernelError(f"the signature of {function!r}: {error}", kernel=function) from None
        if word.endswith("*"):
            params.append(Param(None, element=dtype))
            continue
        params.append(scalar(function, dtype))
    return tuple(params)


def scalar(function: str, dtype: DataType, name: str = "") -> Param:
    """A scalar parameter.

    Raises:
        KernelError: none of that type can be passed.
    """
    whole = dtype.code in (DTypeCode.INT, DTypeCode.UINT) and dtype.bits in (8, 16, 32, 64)
    real = dtype.code == DTypeCode.FLOAT and dtype.bits in _FLOAT_BITS
    if dtype.lanes != 1 or not (whole or real or dtype.code == DTypeCode.BOOL):
        raise KernelError(f"{function!r} takes a {dtype}, which cannot be passed", kernel=function)
    return Param(dtype, name)


def agreed(function: str, given: Sequence[Param], told: Sequence[Param | None]) -> tuple[Param, ...]:
    """The parameters of a signature, checked against what the kernel itself says; None for what it does not.

    Raises:
        KernelError: they are not as many, or of another kind or width.
    """
    if len(given) != len(told):
        takes = ", ".join("?" if own is None else str(own) for own in told)
        raise KernelError(
            f"the signature of {function!r} has {len(given)} parameters; it takes {len(told)} ({takes})",
            kernel=function,
        )
    made = []
    for i, (ours, own) in enumerate(zip(given, told, strict=True)):
        if own is None:
            made.append(ours)
            continue
        fits = ours.local == own.local and (ours.dtype is None) == (own.dtype is None)
        if fits and ours.dtype is not None and own.dtype is not None:
            whole = [dtype.code != DTypeCode.FLOAT for dtype in (ours.dtype, own.dtype)]
            fits = ours.dtype.bits == own.dtype.bits and whole[0] == whole[1]
        if not fits:
            raise KernelError(
                f"the signature of {function!r} says {ours} where it takes {own} (argument {i})", kernel=function
            )
        made.append(attrs.evolve(ours, name=own.name))
    return tuple(made)


def _is_seen_as(element: DataType, dtype: DataType) -> bool:
    """Whether a kernel that reads ``element`` may be given a tensor of ``dtype``. Bytes may be anything, and 16 bits
    any type of so many, as languages without a type for it take it; signs do not matter."""
    if element.bits == dtype.bits == 16:
        return True
    if element.code == DTypeCode.FLOAT:
        complex_of_it = dtype.code == DTypeCode.COMPLEX and dtype.bits == 2 * element.bits
        return complex_of_it or (dtype.code == DTypeCode.FLOAT and dtype.bits == element.bits)
    if element.bits == 8:
        return True
    return dtype.bits == element.bits and dtype.code in (DTypeCode.INT, DTypeCode.UINT, element.code)


class Lazily(Mapping[str, Kernel]):
    """Kernels that are made when they are asked for, so that one which cannot be launched is in nobody's way. One alone
    is made at once.

    Args:
        names: of all there are.
        make: makes the one of that name, or raises KernelError.
    """

    def __init__(self, names: Sequence[str], make: Callable[[str], Kernel]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make
        self._made: dict[str, Kernel] = {}
        if len(self._names) == 1:
            self[names[0]]

    def __getitem__(self, name: str) -> Kernel:
        kernel = self._made.get(name)
        if kernel is None:
            if name not in self._names:
                raise KeyError(name)
            kernel = self._made[name] = self._make(name)
        return kernel

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _integer(dtype: DataType, wraps: bool) -> Callable[[Any], int]:
    signed = dtype.code == DTypeCode.INT
    low, high = (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1) if signed else (0, (1 << dtype.bits) - 1)
    mask = high
    if wraps:
        low = -(1 << dtype.bits - 1)

    def convert(value: Any) -> int:
        kind = type(value)
        if kind is not int and kind is not bool:
            raise TypeError(f"must be an int, not {_describe(value)}")
        if not low <= value <= high:
            # int64 is all that the wire has: the upper half of uint64 arrives as negative numbers
            if signed or dtype.bits != 64 or value < -(1 << 63):
                raise OverflowError(f"must be from {low} to {high}, not {value}")
            return int(value) + (1 << 64)
        return int(value) & mask if wraps else int(value)

    return convert


def _real(dtype: DataType) -> Callable[[Any], float]:
    most = _FLOAT_MAX[dtype.bits]

    def convert(value: Any) -> float:
        kind = type(value)
        if kind is not float and kind is not int and kind is not bool:
            raise TypeError(f"must be a number, not {_describe(value)}")
        number = float(value)
        if abs(number) > most and not math.isinf(number):
            raise OverflowError(f"{value} is too large for it")
        return number

    return convert


def _boolean(value: Any) -> bool:
    if type(value) is not bool and value not in (0, 1):
        raise TypeError(f"must be a bool, not {_describe(value)}")
    return bool(value)


def _describe(value: Any) -> str:
    return f"the {type(value).__name__} {value!r}" if isinstance(value, int | float | str) else type(value).__name__


class KernelModule:
    """What a file of kernels is to a session: functions that launch.

    Args:
        name: the file's.
        backend: that loaded it.
        kernels: its kernels, by name.
        locate: says where a tensor lies, as functions are given it; None for what is no tensor.
        check: told the number of the device of a launch; raises where it may not be used.
        dev_id: of the device on which a kernel without tensors runs.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        kernels: Mapping[str, Kernel],
        locate: Callable[[Any], Location | None],
        check: Callable[[int], None] | None = None,
        dev_id: int = 0,
    ) -> None:
        self._check = check
        self._dev_id = dev_id
        self._name = name
        self._backend = backend
        self._kernels = kernels
        self._locate = locate
        self._functions: dict[str, KernelFunction] = {}

    def get_function(self, name: str, query_imports: bool = True) -> "KernelFunction":
        """The function that launches a kernel.

        Raises:
            FunctionNotFoundError: there is none of that name.
            KernelError: it cannot be launched.
        """
        kernel = self._kernels.get(name)
        if kernel is None:
            known = ", ".join(self._kernels)
            raise FunctionNotFoundError(f"{self._name} has no kernel {name!r}; it has {known}", function=name)
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = KernelFunction(
                self._backend, kernel, self._locate, self._check, self._dev_id
            )
        return function

    def import_module(self, other: Any) -> None:
        """Not for kernels."""
        raise KernelError(f"{self._name} holds kernels: it cannot import other modules")

    def __repr__(self) -> str:
        return f"<{self._backend.kind} kernels {self._name}: {', '.join(self._kernels)}>"


class KernelFunction:
    """Launches a kernel: its arguments, then the six of :data:`LAUNCH_ARGUMENTS`. It does not wait.

    Raises:
        KernelError: the arguments do not fit; nothing was launched.
    """

    def __init__(
        self,
        backend: Backend,
        kernel: Kernel,
        locate: Callable[[Any], Location | None],
        check: Callable[[int], None] | None = None,
        dev_id: int = 0,
    ) -> None:
        self._check = check
        self._dev_id = dev_id
        self._backend = backend
        self._dev_type = DEVICE_TYPES[backend.kind]
        self._kernel = kernel
        self._locate = locate
        self._converters: list[Callable[[Any], Any] | None] = []
        for param in kernel.params:
            if param.dtype is None:
                self._converters.append(None)
            elif param.dtype.code == DTypeCode.FLOAT:
                self._converters.append(_real(param.dtype))
            elif param.dtype.code == DTypeCode.BOOL:
                self._converters.append(_boolean)
            else:
                self._converters.append(_integer(param.dtype, param.wraps))
        self._count = len(self._converters) + LAUNCH_ARGUMENTS

    @property
    def __name__(self) -> str:
        return self._kernel.name

    def __call__(self, *args: Any) -> None:
        self.ready(args)()

    def ready(self, args: Sequence[Any], on: tuple[int, int] | None = None) -> Callable[[], None]:
        """What launches with these arguments, as often as it is called and as long as their tensors live.

        ``on``: the kind and number of the device that it has to be.
        """
        if len(args) != self._count:
            raise self._miscounted(len(args))
        values: list[Any] = []
        dev_id = -1
        i = 0
        try:
            for convert in self._converters:
                arg = args[i]
                if convert is not None:
                    values.append(convert(arg))
                else:
                    where = self._locate(arg)
                    if where is None:
                        raise TypeError(f"must be a tensor, not {_describe(arg)}")
                    dev_type, number, address, dtype = where
                    if dev_type != self._dev_type:
                        raise TypeError(f"must be a tensor on {self._backend.kind}, not on another kind of device")
                    if number != dev_id:
                        if dev_id >= 0:
                            raise TypeError("is on another device than the tensors before it")
                        dev_id = number
                    element = self._kernel.params[i].element
                    if element is not None and dtype is not None and not _is_seen_as(element, dtype):
                        raise TypeError(
                            f"must not be a tensor of {dtype}; what its view(shape, dtype) gives is the same bytes as "
                            "another type"
                        )
                    values.append(address)
                i += 1
        except (TypeError, OverflowError) as error:
            param = self._kernel.params[i]
            raise KernelError(
                f"{self._kernel.name}: argument {i} ({param}) {error}", kernel=self._kernel.name
            ) from None
        launch = tuple(args[i:])
        for extent in launch:
            if type(extent) is not int:
                raise KernelError(
                    f"{self._kernel.name}: grid and block are ints, not {_describe(extent)}", kernel=self._kernel.name
                )
        grid, block = launch[:3], launch[3:]
        own = self._kernel.block
        if block == (0, 0, 0):
            if own is None:
                raise KernelError(
                    f"{self._kernel.name} does not say how many threads a block has: give block=(x, y, z)",
                    kernel=self._kernel.name,
                )
            block = own
        elif own is not None and block != own:
            raise KernelError(
                f"{self._kernel.name} is made for blocks of {own} threads, not {block}", kernel=self._kernel.name
            )
        if min(grid) < 1 or min(block) < 1:
            raise KernelError(
                f"{self._kernel.name}: a grid of {grid} blocks of {block} threads has nothing to run",
                kernel=self._kernel.name,
            )
        number = dev_id if dev_id >= 0 else self._dev_id
        if self._check is not None:
            self._check(number)
        if on is not None and on != (self._dev_type, number):
            raise KernelError(
                f"{self._kernel.name} runs on {self._backend.kind}({number}), not on the device that is timed",
                kernel=self._kernel.name,
            )
        kernel = self._kernel

        def ready() -> None:
            kernel.launch(number, values.copy(), grid, block)

        return ready

    def _miscounted(self, count: int) -> KernelError:
        own = len(self._converters)
        params = ", ".join(str(param) for param in self._kernel.params)
        if count == own:
            text = "and a launch: grid=(x, y, z), block=(x, y, z), or six ints behind the arguments"
        else:
            text = f"and the launch's six ints; it was given {count - LAUNCH_ARGUMENTS} and six"
            if count < LAUNCH_ARGUMENTS:
                text = f"and the launch's six ints; it was given {count} in all"
        return KernelError(f"{self._kernel.name} takes {own} arguments ({params}) {text}", kernel=self._kernel.name)


def check_launch(
    name: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    most_blocks: Sequence[int],
    most_threads: Sequence[int],
    most_in_block: int,
) -> None:
    """Raise KernelError where a launch is larger than the device allows."""
    for i, axis in enumerate("xyz"):
        if grid[i] > most_blocks[i]:
            raise KernelError(
                f"{name}: a grid has at most {most_blocks[i]} blocks in {axis}, not {grid[i]}", kernel=name
            )
        if block[i] > most_threads[i]:
            raise KernelError(
                f"{name}: a block has at most {most_threads[i]} threads in {axis}, not {block[i]}", kernel=name
            )
    threads = block[0] * block[1] * block[2]
    if threads > most_in_block:
        raise KernelError(f"{name}: a block has at most {most_in_block} threads here, not {threads}", kernel=name)
