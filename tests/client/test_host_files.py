# SPDX-License-Identifier: Apache-2.0
"""Files kept on the host for a device that has none: the rules of a server's folder, with the same errors."""

import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.client.files import HostFiles
from rpcflow.errors import PermissionDeniedError, RemoteError
from rpcflow.server.folder import SessionFolder

NAMES = st.lists(st.sampled_from(["a", "b", "c.o", ".", "..", ""]), max_size=4).map("/".join) | st.sampled_from(
    ["/", "/a", "//a", "nul\0l", "a/", "...", "..a", "a/..b"]
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "read", "remove", "listdir"]), NAMES, st.binary(max_size=3)), max_size=12
)


def outcome(files: Any, step: tuple[str, str, bytes]) -> Any:
    """What a step gives, or what kind of error; folders may hold back what is wrong in words of their own."""
    what, name, data = step
    try:
        match what:
            case "write":
                return files.write(name, memoryview(data))
            case "read":
                return bytes(files.read(name))
            case "remove":
                return files.remove(name)
            case _:
                return files.listdir(name)
    except PermissionDeniedError:
        return "denied"
    except (RemoteError, OSError):
        return "refused"


@settings(max_examples=300)
@given(STEPS)
def test_the_same_as_a_folder_on_a_server(steps: list[tuple[str, str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder, files = SessionFolder(path), HostFiles()
        for step in steps:
            assert outcome(files, step) == outcome(folder, step), step


def test_errors_say_what_a_server_says() -> None:
    files = HostFiles()
    with pytest.raises(RemoteError, match=r"FileNotFoundError: there is no file 'k\.o'") as caught:
        files.read("k.o")
    assert caught.value.remote_type == "FileNotFoundError"
    assert "there is no file 'k.o'" in caught.value.remote_message
    with pytest.raises(PermissionDeniedError, match="leaves the session's folder") as denied:
        files.write("../k.o", memoryview(b""))
    assert denied.value.path == "../k.o"


def test_what_is_kept_is_a_copy() -> None:
    files, data = HostFiles(), bytearray(b"abc")
    files.write("f", memoryview(data))
    data[0] = 0
    assert files.read("f") == b"abc"
