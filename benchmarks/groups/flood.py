# SPDX-License-Identifier: Apache-2.0
"""A server that only paired clients may use, among strangers: half-open lines, and a flood of handshakes at twice what
it can do. Linux: strangers come from 127.0.0.2 and up."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.agent import ROOT, Agent
from benchmarks.bench import Settings
from benchmarks.proc import MIB
from benchmarks.result import Row, Series, Target

IDLE = 2000
ADDRESSES = 200
WHOLE = 0.1
"""The part of the handshakes that their makers would finish."""
SOON = Target("<=", 2, "value")
NONE = Target("<=", 0, "value")
SOME = Target(">=", 1, "value")
_STRANGERS = "benchmarks.clients.flood:Strangers"
_PAIRED = "benchmarks.clients.flood:Paired"


def rows(settings: Settings) -> Iterator[Row]:
    seconds = settings.pick(30, 5)
    with Service() as service, service.strangers(idle=IDLE) as strangers, service.paired() as paired:
        yield from _sessions("nobody else", paired.call("sessions", float(settings.pick(5, 2))))
        strangers.call("settle")
        found, _ = _together(seconds, paired, strangers, 0.0)
        yield from _sessions(f"{IDLE} half-open lines", found)

    with Service() as service, service.strangers() as strangers:
        done = strangers.call("flood", float(settings.pick(5, 2)), float("inf"), 1.0)
        able = done.get("finished", 0) / done["seconds"]
        yield Row("flood", "handshakes of strangers that are finished, as many as it can", "1/s", _one(able))

    # A new one: to this one the paired client is a stranger too when the flood begins.
    with Service() as service, service.strangers(idle=IDLE) as strangers, service.paired() as paired:
        strangers.call("settle")
        found, done = _together(seconds, paired, strangers, 2 * able)
        name = f"{IDLE} half-open lines and {2 * able:.0f} handshakes/s"
        yield from _sessions(name, found)
        offered, twice = _one(done["begun"] / done["seconds"]), Target(">=", round(1.9 * able), "value")
        yield Row("flood", "handshakes that were begun", "1/s", offered, target=twice)
        shed = service.shed()
        note = [shed[-1], f"the strangers' side of it: {done}"] if shed else []
        yield Row("flood", "lines in the log on what was shed", "", _one(len(shed)), target=SOME, notes=note)
        yield Row("flood", "lines in the log, in all", "", _one(len(service.log().splitlines())))
        memory, descriptors = service.gate_peak()
        yield Row("flood", "the gate's memory, at its peak", "MiB", _one(memory / MIB))
        yield Row("flood", "the gate's descriptors, at the end", "", _one(descriptors))

    # No figure is stated for this: strangers, server and friend have the machine's processors to share.
    with Service() as service, service.strangers(idle=IDLE) as strangers, service.paired() as paired:
        found, done = _together(float(settings.pick(10, 3)), paired, strangers, float("inf"))
        yield from _sessions(
            f"as many handshakes as can be begun ({done['begun'] / done['seconds']:.0f}/s)", found, False
        )


def _sessions(among: str, found: list[tuple[float, str]], judged: bool = True) -> Iterator[Row]:
    times = [seconds for seconds, wrong in found if not wrong]
    failed = list(dict.fromkeys(wrong for _, wrong in found if wrong))
    error = None if times else f"there was no session: {failed}"
    worst = Series(times and [max(times)], error)
    yield Row("flood", f"{among}: the first session", "s", Series(times[:1], error), target=SOON if judged else None)
    yield Row("flood", f"{among}: any", "s", Series(times, error))
    yield Row("flood", f"{among}: the worst of {len(times)}", "s", worst, target=SOON if judged else None)
    count = _one(len(found) - len(times))
    yield Row("flood", f"{among}: that failed", "", count, target=NONE if judged else None, notes=failed[:3])


def _one(figure: float) -> Series:
    return Series((float(figure),))


def _together(
    seconds: float, paired: Agent, strangers: Agent, rate: float
) -> tuple[list[tuple[float, str]], dict[str, Any]]:
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(strangers.call, "flood", seconds + 1.0, rate, WHOLE)
        time.sleep(0.5)
        found = paired.call("sessions", seconds)
        return found, flood.result()


class Service:
    """The server, a program as people start it."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            self._home = self._folder / "home"
            log = stack.enter_context((self._folder / "log").open("wb"))
            words = ["server", "--tls", "--require-client", "--port", "0"]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rpcflow", *words],
                env={**os.environ, "RPCFLOW_HOME": str(self._home), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            stack.callback(self._end)
            assert self._process.stdout is not None
            ready = self._process.stdout.readline().decode().split()
            if ready[:1] != ["READY"]:
                raise RuntimeError(f"the server does not start: {self.log()}")
            self._url = ready[1]
            family = psutil.Process(self._process.pid).children(recursive=True)
            (self._gate,) = [one for one in family if "rpcflow.security.gate" in one.cmdline()]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def strangers(self, idle: int = 0) -> Agent:
        return Agent(_STRANGERS, {"port": self._url, "addresses": ADDRESSES, "idle": idle})

    def paired(self) -> Agent:
        return Agent(_PAIRED, {"port": self._url, "known_clients": str(self._home / "known_clients")})

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def shed(self) -> list[str]:
        """What the log says of those who were turned away."""
        return [line for line in self.log().splitlines() if "turned away" in line]

    def gate_peak(self) -> tuple[int, int]:
        """Bytes of memory at their most, and descriptors now."""
        status = Path(f"/proc/{self._gate.pid}/status").read_text().splitlines()
        (peak,) = [line for line in status if line.startswith("VmHWM:")]
        return int(peak.split()[1]) * 1024, self._gate.num_fds()
