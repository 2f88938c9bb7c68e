# SPDX-License-Identifier: Apache-2.0
"""What strangers bring into a log: nothing that is not a line of ours, and not too many of those."""

from __future__ import annotations

import ast
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.transports.logs import LimitedLog, printable

TEXTS = st.text(st.characters(exclude_categories=()), max_size=300)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("as it is: grün, 箱, \\x", "as it is: grün, 箱, \\x"),
        ("a\nERROR all is well\r", "a\\nERROR all is well\\r"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b1m\x00\x7f\x85", "\\x9b1m\\x00\\x7f\\x85"),
        ("a\u202egnp.exe\u2066", "a\\u202egnp.exe\\u2066"),
        ("\u2028\u2029\u200b\ufeff", "\\u2028\\u2029\\u200b\\ufeff"),
        ("\ud800x\udfff", "\\ud800x\\udfff"),
        ("\U000e0041", "\\U000e0041"),
        ("", ""),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_texts_are_cut() -> None:
    assert printable("a" * 200) == "a" * 200
    assert printable("a" * 201) == "a" * 197 + "..."
    assert printable("a" * 10_000_000, 10) == "aaaaaaa..."
    assert printable("abcd\n\n\n", 10) == "abcd\\n\\n\\n"
    assert printable("abcd\n\n\n", 9) == "abcd\\n..."
    assert printable("abcd\n\n\n", 8) == "abcd...", "an escape is whole or not there"
    assert printable("\n\n", 3) == "..."
    assert printable("\n\n", 0) == ""


@given(TEXTS, st.integers(0, 250))
def test_whatever_comes_it_prints_on_one_line(text: str, most: int) -> None:
    shown = printable(text, most)
    assert len(shown) <= most
    assert shown.isprintable()
    shown.encode()  # halves of pairs cannot be
    if most >= 3 and not shown.endswith("...") and "\\" not in text and '"' not in text:
        assert ast.literal_eval(f'"{shown}"') == text, "nothing is lost"


# ---- limits


class Clock:
    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, caplog: pytest.LogCaptureFixture) -> LimitedLog:
    caplog.set_level(logging.INFO, "rpcflow.test")
    return LimitedLog(logging.getLogger("rpcflow.test"), 2, 10.0, clock)


def test_so_many_lines_of_a_cause(log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5):
        log.info("no key", "%s did not say its key", f"10.0.0.{number}:1")
    log.warning("full", "no room for %s", "10.0.0.9:1")
    assert caplog.messages == [
        "10.0.0.0:1 did not say its key",
        "10.0.0.1:1 did not say its key",
        "no room for 10.0.0.9:1",
    ]
    caplog.clear()
    clock.now += 10.0
    log.info("no key", "%s did not say its key", "10.0.0.7:1")
    assert caplog.messages == ["... and 3 more like that: no key", "10.0.0.7:1 did not say its key"]
    caplog.clear()
    log.flush()
    assert not caplog.messages


def test_flush_says_the_rest_once(log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(125):
        log.warning("full", "no room")
    caplog.clear()
    log.flush()
    log.flush()
    assert caplog.messages == ["... and 123 more like that: full"]
    assert caplog.records[0].levelno == logging.WARNING
    clock.now += 9.9
    log.warning("full", "no room")
    assert len(caplog.messages) == 1, "the time goes on as before"


def test_what_is_not_logged_is_not_counted(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rpcflow.test")
    for _ in range(9):
        log.info("no key", "never seen")
    log.flush()
    assert not caplog.messages


def test_arguments_are_made_fit(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    log.info("one", "%s: %s, %d of %.1f", "a\nb", ValueError("\x1b[1m" + "x" * 1000), 3, 2.5)
    (line,) = caplog.messages
    assert line.startswith("a\\nb: \\x1b[1mxxx")
    assert line.endswith("xxx..., 3 of 2.5")
    assert len(line) < 250
    assert caplog.records[0].funcName == "test_arguments_are_made_fit"


def test_traces(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    def fail(text: str) -> None:
        raise RuntimeError(text)

    for _ in range(3):
        try:
            fail("said\n2026-01-01 INFO all is well\x1b[2J" + "\n" * 500)
        except RuntimeError:
            log.exception("broken", "serving %s failed", "10.0.0.1\n")
    first, second = caplog.messages
    assert first == second
    head, *rest = first.split("\n")
    assert head == "serving 10.0.0.1\\n failed"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert len(rest) <= 60
    record = caplog.records[0]
    assert (record.levelno, record.funcName) == (logging.ERROR, "test_traces")
    log.flush()
    assert caplog.messages[-1] == "... and 1 more like that: broken"


def test_trace_of_a_usual_error(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("what it was")
    except KeyError:
        log.exception("broken", "failed")
    assert "    KeyError: 'what it was'" in caplog.text
    assert "test_trace_of_a_usual_error" in caplog.text
