# SPDX-License-Identifier: Apache-2.0
"""The firmware of examples/firmware on boards that QEMU emulates, and as a process, over the serial transport."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.minrpc.boards import BOARDS
from rpcflow.minrpc.building import build
from tests.line import Faults, Line, Terminal

from ..once import once
from .building import HERE, need
from .emulated import running

EXAMPLE = Path(__file__).parents[2] / "examples" / "firmware"
EMULATED = ["lm3s6965evb", "mps2-an386", "riscv-virt"]
PROCESS = "posix-serial"
QUICK = "lm3s6965evb"
"""For tests that need a board, but not each."""

Device = Callable[[str], str]
"""Starts the firmware of a board; the address of its serial line."""


@pytest.fixture(scope="session")
def tvm_objects(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The folder with the kernel that TVM compiled for each board; None without TVM."""
    if importlib.util.find_spec("tvm") is None:
        return None

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        subprocess.run([sys.executable, EXAMPLE / "tvm_kernel.py", folder], check=True, timeout=100)

    return once(tmp_path_factory, "tvm-objects", make)


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory, tvm_objects: Path | None) -> Callable[[str], Path]:
    """The firmware for a board, built when it is first asked for."""

    def built_for(board: str) -> Path:
        need(BOARDS[board].compilers[0], BOARDS[board].package)
        kernels = [EXAMPLE / "kernels.c", HERE / "board_kernels.c"]
        if tvm_objects is not None:
            kernels.append(tvm_objects / f"tvm_kernel-{'posix' if board == PROCESS else board}.o")
        return once(tmp_path_factory, f"{board}.firmware", lambda made: build(board, made, kernels))

    return built_for


@contextmanager
def device_process(program: Path, baud: int | None = None, **line: Any) -> Iterator[str]:
    """The firmware as a process on a serial line of pseudo-terminals."""
    speed = ["--baud", str(baud)] if baud else []
    with Terminal() as near, Terminal() as far, Line(near.fd, far.fd, baud=baud, **line):
        process = subprocess.Popen([program, "--device", far.path, *speed])
        try:
            yield near.path
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def device(firmware: Callable[[str], Path]) -> Iterator[Device]:
    """A device on a line without faults."""
    with ExitStack() as stack:

        def start(board: str) -> str:
            program = firmware(board)
            context = device_process(program) if board == PROCESS else running(board, program)
            return f"serial://{stack.enter_context(context)}"

        yield start


@pytest.fixture
def far_device(firmware: Callable[[str], Path]) -> Iterator[Callable[..., str]]:
    """A device on a line with the faults that are asked for."""
    with ExitStack() as stack:

        def start(board: str, **line: Any) -> str:
            program = firmware(board)
            if board == PROCESS:
                return f"serial://{stack.enter_context(device_process(program, **line))}"
            near = stack.enter_context(Terminal())
            far = stack.enter_context(open(stack.enter_context(running(board, program)), "r+b", buffering=0))
            stack.enter_context(Line(near.fd, far.fileno(), **line))
            return f"serial://{near.path}"

        yield start


def check_kernels(session: sync.RPCSession, tvm: bool, seed: int = 0) -> None:
    """Every kernel of the example, against NumPy."""
    random, device = np.random.default_rng(seed), session.cpu()
    x, y = (random.random(256, "float32") for _ in range(2))
    a, b, out = device.tensor(x), device.tensor(y), device.empty((256,))
    session.get_function("vadd")(a, b, out)
    np.testing.assert_array_equal(out.numpy(), x + y)
    left, right = random.random((12, 20), "float32"), random.random((20, 8), "float32")
    product = device.empty((12, 8))
    session.get_function("matmul")(device.tensor(left), device.tensor(right), product)
    np.testing.assert_allclose(product.numpy(), left @ right, rtol=1e-5)
    if tvm:
        session.system_lib()["normalize"](a, out)
        np.testing.assert_allclose(out.numpy(), (x - x.mean()) / x.std(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("board", [*EMULATED, PROCESS])
def test_kernels(board: str, device: Device, tvm_objects: Path | None) -> None:
    with sync.connect(device(board)) as session:
        check_kernels(session, tvm_objects is not None)


@pytest.mark.parametrize("board", [*EMULATED, PROCESS])
def test_a_kernel_compiled_by_tvm_says_what_is_wrong(board: str, device: Device, tvm_objects: Path | None) -> None:
    if tvm_objects is None:
        pytest.skip("SKIPPED, apache-tvm is missing: kernels compiled by TVM were NOT TESTED on boards")
    with sync.connect(device(board)) as session:
        normalize = session.system_lib()["normalize"]
        good, short = session.cpu().empty((256,)), session.cpu().empty((4,))
        with pytest.raises(rpcflow.RemoteError, match=r"y\.shape\[0\]"):
            normalize(good, short)
        with pytest.raises(rpcflow.RemoteError, match="dtype"):
            normalize(good, session.cpu().empty((256,), "int32"))
        normalize(good, good)  # the session is as usable as before


@pytest.mark.parametrize("board", [*EMULATED, PROCESS])
def test_errors_in_words_and_attributes(board: str, device: Device) -> None:
    with sync.connect(device(board)) as session:
        cpu = session.cpu()
        a, b = cpu.empty((4,)), cpu.empty((5,))
        vadd = session.get_function("vadd")
        with pytest.raises(rpcflow.RemoteError, match="the three must have one length"):
            vadd(a, b, a)
        with pytest.raises(rpcflow.RemoteError, match="three tensors are wanted"):
            vadd(a, 1, 2)
        with pytest.raises(rpcflow.FunctionNotFoundError, match="nosuch"):
            session.get_function("nosuch")
        whole = cpu.total_global_memory
        assert whole > (16 << 10)
        with pytest.raises(rpcflow.RemoteError, match=str(2 * whole)):
            cpu.empty((2 * whole,), "int8")
        most = cpu.empty((whole - 4096,), "int8")  # nothing is lost of what was refused
        del most


@pytest.mark.parametrize("board", [*EMULATED, PROCESS])
def test_time_evaluator(board: str, device: Device) -> None:
    with sync.connect(device(board)) as session:
        a = session.cpu().empty((256,))
        evaluator = session.system_lib().time_evaluator("vadd", session.cpu(), number=1, repeat=3, min_repeat_ms=20)
        times = evaluator(a, a, a).results
        assert len(times) == 3
        assert min(times) > 0


@pytest.mark.parametrize("board", [QUICK, PROCESS])
def test_large_tensors(board: str, device: Device) -> None:
    data = np.random.default_rng(1).integers(0, 256, 16384, "uint8")
    with sync.connect(device(board)) as session:
        tensor = session.cpu().tensor(data)
        np.testing.assert_array_equal(tensor.numpy(), data)
        np.testing.assert_array_equal(tensor.view((16, 1024)).numpy(), data.reshape(16, 1024))


NOISE = Faults(change=1e-3, lose=2e-4, add=2e-4, double=2e-4, lose_frames=0.01, double_frames=0.01, delay=0.003)


@pytest.mark.parametrize("board", [*EMULATED, PROCESS])
def test_a_bad_line(board: str, far_device: Callable[..., str], tvm_objects: Path | None) -> None:
    with sync.connect(far_device(board, forth=NOISE, back=NOISE, seed=7)) as session:
        for seed in range(3):
            check_kernels(session, tvm_objects is not None, seed)


@pytest.mark.parametrize("board", [QUICK, PROCESS])
def test_on_a_bad_line_each_call_runs_once(board: str, far_device: Callable[..., str]) -> None:
    with sync.connect(far_device(board, forth=NOISE, back=NOISE, seed=11)) as session:
        count = session.get_function("count")
        assert [count(i) for i in range(200)] == [(i + 1) * 1_000_000 + i for i in range(200)]


@pytest.mark.parametrize("board", EMULATED)
@pytest.mark.parametrize("how", ["crash", "overflow", "lost"])
def test_a_crash_is_a_reset(board: str, how: str, device: Device) -> None:
    address = device(board)
    with pytest.raises(rpcflow.ConnectionLostError, match="reset"):
        with sync.connect(address) as session:
            session.get_function("count")(1)
            session.get_function(how)()
    with sync.connect(address) as session:  # it has started afresh
        assert session.get_function("count")(5) == 1_000_005


def test_a_device_that_is_gone_and_comes_back(firmware: Callable[[str], Path]) -> None:
    program = firmware(PROCESS)
    with Terminal() as near, Terminal() as far, Line(near.fd, far.fd):
        first = subprocess.Popen([program, "--device", far.path])
        try:
            with sync.connect(f"serial://{near.path}?timeout=1") as session:
                session.get_function("count")(1)
                first.kill()
                first.wait()
                with pytest.raises(rpcflow.ConnectionLostError, match="dead"):
                    session.get_function("count")(2)
        finally:
            first.kill()
            first.wait()
        second = subprocess.Popen([program, "--device", far.path])
        try:
            with sync.connect(f"serial://{near.path}") as session:
                assert session.get_function("count")(3) == 1_000_003
        finally:
            second.kill()
            second.wait()


@pytest.mark.parametrize("board", [*EMULATED, PROCESS])
def test_a_long_call_is_no_dead_line(board: str, device: Device) -> None:
    with sync.connect(f"{device(board)}?timeout=2") as session:
        session.get_function("spin")(2500)
        assert session.get_function("count")(1) == 1_000_001


_HOST_THAT_DIES = """
import os, sys
from rpcflow import sync
session = sync.connect(sys.argv[1])
kept = [session.cpu().empty((4096,), "int8") for _ in range(4)]
print("up", flush=True)
session.get_function("spin")(3000)
"""


@pytest.mark.parametrize("board", [QUICK, PROCESS])
def test_a_host_that_dies_is_followed_by_another(board: str, device: Device) -> None:
    address = device(board)
    with sync.connect(address) as session:
        free = session.cpu().available_global_memory
    host = subprocess.Popen([sys.executable, "-c", _HOST_THAT_DIES, address], stdout=subprocess.PIPE, text=True)
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "up\n"
    finally:
        host.kill()
        host.communicate()
    # The kernel that it left running is in the way until it ends; nothing else is.
    with sync.connect(f"{address}?timeout=90", call_timeout=100) as session:
        assert session.cpu().available_global_memory == free


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_async(backend: str, device: Device) -> None:
    address = device(PROCESS)

    async def use() -> None:
        async with rpcflow.connect(address) as session:
            x = await session.cpu().tensor(np.arange(8, dtype="float32"))
            out = await session.cpu().empty((8,))
            await (await session.get_function("vadd"))(x, x, out)
            np.testing.assert_array_equal(await out.numpy(), 2 * np.arange(8))

    anyio.run(use, backend=backend)
