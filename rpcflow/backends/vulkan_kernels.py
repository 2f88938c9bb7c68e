# SPDX-License-Identifier: Apache-2.0
"""Kernels of a SPIR-V module on Vulkan devices."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import attrs

from rpcflow.protocol.dtype import DTypeCode

from .base import KernelError, KernelSource
from .kernels import Param, check_launch, parse_params, scalar
from .spirv import EntryPoint, Module, parse
from .vulkan_memory import Resource, VulkanDevice
from .vulkan_modules import check_module, validate

if TYPE_CHECKING:
    from .vulkan import VulkanBackend

_COMPUTE: Final = 1  # VK_PIPELINE_BIND_POINT_COMPUTE
_STAGE: Final = 0x20
_STORAGE_BUFFER: Final = 7
_SETS_IN_POOL: Final = 16
_CODES: Final = {
    (DTypeCode.INT, 8): "b",
    (DTypeCode.UINT, 8): "B",
    (DTypeCode.INT, 16): "h",
    (DTypeCode.UINT, 16): "H",
    (DTypeCode.INT, 32): "i",
    (DTypeCode.UINT, 32): "I",
    (DTypeCode.INT, 64): "q",
    (DTypeCode.UINT, 64): "Q",
    (DTypeCode.FLOAT, 16): "e",
    (DTypeCode.FLOAT, 32): "f",
    (DTypeCode.FLOAT, 64): "d",
}
_BOOL_BITS: Final = 32


def load(backend: VulkanBackend, source: KernelSource) -> dict[str, VulkanKernel]:
    """The kernels of a module, by name.

    Raises:
        KernelError: it is no module, or one that the device cannot run.
    """
    device: VulkanDevice = backend.device(source.dev_id)
    if source.options:
        raise KernelError(f"{source.name} is compiled already: it takes no options")
    module = parse(source.name, source.data)
    check_module(source.name, module, device.physical)
    validate(source, module, device.physical)
    made = {point.name: VulkanKernel(backend, source, point, module) for point in module.entry_points}
    if list(made) == ["main"]:
        made.setdefault(_stem(source.name), made["main"])
    return made


def _stem(file: str) -> str:
    return file.rpartition(".")[0] or file


class Pipeline(Resource):
    """A kernel on one device. ``free_sets``: descriptors that no work uses."""

    __slots__ = (
        "_device",
        "_made",
        "free_sets",
        "handle",
        "infos",
        "layout",
        "push",
        "push_view",
        "set_count",
        "set_layouts",
        "writes",
    )

    def __init__(self, device: VulkanDevice, source: KernelSource, point: EntryPoint, push_nbytes: int) -> None:
        super().__init__(self._undo)
        self._device = device
        self._made: list[tuple[Any, Any]] = []
        self.free_sets: list[Any] = []
        self.set_count = max((buffer.set + 1 for buffer in point.buffers), default=0)
        try:
            self._make(source, point, push_nbytes)
        except BaseException:
            self._undo()
            raise
        ffi = device.ffi
        self.push = ffi.new("char[]", max(push_nbytes, 1))
        self.push_view = ffi.buffer(self.push)
        self.infos = ffi.new("VkDescriptorBufferInfo[]", max(len(point.buffers), 1))
        self.writes = ffi.new("VkWriteDescriptorSet[]", max(len(point.buffers), 1))
        for i, buffer in enumerate(point.buffers):
            write = self.writes[i]
            write.sType = device.api.vk.VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET
            write.dstBinding = buffer.binding
            write.descriptorCount = 1
            write.descriptorType = _STORAGE_BUFFER
            write.pBufferInfo = self.infos + i
        device.keep(self)

    def _undo(self) -> None:
        while self._made:
            destroy, handle = self._made.pop()
            destroy(self._device.handle, handle, self._device.ffi.NULL)

    def _new(self, kind: str, create: Any) -> Any:
        """A new object of the driver's."""
        ffi, lib, device = self._device.ffi, self._device.lib, self._device
        made = ffi.new(f"Vk{kind} *")
        device.check(getattr(lib, f"vkCreate{kind}")(device.handle, create, ffi.NULL, made), f"no {kind} can be had")
        self._made.append((getattr(lib, f"vkDestroy{kind}"), made[0]))
        return made[0]

    def _make(self, source: KernelSource, point: EntryPoint, push_nbytes: int) -> None:
        ffi, struct_ = self._device.ffi, self._device.api.struct
        layouts = []
        for number in range(self.set_count):
            within = [buffer.binding for buffer in point.buffers if buffer.set == number]
            bindings = ffi.new("VkDescriptorSetLayoutBinding[]", max(len(within), 1))
            for i, binding in enumerate(within):
                bindings[i].binding = binding
                bindings[i].descriptorType = _STORAGE_BUFFER
                bindings[i].descriptorCount = 1
                bindings[i].stageFlags = _STAGE
            create = struct_("VkDescriptorSetLayoutCreateInfo", bindingCount=len(within), pBindings=bindings)
            layouts.append(self._new("DescriptorSetLayout", create))
        self.set_layouts = ffi.new("VkDescriptorSetLayout[]", [*layouts] * _SETS_IN_POOL or 1)
        ranges = ffi.new("VkPushConstantRange *", {"stageFlags": _STAGE, "size": push_nbytes})
        create = struct_(
            "VkPipelineLayoutCreateInfo",
            setLayoutCount=self.set_count,
            pSetLayouts=self.set_layouts,
            pushConstantRangeCount=int(push_nbytes > 0),
            pPushConstantRanges=ranges,
        )
        self.layout = self._new("PipelineLayout", create)
        self.handle = self._compile(source, point)

    def _compile(self, source: KernelSource, point: EntryPoint) -> Any:
        device, ffi, lib, struct_ = self._device, self._device.ffi, self._device.lib, self._device.api.struct
        code = ffi.new("uint32_t[]", len(source.data) // 4)
        ffi.memmove(code, source.data, len(source.data))
        about = struct_("VkShaderModuleCreateInfo", codeSize=len(source.data), pCode=code)
        module, made = ffi.new("VkShaderModule *"), ffi.new("VkPipeline *")
        name = ffi.new("char[]", point.name.encode())
        result = lib.vkCreateShaderModule(device.handle, about, ffi.NULL, module)
        if result >= 0:
            stage = struct_("VkPipelineShaderStageCreateInfo", stage=_STAGE, module=module[0], pName=name)
            create = struct_("VkComputePipelineCreateInfo", stage=stage[0], layout=self.layout)
            result = lib.vkCreateComputePipelines(device.handle, ffi.NULL, 1, create, ffi.NULL, made)
            lib.vkDestroyShaderModule(device.handle, module[0], ffi.NULL)
        if made[0] != ffi.NULL:
            self._made.append((lib.vkDestroyPipeline, made[0]))
        if result < 0 or made[0] == ffi.NULL:
            raise KernelError(
                f"{source.name}: the driver of {device.physical.name} does not take the kernel {point.name!r} "
                f"(VkResult {result})",
                kernel=point.name,
            )
        return made[0]

    def more_sets(self) -> None:
        """More descriptors, for more launches at a time."""
        device, ffi, count = self._device, self._device.ffi, self.set_count
        struct_ = device.api.struct
        size = ffi.new("VkDescriptorPoolSize *")
        size.type, size.descriptorCount = _STORAGE_BUFFER, len(self.infos) * _SETS_IN_POOL
        create = struct_("VkDescriptorPoolCreateInfo", maxSets=count * _SETS_IN_POOL, poolSizeCount=1, pPoolSizes=size)
        pool = self._new("DescriptorPool", create)
        about = struct_(
            "VkDescriptorSetAllocateInfo",
            descriptorPool=pool,
            descriptorSetCount=count * _SETS_IN_POOL,
            pSetLayouts=self.set_layouts,
        )
        made = ffi.new("VkDescriptorSet[]", count * _SETS_IN_POOL)
        device.check(device.lib.vkAllocateDescriptorSets(device.handle, about, made), "no descriptors can be had")
        for i in range(_SETS_IN_POOL):
            self.free_sets.append(ffi.new("VkDescriptorSet[]", list(made[i * count : (i + 1) * count])))


class VulkanKernel:
    """A kernel of a module; see :class:`rpcflow.backends.base.Kernel`."""

    def __init__(self, backend: VulkanBackend, source: KernelSource, point: EntryPoint, module: Module) -> None:
        self._ready: dict[int, Pipeline] = {}
        self.name = point.name
        self._backend = backend
        self._source = source
        self._point = point
        self._module = module
        self._sets = [buffer.set for buffer in point.buffers]
        self.params: tuple[Param, ...] = self._parameters()
        self.block: tuple[int, int, int] | None = point.block
        self._pack, self._push_nbytes = self._packing()
        device: VulkanDevice = backend.device(source.dev_id)
        self._check(device)
        self._ready[source.dev_id] = self._prepare(device)

    def __del__(self) -> None:
        for pipeline in self._ready.values():
            pipeline._device.drop(pipeline)

    # ---- what it takes

    def _parameters(self) -> tuple[Param, ...]:
        point = self._point
        found = [Param(None, buffer.name, element=buffer.element) for buffer in point.buffers]
        found += [scalar(self.name, constant.dtype, constant.name) for constant in point.push]
        given = self._source.signature.get(self.name)
        if given is None and self.name == "main":
            given = self._source.signature.get(_stem(self._source.name))
        if given is None:
            return tuple(found)
        params = parse_params(self.name, given)
        if len(params) != len(found):
            raise KernelError(
                f"the signature of {self.name!r} has {len(params)} parameters; it takes {len(found)}", kernel=self.name
            )
        for i, (ours, own) in enumerate(zip(params, found, strict=True)):
            if ours.local or (ours.dtype is None) != (own.dtype is None) or _bits(ours) != _bits(own):
                raise KernelError(
                    f"the signature of {self.name!r} has {_type(ours)} for parameter {i}, which is {_type(own)}: "
                    "first come the buffers in order of set and binding, then the push constants in order of offset",
                    kernel=self.name,
                )
        return tuple(attrs.evolve(ours, name=own.name) for ours, own in zip(params, found, strict=True))

    def _packing(self) -> tuple[struct.Struct, int]:
        """How push constants are laid out, and bytes that they take."""
        codes, end = ["<"], 0
        scalars = self.params[len(self._point.buffers) :]
        for constant, param in zip(self._point.push, scalars, strict=True):
            assert param.dtype is not None
            whole = param.dtype.code == DTypeCode.BOOL
            codes.append(f"{constant.offset - end}x")
            codes.append("I" if whole else _CODES[DTypeCode(param.dtype.code), param.dtype.bits])
            end = constant.offset + constant.dtype.bits // 8
            if end > 1 << 16:
                raise KernelError(f"{self.name}: push constants {end} bytes long cannot be", kernel=self.name)
        return struct.Struct("".join(codes)), end + 3 & ~3

    def _check(self, device: VulkanDevice) -> None:
        """Raise KernelError for what a device has not enough of."""
        point, limits = self._point, device.physical.limits
        check_launch(self.name, (1, 1, 1), point.block, (1, 1, 1), device.max_block, device.max_threads)
        sets = max((number + 1 for number in self._sets), default=0)
        for what, wanted, most in (
            ("bytes of push constants", self._push_nbytes, limits.maxPushConstantsSize),
            ("bytes of memory that a block shares", point.shared_nbytes, limits.maxComputeSharedMemorySize),
            ("sets of descriptors", sets, limits.maxBoundDescriptorSets),
            ("buffers", len(point.buffers), limits.maxPerStageDescriptorStorageBuffers),
        ):
            if wanted > most:
                raise KernelError(
                    f"{self._source.name}: the kernel {self.name!r} takes {wanted} {what}; {device.physical.name} "
                    f"allows {most}",
                    kernel=self.name,
                )

    def _prepare(self, device: VulkanDevice) -> Pipeline:
        return Pipeline(device, self._source, self._point, self._push_nbytes)

    # ---- launching

    def launch(self, dev_id: int, args: list[Any], grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        backend = self._backend
        device: VulkanDevice = backend.device(dev_id)
        pipeline = self._ready.get(dev_id)
        if pipeline is None:
            check_module(self._source.name, self._module, device.physical)
            self._check(device)
            pipeline = self._ready[dev_id] = self._prepare(device)
        most = device.max_groups
        if grid[0] > most[0] or grid[1] > most[1] or grid[2] > most[2]:
            check_launch(self.name, grid, block, most, device.max_block, device.max_threads)
        lib, null, infos, count = device.lib, device.ffi.NULL, pipeline.infos, len(self._sets)
        buffers = []
        for i in range(count):
            buffer, offset = self._buffer(device, args[i], i)
            info = infos[i]
            info.buffer = buffer.handle
            info.offset = offset
            info.range = buffer.nbytes - offset
            buffers.append(buffer)
        self._pack.pack_into(pipeline.push_view, 0, *args[count:])
        stream = backend.streams.get(dev_id, 0)
        if count and not pipeline.free_sets:
            stream.poll()
            if not pipeline.free_sets:
                pipeline.more_sets()
        slot = stream.begin()
        command = slot.command
        lib.vkCmdBindPipeline(command, _COMPUTE, pipeline.handle)
        if count:
            slot.sets, slot.used = pipeline.free_sets, pipeline.free_sets.pop()
            used, writes = slot.used, pipeline.writes
            for i, number in enumerate(self._sets):
                writes[i].dstSet = used[number]
            lib.vkUpdateDescriptorSets(device.handle, count, writes, 0, null)
            lib.vkCmdBindDescriptorSets(command, _COMPUTE, pipeline.layout, 0, pipeline.set_count, used, 0, null)
        if self._push_nbytes:
            lib.vkCmdPushConstants(command, pipeline.layout, _STAGE, 0, self._push_nbytes, pipeline.push)
        lib.vkCmdDispatch(command, *grid)
        number = stream.submit(slot)
        pipeline.uses[stream] = number
        for buffer in buffers:
            buffer.uses[stream] = number

    def _buffer(self, device: VulkanDevice, address: int, i: int) -> tuple[Any, int]:
        block, offset = self._backend.space.find(address)
        buffer = block.raw
        if offset:
            if offset % device.alignment:
                raise KernelError(
                    f"{self.name}: argument {i} begins {offset} bytes into its memory; the device wants views to begin "
                    f"at multiples of {device.alignment} bytes",
                    kernel=self.name,
                )
            if offset == block.nbytes:
                raise KernelError(f"{self.name}: argument {i} is a view of no bytes at the end of its memory")
        if buffer.nbytes - offset > device.max_range:
            raise KernelError(
                f"{self.name}: argument {i} is in a memory that goes on for {buffer.nbytes - offset} bytes; kernels of "
                f"{device.physical.name} see {device.max_range} at most",
                kernel=self.name,
            )
        return buffer, offset


def _bits(param: Param) -> int:
    if param.dtype is None:
        return 0
    return _BOOL_BITS if param.dtype.code == DTypeCode.BOOL else param.dtype.bits


def _type(param: Param) -> str:
    """What a parameter is, without its name."""
    return str(Param(param.dtype, local=param.local))
