# SPDX-License-Identifier: Apache-2.0
"""``rpcflow.minrpc.load``: modules linked for the device's memory and written there, on a process of this machine."""

import platform
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rpcflow.protocol.dtype import DataType, DTypeCode
from rpcflow.protocol.packets import CallFunc, Code, CopyFromRemote, CopyToRemote, SysCall
from rpcflow.protocol.values import Device as Where
from rpcflow.protocol.values import ModuleRef, Pointer, TensorView

from ..once import once
from .building import CORE, HERE, INCLUDE, RUNTIME, SANITIZED, STRICT_C, need, run
from .serving import EXCEPTION, INIT, NONE, RETURN, Device, packet

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="SKIPPED: loading is tested on x86-64 Linux, and on emulated boards; NOT TESTED here",
)

CPU = Where(1, 0)
BYTE = DataType(DTypeCode.UINT, 8, 1)
IMAGE_NBYTES = 8192


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [*CORE, RUNTIME / "hal" / "posix.c", HERE / "loading_main.c"]
    # Not moved about, so that its symbols' addresses are known.
    flags = [*STRICT_C, *SANITIZED, *INCLUDE, "-no-pie", "-fno-pie", "-DRPCFLOW_PACKET_NBYTES=4096"]
    command = [need("gcc", "gcc"), *flags, *sources, "-o"]
    return once(tmp_path_factory, "loading-device", lambda made: run([*command, made]))


@pytest.fixture
def device(program: Path) -> Iterator[Device]:
    with Device(program) as device:
        assert device.ask(INIT) == (RETURN, NONE)
        yield device
        assert device.ask(packet(SysCall(Code.DEV_GET_ATTR, [CPU, 15])))[1][8:] == struct.pack("<q", 1 << 16)


def allocate(device: Device, nbytes: int = IMAGE_NBYTES) -> int:
    return device.pointer(packet(SysCall(Code.DEV_ALLOC_DATA, [CPU, nbytes, 64, BYTE])))


def call(device: Device, handle: int, *args: Any) -> int:
    return device.pointer(packet(CallFunc(handle, list(args))))


def free(device: Device, handle: int) -> None:
    assert device.ask(packet(SysCall(Code.FREE_HANDLE, [Pointer(handle)]))) == (RETURN, NONE)


def free_data(device: Device, address: int) -> bytes:
    return packet(SysCall(Code.DEV_FREE_DATA, [CPU, Pointer(address)]))


def whole(address: int, nbytes: int = IMAGE_NBYTES) -> TensorView:
    return TensorView(address, CPU, BYTE, (nbytes,))


def table_image(words: Sequence[int], names: bytes = b"name\0", at: int = 64) -> tuple[bytes, int]:
    """An image of a table and names; and where in it the table begins."""
    table = struct.pack(f"<{len(words)}Q", *words)
    return b"\xc3" * at + table + names, at


def linked(folder: Path, program: Path, address: int, functions: Sequence[str]) -> tuple[bytes, int]:
    """The module linked for an address, with its table; and where that begins."""
    compiled, image, plain = folder / "loaded.o", folder / "loaded.elf", folder / "loaded.bin"
    run(["gcc", *STRICT_C, "-Os", "-fno-pic", "-I", RUNTIME / "include", "-c", HERE / "loaded.c", "-o", compiled])
    layout = [f"-Ttext={address:#x}", "--section-start", f".data={address + 4096:#x}", "-e", "0", "--build-id=none"]
    run(["ld", "-N", f"--just-symbols={program}", *layout, compiled, "-o", image])
    run(["objcopy", "-O", "binary", "-j", ".text", "-j", ".rodata*", "-j", ".data", image, plain])
    symbols = {line.split()[-1]: int(line.split()[0], 16) for line in run(["nm", image]).splitlines() if len(line) > 20}
    code = plain.read_bytes().ljust(4608, b"\0")
    names, words = b"", [len(functions), 1, symbols["initialise"]]
    for function in functions:
        words += [symbols[function], address + len(code) + 8 * (3 + 2 * len(functions)) + len(names)]
        names += function.encode() + b"\0"
    return code + struct.pack(f"<{len(words)}Q", *words) + names, len(code)


def write(device: Device, address: int, contents: bytes) -> None:
    data = contents.ljust(IMAGE_NBYTES, b"\0")
    assert device.ask(packet(CopyToRemote(whole(address), len(data)), data)) == (RETURN, NONE)


def load(device: Device, address: int, table: int) -> bytes:
    return packet(CallFunc(device.find("rpcflow.minrpc.load"), [whole(address), table]))


def get(device: Device, module: int, name: str) -> int:
    return call(device, device.find("tvm.rpc.server.ModuleGetFunction"), ModuleRef(module), name, True)


def test_a_module_from_its_loading_to_its_end(device: Device, program: Path, tmp_path: Path) -> None:
    address = allocate(device)
    contents, table = linked(tmp_path, program, address, ["triple", "initialised"])
    write(device, address, contents)
    module = device.pointer(load(device, address, table))
    assert call(device, device.find("written")) == 1
    triple, initialised = get(device, module, "triple"), get(device, module, "initialised")
    assert call(device, triple, 14) == 42
    assert call(device, initialised) == 7
    assert call(device, initialised) == 7
    assert "triple takes an int" in device.refused(packet(CallFunc(triple, ["x"])))
    assert device.find("triple") == 0
    code, contents = device.ask(
        packet(CallFunc(device.find("tvm.rpc.server.ModuleGetFunction"), [ModuleRef(module), "nothing", True]))
    )
    assert (code, contents) == (RETURN, struct.pack("<iiqi", 2, 1, 0, 0))
    # Its memory is no tensor any more, and is freed with the last handle.
    assert "not in memory" in device.refused(load(device, address, table))
    assert "not in memory" in device.refused(packet(CopyFromRemote(whole(address), 8)))
    assert "no data at that address" in device.refused(free_data(device, address))
    free(device, module)
    assert call(device, triple, 2) == 6
    free(device, triple)
    evaluator = call(device, device.find("runtime.RPCTimeEvaluator"), None, "written", 1, 0, 1, 1, 0, 0, 0, 1, 0, "")
    free(device, evaluator)
    assert call(device, initialised) == 7
    free(device, initialised)
    for handle in (module, triple, initialised):
        assert "nothing of that handle" in device.refused(packet(CallFunc(handle, [1])))
        assert "nothing of that handle" in device.refused(packet(SysCall(Code.FREE_HANDLE, [Pointer(handle)])))


def test_an_evaluator_keeps_its_module(device: Device, program: Path, tmp_path: Path) -> None:
    address = allocate(device)
    contents, table = linked(tmp_path, program, address, ["triple"])
    write(device, address, contents)
    module = device.pointer(load(device, address, table))
    settings = ["triple", 1, 0, 3, 2, 0, 0, 0, 1, 0, ""]
    evaluator = call(device, device.find("runtime.RPCTimeEvaluator"), ModuleRef(module), *settings)
    free(device, module)
    assert device.ask(packet(CallFunc(evaluator, [5])))[0] == RETURN
    assert "triple takes an int" in device.refused(packet(CallFunc(evaluator, [])))
    free(device, evaluator)


def test_a_module_freed_too_often_takes_its_evaluators_along(device: Device, program: Path, tmp_path: Path) -> None:
    address = allocate(device)
    contents, table = linked(tmp_path, program, address, ["triple"])
    write(device, address, contents)
    module = device.pointer(load(device, address, table))
    settings = ["triple", 1, 0, 3, 2, 0, 0, 0, 1, 0, ""]
    evaluator = call(device, device.find("runtime.RPCTimeEvaluator"), ModuleRef(module), *settings)
    free(device, module)
    free(device, module)
    assert allocate(device) == address
    assert "nothing of that handle" in device.refused(packet(CallFunc(evaluator, [5])))
    assert "nothing of that handle" in device.refused(packet(SysCall(Code.FREE_HANDLE, [Pointer(evaluator)])))
    assert device.ask(free_data(device, address)) == (RETURN, NONE)


def test_as_many_modules_as_there_is_room_for(device: Device) -> None:
    loaded = []
    contents, table = table_image([0, 0])
    for _ in range(4):
        address = allocate(device)
        write(device, address, contents)
        loaded.append(device.pointer(load(device, address, table)))
    address = allocate(device)
    write(device, address, contents)
    assert "RPCFLOW_MAX_MODULES is 4" in device.refused(load(device, address, table))
    for module in loaded:
        free(device, module)
    module = device.pointer(load(device, address, table))
    assert module not in loaded
    free(device, module)


@pytest.mark.parametrize(
    "words",
    [
        [1, 0, -1, 0],
        [1, 0, 0, IMAGE_NBYTES],
        [1, 0, IMAGE_NBYTES, 0],
        [0, 1, -8],
        [0, 1, IMAGE_NBYTES],
        [70000, 0],
        [0, 1 << 61],
        [1 << 63, 0],
        [0, (1 << 64) - 1 - (1 << 62)],
        [1000, 1],
    ],
    ids=str,
)
def test_tables_that_lie(device: Device, words: list[int]) -> None:
    """Numbers below 16 KiB are taken from the image on."""
    address = allocate(device)
    made = [n if i < 2 else (address + n) % (1 << 64) for i, n in enumerate(words)]
    contents, table = table_image(made)
    write(device, address, contents)
    assert "lies outside the image" in device.refused(load(device, address, table))
    assert device.ask(free_data(device, address)) == (RETURN, NONE)


def test_images_that_cannot_be(device: Device) -> None:
    address = allocate(device)
    write(device, address, b"\1" * IMAGE_NBYTES)  # a name without an end
    words = struct.pack("<4Q", 1, 0, address, address + 4096)
    assert device.ask(packet(CopyToRemote(whole(address), 32), words)) == (RETURN, NONE)
    assert "word 3 of the table" in device.refused(load(device, address, 0))
    for table in (-1, IMAGE_NBYTES, IMAGE_NBYTES - 15, 1 << 62):
        assert "lies outside the image" in device.refused(load(device, address, table))
    builtin = device.find("rpcflow.minrpc.load")
    float32 = DataType(DTypeCode.FLOAT, 32, 1)
    wrong = [
        whole(address)._replace(shape=(2, IMAGE_NBYTES // 2)),
        whole(address)._replace(dtype=float32, shape=(4,)),
        whole(address)._replace(byte_offset=8, shape=(4,)),
        whole(address + 8, 16),
    ]
    for tensor in wrong:
        assert "whole tensor of uint8" in device.refused(packet(CallFunc(builtin, [tensor, 0])))
    assert "2 arguments, not 1" in device.refused(packet(CallFunc(builtin, [whole(address)])))
    assert "argument 0 is of type 1, not 7" in device.refused(packet(CallFunc(builtin, [1, 2])))
    assert device.ask(free_data(device, address)) == (RETURN, NONE)


def test_the_build_id(device: Device) -> None:
    code, contents = device.ask(packet(CallFunc(device.find("rpcflow.minrpc.build_id"), [])))
    assert (code, contents[-5:]) == (RETURN, bytes([1, 2, 3, 0, 255]))
    assert code != EXCEPTION


def test_the_end_of_a_session_frees_modules(program: Path) -> None:
    with Device(program) as device:
        assert device.ask(INIT) == (RETURN, NONE)
        address = allocate(device)
        contents, table = table_image([0, 0])
        write(device, address, contents)
        device.pointer(load(device, address, table))
