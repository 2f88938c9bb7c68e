# SPDX-License-Identifier: Apache-2.0
"""Pages with commands, run from top to bottom as their readers would.

Hosts of a page's lab are this machine here, its ports are free ones, and the terminals of emulated boards are the ones
that they got: all are replaced in commands, programs and the output shown. So are pins, tokens and pairing codes, from
where they are first shown. The marks are described in CONTRIBUTING.md,
"Documentation".
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

FENCE = re.compile(r"^(?P<marks>`{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=marks)[ ]*$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- runnable(?:: (?P<how>[a-z]+)(?: (?P<name>[\w.-]+))?)? -->\n\Z")
HOWS = ("service", "instead", "command", "file")
HOSTS = re.compile(r"\b(?:[a-z0-9-]+\.example|0\.0\.0\.0)\b")
PORTS = re.compile(r"(?<![\d.])(?:90\d\d|91\d\d|8080)\b")
DEFAULT_PORTS = {"tracker": "9190", "server": "9091", "proxy": "9091"}
BOUND = re.compile(r"bind to \S+:(\d+)")
TERMINAL = re.compile(r"/dev/pts/\d+")
SECRET = re.compile(r"sha256:[0-9a-f]{64}|(?<![\w-])[\w-]{43}(?![\w-])|(?<=the code )\d{8}")
CODE = re.compile(r".*give the code \d{8}")
PATIENCE = 60.0
RPCFLOW = [sys.executable, "-m", "rpcflow"]


class Step(NamedTuple):
    where: str
    how: str
    code: str
    name: str = ""  # of the file, or of the kind of device that a program needs


def steps(page: Path, root: Path) -> list[Step]:
    """What is to be done on a page with commands; nothing where there are none."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        where = f"{page.relative_to(root)}:{text.count(chr(10), 0, fence.start()) + 1}"
        mark = MARK.search(text, 0, fence.start())
        language = fence["language"].strip()
        if mark and mark["how"] == "file":
            assert mark["name"], f"{where}: a file without a name"
            found.append(Step(where, "file", fence["code"], mark["name"]))
        elif language == "console" and mark:
            assert mark["how"] in HOWS, f"{where}: unknown mark '{mark['how']}'"
            found.append(Step(where, str(mark["how"]), fence["code"]))
        elif language == "python" and mark and mark["how"] in (None, "device"):
            found.append(Step(where, "program", fence["code"], mark["name"] or ""))
    return found if any(step.how in HOWS for step in found) else []


def needed_devices(page: Path, root: Path) -> list[str]:
    """The kinds of devices that a page's programs need."""
    return sorted({step.name for step in steps(page, root) if step.how == "program" and step.name})


def missing_programs(page: Path, root: Path) -> list[str]:
    """The programs of a page's commands that are not on this machine."""
    wanted = {
        shlex.split(command)[0]
        for step in steps(page, root)
        if step.how in ("service", "instead", "command")
        for command, _ in _commands(step.code)
    }
    wanted = {program for program in wanted if not program.startswith("./")}  # made by a step before
    return sorted(program for program in wanted - {"rpcflow", "python"} if shutil.which(program) is None)


class _Service(NamedTuple):
    part: str
    stock: bool
    process: subprocess.Popen[str]


class Walk:
    """Does the steps. Services run until its block ends, or another is started in their place.

    Args:
        folder: where everything runs.
        run: runs a program to its end.
        environment: of all processes.
    """

    def __init__(self, folder: Path, run: Callable[[str, Path], None], environment: dict[str, str]) -> None:
        self._folder = folder
        self._run = run
        self._environment = environment
        self._ports: dict[str, str] = {}
        self._terminals: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._services: list[_Service] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while self._services:
                self._end(self._services[-1], well=kind is None)
        finally:
            for service in self._services:
                os.killpg(service.process.pid, signal.SIGKILL)
                service.process.wait()

    def do(self, step: Step) -> None:
        """One step."""
        if step.how == "program":
            self._run(self._local(step.code), self._folder)
            return
        if step.how == "file":
            (self._folder / step.name).write_text(self._local(step.code))
            return
        for command, output in _commands(self._local(step.code)):
            if step.how == "command":
                self._command(command, output, step.where)
            else:
                self._start(command, output, step)

    def _local(self, text: str) -> str:
        text = PORTS.sub(lambda port: self._port(port[0]), HOSTS.sub("127.0.0.1", text))
        text = SECRET.sub(lambda name: self._secrets.get(name[0], name[0]), text)
        for shown, real in self._secrets.items():
            if shown.isdecimal():
                text = text.replace(shown, real)  # a code is given without the words by which it is shown
        return TERMINAL.sub(lambda name: self._terminals.get(name[0], name[0]), text)

    def _learn(self, shown: str, said: str) -> str:
        """A line that was said as the page would show it: with the page's pins, tokens and codes for the real ones,
        which are put in their places from now on."""
        secrets, real = SECRET.findall(shown), SECRET.findall(said)
        if SECRET.sub("*", shown.strip()) != SECRET.sub("*", said.strip()):
            return said
        for one, other in zip(secrets, real, strict=True):
            self._secrets.setdefault(one, other)
        return self._local(shown)

    def _port(self, documented: str) -> str:
        if documented not in self._ports:
            with socket.socket() as place:
                place.bind(("127.0.0.1", 0))
                self._ports[documented] = str(place.getsockname()[1])
        return self._ports[documented]

    def _words(self, command: str) -> list[str]:
        words = shlex.split(command)
        if words[0] == "python":
            return [sys.executable, *words[1:]]
        return [*RPCFLOW, *words[1:]] if words[0] == "rpcflow" else words

    def _command(self, command: str, output: str, where: str) -> None:
        words, log = self._words(command), self._folder / "log"
        done = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=PATIENCE
        )
        log.write_text(done.stderr)
        assert done.returncode == 0, f"{where}: status {done.returncode}\n{done.stdout}{done.stderr}"
        said = done.stdout.splitlines()
        for shown in output.splitlines():
            lines = [self._learn(shown, line).rstrip() for line in said]
            assert self._local(shown).rstrip() in lines, f"{where}: {done.stdout}"

    def _start(self, command: str, output: str, step: Step) -> None:
        stock = command.startswith("python -m tvm.")
        words = self._words(command)
        if words[0].startswith("qemu-"):
            self._emulate(words, output, step)
            return
        if words[0].startswith("./"):
            part = "server"
        else:
            part = words[2].removeprefix("tvm.exec.rpc_") if stock else words[3]
        if step.how == "instead":
            for service in [service for service in self._services if service.part == part]:
                self._end(service, well=True)
        if "--proxy" not in words:
            if "--port" not in words:
                words += ["--port", self._port(DEFAULT_PORTS[part])]
            words += ["--port-end", str(int(words[words.index("--port") + 1]) + 1)]
        log = self._folder / f"{part}-{len(self._services)}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                words,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if stock else errors,
                text=True,
                start_new_session=True,
            )
        self._services.append(_Service(part, stock, process))
        assert process.stdout is not None
        if stock:
            said = next((line for line in process.stdout if BOUND.search(line)), "")
            bound = BOUND.search(said)
            assert bound, f"{step.where}: {command} did not say where it is"
            assert bound[1] == words[words.index("--port") + 1], f"{step.where}: {said}"
            return
        said = process.stdout.readline()
        assert re.fullmatch(r"READY \S+:\d+\S*\n", said), f"{step.where}: it said {said!r}\n{log.read_text()}"
        for shown in output.splitlines():
            if CODE.match(shown):
                codes = [line for line in log.read_text().splitlines() if CODE.match(line)]
                assert codes, f"{step.where}: it shows no code\n{log.read_text()}"
                self._secrets[shown[-8:]] = codes[0][-8:]
            else:
                line = self._learn(shown, said).strip()
                assert line == self._local(shown).strip(), f"{step.where}: it said {said!r}"

    def _emulate(self, words: list[str], output: str, step: Step) -> None:
        """A board: it is there when its serial port is, whose name the page's reader sees too."""
        process = subprocess.Popen(
            words,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._services.append(_Service("board", True, process))
        assert process.stdout is not None
        said = next((line for line in process.stdout if TERMINAL.search(line)), "")
        shown, real = TERMINAL.search(output), TERMINAL.search(said)
        assert real, f"{step.where}: it did not say where its serial port is"
        assert shown, f"{step.where}: the page does not show the name of the serial port"
        assert output.strip() == said.strip().replace(real[0], shown[0]), f"{step.where}: it said {said!r}"
        self._terminals[shown[0]] = real[0]

    def _end(self, service: _Service, well: bool) -> None:
        self._services.remove(service)
        process = service.process
        with process:
            try:
                if not service.stock:
                    process.send_signal(signal.SIGINT)
                    status = process.wait(PATIENCE)
                    assert status == 0 or not well, f"the {service.part} ended with status {status}"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def _commands(code: str) -> Iterator[tuple[str, str]]:
    """Commands, continued lines joined, and what is shown below each."""
    parts = re.split(r"^\$ ", code.replace("\\\n", ""), flags=re.MULTILINE)
    assert not parts[0], "a command begins with $"
    for part in parts[1:]:
        command, _, output = part.partition("\n")
        yield re.sub(r"\s+#.*", "", command), output
