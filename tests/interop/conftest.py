"""Pairings of clients and servers. Stock TVM is imported when a test first needs it, not before."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .kernels import compile_kernels
from .peers import KEY, Client, Link, Servers, make_client

REQUIRE = "RPCFLOW_REQUIRE_TVM"
PAIRINGS = [
    ("stock", "stock"),  # the control: shows that the scenario itself is right
    ("stock", "rpcflow"),
    ("sync", "stock"),
    ("trio", "stock"),
    ("asyncio", "stock"),
    ("sync", "rpcflow"),
    ("trio", "rpcflow"),
    ("asyncio", "rpcflow"),
]


def _have_tvm() -> bool:
    return importlib.util.find_spec("tvm") is not None


def need_tvm() -> None:
    """Skip the test where apache-tvm is missing; fail it where it was promised."""
    if _have_tvm():
        return
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"apache-tvm is not installed, and {REQUIRE}=1 requires it", pytrace=False)
    pytest.skip("apache-tvm is not installed: NOT TESTED against stock TVM")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _have_tvm():
        terminalreporter.write_line(
            "WARNING: apache-tvm is not installed; interoperation with stock TVM was NOT tested.", red=True
        )


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    running = Servers()
    yield running
    running.close()


@pytest.fixture(scope="session")
def clients() -> Iterator[Callable[[str], Client]]:
    made: dict[str, Client] = {}

    def get(name: str) -> Client:
        if name not in made:
            made[name] = make_client(name)
        return made[name]

    yield get
    for client in made.values():
        client.close()


@pytest.fixture(params=PAIRINGS, ids=["-".join(pairing) for pairing in PAIRINGS])
def pairing(request: pytest.FixtureRequest) -> tuple[str, str]:
    names: tuple[str, str] = request.param
    if "stock" in names:
        need_tvm()
    return names


@pytest.fixture
def client(pairing: tuple[str, str], clients: Callable[[str], Client]) -> Client:
    return clients(pairing[0])


@pytest.fixture
def port(pairing: tuple[str, str], servers: Servers) -> int:
    return servers.port(pairing[1])


@pytest.fixture
def open_link(
    pairing: tuple[str, str], client: Client, port: int
) -> Callable[..., contextlib.AbstractContextManager[Link]]:
    """Opens a session to the pairing's server (or to another port)."""

    @contextlib.contextmanager
    def opened(at: int | None = None, key: str = KEY, **options: Any) -> Iterator[Link]:
        with client.connect(port if at is None else at, key, **options) as session:
            yield Link(client, session, pairing[1])

    return opened


@pytest.fixture
def link(open_link: Callable[..., contextlib.AbstractContextManager[Link]]) -> Iterator[Link]:
    with open_link() as opened:
        yield opened


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with compiled kernels: `add.so`, `add.o`, `add.tar`, `mul.so`."""
    need_tvm()
    if shutil.which("cc") is None and shutil.which("g++") is None:
        if os.environ.get(REQUIRE) == "1":
            pytest.fail("no C compiler to link kernels with", pytrace=False)
        pytest.skip("no C compiler to link kernels with")
    folder = tmp_path_factory.mktemp("kernels")
    compile_kernels(folder)
    return folder
