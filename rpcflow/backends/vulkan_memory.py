# SPDX-License-Identifier: Apache-2.0
"""A Vulkan device in use: its queues, its memory, and what has been made on it.

What launched work may still use is destroyed when that is done. Python may collect objects in any thread at any time,
also while a driver is waited for; so what is collected while in use is only put aside, and destroyed on the way when
the backend has its turn.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from .base import BackendError
from .staging import PIECE_NBYTES
from .vulkan_api import CPU, INTEGRATED, Api, Physical

_DEVICE_LOCAL, _VISIBLE, _COHERENT, _CACHED = 1, 2, 4, 8
_MAX_QUEUES: Final = 4
_USAGE: Final = 0x1 | 0x2 | 0x20  # copied from, copied to, a storage buffer
_PORTABILITY: Final = "VK_KHR_portability_subset"


class Progress(Protocol):
    """A stream, as far as this goes."""

    done: int
    """How many of its submissions are known to be done."""

    def wait(self) -> None:
        """Until all are."""


class Resource:
    """Something that launched work may use.

    ``uses``: by stream, the last submission that does; ``destroy``: called once, after them.
    """

    __slots__ = ("destroy", "uses")

    def __init__(self, destroy: Callable[[], None]) -> None:
        self.uses: dict[Progress, int] = {}
        self.destroy = destroy

    def busy(self) -> bool:
        """Whether it may still be used."""
        return any(stream.done < last for stream, last in list(self.uses.items()))


class Buffer(Resource):
    """A block of memory. ``pointer``: where the host sees it, None where it does not; ``readable``: and fast."""

    __slots__ = ("handle", "memory", "nbytes", "pointer", "readable")

    handle: Any
    memory: Any
    nbytes: int
    pointer: Any
    readable: bool


class VulkanDevice:
    """A device in use.

    Args:
        dev_id: its number.
        api: the instance.
        physical: of its devices.
        direct: whether the host shall write to its memory itself where it can.
    """

    def __init__(self, dev_id: int, api: Api, physical: Physical, direct: bool) -> None:
        self.dev_id = dev_id
        self.name = f"vulkan({dev_id})"
        self.api = api
        self.physical = physical
        self.ffi, self.lib = api.ffi, api.lib
        limits = physical.limits
        self.max_groups = tuple(limits.maxComputeWorkGroupCount)
        self.max_block = tuple(limits.maxComputeWorkGroupSize)
        self.max_threads = int(limits.maxComputeWorkGroupInvocations)
        self.max_range = int(limits.maxStorageBufferRange)
        self.alignment = max(int(limits.minStorageBufferOffsetAlignment), 1)
        self.closed = False
        self.streams: set[Progress] = set()
        self._alive: set[Resource] = set()
        self._dropped: deque[Resource] = deque()
        self._staging: Buffer | None = None
        self._streams = 0
        self.handle, self._queues = self._create()
        self._wanted = self._kinds(direct)

    def _create(self) -> tuple[Any, list[Any]]:
        ffi, lib, api, physical = self.ffi, self.lib, self.api, self.physical
        count = min(physical.queues, _MAX_QUEUES)
        priorities = ffi.new("float[]", [1.0] * count)
        queues = api.struct(
            "VkDeviceQueueCreateInfo", queueFamilyIndex=physical.family, queueCount=count, pQueuePriorities=priorities
        )
        _, features, kept = api.features(physical.handle, physical.api)
        create = api.struct("VkDeviceCreateInfo", pNext=features, queueCreateInfoCount=1, pQueueCreateInfos=queues)
        name = ffi.new("char[]", _PORTABILITY.encode())
        names = ffi.new("char *[]", [name])
        if _PORTABILITY in api.extensions(physical.handle):  # a device that has it wants it asked for
            create.enabledExtensionCount, create.ppEnabledExtensionNames = 1, names
        made = ffi.new("VkDevice *")
        self.check(lib.vkCreateDevice(physical.handle, create, ffi.NULL, made), "it cannot be used")
        del kept
        found = []
        for i in range(count):
            queue = ffi.new("VkQueue *")
            lib.vkGetDeviceQueue(made[0], physical.family, i, queue)
            found.append(queue[0])
        return made[0], found

    def check(self, result: int, what: str) -> None:
        """Raise MemoryError or BackendError for what is no success."""
        if result < 0:
            self.api.check(result, f"{self.name}: {what}", self.name)

    @property
    def several_queues(self) -> bool:
        """Whether streams may be in different ones."""
        return len(self._queues) > 1

    def queue(self) -> Any:
        """The queue for the next stream: streams take turns at them."""
        self._streams += 1
        return self._queues[(self._streams - 1) % len(self._queues)]

    # ---- what has been made

    def keep(self, resource: Resource) -> None:
        """It goes with the device, if not before."""
        self._alive.add(resource)

    def drop(self, resource: Resource) -> None:
        """It is not needed any more, by others than launched work; may be called from any thread, at any time."""
        if self.closed:
            return
        if resource.busy():
            self._dropped.append(resource)
        else:
            self._destroy(resource)

    def sweep(self) -> None:
        """Destroy what was dropped and is not used any more."""
        for _ in range(len(self._dropped)):
            self.drop(self._dropped.popleft())

    def forget(self, stream: Progress) -> None:
        """The stream has done all it was given, and goes."""
        self.streams.discard(stream)
        for resource in list(self._alive):
            resource.uses.pop(stream, None)

    def _destroy(self, resource: Resource) -> None:
        try:
            self._alive.remove(resource)
        except KeyError:
            return  # another thread has
        resource.destroy()

    def close(self) -> None:
        """Wait for the device, and destroy everything on it."""
        if self.closed:
            return
        self.lib.vkDeviceWaitIdle(self.handle)  # a device that is lost has nothing more to do either
        self.closed = True
        for resource in list(self._alive):
            self._destroy(resource)
        self._dropped.clear()
        self.streams.clear()
        self.lib.vkDestroyDevice(self.handle, self.ffi.NULL)

    # ---- memory

    def _kinds(self, direct: bool) -> list[int]:
        """Kinds of memory for blocks, the best first. Devices that share the host's memory let it write there; over
        a bus that is for the device itself to do."""
        if direct and self.physical.kind in (CPU, INTEGRATED):
            shared = _DEVICE_LOCAL | _VISIBLE | _COHERENT
            return [shared | _CACHED, shared, _DEVICE_LOCAL, 0]
        return [_DEVICE_LOCAL, 0]

    def staging(self) -> Buffer:
        """Host memory that the device reaches, of :data:`PIECE_NBYTES`."""
        if self._staging is None:
            visible = _VISIBLE | _COHERENT
            self._staging = self._allocate(PIECE_NBYTES, [visible | _CACHED, visible], True)
        return self._staging

    def allocate(self, nbytes: int) -> Buffer:
        """A block.

        Raises:
            MemoryError: there is no room.
        """
        self.sweep()
        mapped = len(self._wanted) > 2
        try:
            return self._allocate(nbytes, self._wanted, mapped)
        except MemoryError:
            if not self._dropped:
                raise
            for stream in self.streams:  # for what goes with their work
                stream.wait()
            self.sweep()
            return self._allocate(nbytes, self._wanted, mapped)

    def _allocate(self, nbytes: int, kinds: list[int], mapped: bool) -> Buffer:
        ffi, lib, device = self.ffi, self.lib, self.handle
        what = f"{nbytes} bytes of memory cannot be had"
        made = ffi.new("VkBuffer *")
        create = self.api.struct("VkBufferCreateInfo", size=nbytes, usage=_USAGE)
        self.check(lib.vkCreateBuffer(device, create, ffi.NULL, made), what)
        handle, memory = made[0], ffi.NULL
        try:
            needs = ffi.new("VkMemoryRequirements *")
            lib.vkGetBufferMemoryRequirements(device, handle, needs)
            number, flags = self._kind(needs.memoryTypeBits, kinds)
            about = self.api.struct("VkMemoryAllocateInfo", allocationSize=needs.size, memoryTypeIndex=number)
            given = ffi.new("VkDeviceMemory *")
            self.check(lib.vkAllocateMemory(device, about, ffi.NULL, given), what)
            memory = given[0]
            self.check(lib.vkBindBufferMemory(device, handle, memory, 0), what)
            pointer = None
            if mapped and flags & (_VISIBLE | _COHERENT) == _VISIBLE | _COHERENT:
                where = ffi.new("void **")
                self.check(lib.vkMapMemory(device, memory, 0, needs.size, 0, where), what)
                pointer = ffi.cast("char *", where[0])
        except BaseException:
            lib.vkDestroyBuffer(device, handle, ffi.NULL)
            lib.vkFreeMemory(device, memory, ffi.NULL)
            raise

        def destroy() -> None:
            lib.vkDestroyBuffer(device, handle, ffi.NULL)
            lib.vkFreeMemory(device, memory, ffi.NULL)

        buffer = Buffer(destroy)
        buffer.handle, buffer.memory, buffer.nbytes = handle, memory, nbytes
        buffer.pointer, buffer.readable = pointer, bool(flags & _CACHED)
        self.keep(buffer)
        return buffer

    def _kind(self, bits: int, kinds: list[int]) -> tuple[int, int]:
        memory = self.physical.memory
        for wanted in kinds:
            for i in range(memory.memoryTypeCount):
                flags = memory.memoryTypes[i].propertyFlags
                if bits >> i & 1 and flags & wanted == wanted:
                    return i, flags
        raise BackendError(f"{self.name} has no memory of the kind that is needed", device=self.name)
