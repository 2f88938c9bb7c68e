# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of kinds of devices, as DLPack and TVM have them."""

import enum
from typing import Final

DEVICE_TYPES: Final[dict[str, int]] = {
    "cpu": 1,
    "cuda": 2,
    "cuda_host": 3,
    "opencl": 4,
    "vulkan": 7,
    "metal": 8,
    "vpi": 9,
    "rocm": 10,
    "rocm_host": 11,
    "ext_dev": 12,
    "cuda_managed": 13,
    "oneapi": 14,
    "webgpu": 15,
    "hexagon": 16,
    "maia": 17,
    "trn": 18,
}
_ALIASES: Final = {"llvm": 1, "c": 1, "gpu": 2, "nvptx": 2, "cl": 4, "sdaccel": 4, "hip": 10}
_NAMES: Final = {number: name for name, number in DEVICE_TYPES.items()}


class Attribute(enum.IntEnum):
    """What can be asked about a device; the names are those of TVM's Device."""

    exist = 0
    max_threads_per_block = 1
    warp_size = 2
    max_shared_memory_per_block = 3
    compute_version = 4
    device_name = 5
    max_clock_rate = 6
    multi_processor_count = 7
    max_thread_dimensions = 8
    max_registers_per_block = 9
    gcn_arch = 10
    api_version = 11
    driver_version = 12
    l2_cache_size_bytes = 13
    total_global_memory = 14
    available_global_memory = 15
    image_pitch_alignment = 16


def device_type(kind: str | int) -> int:
    """The number of a kind of device, from its name (``"cuda"``, also ``"cl"`` and the like) or number.

    Raises:
        ValueError: no such kind.
    """
    if isinstance(kind, int) and not isinstance(kind, bool):
        return int(kind)
    if isinstance(kind, str):
        name = kind.split()[0] if kind.split() else kind
        number = DEVICE_TYPES.get(name) or _ALIASES.get(name)
        if number is not None:
            return number
    raise ValueError(f"{kind!r} is not a kind of device; known are: {', '.join(DEVICE_TYPES)}")


def device_name(dev_type: int) -> str:
    """The name of a kind of device."""
    return _NAMES.get(dev_type, f"device type {dev_type}")
