# SPDX-License-Identifier: Apache-2.0
"""Where clients pair: one, in time, and guesses cost more and more. Time here is the tests' own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpcflow.errors import AuthenticationError, ConnectionLostError, PermissionDeniedError, ProtocolError, RPCError
from rpcflow.security import pairing_desk
from rpcflow.security.authority import init_authority, issue
from rpcflow.security.identity import init_identity
from rpcflow.security.pairing_client import Paired, pair
from rpcflow.security.pairing_desk import PairingDesk, check_certificate, clean_name
from rpcflow.security.pairing_frames import Frame, Kind, Reason, refusal
from rpcflow.security.pairing_line import FrameLine
from rpcflow.transports.memory import channel_pair

from .pairing_support import CLIENT, MALLORY, SERVER, Clients, Pairing, Tapped, certificate, client, der, pin

pytestmark = pytest.mark.anyio


async def test_pairing() -> None:
    pairing = Pairing()
    assert await pairing.attempt() == Paired("laptop", pin(SERVER))
    assert pairing.clients.kept == {"laptop": der(CLIENT)}
    assert pairing.desk.paired == "laptop"
    assert not pairing.desk.on
    await pairing.desk.finished.wait()
    await pairing.desk.wait_over()


def test_a_desk_needs_no_event_loop_and_each_has_a_code_of_its_own() -> None:
    codes = {PairingDesk(pin(SERVER), Clients()).code for _ in range(20)}
    assert len(codes) > 15
    assert all(len(code) == 8 and code.isdecimal() for code in codes)


async def test_a_wrong_code(caplog: pytest.LogCaptureFixture) -> None:
    pairing = Pairing()
    with caplog.at_level(logging.INFO, "rpcflow.security"):
        with pytest.raises(AuthenticationError, match="code was wrong, or somebody sits between") as caught:
            await pairing.attempt(pairing.wrong)
        assert pairing.desk.on
        assert pairing.clients.kept == {}
        await pairing.attempt()
    assert [record.getMessage() for record in caplog.records] == [
        "somebody did not pair: its code was wrong, number 1; the next is looked at in 1 s",
        "somebody has paired, and is known as laptop; pairing is off now",
    ]
    assert pairing.desk.code not in str(caught.value)


async def test_guesses_cost_more_and_more_and_ten_are_all() -> None:
    pairing = Pairing()
    waited = []
    for _ in range(10):
        assert pairing.desk.on
        before = pairing.clock.now
        with pytest.raises(AuthenticationError):
            await pairing.attempt(pairing.wrong)
        waited.append(round(pairing.clock.now - before))
    assert waited == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not pairing.desk.on
    await pairing.desk.wait_over()
    for code in (pairing.desk.code, pairing.wrong):
        with pytest.raises(PermissionDeniedError, match="no new clients now"):
            await pairing.attempt(code)
    assert pairing.clients.kept == {}


@pytest.mark.parametrize("right", [True, False])
async def test_after_ten_minutes_no_code_counts(right: bool) -> None:
    pairing = Pairing()
    pairing.clock.now += 600
    assert not pairing.desk.on
    with pytest.raises(PermissionDeniedError):
        await pairing.attempt(None if right else pairing.wrong)
    await pairing.desk.wait_over()
    assert pairing.desk.finished.is_set()


@pytest.mark.parametrize("right", [True, False])
async def test_ten_minutes_end_while_somebody_waits(right: bool) -> None:
    pairing = Pairing()
    with pytest.raises(AuthenticationError):
        await pairing.attempt(pairing.wrong)
    pairing.desk._ends = pairing.clock.now + 0.5
    with pytest.raises(PermissionDeniedError):
        await pairing.attempt(None if right else pairing.wrong)
    assert pairing.clients.kept == {}


async def test_one_success_is_all() -> None:
    pairing = Pairing()
    await pairing.attempt()
    for code in (pairing.desk.code, pairing.wrong):
        with pytest.raises(PermissionDeniedError):
            await pairing.attempt(code)
    assert len(pairing.clients.kept) == 1


async def test_what_is_computed_with_the_code_takes_the_same_time_always() -> None:
    """The test's clock stands still while something is computed."""
    pairing = Pairing()
    with pytest.raises(AuthenticationError):
        await pairing.attempt(pairing.wrong)
    assert pairing.clock.slept == pytest.approx([0.05, 0.05])


class Attempts:
    """Several at once."""

    def __init__(self) -> None:
        self.pairing = Pairing()
        self.results: list[Any] = []

    async def attempt(self, code: str) -> None:
        try:
            self.results.append(await self.pairing.attempt(code))
        except RPCError as error:
            self.results.append(error)

    async def all(self, codes: list[str]) -> None:
        async with anyio.create_task_group() as tasks:
            for code in codes:
                tasks.start_soon(self.attempt, code)


async def test_at_once_the_right_code_counts_once() -> None:
    attempts = Attempts()
    await attempts.all([attempts.pairing.desk.code] * 3)
    assert sorted(type(result).__name__ for result in attempts.results) == [
        "Paired",
        "PermissionDeniedError",
        "PermissionDeniedError",
    ]
    assert len(attempts.pairing.clients.kept) == 1


async def test_at_once_wrong_codes_wait_for_each_other() -> None:
    attempts = Attempts()
    await attempts.all([attempts.pairing.wrong] * 3)
    assert [type(result) for result in attempts.results] == [AuthenticationError] * 3
    assert attempts.pairing.desk._wrong == 3
    assert [round(seconds) for seconds in attempts.pairing.clock.slept if seconds > 0.5] == [1, 2]


async def test_only_a_few_wait() -> None:
    attempts = Attempts()
    desk = attempts.pairing.desk
    async with anyio.create_task_group() as tasks:
        async with desk._turn:
            tasks.start_soon(attempts.all, [attempts.pairing.wrong] * pairing_desk.MOST_CONVERSATIONS)
            while len(attempts.results) < pairing_desk.MOST_CONVERSATIONS - pairing_desk.MOST_WAITING:
                await anyio.lowlevel.checkpoint()
            assert {type(result) for result in attempts.results} == {PermissionDeniedError}
    kinds = [type(result) for result in attempts.results]
    assert kinds.count(AuthenticationError) == desk._wrong == pairing_desk.MOST_WAITING


async def test_only_so_many_converse_and_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_desk, "STEP_SECONDS", 0.2)
    pairing = Pairing()
    async with anyio.create_task_group() as tasks:
        silent = [channel_pair() for _ in range(pairing_desk.MOST_CONVERSATIONS)]
        for _, theirs in silent:
            tasks.start_soon(pairing.desk.serve, theirs, "silent")
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(PermissionDeniedError, match="others are pairing"):
            await pairing.attempt()
        buffer = memoryview(bytearray(10))
        assert [await ours.receive_into(buffer) for ours, _ in silent] == [0] * len(silent)
    await pairing.attempt()


async def test_who_never_gets_its_turn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_desk, "CONVERSATION_SECONDS", 0.2)
    pairing = Pairing()
    async with pairing.desk._turn:
        with pytest.raises(PermissionDeniedError, match="others are pairing"):
            await pairing.attempt()
    assert pairing.desk._waiting == 0


async def test_who_goes_before_it_confirms_has_not_guessed() -> None:
    pairing = Pairing()
    for _ in range(30):
        ours, theirs = channel_pair()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pairing.desk.serve, theirs, "somebody")
            await ours.send([Frame(Kind.HELLO, bytes(32) + b"A" + bytes(32)).encode()])
            await ours.receive_into(memoryview(bytearray(37)))
            ours.close()
    assert pairing.desk._wrong == 0
    await pairing.attempt()


async def recorded() -> tuple[Pairing, bytes, bytes]:
    """What a client has sent and received, to pair."""
    pairing = Pairing()
    ours, theirs = channel_pair()
    tapped = Tapped(ours)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pairing.desk.serve, theirs, "somebody")
        await client(tapped, pairing.desk.code)
        ours.close()
    return pairing, tapped.sent, tapped.received


async def play(pairing: Pairing, data: bytes) -> bytes:
    """Say ``data`` to the desk and go; what it says."""
    ours, theirs = channel_pair()
    said = bytearray()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pairing.desk.serve, theirs, "somebody")
        try:
            await ours.send([data])
        except ConnectionLostError:
            pass
        ours._outgoing.ended = True
        ours._notify()
        buffer = memoryview(bytearray(1000))
        while count := await ours.receive_into(buffer):
            said += buffer[:count]
        ours.close()
    return bytes(said)


async def test_a_conversation_played_again() -> None:
    first, sent, _ = await recorded()
    second = Pairing()
    second.desk.code = first.desk.code
    answer = await play(second, sent)
    assert answer.endswith(refusal(Reason.WRONG_CODE).encode())
    assert second.clients.kept == {}
    assert second.desk.on


async def test_a_client_that_ends_at_any_byte() -> None:
    _, sent, _ = await recorded()
    pairing = Pairing()
    confirmed = 4 + 65 + 4 + 32
    for count in range(len(sent)):
        pairing.desk._wrong, pairing.desk._not_before = 0, 0.0
        await play(pairing, sent[:count])
        assert pairing.desk._wrong == (count >= confirmed), count
    assert pairing.clients.kept == {}
    assert pairing.desk.on


async def test_a_server_that_ends_at_any_byte() -> None:
    """The client has then nothing to keep."""
    _, _, received = await recorded()
    for count in range(len(received)):
        ours, theirs = channel_pair()
        await theirs.send([received[:count]])
        theirs._outgoing.ended = True
        with pytest.raises((ConnectionLostError, AuthenticationError)):
            await client(ours, "48219307")


class Cut:
    """A channel of which one end goes after so many bytes have come from it."""

    def __init__(self, channel: Any, left: int) -> None:
        self._channel = channel
        self._left = left

    async def send(self, parts: Any) -> None:
        data = b"".join(parts)
        await self._channel.send([data[: self._left]])
        self._left -= len(data)
        if self._left <= 0:
            self.close()

    async def receive_into(self, buffer: memoryview) -> int:
        count: int = await self._channel.receive_into(buffer)
        return count

    def close(self) -> None:
        self._channel.close()


async def test_a_line_that_goes_at_any_byte() -> None:
    """The client keeps nothing unless the server has kept it; a server whose last word is lost has kept it."""
    _, sent, received = await recorded()
    for of_client, total in ((True, len(sent)), (False, len(received))):
        for count in range(0, total, 3):
            pairing = Pairing()
            ours, theirs = channel_pair()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pairing.desk.serve, theirs if of_client else Cut(theirs, count), "somebody")
                with pytest.raises(ConnectionLostError):
                    await client(Cut(ours, count) if of_client else ours, pairing.desk.code)
                ours.close()
            last_word = count > len(received) - (4 + 32 + len("laptop"))
            assert bool(pairing.clients.kept) == (not of_client and last_word) == (not pairing.desk.on)
            assert pairing.desk._wrong == 0


class Cancelling:
    """Cancels a scope at the n-th await: of a channel, or of sleep."""

    def __init__(self, channel: Any, pairing: Pairing, at: int) -> None:
        self._channel = channel
        self._pairing = pairing
        self._left = at
        self.scope = anyio.CancelScope()
        pairing.desk._sleep = self.sleep

    async def _step(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            self.scope.cancel()
            await anyio.lowlevel.checkpoint()
        return await call(*args)

    async def sleep(self, seconds: float) -> None:
        await self._step(self._pairing.clock.sleep, seconds)

    async def send(self, parts: Any) -> None:
        await self._step(self._channel.send, parts)

    async def receive_into(self, buffer: memoryview) -> int:
        count: int = await self._step(self._channel.receive_into, buffer)
        return count

    def close(self) -> None:
        self._channel.close()


@pytest.mark.parametrize("right", [True, False])
async def test_a_desk_that_is_cancelled_at_any_await(right: bool) -> None:
    at, ended = 0, False
    while not ended:
        pairing = Pairing()
        code = pairing.desk.code if right else pairing.wrong
        ours, theirs = channel_pair()
        cancelling = Cancelling(theirs, pairing, at)
        async with anyio.create_task_group() as tasks:

            async def attempt(ours: Any = ours, code: str = code) -> None:
                try:
                    await client(ours, code)
                except (ConnectionLostError, AuthenticationError):
                    pass
                ours.close()

            tasks.start_soon(attempt)
            with cancelling.scope:
                await pairing.desk.serve(cancelling, "somebody")
        ended = not cancelling.scope.cancel_called
        desk = pairing.desk
        desk._sleep = pairing.clock.sleep
        assert desk._present == desk._waiting == 0
        assert not desk._turn.statistics().locked
        assert not desk._opening.statistics().locked
        assert bool(pairing.clients.kept) == (not desk.on)
        assert desk.paired is None or desk.paired in pairing.clients.kept
        if desk.on:
            await pairing.attempt()
            assert len(pairing.clients.kept) == 1
        at += 1
    assert at > 8


async def test_a_client_that_is_cancelled_at_any_await() -> None:
    at, ended = 0, False
    while not ended:
        pairing = Pairing()
        ours, theirs = channel_pair()
        cancelling = Cancelling(ours, pairing, at)
        pairing.desk._sleep = pairing.clock.sleep
        paired = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pairing.desk.serve, theirs, "somebody")
            with cancelling.scope:
                paired = await client(cancelling, pairing.desk.code)
            ours.close()
        ended = paired is not None
        if pairing.desk.on:
            assert pairing.clients.kept == {}
            await pairing.attempt()
        at += 1
    assert at > 5


async def test_a_client_does_not_wait_for_ever() -> None:
    ours, theirs = channel_pair()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        await pair(ours, "48219307", pin(SERVER), der(CLIENT), "x", timeout=0.05)
    theirs.close()


@settings(max_examples=40)
@given(data=st.binary(max_size=300), head=st.booleans())
async def test_garbage(data: bytes, head: bool) -> None:
    pairing = Pairing()
    hello = Frame(Kind.HELLO, bytes(32) + b"A" + bytes(32)).encode() if head else b""
    await play(pairing, hello + data)
    assert pairing.clients.kept == {}
    assert pairing.desk.on
    assert pairing.desk._present == pairing.desk._waiting == 0


@settings(max_examples=40)
@given(data=st.binary(max_size=300))
async def test_garbage_from_a_server(data: bytes) -> None:
    ours, theirs = channel_pair()
    await theirs.send([data])
    theirs._outgoing.ended = True
    with pytest.raises((ConnectionLostError, ProtocolError, AuthenticationError, PermissionDeniedError)):
        await client(ours, "48219307")


async def test_somebody_in_between_who_relays_every_byte() -> None:
    pairing = Pairing()
    with pytest.raises(AuthenticationError):
        await pairing.attempt(server_pin=pin(MALLORY))
    assert pairing.clients.kept == {}
    assert pairing.desk._wrong == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no")])
async def test_what_cannot_be_kept(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    pairing = Pairing()
    pairing.clients.error = error
    with pytest.raises(PermissionDeniedError, match="could not store"):
        await pairing.attempt()
    assert str(error) in caplog.text
    assert pairing.desk.on
    pairing.clients.error = None
    await pairing.attempt()


@pytest.mark.parametrize("authority", [True, None])
async def test_an_authority_does_not_pair(authority: bool | None) -> None:
    """Whatever it issues would be let in too."""
    pairing = Pairing()
    ours, theirs = channel_pair()
    issuing = certificate(f"authority {authority}", authority)[0]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pairing.desk.serve, theirs, "somebody")
        with pytest.raises(PermissionDeniedError, match="could not store"):
            await pair(ours, pairing.desk.code, pin(SERVER), issuing, "x")
        ours.close()
    assert pairing.clients.kept == {}
    assert pairing.desk.on


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(at=st.integers(0, 1 << 20), change=st.integers(1, 255))
@example(at=11, change=1)  # the version
async def test_a_spoilt_certificate_is_a_value_error_at_most(at: int, change: int) -> None:
    spoilt = bytearray(der(CLIENT))
    spoilt[at % len(spoilt)] ^= change
    try:
        check_certificate(bytes(spoilt))
    except ValueError:
        pass


def test_a_certificate_that_somebody_else_has_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS would go on to ask for its issuer: it would have paired, and never be let in."""
    monkeypatch.setenv("RPCFLOW_HOME", str(tmp_path))
    init_authority("lab")
    with pytest.raises(ValueError, match="issued by an authority"):
        check_certificate(issue("ada", "lab", server=False).certificate)
    check_certificate(init_identity("self").certificate)


async def test_names_and_peers_put_nothing_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    pairing = Pairing()
    ours, theirs = channel_pair()
    with caplog.at_level(logging.DEBUG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pairing.desk.serve, theirs, "evil\n\x1b[2J")
            paired = await client(ours, pairing.desk.code, name="../\x1b[31m\nROOT has paired")
            ours.close()
        await play(pairing, b"\x01\x1b\n\n")
        for _ in range(30):
            with pytest.raises(PermissionDeniedError):
                await pairing.attempt()
    assert paired.name in pairing.clients.kept
    assert "/" not in paired.name
    lines = [record.getMessage() for record in caplog.records if record.name == "rpcflow.security"]
    assert len(lines) <= 12
    for line in lines:
        assert line.isprintable()
        assert pairing.desk.code not in line


@given(st.text(max_size=80))
def test_clean_names(wish: str) -> None:
    name = clean_name(wish)
    assert 0 < len(name) <= 40
    assert name.isascii()
    assert not name.startswith((".", "-"))
    assert not set(name) & set("/\\:\0 ")
    assert clean_name(name) == name


def test_names_that_need_no_cleaning() -> None:
    assert clean_name("alice-laptop.lab_2") == "alice-laptop.lab_2"
    assert clean_name("..") == clean_name("") == "client"


async def test_the_client_confirms_first() -> None:
    pairing = Pairing()
    ours, theirs = channel_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pairing.desk.serve, theirs, "somebody")
        await ours.send([Frame(Kind.HELLO, bytes(32) + b"A" + bytes(32)).encode()])
        line = FrameLine(ours)
        assert (await line.receive()).kind is Kind.REPLY
        with pytest.raises(TimeoutError):
            await line.receive(0.05)
        ours.close()
