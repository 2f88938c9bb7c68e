# SPDX-License-Identifier: Apache-2.0
"""Whether a device can run a SPIR-V module. Drivers trust what they are given, so it is found out before."""

import shutil
import subprocess
from collections.abc import Mapping
from typing import Final

from .base import KernelError, KernelSource
from .spirv import Module
from .vulkan_api import Physical

_VERSIONS: Final = {(1, 0): (1, 0), (1, 1): (1, 3), (1, 2): (1, 5), (1, 3): (1, 6)}
"""The newest SPIR-V that each Vulkan takes."""
_CAPABILITIES: Final[Mapping[int, tuple[str, str]]] = {
    0: ("Matrix", ""),
    1: ("Shader", ""),
    9: ("Float16", "shaderFloat16"),
    10: ("Float64", "shaderFloat64"),
    11: ("Int64", "shaderInt64"),
    12: ("Int64Atomics", "shaderBufferInt64Atomics"),
    22: ("Int16", "shaderInt16"),
    39: ("Int8", "shaderInt8"),
    4433: ("StorageBuffer16BitAccess", "storageBuffer16BitAccess"),
    4434: ("UniformAndStorageBuffer16BitAccess", "uniformAndStorageBuffer16BitAccess"),
    4435: ("StoragePushConstant16", "storagePushConstant16"),
    4437: ("DeviceGroup", ""),
    4441: ("VariablePointersStorageBuffer", "variablePointersStorageBuffer"),
    4442: ("VariablePointers", "variablePointers"),
    4448: ("StorageBuffer8BitAccess", "storageBuffer8BitAccess"),
    4449: ("UniformAndStorageBuffer8BitAccess", "uniformAndStorageBuffer8BitAccess"),
    4450: ("StoragePushConstant8", "storagePushConstant8"),
    5345: ("VulkanMemoryModel", "vulkanMemoryModel"),
    5346: ("VulkanMemoryModelDeviceScope", "vulkanMemoryModelDeviceScope"),
    6016: ("DotProductInputAll", "shaderIntegerDotProduct"),
    6017: ("DotProductInput4x8Bit", "shaderIntegerDotProduct"),
    6018: ("DotProductInput4x8BitPacked", "shaderIntegerDotProduct"),
    6019: ("DotProduct", "shaderIntegerDotProduct"),
}
"""By number: a capability's name, and the feature that a device needs for it. The table in Vulkan's specification,
appendix A, as far as kernels may have use for it."""
_SUBGROUPS: Final = {61: 0x1, 62: 0x2, 63: 0x4, 64: 0x8, 65: 0x10, 66: 0x20, 67: 0x40, 68: 0x80}
"""Likewise those of threads that go in step (GroupNonUniform and its kin), and the bit of the operation."""
_ENVIRONMENTS: Final = {(1, 6): "vulkan1.3", (1, 5): "vulkan1.2", (1, 4): "vulkan1.1spv1.4"}
_VALIDATION_S: Final = 30


def check_module(file: str, module: Module, physical: Physical) -> None:
    """Raise KernelError where a device is not made for a module: drivers do not always look."""
    newest = _VERSIONS[min(physical.api, (1, 3))]
    if module.version > newest:
        raise KernelError(
            f"{file} is SPIR-V {_dotted(module.version)}; {physical.name} speaks Vulkan {_dotted(physical.api)} and "
            f"takes {_dotted(newest)} at most: compile it for that"
        )
    for number in sorted(module.capabilities):
        if number in _SUBGROUPS:
            if physical.subgroup[1] & _SUBGROUPS[number]:
                continue
            name = f"number {number} (of subgroups)"
        elif number in _CAPABILITIES:
            name, feature = _CAPABILITIES[number]
            if not feature or feature in physical.features:
                continue
        else:
            name = f"number {number}"
        raise KernelError(f"{file} needs the capability {name}, which {physical.name} does not have here")


def validate(source: KernelSource, module: Module, physical: Physical) -> None:
    """Raise KernelError for what Khronos' validator finds wrong, where that is installed: drivers trust a module, and
    crash."""
    program = shutil.which("spirv-val")
    if program is None:
        return
    environment = _ENVIRONMENTS.get(module.version, "vulkan1.1")
    options = ["--target-env", environment]
    if "scalarBlockLayout" in physical.features:
        options.append("--scalar-block-layout")
    if "maintenance4" in physical.features:
        options.append("--allow-localsizeid")
    try:
        done = subprocess.run(
            [program, *options, "-"], input=source.data, capture_output=True, timeout=_VALIDATION_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return  # it is a help where it works; a sandbox may not let it
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode > 0 and said.startswith("error: line"):
        raise KernelError(f"{source.name} is no valid SPIR-V: {said.removeprefix('error: ')}")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
