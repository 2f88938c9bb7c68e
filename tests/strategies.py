# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for all that travels, shared by the tests and by fuzz/."""

from typing import Any

from hypothesis import strategies as st

from rpcflow.protocol.dtype import DataType, DTypeCode
from rpcflow.protocol.handshake import KeyText, Side
from rpcflow.protocol.packets import (
    CallFunc,
    Code,
    CopyAck,
    CopyFromRemote,
    CopyToRemote,
    ExceptionPacket,
    InitServer,
    Return,
    Shutdown,
    SysCall,
)
from rpcflow.protocol.values import (
    I64_MAX,
    I64_MIN,
    Device,
    FunctionRef,
    ModuleRef,
    ObjectBytes,
    ObjectRef,
    ObjectText,
    Pointer,
    TensorView,
)

U64 = st.integers(0, (1 << 64) - 1)
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
I64 = st.integers(I64_MIN, I64_MAX)
OUTER = st.one_of(
    st.sampled_from([11, 12, 64, 65, 66, 115, 200]),
    st.integers(64, (1 << 31) - 1).filter(lambda index: index not in (68, 73)),  # function and module
)


def _with_outer(made: Any, outer: int) -> Any:
    made.outer = outer
    return made


dtypes = st.builds(DataType, st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535))
"""Any that the wire can carry."""

_WIDTHS = {code: int(code.name[5]) for code in DTypeCode if code.name[5:6].isdecimal()}
named_dtypes = st.one_of(
    st.builds(
        lambda item, lanes: DataType(*item, lanes),
        st.sampled_from(sorted(_WIDTHS.items())),
        st.integers(1, 65535),
    ),
    st.builds(
        DataType,
        st.sampled_from([code for code in DTypeCode if code not in _WIDTHS]),
        st.integers(1, 255),
        st.integers(1, 65535),
    ),
)
"""Those that have a name."""

devices = st.builds(Device, I32, I32)


def tensors(**fixed: Any) -> st.SearchStrategy[TensorView]:
    """Tensors that can be: at most 2**63 - 1 bits."""
    fields: dict[str, Any] = {
        "data": U64,
        "device": devices,
        "dtype": dtypes,
        "shape": st.lists(st.one_of(st.integers(0, 5), I64.filter(lambda n: n >= 0)), max_size=6).map(tuple),
        "byte_offset": U64,
    } | fixed

    def possible(view: TensorView) -> TensorView:
        bits = max(view.dtype.itembits, 1)
        shape: list[int] = []
        for extent in view.shape:
            if bits * extent <= I64_MAX:
                bits *= extent
                shape.append(extent)
        return view._replace(shape=tuple(shape))

    return st.builds(TensorView, **fields).map(possible)


object_texts = st.builds(_with_outer, st.text(max_size=40).map(ObjectText), OUTER)
object_bytes = st.builds(_with_outer, st.binary(max_size=40).map(ObjectBytes), OUTER)
object_refs = st.one_of(U64.map(ObjectRef), st.builds(_with_outer, U64.map(ObjectRef), OUTER))

value_kinds: dict[str, st.SearchStrategy[Any]] = {
    "None": st.none(),
    "int": I64,
    "bool": st.booleans(),
    "float": st.floats(),
    "Pointer": U64.map(Pointer),
    "DataType": dtypes,
    "Device": devices,
    "TensorView": tensors(),
    "str": st.text(max_size=40),
    "bytes": st.binary(max_size=40),
    "ObjectText": object_texts,
    "ObjectBytes": object_bytes,
    "FunctionRef": U64.map(FunctionRef),
    "ModuleRef": U64.map(ModuleRef),
    "ObjectRef": object_refs,
}
values = st.one_of(*value_kinds.values())
sequences = st.lists(values, max_size=8)

payloads = st.binary(max_size=200)
to_server: st.SearchStrategy[tuple[Any, bytes]] = st.one_of(
    st.just((Shutdown(), b"")),
    st.builds(lambda *a: (InitServer(*a), b""), st.text(max_size=10), sequences),
    st.builds(lambda *a: (CallFunc(*a), b""), U64, sequences),
    st.builds(lambda *a: (CopyFromRemote(*a), b""), tensors(), U64),
    st.builds(lambda t, p: (CopyToRemote(t, len(p)), p), tensors(), payloads),
    st.builds(
        lambda *a: (SysCall(*a), b""),
        st.sampled_from([code for code in Code if code >= Code.GET_GLOBAL_FUNC]),
        sequences,
    ),
)
"""Packets of a client, each with its payload."""
to_client: st.SearchStrategy[tuple[Any, bytes]] = st.one_of(
    st.just((Shutdown(), b"")),
    sequences.map(lambda v: (Return(v), b"")),
    st.text(max_size=60).map(lambda m: (ExceptionPacket(m), b"")),
    payloads.map(lambda p: (CopyAck(len(p)), p)),
)
"""Packets of a server, each with its payload."""

_NO_SPACE = st.characters(exclude_categories=["Cs", "Z", "Cc"])
key_texts = st.builds(
    KeyText,
    st.sampled_from(Side),
    st.text(_NO_SPACE, max_size=20).filter(lambda key: key.split() == ([key] if key else [])),
    st.none() | st.floats(0, 1e12, exclude_min=True),
)

json_messages: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | I64 | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equality that also holds types, outer indices and the bits of floats to be the same."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex()  # NaN is itself here
    if isinstance(a, ObjectText | ObjectBytes | ObjectRef) and a.outer != b.outer:
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
