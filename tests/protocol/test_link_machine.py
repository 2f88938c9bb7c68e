# SPDX-License-Identifier: Apache-2.0
"""Two links and a line between them: order, once, sessions, and no waiting for ever."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from rpcflow.errors import ConnectionLostError, ProtocolError
from rpcflow.protocol.link import DeviceLink, Frame, FrameReader, HostLink, Kind, Reason, Sizes, State, encode

from .linked import Faults, World

BAD = st.builds(
    Faults,
    lose=st.sampled_from([0, 0, 0.001, 0.01]),
    change=st.sampled_from([0, 0.001, 0.01]),
    double=st.sampled_from([0, 0, 0.001, 0.01]),
    add=st.sampled_from([0, 0, 0.001, 0.01]),
    pieces=st.sampled_from([0, 0.01, 0.2]),
    repeat=st.sampled_from([0, 0.1, 0.5]),
    delay=st.sampled_from([0, 0, 0.01, 0.3]),
)
SIZES = st.builds(
    Sizes,
    payload=st.sampled_from([32, 33, 64, 256, 1024]),
    window=st.integers(1, 8),
    room=st.integers(1, 8),
    xonxoff=st.booleans(),
)
FRAMES = st.builds(
    Frame,
    st.sampled_from([Kind.ACK, Kind.NAK, Kind.PING]),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=64),
) | st.builds(
    Frame,
    st.sampled_from([Kind.HELLO, Kind.WELCOME, Kind.RESET, Kind.DATA]),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(min_size=3, max_size=64),
)


# ---- frames


@given(st.lists(FRAMES, max_size=8), st.booleans(), st.integers(1, 40))
def test_frames_come_out_as_they_went_in(frames: list[Frame], xonxoff: bool, step: int) -> None:
    line = b"".join(encode(frame, xonxoff) for frame in frames)
    if xonxoff:
        assert b"\x11" not in line
        assert b"\x13" not in line
    reader = FrameReader(64)
    assert [event for at in range(0, len(line), step) for event in reader.feed(line[at : at + step])] == frames


@given(st.binary(max_size=2000), st.integers(1, 300))
def test_any_bytes_are_frames_or_damage_whatever_the_pieces(data: bytes, step: int) -> None:
    cut = FrameReader(64)
    events = []
    for at in range(0, len(data), step):
        events += list(cut.feed(data[at : at + step]))
        assert len(cut._held) <= 2 * (64 + 10)
    assert events == list(FrameReader(64).feed(data))
    assert len(events) <= data.count(b"~")


@given(
    st.lists(st.lists(FRAMES, max_size=4).map(lambda frames: b"".join(map(encode, frames))) | st.binary(max_size=80))
)
def test_any_bytes_leave_a_machine_in_order(pieces: list[bytes]) -> None:
    """Nothing is raised, and what it says is the protocol."""
    links = [HostLink(lambda: 7, 0.0), DeviceLink(Sizes(payload=64))]
    for link in links:
        for i, piece in enumerate(pieces):
            link.receive(piece, i * 0.1)
            link.tick(i * 0.1)
            link.send(memoryview(b"x" * 100))
            link.flush()
            link.read_into(memoryview(bytearray(50)))
            assert None not in list(FrameReader(1024).feed(b"~" + link.take_outgoing(i * 0.1)))
            due = link.deadline()
            assert due is None or due > i * 0.1 - 1


# ---- two machines and a line


class Links(RuleBasedStateMachine):
    """Anything may happen; in the end the line is good, and a session gets all its bytes through."""

    def __init__(self) -> None:
        super().__init__()
        self.world: Any = None

    @initialize(seed=st.integers(0, 2**16), host=SIZES, device=SIZES)
    def begin(self, seed: int, host: Sizes, device: Sizes) -> None:
        self.world = World(seed, host, device)
        self.world.run(0.1)

    @rule(way=st.sampled_from([0, 1]), faults=BAD)
    def line_gets_bad(self, way: int, faults: Faults) -> None:
        self.world.ways[way].faults = faults

    @rule(
        ends=st.sampled_from([["host"], ["device"], ["host", "device"]]),
        nbytes=st.integers(1, 2000),
        seconds=st.sampled_from([0.0, 0.003, 0.03, 0.3]),
    )
    def send(self, ends: list[str], nbytes: int, seconds: float) -> None:
        for end in ends:
            self.world.send(end, nbytes)
        self.world.run(seconds)

    @rule(calls=st.integers(1, 20), nbytes=st.sampled_from([1, 40, 300]))
    def call_and_answer(self, calls: int, nbytes: int) -> None:
        for _ in range(calls):
            self.world.send("host", nbytes)
            self.world.run(0.02)
            self.world.send("device", nbytes)
            self.world.run(0.02)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(reading=st.booleans())
    def programs_read_or_not(self, reading: bool) -> None:
        self.world.reading = reading
        self.world._settle()

    @rule(what=st.sampled_from(["device reset", "power off", "host killed", "host closes"]))
    def mishap(self, what: str) -> None:
        world = self.world
        if what == "device reset":
            world.reset_device()
        elif what == "power off":
            world.powered = False
        else:
            if what == "host closes":
                world.host.close()
                world._settle()
                assert world.host.state is State.CLOSED
            world.reset_host()

    def teardown(self) -> None:
        world = self.world
        if world is None:
            return
        for way in world.ways:
            way.faults = Faults()
        world.reading = True
        if not world.powered:
            world.run(6.0)
            assert world.host.state is State.CLOSED, "a dead line was not noticed"
            world.reset_device()
        began = world.now
        while not (world.opened and world.host.empty and world.device.empty):
            assert world.now - began < 60, "nothing moves any more"
            if world.host.state is State.CLOSED:
                assert world.host.error is not None
                world.reset_host()
            world.run(0.1)
        for end in ("host", "device"):
            world.send(end, 100)
        assert world.run_until_idle(30)
        assert world.host.error is None
        assert world.whole()


def test_whatever_happens() -> None:
    run_state_machine_as_test(
        Links,
        settings=settings(
            max_examples=80,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def exchange(world: World, nbytes: int, most: float = 120.0) -> None:
    """Send that many bytes each way."""
    left, began = {"host": nbytes, "device": nbytes}, world.now
    while any(left.values()) or not (world.host.empty and world.device.empty):
        assert world.now - began < most
        assert world.host.error is None
        for end in left:
            if left[end]:
                left[end] -= world.send(end, min(left[end], 500))
        world.run(0.005)
    world.run(0.1)
    assert world.whole()
    assert [len(data) for data in world.got.values()] == [nbytes, nbytes]


@pytest.mark.parametrize("seed", range(5))
def test_a_line_as_bad_as_they_get(seed: int) -> None:
    """One byte in a thousand changed, one piece in a hundred lost, some doubled, some added."""
    world = World(seed)
    for way in world.ways:
        way.faults = Faults(lose=0.0003, change=0.001, double=0.0003, add=0.0003, pieces=0.01, delay=0.005)
    exchange(world, 10_000)


def test_numbers_wrap_many_times() -> None:
    world = World(0, device=Sizes(payload=32))
    exchange(world, 32 * 256 * 3)


def test_a_good_line_wastes_nothing() -> None:
    """A good line carries each frame once: what the line is given is the data, 12 bytes a frame, stuffing, and few
    acknowledgements."""
    world = World(1, device=Sizes(payload=256, window=4, room=4))
    world.run(0.1)
    began, left = world.now, 20_000
    while left:
        left -= world.send("host", left, flush=False)
        world.run(0.001)
    world.host.flush()
    assert world.run_until_idle(1)
    frames = 20_000 / 256
    assert world.ways[0].given <= 20_000 * 1.01 + 13 * (frames + 1) + 60
    assert world.ways[1].given <= 13 * (frames + 2) + 60
    assert world.now - began <= 20_000 / 11_520 * 1.1 + 0.05


# ---- sessions


def test_the_device_resets_in_mid_session() -> None:
    world = World()
    world.run(0.1)
    world.send("host", 100)
    world.reset_device()
    world.run(0.1)
    assert isinstance(world.host.error, ConnectionLostError)
    assert "reset" in str(world.host.error)


def test_the_device_resets_and_its_word_of_it_is_lost() -> None:
    world = World()
    world.run(0.1)
    world.ways[1].faults = Faults(pieces=1.0)
    world.reset_device()
    world.run(0.1)
    world.ways[1].faults = Faults()
    assert world.host.error is None
    world.send("host", 10)
    world.run(0.1)
    assert isinstance(world.host.error, ConnectionLostError)
    assert "does not know this session" in str(world.host.error)
    assert not [key for key in world.got if key[1] == "device"]


def test_a_dead_line_is_noticed_after_the_timeout_and_not_before() -> None:
    world = World()
    world.run(0.1)
    world.powered = False
    world.run(4.8)
    assert world.host.error is None
    world.run(0.4)
    assert isinstance(world.host.error, ConnectionLostError)


def test_nobody_there() -> None:
    world = World()
    world.powered = False
    world.reset_host()
    world.run(4.9)
    assert world.host.state is State.OPENING
    world.run(0.2)
    assert isinstance(world.host.error, ConnectionLostError)
    assert "no device answers" in str(world.host.error)


def test_a_quiet_device_is_not_a_dead_line() -> None:
    """It answers PING while its program is busy."""
    world = World()
    world.run(3600)
    assert world.host.error is None
    assert world.opened


def test_silence_counts_only_while_the_host_waits() -> None:
    world = World()
    world.run(0.1)
    now = world.now + 1000  # between two calls nobody drives the machine
    world.host.tick(now)
    assert world.host.error is None
    world.host.tick(now + 1.5)
    out = list(FrameReader(1024).feed(b"~" + world.host.take_outgoing(now + 1.5)))
    assert [frame.kind for frame in out if frame] == [Kind.PING]


def test_a_device_in_a_session_of_the_same_number_since_a_former_host() -> None:
    device, numbers = DeviceLink(), iter([5, 5, 6])
    hello = Frame(Kind.HELLO, 5, 0, 0, 4, b"\1\0\1")
    device.receive(b"~" + encode(hello) + encode(Frame(Kind.DATA, 5, 0, 0, 4, b"old")), 0.0)
    device.take_outgoing(0.0)
    host = HostLink(lambda: next(numbers), 0.0)
    now = 0.0
    while host.state is State.OPENING:
        device.receive(host.take_outgoing(now), now)
        host.receive(device.take_outgoing(now), now)
        now += 0.05
        host.tick(now)
    assert host.state is State.OPEN
    assert host.session == device.session == 6
    assert now < 4


def test_a_device_that_has_begun_our_session_anew() -> None:
    """A HELLO of ours that came late after its reset did that, and its WELCOME and its word of the reset are lost."""
    host, device = HostLink(lambda: 5, 0.0), DeviceLink()
    hello = host.take_outgoing(0.0)
    now = 0.0
    device.receive(hello, now)
    host.receive(device.take_outgoing(now), now)
    host.send(memoryview(b"first"))
    host.flush()
    device.receive(host.take_outgoing(now), now)
    device.tick(now + 0.02)
    host.receive(device.take_outgoing(now + 0.02), now)
    assert host.empty
    device = DeviceLink()
    device.receive(b"~" + hello, now)
    device.take_outgoing(now)
    host.send(memoryview(b"second"))
    host.flush()
    while host.state is State.OPEN:
        device.receive(host.take_outgoing(now), now)
        host.receive(device.take_outgoing(now), now)
        now += 0.01
        host.tick(now)
        device.tick(now)
        assert now < 20
    assert isinstance(host.error, ConnectionLostError)
    assert "reset" in str(host.error)
    assert not device.readable


def test_another_version_of_the_link_layer() -> None:
    host = HostLink(lambda: 9, 0.0)
    host.receive(b"~" + encode(Frame(Kind.RESET, 9, 0, 0, 0, bytes([Reason.VERSION, 2]))), 0.1)
    assert isinstance(host.error, ProtocolError)
    assert "version 2" in str(host.error)


def test_the_device_ends_a_session_after_its_last_words() -> None:
    world = World()
    world.run(0.1)
    world.reading = False
    world.send("device", 10)
    world.device.close()
    world._settle()
    world.run(0.1)
    assert world.host.state is State.CLOSED
    assert world.host.error is None
    assert world.host.readable
    buffer = memoryview(bytearray(20))
    assert world.host.read_into(buffer) == 10
    assert world.host.read_into(buffer) == 0


def test_closing_tells_the_other_end_and_again_does_nothing() -> None:
    world = World()
    world.run(0.1)
    world.host.close()
    world.host.close()
    (frame,) = FrameReader(1024).feed(b"~" + world.host.take_outgoing(world.now))
    assert frame is not None
    assert (frame.kind, frame.payload[0]) == (Kind.RESET, Reason.CLOSED)
    world.host.close()
    assert world.host.take_outgoing(world.now) == b""
    assert world.host.send(memoryview(b"x")) == 0


@pytest.mark.parametrize("bad", [{"payload": 31}, {"payload": 1025}, {"window": 0}, {"window": 65}, {"room": 0}])
def test_sizes_out_of_bounds(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sizes(**bad)
