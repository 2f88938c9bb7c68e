"""Functions, exceptions, objects and what is freed when."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .peers import Link

pytestmark = pytest.mark.interop


def test_testing_functions(link: Link) -> None:
    assert link.call("rpc.test.addone", 10) == 11
    assert link.call("rpc.test.strcat", "abc", 11) == "abc:11"


def test_exception_then_more_calls(link: Link) -> None:
    fail, add = link.fn("rpc.test.except"), link.fn("rpc.test.addone")
    for round_ in range(5):
        with pytest.raises(link.client.RPCError, match=f"bang {round_}"):
            fail(f"bang {round_}")
        assert add(round_) == round_ + 1


@pytest.mark.parametrize("kind", ["ValueError", "RuntimeError", "TypeError"])
def test_exception_from_native_code(link: Link, kind: str) -> None:
    with pytest.raises(link.client.RPCError, match="a message of its own"):
        link.call("testing.test_raise_error", kind, "a message of its own")
    assert link.call("testing.echo", 1) == 1


def test_exception_text_unicode_and_long(link: Link) -> None:
    text = "Ωμέγα " * 500
    with pytest.raises(link.client.RPCError) as caught:
        link.call("rpc.test.except", text)
    assert text.strip() in str(caught.value)


def test_exception_is_a_runtime_error(link: Link) -> None:
    with pytest.raises(RuntimeError) as caught:
        link.call("rpc.test.except", "abc")
    if link.client.name == "stock":  # the bare message, under the stock client's own first line
        assert str(caught.value).splitlines()[-2:] == ["RPCError: Error caught from RPC call:", "abc"]


def test_missing_function(link: Link) -> None:
    with pytest.raises(AttributeError, match=r"no\.such\.function"):
        link.fn("no.such.function")
    assert link.call("testing.echo", 1) == 1


def test_returned_function(link: Link) -> None:
    add = link.call("rpc.test.add_to_lhs", 10)
    assert add(5) == 15
    assert add(-10) == 0
    del add
    gc.collect()
    assert link.call("testing.echo", 3) == 3


def test_returned_functions_are_apart(link: Link) -> None:
    make = link.fn("rpc.test.add_to_lhs")
    adders = [make(left) for left in range(20)]
    assert [add(1) for add in adders] == list(range(1, 21))


def test_same_function_twice(link: Link) -> None:
    first, second = link.fn("testing.echo"), link.fn("testing.echo")
    del first
    gc.collect()
    assert link.call("testing.nop") is None
    assert second(4) == 4


def test_returned_tensor(link: Link) -> None:
    tensor = link.call("wire.make_tensor", 6)
    assert tuple(tensor.shape) == (6,)
    assert str(tensor.dtype) == "float32"
    np.testing.assert_array_equal(tensor.numpy(), np.arange(6, dtype="float32"))
    assert link.call("wire.tensor_sum", tensor) == 15.0
    link.call("wire.add_one_inplace", tensor)
    np.testing.assert_array_equal(tensor.numpy(), np.arange(6, dtype="float32") + 1)


def test_returned_tensor_outlives_its_function(link: Link) -> None:
    make = link.fn("wire.make_tensor")
    tensors = [make(n) for n in (1, 100, 10_000)]
    del make
    gc.collect()
    for tensor in tensors:
        np.testing.assert_array_equal(tensor.numpy(), np.arange(tensor.shape[0], dtype="float32"))


def test_returned_module(link: Link) -> None:
    module = link.call("wire.ret_module")
    with pytest.raises((AttributeError, link.client.RPCError)):
        module["no_such_function"]()
    again = link.call("testing.echo", module)
    del module
    gc.collect()
    with pytest.raises((AttributeError, link.client.RPCError)):
        again["no_such_function"]()
    assert link.call("testing.echo", 1) == 1


def test_object_shape(link: Link) -> None:
    shape = link.call("ffi.Shape", 2, 3, 4)
    assert link.call("rpc.testing.GetShapeSize", shape) == 3
    assert [link.call("rpc.testing.GetShapeElem", shape, i) for i in range(3)] == [2, 3, 4]
    with pytest.raises(link.client.RPCError):
        link.call("rpc.testing.GetShapeElem", shape, 9)


def test_object_echoed_is_a_reference_of_its_own(link: Link) -> None:
    shape = link.call("ffi.Shape", 5, 6)
    echoed = link.call("testing.echo", shape)
    del shape
    gc.collect()
    link.call("testing.nop")  # whatever was dropped is freed by now
    assert link.call("rpc.testing.GetShapeElem", echoed, 1) == 6


def test_object_array_and_map(link: Link) -> None:
    array, mapping = link.call("wire.ret_array"), link.call("wire.ret_map")
    assert link.call("interop.array_sum", array) == 6
    assert link.call("ffi.ArraySize", array) == 3
    assert link.call("interop.map_get", mapping, "a") == 1
    nested = link.call("ffi.Array", array, mapping, 7)
    inner = link.call("ffi.ArrayGetItem", nested, 0)
    assert link.call("interop.array_sum", inner) == 6
    assert link.call("ffi.ArrayGetItem", nested, 2) == 7


def test_argument_of_a_dropped_reference(link: Link) -> None:
    """The reference is dropped as soon as the call is made; the call still sees its object."""
    size = link.fn("rpc.testing.GetShapeSize")
    for n in range(10):
        assert size(link.call("ffi.Shape", *range(1, n + 2))) == n + 1


def _wait_for(read: Callable[[], Any], expected: Any) -> None:
    deadline = time.monotonic() + 5
    while read() != expected:
        assert time.monotonic() < deadline, f"still {read()}, expected {expected}"
        gc.collect()
        time.sleep(0.02)


def test_dropped_functions_are_freed(link: Link) -> None:
    live, make = link.fn("interop.live"), link.fn("interop.make_adder")
    adders = [make(n) for n in range(10)]
    assert live("functions") == 10
    del adders[3:]
    _wait_for(lambda: live("functions"), 3)
    assert adders[2](1) == 3
    adders.clear()
    _wait_for(lambda: live("functions"), 0)


def test_dropped_tensors_are_freed(link: Link) -> None:
    live, make = link.fn("interop.live"), link.fn("interop.make_watched")
    tensors = [make(100) for _ in range(10)]
    assert live("tensors") == 10
    views = [link.client.view(tensors[0], (10,), byte_offset=40)]
    tensors.clear()
    _wait_for(lambda: live("tensors"), 1)  # the view keeps what it looks at
    views.clear()
    _wait_for(lambda: live("tensors"), 0)


def test_dropped_allocations_are_freed(link: Link) -> None:
    rss, touch = link.fn("interop.rss"), link.fn("interop.touch")
    before = rss()
    for _ in range(30):
        touch(link.empty((8 << 20,), "uint8"))
    gc.collect()
    assert rss() - before < 120 << 20
