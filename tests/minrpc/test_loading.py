# SPDX-License-Identifier: Apache-2.0
"""``load_module`` on a board that runs: linked here, written into its RAM, called, dropped, and the RAM free again."""

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.client import aside
from rpcflow.minrpc import building
from rpcflow.minrpc.boards import RUNTIME
from rpcflow.minrpc.loading import Linker
from rpcflow.server.linking import LinkError

from ..client.lifted import Lifted, lower
from ..once import once
from ..server.support import until
from .building import need
from .emulated import running

pytestmark = pytest.mark.anyio

Connect = Callable[..., AbstractAsyncContextManager[Any]]
COMPILERS = {
    "lm3s6965evb": ("arm-none-eabi-gcc", "-mcpu=cortex-m3", "-mthumb"),
    "mps2-an386": ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
    "riscv-virt": ("riscv64-unknown-elf-gcc", "-march=rv32imac", "-mabi=ilp32", "--specs=picolibc.specs"),
}
PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
}
TARGETS = {
    "lm3s6965evb": {"mtriple": "thumbv7m-none-eabi", "mcpu": "cortex-m3", "mfloat-abi": "soft"},
    "mps2-an386": {"mtriple": "thumbv7em-none-eabihf", "mcpu": "cortex-m4", "mfloat-abi": "hard"},
    "riscv-virt": {
        "mtriple": "riscv32-unknown-elf",
        "mcpu": "generic-rv32",
        "mattr": ["+m", "+a", "+c"],
        "mabi": "ilp32",
    },
}
HEAD = """
#include <rpcflow/ffi.h>
#define F(name) int __tvm_ffi_##name(void *self, const rpcflow_value *a, int32_t n, rpcflow_value *r)
#define GIVE(value) r->type = 1; r->u.as_int = (value); return 0;
"""
COUNTER = """
static int64_t count = FIRST;
__attribute__((constructor)) static void begin(void) { count += 1; }
F(next) { GIVE(count++) }
"""
FITS = "static char room[4000]; F(fits) { room[a->u.as_int] = 1; GIVE(room[0]) }"


@pytest.fixture(params=["trio", "asyncio", "sync"])
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(api: str) -> str:
    return "trio" if api == "sync" else api


@pytest.fixture(params=["lm3s6965evb"])
def board(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


every_board = pytest.mark.parametrize("board", list(TARGETS), indirect=True)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Firmware by board, each built once; ``sizes`` make another of it."""

    def built(board: str, **sizes: int) -> Path:
        need(COMPILERS[board][0], PACKAGES[COMPILERS[board][0]])
        name = "-".join([board, *(f"{size}{value}" for size, value in sizes.items())])
        return once(tmp_path_factory, f"{name}.elf", lambda path: building.build(board, path, sizes=sizes))

    return built


@pytest.fixture
def firmware(programs: Callable[..., Path], board: str) -> Path:
    return programs(board)


@pytest.fixture
def line(board: str, firmware: Path) -> Iterator[str]:
    """The serial line of a board that has just started."""
    with running(board, firmware) as path:
        yield path


@pytest.fixture
def connect(api: str, line: str, firmware: Path) -> Connect:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Any]:
        options = {"firmware": firmware, **options}
        if api == "sync":
            with sync.connect(f"serial://{line}", **options) as blocking:
                yield Lifted(blocking)
        else:
            async with rpcflow.connect(f"serial://{line}", **options) as session:
                yield session

    return opened


@pytest.fixture
async def session(connect: Connect) -> AsyncIterator[Any]:
    async with connect() as opened:
        yield opened


@pytest.fixture
def obj(board: str, tmp_path: Path) -> Callable[..., bytes]:
    """An object of C code."""

    def compiled(source: str, *flags: str) -> bytes:
        path = tmp_path / "compiled.o"
        command = [*COMPILERS[board], *flags, "-Os", "-I", str(RUNTIME / "include"), "-xc", "-", "-c", "-o", str(path)]
        subprocess.run(command, input=HEAD + source, text=True, check=True)
        return path.read_bytes()

    return compiled


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with kernels that TVM has compiled for a board: plain, with a system library's prefix, in an archive."""
    if importlib.util.find_spec("tvm") is None:
        pytest.skip("SKIPPED, apache-tvm is missing: loading kernels compiled by TVM was NOT TESTED")

    def made(board: str) -> Path:
        return once(tmp_path_factory, f"{board}-kernels", lambda folder: compile_kernels(board, folder))

    return made


def compile_kernels(board: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    import tvm
    from tvm import te

    n = te.var("n", dtype="int64")
    a, b = te.placeholder((n,), "float32", name="a"), te.placeholder((n,), "float32", name="b")
    vadd = te.create_prim_func([a, b, te.compute((n,), lambda i: a[i] + b[i], name="c")])
    exponential = te.create_prim_func([a, te.compute((n,), lambda i: te.exp(a[i]), name="e")])
    functions = {
        name: function.with_attr("global_symbol", name)
        for name, function in {"vadd": vadd, "exponential": exponential}.items()
    }
    target = tvm.target.Target({"kind": "llvm", **TARGETS[board]})
    for name, attrs in (("plain", {}), ("system", {"system_lib_prefix": ""})):
        lib = tvm.compile(tvm.IRModule(functions, attrs=attrs), target=tvm.target.Target(target, host=target))
        lib.mod.write_to_file(str(folder / f"{name}.o"))
        lib.export_library(str(folder / f"{name}.tar"))


async def free_memory(session: Any) -> tuple[int, int]:
    """Bytes of RAM that are free on the board, and in the largest piece; it tells when it is asked for too much."""
    with pytest.raises(rpcflow.RemoteError) as caught:
        await session.cpu().empty((1 << 30,), "uint8")
    found = re.search(r"(\d+) free, the largest piece (\d+)", str(caught.value))
    assert found is not None, caught.value
    return int(found[1]), int(found[2])


def left_behind() -> list[str]:
    """Temporary files; those of compilers too."""
    return os.listdir(tempfile.gettempdir())


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert left_behind() == []


class TestCompiledByTvm:
    @pytest.mark.parametrize(
        ("board", "file"),
        [
            *(("lm3s6965evb", name) for name in ("plain.o", "system.o", "plain.tar", "system.tar")),
            ("mps2-an386", "system.o"),
            ("riscv-virt", "plain.tar"),
        ],
        indirect=["board"],
    )
    async def test_called_and_dropped(
        self, session: Any, board: str, kernels: Callable[[str], Path], file: str
    ) -> None:
        before = await free_memory(session)
        await session.upload(kernels(board) / file)
        module = await session.load_module(file)
        device = session.cpu()
        x, y = np.arange(50, dtype="float32"), np.linspace(-3, 3, 50, dtype="float32")
        a, b, c = await device.tensor(x), await device.tensor(y), await device.empty(50)
        vadd = await module.get_function("vadd")
        await vadd(a, b, c)
        np.testing.assert_array_equal(await c.numpy(), x + y)
        exponential = await module.get_function("exponential")
        await exponential(b, c)
        np.testing.assert_allclose(await c.numpy(), np.exp(y), rtol=1e-6)
        with pytest.raises(rpcflow.RemoteError, match="Expected 3 arguments"):
            await vadd(a, b)
        evaluator = await module.time_evaluator("vadd", lower(device), number=1, repeat=3, min_repeat_ms=2)
        times = await evaluator(a, b, c)
        assert len(times.results) == 3
        assert all(seconds > 0 for seconds in times.results)
        del module, vadd, exponential, evaluator, a, b, c
        assert await free_memory(session) == before

    async def test_nothing_piles_up(self, session: Any, board: str, kernels: Callable[[str], Path]) -> None:
        before = await free_memory(session)
        await session.upload(kernels(board) / "system.o")
        device = session.cpu()
        x = np.arange(10, dtype="float32")
        for i in range(20):
            module = await session.load_module("system.o")
            a, c = await device.tensor(x + i), await device.empty(10)
            function = await module.get_function("vadd")
            await function(a, a, c)
            np.testing.assert_array_equal(await c.numpy(), 2 * (x + i))
            del module, function, a, c
        _, largest = await free_memory(session)
        assert (await free_memory(session)) == before
        all_of_it = await device.empty((largest,), "uint8")  # as large as it says
        del all_of_it
        with pytest.raises(rpcflow.FunctionNotFoundError):
            await session.get_function("vadd")  # it has not stayed in the firmware's table


class TestModules:
    @every_board
    async def test_two_at_once(self, session: Any, obj: Callable[..., bytes]) -> None:
        modules = []
        for first in (10, 20):
            await session.upload(obj(COUNTER, f"-DFIRST={first}"), f"from-{first}.o")
            modules.append(await session.load_module(f"from-{first}.o"))
        one, other = [await module.get_function("next") for module in modules]
        assert [await one(), await other(), await one(), await other()] == [11, 21, 12, 22]
        modules.pop(0)
        del one
        assert await other() == 23
        await session.upload(obj(COUNTER, "-DFIRST=30"), "from-30.o")
        third = await (await session.load_module("from-30.o")).get_function("next")
        assert [await third(), await other()] == [31, 24]

    async def test_a_function_outlives_its_module(self, session: Any, obj: Callable[..., bytes]) -> None:
        before = await free_memory(session)
        await session.upload(obj(COUNTER, "-DFIRST=1"), "k.o")
        module = await session.load_module("k.o")
        function = await module.get_function("next")
        held = await free_memory(session)
        del module
        assert await free_memory(session) == held
        assert [await function(), await function()] == [2, 3]
        del function
        assert await free_memory(session) == before

    async def test_the_end_of_a_session_frees_them(self, connect: Connect, obj: Callable[..., bytes]) -> None:
        async with connect() as session:
            before = await free_memory(session)
            await session.upload(obj(FITS), "k.o")
            kept = await session.load_module("k.o")
            assert await free_memory(session) < before
        async with connect() as session:
            assert await free_memory(session) == before
            with pytest.raises(rpcflow.RemoteError, match=r"no file 'k\.o'"):
                await session.load_module("k.o")
        del kept

    async def test_size_that_depends_on_the_place(
        self, session: Any, obj: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is to lie at multiples of 1,024 needs room before it, more or less of it."""
        source = """
        static volatile char table[16] __attribute__((aligned(1024))) = {7};
        F(place) { GIVE((int64_t)(uintptr_t)table % 1024 + table[0]) }
        """
        prepare, command, links = Linker.prepare, Linker.command, []

        def guess_low(linker: Linker) -> None:
            prepare(linker)
            linker.guess = linker.guess // 1024 * 1024  # where none is needed

        monkeypatch.setattr(Linker, "prepare", guess_low)
        monkeypatch.setattr(Linker, "command", lambda linker, at: links.append(at) or command(linker, at))
        await session.upload(obj(source), "k.o")
        before = await free_memory(session)
        for _ in range(3):
            taken = await session.cpu().empty((100,), "uint8")
            module = await session.load_module("k.o")
            function = await module.get_function("place")
            assert await function() == 7
            more = await session.cpu().empty((1,), "uint8")
            del module, function, taken
            await free_memory(session)
            taken = more
        assert len(links) > 2 * 3, "it never had to ask for more"
        del taken, more
        assert await free_memory(session) == before

    @pytest.mark.parametrize("api", ["trio"], indirect=True)
    async def test_one_that_the_firmware_has_too(self, board: str, obj: Callable[..., bytes], tmp_path: Path) -> None:
        """A kernel is worked at by loading one that the firmware has in an older form."""
        source = "static int64_t helper(void) { return NUMBER; } F(same) { GIVE(helper()) }"
        firmware = tmp_path / "fw.elf"
        old = tmp_path / "old.c"
        old.write_text(HEAD + source + "RPCFLOW_REGISTER(same, __tvm_ffi_same);\n")
        building.build(board, firmware, [old], options=["-DNUMBER=1", "-include", "rpcflow/runtime.h"])
        with running(board, firmware) as line:
            async with rpcflow.connect(f"serial://{line}", firmware=firmware) as session:
                built_in = await session.get_function("same")
                await session.upload(obj(source, "-DNUMBER=2"), "k.o")
                module = await session.load_module("k.o")
                assert [await built_in(), await module["same"]()] == [1, 2]
                del module
                assert await built_in() == 1

    async def test_the_linked_file(self, session: Any, obj: Callable[..., bytes]) -> None:
        await session.upload(obj(FITS), "k.o")
        data = await session.download_linked_module("k.o")
        assert type(data) is bytearray
        assert data.startswith(b"\x7fELF")


class TestErrors:
    async def test_too_large(self, session: Any, obj: Callable[..., bytes]) -> None:
        free, largest = before = await free_memory(session)
        await session.upload(obj("static char room[1 << 20]; F(f) { GIVE(room[a->u.as_int]++) }"), "big.o")
        with pytest.raises(LinkError, match=r"big\.o does not fit: its image takes 10\d{5} bytes") as caught:
            await session.load_module("big.o")
        assert f"{free} free, the largest piece {largest}" in str(caught.value)
        assert await free_memory(session) == before

    async def test_another_firmware(
        self, connect: Connect, programs: Callable[..., Path], board: str, obj: Callable[..., bytes]
    ) -> None:
        other = programs(board, MAX_ARGS=17)
        async with connect(firmware=str(other)) as session:
            before = await free_memory(session)
            await session.upload(obj(FITS), "k.o")
            with pytest.raises(LinkError, match=rf"does not run {other.name}: the build id .* [0-9a-f]{{40}}"):
                await session.load_module("k.o")
            assert await free_memory(session) == before

    async def test_no_firmware(self, connect: Connect, obj: Callable[..., bytes]) -> None:
        async with connect(firmware=None) as session:
            await session.upload(obj(FITS), "k.o")
            with pytest.raises(LinkError, match=r"firmware='fw\.elf'.*serial:///dev/\.\.\.\?firmware=fw\.elf"):
                await session.load_module("k.o")

    async def test_firmware_named_in_the_address(self, line: str, firmware: Path, obj: Callable[..., bytes]) -> None:
        async with rpcflow.connect(f"serial://{line}?firmware={firmware}") as session:
            await session.upload(obj(COUNTER, "-DFIRST=1"), "k.o")
            module = await session.load_module("k.o")
            assert await module["next"]() == 2

    async def test_firmware_that_is_gone_by_then(
        self,
        connect: Connect,
        firmware: Path,
        obj: Callable[..., bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """And its path is of the folder that was current when it was named."""
        copy = tmp_path / "fw.elf"
        copy.write_bytes(firmware.read_bytes())
        async with connect(firmware=os.path.relpath(copy)) as session:
            await session.upload(obj(COUNTER, "-DFIRST=1"), "k.o")
            monkeypatch.chdir("/")
            await session.load_module("k.o")
            copy.unlink()
            with pytest.raises(LinkError, match=r"fw\.elf cannot be read: No such file"):
                await session.load_module("k.o")

    async def test_a_file_that_is_not_there(self, connect: Connect, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.elf"):
            async with connect(firmware=tmp_path / "nothing.elf"):
                pass

    async def test_one_that_cannot_load(
        self, programs: Callable[..., Path], board: str, obj: Callable[..., bytes]
    ) -> None:
        firmware = programs(board, MAX_MODULES=0)
        with running(board, firmware) as line:
            async with rpcflow.connect(f"serial://{line}", firmware=firmware) as session:
                await session.upload(obj(FITS), "k.o")
                with pytest.raises(LinkError, match=r"no function 'rpcflow\.minrpc\.load'.* RPCFLOW_MAX_MODULES"):
                    await session.load_module("k.o")

    async def test_more_modules_than_there_is_room_for(self, session: Any, obj: Callable[..., bytes]) -> None:
        before = await free_memory(session)
        await session.upload(obj(COUNTER, "-DFIRST=1"), "k.o")
        modules = []
        with pytest.raises(rpcflow.RemoteError, match="RPCFLOW_MAX_MODULES"):
            while len(modules) < 100:
                modules.append(await session.load_module("k.o"))
        held = await free_memory(session)  # what was written for the last one is not left over
        modules.pop()
        modules.append(await session.load_module("k.o"))
        assert await free_memory(session) == held
        modules.clear()
        assert await free_memory(session) == before

    async def test_missing_symbols(self, session: Any, obj: Callable[..., bytes]) -> None:
        await session.upload(obj("int nowhere(void); F(f) { GIVE(nowhere()) }"), "k.o")
        with pytest.raises(LinkError, match="libraries have: nowhere"):
            await session.load_module("k.o")
        assert await session.listdir(".") == "k.o"

    async def test_a_compiler_that_hangs(
        self, connect: Connect, obj: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = obj(FITS)
        hanging = tmp_path / "bin" / "arm-none-eabi-gcc"
        hanging.parent.mkdir()
        hanging.write_text(
            f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/begun\nmv {tmp_path}/begun {tmp_path}/pid\nwait\n"
        )
        hanging.chmod(0o755)
        async with connect(call_timeout=1.5) as session:
            before = await free_memory(session)
            await session.upload(data, "k.o")
            monkeypatch.setenv("PATH", f"{hanging.parent}:{os.environ['PATH']}")
            with pytest.raises(rpcflow.CallTimeoutError):
                await session.load_module("k.o")
            assert left_behind() == []
            assert await free_memory(session) == before
        if (tmp_path / "pid").exists():
            pid = int((tmp_path / "pid").read_text())
            until(lambda: not runs(pid))  # killed with the compiler, and nobody waited for it


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("api", ["trio", "asyncio"], indirect=True)
async def test_cancelled_at_every_wait(
    connect: Connect, obj: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between requests, and while an answer or the compiler is awaited: the board keeps nothing, and the session goes
    on."""
    counting: list[int] = []
    scope = anyio.CancelScope()

    def counted(wait: Any) -> Any:
        async def waiting(*args: Any) -> Any:
            if counting:
                counting[0] -= 1
                if counting[0] == 0:
                    scope.cancel()
            return await wait(*args)

        return waiting

    for kind in (aside.Work, aside.Program):
        monkeypatch.setattr(kind, "arun", counted(kind.arun))
    async with connect() as session:
        core = session._core
        core._receive = counted(core._receive)
        before = await free_memory(session)
        await session.upload(obj(COUNTER, "-DFIRST=1"), "k.o")
        waits = 0
        done = False
        while not done:
            waits += 1
            counting[:] = [waits]
            with anyio.CancelScope() as scope:
                module = await session.load_module("k.o")
                done = True
            counting.clear()
            assert left_behind() == []
            if not done:
                assert await free_memory(session) == before, f"cancelled at wait {waits}"
        assert waits > 8
        assert await module["next"]() == 2
