# SPDX-License-Identifier: Apache-2.0
"""What is particular to blocking sessions; what they share with the others is in tests/client."""

import gc
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpcflow
from rpcflow import sync as rpc
from rpcflow.devices import Attribute

from .conftest import KEY


def wait_until(reading: Any) -> None:
    deadline = time.monotonic() + 20
    while not reading():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestLookup:
    def test_a_modules_functions_are_found_when_asked_for(self, session: rpc.RPCSession) -> None:
        module = session.system_lib()
        with pytest.raises(rpcflow.FunctionNotFoundError):
            module["no_such"]
        with pytest.raises(AttributeError):
            module.get_function("no_such")
        with pytest.raises(rpcflow.FunctionNotFoundError):
            module.entry_func  # noqa: B018

    def test_functions_can_be_called_as_in_tvm(self, session: rpc.RPCSession) -> None:
        assert session.get_function("t.add")(1, 2) == 3


class TestDevices:
    def test_attributes_are_properties(self, session: rpc.RPCSession) -> None:
        device = session.cpu()
        assert device.exist is True
        assert session.cuda().exist is False
        assert device.total_global_memory > 0
        for name in Attribute.__members__:
            assert getattr(device, name) == device.attr(name)
        for name in ("colour", "__dlpack_device__", "__array__"):
            assert not hasattr(device, name)

    def test_they_can_be_copied_without_asking_the_server(self, session: rpc.RPCSession) -> None:
        import copy

        assert copy.copy(session.cpu(3)) == session.cpu(3)


class TestTensorAndEmpty:
    def test_remote(self, session: rpc.RPCSession) -> None:
        made = rpc.tensor([[1, 2]], session.cpu())
        assert isinstance(made, rpc.Tensor)
        assert made.numpy().tolist() == [[1, 2]]
        assert rpc.empty((2, 3), "int8", session.cpu()).shape == (2, 3)

    def test_local(self) -> None:
        import tvm_ffi

        device = tvm_ffi.device("cpu", 0)
        host = np.arange(6, dtype="float32").reshape(2, 3)
        made = rpc.tensor(host, device)
        assert isinstance(made, tvm_ffi.Tensor)
        np.testing.assert_array_equal(np.from_dlpack(made), host)
        host[...] = 0
        assert np.from_dlpack(made).sum() == 15
        assert tuple(rpc.empty((4,), "int16", device).shape) == (4,)

    def test_neither(self) -> None:
        import tvm_ffi

        for device in (None, "cpu", 1):
            with pytest.raises(TypeError, match="device"):
                rpc.tensor([1.0], device)
            with pytest.raises(TypeError, match="device"):
                rpc.empty((1,), "int8", device)
        with pytest.raises(ValueError, match="cpu"):
            rpc.tensor([1.0], tvm_ffi.device("cuda", 0))


class TestEnd:
    def test_close_and_again(self, server: rpc.Server) -> None:
        session = rpc.connect(server.url, None, KEY)
        echo = session.get_function("t.echo")
        session.close()
        session.close()
        for use in (lambda: echo(1), lambda: session.upload(b"", "f"), session.cpu().sync):
            with pytest.raises(rpcflow.ConnectionLostError, match="closed"):
                use()
        assert "closed" in repr(session)

    def test_collected_with_all_it_gave_out(self, server: rpc.Server) -> None:
        session = rpc.connect(server.url, None, KEY)
        folder = session.get_function("t.cwd")()
        tensor = session.cpu().tensor([1.0])
        function = session.get_function("t.echo")
        device = session.cpu()
        module = session.system_lib()
        core = weakref.ref(session._core)
        del session
        things: list[Any] = [tensor, function, device, module]
        del tensor, function, device, module
        while things:
            gc.collect()
            assert core() is not None
            if len(things) == 4:
                assert things[0].numpy().tolist() == [1.0]
                assert things[1](2) == 2
                assert things[2].exist
            things.pop(0)
        gc.collect()
        assert core() is None
        wait_until(lambda: not Path(folder).exists())

    def test_collected_without_the_collector(self, server: rpc.Server) -> None:
        gc.disable()
        try:
            session = rpc.connect(server.url, None, KEY)
            core = weakref.ref(session._core)
            assert session.get_function("t.add")(1, 1) == 2
            session.cpu().tensor([1.0]).view((1,)).numpy()
            session.upload(b"x", "f")
            try:
                session.get_function("t.fail")("ValueError", "x")
            except rpcflow.RemoteError:
                pass
            try:
                session.get_function("t.nothing")
            except rpcflow.FunctionNotFoundError:
                pass
            del session
            assert core() is None
        finally:
            gc.enable()

    def test_on_a_dead_line_is_silent(self, server: rpc.Server) -> None:
        with rpc.connect(server.url, None, KEY) as session:
            with pytest.raises(rpcflow.SessionCrashedError):
                session.get_function("t.exit")(1)
        with rpc.Server("127.0.0.1", 0, silent=True) as other:
            with rpc.connect("127.0.0.1", other.port) as session:
                other.terminate()

    def test_errors_of_the_body_pass(self, server: rpc.Server) -> None:
        with pytest.raises(ZeroDivisionError):
            with rpc.connect(server.url, None, KEY):
                raise ZeroDivisionError

    def test_a_program_that_just_ends(self, server: rpc.Server) -> None:
        """Nothing is closed by hand: no complaint, and the server is free."""
        program = f"""
            from rpcflow import sync as rpc
            session = rpc.connect({server.url!r}, None, {KEY!r})
            kept = session.cpu().tensor([1.0]), session.get_function("t.echo"), session.system_lib()
            local = rpc.LocalSession()
            things = local.cpu().tensor([1.0]), local.get_function("tvm.rpc.server.workpath")
            print(things[1](""))
        """
        run = subprocess.run(
            [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert not Path(run.stdout.strip()).exists()

    def test_a_failed_connect_leaves_no_socket(self, server: rpc.Server) -> None:
        for use in (
            lambda: rpc.connect(server.url, None, "wrong"),
            lambda: rpc.connect(server.url, None, KEY, session_constructor_args=["nonsense"]),
            lambda: rpc.connect(server.url, None, KEY, session_constructor_args=[{}]),
            lambda: rpc.connect("127.0.0.1", 1, KEY),
        ):
            with pytest.raises((rpcflow.RPCError, TypeError)):
                use()
        gc.collect()  # a socket left open would warn, which fails the test


class TestPlainness:
    def test_no_event_loop_and_no_thread(self, server: rpc.Server) -> None:
        program = f"""
            import os, sys, threading
            os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own
            import numpy
            def threads():
                return len(os.listdir("/proc/self/task"))
            before = threads()
            from rpcflow import sync as rpc
            with rpc.connect({server.url!r}, None, {KEY!r}) as session:
                session.get_function("t.echo")(1)
                session.cpu().tensor([1.0]).numpy()
                session.upload(b"x", "f")
                session.download("f")
                assert threading.active_count() == 1, threading.enumerate()
                assert threads() == before
            loops = {{"trio", "anyio", "asyncio", "sniffio"}} & set(sys.modules)
            print(sorted(loops))
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert run.stdout.strip() == "[]"

    def test_it_works_where_an_event_loop_runs(self, server: rpc.Server) -> None:
        import trio

        async def main() -> int:
            with rpc.connect(server.url, None, KEY) as session:
                return int(session.get_function("t.add")(1, 2))

        assert trio.run(main) == 3

    def test_reprs(self, server: rpc.Server, session: rpc.RPCSession) -> None:
        assert repr(session).startswith(f"<rpcflow.sync session with {server.url}")
        assert "open" in repr(session)

    def test_a_url(self, server: rpc.Server) -> None:
        with rpc.connect(server.url, key=KEY) as session:
            assert session.get_function("t.add")(1, 2) == 3


class TestInterrupts:
    def test_ctrl_c_before_anything_was_sent_closes_the_session(
        self, session: rpc.RPCSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What an earlier call had sent whole is not taken for this one's: nobody would ever answer that."""
        add = session.get_function("t.add")
        assert add(1, 2) == 3

        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(add._core._channel, "send", interrupted)
            with pytest.raises(KeyboardInterrupt):
                add(1, 2)
        with pytest.raises(rpcflow.ConnectionLostError, match="cut short"):
            add(1, 2)

    def test_ctrl_c_in_a_call_leaves_the_session_usable(self, session: rpc.RPCSession, tmp_path: Path) -> None:
        import signal
        import threading

        begun, gate = tmp_path / "begun", tmp_path / "gate"
        wait = session.get_function("t.begin_and_wait_for")

        def interrupt() -> None:
            wait_until(begun.exists)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            wait(str(begun), str(gate))
        thread.join()
        gate.touch()
        assert session.get_function("t.add")(1, 2) == 3
        live = session.get_function("t.live")
        wait_until(lambda: live("function") == 0)
