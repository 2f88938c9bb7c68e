# SPDX-License-Identifier: Apache-2.0
"""The codecs and the machines do no I/O, keep no time, and import nothing above them."""

import ast
import sys
from pathlib import Path

import pytest

import rpcflow

ROOT = Path(rpcflow.__file__).parent
FORBIDDEN = {"trio", "anyio", "asyncio", "socket", "ssl", "threading", "time", "select", "selectors"}
FORBIDDEN |= {"subprocess", "multiprocessing", "concurrent", "signal", "_socket", "_thread"}
ALLOWED = {"protocol": {"errors", "protocol"}, "session": {"errors", "protocol", "session"}}
"""What of rpcflow each layer may import, by first name."""
PURE = {"attrs", *sys.stdlib_module_names}


def modules(layer: str) -> list[Path]:
    return sorted((ROOT / layer).glob("**/*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    package = ["rpcflow", *path.parent.relative_to(ROOT).parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("__import__", "import_module"):
            found.add("(dynamic)")
    return found


def resolve(name: str) -> Path | None:
    """The file of a module of rpcflow, or None for anything else."""
    path = ROOT.joinpath(*name.split(".")[1:])
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


@pytest.mark.parametrize("layer", ALLOWED)
def test_arrows_point_down(layer: str) -> None:
    assert modules(layer)
    for path in modules(layer):
        for name in imports(path):
            if name.split(".")[0] == "rpcflow":
                first = name.split(".")[1:2]
                assert first, f"{path.name} imports the whole of rpcflow"
                assert first[0] in ALLOWED[layer], f"{path.name} imports {name}"


@pytest.mark.parametrize("layer", ALLOWED)
def test_nothing_that_waits_or_keeps_time(layer: str) -> None:
    """Followed through all that they import of rpcflow."""
    waiting, seen = modules(layer), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            top = name.split(".")[0]
            assert top not in FORBIDDEN, f"{path} imports {name}"
            if top != "rpcflow":
                assert top in PURE, f"{path} imports {name}"
            elif (inner := resolve(name)) is not None:
                waiting.append(inner)
    assert ROOT / "errors.py" in seen


def test_errors_import_nothing_of_ours() -> None:
    assert not [name for name in imports(ROOT / "errors.py") if name.startswith("rpcflow")]
