# SPDX-License-Identifier: Apache-2.0
"""Servers killed and started again at random, under requesters who may meet errors, but only clear ones."""

from __future__ import annotations

import asyncio
import collections
import random
import threading
import time

import attrs
import trio

import rpcflow
from rpcflow import sync

from .household import HOST, KEY, PATIENCE, Household

WAYS = ("terminate", "kill", "kill all")
SESSION_SECONDS = 30.0


@attrs.define
class Report:
    """What came of it. ``wrong``: what no requester may meet; ``errors``: clear ones, by kind and words."""

    seed: int
    sessions: int = 0
    struck: collections.Counter[str] = attrs.field(factory=collections.Counter)
    errors: collections.Counter[str] = attrs.field(factory=collections.Counter)
    wrong: list[str] = attrs.field(factory=list)
    hangs: int = 0
    doubles: int = 0
    longest: float = 0.0

    @property
    def requests(self) -> int:
        return self.sessions + self.errors.total() + len(self.wrong) + self.hangs + self.doubles

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.requests} requests, {self.sessions} sessions, {dict(self.errors)} errors, "
            f"{self.hangs} hangs, {self.doubles} doubles, {dict(self.struck)} servers ended, "
            f"longest {self.longest:.2f} s, wrong: {self.wrong[:5]}"
        )


class Storm:
    """Run it once.

    Args:
        household: whose servers are struck.
        requesters: how many; each has a thread, and an API: blocking, trio, asyncio in turn.
        seconds: for how long.
        pause: seconds between strikes, at most.
        seed: of who is struck when and how, and of how long sessions are held.
    """

    def __init__(self, household: Household, requesters: int, seconds: float, pause: float, seed: int) -> None:
        self._household = household
        self._requesters = requesters
        self._seconds = seconds
        self._pause = pause
        self.report = Report(seed)
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self) -> Report:
        """The whole of it. At the end all servers are started, perhaps not yet registered."""
        threads = [threading.Thread(target=self._request_on_and_on, args=(n,)) for n in range(self._requesters)]
        for thread in threads:
            thread.daemon = True  # one that hangs is to be reported, not to be waited for
            thread.start()
        try:
            self._strike_on_and_on()
        finally:
            self._over.set()
        deadline = time.monotonic() + 2 * PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            self.report.hangs += thread.is_alive()
        return self.report

    def _strike_on_and_on(self) -> None:
        rng = random.Random(self.report.seed)
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            self._over.wait(rng.random() * self._pause)
            board, how = rng.randrange(len(self._household.servers)), rng.choice(WAYS)
            status = self._household.strike(board, how)
            self.report.struck[how] += 1
            if how == "terminate" and status not in (0, -15):  # -15: struck before it could listen to signals
                self.report.wrong.append(f"a server that was told to end did so with status {status}")
            self._household.restart(board)

    # ---- requesters

    def _request_on_and_on(self, number: int) -> None:
        rng = random.Random(f"{self.report.seed} requester {number}")
        request = (self._blocking, self._trio, self._asyncio)[number % 3]
        while not self._over.is_set():
            began = time.monotonic()
            try:
                request(rng.random() * 0.1)
            except rpcflow.RPCError as error:
                self._note(error)
            except (trio.TooSlowError, TimeoutError):
                with self._lock:
                    self.report.hangs += 1
            except BaseException as error:  # anything else is a fault of ours, to be reported
                with self._lock:
                    self.report.wrong.append(repr(error))
            else:
                with self._lock:
                    self.report.sessions += 1
            self.report.longest = max(self.report.longest, time.monotonic() - began)

    def _note(self, error: rpcflow.RPCError) -> None:
        with self._lock:
            if "HELD TWICE" in str(error):
                self.report.doubles += 1
            elif isinstance(error, rpcflow.RPCSessionTimeoutError | rpcflow.WaitTimeoutError) or not str(error):
                self.report.hangs += 1  # all this was to be quick
            elif isinstance(error, rpcflow.ConnectionLostError | rpcflow.SessionCrashedError):
                self.report.errors[type(error).__name__] += 1
            else:
                self.report.wrong.append(repr(error))

    def _blocking(self, held: float) -> None:
        with sync.connect_tracker(HOST, self._household.port) as asking:
            with asking.request(KEY, session_timeout=SESSION_SECONDS, wait_timeout=PATIENCE) as session:
                session.get_function("board.take")()
                self._over.wait(held)
                session.get_function("board.give")()

    def _trio(self, held: float) -> None:
        async def main() -> None:
            with trio.fail_after(2 * PATIENCE):
                async with rpcflow.connect_tracker(HOST, self._household.port) as asking:
                    async with asking.request(KEY, 1, SESSION_SECONDS, wait_timeout=PATIENCE) as session:
                        await (await session.get_function("board.take"))()
                        await trio.sleep(held)
                        await (await session.get_function("board.give"))()

        trio.run(main)

    def _asyncio(self, held: float) -> None:
        async def main() -> None:
            async with asyncio.timeout(2 * PATIENCE):
                async with rpcflow.connect_tracker(HOST, self._household.port) as asking:
                    async with asking.request(KEY, 2, SESSION_SECONDS, wait_timeout=PATIENCE) as session:
                        await (await session.get_function("board.take"))()
                        await asyncio.sleep(held)
                        await (await session.get_function("board.give"))()

        asyncio.run(main())
