# SPDX-License-Identifier: Apache-2.0
"""What a grant leaves out is a PermissionDeniedError, and nothing has been run or written by then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import rpcflow
from rpcflow import registry
from rpcflow.devices import Attribute
from rpcflow.errors import PermissionDeniedError, RPCError
from rpcflow.protocol.packets import (
    CallFunc,
    Code,
    CopyFromRemote,
    CopyToRemote,
    InitServer,
    Packet,
    SysCall,
    alloc_with_scope,
    free_data,
    get_global_func,
)
from rpcflow.protocol.values import BulkBytes, Device, ModuleRef, Pointer, TensorView, TypeIndex, Value
from rpcflow.security.grant import EVERYTHING, Grant
from rpcflow.server.builtins import Builtins
from rpcflow.server.guard import Guard
from rpcflow.session.actions import Given, GivenTensor
from rpcflow.session.handles import Kind
from rpcflow.session.server import State
from rpcflow.session.wire_errors import FEATURE
from tests.session.tiny import Memory

from .direct import CPU, CUDA, U8, Session

UPLOAD, REMOVE = "tvm.rpc.server.upload", "tvm.rpc.server.remove"
LOAD, LINKED = "tvm.rpc.server.load_module", "tvm.rpc.server.download_linked_module"
EVALUATOR = "runtime.RPCTimeEvaluator"


Begin = Callable[..., Session]


@pytest.fixture(params=["tvm_ffi", "plain"])
def ran(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What of the functions offered has run; with apache-tvm-ffi, and as if it were missing."""
    if request.param == "plain":
        monkeypatch.setattr(registry, "tvm_ffi", lambda: None)
    monkeypatch.setattr(registry, "_PLAIN", {})
    done: list[str] = []
    for name in ("here.good", "here.secret", "rpc.here", "rpcflow.here"):
        rpcflow.register(name, lambda *args, name=name: done.append(name))
    yield done
    import tvm_ffi

    for name in tvm_ffi.registry.list_global_func_names():
        if "here" in name:
            tvm_ffi.registry.remove_global_func(name)


@pytest.fixture
def begin(tmp_path: Path, ran: list[str]) -> Iterator[Begin]:
    folder = tmp_path / "session"
    folder.mkdir()
    made = []

    def start(constructor: list[Value] | None = [], **limits: Any) -> Session:  # noqa: B006  # not changed
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in limits.items()}
        made.append(Session(folder, Grant(who="ada", **fields), constructor))
        return made[-1]

    yield start
    for session in made:
        session.executor.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "session"


class TestFunctions:
    @pytest.mark.parametrize(
        "name", ["here.secret", "here.missing", UPLOAD, "runtime.RPCTimeEvaluator", "rpcflow.here"]
    )
    def test_they_are_not_found_out_about(self, begin: Begin, ran: list[str], name: str) -> None:
        session = begin(functions=["here.good"])
        error = session.denied(get_global_func(name))
        assert error.function == name
        assert repr(name) in str(error)
        assert not ran
        session.call("here.good")
        assert ran == ["here.good"]

    def test_all_but_some(self, begin: Begin, ran: list[str]) -> None:
        session = begin(functions=["*", "!here.secret"])
        session.denied(get_global_func("here.secret"))
        session.call("here.good")
        session.call(UPLOAD, "f", b"data")
        assert session.lookup("here.missing") == 0
        assert ran == ["here.good"]

    def test_what_clients_ask_a_server_of_ours(self, begin: Begin) -> None:
        session = begin(functions=[])
        assert session.lookup(FEATURE)
        assert session.lookup("rpcflow.something_new") == 0  # which is not a refusal
        (_, limit) = session.call("tvm.rpc.server.GetCRTMaxPacketSize")
        assert limit > 1 << 20

    @pytest.mark.parametrize(
        "args",
        [(None, "here.secret", 1, 0, 1, 1), (None, "here.good", 1, 0, 1, 1, 0, 1, 0, 1, 0, "here.secret")],
        ids=["measured", "preprocessing"],
    )
    def test_not_by_way_of_the_time_evaluator(self, begin: Begin, ran: list[str], args: tuple[Value, ...]) -> None:
        session = begin(functions=["here.good", EVALUATOR])
        number = session.lookup(EVALUATOR)
        assert session.denied(CallFunc(number, list(args))).function == "here.secret"
        assert not ran
        made = session.ask(CallFunc(number, [None, "here.good", 1, 0, 1, 1]))
        session.ask(CallFunc(int(made[1]), []))
        assert set(ran) == {"here.good"}

    def test_nor_where_a_module_does_not_have_it(
        self, begin: Begin, ran: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Empty:
            def get_function(self, name: str, query_imports: bool) -> None:
                return None

        monkeypatch.setattr(Builtins, "load_module", lambda self, name: Given(TypeIndex.MODULE, Kind.MODULE, Empty()))
        session = begin(functions=[LOAD, EVALUATOR])
        module = session.call(LOAD, "m")[1]
        evaluator = session.lookup(EVALUATOR)
        session.denied(CallFunc(evaluator, [ModuleRef(module), "here.secret", 1, 0, 1, 1]))
        assert not ran

    @pytest.mark.parametrize(
        "name", ["ffi.FunctionFromExternC", "ir.EnvFuncGet", "runtime.disco.SessionCallPacked", "rpc.ServerLoop"]
    )
    def test_no_ways_around_names(self, begin: Begin, name: str) -> None:
        for limits in ({"functions": ["*", "!here.secret"]}, {"upload": False}, {"devices": ["cpu:0"]}):
            assert begin(**limits).denied(get_global_func(name)).function == name
        assert isinstance(begin(functions=["*", "!here.secret", name]).lookup(name), int)  # by its full name


class TestModules:
    @pytest.mark.parametrize(
        "name",
        [
            LOAD,
            LINKED,
            "tvm.rpc.server.ImportModule",
            "ffi.ModuleLoadFromFile",
            "ffi.Module.load_from_file.so",
            "ffi.Module.load_from_bytes.c",
            "ffi.ModuleImportModule",
            "ffi.FunctionFromExternC",
            "ffi.MakeFieldSetter",
            "runtime.ModuleLoadFromFile",
            "runtime.module.loadfile_so",
            "runtime.ModuleLoadStaticLibrary",
            "relax.ExecutableLoadFromFile",
            "runtime.disco.load_vm_module",
            "target.build.llvm",
        ],
    )
    def test_nothing_is_loaded(self, begin: Begin, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rpcflow.server.builtins.linked", pytest.fail)
        session = begin(load=False, functions=["*", name])
        error = session.denied(get_global_func(name))
        assert error.function == name
        assert "load modules" in str(error)

    @pytest.mark.parametrize("name", [LOAD, LINKED])
    def test_not_by_way_of_the_time_evaluator(self, begin: Begin, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rpcflow.server.builtins.linked", pytest.fail)
        session = begin(load=False)
        session.denied(CallFunc(session.lookup(EVALUATOR), [None, name, 1, 0, 1, 1]))

    def test_the_rest_goes_on(self, begin: Begin) -> None:
        session = begin(load=False)
        for name in ("tvm.rpc.server.ModuleGetFunction", "tvm.rpc.server.download", "here.good", UPLOAD):
            assert session.lookup(name)

    def test_the_names_are_those_of_tvm_ffi(self) -> None:
        tvm_ffi = pytest.importorskip("tvm_ffi")
        names = [name for name in tvm_ffi.registry.list_global_func_names() if "oad" in name and "ffi.Module" in name]
        assert names
        guard = Guard(Grant(load=False))
        for name in names:
            with pytest.raises(PermissionDeniedError):
                guard.function(name)


class TestFiles:
    @pytest.mark.parametrize("name", [UPLOAD, REMOVE, "ffi.ModuleWriteToFile", "runtime.SaveParamsToFile"])
    def test_nothing_is_written(self, begin: Begin, folder: Path, name: str) -> None:
        (folder / "kept").write_text("kept")
        session = begin(upload=False)
        error = session.denied(get_global_func(name))
        assert error.function == name
        assert "write or remove files" in str(error)
        assert os.listdir(folder) == ["kept"]
        assert session.call("tvm.rpc.server.download", "kept")[1] == b"kept"
        assert session.call("tvm.rpc.server.listdir", ".")[1] == "kept,"

    @pytest.mark.parametrize("name", [UPLOAD, REMOVE])
    def test_not_by_way_of_the_time_evaluator(self, begin: Begin, folder: Path, name: str) -> None:
        (folder / "kept").write_text("kept")
        session = begin(upload=False)
        session.denied(CallFunc(session.lookup(EVALUATOR), [None, name, 1, 0, 1, 1]))
        assert os.listdir(folder) == ["kept"]

    @pytest.mark.parametrize("nbytes", [4, 1 << 20])
    def test_nor_as_they_come_not_even_for_a_moment(
        self, begin: Begin, folder: Path, nbytes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Were there a way to have the function all the same."""
        monkeypatch.setattr(Guard, "function", lambda self, name: None)
        monkeypatch.setattr("rpcflow.server.folder.FileSink.__init__", pytest.fail)
        session = begin(upload=False)
        number = session.lookup(UPLOAD)
        session.denied(CallFunc(number, ["f", BulkBytes(memoryview(bytes(nbytes)))]))
        assert os.listdir(folder) == []

    @pytest.mark.parametrize("name", [LOAD, LINKED])
    def test_no_library_is_made_beside_an_object(
        self, begin: Begin, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rpcflow.server.builtins.linked", pytest.fail)
        (folder / "kernel.o").write_bytes(b"object")
        session = begin(upload=False)
        session.denied(CallFunc(session.lookup(name), ["kernel.o"]))
        assert os.listdir(folder) == ["kernel.o"]


class TestConstructors:
    @pytest.mark.parametrize("constructor", [[], ["rpc.LocalSession"]])
    def test_here(self, begin: Begin, constructor: list[Value]) -> None:
        session = begin(None, constructors=["rpc.Connect"])
        error = session.denied(InitServer("0.8.0", constructor))
        assert "'rpc.LocalSession'" in str(error)
        assert session.machine.state is State.AWAIT_INIT
        assert not isinstance(session.ask(get_global_func("here.good")), list)  # there is no session

    @pytest.mark.parametrize(
        "constructor",
        [
            ["rpc.Connect", "127.0.0.1", 9090, "", False],
            ["rpc.PopenSession", b"\x7fELF" + bytes(300_000)],
            ["rpc.PopenSession", "/bin/true"],
            ["rpc.CreatePipeClient", "/bin/true"],
            ["rpc.here"],
            ["here.good"],
        ],
        ids=lambda constructor: str(constructor[0]),
    )
    def test_elsewhere(self, begin: Begin, folder: Path, ran: list[str], constructor: list[Value]) -> None:
        session = begin(None, constructors=["rpc.LocalSession"])
        error = session.denied(InitServer("0.8.0", constructor))
        assert repr(constructor[0]) in str(error)
        assert not session.forwarded
        assert not ran
        assert os.listdir(folder) == []
        assert session.machine.state is State.AWAIT_INIT
        assert session.begin(["rpc.LocalSession"]) == [None]

    def test_those_granted(self, begin: Begin) -> None:
        session = begin(None, constructors=["rpc.Connect"])
        assert session.begin(["rpc.Connect", "127.0.0.1", 9090, "", False]) == [None]
        assert session.forwarded == [("rpc.Connect", ["127.0.0.1", 9090, "", False])]

    def test_a_function_is_no_constructor_where_it_is_no_function(self, begin: Begin, ran: list[str]) -> None:
        session = begin(None, functions=["*", "!here.secret"])
        error = session.denied(InitServer("0.8.0", ["here.secret"]))
        assert "'here.secret'" in str(error)
        assert not ran
        assert isinstance(session.ask(InitServer("0.8.0", ["here.good"])), RPCError)  # it makes no session
        assert ran == ["here.good"]

    @pytest.mark.parametrize("name", ["rpc.Connect", "rpc.PopenSession", "rpc.CreatePipeClient"])
    def test_a_constructor_is_no_function_where_it_is_no_constructor(self, begin: Begin, name: str) -> None:
        session = begin(constructors=["rpc.LocalSession"])
        assert session.denied(get_global_func(name)).constructor == name
        session.denied(CallFunc(session.lookup(EVALUATOR), [None, name, 1, 0, 1, 1]))


class Watched:
    """A backend that must not be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"a device that is denied was asked for {name}")


class TestDevices:
    @pytest.fixture
    def session(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> Session:
        session = begin(devices=["cpu:0", "cuda:1"])
        find = session.executor._backends.find
        monkeypatch.setattr(session.executor._backends, "find", lambda kind: Watched() if kind == 2 else find(kind))
        return session

    @pytest.mark.parametrize(
        "packet",
        [
            alloc_with_scope(CUDA, (4,), U8, None),
            SysCall(Code.DEV_ALLOC_DATA, [CUDA, 4, 64, U8]),
            SysCall(Code.DEV_SET_DEVICE, [CUDA]),
            SysCall(Code.DEV_GET_ATTR, [CUDA, int(Attribute.device_name)]),
            SysCall(Code.DEV_STREAM_SYNC, [CUDA, Pointer(0)]),
            SysCall(Code.DEV_CREATE_STREAM, [CUDA]),
            SysCall(Code.DEV_FREE_STREAM, [CUDA, Pointer(1)]),
            SysCall(Code.DEV_SET_STREAM, [CUDA, Pointer(1)]),
            SysCall(Code.DEV_GET_CURRENT_STREAM, [CUDA]),
        ],
        ids=lambda packet: str(packet.code.name),
    )
    def test_nothing_is_done_there(self, session: Session, packet: Packet) -> None:
        error = session.denied(packet)
        assert error.device == "cuda:0"
        assert "the device cuda:0" in str(error)

    def test_another_number_of_a_kind(self, session: Session) -> None:
        assert session.denied(alloc_with_scope(Device(1, 1), (4,), U8, None)).device == "cpu:1"
        assert session.denied(alloc_with_scope(Device(1, -1), (4,), U8, None)).device == "cpu:-1"
        assert session.denied(alloc_with_scope(Device(99, 0), (4,), U8, None)).device == "device type 99:0"

    def test_it_is_not_there(self, session: Session) -> None:
        assert session.ask(SysCall(Code.DEV_GET_ATTR, [CUDA, int(Attribute.exist)])) == [0]
        assert session.ask(SysCall(Code.DEV_GET_ATTR, [CPU, int(Attribute.exist)])) == [1]

    def test_it_is_not_timed(self, session: Session, ran: list[str]) -> None:
        number = session.lookup(EVALUATOR)
        assert session.denied(CallFunc(number, [None, "here.good", 2, 0, 1, 1])).device == "cuda:0"
        assert not ran

    def test_those_granted(self, session: Session) -> None:
        (data,) = session.alloc()
        tensor = TensorView(int(data), CPU, U8, (4,))
        assert session.ask(CopyToRemote(tensor, 4), b"abcd") == [None]
        assert session.ask(CopyFromRemote(tensor, 4)) == b"abcd"

    def test_copies_of_what_a_function_has_put_there(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        """Memory of a device that is denied comes in no other way."""
        there = Memory(4, CUDA)
        monkeypatch.setattr(session.executor, "_result", lambda value: GivenTensor(there, U8, (4,)))
        rpcflow.register("here.tensor", lambda: "a tensor")
        made = session.call("here.tensor")[1]
        monkeypatch.undo()
        monkeypatch.setattr(session.executor._backends, "find", lambda kind: Watched())
        session.denied(CopyFromRemote(made, 4))
        session.denied(CopyToRemote(made, 4), b"abcd")  # with its payload out of the way
        session.denied(SysCall(Code.COPY_AMONG_REMOTE, [made, made, Pointer(0)]))
        assert there.data == bytes(4)

    def test_what_is_allocated_is_freed(self, session: Session) -> None:
        (data,) = session.alloc()
        assert session.ask(free_data(CPU, int(data))) == [None]


class TestTold:
    def test_one_line_each_with_who_and_what(self, begin: Begin, capfd: pytest.CaptureFixture[str]) -> None:
        session = begin(functions=["here.good"], devices=["cpu:*"])
        session.denied(get_global_func("here.secret"))
        session.denied(alloc_with_scope(CUDA, (4,), U8, None))
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 2
        assert all("rpcflow.server: ada is denied what it asked for: " in line for line in lines)
        assert "'here.secret'" in lines[0]
        assert "cuda:0" in lines[1]

    def test_nothing_off_the_wire_gets_at_the_terminal(self, begin: Begin, capfd: pytest.CaptureFixture[str]) -> None:
        session = begin(None, constructors=[], functions=[])
        name = "a\n\x1b[2J\u202e" + "b" * 10_000
        session.denied(InitServer("0.8.0", [name]))
        (line,) = capfd.readouterr().err.splitlines()
        assert line.isprintable()
        assert len(line) < 400

    def test_paths_that_lead_out_are_told_too(self, begin: Begin, capfd: pytest.CaptureFixture[str]) -> None:
        session = begin()
        error = session.call(UPLOAD, "../out", b"data")
        assert isinstance(error, PermissionDeniedError)
        (line,) = capfd.readouterr().err.splitlines()
        assert "ada" in line
        assert "'../out'" in line

    def test_a_flood_is_cut_and_counted(self, begin: Begin, capfd: pytest.CaptureFixture[str]) -> None:
        session = begin(functions=[])
        for _ in range(150):
            session.denied(get_global_func("here.good"))
        session.executor.close()
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 101
        assert "50 more" in lines[-1]

    def test_other_errors_and_no_device_are_not(self, begin: Begin, capfd: pytest.CaptureFixture[str]) -> None:
        session = begin(devices=["cpu:*"])
        assert isinstance(session.call("tvm.rpc.server.download", "missing"), RPCError)
        session.ask(SysCall(Code.DEV_GET_ATTR, [CUDA, int(Attribute.exist)]))
        assert capfd.readouterr().err == ""


def test_where_all_is_granted_nothing_is_asked(tmp_path: Path, ran: list[str]) -> None:
    assert Guard.of(EVERYTHING) is None
    assert Guard.of(Grant(who="ada", memory_nbytes=1 << 30, folder_nbytes=7)) is None
    for name, value in {"functions": (), "constructors": (), "devices": (), "upload": False, "load": False}.items():
        assert Guard.of(attrs.evolve(EVERYTHING, **{name: value})) is not None
    session = Session(tmp_path, EVERYTHING, [])
    assert session.executor._guard is None
    session.call("here.secret")
    session.call(UPLOAD, "f", BulkBytes(memoryview(bytes(300_000))))
    assert ran == ["here.secret"]
    assert (tmp_path / "f").stat().st_size == 300_000
    session.executor.close()
