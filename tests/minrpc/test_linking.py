# SPDX-License-Identifier: Apache-2.0
"""Modules for firmware, as far as the host goes: ELF files read, the right libraries chosen, images linked."""

import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.client.aside import Program
from rpcflow.minrpc.boards import BOARDS
from rpcflow.minrpc.building import build
from rpcflow.minrpc.elf import read_elf
from rpcflow.minrpc.files import Files
from rpcflow.minrpc.loading import Image, Linker
from rpcflow.minrpc.targets import check_object, target_of
from rpcflow.server.linking import LinkError
from tests.once import once

BUILD_ID = bytes(range(100, 120))
EMULATED = ("lm3s6965evb", "mps2-an386", "riscv-virt")
ARM, RISCV = "arm-none-eabi-gcc", "riscv64-unknown-elf-gcc"
M3 = ("-mcpu=cortex-m3", "-mthumb")
RV32 = ("-march=rv32imac", "-mabi=ilp32")
HEAD = """
#include <rpcflow/ffi.h>
#include <string.h>
#define F(name) int __tvm_ffi_##name(void *self, const rpcflow_value *a, int32_t n, rpcflow_value *r)
"""
ADD = "F(add) { r->type = 1; r->u.as_int = a[0].u.as_int + a[1].u.as_int; return 0; }\n"

for name in (ARM, RISCV):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: linking for boards was NOT tested", allow_module_level=True)


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Path of the runtime, built for a board."""
    options = [f"-Wl,--build-id=0x{BUILD_ID.hex()}"]

    def built(board: str) -> str:
        return str(once(tmp_path_factory, f"{board}-known.elf", lambda made: build(board, made, options=options)))

    return built


def compiled(path: Path, source: str, compiler: str = ARM, flags: tuple[str, ...] = M3) -> str:
    from rpcflow.minrpc.boards import RUNTIME

    specs = ["--specs=picolibc.specs"] if compiler == RISCV else []
    command = [compiler, *flags, *specs, "-Os", "-I", str(RUNTIME / "include"), "-xc", "-", "-c", "-o", str(path)]
    subprocess.run(command, input=HEAD + source, text=True, check=True)
    return str(path)


def program(path: Path, compiler: str, flags: tuple[str, ...]) -> str:
    """Some program: a function and nothing else."""
    command = [compiler, *flags, "-nostdlib", "-Wl,--entry=main", "-Wl,--build-id", "-xc", "-", "-o", str(path)]
    subprocess.run(command, input="int main(void) { return 0; }", text=True, check=True)
    return str(path)


@pytest.fixture
def files() -> Iterator[Files]:
    with Files() as opened:
        yield opened


def linker(path: str, firmware: str, files: Files) -> Linker:
    made = Linker(os.path.basename(path), Path(path).read_bytes(), firmware, files)
    made.prepare()
    return made


def linked(made: Linker, address: int | None = None) -> Image:
    command = made.command(made.guess if address is None else address)
    status, printed = Program(command, made.files).run(None)
    if status:
        raise made.failure(command, printed)
    return made.image(made.guess if address is None else address)


def table(image: Image, word: int = 4) -> tuple[list[int], dict[str, int]]:
    """Initialisers and functions, read as the device reads them; everything must lie inside."""

    def number(i: int) -> int:
        at = image.table + i * word
        assert 0 <= at <= len(image.data) - word
        return int.from_bytes(image.data[at : at + word], "little")

    def inside(address: int) -> int:
        assert image.address <= address < image.address + len(image.data)
        return address

    assert image.table % word == 0
    initialisers = [inside(number(2 + i)) for i in range(number(1))]
    functions = {}
    for i in range(number(0)):
        at = 2 + len(initialisers) + 2 * i
        begin = inside(number(at + 1)) - image.address
        functions[image.data[begin : image.data.index(b"\0", begin)].decode()] = inside(number(at))
    return initialisers, functions


class TestElf:
    @pytest.mark.parametrize("board", EMULATED)
    def test_the_build_id_is_found_wherever_it_lies(self, firmware: Callable[[str], str], board: str) -> None:
        elf = read_elf("fw.elf", Path(firmware(board)).read_bytes())
        assert elf.build_id == BUILD_ID

    def test_there_may_be_none(self, tmp_path: Path) -> None:
        assert read_elf("k.o", Path(compiled(tmp_path / "k.o", ADD)).read_bytes()).build_id is None

    @pytest.mark.parametrize("data", [b"", b"\x7fEL", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(100)])
    def test_what_is_none(self, data: bytes) -> None:
        with pytest.raises(LinkError, match=r"^k\.o is"):
            read_elf("k.o", data)

    def test_broken_ones_are_refused_or_read(self, tmp_path: Path) -> None:
        good = Path(compiled(tmp_path / "k.o", ADD)).read_bytes()

        @settings(max_examples=300)
        @given(
            st.integers(0, len(good)),
            st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=5),
        )
        def broken(end: int, changes: list[tuple[int, int]]) -> None:
            data = bytearray(good)
            for at, byte in changes:
                data[at] = byte
            try:
                elf = read_elf("k.o", bytes(data[:end]))
                elf.symbols()
                elf.memory()
                elf.end()
            except LinkError:
                pass  # said what is wrong; any other error is a defect

        broken()

    def test_stripped_firmware(self, firmware: Callable[[str], str], tmp_path: Path, files: Files) -> None:
        stripped = tmp_path / "fw.elf"
        subprocess.run(["arm-none-eabi-strip", "-o", stripped, firmware("lm3s6965evb")], check=True)
        with pytest.raises(LinkError, match=r"fw\.elf has no symbols"):
            linker(compiled(tmp_path / "k.o", ADD), str(stripped), files)

    def test_without_pyelftools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "elftools.elf.elffile", None)
        with pytest.raises(LinkError, match=r"pip install 'rpcflow\[serial\]'"):
            read_elf("k.o", b"\x7fELF")


class TestTargets:
    @pytest.mark.parametrize("board", EMULATED)
    def test_the_libraries_of_the_firmware(self, firmware: Callable[[str], str], board: str) -> None:
        target = target_of(read_elf("fw.elf", Path(firmware(board)).read_bytes()))
        ours = [*target.flags, f"--specs={target.specs}"]
        assert libraries(target.compiler(), ours) == libraries(target.compiler(), list(BOARDS[board].flags))

    @pytest.mark.parametrize(
        ("compiler", "flags"),
        [
            (ARM, "-mthumb -mcpu=cortex-m0"),
            (ARM, "-mthumb -mcpu=cortex-m4 -mfloat-abi=soft"),
            (ARM, "-mthumb -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -mfloat-abi=softfp"),
            (ARM, "-mthumb -mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard"),
            (ARM, "-mthumb -mcpu=cortex-m23"),
            (ARM, "-mthumb -mcpu=cortex-m33 -mfpu=fpv5-sp-d16 -mfloat-abi=hard"),
            (ARM, "-mthumb -mcpu=cortex-m33+nofp -mfloat-abi=soft"),
            (RISCV, "-march=rv32i -mabi=ilp32"),
            (RISCV, "-march=rv32imafc -mabi=ilp32f"),
            (RISCV, "-march=rv64gc -mabi=lp64d -mcmodel=medany"),
        ],
    )
    def test_other_processors(self, tmp_path: Path, compiler: str, flags: str) -> None:
        path = program(tmp_path / "fw.elf", compiler, tuple(flags.split()))
        target = target_of(read_elf("fw.elf", Path(path).read_bytes()))
        assert libraries(compiler, list(target.flags)) == libraries(compiler, flags.split())

    def test_no_compiler(
        self, firmware: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files
    ) -> None:
        path = compiled(tmp_path / "k.o", ADD)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(LinkError, match=r"arm-none-eabi-gcc, which is not installed .*apt-get install gcc-arm"):
            linker(path, firmware("lm3s6965evb"), files)

    def test_programs_of_this_machine(self, tmp_path: Path, files: Files) -> None:
        host = shutil.which("cc")
        if host is None:
            pytest.skip("no compiler for this machine: firmware for it was NOT tested")
        path = program(tmp_path / "device", host, ())
        with pytest.raises(LinkError, match=r"device is a program for .* loaded into firmware for"):
            linker(compiled(tmp_path / "k.o", ADD), path, files)

    def test_an_object_for_firmware(self, tmp_path: Path, files: Files) -> None:
        path = compiled(tmp_path / "k.o", ADD)
        with pytest.raises(LinkError, match=r"k\.o is an object, not a firmware"):
            linker(path, path, files)

    @pytest.mark.parametrize(
        ("board", "compiler", "flags", "why"),
        [
            ("lm3s6965evb", RISCV, RV32, "for RISCV, 32 bits, the firmware for ARM"),
            ("riscv-virt", ARM, M3, "for ARM, 32 bits, the firmware for RISCV"),
            ("lm3s6965evb", ARM, ("-mthumb", "-mcpu=cortex-m4"), "for armv7e-m, the firmware for armv7-m"),
            ("mps2-an386", ARM, M3, "floats in general ones .* the firmware in floating-point registers"),
            (
                "lm3s6965evb",
                ARM,
                ("-mthumb", "-march=armv7-a+fp", "-mfloat-abi=soft"),
                r"another profile than M",
            ),
            ("riscv-virt", RISCV, ("-march=rv32imafc", "-mabi=ilp32"), "for rv32imafc, the firmware for rv32imac"),
            ("riscv-virt", RISCV, ("-march=rv32imafc", "-mabi=ilp32f"), "calling convention is ilp32f"),
            ("riscv-virt", RISCV, ("-march=rv64imac", "-mabi=lp64"), "RISCV, 64 bits"),
        ],
    )
    def test_what_does_not_run_there(
        self,
        firmware: Callable[[str], str],
        tmp_path: Path,
        board: str,
        compiler: str,
        flags: tuple[str, ...],
        why: str,
        files: Files,
    ) -> None:
        path = compiled(tmp_path / "k.o", ADD, compiler, flags)
        with pytest.raises(LinkError, match=rf"k\.o .*{why}"):
            linker(path, firmware(board), files)

    def test_smaller_processors_are_welcome(self, firmware: Callable[[str], str], tmp_path: Path) -> None:
        fw = read_elf("fw.elf", Path(firmware("lm3s6965evb")).read_bytes())
        path = compiled(tmp_path / "k.o", ADD, ARM, ("-mthumb", "-mcpu=cortex-m0"))
        check_object(fw, read_elf("k.o", Path(path).read_bytes()))


def libraries(compiler: str, flags: list[str]) -> str:
    """Where the compiler takes its libraries from."""
    command = [compiler, *flags, "-print-multi-directory"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class TestImages:
    @pytest.mark.parametrize(
        ("board", "compiler", "flags"),
        [("lm3s6965evb", ARM, M3), ("riscv-virt", RISCV, RV32)],
    )
    def test_everything_is_in_it(
        self,
        firmware: Callable[[str], str],
        tmp_path: Path,
        board: str,
        compiler: str,
        flags: tuple[str, ...],
        files: Files,
    ) -> None:
        source = """
        #include <math.h>
        static int64_t sum = 5, zeros[8];
        static void begin(void) __attribute__((constructor));
        static void begin(void) { sum += 37; }
        static const char *const words[] = {"one", "two"};
        F(word) { r->type = 8; r->u.as_string = words[a->u.as_int & 1]; return 0; }
        F(sine) { r->type = 3; r->u.as_float = sin(a->u.as_float); return 0; }
        F(sum) { memcpy(&r->u, &sum, sizeof sum); zeros[sum & 7]++; return 0; }
        """
        made = linker(compiled(tmp_path / "k.o", source, compiler, flags), firmware(board), files)
        for address in (made.guess, made.guess + 64, made.guess + 12800):
            image = linked(made, address)
            assert image.address == address
            initialisers, functions = table(image)
            assert sorted(functions) == ["sine", "sum", "word"]
            assert len(initialisers) == 1
            thumb = {at & 1 for at in [*functions.values(), *initialisers]}
            assert thumb == ({1} if compiler == ARM else {0})
            assert b"one\0" in image.data
            at = image.data.index(b"two\0") + address
            assert struct.pack("<I", at) in image.data, "words[1] does not point to its word"

    def test_where_descriptors_have_no_names(
        self, firmware: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on other systems than Linux: there is a folder, for as long as it is needed."""
        monkeypatch.setattr("rpcflow.minrpc.files._BY_NUMBER", str(tmp_path / "nothing"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        path = compiled(tmp_path / "k.o", ADD)
        with Files() as files:
            made = linker(path, firmware("lm3s6965evb"), files)
            images = [linked(made, made.guess + offset) for offset in (0, 64)]
            assert sorted(os.listdir(tmp_path)) != ["k.o"]
        assert [list(table(image)[1]) for image in images] == [["add"]] * 2
        assert os.listdir(tmp_path) == ["k.o"]

    def test_what_the_firmware_has_is_not_brought_along(
        self, firmware: Callable[[str], str], tmp_path: Path, files: Files
    ) -> None:
        needed = "F(clear) { memset(r, 0, (size_t)a->u.as_int); return 0; }"
        missing = "F(find) { r->u.as_pointer = strstr(a->u.as_string, a->u.as_string); return 0; }"
        images = [
            linked(linker(compiled(tmp_path / f"{i}.o", source), firmware("lm3s6965evb"), files))
            for i, source in enumerate((needed, missing))
        ]
        assert len(images[0].data) < 100
        assert len(images[1].data) > 200

    def test_functions_that_the_firmware_has_too(self, tmp_path: Path, files: Files) -> None:
        """A kernel is developed by loading one that the firmware has in an older version."""
        old = compiled(tmp_path / "old.o", "F(same) { return 0; }\n" + ADD)
        build("lm3s6965evb", tmp_path / "fw.elf", [old])
        made = linker(
            compiled(
                tmp_path / "k.o",
                "int help(void) { return 7; } F(same) { return help(); }",
            ),
            str(tmp_path / "fw.elf"),
            files,
        )
        _, functions = table(linked(made))  # which makes sure that it lies in the image
        assert list(functions) == ["same"]

    def test_registering_with_the_firmware_is_left_out(
        self, firmware: Callable[[str], str], tmp_path: Path, files: Files
    ) -> None:
        """The names would stay in the firmware's table when the module is gone."""
        source = (
            ADD
            + """
        int TVMFFIEnvModRegisterSystemLibSymbol(const char *, void *);
        __attribute__((constructor)) static void begin(void) {
          TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi_add", (void *)__tvm_ffi_add);
        }
        """
        )
        image = linked(linker(compiled(tmp_path / "k.o", source), firmware("lm3s6965evb"), files))
        initialisers, functions = table(image)
        assert (initialisers, list(functions)) == ([], ["add"])
        wrong = compiled(
            tmp_path / "k.o", "#include <rpcflow/runtime.h>\n" + ADD + "RPCFLOW_REGISTER(add, __tvm_ffi_add);"
        )
        with pytest.raises(LinkError, match=r"k\.o registers functions as firmware does \(RPCFLOW_REGISTER\)"):
            linker(wrong, firmware("lm3s6965evb"), files)

    def test_archives(self, firmware: Callable[[str], str], tmp_path: Path, files: Files) -> None:
        objects = [
            compiled(tmp_path / "a.o", "int helper(int); F(a) { return helper(a->type); }"),
            compiled(
                tmp_path / "b.o",
                "int helper(int x) { return x; } F(b) { return 0; }",
            ),
        ]
        evil = tmp_path / "evil.o"
        with tarfile.open(tmp_path / "k.tar", "w") as archive:
            for path, name in zip(objects, ("../evil.o", str(evil)), strict=True):
                archive.add(path, name)
            archive.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
        image = linked(linker(str(tmp_path / "k.tar"), firmware("lm3s6965evb"), files))
        assert sorted(table(image)[1]) == ["a", "b"]
        assert not evil.exists()
        assert not (tmp_path.parent / "evil.o").exists()

    @pytest.mark.parametrize(
        ("name", "data", "why"),
        [
            ("k.tar", b"no archive", "is not a tar archive"),
            ("k.so", b"\x7fELF", r"is a library for an operating system; .* loads objects \(\.o\)"),
            ("k.bin", b"", r"cannot be loaded as a module: .* loads objects \(\.o\)"),
            ("k.o", b"text", "is not an ELF file"),
        ],
    )
    def test_what_is_no_module(
        self, firmware: Callable[[str], str], tmp_path: Path, name: str, data: bytes, why: str, files: Files
    ) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LinkError, match=rf"{name}.* {why}"):
            linker(str(tmp_path / name), firmware("lm3s6965evb"), files)

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            ("int helper(void) { return 1; }", "offers no function: there is no symbol __tvm_ffi_NAME"),
            ("int lost(void); int gone(void); F(f) { return lost() + gone(); }",
             "neither the firmware nor the compiler's libraries have: lost, gone: .*arm-none-eabi-gcc"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_linked(
        self, firmware: Callable[[str], str], tmp_path: Path, source: str, why: str, files: Files
    ) -> None:
        path = compiled(tmp_path / "k.o", source)
        with pytest.raises(LinkError, match=rf"(?s)k\.o.* {why}"):
            linked(linker(path, firmware("lm3s6965evb"), files))

    def test_memory_for_each_thread(self, firmware: Callable[[str], str], tmp_path: Path, files: Files) -> None:
        """It would be anywhere in the firmware's."""
        source = "static __thread int x; F(f) { return x++; }"
        made = linker(compiled(tmp_path / "k.o", source, RISCV, RV32), firmware("riscv-virt"), files)
        with pytest.raises(LinkError, match="thread-local variables"):
            linked(made)

    def test_a_program(self, firmware: Callable[[str], str], tmp_path: Path, files: Files) -> None:
        shutil.copy(firmware("lm3s6965evb"), tmp_path / "k.o")
        with pytest.raises(LinkError, match=r"k\.o is linked already"):
            linker(str(tmp_path / "k.o"), firmware("lm3s6965evb"), files)

    def test_build_ids(self, firmware: Callable[[str], str], tmp_path: Path, files: Files) -> None:
        made = linker(compiled(tmp_path / "k.o", ADD), firmware("lm3s6965evb"), files)
        made.check_build(BUILD_ID)
        with pytest.raises(LinkError, match=r"does not run lm3s6965evb-known\.elf") as caught:
            made.check_build(b"\x01\x02")
        assert BUILD_ID.hex() in str(caught.value)
        assert "0102" in str(caught.value)
        with pytest.raises(LinkError, match="the device's firmware has no build id"):
            made.check_build(b"")
