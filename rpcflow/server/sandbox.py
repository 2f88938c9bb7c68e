# SPDX-License-Identifier: Apache-2.0
"""The command that puts a launcher, and with it all its sessions, into a sandbox of bubblewrap.

Inside there are the system's programs and libraries, Python with its search path, and what was allowed or granted; all
but allowed folders can only be read. There is no network, no other process, and none of the user's files.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rpcflow.errors import RPCError

from .config import WorkerConfig

NET: Final = "net"
"""The grant of the network; the others are paths."""
_PROBE_SECONDS: Final = 10.0
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_PROCESSORS: Final = "/sys/devices/system"
"""Which processors there are and what caches they share: OpenCL on processors aborts without, OpenMP guesses."""
_ETC: Final = (
    "OpenCL",
    "alternatives",
    "ca-certificates",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "passwd",
    "pki/tls/certs",
    "resolv.conf",
    "ssl/certs",
    "ssl/openssl.cnf",
    "vulkan",
)
"""Of /etc. The rest holds host keys and password hashes, which a server of root's could read."""
_ADVICE: Final = (
    "bubblewrap needs user namespaces: see the settings user.max_user_namespaces, kernel.unprivileged_userns_clone and "
    "kernel.apparmor_restrict_unprivileged_userns (sysctl); in a container its runtime has to allow them"
)


class SandboxError(RPCError):
    """A sandbox cannot be had here."""


def check_grants(grants: Sequence[str]) -> tuple[str, ...]:
    """What ``sandbox_grant`` may be: ``net`` or absolute paths.

    Raises:
        ValueError: it is something else.
    """
    for grant in grants:
        if grant != NET and not os.path.isabs(grant):
            raise ValueError(f"sandbox_grant={grant!r} is neither {NET!r} nor an absolute path")
    return tuple(grants)


def prefix(config: WorkerConfig) -> list[str]:
    """What goes before a launcher's command, tried out.

    Raises:
        SandboxError: there is no bubblewrap, a path is not there or would show what is to be hidden, or the system
            does not let us make a sandbox.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(
            "a sandbox needs bubblewrap, and there is no program bwrap here: install it (on Debian: apt-get install "
            "bubblewrap), or leave the sandbox out"
        )
    command = [bwrap, *_isolation(config), *_system(), *_readable(config), *_granted(config), *_last(config), "--"]
    try:
        tried = subprocess.run(
            [*command, shutil.which("true") or "/usr/bin/true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"bubblewrap cannot be run: {error}") from error
    if tried.returncode:
        said = tried.stderr.strip() or f"it ended with status {tried.returncode}"
        raise SandboxError(f"a sandbox cannot be made here: {said}. {_ADVICE}")
    return command


def reporting(command: list[str], fd: int) -> list[str]:
    """The same command, which says at ``fd`` what the first process inside is outside."""
    return [command[0], "--info-fd", str(fd), *command[1:]]


def _isolation(config: WorkerConfig) -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    if NET not in config.sandbox_grant:
        yield "--unshare-net"
    yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL")
    yield from ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp")
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        yield from ("--setenv", name, "/tmp")
    for name in ("RPCFLOW_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS"):
        yield from ("--unsetenv", name)


def _system() -> Iterator[str]:
    if os.path.isdir(_PROCESSORS):
        yield from ("--ro-bind", _PROCESSORS, _PROCESSORS)
    for path in _SYSTEM:
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.exists(path):
            yield from ("--ro-bind", path, path)
    for name in _ETC:
        path = f"/etc/{name}"
        if os.path.exists(path):
            yield from ("--ro-bind", os.path.realpath(path), path)


def _readable(config: WorkerConfig) -> Iterator[str]:
    """Python, what it imports, the libraries to be loaded. A package that is installed to be edited need not be on the
    search path: ours is named."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [sys.prefix, sys.base_prefix, *config.sys_path, ours, *config.libraries]
    for path in _outermost(paths):
        _check_shown(path, "Python's search path or a library is there: start the server in another folder")
        yield from ("--ro-bind", path, path)


def _granted(config: WorkerConfig) -> Iterator[str]:
    for path in config.allowed:
        _check_shown(path, "it is an allowed folder")
        yield from ("--bind", path, path)
    for grant in config.sandbox_grant:
        if grant == NET:
            continue
        path = os.path.normpath(grant)
        if not os.path.exists(path):
            raise SandboxError(f"sandbox_grant: there is no {grant!r}")
        _check_shown(path, "it was granted")
        yield from ("--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path)


def _last(config: WorkerConfig) -> Iterator[str]:
    """Whatever was let in: keys are not. The root folder is made of what was put there, and stays as it is."""
    keys = _config_folder()
    if keys is not None and os.path.isdir(keys):
        yield from ("--tmpfs", keys, "--remount-ro", keys)
    for path in config.hidden:
        if os.path.isfile(path):
            yield from ("--ro-bind", "/dev/null", path)
    yield from ("--remount-ro", "/")


def _outermost(paths: Sequence[str]) -> list[str]:
    """Those that are there, without the ones that lie in others or in the system, outer ones first."""
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths}, key=len):
        if os.path.exists(path) and not any(_is_in(path, outer) for outer in (*_SYSTEM, *found)):
            found.append(path)
    return found


def _check_shown(path: str, why: str) -> None:
    """
    Raises:
        SandboxError: the path has the user's home folder in it, or takes the place of what is the sandbox's own.
    """
    real = os.path.realpath(path)
    home = os.path.realpath(os.path.expanduser("~"))
    if _is_in(home, real):
        raise SandboxError(f"the sandbox would show the home folder, because {path!r} holds it ({why})")
    for own in ("/tmp", "/proc", "/dev"):
        if _is_in(own, os.path.normpath(path)):
            raise SandboxError(f"the sandbox has a {own} of its own, which {path!r} would cover ({why})")


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _config_folder() -> str | None:
    """Where keys are; None where this user has no place for them."""
    from rpcflow.security.folder import config_folder

    try:
        return os.path.realpath(Path(config_folder()))
    except FileNotFoundError:
        return None
