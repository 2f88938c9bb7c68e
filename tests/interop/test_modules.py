"""Modules: loaded, linked on the server, imported, timed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .peers import Link

pytestmark = pytest.mark.interop


def load(link: Link, kernels: Path, name: str = "add.so") -> Any:
    link.session.upload(str(kernels / name))
    return link.session.load_module(name)


def run(link: Link, function: Any, count: int = 10) -> Any:
    source = link.tensor(np.arange(count, dtype="float32"))
    result = link.empty((count,), "float32")
    assert function(source, result) is None
    return result.numpy()


@pytest.mark.parametrize("name", ["add.so", "add.o", "add.tar"])
def test_load_and_run(link: Link, kernels: Path, name: str) -> None:
    module = load(link, kernels, name)
    np.testing.assert_array_equal(run(link, module["add_one"]), np.arange(10, dtype="float32") + 1)
    np.testing.assert_array_equal(run(link, module["add_one"], 1000), np.arange(1000, dtype="float32") + 1)


def test_module_from_bytes(link: Link, kernels: Path) -> None:
    link.session.upload(bytearray((kernels / "add.so").read_bytes()), "renamed.so")
    module = link.session.load_module("renamed.so")
    np.testing.assert_array_equal(run(link, module["add_one"]), np.arange(10, dtype="float32") + 1)


def test_get_function_of_module(link: Link, kernels: Path) -> None:
    function = load(link, kernels).get_function("add_one")
    gc.collect()  # the module object is gone, its function keeps what it needs
    np.testing.assert_array_equal(run(link, function), np.arange(10, dtype="float32") + 1)


def test_missing_function_of_module(link: Link, kernels: Path) -> None:
    module = load(link, kernels)
    with pytest.raises(AttributeError, match="no_such_kernel"):
        module.get_function("no_such_kernel")
    with pytest.raises(AttributeError, match="no_such_kernel"):
        module["no_such_kernel"]()
    np.testing.assert_array_equal(run(link, module["add_one"], 3), np.array([1, 2, 3], "float32"))


def test_wrong_argument_of_kernel(link: Link, kernels: Path) -> None:
    module = load(link, kernels)
    wrong = link.tensor(np.arange(4, dtype="int32"))
    with pytest.raises(link.client.RPCError):
        module["add_one"](wrong, wrong)
    np.testing.assert_array_equal(run(link, module["add_one"], 3), np.array([1, 2, 3], "float32"))


def test_load_missing_module(link: Link) -> None:
    with pytest.raises(link.client.RPCError, match="nowhere"):
        link.session.load_module("nowhere.so")
    assert link.call("testing.echo", 1) == 1


def test_load_garbage(link: Link) -> None:
    link.session.upload(bytearray(b"this is not a shared library"), "garbage.so")
    with pytest.raises(link.client.RPCError):
        link.session.load_module("garbage.so")
    assert link.call("testing.echo", 1) == 1


def test_two_modules(link: Link, kernels: Path) -> None:
    add, multiply = load(link, kernels, "add.so"), load(link, kernels, "mul.so")
    np.testing.assert_array_equal(run(link, add["add_one"], 4), np.arange(4, dtype="float32") + 1)
    np.testing.assert_array_equal(run(link, multiply["times_three"], 4), np.arange(4, dtype="float32") * 3)
    with pytest.raises(AttributeError):
        add["times_three"]()


def test_import_module(link: Link, kernels: Path) -> None:
    add, multiply = load(link, kernels, "add.so"), load(link, kernels, "mul.so")
    add.import_module(multiply)
    # A new lookup goes through the imports too.
    find = link.fn("tvm.rpc.server.ModuleGetFunction")
    assert find(add, "times_three", False) is None
    found = find(add, "times_three", True)
    np.testing.assert_array_equal(run(link, found, 4), np.arange(4, dtype="float32") * 3)
    np.testing.assert_array_equal(run(link, add["times_three"], 4), np.arange(4, dtype="float32") * 3)


def test_imported_module_stays(link: Link, kernels: Path) -> None:
    add, multiply = load(link, kernels, "add.so"), load(link, kernels, "mul.so")
    add.import_module(multiply)
    del multiply
    gc.collect()
    link.call("testing.nop")
    np.testing.assert_array_equal(run(link, add["times_three"], 4), np.arange(4, dtype="float32") * 3)


def test_module_as_argument(link: Link, kernels: Path) -> None:
    module = link.call("testing.echo", load(link, kernels))
    np.testing.assert_array_equal(run(link, module["add_one"], 4), np.arange(4, dtype="float32") + 1)
    assert link.call("ffi.ModuleImplementsFunction", module, "add_one", True)
    assert not link.call("ffi.ModuleImplementsFunction", module, "other", True)


@pytest.mark.parametrize("name", ["add.so", "add.o", "add.tar"])
def test_download_linked_module(link: Link, kernels: Path, name: str, tmp_path: Path) -> None:
    link.session.upload(str(kernels / name))
    library = bytes(link.session.download_linked_module(name))
    assert library[:4] == b"\x7fELF"
    if name == "add.so":
        assert library == (kernels / name).read_bytes()
    link.session.upload(bytearray(library), "linked.so")
    module = link.session.load_module("linked.so")
    np.testing.assert_array_equal(run(link, module["add_one"], 4), np.arange(4, dtype="float32") + 1)


def test_download_linked_module_of_unknown_kind(link: Link) -> None:
    link.session.upload(bytearray(b"text"), "notes.txt")
    with pytest.raises(link.client.RPCError, match=r"notes\.txt"):
        link.session.download_linked_module("notes.txt")


def test_system_lib(link: Link) -> None:
    library = link.session.system_lib()
    with pytest.raises(AttributeError):
        library.get_function("no_such_function")
    assert link.call("testing.echo", 1) == 1


# -- timing


def test_time_evaluator(link: Link, kernels: Path) -> None:
    module = load(link, kernels)
    source, result = link.tensor(np.zeros(1000, "float32")), link.empty((1000,), "float32")
    measured = module.time_evaluator("add_one", link.cpu, number=5, repeat=3)(source, result)
    assert len(measured.results) == 3
    assert all(0 < seconds < 1 for seconds in measured.results)
    assert measured.mean == pytest.approx(np.mean(measured.results))
    assert measured.median == pytest.approx(np.median(measured.results))
    assert measured.std == pytest.approx(np.std(measured.results))
    assert (measured.min, measured.max) == (min(measured.results), max(measured.results))
    np.testing.assert_array_equal(result.numpy(), np.ones(1000, "float32"))


def test_time_evaluator_defaults(link: Link, kernels: Path) -> None:
    module = load(link, kernels)
    source, result = link.tensor(np.zeros(8, "float32")), link.empty((8,), "float32")
    assert len(module.time_evaluator("add_one", link.cpu)(source, result).results) == 1


def test_time_evaluator_all_parameters(link: Link, kernels: Path) -> None:
    module = load(link, kernels)
    source, result = link.tensor(np.zeros(8, "float32")), link.empty((8,), "float32")
    evaluator = module.time_evaluator(
        "add_one",
        link.cpu,
        number=2,
        repeat=2,
        min_repeat_ms=5,
        limit_zero_time_iterations=50,
        cooldown_interval_ms=1,
        repeats_to_cooldown=2,
        cache_flush_bytes=4096,
        f_preproc="testing.nop",
    )
    for _ in range(2):  # an evaluator may be called again
        measured = evaluator(source, result)
        assert len(measured.results) == 2
        assert all(0 < seconds < 0.01 for seconds in measured.results)


def test_time_evaluator_of_missing_function(link: Link, kernels: Path) -> None:
    module = load(link, kernels)
    with pytest.raises((link.client.RPCError, AttributeError), match="no_such_kernel"):
        module.time_evaluator("no_such_kernel", link.cpu)()


def test_time_evaluator_wrong_argument(link: Link, kernels: Path) -> None:
    evaluator = load(link, kernels).time_evaluator("add_one", link.cpu)
    with pytest.raises(link.client.RPCError):
        evaluator(1, 2)
    assert link.call("testing.echo", 1) == 1


def evaluate(link: Link, *settings: Any) -> Any:
    """The evaluator of a global function, as the function that stands behind `time_evaluator`."""
    return link.call("runtime.RPCTimeEvaluator", None, *settings)


def test_time_evaluator_counts_runs(link: Link) -> None:
    before = link.call("interop.counted", "a"), link.call("interop.counted", "b")
    evaluator = evaluate(link, "interop.count_a", 1, 0, 7, 3, 0, 100, 0, 1, 0, "interop.count_b")
    assert len(evaluator("x")) == 8 * 3
    assert link.call("interop.counted", "a") - before[0] == 1 + 7 * 3
    assert link.call("interop.counted", "b") - before[1] == 3


def test_time_evaluator_min_repeat(link: Link) -> None:
    evaluator = evaluate(link, "interop.count_a", 1, 0, 1, 1, 20, 100, 0, 1, 0, "")
    before = link.call("interop.counted", "a")
    seconds = np.frombuffer(bytes(evaluator()), "<f8")[0]
    runs = link.call("interop.counted", "a") - before
    assert runs > 20
    assert seconds * runs > 0.015


def test_time_evaluator_of_missing_global(link: Link) -> None:
    with pytest.raises(link.client.RPCError, match=r"no\.such"):
        evaluate(link, "no.such", 1, 0, 1, 1, 0, 100, 0, 1, 0, "")
    assert link.call("testing.echo", 1) == 1


def test_time_evaluator_that_fails(link: Link) -> None:
    evaluator = evaluate(link, "rpc.test.except", 1, 0, 1, 1, 0, 100, 0, 1, 0, "")
    with pytest.raises(link.client.RPCError, match="bang"):
        evaluator("bang")
    assert link.call("testing.echo", 1) == 1
