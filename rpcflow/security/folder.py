# SPDX-License-Identifier: Apache-2.0
"""The user's configuration folder: keys, certificates, and what is known of other ends.

It is ``$RPCFLOW_HOME``, else ``$XDG_CONFIG_HOME/rpcflow``, else ``~/.config/rpcflow`` (``%APPDATA%\\rpcflow`` on
Windows). Only its owner may enter it, and files with keys are never there with wider rights, not for a moment.
"""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FOLDER_MODE: Final = 0o700
_POSIX: Final = os.name == "posix"


def config_folder() -> Path:
    """Where it is; it need not be there.

    Raises:
        FileNotFoundError: nobody says where this user's files are.
    """
    if home := os.environ.get("RPCFLOW_HOME"):
        return Path(home).absolute()
    if base := os.environ.get("XDG_CONFIG_HOME"):
        return Path(base).absolute() / "rpcflow"
    if sys.platform == "win32" and (data := os.environ.get("APPDATA")):
        return Path(data) / "rpcflow"
    try:
        return Path.home() / ".config" / "rpcflow"
    except RuntimeError:
        raise FileNotFoundError("this user has no home folder: set RPCFLOW_HOME to where keys are to be") from None


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

    The configuration folder and those in it lose the rights that others have. A folder anywhere else that is there
    already stays as it is: whoever named it decides who may enter.

    Raises:
        PermissionError: it is there, is the configuration folder or in it, and others may write to it.
        OSError: it cannot be made.
    """
    path, base = path.absolute(), config_folder()
    ours = [folder for folder in (*reversed(path.parents), path) if folder.is_relative_to(base)]
    for folder in ours or [path]:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    if _POSIX:
        for folder in ours:
            _close(folder)
    return path


def _close(folder: Path) -> None:
    status = folder.stat()
    if not status.st_mode & 0o077:
        return
    shared = status.st_mode & stat.S_ISVTX  # such as /tmp, which is everybody's
    if status.st_uid == os.getuid() and not shared:
        folder.chmod(_FOLDER_MODE)
    elif status.st_mode & 0o022:
        raise PermissionError(f"{folder} is no place for keys: others may write to it")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else who asks for the same lock has it meanwhile; for files that are read, changed and written.

    Args:
        path: the file; the lock is another beside it.

    Raises:
        OSError: it cannot be made.
    """
    make_folder(path.parent)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


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
    if not allowed or not 0 < len(name) <= 64 or name[0] in ".-" or name.endswith(".pem"):
        raise ValueError(
            f"{name!r} cannot be a name: it is 1 to 64 letters, digits and -_.@, begins with no . or -, "
            "and does not end with .pem"
        )
    return name
