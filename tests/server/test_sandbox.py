# SPDX-License-Identifier: Apache-2.0
"""Sessions in a sandbox: they work, and reach nothing outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rpcflow
from rpcflow.server import sandbox
from rpcflow.server.config import WorkerConfig
from rpcflow.server.launching import LaunchError

from .conftest import Host, Run
from .functions import offer
from .support import HOST, PATIENCE, ROOT, Traces, call, connect, line, script, until, works


def _why_not() -> str:
    try:
        sandbox.prefix(WorkerConfig())
    except sandbox.SandboxError as error:
        return str(error)
    return ""


_WHY_NOT = _why_not() if sys.platform.startswith("linux") else "sandboxes are for Linux"
sandboxed = pytest.mark.skipif(bool(_WHY_NOT), reason=f"NO SANDBOX HERE: {_WHY_NOT}")


def look() -> None:
    """More functions for sessions: they try what they should not be able to."""
    import os
    import socket
    from pathlib import Path

    import rpcflow

    def attempt(function: Callable[..., object]) -> Callable[..., str]:
        def tried(*args: object) -> str:
            try:
                return f"done: {function(*args)}"
            except OSError as error:
                return type(error).__name__

        return tried

    def reach(port: int) -> str:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return "connected"

    rpcflow.register("s.reach", attempt(reach), override=True)
    rpcflow.register("s.read", attempt(lambda path: Path(path).read_text()), override=True)
    rpcflow.register("s.list", attempt(lambda path: ",".join(sorted(os.listdir(path)))), override=True)
    rpcflow.register("s.write", attempt(lambda path: Path(path).write_text("written")), override=True)
    rpcflow.register("s.kill", attempt(lambda pid: os.kill(pid, 0)), override=True)
    rpcflow.register("s.processes", lambda: ",".join(n for n in os.listdir("/proc") if n.isdecimal()), override=True)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as made:
        yield made


@sandboxed
def test_a_session_works(host: Host, no_fork: bool, tmp_path: Path) -> None:
    source = tmp_path / "twice.cc"
    source.write_text(
        "#include <tvm/ffi/function.h>\n"
        "static int64_t twice(int64_t n) { return 2 * n; }\n"
        "TVM_FFI_DLL_EXPORT_TYPED_FUNC(twice, twice);\n"
    )
    pytest.importorskip("tvm_ffi")
    from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

    library = tmp_path / "twice.so"
    includes = [f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
    compiler = shutil.which("c++") or "c++"
    subprocess.run([compiler, "-std=c++17", "-shared", "-fPIC", *includes, "-o", library, source], check=True)
    with host(sandbox=True, no_fork=no_fork) as server, connect(server) as session:
        session.upload(str(library))
        module = session.load_module("twice.so")
        assert module["twice"](21) == 42
        assert bytes(session.download("twice.so")) == library.read_bytes()
        assert session.listdir("") == "twice.so"


@sandboxed
def test_nothing_outside_is_reached(
    host: Host, no_fork: bool, tmp_path: Path, listener: socket.socket, home: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    key = home / "identities" / "sandbox-test.pem"
    key.parent.mkdir(exist_ok=True)
    key.write_text("key")
    try:
        with host(look, sandbox=True, no_fork=no_fork) as server, connect(server) as session:
            assert call(session, "s.reach", listener.getsockname()[1]) in ("ConnectionRefusedError", "OSError")
            for path in (secret, key, "/etc/shadow"):
                assert call(session, "s.read", str(path)) in ("FileNotFoundError", "PermissionError")
            assert "secret" not in call(session, "s.list", os.path.expanduser("~"))
            for path in ("/usr/written", "/etc/written", "/written", str(ROOT / "written")):
                assert call(session, "s.write", path) in ("OSError", "PermissionError", "FileNotFoundError")
                assert not os.path.exists(path)
            assert call(session, "s.kill", os.getpid()) == "ProcessLookupError"
            assert len(call(session, "s.processes").split(",")) < 10
            assert call(session, "s.write", "/tmp/rpcflow-sandbox-test").startswith("done")
            assert call(session, "s.read", "/tmp/rpcflow-sandbox-test") == "done: written"
        assert not os.path.exists("/tmp/rpcflow-sandbox-test")
    finally:
        key.unlink()


@sandboxed
def test_what_is_granted_is_there(host: Host, tmp_path: Path, listener: socket.socket) -> None:
    shown, allowed = tmp_path / "shown", tmp_path / "allowed"
    for folder in (shown, allowed):
        folder.mkdir()
        (folder / "file").write_text("text")
    grants = ["net", str(shown)]
    options = {"sandbox": True, "sandbox_grant": grants, "allow_path": [str(allowed)]}
    with host(look, **options) as server, connect(server) as session:
        assert call(session, "s.reach", listener.getsockname()[1]) == "done: connected"
        assert call(session, "s.read", f"{shown}/file") == "done: text"
        assert call(session, "s.write", f"{shown}/file") == "OSError"
        assert call(session, "s.write", f"{allowed}/new").startswith("done")
    assert (shown / "file").read_text() == "text"
    assert (allowed / "new").read_text() == "written"


@sandboxed
def test_keys_that_lie_among_modules_are_hidden(tmp_path: Path, run: Run) -> None:
    """In a folder of the search path, which the sandbox shows."""
    (tmp_path / "module.py").write_text("")
    (tmp_path / "server.pem").write_text("key")
    config = WorkerConfig(sys_path=[str(tmp_path)], hidden=(str(tmp_path / "server.pem"),), sandbox=True)
    command = sandbox.prefix(config)
    for name, found in (("module.py", 0), ("server.pem", 1)):
        shell = ["/bin/sh", "-c", 'test -e "$0" && { test ! -f "$0" && exit 1 || cat "$0"; }', f"{tmp_path}/{name}"]
        tried = subprocess.run([*command, *shell], capture_output=True, text=True, check=False)
        assert tried.returncode == found
        assert "key" not in tried.stdout


@sandboxed
def test_crashes_and_orphans(host: Host, no_fork: bool, tmp_path: Path, traces: Traces) -> None:
    with host(look, sandbox=True, no_fork=no_fork) as server:
        before = len(traces.processes())
        with connect(server) as session:
            call(session, "t.child")
            with pytest.raises(rpcflow.SessionCrashedError) as caught:
                call(session, "t.signal", signal.SIGSEGV)
            assert caught.value.signal == signal.SIGSEGV
        until(lambda: len(traces.processes()) <= before + 1)
        works(server)
        with connect(server, session_timeout=1) as session, pytest.raises(rpcflow.RPCSessionTimeoutError):
            call(session, "t.spin", "mark")
        works(server)


@sandboxed
def test_a_killed_launcher_takes_nobody_else_along(host: Host) -> None:
    """A worker says which process it is, by numbers that are others' outside."""
    with host(look, sandbox=True) as server:
        with connect(server) as session:
            assert call(session, "t.pid") < 100
            os.kill(server._launcher.pid, signal.SIGKILL)
            with pytest.raises(rpcflow.RPCError):
                call(session, "t.block", "mark")
        works(server)


@sandboxed
def test_all_is_gone_with_a_killed_server(traces: Traces) -> None:
    source = f"""
import time, rpcflow.sync, anyio, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.server.functions import offer
async def main():
    async with rpcflow.Server(port=0, server_init_callback=offer(), sandbox=True) as server:
        print(server.port, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""
    with script(source) as process:
        port = int(line(process))
        with rpcflow.sync.connect(HOST, port, wait_timeout=PATIENCE) as session:
            call(session, "t.child")
            process.kill()
            process.wait()
            until(lambda: not traces.processes(), "ending of all")
    assert not traces.files()


def test_no_bubblewrap(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(LaunchError, match="apt-get install bubblewrap"):
            async with rpcflow.Server(port=0, server_init_callback=offer(), sandbox=True):
                pass

    monkeypatch.setenv("PATH", str(tmp_path))
    run(main)


def test_a_bubblewrap_that_may_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(LaunchError, match=r"No permissions to create.*max_user_namespaces"):
            async with rpcflow.Server(port=0, server_init_callback=offer(), sandbox=True):
                pass

    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run(main)


@pytest.mark.parametrize("kind", ["grant", "allowed", "search path"])
@pytest.mark.parametrize("path", ["/", "~", "/tmp"])
@sandboxed
def test_what_would_show_too_much_is_refused(kind: str, path: str) -> None:
    path = os.path.expanduser(path)
    config = {
        "grant": WorkerConfig(sandbox_grant=(path,)),
        "allowed": WorkerConfig(allowed=(path,)),
        "search path": WorkerConfig(sys_path=[path]),
    }[kind]
    with pytest.raises(sandbox.SandboxError, match=r"home folder|of its own"):
        sandbox.prefix(config)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sandbox": True, "sandbox_grant": ["relative"]}, "relative"),
        ({"sandbox": True, "sandbox_grant": "net"}, "sandbox_grant"),
        ({"sandbox_grant": ["net"]}, "sandbox=True"),
    ],
)
def test_wrong_options(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        rpcflow.Server(**options)  # type: ignore[arg-type]
