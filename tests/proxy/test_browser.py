# SPDX-License-Identifier: Apache-2.0
"""A page in a headless Chromium joins through the web port as an RPC server and answers calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpcflow import sync
from tests.server.support import HOST, PATIENCE

from .conftest import free_port

PAGE = Path(__file__).parent / "server_page.html"
REQUIRE = "RPCFLOW_REQUIRE_BROWSER"
pytestmark = pytest.mark.xdist_group("browser")


def cannot(why: str) -> None:
    """Skip the test, for all to see; fail it where a browser was promised."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{why}, and {REQUIRE}=1 requires it", pytrace=False)
    sys.stderr.write(f"\nWARNING: {why}: NOT TESTED with a browser\n")
    pytest.skip(f"{why}: NOT TESTED with a browser")


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's path; it is installed where that can be done."""
    if shutil.which("chromium") is None:
        script = Path(__file__).parents[2] / "scripts" / "system-packages"
        subprocess.run([script, "chromium"], env={**os.environ, "PYTHON": sys.executable}, check=False, timeout=110)
    return shutil.which("chromium") or ""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    if not chromium:
        cannot("there is no chromium on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        cannot("playwright is not installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_page_is_a_server(browser: Any) -> None:
    """Our client and, where it is installed, stock's call a function that runs in the page."""
    web = free_port()
    with sync.Proxy(HOST, 9091, web_port=web, index_page=str(PAGE)) as proxy:
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://localhost:{web}/?key=page")
        with sync.connect(HOST, proxy.port, "page", wait_timeout=PATIENCE) as session:
            add = session.get_function("page.add")
            assert add(20, 22) == 42
            assert add(-1, 0) == -1
            assert session.get_function("page.agent")().startswith("Mozilla/")
            assert session.get_function("page.size")(b"x" * 300_000) == 300_000
            with pytest.raises(AttributeError):
                session.get_function("page.missing")
        page.wait_for_function("sessions === 1", timeout=PATIENCE * 1000)
        try:
            import tvm.rpc
        except ImportError:
            pass  # tests/interop says that it is missing
        else:
            stock: Any = tvm.rpc.connect(HOST, proxy.port, "page")
            assert stock.get_function("page.add")(20, 23) == 43
            del stock
            page.wait_for_function("sessions === 2", timeout=PATIENCE * 1000)
        page.close()
        assert said == []


def test_a_page_from_elsewhere_is_not_let_in(browser: Any) -> None:
    web = free_port()
    with sync.Proxy(HOST, 9091, web_port=web, index_page=str(PAGE)):
        page = browser.new_page()
        page.goto("data:text/html,<p>elsewhere</p>")
        opened = page.evaluate(
            """port => new Promise(done => {
                const socket = new WebSocket(`ws://localhost:${port}/ws`);
                socket.onopen = () => done(true);
                socket.onerror = () => done(false);
            })""",
            web,
        )
        assert opened is False
        page.close()
