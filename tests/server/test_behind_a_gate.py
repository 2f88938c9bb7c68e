# SPDX-License-Identifier: Apache-2.0
"""Sessions behind a gate: its processes hold what they need and no more, and whichever of them is killed, the others
know."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import rpcflow
from rpcflow import sync
from rpcflow.security.identity import load_identity

from .conftest import Host
from .support import HOST, PATIENCE, Traces, call, children, exists, line, script, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="servers are for Linux")


@pytest.fixture
def server(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[rpcflow.Server]:
    """With TLS, for two sessions at once."""
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path / "home"))
    with host(tls=True, max_sessions=2) as made:
        yield made


def open_session(url: object) -> sync.RPCSession:
    return sync.connect(str(url), wait_timeout=PATIENCE)


def works(url: object) -> None:
    with open_session(url) as session:
        assert call(session, "tvm.rpc.server.workpath", "x").endswith("/x")


def gate_of(server: rpcflow.Server) -> int:
    assert server._door._gate is not None
    return server._door._gate.pid


def sockets(pid: int) -> set[str]:
    """The sockets that a process holds, by the kernel's numbers."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own, or closed meanwhile
        if target.startswith("socket:"):
            found.add(target)
    return found


def carriers(server: rpcflow.Server, count: int) -> list[int]:
    gate = gate_of(server)
    return until(lambda: (found := children(gate)) and len(found) == count and found, f"{count} carriers")


def test_a_carrier_holds_its_own_line_alone(server: rpcflow.Server) -> None:
    with socket.create_connection((HOST, server.port)), socket.create_connection((HOST, server.port)):
        with open_session(server.url) as first, open_session(server.url) as second:
            assert call(first, "t.echo", 1) == call(second, "t.echo", 1)
            one, other = carriers(server, 2)
            # Its ends of the line and of the pair; a moment after the fork, the gate's are closed.
            until(lambda: len(sockets(one)) == len(sockets(other)) == 2, "carriers having closed what is not theirs")
            assert not sockets(one) & sockets(other)
            assert not (sockets(one) | sockets(other)) & sockets(gate_of(server))
    carriers_gone = until(lambda: not children(gate_of(server)), "the carriers being gone")
    assert carriers_gone


def test_a_gate_that_is_killed(server: rpcflow.Server, tmp_path: Path) -> None:
    """Its sessions end with it, and another one serves."""
    session = open_session(server.url)
    gate = gate_of(server)
    (carrier,) = carriers(server, 1)
    os.kill(gate, signal.SIGKILL)
    with pytest.raises(rpcflow.ConnectionLostError):
        call(session, "t.block", str(tmp_path / "blocks"))
    until(lambda: not exists(carrier) and not exists(gate), "gate and carrier being gone")
    until(lambda: gate_of(server) != gate, "another gate")
    works(server.url)


def test_a_carrier_that_is_killed(server: rpcflow.Server, tmp_path: Path) -> None:
    with open_session(server.url) as other:
        (spared,) = carriers(server, 1)
        session = open_session(server.url)
        (carrier,) = set(carriers(server, 2)) - {spared}
        os.kill(carrier, signal.SIGKILL)
        with pytest.raises(rpcflow.ConnectionLostError):
            call(session, "t.block", str(tmp_path / "blocks"))
        assert call(other, "t.echo", 3) == 3
        works(server.url)


def test_a_service_that_is_killed(traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate, carriers and workers go with it."""
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path / "home"))
    run = "from rpcflow.cli import main; main()"
    with script(run, "server", "--tls", "--port", "0", "--silent") as process:
        url = line(process).removeprefix("READY ")
        session = open_session(url)
        call(session, "tvm.rpc.server.workpath", "x")
        family = traces.processes()
        assert len(family) >= 5  # service, gate, carrier, launcher, worker
        process.kill()
        until(lambda: not traces.processes(), "all being gone")
        with pytest.raises(rpcflow.ConnectionLostError):
            call(session, "tvm.rpc.server.workpath", "x")
    until(traces.none, "their files being gone too")


# ---------------------------------------------------------------------------------------------- the key


def secrets(pem: bytes) -> dict[str, bytes]:
    """A key in all shapes that it may have in memory."""
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    body = b"".join(pem.split(b"-----")[2].split())
    return {
        "number": number.to_bytes(32, "big"),
        "number, turned round": number.to_bytes(32, "little"),
        "text": body[40:104],
        "DER": base64.b64decode(body)[30:70],
    }


def found_in(pid: int, wanted: dict[str, bytes]) -> set[str]:
    """Which of them are somewhere in a process's memory."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for entry in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", entry)
            assert match is not None
            begin, end = int(match[1], 16), int(match[2], 16)
            if "r" not in match[3] or entry.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            tail = b""
            for at in range(begin, end, 1 << 22):
                try:
                    memory.seek(at)
                    data = tail + memory.read(min(1 << 22, end - at))
                except (OSError, ValueError):
                    break  # it cannot be read by anybody
                found |= {name for name, value in wanted.items() if value in data}
                tail = data[-128:]
    return found


def test_the_key_is_in_the_gate_alone(traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path / "home"))
    run = "from rpcflow.cli import main; main()"
    with script(run, "server", "--tls", "--port", "0", "--silent") as process:
        url = line(process).removeprefix("READY ")
        wanted = secrets(Path(load_identity().path).read_bytes())
        with open_session(url) as session:
            call(session, "tvm.rpc.server.workpath", "x")
            try:
                held = {pid: found_in(pid, wanted) for pid in traces.processes()}
            except PermissionError:
                pytest.skip("this user may not read the memory of processes")
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in held if exists(pid)}
        process.terminate()
        process.wait(PATIENCE)
    gates = [pid for pid in held if b"rpcflow.security.gate" in words.get(pid, b"")]
    assert gates
    assert any(held[pid] for pid in gates)  # so we do find it where it is
    others = {pid: found for pid, found in held.items() if pid not in gates and pid != process.pid}
    assert len(others) >= 2  # launcher and worker
    assert not any(others.values())
