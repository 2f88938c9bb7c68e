# SPDX-License-Identifier: Apache-2.0
"""The C runtime as a server on TCP: its handshake, stock's and our own client, and what ends sessions."""

import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.errors import ConnectionLostError, KeyMismatchError, RemoteError, RPCSessionTimeoutError

from .serving import INIT

MAGIC, MISMATCH = 0xFF271, 0xFF273


@contextmanager
def serving(program: Path, *options: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """The port of a running server; it must end well when it is asked to."""
    process = subprocess.Popen(
        [str(program), "--port", "0", "--port-end", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("READY tcp://127.0.0.1:"), ready
        yield int(ready.rpartition(":")[2]), process
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.communicate()


def greeting(key: bytes, magic: int = MAGIC) -> bytes:
    return struct.pack("<Ii", magic, len(key)) + key


def talk(port: int, sent: bytes) -> bytes:
    """All that the server says until it hangs up; it is told that no more will come."""
    with socket.create_connection(("127.0.0.1", port), 30) as line:
        line.sendall(sent)
        line.shutdown(socket.SHUT_WR)
        received = b""
        while piece := line.recv(65536):
            received += piece
        return received


def test_our_client(tcp_program: Path) -> None:
    with serving(tcp_program, "--key", "board") as (port, _):
        for _ in range(3):
            with sync.connect("127.0.0.1", port, key="board") as session:
                tensor = session.cpu().tensor(np.arange(100, dtype="float32"))
                out = session.cpu().empty((100,), "float32")
                session.system_lib()["doubled"](tensor, out)
                assert np.array_equal(out.numpy(), np.arange(100) * 2)
                # What an earlier session held is free.
                free = session.cpu().attr("available_global_memory")
                assert session.cpu().attr("total_global_memory") - free == 2 * 448
        with pytest.raises(KeyMismatchError):
            sync.connect("127.0.0.1", port, key="bord")


@pytest.mark.interop
def test_stock_client(tcp_program: Path) -> None:
    import tvm
    from tvm import rpc

    with serving(tcp_program, "--key", "board") as (port, _):
        session = rpc.connect("127.0.0.1", port, key="board", session_timeout=60)
        device = session.cpu(0)
        a = np.random.default_rng(1).random(50_000, "float32")
        tensor, out = tvm.runtime.tensor(a, device), tvm.runtime.empty((50_000,), "float32", device)
        module = session.system_lib()
        module["vadd"](tensor, tensor, out)
        assert np.array_equal(out.numpy(), a + a)
        assert session.get_function("echo")("text") == "text"
        assert session.get_function("echo")(b"by\0tes") == b"by\0tes"
        with pytest.raises(RuntimeError, match="add takes two ints"):
            session.get_function("add")(1.5, 2)
        result = module.time_evaluator("vadd", device, number=3, repeat=2)(tensor, tensor, out)
        assert len(result.results) == 2
        assert result.mean > 0
        with pytest.raises(AttributeError):
            session.get_function("nothing")
        del tensor, out, module, device, session
        with sync.connect("127.0.0.1", port, key="board") as ours:  # stock's has hung up
            assert ours.get_function("add")(1, 2) == 3


def test_handshakes(tcp_program: Path) -> None:
    with serving(tcp_program, "--key", "board") as (port, _):
        answer = struct.pack("<Ii", MAGIC, 12) + b"server:board"
        assert talk(port, greeting(b"client:board")) == answer
        assert talk(port, greeting(b"client:board  -timeout=30 -other ")) == answer
        assert talk(port, greeting(b"client:board") + INIT)[: len(answer)] == answer
        for key in (b"client:boar", b"client:boards", b"server:board", b"", b"  ", b"board"):
            assert talk(port, greeting(key)) == struct.pack("<I", MISMATCH)
        for sent in (
            b"GET / HTTP/1.1\r\n\r\n",
            greeting(b"client:board", MAGIC + 1),
            greeting(b"client:board\0"),
            struct.pack("<Ii", MAGIC, 4097) + bytes(4097),
            struct.pack("<Ii", MAGIC, -1),
            struct.pack("<I", MAGIC),
            b"",
        ):
            assert talk_closed(port, sent)
        assert talk(port, greeting(b"client:board")) == answer


def test_clients_that_say_nothing_are_in_nobodys_way(tcp_program: Path) -> None:
    """Nor those in the middle of their handshake; who then goes on has a turn. Of more than 64 the oldest go."""
    whole = greeting(b"client:board")
    with serving(tcp_program, "--key", "board") as (port, _), ExitStack() as stack:

        def waiting(sent: bytes) -> socket.socket:
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            line.sendall(sent)
            return line

        silent = [waiting(b"") for _ in range(70)]
        halves = [waiting(whole[:cut]) for cut in (1, 7, 8, 11, len(whole) - 1)]
        with sync.connect("127.0.0.1", port, key="board") as session:
            assert session.get_function("add")(1, 2) == 3
        for line, cut in zip(halves, (1, 7, 8, 11, len(whole) - 1), strict=True):
            line.sendall(whole[cut:])
            assert line.recv(64).startswith(struct.pack("<I", MAGIC))
            line.close()
        assert silent[0].recv(1) == b""
        silent[-1].sendall(whole)
        assert silent[-1].recv(64).startswith(struct.pack("<I", MAGIC))


def talk_closed(port: int, sent: bytes) -> bool:
    """Whether the server hangs up without a word. Bytes that it has not read make that a reset."""
    try:
        return talk(port, sent) == b""
    except ConnectionResetError:
        return True


def test_a_session_that_crashes_takes_nothing_with_it(tcp_program: Path) -> None:
    with serving(tcp_program) as (port, process):
        session = sync.connect("127.0.0.1", port)
        with pytest.raises(ConnectionLostError):
            session.get_function("crash")()
        with sync.connect("127.0.0.1", port) as session:
            assert session.get_function("add")(1, 2) == 3
        assert process.stderr is not None
        assert "signal" in process.stderr.readline()


def test_the_time_of_a_session(tcp_program: Path) -> None:
    with serving(tcp_program) as (port, _):
        session = sync.connect("127.0.0.1", port, session_timeout=0.5)
        with pytest.raises(RPCSessionTimeoutError):
            session.get_function("hang")()
        session.close()
        with sync.connect("127.0.0.1", port, session_timeout=30) as session:
            assert session.get_function("add")(1, 2) == 3


def test_what_the_server_says_when_the_time_is_up(tcp_program: Path) -> None:
    with serving(tcp_program, "--key", "k") as (port, _), socket.create_connection(("127.0.0.1", port), 30) as line:
        line.sendall(greeting(b"client:k -timeout=0.25") + INIT)
        received = b""
        while piece := line.recv(4096):
            received += piece
        packet = received[8 + 8 + 20 :]
        length, code, count, kind, nbytes = struct.unpack_from("<QiiiQ", packet)
        assert (length, code, count, kind, nbytes) == (len(packet) - 8, 5, 1, 8, len(packet) - 28)
        assert packet[28:].startswith(b"RPCSessionTimeoutError: ")
        assert b"0.25" in packet


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping(tcp_program: Path, busy: bool, number: signal.Signals) -> None:
    """At once, also while a session runs, whose process goes with it."""
    with serving(tcp_program) as (port, process):
        session = sync.connect("127.0.0.1", port) if busy else None
        process.send_signal(number)
        assert process.wait(20) == 0
        if session is not None:
            with pytest.raises(ConnectionLostError):
                session.get_function("add")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 5).close()


@pytest.mark.parametrize(
    "options",
    [
        ["--port"],
        ["--port", "x"],
        ["--port", "70000"],
        ["--port", "-1"],
        ["--port", "5", "--port-end", "5"],
        ["--other", "1"],
        ["--key", "two words"],
        ["--host", "no.such.host.invalid", "--port", "1"],
    ],
    ids=" ".join,
)
def test_wrong_options(tcp_program: Path, options: list[str]) -> None:
    ran = subprocess.run([str(tcp_program), *options], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1


def test_ports_in_use(tcp_program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [str(tcp_program), "--port", str(port), "--port-end", str(port + 1)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 2
        assert f"from {port} to below {port + 1}" in ran.stderr


def test_errors_that_travel(tcp_program: Path) -> None:
    with serving(tcp_program) as (port, _), sync.connect("127.0.0.1", port) as session:
        with pytest.raises(RemoteError, match="why"):
            session.get_function("fail")("this is why")
