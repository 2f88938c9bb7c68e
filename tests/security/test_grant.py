# SPDX-License-Identifier: Apache-2.0
"""What a session may do: patterns, and the way to the worker."""

import json
from fnmatch import fnmatchcase

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.security.grant import EVERYTHING, Grant, matches

NAMES = st.text(st.sampled_from("ab.:*!?[]é"), max_size=6)
PATTERNS = st.lists(NAMES, max_size=4).map(tuple)
LIMITS = st.none() | st.integers(1, 2**63 - 1)


@pytest.mark.parametrize(
    ("patterns", "good", "bad"),
    [
        (("*",), ["", "a", "a.b"], []),
        ((), [], ["", "a"]),
        (("demo.*",), ["demo.a", "demo."], ["demo", "Demo.a", "xdemo.a"]),
        (("*", "!secret.*"), ["a", "secret"], ["secret.a"]),
        (("*", "!secret.*", "secret.b"), ["a", "secret.b"], ["secret.a"]),
        (("!secret.*", "*"), ["secret.a"], []),  # in the order in which they stand
        (("!a",), [], ["a", "b", "!a"]),
        (("cuda:[01]", "cpu:*"), ["cuda:0", "cuda:1", "cpu:7"], ["cuda:2", "cuda:01"]),
    ],
)
def test_patterns(patterns: tuple[str, ...], good: list[str], bad: list[str]) -> None:
    assert all(matches(patterns, name) for name in good)
    assert not any(matches(patterns, name) for name in bad)


@given(PATTERNS, NAMES)
def test_the_last_pattern_that_fits_decides(patterns: tuple[str, ...], name: str) -> None:
    fits = [pattern for pattern in patterns if fnmatchcase(name, pattern.removeprefix("!"))]
    assert matches(patterns, name) == bool(fits and not fits[-1].startswith("!"))


@given(
    st.builds(
        Grant,
        who=st.text(),
        functions=PATTERNS,
        constructors=PATTERNS,
        upload=st.booleans(),
        load=st.booleans(),
        devices=PATTERNS,
        memory_nbytes=LIMITS,
        cpu_seconds=LIMITS,
        processes=LIMITS,
        file_nbytes=LIMITS,
        folder_nbytes=LIMITS,
    )
)
def test_to_the_worker_and_back(grant: Grant) -> None:
    text = grant.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert Grant.from_json(text) == grant


def test_without_a_policy_all_is_granted() -> None:
    assert Grant() == EVERYTHING
    assert matches(EVERYTHING.functions, "anything")
    assert EVERYTHING.upload
    assert EVERYTHING.load
    assert {value for name, value in attrs.asdict(EVERYTHING).items() if name.endswith("nbytes")} == {None}


def test_a_limit_that_the_worker_does_not_know_is_not_passed_over() -> None:
    fields = json.loads(EVERYTHING.to_json())
    with pytest.raises(TypeError, match="bandwidth"):
        Grant.from_json(json.dumps({**fields, "bandwidth": 1}))
