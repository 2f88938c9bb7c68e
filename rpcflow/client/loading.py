# SPDX-License-Identifier: Apache-2.0
"""``load_module`` for a device that cannot link: linked here, into memory of the device, and handed to it."""

from typing import Final

import numpy as np

from rpcflow.errors import FunctionNotFoundError, ProtocolError, RemoteError
from rpcflow.minrpc.files import Files
from rpcflow.minrpc.loading import Image, Linker
from rpcflow.protocol.values import Device
from rpcflow.server.linking import LinkError
from rpcflow.session.results import RemoteHandle

from .aside import Program, Work
from .core import Operation, SessionCore
from .operations import empty, write

_CPU: Final = Device(1, 0)
_TRIES: Final = 4
"""Blocks asked for: a module's size may depend on its place, as calls that reach far take more."""


def load(core: SessionCore, name: str, data: bytes) -> Operation[int]:
    """The handle of a module, made of an object or an archive of objects."""
    with Files() as files:
        linker = yield from _prepared(core, name, data, files)
        linker.check_build((yield from _build_id(core)))
        image = yield from _linked(linker, linker.guess)
        for _ in range(_TRIES):
            nbytes = len(image.data)
            try:
                view = yield from empty(core, _CPU, nbytes, "uint8", None)
            except RemoteError as error:
                raise LinkError(
                    f"{name} does not fit: its image takes {nbytes} bytes; the device says: {error.remote_message}",
                    nbytes=nbytes,
                ) from error
            ours = True
            try:
                image = yield from _linked(linker, view.data)
                if len(image.data) > nbytes:
                    continue
                yield from write(core, view, np.frombuffer(image.data.ljust(nbytes, b"\0"), np.uint8))
                value = yield from core.call_builtin("rpcflow.minrpc.load", [view, image.table])
                if type(value) is not RemoteHandle:
                    raise ProtocolError(f"load answered with a {type(value).__name__}, not with a module")
                ours = False  # the module has taken it over
                return value.number
            finally:
                if ours:
                    core.machine.drop_data(_CPU, view.data)
        raise LinkError(f"{name} needs another size at each place: it cannot be linked")


def linked(core: SessionCore, name: str, data: bytes) -> Operation[bytearray]:
    """A module as the device would get it, but at some address of its free memory: an ELF file."""
    with Files() as files:
        linker = yield from _prepared(core, name, data, files)
        yield from _linked(linker, linker.guess)
        return bytearray(linker.output())


def _prepared(core: SessionCore, name: str, data: bytes, files: Files) -> Operation[Linker]:
    if core.firmware is None:
        raise LinkError(
            f"{name} is to be linked with what the device runs: name the ELF file of its firmware, by "
            "connect(..., firmware='fw.elf') or serial:///dev/...?firmware=fw.elf"
        )
    linker = Linker(name, data, core.firmware, files)
    yield Work(linker.prepare)
    return linker


def _build_id(core: SessionCore) -> Operation[bytes]:
    try:
        yield from core.builtin("rpcflow.minrpc.load")
    except FunctionNotFoundError as error:
        raise LinkError(
            "the device loads no modules while it runs: it has no function 'rpcflow.minrpc.load', which the C runtime "
            "has with RPCFLOW_MAX_MODULES above 0"
        ) from error
    try:
        value = yield from core.call_builtin("rpcflow.minrpc.build_id", [])
    except FunctionNotFoundError:
        return b""
    if not isinstance(value, bytes | bytearray):
        raise ProtocolError(f"the device's build id is a {type(value).__name__}")
    return bytes(value)


def _linked(linker: Linker, address: int) -> Operation[Image]:
    command = linker.command(address)
    status, printed = yield Program(command, linker.files)
    if status:
        raise linker.failure(command, printed)
    image: Image = yield Work(lambda: linker.image(address))
    return image
