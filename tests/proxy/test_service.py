# SPDX-License-Identifier: Apache-2.0
"""A proxy seen from its wire: what stock's recordings show, and what they do not."""

from __future__ import annotations

import socket
import struct
from typing import Any

import anyio
import pytest

import rpcflow
from rpcflow.protocol.handshake import MAGIC, encode_hello
from rpcflow.proxy.service import Proxy
from tests.server.support import HOST, PATIENCE, Raw, until
from tests.transcripts import load

from .conftest import Host

DUPLICATE, MISMATCH = MAGIC + 1, MAGIC + 2


def waiting(proxy: Any, count: int) -> None:
    """Wait until so many wait there."""
    until(lambda: len(proxy._pairing) == count, f"{count} waiting")


def paired(proxy: Any, key: str = "k", words: str = "") -> tuple[Raw, Raw]:
    """A client and a server that have met."""
    client = Raw(proxy, encode_hello(f"client:{key}{words}"))
    waiting(proxy, 1)
    server = Raw(proxy, encode_hello(f"server:{key}"))
    assert client.take(8 + 7 + len(key)) == encode_hello(f"server:{key}")
    assert server.take(8 + 7 + len(key + words)) == encode_hello(f"client:{key}{words}")
    return client, server


# ---------------------------------------------------------------------------------------------- transcripts


def replay(raw: Raw, name: str, peer: Raw | None = None) -> None:
    """Say what a transcript's connecting side says; everything that came back must come back again."""
    for event in load(name)["events"]:
        data = bytes.fromhex(event["hex"])
        if event["dir"] == "c2s":
            raw.send(data)
        else:
            assert raw.take(len(data)) == data
    if load(name)["first_close"] == "s2c":
        assert raw.ended()


def test_transcript_duplicate(host: Host) -> None:
    with host() as proxy, Raw(proxy, encode_hello("client:dup")) as first:
        waiting(proxy, 1)
        with Raw(proxy) as second:
            replay(second, "proxy-duplicate")
        with Raw(proxy, encode_hello("server:dup")) as server:
            assert first.answer() == MAGIC
            assert server.answer() == MAGIC


def test_transcript_timeout(host: Host) -> None:
    with host(timeout_client=0.2) as proxy, Raw(proxy) as raw:
        replay(raw, "proxy-timeout")


def test_transcript_early_bytes(host: Host) -> None:
    with host() as proxy, Raw(proxy) as raw:
        replay(raw, "proxy-early-bytes")
        waiting(proxy, 0)


@pytest.mark.parametrize("first", ["client", "server"])
def test_transcript_pair_by_hand(host: Host, first: str) -> None:
    links = {"client": "proxy-pair-by-hand-client", "server": "proxy-pair-by-hand-server"}
    said = {side: b"".join(events(name, "c2s")) for side, name in links.items()}
    heard = {side: b"".join(events(name, "s2c")) for side, name in links.items()}
    hello = {side: data[: 8 + int.from_bytes(data[4:8], "little")] for side, data in said.items()}
    second = "server" if first == "client" else "client"
    with host() as proxy, Raw(proxy, hello[first]) as one:
        waiting(proxy, 1)
        with Raw(proxy, hello[second]) as two:
            ends = {first: one, second: two}
            for side, raw in ends.items():
                answer = hello["server" if side == "client" else "client"]
                assert raw.take(len(answer)) == answer
            for side, raw in ends.items():
                raw.send(said[side][len(hello[side]) :])
            for side, raw in ends.items():
                rest = heard[side][len(hello["server" if side == "client" else "client"]) :]
                assert raw.take(len(rest)) == rest
            ends["client"].socket.close()
            assert ends["server"].ended()


@pytest.mark.parametrize("name", ["proxy-client-link", "proxy-server-link", "proxy-websocket-client"])
def test_transcript_of_a_session(host: Host, name: str) -> None:
    """One side's link replayed against a partner who says exactly what the recorded proxy passed on."""
    opens = b"".join(events(name, "c2s")[:1])
    text = opens[8:].decode()
    key = text.partition(":")[2]
    partner_text = f"{'server' if text.startswith('client') else 'client'}:{key}"
    with host() as proxy, Raw(proxy, encode_hello(partner_text)) as partner:
        waiting(proxy, 1)
        with Raw(proxy, opens) as raw:
            assert partner.take(len(opens)) == opens
            answer = encode_hello(partner_text)
            assert raw.take(len(answer)) == answer
            skip = len(answer)
            for event in load(name)["events"][1:]:
                data = bytes.fromhex(event["hex"])
                speaker, listener = (raw, partner) if event["dir"] == "c2s" else (partner, raw)
                if event["dir"] == "s2c" and skip:
                    data, skip = data[skip:], 0
                if data:
                    speaker.send(data)
                assert listener.take(len(data)) == data


def events(name: str, way: str) -> list[bytes]:
    return [bytes.fromhex(event["hex"]) for event in load(name)["events"] if event["dir"] == way]


# ---------------------------------------------------------------------------------------------- meeting


@pytest.mark.parametrize("key", ["k", "", "127.0.0.1:5555", "ключ"])
def test_keys(host: Host, key: str) -> None:
    with host() as proxy:
        with Raw(proxy, encode_hello(f"server:{key}")) as server:
            waiting(proxy, 1)
            with Raw(proxy, encode_hello(f"client:{key} -timeout=7")) as client:
                assert server.answer() == MAGIC
                assert client.answer() == MAGIC


def test_whole_key_texts_are_handed_over(host: Host) -> None:
    with host() as proxy:
        client, server = paired(proxy, "k", "  -timeout=2.5 -other=x ")
        with client, server:
            client.send(b"up")
            server.send(b"down")
            assert server.take(2) == b"up"
            assert client.take(4) == b"down"


def test_timeouts_of_both_sides(host: Host) -> None:
    with host(timeout_client=0.3, timeout_server=PATIENCE) as proxy:
        with Raw(proxy, encode_hello("server:s")) as server, Raw(proxy, encode_hello("client:c")) as client:
            assert client.answer() == MISMATCH
            assert client.ended()
            waiting(proxy, 1)
            with Raw(proxy, encode_hello("client:s")) as late:
                assert late.answer() == server.answer() == MAGIC
    with host(timeout_client=PATIENCE, timeout_server=0.3) as proxy:
        with Raw(proxy, encode_hello("server:s")) as server:
            assert server.answer() == MISMATCH
            assert server.ended()


def test_the_next_ones_meet_after_a_timeout(host: Host) -> None:
    with host(timeout_client=0.1) as proxy:
        with Raw(proxy, encode_hello("client:k")) as client:
            assert client.answer() == MISMATCH
        client, server = paired_quickly(proxy)
        client.socket.close()
        server.socket.close()


def paired_quickly(proxy: Any) -> tuple[Raw, Raw]:
    server = Raw(proxy, encode_hello("server:k"))
    waiting(proxy, 1)
    client = Raw(proxy, encode_hello("client:k"))
    assert client.answer() == server.answer() == MAGIC
    return client, server


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_waiter_that_goes_is_dropped(host: Host, how: str) -> None:
    with host() as proxy, Raw(proxy, encode_hello("server:k")) as gone:
        waiting(proxy, 1)
        if how == "reset":
            gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half-close":
            gone.socket.shutdown(socket.SHUT_WR)
            assert gone.ended()
        else:
            gone.socket.close()
        waiting(proxy, 0)
        client, server = paired(proxy)
        client.socket.close()
        server.socket.close()


def test_one_that_has_just_gone_is_not_met(host: Host) -> None:
    """Also where its going has not been noticed yet."""
    with host() as proxy:
        for _ in range(20):
            with Raw(proxy, encode_hello("server:k")) as gone:
                waiting(proxy, 1)
                gone.socket.close()
                with Raw(proxy, encode_hello("client:k")) as client, Raw(proxy, encode_hello("server:k")) as server:
                    # The client waits, or the second server does: nobody is brought to the one that has gone.
                    assert client.answer() == server.answer() == MAGIC


def test_many_pairs_at_once(host: Host) -> None:
    with host() as proxy:
        servers = [Raw(proxy, encode_hello(f"server:k{i}")) for i in range(40)]
        waiting(proxy, 40)
        clients = [Raw(proxy, encode_hello(f"client:k{i}")) for i in range(40)]
        for client, server in zip(clients, servers, strict=True):
            assert client.answer() == server.answer() == MAGIC
        for i, client in enumerate(clients):
            client.send(b"%5d" % i)
        for i, server in enumerate(servers):
            assert server.take(5) == b"%5d" % i
        for raw in (*clients, *servers):
            raw.socket.close()
        until(lambda: proxy._connections == 0, "ending all connections")


# ---------------------------------------------------------------------------------------------- bad input

STRANGERS: dict[str, bytes] = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(4096),
    "the tracker's magic": struct.pack("<i", 0x2F271) + b"....",
    "a key of 2 GiB": struct.pack("<iI", MAGIC, 2 << 30),
    "a key of negative length": struct.pack("<ii", MAGIC, -5) + b"client:",
    "a key just too long": struct.pack("<ii", MAGIC, 4097) + b"client:" + b"x" * 4090,
    "a key that is not UTF-8": struct.pack("<ii", MAGIC, 9) + b"client:\xff\xfe",
    "an empty key text": struct.pack("<ii", MAGIC, 0),
    "no side": encode_hello("nobody:k"),
    "no colon": encode_hello("client"),
}


@pytest.mark.parametrize("said", STRANGERS)
def test_strangers(host: Host, said: str) -> None:
    with host() as proxy:
        client, server = paired(proxy)
        with client, server:
            with Raw(proxy, STRANGERS[said]) as raw:
                assert raw.ended()
            until(lambda: proxy._connections == 2, "closing the stranger's connection")
            client.send(b"undisturbed")
            assert server.take(11) == b"undisturbed"


def test_slow_strangers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcflow.proxy.service.HANDSHAKE_SECONDS", 0.2)
    with host() as proxy:
        for said in (b"", encode_hello("client:k")[:3], encode_hello("client:k")[:-1]):
            with Raw(proxy, said) as raw:
                assert raw.ended()


def test_a_flood_of_strangers_does_not_keep_others_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcflow.proxy.service._MAX_CONNECTIONS", 40)
    with host() as proxy:
        client, server = paired(proxy)
        strangers = [Raw(proxy) for _ in range(60)]
        until(lambda: proxy._connections == 12, "as many strangers as are let in")
        client.send(b"undisturbed")
        assert server.take(11) == b"undisturbed"
        for raw in (*strangers, client, server):
            raw.socket.close()
        until(lambda: proxy._connections == 0, "ending all connections")
        client, server = paired(proxy)
        client.socket.close()
        server.socket.close()


# ---------------------------------------------------------------------------------------------- lifetimes


def test_everybody_is_let_go_at_the_end(host: Host) -> None:
    with host() as proxy:
        client, server = paired(proxy)
        waiter = Raw(proxy, encode_hello("client:other"))
        stranger = Raw(proxy, b"\x71")
        waiting(proxy, 1)
    for raw in (client, server, waiter, stranger):
        assert raw.ended()
        raw.socket.close()


def test_cancelled_at_any_point(backend: str, nothing_left: None) -> None:
    """Cancelling the block ends everything, whatever was under way."""

    async def main(steps: int) -> None:
        with anyio.CancelScope() as scope:
            async with Proxy(port=0) as proxy:
                sockets = []
                for text in ("server:a", "client:a", "server:b", "client:c")[:steps]:
                    sock = socket.create_connection((HOST, proxy.port))
                    sock.send(encode_hello(text))
                    sockets.append(sock)
                for _ in range(steps):
                    await anyio.sleep(0.01)
                scope.cancel()
                await anyio.sleep_forever()
        for sock in sockets:
            sock.close()

    for steps in range(5):
        anyio.run(main, steps, backend=backend)


def test_errors_of_the_body_come_out_bare(backend: str, nothing_left: None) -> None:
    async def main() -> None:
        async with Proxy(port=0):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        anyio.run(main, backend=backend)


def test_port_search_and_repr(host: Host) -> None:
    with host() as first:
        assert str(first.url) == f"tcp://127.0.0.1:{first.port}"
        assert "0 connections, 0 waiting, 0 sessions" in repr(first)
        with pytest.raises(OSError, match="is free"):
            with host(port=first.port, port_end=first.port + 1):
                pass


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"port": 70000}, "port"),
    ({"port": 9300}, "port_end"),
    ({"web_port": -1}, "web_port"),
    ({"web_port": "80"}, "web_port"),
    ({"timeout_client": 0}, "timeout_client"),
    ({"timeout_server": float("nan")}, "timeout_server"),
    ({"peer_timeout": 0}, "peer_timeout"),
    ({"host": "unix:/x"}, "TCP"),
    ({"host": "0.0.0.0"}, "--insecure"),
    ({"tracker_addr": "nonsense://"}, "address"),
    ({"tracker_addr": "nonsense://host"}, "known scheme"),
    ({"tracker_addr": "tcp:///path"}, "no host"),
    ({"index_page": "x.html"}, "web_port"),
    ({"web_port": 80, "index_page": "no such file"}, "no such file"),
    ({"web_port": 80, "resource_files": [("a", "no such file")]}, "no such file"),
]


@pytest.mark.parametrize(("options", "word"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_wrong_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        rpcflow.Proxy(**options)
