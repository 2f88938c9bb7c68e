# SPDX-License-Identifier: Apache-2.0
"""What is built from this tree: all of the package is in the wheel, and its metadata are what we promise."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, timeout=100)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rpcflow").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files
    assert "rpcflow/py.typed" in packed


def test_wheel_brings_its_licence(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_base_install_is_what_clients_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.partition(">=")[0] for requirement in project["dependencies"]}
    assert names == {"anyio", "attrs", "click", "cloudpickle", "ml_dtypes", "numpy", "trio"}


@pytest.mark.parametrize("group", ["rpcflow.transports", "rpcflow.backends"])
def test_entry_points_load(group: str) -> None:
    ours = [point for point in entry_points(group=group) if point.dist and point.dist.name == "rpcflow"]
    assert ours
    for point in ours:
        assert point.load() is not None


def test_command_is_installed() -> None:
    (script,) = (point for point in distribution("rpcflow").entry_points if point.group == "console_scripts")
    assert script.name == "rpcflow"
    assert callable(getattr(import_module(script.module), script.attr))
