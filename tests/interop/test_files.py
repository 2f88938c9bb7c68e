"""Upload, download, remove and listdir."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from .peers import Link

pytestmark = pytest.mark.interop
Open = Callable[..., contextlib.AbstractContextManager[Link]]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 4096, 1_000_003])
def test_upload_bytes_and_download(link: Link, size: int) -> None:
    data = bytearray(i * 7 % 256 for i in range(size))
    link.session.upload(data, "data.bin")
    back = link.session.download("data.bin")
    assert bytes(back) == bytes(data)
    if link.client.name != "stock":
        assert isinstance(back, bytearray)


def test_upload_file(link: Link, tmp_path: Path) -> None:
    source = tmp_path / "some file.txt"
    source.write_bytes(b"first\0second\n")
    link.session.upload(str(source))
    assert bytes(link.session.download("some file.txt")) == b"first\0second\n"
    link.session.upload(str(source), "other.txt")
    assert bytes(link.session.download("other.txt")) == b"first\0second\n"


def test_upload_again_replaces(link: Link) -> None:
    link.session.upload(bytearray(b"a longer text"), "name")
    link.session.upload(bytearray(b"short"), "name")
    assert bytes(link.session.download("name")) == b"short"


def test_remove(link: Link) -> None:
    link.session.upload(bytearray(b"x"), "gone.bin")
    link.session.remove("gone.bin")
    with pytest.raises(link.client.RPCError):
        link.session.download("gone.bin")
    link.session.upload(bytearray(b"y"), "gone.bin")
    assert bytes(link.session.download("gone.bin")) == b"y"


def test_remove_what_is_not_there(link: Link) -> None:
    """MetaSchedule's runner tidies up so, and takes an error for a failed measurement."""
    link.session.upload(bytearray(b"x"), "kept.bin")
    for name in ("missing.bin", "kept.bin.so", "kept.bin/below", ""):
        link.session.remove(name)
    assert bytes(link.session.download("kept.bin")) == b"x"


def test_download_missing(link: Link) -> None:
    with pytest.raises(link.client.RPCError, match="never_was"):
        link.session.download("never_was.bin")
    assert link.call("testing.echo", 1) == 1


def test_listdir(link: Link) -> None:
    link.session.upload(bytearray(b"1"), "one.bin")
    link.session.upload(bytearray(b"2"), "two.bin")
    if link.server == "stock":  # the stock Python server does not offer it
        with pytest.raises(AttributeError):
            link.session.listdir(".")
        return
    for folder in (".", "", "./"):
        names = link.session.listdir(folder)
        assert {name for name in names.split(",") if name} >= {"one.bin", "two.bin"}


def test_a_session_has_a_folder_of_its_own(link: Link) -> None:
    assert link.call("interop.cwd") != str(Path.cwd())


def test_files_are_gone_in_the_next_session(open_link: Open) -> None:
    with open_link() as first:
        first.session.upload(bytearray(b"1"), "mine.bin")
        folder = Path(first.call("interop.cwd"))
        assert (folder / "mine.bin").read_bytes() == b"1"
        del first
    with open_link() as second:
        with pytest.raises(second.client.RPCError):
            second.session.download("mine.bin")
        assert not (folder / "mine.bin").exists()


def test_subfolder(link: Link) -> None:
    if link.server == "stock":
        pytest.skip("the stock server does not make folders")
    link.session.upload(bytearray(b"deep"), "a/b/c.bin")
    assert bytes(link.session.download("a/b/c.bin")) == b"deep"
    assert "c.bin" in link.session.listdir("a/b")


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside", "a/../../outside"])
def test_paths_that_leave_the_folder(link: Link, path: str) -> None:
    if link.server == "stock":
        pytest.skip("the stock server lets every path through")
    with pytest.raises(link.client.RPCError):
        link.session.download(path)
    with pytest.raises(link.client.RPCError):
        link.session.upload(bytearray(b"x"), path)
    assert link.call("testing.echo", 1) == 1
