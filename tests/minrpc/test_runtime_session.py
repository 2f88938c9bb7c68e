# SPDX-License-Identifier: Apache-2.0
"""The C runtime behind the public API: what a session's objects do on a device without Python."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from rpcflow.devices import DEVICE_TYPES
from rpcflow.errors import FunctionNotFoundError, RemoteError
from rpcflow.sync.session import RPCSession

from .building import HERE, build
from .compiled import BIG, N
from .serving import Device


@pytest.fixture
def session(device_program: Path) -> Iterator[RPCSession]:
    with Device(device_program) as device, device.session() as session:
        yield session


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        True,
        False,
        1.5,
        -math.inf,
        "",
        "seven b",
        "eight by",
        "ä" * 300_000,
        b"",
        b"\0\1\0",
        b"seven b",
        bytes(range(256)) * 300,
    ],
    ids=lambda value: repr(value)[:12],
)
def test_values_come_back_as_they_went(session: RPCSession, value: Any) -> None:
    got = session.get_function("echo")(value)
    assert got == value
    assert type(got) is type(value)


def test_dtypes_and_devices_come_back(session: RPCSession) -> None:
    echo = session.get_function("echo")
    assert str(echo(np.dtype("float16"))) == "float16"
    assert str(echo(np.dtype(ml_dtypes.bfloat16))) == "bfloat16"
    device = echo(session.cpu(3))
    assert (device.dev_type, device.dev_id) == (1, 3)
    assert math.isnan(echo(math.nan))


def test_many_arguments_of_all_kinds(session: RPCSession) -> None:
    tensor = session.cpu().tensor(np.arange(3))
    assert session.get_function("echo")(1, "two", b"three", 4.0, None, tensor, True, np.dtype("int8"), "last") == "last"


def test_small_strings_of_functions(session: RPCSession) -> None:
    assert session.get_function("small")() == "abc"
    assert session.get_function("small")(1) == b"abc"


def test_bytes_that_lie_nowhere(session: RPCSession) -> None:
    assert session.get_function("nowhere")() == b""
    with pytest.raises(RemoteError, match="type 9, cannot travel"):
        session.get_function("nowhere")(1)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64", "bfloat16", "int4"]
)
def test_tensors_of_all_dtypes(session: RPCSession, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype) if hasattr(ml_dtypes, dtype) else dtype)
    array = (np.arange(105) % 5).astype(kind).reshape(3, 5, 7)
    tensor = session.cpu().tensor(array)
    assert np.array_equal(tensor.numpy(), array)
    other = session.cpu().empty((3, 5, 7), kind)
    tensor.copyto(other)
    assert np.array_equal(other.numpy(), array)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 5), (1, 1, 1, 1, 1, 1, 1, 1), (1 << 20,)], ids=str)
def test_tensors_of_all_shapes(session: RPCSession, shape: tuple[int, ...]) -> None:
    tensor = session.cpu().empty(shape, "float32")
    session.get_function("fill")(tensor, 2.5)
    assert np.array_equal(tensor.numpy(), np.full(shape, 2.5, "float32"))


def test_views_reach_their_own_part_only(session: RPCSession) -> None:
    tensor = session.cpu().tensor(np.zeros(16, "float32"))
    session.get_function("fill")(tensor.view((4,), byte_offset=16), 1.0)
    assert np.array_equal(np.flatnonzero(tensor.numpy()), [4, 5, 6, 7])
    with pytest.raises(RemoteError, match="argument 0: its elements are not aligned"):
        session.get_function("fill")(tensor.view((4,), byte_offset=2), 1.0)


def test_errors_arrive_in_words(session: RPCSession) -> None:
    with pytest.raises(RemoteError, match="add takes two ints"):
        session.get_function("add")("one", 2)
    fail = session.get_function("fail")
    with pytest.raises(RemoteError, match="zu groß"):
        fail("zu groß")
    with pytest.raises(RemoteError, match="did not say why"):
        fail()
    with pytest.raises(RemoteError) as caught:  # cut where a character ends
        fail("ä" * 5000)
    assert str(caught.value).count("ä") == 2048
    with pytest.raises(RemoteError, match="NUL"):
        fail("a\0b")
    assert session.get_function("add")(2, 3) == 5


@pytest.mark.parametrize("kind", [7, 8, 9, 10, 65, 70, 73, 68, -1, 1 << 30])
def test_a_senseless_result_is_an_error(session: RPCSession, kind: int) -> None:
    with pytest.raises(RemoteError, match="cannot travel"):
        session.get_function("senseless")(kind)


def test_names_that_do_not_exist(session: RPCSession) -> None:
    for name in ("nothing", "tvm.rpc.server.upload", "rpcflow.minrpc.load", "rpcflow.minrpc.build_id", "__tvm_ffi_add"):
        with pytest.raises(FunctionNotFoundError):
            session.get_function(name)
    with pytest.raises(FunctionNotFoundError):
        session.system_lib()["nothing"]


def test_registered_functions_are_in_the_system_library_too(session: RPCSession) -> None:
    module = session.system_lib()
    assert module["add"](20, 22) == 42
    with pytest.raises(RemoteError, match="0 arguments, not 1"):
        session.get_function("ffi.SystemLib")("prefix_")


def test_handles_are_not_for_functions_of_the_device(session: RPCSession) -> None:
    with pytest.raises(RemoteError, match="argument 1: this function cannot take"):
        session.get_function("echo")(1, session.system_lib())
    with pytest.raises(RemoteError, match="argument 0: this function cannot take"):
        session.get_function("echo")(session.get_function("add"))


def test_what_the_device_says_of_itself(session: RPCSession, device_program: Path) -> None:
    device = session.cpu()
    assert device.exist
    assert device.attr("total_global_memory") == os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGESIZE")
    free = device.attr("available_global_memory")
    tensor = device.empty((1000,), "uint8")
    assert free - device.attr("available_global_memory") == 1024
    del tensor
    assert device.attr("available_global_memory") == free
    assert device.attr("warp_size") is None
    assert session.device("cuda").exist is False
    with pytest.raises(RemoteError, match="no device here but cpu 0"):
        session.cuda().attr("warp_size")
    for kind in ("cuda", "opencl"):
        with pytest.raises(RemoteError, match="no device here but cpu 0"):
            session.device(DEVICE_TYPES[kind]).empty((3,))
    with pytest.raises(RemoteError, match="no device here but cpu 0"):
        session.cpu(1).empty((3,))


def test_streams_are_there_in_name_only(session: RPCSession) -> None:
    device = session.cpu()
    stream = device.create_stream()
    assert stream == 0
    device.set_stream(stream)
    device.sync(stream)
    device.free_stream(stream)


def test_scopes_of_memory(session: RPCSession) -> None:
    assert session.cpu().empty((3,), mem_scope="global").shape == (3,)
    with pytest.raises(RemoteError, match="no scope texture"):
        session.cpu().empty((3,), mem_scope="texture")


def test_memory_that_is_not_there(device_program: Path) -> None:
    environment = {**os.environ, "RPCFLOW_MEMORY_NBYTES": "65536"}
    with Device(device_program, environment) as device, device.session() as session:
        cpu = session.cpu()
        assert cpu.attr("total_global_memory") == 65536
        tensors = [cpu.empty((16384,), "uint8") for _ in range(4)]
        with pytest.raises(RemoteError, match="1 bytes asked for, 0 free, the largest piece 0"):
            cpu.empty((1,), "uint8")
        del tensors[0], tensors[1]
        with pytest.raises(RemoteError, match="16385 bytes asked for, 32768 free, the largest piece 16384"):
            cpu.empty((16385,), "uint8")
        cpu.empty((16384,), "uint8")
        workspace = session.get_function("workspace")
        workspace(16384)
        with pytest.raises(RemoteError, match="1000000 bytes asked for"):
            workspace(1_000_000)
        with pytest.raises(RemoteError, match="100000 bytes asked for"):
            session.system_lib().time_evaluator("counted", cpu, cache_flush_bytes=100_000)()
        with pytest.raises(RemoteError, match="out of memory"):
            cpu.empty((1 << 30, 1 << 29), "float32")


@pytest.mark.parametrize("nbytes", ["", "x", "1", "-5", str(1 << 63)])
def test_memory_that_cannot_be(device_program: Path, nbytes: str) -> None:
    with Device(device_program, {**os.environ, "RPCFLOW_MEMORY_NBYTES": nbytes}) as device:
        device.broken = True
    assert device.status == 3
    assert "RPCFLOW_MEMORY_NBYTES" in device.words


def test_time_evaluator(session: RPCSession) -> None:
    module = session.system_lib()
    before = module["counted"]()
    evaluator = module.time_evaluator("counted", session.cpu(), number=5, repeat=3, f_preproc="prepare")
    result = evaluator(1, "two")
    assert len(result.results) == 3
    assert all(0 < seconds < 1 for seconds in result.results)
    assert module["counted"]() == before + 1 + 15 + 1
    assert session.get_function("prepare")() == 4
    grown = module.time_evaluator("counted", session.cpu(), number=1, min_repeat_ms=5, cooldown_interval_ms=1)
    seconds = grown().mean
    assert module["counted"]() > before + 1000  # it takes far less than 5 us
    assert 0 < seconds < 5e-6 * 10
    assert module.time_evaluator("counted", session.cpu(), cache_flush_bytes=1 << 20)().mean > 0


def test_arguments_outlive_each_repeat(session: RPCSession) -> None:
    """Results lie behind the arguments, not over them."""
    evaluator = session.system_lib().time_evaluator("told", session.cpu(), number=1, repeat=20)
    assert len(evaluator("a text of some length that stays", 7).results) == 20


def test_time_evaluator_refuses(session: RPCSession) -> None:
    module, cpu = session.system_lib(), session.cpu()
    with pytest.raises(RemoteError, match="no function nothing"):
        module.time_evaluator("nothing", cpu)
    with pytest.raises(RemoteError, match="no function nothing"):
        module.time_evaluator("add", cpu, f_preproc="nothing")
    with pytest.raises(RemoteError, match="argument 4 is out of range"):
        module.time_evaluator("add", cpu, number=0)
    with pytest.raises(RemoteError, match="argument 5 is out of range"):
        module.time_evaluator("add", cpu, repeat=-1)
    with pytest.raises(RemoteError, match="argument 9 is out of range"):
        module.time_evaluator("add", cpu, cooldown_interval_ms=1, repeats_to_cooldown=0)
    with pytest.raises(RemoteError, match="no device here but cpu 0"):
        module.time_evaluator("add", session.cuda())
    with pytest.raises(RemoteError, match="add takes two ints"):
        module.time_evaluator("add", cpu)()
    with pytest.raises(RemoteError, match="RPCFLOW_PACKET_NBYTES"):
        module.time_evaluator("counted", cpu, number=1, repeat=1 << 20)()


def test_time_evaluators_are_given_back(small_program: Path) -> None:
    with Device(small_program) as device, device.session() as session:
        module, cpu = session.system_lib(), session.cpu()
        for _ in range(10):
            assert module.time_evaluator("counted", cpu)().mean > 0
        kept = [module.time_evaluator("counted", cpu) for _ in range(2)]
        with pytest.raises(RemoteError, match="RPCFLOW_MAX_EVALUATORS is 2"):
            module.time_evaluator("counted", cpu)
        assert kept[0]().mean > 0


def test_small_sizes(small_program: Path) -> None:
    """Tensors go in pieces, larger requests are refused with what would have been needed."""
    with Device(small_program) as device, device.session() as session:
        array = np.arange(5000, dtype="float64")
        tensor = session.cpu().tensor(array)
        assert np.array_equal(tensor.numpy(), array)
        echo = session.get_function("echo")
        assert echo("x" * 400) == "x" * 400
        with pytest.raises(RemoteError, match="no room for 1028 on this device: RPCFLOW_PACKET_NBYTES is 512"):
            echo("x" * 1000)
        with pytest.raises(RemoteError, match="no room for 17 on this device: RPCFLOW_MAX_ARGS is 16"):
            echo(*range(17))
        with pytest.raises(RemoteError, match="RPCFLOW_TENSOR_NBYTES is 256"):
            echo(*[tensor] * 5)
        tensors = [session.cpu().empty((1,)) for _ in range(31)]
        with pytest.raises(RemoteError, match="RPCFLOW_MAX_BLOCKS is 32"):
            session.cpu().empty((1,))
        del tensors
        assert echo(*[tensor] * 3, "still there") == "still there"


def test_more_functions_than_there_is_room_for(tmp_path: Path) -> None:
    program = build(tmp_path / "device", "posix_pipe.c", [HERE / "kernels.c"], ["-DRPCFLOW_MAX_FUNCTIONS=4"])
    registered = (HERE / "kernels.c").read_text().count("RPCFLOW_REGISTER(")
    message = f"no room for {registered} on this device: RPCFLOW_MAX_FUNCTIONS is 4"
    with Device(program) as device, device.session() as session:
        module = session.system_lib()
        for name in ("add", "echo", "small", "senseless"):
            assert module.get_function(name).name == name
        for name in ("fill", "hang", "unheard of"):
            with pytest.raises(RemoteError, match=message):
                module.get_function(name)


@pytest.mark.interop
def test_stock_client_on_pipes(tvm_program: Path) -> None:
    """Which gives the program two pipes."""
    import tvm
    from tvm import rpc

    session = rpc.PopenSession(str(tvm_program))
    device = session.cpu(0)
    a = np.random.default_rng(1).random(200_000, "float32")
    tensor, out = tvm.runtime.tensor(a, device), tvm.runtime.empty((200_000,), "float32", device)
    module = session.system_lib()
    module["doubled"](tensor, out)
    assert np.array_equal(out.numpy(), a * 2)
    assert module.time_evaluator("doubled", device, number=2, repeat=3)(tensor, out).mean > 0


def test_kernels_that_tvm_has_compiled(tvm_program: Path) -> None:
    with Device(tvm_program) as device, device.session() as session:
        module, cpu = session.system_lib(), session.cpu()
        rng = np.random.default_rng(1)
        a, b = rng.random(1000, "float32"), rng.random(1000, "float32")
        out = cpu.empty((1000,), "float32")
        module["vadd"](cpu.tensor(a), cpu.tensor(b), out)
        assert np.array_equal(out.numpy(), a + b)
        module["doubled"](cpu.tensor(a), out)
        assert np.array_equal(out.numpy(), a * 2)
        y = cpu.empty((N,), "float32")
        module["exponential"](cpu.tensor(a[:N]), y)
        assert np.allclose(y.numpy(), np.exp(a[:N]), rtol=1e-5)
        p, q = rng.random((8, 16), "float32"), rng.random((16, 4), "float32")
        r = cpu.empty((8, 4), "float32")
        module["matmul"](cpu.tensor(p), cpu.tensor(q), r)
        assert np.allclose(r.numpy(), p @ q, rtol=1e-5)
        x, z = rng.random(BIG, "float32"), cpu.empty((BIG,), "float32")
        free = cpu.attr("available_global_memory")
        module["reverse"](cpu.tensor(x), z)
        assert np.array_equal(z.numpy(), (x[::-1] + np.float32(1)) * 2)
        assert cpu.attr("available_global_memory") == free
        assert module.time_evaluator("vadd", cpu, number=3)(cpu.tensor(a), cpu.tensor(b), out).mean > 0


def test_what_compiled_kernels_refuse(tvm_program: Path) -> None:
    with Device(tvm_program) as device, device.session() as session:
        module, cpu = session.system_lib(), session.cpu()
        a = cpu.tensor(np.zeros(10, "float32"))
        with pytest.raises(RemoteError, match=r"[Ee]xpected 3"):
            module["vadd"](a, a)
        with pytest.raises(RemoteError, match="float32"):
            module["vadd"](a, a, cpu.tensor(np.zeros(10)))
        with pytest.raises(RemoteError, match="vadd"):
            module["vadd"](a, a, cpu.tensor(np.zeros(11, "float32")))
        for wrong in (None, 1, 2.5, "text", b"bytes"):
            with pytest.raises(RemoteError, match="vadd"):
                module["vadd"](a, a, wrong)
        with pytest.raises(FunctionNotFoundError):  # kernels belong to their module
            session.get_function("vadd")
        module["vadd"](a, a, a)
