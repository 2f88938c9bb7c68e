# SPDX-License-Identifier: Apache-2.0
"""What the values of an answer mean to a client; what a stock server may say, too."""

from typing import Any, Final, NamedTuple

from rpcflow.errors import ProtocolError, RemoteError
from rpcflow.protocol.values import ObjectBytes, ObjectText, Pointer, TensorView, TypeIndex, Value


class RemoteHandle(NamedTuple):
    """A result that stays at the server: a function, a module or another object. Whoever keeps it must
    :meth:`ClientMachine.drop` its number exactly once."""

    type_index: int
    number: int


class RemoteTensor(NamedTuple):
    """A tensor result; ``number`` as above."""

    view: TensorView
    number: int


def read_result(values: list[Value]) -> Any:
    """The result of a call by the rules that stock clients read it by.

    Raises:
        ProtocolError: no result at all, or one that is not what its index says.
        RemoteError: a result that the server gave no handle for.
    """
    if len(values) < 1:
        raise ProtocolError("the answer to a call holds no values")
    index = values[0]
    if not isinstance(index, int):
        raise ProtocolError("the answer to a call does not begin with a type index")
    if index == TypeIndex.NONE:
        return None
    if len(values) < 2:
        raise ProtocolError(f"the answer to a call has the type index {index} and no value")
    value = values[1]
    if index in (TypeIndex.TENSOR, TypeIndex.DLTENSOR):
        if len(values) == 3 and type(value) is TensorView and type(values[2]) is Pointer:
            return RemoteTensor(value, int(values[2]))
        if index == TypeIndex.DLTENSOR and len(values) == 2 and type(value) is TensorView:
            # Stock servers answer so where a function returns a tensor that it was given.
            text = "the function returned one of its tensor arguments, which the server has no handle for"
            raise RemoteError(text, remote_message=text, remote_type=None, remote_traceback=None)
        raise ProtocolError("the server returned a tensor without a handle to free it by")
    if index in _TEXTS:
        return _as_plain(value)
    if index >= TypeIndex.OBJECT:
        if type(value) is not Pointer:
            raise ProtocolError(f"a result of type index {index} comes as a handle")
        return RemoteHandle(int(index), int(value))
    return _as_plain(value)


_TEXTS: Final = frozenset({TypeIndex.SMALL_STR, TypeIndex.SMALL_BYTES, TypeIndex.STR, TypeIndex.BYTES})


def _as_plain(value: Value) -> Any:
    if type(value) is ObjectText:
        return str(value)
    return bytes(value) if type(value) is ObjectBytes else value


def read_none(values: list[Value]) -> None:
    """It is done; that is all."""
    return None


def swallow(values: list[Value]) -> None:
    """Nobody waits for it."""
    return None


def read_one(values: list[Value]) -> Any:
    """The value in the answer to a system call.

    Raises:
        ProtocolError: there are none, or several.
    """
    if len(values) != 1:
        raise ProtocolError(f"the answer to a system call holds {len(values)} values, not one")
    return _as_plain(values[0])


def read_pointer(values: list[Value]) -> int:
    """The number in the answer to a look-up or an allocation.

    Raises:
        ProtocolError: there is none.
    """
    if len(values) != 1 or type(values[0]) is not Pointer:
        raise ProtocolError("the answer to a system call does not hold the handle it should")
    return int(values[0])
