# SPDX-License-Identifier: Apache-2.0
"""What the test servers offer: functions that crash, hang, start things and look around."""

from __future__ import annotations

from collections.abc import Callable


def offer(*more: Callable[[], object]) -> Callable[[], None]:
    """A closure to be run by the server before its sessions; it runs ``more`` too."""

    def init() -> None:
        import os
        import signal
        import socket
        import subprocess
        import sys
        import tempfile
        import threading
        import time
        from pathlib import Path

        import rpcflow

        born = os.getpid()

        def block(mark: str) -> None:
            """A kernel that sleeps; the file says that it has begun."""
            Path(mark).touch()
            time.sleep(600)

        def spin(mark: str) -> None:
            """A kernel that computes for ever."""
            Path(mark).touch()
            while True:
                pass

        def flood(mark: str) -> None:
            Path(mark).touch()
            while True:
                os.write(2, b"more and more and more\n" * 500)

        def fail(name: str) -> None:
            kinds: dict[str, type[BaseException]] = {
                "MemoryError": MemoryError,
                "SystemExit": SystemExit,
                "KeyboardInterrupt": KeyboardInterrupt,
                "RecursionError": RecursionError,
            }
            raise kinds[name]("on purpose")

        def segfault() -> None:
            import ctypes

            ctypes.string_at(0)

        def child() -> int:
            return subprocess.Popen(["sleep", "600"]).pid

        def daemon(mark: str) -> None:
            """As well hidden as can be: forked twice, a session of its own, listening. The file has pid and port."""
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                        signal.signal(number, signal.SIG_IGN)
                    listener = socket.create_server(("127.0.0.1", 0))
                    Path(mark + ".new").write_text(f"{os.getpid()} {listener.getsockname()[1]}")
                    os.rename(mark + ".new", mark)
                    time.sleep(600)
                os._exit(0)
            os.wait()

        def nest(depth: int) -> None:
            """Folders within folders, deeper than Python likes to recurse, at last one that lets nobody in."""
            here = os.open(".", os.O_RDONLY)
            for _ in range(depth):
                os.mkdir("d")
                os.chdir("d")
            Path("file").touch()
            os.chmod(".", 0)
            os.fchdir(here)
            os.close(here)

        def linger() -> None:
            """A thread that a well-behaved interpreter would wait for at its end."""
            threading.Thread(target=time.sleep, args=(600,)).start()

        def say(text: str) -> None:
            print(text, file=sys.stderr)

        def say_out(text: str) -> None:
            print(text, end="")

        functions: dict[str, Callable[..., object]] = {
            "t.echo": lambda value: value,
            "t.pid": os.getpid,
            "t.born": lambda: born,
            "t.parent": os.getppid,
            "t.threads": lambda: len(os.listdir("/proc/self/task")),
            "t.cwd": os.getcwd,
            "t.block": block,
            "t.spin": spin,
            "t.flood": flood,
            "t.fail": fail,
            "t.exit": os._exit,
            "t.abort": os.abort,
            "t.signal": lambda number: os.kill(os.getpid(), number),
            "t.segfault": segfault,
            "t.child": child,
            "t.daemon": daemon,
            "t.nest": nest,
            "t.linger": linger,
            "t.say": say,
            "t.say_out": say_out,
            "t.symlink": os.symlink,
            "t.mkdir": os.mkdir,
            "t.temporary": tempfile.mkdtemp,
            "t.read": lambda name: Path(name).read_text(),
            "t.tree": lambda: ",".join(
                sorted(str(path) for path in Path().rglob("*") if not path.parts[0].startswith(".rpcflow-"))
            ),
        }
        for name, function in functions.items():
            rpcflow.register(name, function, override=True)
        for extra in more:
            extra()

    return init
