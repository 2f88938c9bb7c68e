# SPDX-License-Identifier: Apache-2.0
"""A fleet under trouble: how soon idle servers are back at a tracker that was killed, and requests while servers are
killed and started at random. The tests of `tests/fleet` are the same with fewer servers."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Settings
from benchmarks.result import Row, Series, Target

SEED = 7
AWAY_SECONDS = 20.0
"""After which servers look for their tracker as seldom as they ever do."""


def rows(settings: Settings) -> Iterator[Row]:
    from tests.fleet.household import Household
    from tests.fleet.storm import Storm

    boards, requesters = settings.pick(50, 6), settings.pick(20, 4)
    with tempfile.TemporaryDirectory() as folder, Household(Path(folder), boards) as household:
        for name, away in (("at once", 0.0), (f"after {AWAY_SECONDS:g} s", AWAY_SECONDS)):
            samples = []
            for _ in range(settings.pick(3, 1)):
                household.kill_tracker()
                time.sleep(away)
                household.start_tracker()
                samples.append(household.wait_free(boards))
            title = f"tracker killed, started again {name}: its READY to {boards} servers back"
            yield Row("fleet", title, "s", Series(samples), target=Target("<=", 5, "value"))

        report = Storm(household, requesters, settings.pick(120, 8), 1.0, SEED).run()
        print(f"benchmarks: {report}", file=sys.stderr)
        storm = f"{boards} servers ended {report.struck.total()} times under {requesters} requesters"
        none = Target("<=", 0, "value")
        figures = {
            "requests": (report.requests, None),
            "working sessions": (report.sessions, None),
            "clear errors": (report.errors.total(), None),
            "unclear errors": (len(report.wrong), none),
            "requests that hang": (report.hangs, none),
            "boards held twice": (report.doubles, none),
        }
        for name, (figure, target) in figures.items():
            yield Row("fleet", f"{storm}: {name}", "", Series((float(figure),)), target=target)
