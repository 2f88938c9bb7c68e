# SPDX-License-Identifier: Apache-2.0
"""The blocking API's server: the same server, in a process of its own."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from rpcflow.errors import RPCError
from rpcflow.protocol.handshake import check_key
from rpcflow.server.processes import python_environment
from rpcflow.transports.tcp import is_loopback

_TERMINATE_SECONDS: Final = 5.0
_log: Final = logging.getLogger("rpcflow.server")


class Server:
    """An RPC server in a process of its own; ends with :meth:`terminate`, its ``with`` block, or when it is collected.

    The parameters are those of :class:`rpcflow.Server`, with stock's default ``host`` of all interfaces: the line is
    not encrypted and whoever reaches it can run code, so keep it to networks you trust.
    """

    def __init__(
        self,
        host: str = "0.0.0.0",
        port: int = 9091,
        port_end: int = 9199,
        is_proxy: bool = False,
        tracker_addr: Any = None,
        key: str = "",
        load_library: str | None = None,
        custom_addr: str | None = None,
        silent: bool = False,
        no_fork: bool = False,
        server_init_callback: Callable[[], Any] | None = None,
        reuse_addr: bool = True,
        timeout: float | None = None,
        *,
        max_sessions: int = 1,
        imports: Sequence[str] = (),
        allow_path: Sequence[str] = (),
        peer_timeout: float = 30.0,
        poll: bool | None = None,
    ) -> None:
        if is_proxy or tracker_addr is not None or custom_addr is not None:
            raise NotImplementedError("trackers and proxies are not part of this version")
        check_key(key)
        for name, value in (("imports", imports), ("allow_path", allow_path)):
            if isinstance(value, str):
                raise TypeError(f"{name} is a list of texts, not one text")
        if not host.startswith("unix:") and not is_loopback(host):
            _log.warning(
                "the server on %s can be reached from other machines, unencrypted: whoever reaches it can run code",
                host,
            )
        callback = None
        if server_init_callback is not None:
            import cloudpickle

            callback = cloudpickle.dumps(server_init_callback)
        options = {
            "host": host,
            "port": port,
            "port_end": port_end,
            "key": key,
            "load_library": load_library,
            "silent": silent,
            "no_fork": no_fork,
            "callback": callback,
            "reuse_addr": reuse_addr,
            "timeout": timeout,
            "max_sessions": max_sessions,
            "imports": tuple(imports),
            "allow_path": tuple(allow_path),
            "insecure": True,
            "peer_timeout": peer_timeout,
            "poll": poll,
            "sys_path": [path or os.getcwd() for path in sys.path],
        }
        process, answer = _start(options)
        self._finalizer = weakref.finalize(self, _end, process)
        if answer is None or "error" in answer:
            self.terminate()
            raise _error(answer)
        self.host = host
        self.port: int = answer["port"]
        self._pid = process.pid

    def terminate(self) -> None:
        """End it and all its sessions; done when this returns."""
        self._finalizer()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __repr__(self) -> str:
        return f"<rpcflow.sync.Server {self.host}:{self.port}{'' if self._finalizer.alive else ', terminated'}>"


def _start(options: dict[str, Any]) -> tuple[subprocess.Popen[bytes], dict[str, Any] | None]:
    read, write = os.pipe()
    with tempfile.TemporaryFile() as file:
        pickle.dump(options, file)
        file.flush()
        file.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "rpcflow.server.process", str(file.fileno()), str(write)],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=(file.fileno(), write),
                start_new_session=True,
                env=python_environment(options["sys_path"]),
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            line = pipe.readline()
    except BaseException:  # Ctrl-C while its imports run
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process, json.loads(line) if line else None


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error(answer: dict[str, Any] | None) -> Exception:
    if answer is None:
        return RPCError("the server's process ended without a word")
    kinds: dict[str, type[Exception]] = {"OSError": OSError, "ValueError": ValueError}
    return kinds.get(answer["kind"], RPCError)(answer["error"])
