# SPDX-License-Identifier: Apache-2.0
"""Servers and clients that come and go as they please, over real sockets: every request that is waited for is served,
and no match key is handed out twice."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

import rpcflow

from .support import PENDING, PUT, REQUEST, Raw

SERVERS, CLIENTS, WANTED = 6, 8, 100
KEYS = ("a", "b:1")


class Chaos:
    def __init__(self, tracker: rpcflow.Tracker, seed: int) -> None:
        self.tracker = tracker
        self.seed = seed
        self.numbers = count()
        self.over = threading.Event()
        self.handed_out: list[str] = []

    def server(self, number: int) -> None:
        rng = random.Random(f"{self.seed} server {number}")
        while not self.over.is_set():
            with Raw(self.tracker) as line:
                key = rng.choice(KEYS)
                while self.serve_once(line, key, number, rng):
                    pass

    def serve_once(self, line: Raw, key: str, number: int, rng: random.Random) -> bool:
        """Offer a device until somebody takes it; whether this server goes on."""
        match_key = f"{key}:{next(self.numbers)}"
        line.say(PUT, key, [number, match_key], None)
        if rng.random() < 0.1:
            return False  # it dies without having heard
        assert line.answer() == 0
        while match_key in line.ask(PENDING):
            if rng.random() < 0.05 or self.over.is_set():
                return False  # it dies while it is free
        return rng.random() < 0.9

    def client(self, number: int) -> None:
        rng = random.Random(f"{self.seed} client {number}")
        served = 0
        while served < WANTED:
            with Raw(self.tracker) as line:
                line.say(REQUEST, rng.choice(KEYS), f"client {number}", rng.randrange(4))
                if rng.random() < 0.3:
                    continue  # it goes without having heard
                code, (_, _, match_key) = line.answer()
                assert code == 0
                self.handed_out.append(match_key)
                served += 1

    def run(self) -> None:
        with ThreadPoolExecutor(SERVERS + CLIENTS) as pool:
            servers = [pool.submit(self.server, number) for number in range(SERVERS)]
            clients = [pool.submit(self.client, number) for number in range(CLIENTS)]
            try:
                for client in clients:
                    client.result()
            finally:
                self.over.set()
            for server in servers:
                server.result()


@pytest.mark.parametrize("seed", [1, 2])
def test_chaos(tracker: rpcflow.Tracker, seed: int) -> None:
    chaos = Chaos(tracker, seed)
    chaos.run()
    assert len(chaos.handed_out) == CLIENTS * WANTED
    assert len(set(chaos.handed_out)) == len(chaos.handed_out)
    with Raw(tracker) as line:
        for queue in line.summary()["queue_info"].values():
            assert not (queue["free"] and queue["pending"])
