# SPDX-License-Identifier: Apache-2.0
"""Programs that are linked with tvm-ffi's library, or TVM's: what is registered there, and objects with handles."""

import gc
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpcflow import sync as rpc
from rpcflow.errors import RemoteError
from rpcflow.protocol.dtype import DataType, DTypeCode
from rpcflow.protocol.packets import CallFunc, Code, CopyFromRemote, CopyToRemote, SysCall
from rpcflow.protocol.values import Device as Where
from rpcflow.protocol.values import FunctionRef, ModuleRef, ObjectRef, Pointer, TensorView

from .compiled import BIG
from .conftest import Built
from .serving import COPY_ACK, INIT, NONE, RETURN, Device, packet

PLACES = 8
"""For objects in the programs of these tests."""


@pytest.fixture(params=["libtvm", "libtvm_ffi"])
def remote(request: pytest.FixtureRequest, with_objects: Built) -> Iterator[Any]:
    with rpc.PopenSession(with_objects("posix_popen_server", request.param)) as session:
        yield session


def test_values_of_every_kind(remote: Any) -> None:
    echo = remote.get_function("t.echo")
    for value in (
        None,
        True,
        False,
        0,
        -(1 << 63),
        1.5,
        "",
        "seven b",
        "eight by",
        "ä" * 1000,
        b"",
        b"1\x002",
        b"x" * 9999,
    ):
        got = echo(value)
        assert got == value
        assert type(got) is type(value) or isinstance(got, type(value))
    assert remote.get_function("t.text")() == "one\0two and more"
    assert remote.get_function("t.length")(remote.get_function("ffi.Shape")(3, 4, 5)) == 3


def test_functions_are_objects(remote: Any) -> None:
    alive = remote.get_function("t.alive")
    counter = remote.get_function("t.counter")(10)
    assert (counter(), counter()) == (11, 12)
    assert remote.get_function("t.twice")(counter) == 13 + 14
    assert remote.get_function("t.echo")(counter)() == 15
    assert alive() == 1
    del counter
    gc.collect()
    assert alive() == 0


def test_modules_are_objects(remote: Any) -> None:
    module = remote.get_function("t.echo")(remote.system_lib())
    x = remote.cpu().tensor(numpy.arange(5, dtype="float32"))
    module["vadd"](x, x, x)
    assert (x.numpy() == numpy.arange(5) * 2).all()
    remote.get_function("t.apply")(module["vadd"], x)
    assert (x.numpy() == numpy.arange(5) * 4).all()


def test_tensors_are_objects(remote: Any) -> None:
    alive = remote.get_function("t.alive")
    made = remote.get_function("t.made")(1000)
    assert (made.shape, made.dtype) == ((1000, 2), "float32")
    assert (made.numpy() == numpy.arange(2000).reshape(1000, 2)).all()
    made.copyfrom(numpy.ones((1000, 2), "float32"))
    assert remote.get_function("t.sum")(made) == 2000
    flat, device = made.view((2000,)), remote.cpu()
    module, out = remote.system_lib(), device.empty((2000,), "float32")
    module["vadd"](flat, flat, out)
    assert (out.numpy() == 2).all()
    made.view((10,), byte_offset=7960).copyfrom(numpy.full(10, 4, "float32"))
    assert remote.get_function("t.sum")(made) == 1990 + 40
    with pytest.raises(RemoteError, match="strides"):
        remote.get_function("t.column")(5)
    assert alive() == 1
    assert made.numpy().sum() == 1990 + 40
    del made, flat
    gc.collect()
    assert alive() == 0


def test_a_module_can_be_freed_under_its_functions(remote: Any) -> None:
    kernel = remote.system_lib()["vadd"]
    gc.collect()
    x = remote.cpu().tensor(numpy.ones(3, dtype="float32"))
    kernel(x, x, x)
    assert (x.numpy() == 2).all()


def test_errors_of_the_library(remote: Any) -> None:
    for words in ("so it is", "ä" * 5000):
        with pytest.raises(RemoteError) as caught:
            remote.get_function("t.fail")(words)
        assert caught.value.remote_message == words[: len(caught.value.remote_message)]
        assert len(caught.value.remote_message) >= min(len(words), 2000)
    with pytest.raises(RemoteError, match="Mismatched"):
        remote.get_function("t.made")("three")
    with pytest.raises(RemoteError, match="Expected"):
        remote.get_function("t.made")()


def test_more_objects_than_there_are_places_for(remote: Any) -> None:
    make, alive = remote.get_function("t.counter"), remote.get_function("t.alive")
    kept = [make(i) for i in range(6)]
    for _ in range(3):
        with pytest.raises(RemoteError, match="RPCFLOW_MAX_OBJECTS"):
            make(0)
        with pytest.raises(RemoteError, match="RPCFLOW_MAX_OBJECTS"):
            remote.get_function("t.made")
    assert alive() == 6
    assert [counter() for counter in kept] == [1, 2, 3, 4, 5, 6]
    del kept[:3]
    gc.collect()
    assert alive() == 3
    assert make(100)() == 101


def test_no_memory_for_a_workspace(with_objects: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPCFLOW_MEMORY_NBYTES", str(4 * BIG * 2 + 4096))  # two tensors of it, and no workspace
    with rpc.PopenSession(with_objects("posix_popen_server", "libtvm_ffi")) as remote:
        x, out = (remote.cpu().empty((BIG,), "float32") for _ in range(2))
        with pytest.raises(RemoteError, match="out of memory"):
            remote.system_lib()["reverse"](x, out)
        remote.system_lib()["vadd"](x, x, out)


FLOAT = DataType(DTypeCode.FLOAT, 32, 1)


@pytest.fixture(params=["libtvm", "libtvm_ffi"])
def device(request: pytest.FixtureRequest, with_objects: Built) -> Iterator[Device]:
    with Device(Path(with_objects("posix_popen_server", request.param))) as device:
        assert device.ask(INIT) == (RETURN, NONE)
        yield device
        assert device.ask(call(device.find("t.echo"), 1)) == (RETURN, struct.pack("<iiqiq", 2, 1, 1, 1, 1))


def call(handle: int, *args: Any) -> bytes:
    return packet(CallFunc(handle, list(args)))


def free(handle: int) -> bytes:
    return packet(SysCall(Code.FREE_HANDLE, [Pointer(handle)]))


def test_handles_of_nothing(device: Device) -> None:
    echo, make = device.find("t.echo"), device.find("t.counter")
    counter = device.pointer(call(make, 1))
    again = device.pointer(call(echo, FunctionRef(counter)))
    assert again != counter  # each carries a reference of its own
    assert device.ask(free(counter)) == (RETURN, NONE)
    system_lib = device.pointer(call(device.find("ffi.SystemLib")))
    for handle in (counter, again ^ 1 << 16, again ^ 1 << 32, again ^ 1 << 8, again ^ 1, again & 0xFFFF, (1 << 64) - 1):
        assert "handle" in device.refused(call(handle))
        assert "handle" in device.refused(free(handle))
        for reference in (FunctionRef, ModuleRef, ObjectRef):
            assert "handle" in device.refused(call(echo, reference(handle)))
        get = device.find("tvm.rpc.server.ModuleGetFunction")
        assert "handle" in device.refused(call(get, ModuleRef(handle), "vadd", True))
    assert "handle" in device.refused(call(system_lib))  # it is no function
    assert "handle" in device.refused(call(get, ModuleRef(again), "vadd", True))  # nor this a module
    assert device.pointer(call(again)) == 2
    for _ in range(100):  # and nothing of all that has taken a place
        assert device.ask(free(device.pointer(call(echo, ObjectRef(again))))) == (RETURN, NONE)


def test_a_kernel_is_given_no_addresses(device: Device) -> None:
    module = device.pointer(call(device.find("ffi.SystemLib")))
    kernel = device.pointer(call(device.find("tvm.rpc.server.ModuleGetFunction"), ModuleRef(module), "vadd", True))
    wild = Pointer(0xDEAD0000)
    assert "number" in device.refused(call(kernel, wild, wild, wild))
    assert "vadd" in device.refused(call(kernel, FunctionRef(kernel), ModuleRef(module), ObjectRef(kernel)))
    assert "vadd" in device.refused(call(kernel, None, 1.5, "text"))


def test_tensors_end_where_they_end(device: Device) -> None:
    code, contents = device.ask(call(device.find("t.made"), 3))
    assert (code, struct.unpack_from("<iiq", contents)) == (RETURN, (3, 1, 70))
    kind, data, dev_type, dev_id, ndim = struct.unpack_from("<iQiii", contents, 16)
    assert (kind, dev_type, dev_id, ndim) == (7, 1, 0, 2)
    assert contents[40:] == struct.pack("<BBHqqQiQ", 2, 32, 1, 3, 2, 0, 4, int.from_bytes(contents[-8:], "little"))

    def view(nbytes: int, at: int = 0, offset: int = 0) -> TensorView:
        return TensorView(data + at, Where(1, 0), FLOAT, (nbytes // 4,), offset)

    sum_of = device.find("t.sum")
    assert device.ask(packet(CopyFromRemote(view(24), 24))) == (COPY_ACK, struct.pack("<6f", *range(6)))
    assert device.ask(packet(CopyFromRemote(view(8, 4, 8), 8))) == (COPY_ACK, struct.pack("<2f", 3, 4))
    assert device.ask(packet(CopyToRemote(view(8, 0, 16), 8), struct.pack("<2f", 7, 8))) == (RETURN, NONE)
    assert struct.unpack("<iiqid", device.ask(call(sum_of, view(24)))[1])[-1] == 0 + 1 + 2 + 3 + 7 + 8
    for beyond in (
        view(28),
        view(8, 20),
        view(8, 0, 20),
        view(4, 24),
        view(4, -4),
        view(4, 0, 1 << 63),
        view(4, 8, 20),
    ):
        nbytes = beyond.shape[0] * 4
        assert "memory" in device.refused(packet(CopyFromRemote(beyond, nbytes)))
        assert "memory" in device.refused(packet(CopyToRemote(beyond, nbytes), bytes(nbytes)))
        assert "memory" in device.refused(call(sum_of, beyond))
    assert device.ask(free(int.from_bytes(contents[-8:], "little"))) == (RETURN, NONE)
    assert "memory" in device.refused(packet(CopyFromRemote(view(24), 24)))


STEPS = st.lists(st.tuples(st.sampled_from(["counter", "tensor", "echo", "call", "free"]), st.integers(0, 30)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_references_are_counted(device: Device, steps: list[tuple[str, int]]) -> None:
    echo, make, made, alive = (device.find(f"t.{name}") for name in ("echo", "counter", "made", "alive"))
    known: list[int] = []
    held: dict[int, tuple[str, int]] = {}  # what each handle stands for
    for number, (step, which) in enumerate(steps):
        handle = known[which % len(known)] if known else 0
        if step in ("counter", "tensor"):
            request, what = call(make if step == "counter" else made, 0), (step, number)
        elif step == "echo":
            request, what = call(echo, ObjectRef(handle)), held.get(handle, ("", 0))
        else:
            kind, _ = held.get(handle, ("", 0))
            if step == "call" and kind != "counter":
                assert "handle" in device.refused(call(handle))
            elif step == "call":
                assert device.ask(call(handle))[0] == RETURN
            elif kind or not handle:
                assert device.ask(free(handle)) == (RETURN, NONE)
                held.pop(handle, None)
            else:
                assert "handle" in device.refused(free(handle))
            continue
        if step == "echo" and handle not in held:
            assert "handle" in device.refused(request)
        elif len(held) + 4 == PLACES:
            assert "RPCFLOW_MAX_OBJECTS" in device.refused(request)
        else:
            handle = device.pointer(request)
            assert handle not in known
            known.append(handle)
            held[handle] = what
    assert device.pointer(call(alive)) == len(set(held.values()))
    for handle in [*held, echo, make, made]:
        assert device.ask(free(handle)) == (RETURN, NONE)
    assert device.pointer(call(alive)) == 0
    assert device.ask(free(alive)) == (RETURN, NONE)
