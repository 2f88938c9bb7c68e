# SPDX-License-Identifier: Apache-2.0
"""The page made from the tables."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rpcflow.session import client, diagram, server

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "states.md"


def test_the_kept_page_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert diagram.main(["--check", str(PAGE)]) == 0, "run make diagrams"
    assert diagram.main([]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [None, "", "something else"])
def test_a_stale_page_is_told(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "states.md"
    if text is not None:
        page.write_text(text)
    assert diagram.main(["--check", str(page)]) == 1
    assert "make diagrams" in capsys.readouterr().err


def test_each_row_is_told_and_drawn() -> None:
    text = diagram.page()
    drawings = [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(drawings) == 2
    for table, states, drawing in zip(
        (client.TABLE, server.TABLE), (client.State, server.State), drawings, strict=True
    ):
        words = [element.text or "" for element in drawing.iter() if element.tag.endswith("text")]
        assert {state.value for state in states} <= set(words)
        for (state, event), after in table.items():
            assert any(event.value in word for word in words)
            rows = (f"| {state.value} | {event.value} | {after.value} |", f"| *any* | {event.value} | {after.value} |")
            assert any(row in text for row in rows)
