# SPDX-License-Identifier: Apache-2.0
"""The user's configuration folder: keys, certificates, and what is known of other ends.

It is ``$RPCFLOW_HOME``, else ``$XDG_CONFIG_HOME/rpcflow``, else ``~/.config/rpcflow`` (``%APPDATA%\\rpcflow`` on
Windows). Only its owner may enter it, and files with keys are never there with wider rights, not for a moment.
"""

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

_FOLDER_MODE: Final = 0o700
_SECRET_MODE: Final = 0o600
_POSIX: Final = os.name == "posix"


def config_folder() -> Path:
    """Where it is; it need not be there."""
    if home := os.environ.get("RPCFLOW_HOME"):
        return Path(home)
    if base := os.environ.get("XDG_CONFIG_HOME"):
        return Path(base) / "rpcflow"
    if sys.platform == "win32" and (data := os.environ.get("APPDATA")):
        return Path(data) / "rpcflow"
    return Path.home() / ".config" / "rpcflow"


def authority_file(name_or_path: str | os.PathLike[str]) -> str:
    """The file with the certificates of authorities: by its path, or by the name of an authority of ours.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = os.path.abspath(name_or_path)
    if os.path.isfile(path):
        return path
    text = os.fspath(name_or_path)
    if os.sep not in text and (known := config_folder() / "authorities" / f"{text}.crt").is_file():
        return str(known)
    raise FileNotFoundError(
        f"there is no file {text!r} with certificates of authorities, and no authority of that name"
    )


def make_folder(path: Path) -> Path:
    """Make a folder that is ours alone, and those above it that are missing.

    Raises:
        PermissionError: it is there, and others may write to it.
        OSError: it cannot be made.
    """
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    if _POSIX:
        status = path.stat()
        if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(_FOLDER_MODE)
        elif status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise PermissionError(f"{path} is no place for keys: others may write to it")
    return path


def write_file(path: Path, data: bytes, secret: bool = False, replace: bool = True) -> None:
    """Put a file there, whole or not at all.

    Args:
        secret: nobody but its owner may read it.
        replace: whether it may take the place of another.

    Raises:
        FileExistsError: there is one, which is not to be replaced.
        OSError: it cannot be written.
    """
    make_folder(path.parent)
    fd, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # made with 0600, whatever the umask
    try:
        with os.fdopen(fd, "wb") as file:
            if _POSIX and not secret:
                os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # which fails where there is one, whoever made it a moment ago
            os.unlink(temporary)
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass  # it has its name already
        raise


def read_secret(path: Path) -> bytes:
    """A file with a key in it.

    Raises:
        PermissionError: others may read it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if _POSIX and os.fstat(file.fileno()).st_mode & 0o077:
            raise PermissionError(f"{path} holds a key and can be read by others: chmod 600 {path}")
        return file.read()


def check_name(name: str) -> str:
    """A name for an identity, an authority or a client, which becomes a file's.

    Raises:
        ValueError: it cannot be one.
    """
    allowed = isinstance(name, str) and all(char.isalnum() or char in "-_.@" for char in name) and name.isascii()
    if not allowed or not 0 < len(name) <= 64 or name[0] in ".-":
        raise ValueError(
            f"{name!r} cannot be a name: it is 1 to 64 letters, digits and -_.@, and begins with no . or -"
        )
    return name
