# SPDX-License-Identifier: Apache-2.0
"""Streams of a Vulkan device: command buffers, each submitted with a fence, and used again when it is done.

A stream stays with one queue, so its work begins in order; a barrier behind each submission lets it end in order too,
and lets the host see what was written. What another queue wrote, and was waited for, takes a barrier in front to see.
"""

from collections import deque
from typing import Any, Final

from .vulkan_memory import Buffer, Resource, VulkanDevice

_IN_FLIGHT: Final = 64
"""Submissions at most; the next one waits for the oldest."""
_WORK: Final = 0x800 | 0x1000  # stages: compute, copies
_HOST: Final = 0x4000
_WRITES: Final = 0x40 | 0x1000  # of shaders, copies
_ACCESSES: Final = 0x20 | 0x40 | 0x800 | 0x1000 | 0x2000  # of shaders and copies, and what the host reads
_BOTTOM: Final = 0x2000
_FOREVER: Final = (1 << 64) - 1


class Slot:
    """A command buffer, with what it takes to submit it. ``sets``: where ``used`` goes when it is done."""

    __slots__ = ("command", "commands", "fence", "sets", "submit", "used")

    def __init__(self, commands: Any, fence: Any, submit: Any) -> None:
        self.command = commands[0]
        self.commands = commands  # which the submission points to
        self.fence = fence
        self.submit = submit
        self.sets: list[Any] | None = None
        self.used: Any = None


class Stream:
    """Work in order.

    Args:
        device: whose it is.
    """

    def __init__(self, device: VulkanDevice) -> None:
        self.device = device
        self.done = 0
        self.submitted = 0
        self._ffi, self._lib = ffi, lib = device.ffi, device.lib
        self._queue = device.queue()
        self._free: list[Slot] = []
        self._pending: deque[Slot] = deque()
        self._count = 0
        self._begin = device.api.struct("VkCommandBufferBeginInfo", flags=1)  # submitted once
        self._barrier = device.api.struct("VkMemoryBarrier", srcAccessMask=_WRITES, dstAccessMask=_ACCESSES)
        self._region = ffi.new("VkBufferCopy *")
        made = ffi.new("VkCommandPool *")
        create = device.api.struct("VkCommandPoolCreateInfo", flags=2, queueFamilyIndex=device.physical.family)
        device.check(lib.vkCreateCommandPool(device.handle, create, ffi.NULL, made), "a stream cannot be made")
        self._pool = pool = made[0]
        self._fences = fences = list[Any]()

        def destroy() -> None:
            for fence in fences:
                lib.vkDestroyFence(device.handle, fence[0], ffi.NULL)
            lib.vkDestroyCommandPool(device.handle, pool, ffi.NULL)

        self._resource = Resource(destroy)
        device.keep(self._resource)
        device.streams.add(self)

    def free(self) -> None:
        """Let go of it; it must have been waited for."""
        self.device.forget(self)
        self.device.drop(self._resource)

    # ---- one submission

    def begin(self) -> Slot:
        """A command buffer to record into; :meth:`submit` comes next, and nothing that can fail in between."""
        if not self._free:
            self.poll()
            if not self._free:
                if self._count < _IN_FLIGHT:
                    self._free.append(self._slot())
                else:
                    self._wait_for(self._pending[0])
                    self.poll()
        slot = self._free.pop()
        result = self._lib.vkBeginCommandBuffer(slot.command, self._begin)
        if result < 0:
            self._free.append(slot)
            self.device.check(result, "nothing can be recorded")
        if self.device.several_queues:
            self._be_seen(slot.command)
        return slot

    def submit(self, slot: Slot) -> int:
        """Hand it over to the device: its number."""
        lib, command = self._lib, slot.command
        self._be_seen(command)
        result = lib.vkEndCommandBuffer(command)
        if result >= 0:
            result = lib.vkQueueSubmit(self._queue, 1, slot.submit, slot.fence[0])
        if result < 0:
            self._give_back(slot)
            self.device.check(result, "it takes no work")
        self._pending.append(slot)
        self.submitted += 1
        return self.submitted

    def _be_seen(self, command: Any) -> None:
        """A barrier: what was written before is seen by what comes behind, and by the host."""
        null = self._ffi.NULL
        self._lib.vkCmdPipelineBarrier(command, _WORK, _WORK | _HOST, 0, 1, self._barrier, 0, null, 0, null)

    def _slot(self) -> Slot:
        ffi, lib, device = self._ffi, self._lib, self.device
        what = "a command buffer cannot be had"
        fence = ffi.new("VkFence *")
        create = device.api.struct("VkFenceCreateInfo")
        device.check(lib.vkCreateFence(device.handle, create, ffi.NULL, fence), what)
        self._fences.append(fence)
        commands = ffi.new("VkCommandBuffer[1]")
        about = device.api.struct("VkCommandBufferAllocateInfo", commandPool=self._pool, commandBufferCount=1)
        device.check(lib.vkAllocateCommandBuffers(device.handle, about, commands), what)
        submit = device.api.struct("VkSubmitInfo", commandBufferCount=1, pCommandBuffers=commands)
        self._count += 1
        return Slot(commands, fence, submit)

    def _give_back(self, slot: Slot) -> None:
        if slot.sets is not None:
            slot.sets.append(slot.used)
            slot.sets = slot.used = None
        self._free.append(slot)

    # ---- how far it is

    def poll(self) -> None:
        """See what is done."""
        device, pending = self.device.handle, self._pending
        status = self._lib.vkGetFenceStatus
        while pending:
            slot = pending[0]
            result = status(device, slot.fence[0])
            if result:
                self.device.check(result, "its work failed")
                break
            self.device.check(self._lib.vkResetFences(device, 1, slot.fence), "a fence cannot be used again")
            self.done += 1
            pending.popleft()
            self._give_back(slot)
        self.device.sweep()

    def wait(self) -> None:
        """Until all is done."""
        if self._pending:
            self._wait_for(self._pending[-1])
            self.poll()

    def _wait_for(self, slot: Slot) -> None:
        result = self._lib.vkWaitForFences(self.device.handle, 1, slot.fence, 1, _FOREVER)
        self.device.check(result, "its work failed")

    # ---- copies

    def copy(self, source: Buffer, source_offset: int, target: Buffer, target_offset: int, nbytes: int) -> None:
        """From buffer to buffer, which may be the same one. Does not wait."""
        lib, region = self._lib, self._region
        between = None
        if source is target and abs(source_offset - target_offset) < nbytes:  # regions must not overlap
            between = self.device.allocate(nbytes)
        region.size = nbytes
        try:
            slot = self.begin()
            if between is not None:
                region.srcOffset, region.dstOffset = source_offset, 0
                lib.vkCmdCopyBuffer(slot.command, source.handle, between.handle, 1, region)
                self._be_seen(slot.command)
                source_offset = 0
            region.srcOffset, region.dstOffset = source_offset, target_offset
            lib.vkCmdCopyBuffer(slot.command, (between or source).handle, target.handle, 1, region)
            number = self.submit(slot)
            source.uses[self] = target.uses[self] = number
            if between is not None:
                between.uses[self] = number
        finally:
            if between is not None:
                self.device.drop(between)


def stamp_timer(stream: Stream) -> "StampTimer":
    """A timer of a stream.

    Raises:
        MemoryError, BackendError: none can be made.
    """
    device = stream.device
    ffi, lib = device.ffi, device.lib
    made = ffi.new("VkQueryPool *")
    create = device.api.struct("VkQueryPoolCreateInfo", queryType=2, queryCount=2)  # of timestamps
    device.check(lib.vkCreateQueryPool(device.handle, create, ffi.NULL, made), "a timer cannot be made")
    pool = made[0]
    resource = Resource(lambda: lib.vkDestroyQueryPool(device.handle, pool, ffi.NULL))
    device.keep(resource)
    return StampTimer(stream, pool, resource)


class StampTimer:
    """By the device's clock, written between commands of a stream."""

    def __init__(self, stream: Stream, pool: Any, resource: Resource) -> None:
        self._stream = stream
        self._device = stream.device
        self._pool = pool
        self._resource = resource
        physical = self._device.physical
        self._mask = (1 << physical.timestamp_bits) - 1
        self._seconds = float(physical.limits.timestampPeriod) * 1e-9
        self._stamps = self._device.ffi.new("uint64_t[2]")

    def __del__(self) -> None:
        self._device.drop(self._resource)

    def start(self) -> None:
        """From here on."""
        slot = self._stream.begin()
        self._device.lib.vkCmdResetQueryPool(slot.command, self._pool, 0, 2)
        self._stamp(slot, 0)

    def stop(self) -> float:
        """Up to here: seconds."""
        device = self._device
        self._stamp(self._stream.begin(), 1)
        self._stream.wait()
        stamps = self._stamps
        result = device.lib.vkGetQueryPoolResults(device.handle, self._pool, 0, 2, 16, stamps, 8, 1)  # of 64 bits
        device.check(result, "its clock cannot be read")
        return ((int(stamps[1]) - int(stamps[0])) & self._mask) * self._seconds

    def _stamp(self, slot: Slot, number: int) -> None:
        self._device.lib.vkCmdWriteTimestamp(slot.command, _BOTTOM, self._pool, number)
        self._resource.uses[self._stream] = self._stream.submit(slot)
