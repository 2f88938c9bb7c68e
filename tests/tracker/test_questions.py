# SPDX-License-Identifier: Apache-2.0
"""What is asked of a tracker, and what its answers mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.errors import ProtocolError
from rpcflow.tracker import questions
from rpcflow.tracker.backoff import FIRST_SECONDS, MOST_SECONDS, STEADY_SECONDS, Backoff
from rpcflow.transports import Url


def server(key: str, host: Any = "127.0.0.1", port: Any = 9091) -> dict[str, Any]:
    return {"key": f"server:{key}", "addr": [host, port]}


def summary(queues: dict[str, tuple[int, int]], *servers: dict[str, Any]) -> dict[str, Any]:
    info = {key: {"free": free, "pending": pending} for key, (free, pending) in queues.items()}
    return {"queue_info": info, "server_info": list(servers)}


EMPTY = (
    "Server List\n"
    "------------------------------\n"
    "server-address           key\n"
    "------------------------------\n"
    "------------------------------\n"
    "\n"
    "Queue Status\n"
    "---------------------------\n"
    "key   total  free  pending\n"
    "---------------------------\n"
    "---------------------------\n"
)


class TestTextSummary:
    """The layout is what the stock client printed for the same summaries."""

    def test_nothing(self) -> None:
        assert questions.text_summary(summary({})) == EMPTY
        assert questions.text_summary(summary({"rpi": (0, 0)})) == EMPTY, "keys that nobody has or wants are not told"

    def test_servers(self) -> None:
        text = questions.text_summary(
            summary(
                {"rpi": (2, 0), "other": (0, 1000000)},
                server("rpi", "a.host.with.quite.a.long.name", 12345),
                server("rpi", "::1"),
                server("", "192.168.111.222", 9092),
            )
        )
        assert text == (
            "Server List\n"
            "------------------------------\n"
            "server-address           key\n"
            "------------------------------\n"
            "192.168.111.222:9092     server:\n"
            "a.host.with.quite.a.long.name:12345    server:rpi\n"
            "::1:9091                 server:rpi\n"
            "------------------------------\n"
            "\n"
            "Queue Status\n"
            "-----------------------------\n"
            "key     total  free  pending\n"
            "-----------------------------\n"
            "other   0      0     1000000\n"
            "rpi     2      2     0      \n"
            "-----------------------------\n"
        )

    def test_keys_with_colons_and_those_of_proxies(self) -> None:
        """Where stock counts nothing."""
        info = summary({"a:b": (1, 0), "k": (1, 0)}, server("a:b"), server("proxy[k,a:b]"), server("proxy[]"))
        text = questions.text_summary(info)
        assert "\na:b   2      1     0      \n" in text
        assert "\nk     1      1     0      \n" in text

    def test_what_anybody_may_have_said(self) -> None:
        """A server may tell the tracker anything of itself; a terminal must not obey it."""
        odd: list[Any] = [5, {}, {"key": None}, {"key": "server:k", "addr": 7}, server("\x1b[2J", "\n", [1])]
        text = questions.text_summary({"queue_info": {"k": 5, "j": {"free": "x"}, "\r": {}}, "server_info": odd})
        assert text.replace("\n", "").isprintable()

    @given(
        st.dictionaries(st.text(), st.tuples(st.integers(0), st.integers(0)), max_size=5),
        st.lists(st.tuples(st.text(), st.text(), st.integers())),
    )
    def test_anything(self, queues: dict[str, tuple[int, int]], servers: list[tuple[str, str, int]]) -> None:
        lines = questions.text_summary(summary(queues, *(server(*told) for told in servers))).split("\n")
        assert lines[0] == "Server List"
        assert lines[5 + len(servers)] == ""
        assert lines[-1] == ""


class TestAnswers:
    def test_a_grant(self) -> None:
        found = questions.read_grant([0, ["box", 9091, "rpi:4:secret"]])
        assert found == questions.Grant(Url("tcp", "box", 9091), "rpi:4:secret")
        assert "secret" not in repr(found)
        assert questions.read_grant([0, ["[::1]", 1, "k:1"]]).url == Url("tcp", "::1", 1)

    def test_the_host_is_a_host(self) -> None:
        for host in ("popen:///bin/sh", "unix:/x", "tls://x"):
            assert questions.read_grant([0, [host, 1, "k:1"]]).url.scheme == "tcp"

    @pytest.mark.parametrize("answer", [0, False, [0], {}, None, [0, 1], [True], "x", [["a"]], [None]])
    def test_nonsense(self, answer: Any) -> None:
        for read in (questions.read_grant, questions.read_summary, questions.read_pending):
            if read is questions.read_pending and answer == []:
                continue
            with pytest.raises(ProtocolError):
                read(answer)
        if answer != 0 or isinstance(answer, bool):
            with pytest.raises(ProtocolError):
                questions.check_done(answer)

    def test_long_nonsense_is_told_short(self) -> None:
        with pytest.raises(ProtocolError) as caught:
            questions.read_grant(["x" * 100_000])
        assert len(str(caught.value)) < 200

    def test_what_is_fine(self) -> None:
        questions.check_done(0)
        assert questions.read_pending([]) == frozenset()
        assert questions.read_pending(["a", "b", "a"]) == {"a", "b"}

    def test_what_is_asked(self) -> None:
        asked = [
            questions.update_info("k", None, 1),
            questions.put("k", 1, "k:2", None),
            questions.request("k", 3),
            questions.SUMMARY,
            questions.PENDING,
        ]
        assert json.dumps(asked) == json.dumps(
            [
                [5, {"key": "server:k", "addr": [None, 1]}],
                [3, "k", [1, "k:2"], None],
                [4, "k", "", 3],
                [6],
                [7],
            ]
        )


class TestBackoff:
    def test_grows_to_its_limit_and_begins_again(self) -> None:
        backoff = Backoff()
        longest = FIRST_SECONDS
        for _ in range(20):
            assert longest / 2 <= backoff.seconds() <= longest
            longest = min(MOST_SECONDS, longest * 2)
            backoff.ended_after(STEADY_SECONDS / 2)
        backoff.ended_after(STEADY_SECONDS)
        assert backoff.seconds() <= FIRST_SECONDS

    def test_back_within_five_seconds(self) -> None:
        assert MOST_SECONDS <= 4
