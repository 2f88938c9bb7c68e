# SPDX-License-Identifier: Apache-2.0
"""What only a blocking session with a program has: threads, Ctrl-C, collection, the interpreter's end."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import rpcflow
from rpcflow import sync
from tests.children import nothing_left, ours, quick_script, server_script
from tests.server.support import Traces, exists, line, script, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes on a pipe are for POSIX systems")


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Nothing may be left of what a test has started."""
    with nothing_left(tmp_path, monkeypatch) as found:
        yield found


def test_it_lives_until_it_and_all_it_gave_is_collected(tmp_path: Path) -> None:
    session: sync.RPCSession | None = sync.PopenSession(str(server_script(tmp_path)))
    assert session is not None
    assert isinstance(session, sync.RPCSession)
    echo = session.get_function("t.echo")
    (pid,) = ours()
    session = None
    gc.collect()
    assert echo(5) == 5
    assert exists(pid)
    del echo
    gc.collect()
    assert not ours()


def test_collected_by_a_cycle(tmp_path: Path) -> None:
    session = sync.PopenSession(str(server_script(tmp_path)))
    session.itself = session  # type: ignore[attr-defined]
    del session
    gc.collect()
    assert not ours()


def test_closed_by_another_thread(tmp_path: Path) -> None:
    """While a call runs: that fails, and the process is gone at once."""
    mark = tmp_path / "mark"
    session = sync.PopenSession(str(server_script(tmp_path)))
    block = session.get_function("t.block")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            block(str(mark))
        except rpcflow.ConnectionLostError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(mark.exists)
    session.close()
    thread.join()
    assert len(failed) == 1
    assert not ours()
    with pytest.raises(rpcflow.ConnectionLostError):
        block(str(mark))


def test_several_threads(tmp_path: Path) -> None:
    with sync.PopenSession(str(server_script(tmp_path))) as session:
        echo = session.get_function("t.echo")
        wrong = []

        def work(number: int) -> None:
            for i in range(200):
                if echo(1000 * number + i) != 1000 * number + i:
                    wrong.append((number, i))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_interrupted_in_a_call(tmp_path: Path) -> None:
    """Leaving then does not wait for a program that does not listen."""
    mark = tmp_path / "mark"

    def interrupt() -> None:
        until(mark.exists)
        os.kill(os.getpid(), signal.SIGINT)

    with sync.PopenSession(str(server_script(tmp_path))) as session:
        block = session.get_function("t.block")
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            block(str(mark))
        thread.join()
        assert ours()


TERMINAL = """
import os, signal, sys, threading, time
os.setpgid(0, 0)
from rpcflow import sync
session = sync.PopenSession(sys.argv[1])
echo = session.get_function("t.echo")
echo(1)
threading.Timer(0.05, os.killpg, (0, signal.SIGINT)).start()  # as a terminal does it: to all in the group
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(echo(7), flush=True)
"""


def test_ctrl_c_is_for_us(tmp_path: Path) -> None:
    with script(TERMINAL, server_script(tmp_path)) as process:
        assert line(process) == "7"
        assert process.wait() == 0


LEFT = """
import os, sys
from rpcflow import sync
session = sync.PopenSession(sys.argv[1])
echo = session.get_function("t.echo")
print(session.get_function("t.pid")(), flush=True)
if sys.argv[2] == "crash":
    os.kill(os.getpid(), 9)
if sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["return", "raise", "crash"])
def test_the_interpreter_ends(tmp_path: Path, how: str) -> None:
    """Without a word to the session, or without any: then the program sees the end of its line."""
    with script(LEFT, server_script(tmp_path), how) as process:
        pid = int(line(process))
        assert process.wait() == {"return": 0, "raise": 3, "crash": -9}[how]
        until(lambda: not exists(pid), "its end")


FORKED = """
import os, sys
from rpcflow import sync
session = sync.PopenSession(sys.argv[1])
echo = session.get_function("t.echo")
pid = os.fork()
if not pid:
    sys.exit()  # with all that an interpreter does at its end
print(os.waitpid(pid, 0)[1], echo(7), flush=True)
"""


def test_a_fork_of_ours_ends(tmp_path: Path) -> None:
    with script(FORKED, server_script(tmp_path)) as process:
        assert line(process) == "0 7"
        assert process.wait() == 0


BARE = """
import os, sys
os.close(0)
os.close(1)
from rpcflow import sync
with sync.PopenSession(sys.argv[1]) as session:
    assert session.get_function("t.echo")(7) == 7
    assert session.get_function("t.stdin")() == b""
    assert {"0", "1", "2"}.isdisjoint(session.get_function("t.lines")().split(","))
os.write(2, b"good")
"""


def test_a_host_without_standard_input_and_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with script(BARE, server_script(tmp_path)) as process:
        assert process.wait() == 0
    assert capfd.readouterr().err.endswith("good")


def test_a_failed_start_leaves_no_half_session(tmp_path: Path) -> None:
    with pytest.raises(rpcflow.SessionCrashedError):
        sync.PopenSession(quick_script(tmp_path, "sys.exit(1)"))
    with pytest.raises(FileNotFoundError):
        sync.PopenSession("no such program")
    gc.collect()
