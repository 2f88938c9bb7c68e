# SPDX-License-Identifier: Apache-2.0
"""A session's process: speaks to the client, runs what it asks for, ends with it."""

import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from rpcflow.errors import ConnectionLostError, PermissionDeniedError, ProtocolError
from rpcflow.processes import adopt_orphans, close_others, die_with_parent, restore_environment
from rpcflow.protocol.handshake import Answer, KeyText, Side, encode_answer
from rpcflow.security.grant import Grant
from rpcflow.session import actions
from rpcflow.session.server import State
from rpcflow.session.wire_errors import error_packet
from rpcflow.transports.sockets import BlockingSocketChannel

from .config import WorkerConfig
from .confine import confine, give_up
from .executor import Executor
from .folder import PREFIX, SessionFolder
from .status import StatusPage

_OVER: Final = (State.CLOSED, State.FORWARDING)


def serve(
    sock: socket.socket, page: StatusPage, ready_fd: int, folder: str, config: WorkerConfig, grant: Grant
) -> None:
    """Serve one session from the answer to its key to its end."""
    from .forward import Forwarding

    page.set_pid(os.getpid())
    sock.setblocking(True)  # the supervisor, who has it too, no longer reads from it
    forwarding: list[Forwarding] = []
    channel = BlockingSocketChannel(sock, config.poll)
    executor = Executor(
        SessionFolder(folder, config.allowed, grant.folder_nbytes),
        lambda name, args: forwarding.append(Forwarding(name, args)),
        grant=grant,
    )
    machine = executor.machine
    page.set_sending(True)
    if config.greets:
        channel.send([encode_answer(Answer.OK, str(KeyText(Side.SERVER, config.key)))])
    try:
        confine(grant)
    except PermissionDeniedError as error:
        channel.send([error_packet(error, structured=False)])
        return
    finally:
        os.write(ready_fd, b"R")
        os.close(ready_fd)
        page.set_sending(False)
    try:
        _serve(channel, executor, page, config.packet_timeout)
        if machine.state is State.FORWARDING:
            try:
                forwarding[0].run(sock, machine.reader.unread(), page.set_sending)
            finally:
                forwarding[0].close()
    except ConnectionLostError:
        pass  # the client has gone, which ends the session as well as its good-bye does
    finally:
        executor.close()


def _serve(channel: BlockingSocketChannel, executor: Executor, page: StatusPage, packet_timeout: float) -> None:
    machine = executor.machine
    reader = machine.reader
    structured = False
    action: actions.Action | None = None
    while True:
        try:
            if action is None:
                action = machine.next_action()
            if type(action) is actions.Call:
                page.begin_call(action.label)
                executor.call(action)
                page.end_call()
            elif action is not None:
                executor.perform(action)
        except ProtocolError as error:
            machine.fault(error)
            action = None
        outgoing = machine.take_outgoing()
        if outgoing:
            if machine.structured and not structured:
                structured = True
                page.set_structured()
            page.set_sending(True)
            channel.send(outgoing)
            page.set_sending(False)
            if executor.opened:
                executor.sent()
        if type(action) is not actions.Call and machine.state in _OVER:
            return
        room = reader.fresh_buffer()
        if room is None and action is not None:
            action = None
            continue
        deadline = None if room is not None else time.monotonic() + packet_timeout
        try:
            count = channel.receive_into(room if room is not None else reader.get_buffer(), deadline)
        except TimeoutError:
            machine.fault(ProtocolError(f"the client stopped in the middle of a packet for {packet_timeout:g} s"))
            channel.send(machine.take_outgoing())
            return
        if count == 0:
            return
        action = machine.whole_call(room, count) if room is not None else None
        if action is None:
            reader.received(count)


def enter(parent: int, folder: str) -> None:
    """Make this process a worker: it ends with its launcher, keeps its descendants, and lives in its folder."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    die_with_parent(parent)
    adopt_orphans()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(folder)
    # Temporary files of user code and compilers go with the session's folder.
    tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(folder, PREFIX + "tmp")
    os.mkdir(tempfile.tempdir)


def redirect(stderr_fd: int) -> None:
    """What user code prints goes to whoever keeps a session's last words."""
    os.dup2(stderr_fd, 1)
    os.dup2(stderr_fd, 2)
    os.close(stderr_fd)


def prepare(config: WorkerConfig) -> None:
    """Run what makes functions known: libraries, imports, the callback."""
    import ctypes
    import importlib

    from rpcflow import registry

    ffi = registry.tvm_ffi()
    for path in config.libraries:
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    for name in config.imports:
        importlib.import_module(name)
    if config.callback is not None:
        import cloudpickle

        cloudpickle.loads(config.callback)()
    if ffi is not None:
        ffi.get_global_func("ffi.SystemLib", allow_missing=True)


def main(argv: Sequence[str]) -> int:
    """A worker that was spawned, not forked: descriptors and folder come as arguments."""
    sock_fd, ready_fd, stderr_fd, page_fd, config_fd, parent, folder, grant = argv
    close_others([int(fd) for fd in argv[:5]])
    enter(int(parent), folder)
    redirect(int(stderr_fd))
    config = read_config(int(config_fd))
    os.close(int(config_fd))
    sys.path[:] = config.sys_path
    restore_environment()
    right = Grant.from_json(grant)
    give_up(right)
    prepare(config)
    page = StatusPage(int(page_fd))
    os.close(int(page_fd))
    serve(socket.socket(fileno=int(sock_fd)), page, int(ready_fd), folder, config, right)
    return 0


def read_config(fd: int) -> WorkerConfig:
    """What the supervisor has written. Spawned workers share the file and its position: that is left alone."""
    data = bytearray()
    while chunk := os.pread(fd, 1 << 20, len(data)):
        data += chunk
    config: WorkerConfig = pickle.loads(data)
    return config


def run_and_end(work: Callable[[], object]) -> NoReturn:
    """Do a worker's work, and end at once: threads and exit handlers that user code has left have no say."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # its last words
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


if __name__ == "__main__":
    run_and_end(lambda: main(sys.argv[1:]))
