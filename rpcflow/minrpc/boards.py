# SPDX-License-Identifier: Apache-2.0
"""What the C runtime is built for: boards, and processes on this machine."""

from pathlib import Path
from typing import Final

import attrs

RUNTIME: Final = Path(__file__).parent / "runtime"
"""The folder of the C runtime; ``include`` in it is for kernels too."""


_ON_BOARDS: Final = ("-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fno-common")
_BOARD_LINK: Final = (
    "-nostartfiles",
    "-Wl,--gc-sections",
    "-Wl,--build-id",
    "-Wl,-z,noexecstack",
    "-Wl,--no-warn-rwx-segments",
    f"-L{RUNTIME / 'boards'}",
)
KEPT: Final = (
    "TVMBackendAllocWorkspace",
    "TVMBackendFreeWorkspace",
    "TVMBackendParallelBarrier",
    "TVMBackendParallelLaunch",
    "TVMFFIEnvModLookupFromImports",
    "TVMFFIEnvModRegisterSystemLibSymbol",
    "TVMFFIErrorSetRaisedFromCStr",
    "TVMFFIErrorSetRaisedFromCStrParts",
    "TVMFFIFunctionCall",
    "TVMFFIHandleInitOnce",
    "rpcflow_raise",
    "memcpy",
    "memset",
)
"""In a firmware whether anything in it calls them or not: modules loaded at run time do."""


@attrs.frozen
class Board:
    """Something to build for.

    Args:
        name: for people and for ``--board``.
        about: what it is.
        compilers: names to look for, the first that is there is taken.
        package: of Debian, that brings the first of them and its C library.
        sources: of the runtime and of what it stands on there: patterns in :data:`RUNTIME`.
        flags: for the compiler, always.
        link: for the linker.
        libraries: at the end of the linker's command.
        script: its linker script, None for a process.
    """

    name: str
    about: str
    compilers: tuple[str, ...]
    package: str
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ("-lm",)
    script: Path | None = None


def _arm(name: str, about: str, *flags: str) -> Board:
    return Board(
        name,
        about,
        ("arm-none-eabi-gcc",),
        "gcc-arm-none-eabi libnewlib-arm-none-eabi",
        ("src/*.c", "hal/board_main.c", "boards/cortex-m/*.c", f"boards/{name}/*.c"),
        ("-mthumb", *flags, "--specs=nano.specs", *_ON_BOARDS),
        _BOARD_LINK,
        script=RUNTIME / "boards" / name / "board.ld",
    )


def _process(name: str, about: str, main: str) -> Board:
    flags = ("-O2", "-pthread", "-include", str(RUNTIME / "hal" / "posix_config.h"))
    return Board(name, about, ("cc", "gcc", "clang"), "gcc", ("src/*.c", "hal/posix.c", main), flags, ("-pthread",))


BOARDS: Final = {
    board.name: board
    for board in (
        _arm("lm3s6965evb", "TI's Stellaris evaluation board: Cortex-M3, 256 KiB flash, 64 KiB RAM", "-mcpu=cortex-m3"),
        _arm(
            "mps2-an386",
            "Arm's MPS2: Cortex-M4 with floating point, 4 MiB + 4 MiB",
            "-mcpu=cortex-m4",
            "-mfpu=fpv4-sp-d16",
            "-mfloat-abi=hard",
        ),
        Board(
            "riscv-virt",
            "QEMU's RISC-V board virt: 32 bits without floating point",
            ("riscv64-unknown-elf-gcc", "riscv32-unknown-elf-gcc", "riscv-none-elf-gcc"),
            "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
            ("src/*.c", "hal/board_main.c", "boards/riscv-virt/*.[cS]"),
            # Control registers are the assembler's affair: named for the compiler, they make it choose another library.
            (
                "-march=rv32imac",
                "-mabi=ilp32",
                "-Wa,-march=rv32imac_zicsr_zifencei",
                "-msmall-data-limit=0",
                "--specs=picolibc.specs",
                *_ON_BOARDS,
            ),
            _BOARD_LINK,
            script=RUNTIME / "boards" / "riscv-virt" / "board.ld",
        ),
        _process("posix", "a process on two pipes (PopenSession, popen://)", "hal/posix_pipe.c"),
        _process("posix-tcp", "a process that is a server on TCP", "hal/posix_tcp.c"),
        _process("posix-serial", "a process on a serial line or pseudo-terminal (serial://)", "hal/posix_serial.c"),
    )
}
"""By name."""
