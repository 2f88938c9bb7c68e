# SPDX-License-Identifier: Apache-2.0
"""A carrier between real TLS and a plain socket: every byte, either end's end, and whatever comes instead of TLS."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.security.carrying import SMALL_NBYTES, Carried, carry
from tests.certificates import write_pem

Lines = tuple[ssl.SSLSocket, Carried, socket.socket]
"""The client's end, the carrier, and the end of whoever serves it."""


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(write_pem(tmp_path_factory.mktemp("pem") / "server.pem"))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


def joined(contexts: tuple[ssl.SSLContext, ssl.SSLContext], nbytes: int = SMALL_NBYTES) -> Lines:
    server, client = contexts
    near, far = socket.socketpair()
    ours, theirs = socket.socketpair()
    made: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: made.append(client.wrap_socket(near)))
    thread.start()
    tls = server.wrap_socket(far, server_side=True)
    thread.join()
    tls.setblocking(False)
    ours.setblocking(False)
    return made[0], Carried(tls, ours, nbytes), theirs


@pytest.fixture
def lines(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Lines]:
    made = joined(contexts)
    yield made
    made[0].close()
    made[1].close()
    made[2].close()


def turn(carried: Carried, timeout: float = 0.0) -> bool:
    """One look and one move; whether there was anything to do."""
    tls, plain = carried.wants()
    poller = select.poll()
    poller.register(carried.tls, tls)
    if plain != -1:
        poller.register(carried.plain, plain)
    ready = dict(poller.poll(timeout * 1000))
    if not ready and not carried.restless:
        return False
    numbers = carried.tls.fileno(), carried.plain.fileno()
    carried.move(ready.get(numbers[0], 0), ready.get(numbers[1], 0))
    return True


def settle(carried: Carried) -> None:
    """Until there is nothing more to do; it must come to rest, or it would burn a processor."""
    for _ in range(2000):
        if carried.over or not turn(carried):
            return
    raise AssertionError("it never comes to rest")


def exactly(sock: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        piece = sock.recv(nbytes - len(data))
        assert piece
        data += piece
    return bytes(data)


def test_small_bytes_both_ways(lines: Lines) -> None:
    client, carried, served = lines
    for i in range(5):
        client.send(b"ping%d" % i)
        settle(carried)
        assert served.recv(100) == b"ping%d" % i
        served.send(b"pong%d" % i)
        settle(carried)
        assert client.recv(100) == b"pong%d" % i


@settings(max_examples=40)
@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=20),
    nbytes=st.sampled_from([1, 7, 1000, 16384, SMALL_NBYTES]),
)
def test_every_byte_in_its_order(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], pieces: list[tuple[bool, int]], nbytes: int
) -> None:
    client, carried, served = joined(contexts, nbytes)
    try:
        said: dict[bool, bytes] = {True: b"", False: b""}
        for up, size in pieces:
            data = os.urandom(size)
            said[up] += data
            (client if up else served).send(data)
            for _ in range(20):
                if not turn(carried):
                    break
        # Each side reads while it moves, as a line whose buffers are full must be read from to go on.
        threads = []
        heard: dict[bool, bytes] = {}
        for up in (True, False):
            reader = served if up else client

            def read(up: bool = up, reader: socket.socket = reader) -> None:
                heard[up] = exactly(reader, len(said[up]))

            threads.append(threading.Thread(target=read))
            threads[-1].start()
        while any(thread.is_alive() for thread in threads):
            turn(carried, 0.01)
        assert heard == said
    finally:
        client.close()
        carried.close()
        served.close()


def test_bulk_against_a_slow_reader(lines: Lines) -> None:
    """What is not taken is not read either: the sender waits, and no memory is taken."""
    client, carried, served = lines
    client.setblocking(False)
    sent = 0
    block = bytes(range(256)) * 256
    idle = 0
    while idle < 3:
        try:
            sent += client.send(block[sent % 256 : 60000])
            idle = 0
        except ssl.SSLWantWriteError:
            idle += 1
        settle(carried)
    assert sent < 8 << 20
    served.setblocking(False)
    got = 0
    while got < sent:
        try:
            data = served.recv(65536)
        except BlockingIOError:
            assert turn(carried, 1.0)
            continue
        assert data == (block * 3)[got % 256 : got % 256 + len(data)]
        got += len(data)
    assert sent <= got <= sent + 60000  # of a write that was not finished, some records may have gone


def test_the_client_says_goodbye(lines: Lines) -> None:
    client, carried, served = lines
    client.send(b"last")
    client.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    settle(carried)
    assert served.recv(100) == b"last"
    assert served.recv(100) == b""
    assert not carried.over  # what is still said to it goes there
    served.close()
    settle(carried)
    assert carried.over


def test_a_client_that_says_goodbye_first_hears_one_too(lines: Lines) -> None:
    """What it is told in answer may have been cut otherwise."""
    client, carried, served = lines
    client.send(b"question")
    client.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    settle(carried)
    assert served.recv(100) == b"question"
    assert served.recv(100) == b""
    served.send(b"answer")
    served.close()
    settle(carried)
    carried.close()
    client.setblocking(True)
    assert client.recv(100) == b"answer"
    client.unwrap()  # ssl raises where the line was cut


def test_larger_buffers_while_something_is_held(lines: Lines) -> None:
    """A client may say much before its session begins."""
    client, carried, served = lines
    client.setblocking(False)
    served.setblocking(False)
    block = bytes(range(256)) * 1024
    sent = got = 0
    while carried._to_plain is None:
        with contextlib.suppress(ssl.SSLWantWriteError):
            sent += client.send(block[sent % 256 :])
        turn(carried)
    carried.grow(8 * SMALL_NBYTES)
    while got < 3 << 20:
        with contextlib.suppress(ssl.SSLWantWriteError):
            sent += client.send(block[sent % 256 :])
        turn(carried)
        with contextlib.suppress(BlockingIOError):
            data = served.recv(1 << 18)
            assert data == (block * 2)[got % 256 : got % 256 + len(data)]
            assert data
            got += len(data)
    assert len(carried._in) == 8 * SMALL_NBYTES
    assert not carried.over


def test_the_client_goes_without_a_word(lines: Lines) -> None:
    client, carried, served = lines
    client.send(b"last")
    client.detach_socket = socket.socket(fileno=client.detach())  # type: ignore[attr-defined]
    client.detach_socket.close()  # type: ignore[attr-defined]
    settle(carried)
    assert served.recv(100) == b"last"
    assert served.recv(100) == b""


def test_the_server_ends(lines: Lines) -> None:
    """All it has said arrives, and then a goodbye: no cut line."""
    client, carried, served = lines
    served.send(b"x" * 100_000)
    served.close()
    heard = bytearray()
    client.settimeout(0.01)
    while len(heard) < 100_000:
        settle(carried)
        try:
            heard += client.recv(65536)
        except TimeoutError:
            continue
    settle(carried)
    assert client.recv(100) == b""  # ssl raises where it is cut
    assert carried.ending
    client.close()
    settle(carried)
    assert carried.over


def test_what_is_no_tls(lines: Lines) -> None:
    client, carried, served = lines
    raw = socket.socket(fileno=client.detach())
    with raw:
        raw.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
        settle(carried)
        assert served.recv(100) == b""


def test_a_client_that_does_not_read_what_it_is_told_at_the_end(lines: Lines) -> None:
    client, carried, served = lines
    served.setblocking(False)
    try:
        while True:
            served.send(b"x" * 65536)
            turn(carried)
    except BlockingIOError:
        pass
    settle(carried)
    served.close()
    settle(carried)
    assert not carried.over
    client.close()
    settle(carried)
    assert carried.over


def test_a_blocked_server_learns_that_its_client_has_gone(lines: Lines) -> None:
    client, carried, _ = lines
    client.setblocking(False)
    try:
        while True:
            client.send(b"x" * 65536)
            settle(carried)
    except ssl.SSLWantWriteError:
        pass
    raw = socket.socket(fileno=client.detach())
    raw.close()
    settle(carried)
    assert carried.over


def test_a_client_that_goes_on_talking_holds_nobody_up(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """A goodbye has its time to be read, and no more."""
    client, carried, served = joined(contexts)
    served.close()
    talking = threading.Event()

    def talk() -> None:
        with contextlib.suppress(OSError), client:
            while not talking.wait(0.01):
                socket.socket.send(client, b"x")

    thread = threading.Thread(target=talk)
    thread.start()
    carry_thread = threading.Thread(target=carry, args=(carried, 0.1))
    carry_thread.start()
    carry_thread.join(30)
    ended = not carry_thread.is_alive()
    talking.set()
    thread.join()
    carry_thread.join()
    assert ended


@pytest.mark.parametrize("end", ["the gate", "the client", "the client, cut", "the server"])
def test_a_process_of_its_own(contexts: tuple[ssl.SSLContext, ssl.SSLContext], end: str) -> None:
    client, carried, served = joined(contexts)
    alive, alive_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(alive_write)
            served.close()
            os.close(client.detach())
            signal.alarm(60)
            carry(carried, 1.0, alive)
        finally:
            os._exit(0)
    os.close(alive)
    os.close(carried.tls.detach())
    carried.plain.close()
    data = os.urandom(3 << 20)
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    assert exactly(served, len(data)) == data
    thread.join()
    thread = threading.Thread(target=served.sendall, args=(data,))
    thread.start()
    assert exactly(client, len(data)) == data
    thread.join()
    for i in range(20):
        client.sendall(b"ping%d" % i)
        assert served.recv(100) == b"ping%d" % i
        served.sendall(b"pong%d" % i)
        assert client.recv(100) == b"pong%d" % i
    if end == "the gate":
        os.close(alive_write)
        assert os.waitpid(pid, 0)[1] == 0
        assert served.recv(1) == b""
    elif end == "the server":
        served.sendall(b"last")
        served.close()
        assert exactly(client, 4) == b"last"
        assert client.recv(1) == b""
        client.close()
        assert os.waitpid(pid, 0)[1] == 0
    else:
        if end == "the client":
            client.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                client.unwrap()
        socket.socket(fileno=client.detach()).close()
        assert served.recv(1) == b""
        served.close()
        assert os.waitpid(pid, 0)[1] == 0
    if end != "the gate":
        os.close(alive_write)
    served.close()
    client.close()
