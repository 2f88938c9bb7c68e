"""Sessions: keys, constructors, hops, budgets, waiting, and one after another."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from .conftest import PAIRINGS
from .peers import HOST, Client, Link, Servers

pytestmark = pytest.mark.interop
Open = Callable[..., contextlib.AbstractContextManager[Link]]


def everything(link: Link) -> None:
    """A little of all that a session can do."""
    echo = link.fn("testing.echo")
    for value in (1, "xyz", b"123", 2.5, None, True, "a text longer than seven bytes"):
        assert echo(value) == value
    array = np.arange(6, dtype="int64").reshape(2, 3)
    tensor = link.tensor(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    other = link.empty((2, 3), "int64")
    tensor.copyto(other)
    np.testing.assert_array_equal(other.numpy(), array)
    floats = link.tensor(np.array([1, 2, 3], "float32"))
    link.call("wire.add_one_inplace", floats)
    assert link.call("wire.tensor_sum", floats) == 9.0
    assert link.call("wire.tensor_sum", link.client.view(floats, (2,), byte_offset=4)) == 7.0
    np.testing.assert_array_equal(link.call("wire.make_tensor", 4).numpy(), np.arange(4, dtype="float32"))
    assert link.call("rpc.test.add_to_lhs", 10)(5) == 15
    shape = link.call("ffi.Shape", 2, 3)
    assert link.call("rpc.testing.GetShapeSize", shape) == 2
    with pytest.raises(link.client.RPCError, match="bang") as caught:
        link.call("rpc.test.except", "bang")
    assert "rpcflow-error" not in str(caught.value)  # a form that only two rpcflow ends agree on
    with pytest.raises(AttributeError):
        link.fn("no.such.function")
    link.session.upload(bytearray(b"data"), "x.bin")
    assert bytes(link.session.download("x.bin")) == b"data"
    link.cpu.sync()
    del floats, other, tensor, shape
    gc.collect()
    assert echo(7) == 7


def test_everything(link: Link) -> None:
    everything(link)


# -- keys


@pytest.mark.parametrize("key", ["", "x1", "a:b", "κλειδί"])
def test_key(client: Client, servers: Servers, pairing: tuple[str, str], key: str) -> None:
    if not key.isascii() and pairing[1] == "stock":
        pytest.skip("the stock server gives the length of its key in characters, not bytes")
    with client.connect(servers.port(pairing[1], key), key) as session:
        assert session.get_function("testing.echo")(1) == 1


def test_key_mismatch(open_link: Open, client: Client) -> None:
    # The stock client's own error for this is not an RPCError.
    kind: type[Exception] = RuntimeError if client.name == "stock" else client.RPCError
    with pytest.raises(kind) as caught:
        with open_link(key="nope"):
            pass
    assert "nope" in str(caught.value) or "match" in str(caught.value)
    if client.name != "stock":
        assert type(caught.value).__name__ == "KeyMismatchError"
    with open_link() as link:
        assert link.call("testing.echo", 1) == 1


# -- constructors


def test_constructor_local(open_link: Open) -> None:
    with open_link(session_constructor_args=["rpc.LocalSession"]) as link:
        everything(link)


def test_constructor_missing(open_link: Open, client: Client) -> None:
    with pytest.raises(client.RPCError, match=r"rpc\.NonExisting"):
        with open_link(session_constructor_args=["rpc.NonExisting", 1, "a", b"b", None, True, 2.5]):
            pass
    with open_link() as link:
        assert link.call("testing.echo", 1) == 1


def test_constructor_that_raises(open_link: Open, client: Client) -> None:
    with pytest.raises(client.RPCError, match="bang"):
        with open_link(session_constructor_args=["rpc.test.except", "bang"]):
            pass


def test_constructor_of_something_else(open_link: Open, client: Client) -> None:
    with pytest.raises(client.RPCError):
        with open_link(session_constructor_args=["ffi.SystemLib"]):
            pass


@pytest.mark.parametrize("last", ["stock", "rpcflow"])
def test_two_hops(open_link: Open, servers: Servers, pairing: tuple[str, str], last: str) -> None:
    if last == "stock" and "stock" not in pairing:
        from .conftest import need_tvm

        need_tvm()
    final = servers.port(last, "last")
    with open_link(session_constructor_args=["rpc.Connect", HOST, final, "last", False]) as link:
        everything(link)
    with open_link() as link:  # and the middle one is free again
        assert link.call("testing.echo", 1) == 1


def test_three_hops(open_link: Open, servers: Servers, pairing: tuple[str, str]) -> None:
    kind = pairing[1]
    middle, final = servers.port(kind, "middle"), servers.port(kind, "last")
    hops = ["rpc.Connect", HOST, middle, "middle", False, "rpc.Connect", HOST, final, "last", False]
    with open_link(session_constructor_args=hops) as link:
        everything(link)


def test_hop_to_nowhere(open_link: Open, servers: Servers, pairing: tuple[str, str], client: Client) -> None:
    final = servers.port(pairing[1], "last")
    with pytest.raises(client.RPCError):
        with open_link(session_constructor_args=["rpc.Connect", HOST, final, "wrong key", False]):
            pass
    with open_link() as link:
        assert link.call("testing.echo", 1) == 1


# -- budgets


@pytest.mark.parametrize("budget", [30, 2.5])
def test_session_within_its_budget(open_link: Open, budget: float) -> None:
    with open_link(session_timeout=budget) as link:
        everything(link)


def test_timeout_while_idle(open_link: Open, client: Client) -> None:
    with open_link(session_timeout=1) as link:
        add = link.fn("rpc.test.addone")
        assert add(1) == 2
        time.sleep(1.3)
        with pytest.raises(client.Timeout, match="session_timeout"):
            add(1)
    with open_link() as link:
        assert link.call("testing.echo", 1) == 1


def test_timeout_during_call(open_link: Open, client: Client) -> None:
    start = time.monotonic()
    with open_link(session_timeout=0.7) as link:
        with pytest.raises(client.Timeout, match="session_timeout"):
            link.call("wire.sleep", 20.0)
    assert time.monotonic() - start < 5
    with open_link() as link:
        assert link.call("testing.echo", 1) == 1


# -- waiting and many


def test_waiting_clients_are_served_in_order(open_link: Open) -> None:
    served: list[int] = []

    def wait(number: int) -> None:
        with open_link() as link:
            served.append(number)
            assert link.call("testing.echo", number) == number

    with open_link() as first:
        threads = []
        for number in range(2):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            time.sleep(0.15)
        assert served == []
        assert first.call("testing.echo", 5) == 5
    for thread in threads:
        thread.join(10)
    assert served == [0, 1]


def test_waiting_does_not_count_as_session_time(open_link: Open) -> None:
    outcome: list[object] = []

    def wait() -> None:
        try:
            with open_link(session_timeout=1) as link:
                time.sleep(0.3)
                outcome.append(link.call("testing.echo", 1))
        except Exception as error:
            outcome.append(error)

    with open_link():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(1.2)
    thread.join(10)
    assert outcome == [1]


def test_many_sessions_one_after_another(open_link: Open) -> None:
    pids = set()
    for number in range(15):
        with open_link() as link:
            assert link.call("rpc.test.addone", number) == number + 1
            pids.add(link.call("interop.pid"))
    assert len(pids) == 15  # each in a process of its own


def test_session_left_with_an_error(open_link: Open) -> None:
    with pytest.raises(ZeroDivisionError):
        with open_link() as link:
            tensor = link.tensor(np.zeros(3, "float32"))
            raise ZeroDivisionError(str(tensor.shape))
    with open_link() as link:
        assert link.call("testing.echo", 1) == 1


def test_two_sessions_to_two_servers(open_link: Open, servers: Servers) -> None:
    """The same client in sessions to a stock and an rpcflow server at once keeps them apart."""
    from .conftest import need_tvm

    need_tvm()
    with open_link(servers.port("stock", "pair"), "pair") as one:
        with open_link(servers.port("rpcflow", "pair"), "pair") as two:
            left, right = one.tensor(np.full(3, 1, "float32")), two.tensor(np.full(3, 2, "float32"))
            assert one.call("wire.tensor_sum", left) == 3
            assert two.call("wire.tensor_sum", right) == 6
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                one.call("wire.tensor_sum", right)
            assert one.call("testing.echo", 1) == two.call("testing.echo", 1)


def test_every_pairing_has_a_control() -> None:
    assert ("stock", "stock") in PAIRINGS
