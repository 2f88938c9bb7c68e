# SPDX-License-Identifier: Apache-2.0
"""Every Python example of README.md and docs/ runs, and what the pages say of generated things is true.

The comments that mark an example are described in CONTRIBUTING.md, "Documentation".
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from rpcflow.backends.registry import load
from rpcflow.devices import DEVICE_TYPES

from .walkthrough import FENCE, MARK, Walk, missing_programs, needed_devices, steps

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTED_PORT = "9091"
RPCFLOW = [sys.executable, "-c", "from rpcflow.cli import main; main()"]
TIME_LIMIT = 100  # seconds: a compilation, a few sessions, and patience


class Example(NamedTuple):
    where: str
    code: str
    needs_server: bool
    device: str = ""  # the kind that it needs


def examples(page: Path) -> Iterator[Example]:
    """The programs of a page; a continued one is joined to what it continues.

    On a page that has commands too, the programs are steps of a walk through it, and only their marks are looked at.
    """
    walk = bool(steps(page, ROOT))
    text = page.read_text(encoding="utf-8")
    current: Example | None = None
    for fence in FENCE.finditer(text):
        if fence["language"].strip() not in ("python", "py", "python3"):
            continue
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, fence.start()) + 1}"
        mark = MARK.search(text, 0, fence.start())
        assert mark, f"{where}: a python example without a comment <!-- runnable --> above it"
        how = mark["how"]
        assert how in (None, "server", "continued", "device"), f"{where}: unknown mark '{how}'"
        if walk:
            assert how in (None, "device"), f"{where}: on a page with commands a program is not marked '{how}'"
            continue
        if how == "continued":
            assert current is not None, f"{where}: nothing to continue"
            current = current._replace(code=current.code + "\n" + fence["code"])
            continue
        if current is not None:
            yield current
        if how == "device":
            assert mark["name"] in DEVICE_TYPES, f"{where}: which device?"
            current = Example(where, fence["code"], True, mark["name"])
        else:
            current = Example(where, fence["code"], how == "server")
    if current is not None:
        yield current


def environment() -> dict[str, str]:
    """Ours, unbuffered, with this Python's scripts found first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """``rpcflow server`` on a free port; gives the port and sees to it that it ends well."""
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*RPCFLOW, "server", "--port", "9400", "--port-end", "9900"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=environment(),
        )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready = re.fullmatch(r"READY tcp://127\.0\.0\.1:(\d+)\n", line)
            assert ready, f"the server said {line!r}; {log.read_text()}"
            yield ready[1]
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()


def run(code: str, folder: Path) -> None:
    """Run a program to its end in a process group of its own, so that if it fails nothing stays behind."""
    script, output = folder / "example.py", folder / "output"
    script.write_text(code, encoding="utf-8")
    with output.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, script.name],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = process.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {TIME_LIMIT} s\n{output.read_text()}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert status == 0, f"status {status}\n{output.read_text()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_example_is_marked(page: Path) -> None:
    list(examples(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def all_examples() -> Iterator[Example]:
    """Those of all pages; one that is badly marked is left to the test above."""
    for page in PAGES:
        try:
            yield from examples(page)
        except AssertionError:
            continue


def absence(kind: str) -> str | None:
    """Why there is no such device here."""
    backend = load(kind)
    if backend is None:
        return f"no backend for {kind}"
    try:
        return backend.absence()
    finally:
        backend.close()


@pytest.mark.parametrize("example", list(all_examples()), ids=lambda example: example.where)
def test_example_runs(example: Example, tmp_path: Path) -> None:
    if example.device and (why := absence(example.device)):
        pytest.skip(f"{example.where} was NOT RUN: {why}")
    if example.needs_server:
        with server(tmp_path) as port:
            run(example.code.replace(DOCUMENTED_PORT, port), tmp_path)
    else:
        run(example.code, tmp_path)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if steps(page, ROOT)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_walk(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path / "home"))  # keys and known hosts are the page's own
    for kind in needed_devices(page, ROOT):
        if why := absence(kind):
            pytest.skip(f"{page.relative_to(ROOT)} was NOT RUN: {why}")
    if missing := missing_programs(page, ROOT):
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    with Walk(tmp_path, run, environment()) as walk:
        for step in steps(page, ROOT):
            walk.do(step)


def test_state_diagrams_are_fresh() -> None:
    draw = [sys.executable, "-m", "rpcflow.session.diagram"]
    drawn = subprocess.run(draw, check=True, capture_output=True, text=True, timeout=60).stdout
    kept = (ROOT / "docs" / "explanation" / "states.md").read_text(encoding="utf-8")
    assert drawn == kept, "run `make diagrams`"


def command_help(*arguments: str) -> str:
    command = [*RPCFLOW, *arguments, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_command_line_page_is_complete() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## rpcflow (\S+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    commands = re.findall(r"^  ([a-z-]+)\b", command_help().partition("Commands:")[2], re.MULTILINE)
    assert sorted(sections) == sorted(commands)
    for name, section in sections.items():
        pages = [command_help(name)]
        if "COMMAND [ARGS]" in pages[0]:
            inner = re.findall(r"^  ([a-z-]+)\b", pages[0].partition("Commands:")[2], re.MULTILINE)
            pages += [command_help(name, command) for command in inner]
        offered = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "".join(pages))) - {"--help"}
        told = set(re.findall(r"`(--[a-z][a-z-]*)", section))
        assert told == offered, f"rpcflow {name}"
