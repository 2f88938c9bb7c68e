# SPDX-License-Identifier: Apache-2.0
"""Uploads in all forms, downloads of all sizes, and the session's folder."""

import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

import rpcflow

from .conftest import Connect, call

pytestmark = pytest.mark.anyio

SIZES = [0, 1, 100, 65_535, 65_536, 70_000, 3_000_000]


def contents(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["path", "str", "bytes", "bytearray", "memoryview", "items", "file", "BytesIO"])
async def test_up_and_down_again(session: Any, tmp_path: Path, form: str, size: int) -> None:
    data = contents(size)
    path = tmp_path / "local.bin"
    path.write_bytes(data)
    if form in ("path", "str"):
        await session.upload(path if form == "path" else str(path))
        name = "local.bin"
    else:
        name = "remote.bin"
        given: Any = data
        if form == "bytearray":
            given = bytearray(data)
        elif form == "memoryview":
            given = memoryview(data)
        elif form == "items":
            given = memoryview(bytearray(data[: size // 4 * 4])).cast("I") if size >= 4 else memoryview(data)
            data = bytes(given.cast("B"))
        elif form == "BytesIO":
            given = io.BytesIO(data)
        elif form == "file":
            given = open(path, "rb")  # noqa: SIM115
        await session.upload(given, name)
        if form == "file":
            given.close()
        if form == "bytearray":
            given += b"x"  # nobody holds on to it
    back = await session.download(name)
    assert type(back) is bytearray
    assert back == data


async def test_a_target_for_a_path(session: Any, tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"lib")
    await session.upload(str(tmp_path / "a.so"), "b.so")
    await session.upload(tmp_path / "a.so", target="deep/er/c.so")
    assert await session.download("deep/er/c.so") == await session.download("b.so") == b"lib"
    assert set((await session.listdir(".")).split(",")) >= {"b.so", "deep"}
    assert "a.so" not in (await session.listdir(".")).split(",")
    assert await session.listdir("deep/er") == "c.so"


@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_file_from_where_it_stands(session: Any, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents(size))
    for offset in (0, 1, 7, size - 1, size):
        with open(path, "rb") as file:
            file.seek(offset)
            await session.upload(file, "f")
        assert await session.download("f") == contents(size)[offset:]
        with open(path, "rb", buffering=0) as raw:
            raw.seek(offset)
            await session.upload(raw, "f")
        assert await session.download("f") == contents(size)[offset:]
        stream = io.BytesIO(contents(size))
        stream.seek(offset)
        await session.upload(stream, "f")
        assert await session.download("f") == contents(size)[offset:]


async def test_files_that_are_more_than_they_seem(session: Any, tmp_path: Path) -> None:
    """What a file object reads counts, not what lies on disk below it."""
    path = tmp_path / "f.gz"
    with gzip.open(path, "wb") as out:
        out.write(contents(300_000))
    with gzip.open(path, "rb") as packed:
        await session.upload(packed, "unpacked")
    assert await session.download("unpacked") == contents(300_000)
    with tempfile.NamedTemporaryFile() as named, tempfile.SpooledTemporaryFile() as spooled:
        for file in (named, spooled):
            file.write(contents(5000))
            file.seek(10)
            await session.upload(file, "temporary")
            assert await session.download("temporary") == contents(5000)[10:]
    read, write = os.pipe()
    os.write(write, b"through a pipe")
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        await session.upload(pipe, "piped")
    assert await session.download("piped") == b"through a pipe"


async def test_big_files_are_not_read_into_memory(session: Any, tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "big"
    with open(path, "wb") as file:
        file.truncate(48 << 20)
    await session.upload(b"", "warm")
    tracemalloc.start()
    try:
        await session.upload(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert await call(session, "show", "ok") == "ok"


async def test_overwriting(session: Any) -> None:
    for data in (contents(100_000), b"short", b"", contents(70_000)):
        await session.upload(data, "f")
        assert await session.download("f") == data


async def test_removing(session: Any) -> None:
    await session.upload(b"x", "f")
    await session.remove("f")
    assert "f" not in (await session.listdir(".")).split(",")
    with pytest.raises(rpcflow.RemoteError, match="f"):
        await session.download("f")


async def test_removing_what_is_not_there(session: Any) -> None:
    """As with a stock server: MetaSchedule's runner does it after each measurement."""
    await session.upload(b"x", "kept")
    for name in ("nothing", "folder/nothing", "kept/nothing", "kept.so", ""):
        assert await session.remove(name) is None
    assert await session.listdir(".") == "kept"


async def test_an_empty_folder(connect: Connect) -> None:
    async with connect() as session:
        assert await session.listdir(".") == ""


async def test_a_session_starts_with_an_empty_folder_of_its_own(connect: Connect) -> None:
    async with connect() as one, connect() as other:
        await one.upload(b"mine", "f")
        assert await other.listdir(".") == ""
        assert await call(one, "cwd") != await call(other, "cwd")


async def test_it_is_gone_afterwards(connect: Connect) -> None:
    from .conftest import eventually

    async with connect() as session:
        await session.upload(b"x", "deep/f")
        folder = await call(session, "cwd")
        assert os.path.isdir(folder)

    async def there() -> bool:
        return os.path.exists(folder)

    await eventually(there, False)


@pytest.mark.parametrize("name", ["/etc/passwd", "../f", "deep/../../f", "", "nul\0l"])
async def test_no_way_out(session: Any, name: str) -> None:
    uses = [lambda: session.download(name), lambda: session.load_module(name)]
    uses += [lambda: session.remove(name)] if name else []  # that is no file, so there is nothing to do
    uses += [lambda: session.upload(b"x", name), lambda: session.upload(bytes(100_000), name)]
    for use in uses:
        with pytest.raises(rpcflow.PermissionDeniedError):
            await use()
    assert await call(session, "echo", 1) == 1


class TestRefused:
    """Before anything is sent."""

    @pytest.mark.parametrize("data", [7, None, ["x"], io.StringIO("text")])
    async def test_what_is_no_file(self, session: Any, data: Any) -> None:
        with pytest.raises(TypeError):
            await session.upload(data, "f")

    async def test_text_files(self, session: Any, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("text")
        with open(tmp_path / "f") as file:
            with pytest.raises(TypeError, match="binary"):
                await session.upload(file, "f")

    async def test_data_without_a_name(self, session: Any) -> None:
        for data in (b"x", io.BytesIO(b"x")):
            with pytest.raises(ValueError, match="target"):
                await session.upload(data)

    async def test_a_path_that_is_not_there(self, session: Any, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            await session.upload(tmp_path / "missing")
        with pytest.raises(IsADirectoryError):
            await session.upload(tmp_path)

    async def test_names_that_are_no_text(self, session: Any) -> None:
        for use in (session.download, session.remove, session.listdir):
            with pytest.raises(TypeError):
                await use(7)
