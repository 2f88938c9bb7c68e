# SPDX-License-Identifier: Apache-2.0
"""The conversation of pairing: only two ends with one code and nobody in between come to an end of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.errors import AuthenticationError, PermissionDeniedError, ProtocolError
from rpcflow.security.pairing import ClientConversation, ServerConversation, read_code
from rpcflow.security.pairing_frames import Frame, Kind, Reason, pack_introduction, refusal

from .pairing_support import CLIENT, MALLORY, SERVER, der, pin
from .test_pairing_frames import some_frames

CODE = "48219307"
Relay = Callable[[Frame], Frame]


def client(code: str = CODE, server: str = SERVER, name: str = "laptop") -> ClientConversation:
    return ClientConversation(code, pin(server), der(CLIENT), name)


def server(code: str = CODE) -> ServerConversation:
    return ServerConversation(code, pin(SERVER))


def converse(
    one: ClientConversation, other: ServerConversation, relay: Relay = lambda frame: frame
) -> tuple[str, bytes]:
    """Converse to the end; every frame goes through ``relay``. What the server came to know."""

    def answer(frame: Frame) -> Frame:
        found = one.take(relay(frame))
        assert found is not None
        return relay(found)

    confirmation = answer(other.reply(relay(one.hello())))
    own = other.confirm(confirmation)
    if own is None:
        one.take(refusal(Reason.WRONG_CODE))
        raise AssertionError
    name, certificate = other.introduced(answer(own))
    assert one.stored is None
    assert one.take(relay(other.stored("alice"))) is None
    return name, certificate


def test_one_code_and_nobody_in_between() -> None:
    one = client(name="Läptop\n")
    assert converse(one, server()) == ("Läptop\n", der(CLIENT))
    assert one.stored == "alice"
    assert one.proven
    with pytest.raises(ProtocolError):
        one.take(Frame(Kind.STORED, bytes(40)))


@pytest.mark.parametrize("code", ["48219308", "4821930", "482193", "00000000"])
def test_another_code(code: str) -> None:
    one = client(code)
    with pytest.raises(AuthenticationError, match="code was wrong"):
        converse(one, server())
    assert one.stored is None
    assert not one.proven


def test_somebody_who_relays_every_byte() -> None:
    """The client sees his key, the server its own."""
    one = client(server=MALLORY)
    with pytest.raises(AuthenticationError, match="somebody sits between"):
        converse(one, server())


def test_somebody_who_poses_as_the_server() -> None:
    """He does not know the code, and has no more than what the client says to guess it by, once."""
    one, posing = client(server=MALLORY), ServerConversation("11111111", pin(MALLORY))
    confirmation = one.take(posing.reply(one.hello()))
    assert confirmation is not None
    assert posing.confirm(confirmation) is None
    with pytest.raises(AuthenticationError):
        one.take(Frame(Kind.SERVER_CONFIRM, bytes(32)))
    assert not one.proven


def test_somebody_who_sends_back_what_he_gets() -> None:
    one = client()
    with pytest.raises(ProtocolError):
        one.take(Frame(Kind.REPLY, one.hello().body[32:]))
    two = client()
    confirmation = two.take(server().reply(two.hello()))
    assert confirmation is not None
    with pytest.raises(AuthenticationError):
        two.take(Frame(Kind.SERVER_CONFIRM, confirmation.body))


@settings(max_examples=60)
@given(st.integers(0, 5), st.integers(0, 1 << 20))
def test_a_bit_that_has_changed(which: int, bit: int) -> None:
    one, count = client(), 0

    def relay(frame: Frame) -> Frame:
        nonlocal count
        count += 1
        if count - 1 != which:
            return frame
        body = bytearray(frame.body)
        at = bit % (8 * len(body))
        body[at // 8] ^= 1 << at % 8
        return Frame(frame.kind, bytes(body))

    with pytest.raises((AuthenticationError, ProtocolError)):
        converse(one, server(), relay)
    assert one.stored is None


def recorded() -> dict[Kind, Frame]:
    frames: dict[Kind, Frame] = {}

    def relay(frame: Frame) -> Frame:
        return frames.setdefault(frame.kind, frame)

    converse(client(), server(), relay)
    return frames


def test_what_a_client_said_is_of_no_use_again() -> None:
    frames, other = recorded(), server()
    other.reply(frames[Kind.HELLO])
    assert other.confirm(frames[Kind.CLIENT_CONFIRM]) is None


def test_what_a_server_said_is_of_no_use_again() -> None:
    frames, one = recorded(), client()
    one.hello()
    one.take(frames[Kind.REPLY])
    with pytest.raises(AuthenticationError):
        one.take(frames[Kind.SERVER_CONFIRM])


# What spake2 must not take: no point, the neutral element, points of small order, our own side's letter, none.
POINTS = [
    (1).to_bytes(32, "little"),
    (0).to_bytes(32, "little"),
    (2).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    b"\xff" * 32,
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("letter", [b"A", b"B", b"S", b"\0"])
def test_elements_that_are_none(letter: bytes, point: bytes) -> None:
    other = server()
    other.reply(Frame(Kind.HELLO, bytes(32) + letter + point))
    assert other.confirm(Frame(Kind.CLIENT_CONFIRM, bytes(32))) is None
    one = client()
    one.hello()
    with pytest.raises(ProtocolError):
        one.take(Frame(Kind.REPLY, letter + point))


@given(st.lists(some_frames(), max_size=4))
def test_a_client_that_is_told_anything(frames: list[Frame]) -> None:
    one = client()
    one.hello()
    said = ""
    try:
        for frame in frames:
            one.take(frame)
    except (AuthenticationError, PermissionDeniedError, ProtocolError) as error:
        said = str(error)
    assert CODE not in said
    assert one.stored is None


@given(some_frames(), some_frames(), some_frames())
def test_a_server_that_is_told_anything(first: Frame, second: Frame, third: Frame) -> None:
    other = server()
    said = ""
    try:
        other.reply(first)
        assert other.confirm(second) is None
    except ProtocolError as error:
        said = str(error)
    assert CODE not in said
    one, other = client(), server()
    confirmation = one.take(other.reply(one.hello()))
    assert confirmation is not None
    assert other.confirm(confirmation) is not None
    with pytest.raises(ProtocolError):
        other.introduced(third)


def introduce(introduction: bytes) -> tuple[str, bytes]:
    """Of a client that knows the code, but introduces itself like that."""
    one, other = client(), server()
    one._introduction = introduction
    return converse(one, other)


def test_a_certificate_that_was_not_announced() -> None:
    with pytest.raises(ProtocolError, match="another certificate"):
        introduce(pack_introduction("x", der(MALLORY)))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.integers(0, 1 << 20), st.integers(1, 255))
@settings(max_examples=100)
def test_a_certificate_that_is_spoilt(at: int, change: int) -> None:
    spoilt = bytearray(der(CLIENT))
    spoilt[at % len(spoilt)] ^= change
    try:
        introduce(pack_introduction("x", bytes(spoilt)))  # where the key is whole, the rest is for the desk to check
    except ProtocolError:
        pass


@given(st.binary(min_size=2, max_size=200))
def test_no_certificate(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        introduce(garbage)


@pytest.mark.parametrize("reason", Reason)
def test_refusals_are_errors_with_words(reason: Reason) -> None:
    kinds = {Reason.WRONG_CODE: AuthenticationError, Reason.MALFORMED: ProtocolError}
    one = client()
    one.hello()
    with pytest.raises(kinds.get(reason, PermissionDeniedError)) as caught:
        one.take(refusal(reason))
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("text", ["48219307", "4821 9307", " 4821-9307\n", "482193", "0000000"])
def test_codes_as_people_write_them(text: str) -> None:
    assert read_code(text) == "".join(filter(str.isdigit, text))


@pytest.mark.parametrize(
    "text", ["", "12345", "123456789", "48219x07", "\uff14\uff18\uff12\uff11\uff19\uff13\uff10\uff17", "-", "+482193"]
)
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(ValueError, match="6 to 8 digits") as caught:
        client(text)
    assert not text or text not in str(caught.value)


def test_nothing_secret_is_shown() -> None:
    one, other = client(), server()
    frames = [one.hello()]
    frames.append(other.reply(frames[0]))
    assert one._keys is None
    confirmation = one.take(frames[1])
    assert one._keys is not None
    assert confirmation is not None
    shown = [repr(one), repr(other), repr(frames), repr(one._secret)]
    try:
        one.take(Frame(Kind.SERVER_CONFIRM, bytes(32)))
    except AuthenticationError as error:
        shown += traceback.format_exception(error)
    for text in shown:
        assert CODE not in text
        assert repr(one._keys[0]) not in text
