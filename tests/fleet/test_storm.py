# SPDX-License-Identifier: Apache-2.0
"""Servers come and go as they please under requesters: every request ends in a working session or a clear error, none
hangs, no board is held twice, and nothing is left behind but what nobody could have removed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from rpcflow import sync
from tests.server.support import descriptors, until

from .household import HOST, KEY, PATIENCE, Household, wait_until
from .storm import Storm

SEED = int(os.environ.get("RPCFLOW_TEST_SEED", "7"))


def storm(folder: Path, boards: int, requesters: int, seconds: float, pause: float) -> None:
    before = descriptors()
    with Household(folder, boards) as household:
        report = Storm(household, requesters, seconds, pause, SEED).run()
        print(report)
        assert report.hangs == report.doubles == 0, report
        assert report.wrong == [], report
        assert report.sessions > 0
        assert report.struck.total() > 0

        household.wait_free(boards)
        with contextlib.ExitStack() as stack, sync.connect_tracker(HOST, household.port) as asking:
            sessions = [stack.enter_context(asking.request(KEY, wait_timeout=PATIENCE)) for _ in range(boards)]
            assert len({session.get_function("board.take")() for session in sessions}) == boards
        household.wait_free(boards)
        # The tracker; and of each server itself, its launcher, and the worker that waits for the next session.
        wait_until(lambda: len(household.processes()) == 1 + 3 * boards, "the ends of what was killed")
        assert household.stop() == [0] * boards
        wait_until(lambda: len(household.processes()) == 1, "the ends of all servers")
        # Only of the servers whose every process was killed at once there was nobody to remove the folder.
        left = os.listdir(household.temporary)
        print(
            f"{len(left)} folders are left of {report.struck['kill all']} servers that were killed with all of theirs"
        )
        assert len(left) <= report.struck["kill all"], household.log()
    assert household.processes() == []
    until(lambda: descriptors() <= before, "closing all descriptors")


def test_a_short_storm(tmp_path: Path) -> None:
    storm(tmp_path, boards=6, requesters=4, seconds=8, pause=0.6)


@pytest.mark.long
@pytest.mark.fleet
def test_a_long_storm(tmp_path: Path) -> None:
    storm(tmp_path, boards=50, requesters=20, seconds=120, pause=1.0)
