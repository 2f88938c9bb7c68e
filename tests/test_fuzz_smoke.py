# SPDX-License-Identifier: Apache-2.0
"""Each fuzz target on its corpus, and for a moment beyond it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.__main__ import minutes_each, report
from fuzz.by_hypothesis import explore
from fuzz.targets import TARGETS, Target, corpus_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    seeds = list(corpus_of(name))
    assert len(seeds) > 3
    for data in seeds:
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_beyond_the_corpus(name: str) -> None:
    assert explore(TARGETS[name], seed=20_240_601, seconds=60, examples=150) is None


@pytest.mark.parametrize("name", TARGETS)
def test_each_states_its_invariant(name: str) -> None:
    words = TARGETS[name].run.__doc__ or ""
    assert len(words) > 40 or words.startswith("As "), "say what must hold and which refusals are proper"


def test_a_finding_is_found_and_kept(tmp_path: Path) -> None:
    def run(data: bytes) -> None:
        assert b"\xff\xff" not in data

    found = explore(Target("x", run, lambda: [b"abc"], 0), seed=1, seconds=60, examples=5000)
    assert found is not None
    data, error = found
    assert b"\xff\xff" in data
    assert isinstance(error, AssertionError)
    path = report("x", data, tmp_path)
    assert path.read_bytes() == data
    assert path.parent == tmp_path


def test_time_is_shared() -> None:
    assert minutes_each(5, 10) == 0.5
    assert minutes_each(0, 10) == 0


@pytest.mark.parametrize("driver", ["hypothesis", "auto"])
def test_the_command(driver: str) -> None:
    command = [sys.executable, "-m", "fuzz", "--minutes", "0.02", "--target", "key-text", "--seed", "7"]
    ran = subprocess.run(
        [*command, "--driver", driver], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "seed 7" in ran.stdout
    assert "key-text" in ran.stdout
