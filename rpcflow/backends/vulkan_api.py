# SPDX-License-Identifier: Apache-2.0
"""Vulkan itself: the binding, an instance, and what its devices say of themselves.

The binding's plain cffi functions are used, not its wrappers, which look at each argument: a tenth of the time.
"""

from collections.abc import Sequence
from typing import Any, Final

import attrs

from .base import BackendError

INSTALL: Final = "pip install 'rpcflow[vulkan]'"
_DRIVER: Final = (
    "install your device's driver, or for the processor itself Mesa's lavapipe "
    "(Debian: apt-get install libvulkan1 mesa-vulkan-drivers)"
)
_LEAST: Final = (1, 1)
_MOST: Final = (1, 3)
_ORDER: Final = {2: 0, 1: 1, 3: 2, 0: 3, 4: 4}
"""By VkPhysicalDeviceType: cards, GPUs beside the processor, virtual ones, unknown ones, the processor itself."""
CPU: Final = 4
INTEGRATED: Final = 1
_PORTABILITY: Final = "VK_KHR_portability_enumeration"
_RESULTS: Final = (
    "OUT_OF_HOST_MEMORY",
    "OUT_OF_DEVICE_MEMORY",
    "INITIALIZATION_FAILED",
    "DEVICE_LOST",
    "MEMORY_MAP_FAILED",
    "LAYER_NOT_PRESENT",
    "EXTENSION_NOT_PRESENT",
    "FEATURE_NOT_PRESENT",
    "INCOMPATIBLE_DRIVER",
    "TOO_MANY_OBJECTS",
    "FORMAT_NOT_SUPPORTED",
    "FRAGMENTED_POOL",
    "UNKNOWN",
)
"""Of VkResult, from -1 downwards."""
_NO_MEMORY: Final = (-1, -2, -10, -12, -1000069000)
_FEATURES: Final = {
    "VkPhysicalDeviceFeatures": ("shaderFloat64", "shaderInt64", "shaderInt16"),
    "VkPhysicalDeviceVulkan11Features": (
        "storageBuffer16BitAccess",
        "uniformAndStorageBuffer16BitAccess",
        "storagePushConstant16",
        "variablePointersStorageBuffer",
        "variablePointers",
    ),
    "VkPhysicalDeviceVulkan12Features": (
        "storageBuffer8BitAccess",
        "uniformAndStorageBuffer8BitAccess",
        "storagePushConstant8",
        "shaderBufferInt64Atomics",
        "shaderSharedInt64Atomics",
        "shaderFloat16",
        "shaderInt8",
        "scalarBlockLayout",
        "vulkanMemoryModel",
        "vulkanMemoryModelDeviceScope",
        "shaderSubgroupExtendedTypes",
    ),
    "VkPhysicalDeviceVulkan13Features": (
        "maintenance4",
        "shaderIntegerDotProduct",
        "shaderZeroInitializeWorkgroupMemory",
    ),
}
"""What kernels may make use of, where the device has it."""


@attrs.define(eq=False)
class Physical:
    """A device that can compute.

    ``family``: of its queues, ``queues``: how many there are; ``timestamp_bits``: of its clock, 0 for none;
    ``subgroup``: how many threads go in step, and which operations they have among each other (VkSubgroupFeatureFlags).
    """

    handle: Any
    name: str
    kind: int
    version: int
    driver: str
    properties: Any
    family: int
    queues: int
    timestamp_bits: int
    features: frozenset[str]
    subgroup: tuple[int, int]
    max_nbytes: int
    memory: Any

    @property
    def api(self) -> tuple[int, int]:
        """The version of Vulkan that it speaks."""
        return self.version >> 22 & 0x7F, self.version >> 12 & 0x3FF

    @property
    def limits(self) -> Any:
        """VkPhysicalDeviceLimits, which live as long as ``properties``."""
        return self.properties.limits

    def heap_nbytes(self) -> int:
        """Of its largest memory of its own."""
        heaps = [self.memory.memoryHeaps[i] for i in range(self.memory.memoryHeapCount)]
        return max((heap.size for heap in heaps if heap.flags & 1), default=0)


def failure(result: int, what: str, device: str | None = None) -> Exception:
    """The error to raise for a VkResult."""
    name = f"VK_ERROR_{_RESULTS[-1 - result]}" if -len(_RESULTS) <= result < 0 else f"VkResult {result}"
    if result in _NO_MEMORY:
        return MemoryError(f"{what}: {name}")
    return BackendError(f"{what}: {name}", device=device)


class Api:
    """The binding, and an instance of it.

    Raises:
        BackendError: there is no binding, no loader, no driver or no device: what to install.
    """

    def __init__(self) -> None:
        try:
            import vulkan
        except ImportError as error:
            raise BackendError(f"the package vulkan cannot be imported ({error}): {INSTALL}") from error
        except OSError as error:
            raise BackendError(f"the Vulkan loader cannot be loaded ({error}): {_DRIVER}") from error
        self.vk: Any = vulkan
        self.ffi: Any = vulkan.ffi
        self.lib: Any = vulkan.lib
        self._tags: dict[str, int] = {}
        number = self.ffi.new("uint32_t *")
        try:
            self.check(self.lib.vkEnumerateInstanceVersion(number), "vkEnumerateInstanceVersion")
        except AttributeError as error:
            raise BackendError(f"the Vulkan loader is older than Vulkan 1.1: {_DRIVER}") from error
        self.instance = self._instance(min((number[0] >> 22, number[0] >> 12 & 0x3FF), _MOST))
        try:
            self.devices = self._devices()
        except BaseException:
            self.close()
            raise

    def check(self, result: int, what: str, device: str | None = None) -> None:
        """Raise MemoryError or BackendError for what is no success."""
        if result < 0:
            raise failure(result, what, device)

    def close(self) -> None:
        """Let go of the instance; its devices must have gone before."""
        instance, self.instance = self.instance, None
        if instance is not None:
            self.lib.vkDestroyInstance(instance, self.ffi.NULL)

    def struct(self, kind: str, **fields: Any) -> Any:
        """A new struct of those that say what they are."""
        tag = self._tags.get(kind)
        if tag is None:
            tag = self._tags[kind] = getattr(self.vk, _tag(kind))
        return self.ffi.new(f"{kind} *", {"sType": tag, **fields})

    def extensions(self, handle: Any = None) -> set[str]:
        """Those that the loader, or a device, has to offer."""
        ffi, count = self.ffi, self.ffi.new("uint32_t *")

        def enumerate_into(room: Any) -> None:
            if handle is None:
                result = self.lib.vkEnumerateInstanceExtensionProperties(ffi.NULL, count, room)
            else:
                result = self.lib.vkEnumerateDeviceExtensionProperties(handle, ffi.NULL, count, room)
            self.check(result, "the names of Vulkan's extensions")

        enumerate_into(ffi.NULL)
        room = ffi.new("VkExtensionProperties[]", count[0])
        enumerate_into(room)
        return {ffi.string(room[i].extensionName).decode(errors="replace") for i in range(count[0])}

    def _instance(self, version: tuple[int, int]) -> Any:
        ffi, vk = self.ffi, self.vk
        name = ffi.new("char[]", b"rpcflow")
        about = self.struct(
            "VkApplicationInfo",
            pApplicationName=name,
            pEngineName=name,
            apiVersion=version[0] << 22 | version[1] << 12,
        )
        create = self.struct("VkInstanceCreateInfo", pApplicationInfo=about)
        wanted = [ffi.new("char[]", _PORTABILITY.encode())] if _PORTABILITY in self.extensions() else []
        names = ffi.new("char *[]", wanted)
        if wanted:  # drivers by way of another interface, as macOS has them
            create.flags = vk.VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR
            create.enabledExtensionCount, create.ppEnabledExtensionNames = 1, names
        made = ffi.new("VkInstance *")
        result = self.lib.vkCreateInstance(create, ffi.NULL, made)
        if result < 0:
            raise BackendError(f"no Vulkan driver answers ({failure(result, 'vkCreateInstance')}): {_DRIVER}")
        return made[0]

    def _devices(self) -> Sequence[Physical]:
        ffi, count = self.ffi, self.ffi.new("uint32_t *")
        self.check(self.lib.vkEnumeratePhysicalDevices(self.instance, count, ffi.NULL), "Vulkan's devices")
        handles = ffi.new("VkPhysicalDevice[]", count[0])
        self.check(self.lib.vkEnumeratePhysicalDevices(self.instance, count, handles), "Vulkan's devices")
        found = [device for i in range(count[0]) if (device := self._device(handles[i])) is not None]
        if not found:
            raise BackendError(f"Vulkan finds no device that can compute: {_DRIVER}")
        return sorted(found, key=lambda device: _ORDER.get(device.kind, 3))

    def _device(self, handle: Any) -> Physical | None:
        """A device, or None where it cannot compute or is older than what is needed."""
        ffi = self.ffi
        plain = ffi.new("VkPhysicalDeviceProperties *")
        self.lib.vkGetPhysicalDeviceProperties(handle, plain)
        version = plain.apiVersion
        api = (version >> 22 & 0x7F, version >> 12 & 0x3FF)
        family = self._family(handle)
        if api < _LEAST or family is None:
            return None
        subgroup = self.struct("VkPhysicalDeviceSubgroupProperties")
        longest = self.struct("VkPhysicalDeviceMaintenance3Properties", pNext=subgroup)
        properties = self.struct("VkPhysicalDeviceProperties2", pNext=longest)
        driver = self.struct("VkPhysicalDeviceDriverProperties")
        if api >= (1, 2):
            subgroup.pNext = driver
        self.lib.vkGetPhysicalDeviceProperties2(handle, properties)
        memory = ffi.new("VkPhysicalDeviceMemoryProperties *")
        self.lib.vkGetPhysicalDeviceMemoryProperties(handle, memory)
        said = f"{_text(ffi, driver.driverName)} {_text(ffi, driver.driverInfo)}".strip()
        number, queues, bits = family
        features, _, _ = self.features(handle, api)
        return Physical(
            handle,
            _text(ffi, plain.deviceName),
            plain.deviceType,
            version,
            said or f"{plain.driverVersion >> 22}.{plain.driverVersion >> 12 & 0x3FF}.{plain.driverVersion & 0xFFF}",
            plain,
            number,
            queues,
            bits,
            features,
            (subgroup.subgroupSize, subgroup.supportedOperations),
            longest.maxMemoryAllocationSize,
            memory,
        )

    def _family(self, handle: Any) -> tuple[int, int, int] | None:
        """Of queues, one that can compute: its number, how many queues it has, bits of its clock."""
        count = self.ffi.new("uint32_t *")
        self.lib.vkGetPhysicalDeviceQueueFamilyProperties(handle, count, self.ffi.NULL)
        families = self.ffi.new("VkQueueFamilyProperties[]", count[0])
        self.lib.vkGetPhysicalDeviceQueueFamilyProperties(handle, count, families)
        for i in range(count[0]):
            if families[i].queueFlags & self.vk.VK_QUEUE_COMPUTE_BIT and families[i].queueCount:
                return i, families[i].queueCount, families[i].timestampValidBits
        return None

    def features(self, handle: Any, api: tuple[int, int]) -> tuple[frozenset[str], Any, Sequence[Any]]:
        """What of :data:`_FEATURES` a device has: by name, and as structs to ask for it with, which live as long as
        the third of these."""
        kinds = ["VkPhysicalDevice16BitStorageFeatures"]
        if api >= (1, 2):
            kinds = ["VkPhysicalDeviceVulkan11Features", "VkPhysicalDeviceVulkan12Features"]
        if api >= (1, 3):
            kinds.append("VkPhysicalDeviceVulkan13Features")
        has, asked = [self._chain(kinds) for _ in range(2)]
        self.lib.vkGetPhysicalDeviceFeatures2(handle, has[0])
        names = set()
        for given, ask, kind in zip(has, asked, ["VkPhysicalDeviceFeatures", *kinds], strict=True):
            if kind == "VkPhysicalDeviceFeatures":
                given, ask = given.features, ask.features
            elif kind == "VkPhysicalDevice16BitStorageFeatures":
                kind = "VkPhysicalDeviceVulkan11Features"
            for name in _FEATURES[kind]:
                if getattr(given, name, 0):
                    setattr(ask, name, 1)
                    names.add(name)
        return frozenset(names), asked[0], asked

    def _chain(self, kinds: Sequence[str]) -> list[Any]:
        made: list[Any] = []
        following = self.ffi.NULL
        for kind in reversed(("VkPhysicalDeviceFeatures2", *kinds)):
            following = self.struct(kind, pNext=following)
            made.insert(0, following)
        return made


def _tag(kind: str) -> str:
    """The name of a struct's VkStructureType: its words, with some digits set apart."""
    if kind.startswith("VkPhysicalDeviceVulkan"):
        return f"VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_{kind[23]}_FEATURES"
    if kind == "VkPhysicalDevice16BitStorageFeatures":
        return "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES"
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in kind.removeprefix("Vk"))
    tag = words.upper()
    for name in ("Features2", "Properties2", "Maintenance3"):
        tag = tag.replace(name.upper(), f"{name[:-1].upper()}_{name[-1]}")
    return f"VK_STRUCTURE_TYPE{tag}"


def _text(ffi: Any, chars: Any) -> str:
    return str(ffi.string(chars).decode(errors="replace"))
