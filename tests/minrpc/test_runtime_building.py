# SPDX-License-Identifier: Apache-2.0
"""The C runtime under every compiler it is for, without a warning; and how large it is."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .building import AS_A_PROCESS, CORE, INCLUDE, RUNTIME, STRICT_C, STRICT_CPP, need, run

ARM = ["-mcpu=cortex-m3", "-mthumb", "-Os"]
RISCV = ["-march=rv32imac", "-mabi=ilp32", "-Os", "--specs=picolibc.specs"]
COMPILERS: dict[str, tuple[str, str, list[str]]] = {
    "x86-64": ("gcc", "gcc", ["-O2"]),
    "x86-64-process": ("gcc", "gcc", ["-O2", *AS_A_PROCESS]),
    "x86-64-no-modules": ("gcc", "gcc", ["-DRPCFLOW_MAX_MODULES=0"]),
    "clang": ("clang", "clang", ["-O1"]),
    "cortex-m3": ("arm-none-eabi-gcc", "gcc-arm-none-eabi", ARM),
    "rv32": ("riscv64-unknown-elf-gcc", "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf", RISCV),
}
CPP = {
    "x86-64": ("g++", "g++", ["-O2"]),
    "x86-64-process": ("g++", "g++", AS_A_PROCESS),
    "cortex-m3": ("arm-none-eabi-g++", "gcc-arm-none-eabi", ARM),
    "rv32": ("riscv64-unknown-elf-g++", "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf", RISCV),
}
HOST_ONLY = tuple(RUNTIME / "hal" / name for name in ("posix.c", "posix_pipe.c", "posix_tcp.c"))


def compile_all(program: str, flags: Sequence[str | Path], sources: Sequence[Path], folder: Path) -> list[Path]:
    made = [folder / f"{source.stem}.o" for source in sources]
    for source, output in zip(sources, made, strict=True):
        run([program, *flags, *INCLUDE, "-c", source, "-o", output])
    return made


@pytest.mark.parametrize("name", COMPILERS)
def test_c_without_warnings(name: str, tmp_path: Path) -> None:
    program, package, flags = COMPILERS[name]
    sources = CORE + (HOST_ONLY if name.startswith("x86-64") else ())
    compile_all(need(program, package), [*STRICT_C, *flags], sources, tmp_path)


@pytest.mark.parametrize("name", CPP)
def test_cpp_without_warnings(name: str, tmp_path: Path) -> None:
    program, package, flags = CPP[name]
    sources = CORE + (HOST_ONLY if name.startswith("x86-64") else ())
    compile_all(need(program, package), [*STRICT_CPP, *flags], sources, tmp_path)


def test_sizes_that_cannot_be_do_not_compile(tmp_path: Path) -> None:
    gcc = need("gcc", "gcc")
    for wrong in ("RPCFLOW_PACKET_NBYTES=64", "RPCFLOW_ALIGNMENT=48", "RPCFLOW_MAX_EVALUATORS=0", "RPCFLOW_MAX_ARGS=4"):
        command = [gcc, f"-D{wrong}", *map(str, INCLUDE), "-c", str(CORE[0]), "-o", str(tmp_path / "no.o")]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode != 0, wrong
        assert "rpcflow_assert_" in ran.stderr, wrong


BOARD = """
#include "rpcflow/runtime.h"
extern int line_read(void *, void *, size_t), line_write(void *, const void *, size_t);
extern uint64_t clock_ns(void);
void begin(void);
void begin(void) {
  static const rpcflow_machine machine = {clock_ns, 0, 0, 0, 0, 0, 0};
  static const rpcflow_stream stream = {0, line_read, line_write, 0};
  rpcflow_start(&machine);
  (void)rpcflow_serve(&stream);
}
"""
WANTED_BY_KERNELS = (
    "TVMFFIErrorSetRaisedFromCStrParts",
    "TVMFFIErrorSetRaisedFromCStr",
    "TVMFFIEnvModRegisterSystemLibSymbol",
    "TVMBackendAllocWorkspace",
    "TVMBackendFreeWorkspace",
    "TVMBackendParallelLaunch",
    "TVMFFIFunctionCall",
    "TVMFFIEnvModLookupFromImports",
    "TVMFFIHandleInitOnce",
    "__aeabi_unwind_cpp_pr0",
    "rpcflow_register",
    "rpcflow_raise",
)


def test_size_on_a_cortex_m3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the runtime and what it needs of C's libraries: at most 9.5 KiB; the link layer has the rest of 12.
    Besides buffers and tables, whose sizes are the user's, it takes less than 400 bytes of memory."""
    gcc = need("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    sections = ["-ffunction-sections", "-fdata-sections"]
    board = tmp_path / "board.c"
    board.write_text(BOARD)
    sizes = [f"-DRPCFLOW_{name}" for name in ("MAX_ARGS=12", "MAX_FUNCTIONS=1", "MAX_BLOCKS=1", "MAX_MODULES=1")]
    sizes += [f"-DRPCFLOW_{name}" for name in ("PACKET_NBYTES=256", "TENSOR_NBYTES=128", "MESSAGE_NBYTES=64")]
    flags = [*STRICT_C, *ARM, *sections, *sizes]
    objects = compile_all(gcc, flags, (*CORE, board), tmp_path)
    linked = tmp_path / "board.elf"
    keep = [f"-Wl,-u,{symbol}" for symbol in WANTED_BY_KERNELS]
    outside = [f"-Wl,--defsym={symbol}=0" for symbol in ("line_read", "line_write", "clock_ns")]
    libraries = ["--specs=nano.specs", "-nostartfiles", "-Wl,--gc-sections", "-Wl,-e,begin"]
    run([gcc, *ARM, *libraries, *keep, *outside, *objects, "-o", linked])
    text, data, bss = map(int, run(["arm-none-eabi-size", linked]).splitlines()[1].split()[:3])
    tables = 12 * 16 + 8 + 8 + 20 + 2 * 56 + 256 + 128 + 64
    with capsys.disabled():
        print(f"\nC runtime on a Cortex-M3: {text} bytes of flash, {data + bss - tables} of memory besides buffers")
    assert text <= 9.5 * 1024
    assert data + bss - tables < 400


def test_nothing_recurses_or_takes_from_the_heap(tmp_path: Path) -> None:
    """Calls, as the compiler writes them down, make no circle; and of C's libraries only these are wanted."""
    gcc = need("gcc", "gcc")
    flags = [*STRICT_C, "-O0", "-fcallgraph-info", "-fno-builtin"]
    objects = compile_all(gcc, flags, CORE, tmp_path)
    wanted = {line.split()[-1] for line in run(["nm", "-u", *objects]).splitlines() if " U " in line}
    ours = {line.split()[-1] for line in run(["nm", "--defined-only", *objects]).splitlines() if " T " in line}
    ours |= {"rpcflow_core", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert wanted - ours <= {"memcpy", "memset"}, wanted - ours
    calls: dict[str, set[str]] = {}
    for graph in tmp_path.glob("*.ci"):
        for caller, called in re.findall(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', graph.read_text()):
            calls.setdefault(caller.split(":")[-1], set()).add(called.split(":")[-1])
    assert len(calls) > 30

    def reached(function: str) -> set[str]:
        seen: set[str] = set()
        new = set(calls.get(function, ()))
        while new:
            seen |= new
            new = {more for one in new for more in calls.get(one, ())} - seen
        return seen

    assert not [function for function in calls if function in reached(function)]
