# SPDX-License-Identifier: Apache-2.0
"""The processor that a firmware is built for: which compiler links for it, and which objects run on it."""

import re
import shutil
from typing import Final

import attrs

from rpcflow.server.linking import LinkError

from .elf import Elf

# Tag_CPU_arch of the ARM EABI, profile M: its name for compilers, and the others that run on it as well.
_ARM_M: Final[dict[int, tuple[str, frozenset[int]]]] = {
    11: ("armv6-m", frozenset({11, 12})),
    12: ("armv6s-m", frozenset({11, 12})),
    10: ("armv7-m", frozenset({11, 12, 10})),
    13: ("armv7e-m", frozenset({11, 12, 10, 13})),
    16: ("armv8-m.base", frozenset({11, 12, 16})),
    17: ("armv8-m.main", frozenset({11, 12, 10, 13, 16, 17})),
    21: ("armv8.1-m.main", frozenset({11, 12, 10, 13, 16, 17, 21})),
}
_ARM_COMPILERS: Final = ("arm-none-eabi-gcc",)
_RISCV_COMPILERS: Final = ("riscv64-unknown-elf-gcc", "riscv32-unknown-elf-gcc", "riscv-none-elf-gcc")


@attrs.frozen
class Target:
    """What a firmware runs on.

    Args:
        name: for messages.
        compilers: names to look for.
        package: of Debian, that the first of them is in.
        flags: that make the compiler take the right libraries.
        specs: which C library: the smaller one, where there are two.
        pointer_nbytes: 4 or 8.
    """

    name: str
    compilers: tuple[str, ...]
    package: str
    flags: tuple[str, ...]
    specs: str
    pointer_nbytes: int

    def compiler(self) -> str:
        """Where the compiler is.

        Raises:
            LinkError: there is none; says what to install.
        """
        for name in self.compilers:
            if path := shutil.which(name):
                return path
        raise LinkError(
            f"modules for {self.name} are linked on this machine by {self.compilers[0]}, which is not installed "
            f"(on Debian: apt-get install {self.package})"
        )


def target_of(firmware: Elf) -> Target:
    """What a firmware runs on.

    Raises:
        LinkError: it is no firmware, or of a kind that modules cannot be linked for.
    """
    if firmware.relocatable:
        raise LinkError(f"{firmware.name} is an object, not a firmware: name the file that the linker wrote")
    if firmware.machine not in ("EM_ARM", "EM_RISCV") or not firmware.little:
        raise LinkError(
            f"{firmware.name} is a program for {_processor(firmware)}; modules are loaded into firmware for "
            "little-endian ARM (profile M) and RISC-V"
        )
    if firmware.machine == "EM_RISCV":
        arch = _riscv_arch(firmware).replace("imafd", "g")  # by that name compilers know their libraries
        return Target(
            arch,
            _RISCV_COMPILERS,
            "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
            (f"-march={arch}", f"-mabi={_riscv_abi(firmware)}"),
            "picolibc.specs",
            firmware.bits // 8,
        )
    arch, extension = _arm_arch(firmware), _arm_extension(firmware)
    floats = "hard" if _hard_abi(firmware) else "softfp" if extension else "soft"
    return Target(
        arch,
        _ARM_COMPILERS,
        "gcc-arm-none-eabi libnewlib-arm-none-eabi",
        ("-mthumb", f"-march={arch}{extension}", f"-mfloat-abi={floats}"),
        "nano.specs",
        4,
    )


def check_object(firmware: Elf, given: Elf) -> None:
    """Make sure that an object runs where a firmware runs.

    Raises:
        LinkError: it does not; says what to compile for.
    """
    if not given.relocatable:
        raise LinkError(f"{given.name} is linked already; objects (.o) and archives of objects (.tar) can be loaded")
    if (given.machine, given.bits, given.little) != (firmware.machine, firmware.bits, firmware.little):
        raise _unfit(firmware, given, f"it is for {_processor(given)}, the firmware for {_processor(firmware)}")
    if firmware.machine == "EM_RISCV":
        _check_riscv(firmware, given)
    else:
        _check_arm(firmware, given)


def _unfit(firmware: Elf, given: Elf, why: str) -> LinkError:
    return LinkError(f"{given.name} does not run on the device of {firmware.name}: {why}")


def _processor(elf: Elf) -> str:
    name = elf.machine.removeprefix("EM_")
    return f"{name}, {elf.bits} bits" if elf.little else f"{name}, {elf.bits} bits, big-endian"


# ---- ARM


def _arm_arch(elf: Elf) -> str:
    arch, profile = elf.attributes.get("TAG_CPU_ARCH"), elf.attributes.get("TAG_CPU_ARCH_PROFILE", ord("M"))
    if not isinstance(arch, int):
        raise LinkError(f"{elf.name} does not say which ARM it is for: its section .ARM.attributes is missing")
    if arch not in _ARM_M or profile != ord("M"):
        raise LinkError(f"{elf.name} is for an ARM of another profile than M (Tag_CPU_arch {arch})")
    return _ARM_M[arch][0]


def _arm_extension(elf: Elf) -> str:
    if not elf.attributes.get("TAG_FP_ARCH"):
        return ""
    return "+fp" if elf.attributes.get("TAG_ABI_HARDFP_USE") == 1 else "+fp.dp"


def _hard_abi(elf: Elf) -> bool:
    return elf.attributes.get("TAG_ABI_VFP_ARGS") == 1


def _check_arm(firmware: Elf, given: Elf) -> None:
    ours, theirs = _arm_arch(firmware), _arm_arch(given)
    if given.attributes["TAG_CPU_ARCH"] not in _ARM_M[firmware.attributes["TAG_CPU_ARCH"]][1]:
        raise _unfit(firmware, given, f"it is for {theirs}, the firmware for {ours}")
    if given.attributes.get("TAG_FP_ARCH") and not firmware.attributes.get("TAG_FP_ARCH"):
        raise _unfit(
            firmware, given, "it uses a floating-point unit and the firmware does not; compile it without (mattr)"
        )
    if _hard_abi(given) != _hard_abi(firmware):
        words = {True: "in floating-point registers (mfloat-abi hard)", False: "in general ones (mfloat-abi soft)"}
        raise _unfit(
            firmware, given, f"it passes floats {words[_hard_abi(given)]}, the firmware {words[_hard_abi(firmware)]}"
        )


# ---- RISC-V


def _riscv_arch(elf: Elf) -> str:
    """Base and one-letter extensions; those with longer names do not choose libraries, and confuse the choice."""
    text = elf.attributes.get("TAG_ARCH")
    if not isinstance(text, str):
        raise LinkError(f"{elf.name} does not say which RISC-V it is for: its section .riscv.attributes is missing")
    base, letters = _riscv_letters(text)
    return base + letters


def _riscv_letters(text: str) -> tuple[str, str]:
    found = re.match(r"(rv(?:32|64))(.*)", text.lower())
    if found is None:
        raise LinkError(f"{text!r} is not the name of a RISC-V processor")
    parts = [re.sub(r"\d+p\d+$", "", part) for part in found[2].split("_")]
    letters = "".join(part for part in parts[:1] if part) + "".join(part for part in parts[1:] if len(part) == 1)
    return found[1], letters.replace("g", "imafd")


def _riscv_abi(elf: Elf) -> str:
    base = "ilp32" if elf.bits == 32 else "lp64"
    return base + ("e" if elf.flags & 8 else ("", "f", "d", "q")[elf.flags >> 1 & 3])


def _check_riscv(firmware: Elf, given: Elf) -> None:
    if _riscv_abi(given) != _riscv_abi(firmware):
        raise _unfit(
            firmware, given, f"its calling convention is {_riscv_abi(given)}, the firmware's {_riscv_abi(firmware)}"
        )
    if "TAG_ARCH" in given.attributes:
        theirs, ours = _riscv_arch(given), _riscv_arch(firmware)
        if set(theirs[4:]) - set(ours[4:]):
            raise _unfit(firmware, given, f"it is for {theirs}, the firmware for {ours}")
    elif given.flags & 1 and not firmware.flags & 1:
        raise _unfit(firmware, given, "it uses compressed instructions, the firmware does not")
