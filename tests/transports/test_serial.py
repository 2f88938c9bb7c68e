# SPDX-License-Identifier: Apache-2.0
"""Sessions over ``serial://``: each API, good lines and bad ones, and all that can go wrong with a port."""

import errno
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np
import pytest

import rpcflow
from rpcflow import sync
from rpcflow.errors import ConnectionLostError, RPCSessionTimeoutError, WaitTimeoutError
from rpcflow.protocol.link import State
from rpcflow.transports import Url, find_transport
from rpcflow.transports.link_channel import BlockingLinkChannel
from rpcflow.transports.serial import Settings
from tests.client.lifted import Lifted
from tests.line import Faults, Line, Terminal

from .device import SIZES, Device

pytestmark = pytest.mark.anyio
BAD = Faults(change=0.001, lose=0.0002, add=0.0002, double=0.0002, lose_frames=0.01, double_frames=0.005, delay=0.002)


@pytest.fixture(params=["trio", "asyncio", "sync"])
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(api: str) -> str:
    return "trio" if api == "sync" else api


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as made:
        yield made


@pytest.fixture
def connect(api: str) -> Callable[..., Any]:
    """Opens a session by this test's API."""

    @asynccontextmanager
    async def opened(url: str, **options: Any) -> AsyncIterator[Any]:
        if api == "sync":
            with sync.connect(url, **options) as blocking:
                yield Lifted(blocking)
        else:
            async with rpcflow.connect(url, **options) as session:
                yield session

    return opened


class Board:
    """A device behind a line: a terminal for the host, a line, a device."""

    def __init__(self, terminal: Terminal, baud: int = 921_600, faults: Faults | None = None, seed: int = 0) -> None:
        self.baud = baud
        self.url = f"serial://{terminal.path}?baud={baud}"
        self.sizes = attrs.evolve(SIZES, byte_seconds=10 / baud)
        self._ends = socket.socketpair()
        fds = [end.fileno() for end in self._ends]
        self.line = Line(terminal.fd, fds[0], baud=baud, forth=faults, back=faults, seed=seed)
        self._fd = fds[1]
        os.set_blocking(self._fd, False)
        self.device = Device(self._fd, sizes=self.sizes)

    def reset(self) -> None:
        self.device.close(word=False)
        self.device = Device(self._fd, sizes=self.sizes)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self.line.close()
        for end in self._ends:
            end.close()


@pytest.fixture
def board(terminal: Terminal) -> Iterator[Board]:
    with Board(terminal) as made:
        yield made


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def use(session: Any, calls: int = 20, nbytes: int = 20_000) -> None:
    """Calls, and tensors both ways: all answers right."""
    add = await session.get_function("add")
    for i in range(calls):
        assert await add(i, 1) == i + 1
    data = np.frombuffer(os.urandom(nbytes), dtype="uint8")
    tensor = await session.cpu().tensor(data)
    np.testing.assert_array_equal(await tensor.numpy(), data)


# ---- sessions


async def test_a_good_line(connect: Any, board: Board) -> None:
    for _ in range(2):
        async with connect(board.url) as session:
            await use(session)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_bad_line(connect: Any, terminal: Terminal, seed: int) -> None:
    with Board(terminal, faults=BAD, seed=seed) as board:
        for _ in range(2):
            async with connect(board.url) as session:
                await use(session, 60, 6000)


async def test_software_flow_control(connect: Any, terminal: Terminal) -> None:
    """Neither XON nor XOFF is among what the host sends: the port's driver would take them out."""
    with Board(terminal) as board:
        board.device.close()
        board.sizes = attrs.evolve(board.sizes, xonxoff=True)
        board.device = Device(board._fd, sizes=board.sizes)
        async with connect(board.url + "&xonxoff=1") as session:
            add = await session.get_function("add")
            assert await add(0x11, 0x13) == 0x24
            data = np.full(5000, 0x13, dtype="uint8")
            tensor = await session.cpu().tensor(data)
            np.testing.assert_array_equal(await tensor.numpy(), data)


@pytest.mark.parametrize(
    "option", ["reset=dtr", "reset=rts", "timeout=2.5&payload=32&window=1", "stopbits=2", "parity=even"]
)
async def test_options(connect: Any, board: Board, option: str) -> None:
    """A terminal has no modem lines, and no parity: that it does without them is what is seen here."""
    async with connect(f"{board.url}&{option}") as session:
        await use(session, 3, 1000)


async def test_the_device_is_told_of_the_end(connect: Any, board: Board) -> None:
    """Nothing but the host's goodbye takes its session from the device before the next host comes."""
    async with connect(board.url) as session:
        await use(session, 2, 100)
        assert board.device.link.state is State.OPEN
    with anyio.fail_after(10):
        while board.device.link.state is State.OPEN:
            await anyio.sleep(0.01)


async def test_a_session_right_after_one_that_was_killed(connect: Any, board: Board) -> None:
    """Nobody has said goodbye: the device finds out by the next host's first word."""
    channel = find_transport("serial").connect_blocking(Url.parse(board.url))
    channel.send([b"\x00\x01\x02"])  # cut short in the middle of a packet
    assert isinstance(channel, BlockingLinkChannel)
    channel._line._lost = ConnectionLostError("killed")
    channel.close()
    async with connect(board.url) as session:
        await use(session)


async def test_an_idle_host_loses_nothing(connect: Any, board: Board) -> None:
    """Between calls nobody listens; what the device sends again meanwhile is taken for what it is."""
    async with connect(board.url) as session:
        add = await session.get_function("add")
        for i in range(3):
            assert await add(i, 1) == i + 1
            await anyio.sleep(0.4)  # past the device's timer
        await use(session)


# ---- what goes wrong


async def test_the_device_is_reset_in_mid_session(connect: Any, board: Board) -> None:
    async with connect(board.url) as session:
        add = await session.get_function("add")
        assert await add(1, 1) == 2
        board.reset()
        with anyio.fail_after(20):
            with pytest.raises(ConnectionLostError, match="the device was reset"):
                await add(1, 1)
            with pytest.raises(ConnectionLostError):
                await add(1, 1)
    async with connect(board.url) as session:
        await use(session)


async def test_unplugged_in_mid_call(connect: Any, terminal: Terminal, board: Board) -> None:
    begun = threading.Event()

    def unplug() -> None:
        begun.wait()
        board.line.close()
        terminal.unplug()

    async with connect(board.url) as session:
        add = await session.get_function("add")
        board.line.cut()
        thread = threading.Thread(target=unplug)
        thread.start()
        begun.set()
        try:
            with pytest.raises(ConnectionLostError, match="gone"):
                await add(1, 1)
        finally:
            thread.join()


async def test_a_dead_line(connect: Any, board: Board) -> None:
    async with connect(board.url + "&timeout=0.5") as session:
        add = await session.get_function("add")
        board.line.cut()
        with anyio.fail_after(20):
            with pytest.raises(ConnectionLostError, match=r"dead.* 0\.5 s"):
                await add(1, 1)


async def test_nobody_there(connect: Any, terminal: Terminal) -> None:
    with pytest.raises(ConnectionLostError, match=rf"no device answers.*{terminal.path} at 9600 baud"):
        async with connect(f"serial://{terminal.path}?baud=9600&timeout=0.3"):
            pass
    with pytest.raises(WaitTimeoutError):
        async with connect(f"serial://{terminal.path}", wait_timeout=0.1):
            pass


async def test_the_budget_of_a_session_ends_here(connect: Any, board: Board) -> None:
    """The device knows of no timeout: the client ends the session, and not some seconds late."""
    board.device.close()

    def hang(channel: BlockingLinkChannel) -> None:
        from tests.session.tiny import TinyServer

        server, buffer = TinyServer(), memoryview(bytearray(4096))
        for _ in range(2):  # it answers InitServer and one request
            channel.send([server.feed(bytes(buffer[: channel.receive_into(buffer)]))])
        while channel.receive_into(buffer):
            pass

    board.device = Device(board._fd, hang, board.sizes)
    async with connect(board.url, session_timeout=0.5) as session:
        add = await session.get_function("add")
        began = time.monotonic()
        with pytest.raises(RPCSessionTimeoutError):
            await add(1, 1)
        assert time.monotonic() - began < 4  # a server would be given 5 s more


async def test_lines_have_no_keys(connect: Any, terminal: Terminal) -> None:
    with pytest.raises(ValueError, match="no keys"):
        async with connect(f"serial://{terminal.path}", key="board"):
            pass


async def test_busy(connect: Any, board: Board) -> None:
    async with connect(board.url) as session:
        with pytest.raises(ConnectionLostError, match="busy"):
            async with connect(board.url):
                pass
        await use(session, 3)
    async with connect(board.url) as session:
        await use(session, 3)


async def test_no_such_port(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcflow.transports.serial.ports", lambda: [("/dev/ttyACM7", "board", "USB")])
    with pytest.raises(ConnectionLostError, match=r"no port /dev/nothing.*/dev/ttyACM7"):
        async with connect("serial:///dev/nothing"):
            pass


@pytest.mark.parametrize("kind", ["file", "null"])
async def test_no_serial_port(connect: Any, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(ConnectionLostError, match="is not a serial port"):
        async with connect(f"serial://{path if kind == 'file' else '/dev/null'}"):
            pass


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EACCES, "dialout"), (errno.EBUSY, "busy"), (errno.EIO, "cannot be opened")]
)
async def test_refused_by_the_system(
    connect: Any, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    real = os.open

    def refusing(path: Any, *args: Any, **named: Any) -> int:
        if path == terminal.path:
            raise OSError(code, os.strerror(code), path)
        return real(path, *args, **named)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(ConnectionLostError, match=words):
        async with connect(f"serial://{terminal.path}"):
            pass


async def test_without_pyserial(connect: Any, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(ImportError, match=r"rpcflow\[serial\]"):
        async with connect(f"serial://{terminal.path}"):
            pass


def test_what_an_address_may_say() -> None:
    full = "serial:///dev/x?baud=9600&parity=odd&stopbits=2&rtscts=1&xonxoff=yes&reset=dtr&timeout=2&firmware=fw.elf"
    settings = Settings.of(Url.parse(full))
    assert settings == Settings(9600, "odd", 2, True, True, False, "dtr", 2.0, firmware="fw.elf")
    assert settings.byte_seconds == 12 / 9600
    assert Settings.of(Url.parse("serial:///dev/x")).byte_seconds == 10 / 115_200


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("speed=1", "known are baud, parity"),
        ("baud=fast", "baud is a number"),
        ("baud=0", "baud is a number"),
        ("baud=9600&baud=9600", "twice"),
        ("parity=maybe", "one of none, even, odd"),
        ("stopbits=3", "stopbits"),
        ("rtscts=maybe", "rtscts is 1 or 0"),
        ("reset=now", "reset is one of"),
        ("reset=rts&rtscts=1", "not both"),
        ("reset=dtr&dsrdtr=1", "not both"),
        ("timeout=0", "timeout is a number"),
        ("timeout=nan", "timeout is a number"),
        ("payload=31", "payload"),
        ("window=65", "window"),
    ],
)
def test_what_an_address_may_not_say(query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_transport("serial").connect_blocking(Url.parse(f"serial:///dev/nothing?{query}"))


@pytest.mark.parametrize("url", [Url("serial"), Url("serial", host="here", path="/dev/x")])
def test_addresses_without_a_path(url: Url) -> None:
    with pytest.raises(ValueError, match="path of a port"):
        find_transport("serial").connect_blocking(url)


# ---- cancelling


@pytest.mark.parametrize("api", ["trio", "asyncio"])
async def test_cancelled_at_any_point_nothing_is_left(terminal: Terminal, api: str) -> None:
    with Board(terminal) as board:
        async with rpcflow.connect(board.url) as session:
            await use(session, 3)
        before = descriptors()
        for step in range(40):
            with anyio.move_on_after(step * 0.002):
                async with rpcflow.connect(board.url) as session:
                    await use(session, 1000)
            with anyio.fail_after(10):
                while descriptors() != before:  # the device, in this process too, is about to await the next host
                    await anyio.sleep(0.01)
        async with rpcflow.connect(board.url) as session:
            await use(session, 3)


@pytest.mark.parametrize("api", ["trio", "asyncio"])
async def test_a_cancelled_call_leaves_the_session_usable(board: Board, api: str) -> None:
    async with rpcflow.connect(board.url) as session:
        add = await session.get_function("add")
        for step in range(10):
            try:
                with anyio.move_on_after(step * 0.0005):
                    await add(1, 1)
            except ConnectionLostError:
                break  # it was cut in the middle of being sent
        else:
            await use(session, 3)


async def test_nothing_is_left_when_connecting_fails(connect: Any, terminal: Terminal) -> None:
    before = descriptors()
    for query in ("timeout=0.1", "timeout=0.1&reset=dtr"):
        with pytest.raises(ConnectionLostError):
            async with connect(f"serial://{terminal.path}?{query}"):
                pass
    assert descriptors() == before


# ---- many at once


@pytest.mark.parametrize("api", ["trio", "asyncio"])
async def test_eight_ports_at_once(api: str) -> None:
    terminals = [Terminal() for _ in range(8)]
    boards = [Board(terminal) for terminal in terminals]

    async def one(board: Board) -> None:
        async with rpcflow.connect(board.url) as session:
            await use(session, 10, 4000)

    try:
        async with anyio.create_task_group() as tasks:
            for board in boards:
                tasks.start_soon(one, board)
    finally:
        for board in boards:
            board.__exit__()
        for terminal in terminals:
            terminal.close()
