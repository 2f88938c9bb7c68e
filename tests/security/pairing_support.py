# SPDX-License-Identifier: Apache-2.0
"""Certificates, a desk over memory channels, and a clock that only tests move."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
from anyio.abc import ByteStream
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from rpcflow.errors import ConnectionLostError, RPCError
from rpcflow.protocol.values import FilePayload, Part
from rpcflow.security.pairing_client import Paired, pair
from rpcflow.security.pairing_desk import PairingDesk
from rpcflow.security.pins import pin_of
from rpcflow.transports.memory import MemoryChannel, channel_pair


@functools.cache
def certificate(name: str, authority: bool | None = False) -> tuple[bytes, bytes]:
    """A self-signed certificate (DER), and a PEM with its key. ``authority``: None says nothing of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(subject, subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    made = builder.sign(key, SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.DER), private + made.public_bytes(Encoding.PEM)


SERVER, CLIENT, MALLORY = "server", "client", "mallory"


def der(name: str) -> bytes:
    return certificate(name)[0]


def pin(name: str) -> str:
    return pin_of(der(name))


def pem(name: str, folder: Path) -> Path:
    path = folder / f"{name}.pem"
    path.write_bytes(certificate(name)[1])
    return path


class Clock:
    """Time passes only when somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        await anyio.lowlevel.checkpoint()


@attrs.define
class Clients:
    """What a desk keeps."""

    kept: dict[str, bytes] = attrs.field(factory=dict)
    error: Exception | None = None

    def add(self, name: str, certificate: bytes) -> str:
        if self.error is not None:
            raise self.error
        while name in self.kept:
            name += "x"
        self.kept[name] = certificate
        return name


class Pairing:
    """A desk, what it keeps, and its clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clients = Clients()
        self.desk = PairingDesk(pin(SERVER), self.clients, clock=self.clock, sleep=self.clock.sleep)

    @property
    def wrong(self) -> str:
        """A code that is not the desk's."""
        return f"{(int(self.desk.code) + 1) % 10**8:08d}"

    async def attempt(self, code: str | None = None, **changes: Any) -> Paired:
        """One client, from first to last."""
        ours, theirs = channel_pair()
        result: Paired | RPCError
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.desk.serve, theirs, "somebody")
            try:
                result = await client(ours, code or self.desk.code, **changes)
            except RPCError as error:  # not in a group
                result = error
            finally:
                ours.close()
        if isinstance(result, RPCError):
            raise result
        return result


async def client(channel: Any, code: str, server_pin: str | None = None, name: str = "laptop") -> Paired:
    return await pair(channel, code, server_pin or pin(SERVER), der(CLIENT), name)


class Tapped:
    """A channel, and what went over it: of this end."""

    def __init__(self, channel: MemoryChannel) -> None:
        self._channel = channel
        self.sent = b""
        self.received = b""

    async def send(self, parts: Sequence[Part]) -> None:
        for part in parts:
            assert isinstance(part, bytes)
            self.sent += part
        await self._channel.send(parts)

    async def receive_into(self, buffer: memoryview) -> int:
        count = await self._channel.receive_into(buffer)
        self.received += buffer[:count]
        return count

    def close(self) -> None:
        self._channel.close()


class StreamChannel:
    """A stream as a channel. Whoever opened the stream closes it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def send(self, parts: Sequence[Part]) -> None:
        try:
            await self._stream.send(b"".join(part for part in parts if not isinstance(part, FilePayload)))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionLostError(str(error)) from error

    async def receive_into(self, buffer: memoryview) -> int:
        try:
            data = await self._stream.receive(len(buffer))
        except anyio.EndOfStream:
            return 0
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionLostError(str(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass
