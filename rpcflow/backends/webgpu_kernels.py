# SPDX-License-Identifier: Apache-2.0
"""Kernels of WebGPU devices."""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from rpcflow.protocol.dtype import DataType

from .base import KernelError, KernelSource
from .kernels import TENSOR, Param, agreed, check_launch, parse_params, scalar
from .webgpu_memory import Buffer, Device, one_line, words
from .wgsl import EntryPoint, Resource, reflect
from .wgsl_constants import check_nesting

if TYPE_CHECKING:
    from .webgpu import WebGPUBackend

_GRID: Final = "packGridDimX"
"""The scalar by which kernels that TVM wrote learn how many blocks in x there are, less one: a grid too long for a
device is folded into z."""
_MOST_FOLDED: Final = 1 << 31
"""Blocks in x that such a kernel can count, whether with a sign or without."""
_FORMATS: Final = {
    "int32": "i",
    "uint32": "I",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "uint64": "Q",
    "float64": "d",
}
_CONSTANT: Final = re.compile(r"(\w+)\s*=\s*([-+]?[\w.]+(?:[-+]\d+)?)")
_BOUND: Final = 32
"""Lists of tensors for which a kernel's bindings are kept."""
_COMPUTE: Final = "COMPUTE"


def load(backend: "WebGPUBackend", source: KernelSource) -> dict[str, "WebGPUKernel"]:
    """The kernels in a file, ready for the first device."""
    constants = _constants(source)
    program = _Program(backend, source)
    if source.suffix == ".spv":
        entries: Sequence[EntryPoint] = _spirv_entries(source)  # naga may end the process over what is damaged
        program.module(backend.device(source.dev_id))
    else:
        if "\0" in source.text:
            raise KernelError(f"{source.name} is no source: it holds a zero byte")  # where the compiler would stop
        try:
            check_nesting(source.text)
        except KernelError as error:
            raise KernelError(f"{source.name} does not compile: {error}") from None
        program.module(backend.device(source.dev_id))  # what does not compile shall be told in the compiler's words
        try:
            entries = reflect(source.text, constants)
        except KernelError as error:
            raise KernelError(f"{source.name}: {error}", kernel=error.kernel) from error
    if not entries:
        raise KernelError(f"{source.name} holds no kernels")
    return {entry.name: WebGPUKernel(backend, program, entry, constants) for entry in entries}


def _constants(source: KernelSource) -> dict[str, float]:
    """Values for ``override`` declarations, which is what there are options for."""
    found: dict[str, float] = {}
    for option in source.options:
        match = _CONSTANT.fullmatch(option.strip())
        try:
            if match is None:
                raise ValueError
            number = float(match[2])
            if math.isinf(number):
                raise ValueError
            found[match[1]] = int(match[2]) if match[2].lstrip("+-").isdecimal() else number
        except ValueError:
            raise KernelError(
                f"{source.name}: the option {option!r} is not understood; 'NAME=NUMBER' sets what the source declares "
                "as override"
            ) from None
    return found


def _spirv_entries(source: KernelSource) -> list[EntryPoint]:
    from . import spirv  # few need it

    entries = []
    for found in spirv.parse(source.name, source.data).entry_points:
        if found.push:
            raise KernelError(
                f"{source.name}: {found.name!r} takes push constants, of which WebGPU has none: give it WGSL (.wgsl)",
                kernel=found.name,
            )
        # what a kernel only reads is not known
        resources = [Resource(buffer.name, buffer.set, buffer.binding, False, True) for buffer in found.buffers]
        entries.append(EntryPoint(found.name, found.block, tuple(resources)))
    return entries


class _Program:
    """A source, compiled for each device when it is needed."""

    def __init__(self, backend: "WebGPUBackend", source: KernelSource) -> None:
        self.source = source
        self._backend = backend
        self._modules: dict[str, Any] = {}

    def module(self, dev: Device) -> Any:
        """The shader module for a device."""
        module = self._modules.get(dev.name)
        if module is None:
            source = self.source
            code = source.data if source.suffix == ".spv" else source.text
            try:
                module = self._modules[dev.name] = dev.gpu.create_shader_module(code=code)
            except (dev.wgpu.GPUError, ValueError, RuntimeError) as error:
                raise KernelError(f"{source.name} does not compile:\n{words(error)}") from error
        return module


@attrs.define(eq=False)
class _Uniform:
    """A uniform buffer. ``places``: of its scalars among the arguments, -1 for the grid."""

    pack: struct.Struct
    places: tuple[int, ...]
    handle: Any
    contents: bytes = b""


@attrs.frozen
class _Ready:
    """What a device needs for a kernel: pipeline, layouts of its groups, uniforms, bindings made so far."""

    pipeline: Any
    layouts: list[Any]
    uniforms: list[_Uniform]
    bound: dict[tuple[Any, ...], list[Any]]


class WebGPUKernel:
    """A kernel; see :class:`rpcflow.backends.base.Kernel`."""

    def __init__(
        self, backend: "WebGPUBackend", program: _Program, entry: EntryPoint, constants: Mapping[str, float]
    ) -> None:
        self.name = entry.name
        self.block: tuple[int, int, int] | None = entry.block
        self._backend = backend
        self._program = program
        self._constants = dict(constants)
        self._resources = entry.resources
        params: list[Param] = []
        self._tensors: list[int] = []
        self._uniforms: list[tuple[Resource, tuple[int, ...]]] = []
        self._folds = False
        for resource in entry.resources:
            if not resource.uniform:
                self._tensors.append(len(params))
                params.append(attrs.evolve(TENSOR, name=resource.name, element=resource.element))
                continue
            places = []
            for member in resource.scalars:
                if member.name == _GRID and member.dtype in ("int32", "uint32"):
                    self._folds = True
                    places.append(-1)
                else:
                    places.append(len(params))
                    params.append(scalar(self.name, DataType.parse(member.dtype), member.name))
            self._uniforms.append((resource, tuple(places)))
        given = program.source.signature.get(self.name)
        self.params = tuple(params) if given is None else agreed(self.name, parse_params(self.name, given), params)
        first = program.source.dev_id
        self._ready: dict[int, _Ready] = {first: self._prepared(backend.device(first))}

    def _prepared(self, dev: Device) -> _Ready:
        count = max((resource.group for resource in self._resources), default=-1) + 1
        entries: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        for resource in self._resources:
            kind = "uniform" if resource.uniform else "storage" if resource.writable else "read-only-storage"
            entries[resource.group].append(
                {"binding": resource.binding, "visibility": _COMPUTE, "buffer": {"type": kind}}
            )
        gpu = dev.gpu
        stage: dict[str, Any] = {"module": self._program.module(dev), "entry_point": self.name}
        if self._constants:
            stage["constants"] = self._constants
        try:
            layouts = [gpu.create_bind_group_layout(entries=group) for group in entries]
            layout = gpu.create_pipeline_layout(bind_group_layouts=layouts)
            pipeline = gpu.create_compute_pipeline(layout=layout, compute=stage)
            uniforms = [self._uniform(dev, resource, places) for resource, places in self._uniforms]
        except dev.wgpu.GPUError as error:
            raise KernelError(
                f"{self._program.source.name} does not compile: {self.name!r}:\n{words(error)}", kernel=self.name
            ) from error
        return _Ready(pipeline, layouts, uniforms, {})

    def _uniform(self, dev: Device, resource: Resource, places: tuple[int, ...]) -> _Uniform:
        form = "<"
        for member, place in zip(resource.scalars, places, strict=True):
            dtype = str(self.params[place].dtype) if place >= 0 else member.dtype
            form += f"{member.offset - struct.calcsize(form)}x{_FORMATS[dtype]}"
        form += f"{resource.nbytes - struct.calcsize(form)}x"
        handle = dev.gpu.create_buffer(size=resource.nbytes, usage=dev.uniform_usage)
        return _Uniform(struct.Struct(form), places, handle)

    def launch(self, dev_id: int, args: list[Any], grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        backend = self._backend
        dev: Device = backend.device(dev_id)
        ready = self._ready.get(dev_id)
        if ready is None:
            ready = self._ready[dev_id] = self._prepared(dev)
        last = grid[0] - 1
        most = dev.max_blocks
        if self._folds:
            grid = self._folded(grid, most)
        check_launch(self.name, grid, block, (most, most, most), dev.max_threads, dev.max_in_block)
        find = backend.space.find
        key: list[Any] = []
        for i in self._tensors:
            found, offset = find(args[i])
            key += (found.raw, offset)
        known = tuple(key)
        groups = ready.bound.get(known)
        copies: list[tuple[Buffer, int, Any]] = []
        try:
            if groups is None:
                groups, copies = self._bind(dev, ready, known)
            queue = dev.queue
            for uniform in ready.uniforms:
                values = [args[place] if place >= 0 else last for place in uniform.places]
                contents = uniform.pack.pack(*values)
                if contents != uniform.contents:  # it is in the order of the queue: no launch before sees it
                    queue.write_buffer(uniform.handle, 0, contents)
                    uniform.contents = contents
            encoder = dev.gpu.create_command_encoder()
            for buffer, offset, copy in copies:
                encoder.copy_buffer_to_buffer(buffer.handle, offset, copy, 0, copy.size)
            work = encoder.begin_compute_pass()
            work.set_pipeline(ready.pipeline)
            for i, group in enumerate(groups):
                work.set_bind_group(i, group)
            work.dispatch_workgroups(*grid)
            work.end()
            queue.submit([encoder.finish()])
        except dev.wgpu.GPUOutOfMemoryError as error:
            raise MemoryError(f"{self.name}: {one_line(error)}") from error
        except dev.wgpu.GPUError as error:
            raise KernelError(f"{self.name} cannot be launched: {one_line(error)}", kernel=self.name) from error
        finally:
            for _, _, copy in copies:
                copy.destroy()  # once the queue is done with it

    def _folded(self, grid: tuple[int, int, int], most: int) -> tuple[int, int, int]:
        x, y, z = grid
        if z != 1:
            raise KernelError(f"{self.name}: the grid has {z} blocks in z, which it uses for x", kernel=self.name)
        if x <= most:
            return grid
        if x > min(most * most, _MOST_FOLDED):
            raise KernelError(f"{self.name}: a grid of {x} blocks in x is too long even folded", kernel=self.name)
        z = -(-x // most)
        return -(-x // z), y, z

    def _bind(
        self, dev: Device, ready: _Ready, known: tuple[Any, ...]
    ) -> tuple[list[Any], list[tuple[Buffer, int, Any]]]:
        """The bind groups for these buffers and offsets, and what is to be copied before.

        No buffer may be written and be bound another time: where it is only read there, a copy is.
        """
        buffers, offsets = known[::2], known[1::2]
        storage = [resource for resource in self._resources if not resource.uniform]
        for i, (buffer, offset) in enumerate(zip(buffers, offsets, strict=True)):
            self._check(dev, self._tensors[i], buffer, offset)
        written: dict[Buffer, int] = {}
        for i, resource in enumerate(storage):
            if resource.writable and written.setdefault(buffers[i], i) != i:
                other = written[buffers[i]]
                raise KernelError(
                    f"{self.name}: the arguments {self._tensors[other]} ({storage[other].name}) and {self._tensors[i]} "
                    f"({resource.name}) are in the same memory; it may write to both, which WebGPU does not allow",
                    kernel=self.name,
                )
        copies: dict[tuple[Buffer, int], Any] = {}
        entries: list[list[dict[str, Any]]] = [[] for _ in ready.layouts]
        tensors, uniforms = 0, 0
        try:
            for resource in self._resources:
                if resource.uniform:
                    handle, offset, size = ready.uniforms[uniforms].handle, 0, resource.nbytes
                    uniforms += 1
                else:
                    buffer, offset = buffers[tensors], offsets[tensors]
                    tensors += 1
                    handle, size = buffer.handle, buffer.size - offset
                    if not resource.writable and buffer in written:
                        handle = copies.get((buffer, offset))
                        if handle is None:
                            handle = copies[buffer, offset] = dev.between(size)
                        offset = 0
                entries[resource.group].append(
                    {"binding": resource.binding, "resource": {"buffer": handle, "offset": offset, "size": size}}
                )
            groups = [
                dev.gpu.create_bind_group(layout=layout, entries=group)
                for layout, group in zip(ready.layouts, entries, strict=True)
            ]
        except BaseException:
            for handle in copies.values():
                handle.destroy()
            raise
        if not copies:
            if len(ready.bound) >= _BOUND:
                del ready.bound[next(iter(ready.bound))]
            ready.bound[known] = groups
        return groups, [(buffer, offset, handle) for (buffer, offset), handle in copies.items()]

    def _check(self, dev: Device, i: int, buffer: Buffer, offset: int) -> None:
        name = f"{self.name}: argument {i} ({self.params[i].name})"
        if offset % dev.align:
            raise KernelError(
                f"{name} begins {offset} bytes into its memory; the device wants views to begin at multiples of "
                f"{dev.align} bytes",
                kernel=self.name,
            )
        if offset >= buffer.size:
            raise KernelError(f"{name} is a view of no bytes at the end of its memory", kernel=self.name)
        if buffer.size - offset > dev.max_binding:
            raise KernelError(
                f"{name} has {buffer.size - offset} bytes up to the end of its memory; the device lets kernels see "
                f"{dev.max_binding} at once",
                kernel=self.name,
            )
