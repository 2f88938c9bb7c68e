# SPDX-License-Identifier: Apache-2.0
"""Reading SPIR-V: modules put together word by word, and rubbish."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcflow.backends.base import KernelError
from rpcflow.backends.spirv import Buffer, Module, PushConstant, parse
from rpcflow.protocol.dtype import DataType

U32 = DataType.parse("uint32")


def text(value: str) -> list[int]:
    data = value.encode() + b"\0"
    data += b"\0" * (-len(data) % 4)
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def assemble(instructions: list[tuple[Any, ...]], version: int = 0x10300, bound: int = 100) -> bytes:
    """A module of instructions: each its number, then ids, numbers and texts."""
    words = [0x07230203, version, 0, bound, 0]
    for op, *operands in instructions:
        body: list[int] = []
        for operand in operands:
            body += text(operand) if isinstance(operand, str) else [operand]
        words += [(len(body) + 1) << 16 | op, *body]
    return struct.pack(f"<{len(words)}I", *words)


# Ids of the module below.
VOID, FN, UINT, ARRAY, BLOCK, BLOCK_PTR, UINT_PTR, INT, PUSH, PUSH_PTR, PUSH_UINT = range(1, 12)
ZERO, A, B, P, FILL, COPY, LOAD0, EIGHT, UINT_FN, PUSH_INT, FLOAT, DOUBLE = range(12, 24)


def two_kernels(
    *,
    version: int = 0x10300,
    head: list[tuple[Any, ...]] | None = None,
    more: list[tuple[Any, ...]] | None = None,
    interface: tuple[int, ...] = (),
    members: tuple[int, ...] = (INT, UINT),
    storage: int = 12,
    block: int = 2,
) -> bytes:
    """``fill``: a[0] = n; ``copy``: b[0] = a[0], by a function that it calls."""
    sizes = [(16, FILL, 17, 8, 2, 1), (16, COPY, 17, 4, 1, 1)]
    offsets = [(72, PUSH, i, 35, 4 * i) for i in range(len(members))]
    return assemble(
        [
            (17, 1),
            (10, "SPV_KHR_storage_buffer_storage_class"),
            (14, 0, 1),
            (15, 5, FILL, "fill", *interface),
            (15, 5, COPY, "copy", *interface),
            *(sizes if head is None else head),
            (5, A, "a"),
            (5, P, ""),
            (6, BLOCK, 0, "data"),
            (6, PUSH, 0, "start"),
            (6, PUSH, 1, "n"),
            (71, ARRAY, 6, 4),
            (71, BLOCK, block),
            (72, BLOCK, 0, 35, 0),
            (71, A, 34, 0),
            (71, A, 33, 3),
            (71, B, 34, 0),
            (71, B, 33, 1),
            (71, PUSH, 2),
            *offsets,
            (19, VOID),
            (33, FN, VOID),
            (21, UINT, 32, 0),
            (21, INT, 32, 1),
            (22, FLOAT, 32),
            (33, UINT_FN, UINT),
            (29, ARRAY, UINT),
            (30, BLOCK, ARRAY),
            (32, BLOCK_PTR, storage, BLOCK),
            (32, UINT_PTR, storage, UINT),
            (43, UINT, ZERO, 0),
            (43, UINT, EIGHT, 8),
            *(more or []),
            (30, PUSH, *members),
            (32, PUSH_PTR, 9, PUSH),
            (32, PUSH_UINT, 9, UINT),
            (43, INT, 50, 1),
            (59, BLOCK_PTR, A, storage),
            (59, BLOCK_PTR, B, storage),
            (59, PUSH_PTR, P, 9),
            (54, VOID, FILL, 0, FN),
            (248, 24),
            (65, PUSH_UINT, 25, P, 50),
            (61, UINT, 26, 25),
            (65, UINT_PTR, 27, A, ZERO, ZERO),
            (62, 27, 26),
            (253,),
            (56,),
            (54, VOID, COPY, 0, FN),
            (248, 28),
            (57, UINT, 29, LOAD0),
            (65, UINT_PTR, 30, B, ZERO, ZERO),
            (62, 30, 29),
            (253,),
            (56,),
            (54, UINT, LOAD0, 0, UINT_FN),
            (248, 31),
            (65, UINT_PTR, 32, A, ZERO, ZERO),
            (61, UINT, 33, 32),
            (254, 33),
            (56,),
        ],
        version,
    )


def read(data: bytes) -> Module:
    return parse("some.spv", data)


def test_each_kernel_takes_what_it_uses() -> None:
    module = read(two_kernels())
    assert module.version == (1, 3)
    assert module.capabilities == {1}
    fill, copy = module.entry_points
    assert (fill.name, fill.block, fill.buffers) == ("fill", (8, 2, 1), (Buffer(0, 3, "a", U32),))
    assert fill.push == (
        PushConstant(0, DataType.parse("int32"), "start"),
        PushConstant(4, DataType.parse("uint32"), "n"),
    )
    assert (copy.name, copy.block, copy.push) == ("copy", (4, 1, 1), ())
    assert copy.buffers == (
        Buffer(0, 1, "data", U32),
        Buffer(0, 3, "a", U32),
    )  # in order of binding; unnamed ones by what is in


def test_the_interface_says_it_all() -> None:
    fill, copy = read(two_kernels(version=0x10400, interface=(A, B, P))).entry_points
    assert fill.buffers == copy.buffers
    assert len(copy.push) == 2


def test_old_storage_buffers() -> None:
    fill, _ = read(two_kernels(storage=2, block=3)).entry_points
    assert fill.buffers == (Buffer(0, 3, "a", U32),)
    with pytest.raises(KernelError, match=r"'fill' takes 'a', a uniform buffer, which cannot be passed"):
        read(two_kernels(storage=2))


def test_blocks_by_constants() -> None:
    by_id = [(331, FILL, 38, EIGHT, EIGHT, EIGHT), (331, COPY, 38, EIGHT, EIGHT, EIGHT)]
    assert read(two_kernels(head=by_id)).entry_points[0].block == (8, 8, 8)
    builtin = [(71, 60, 11, 25)]
    composite = [(23, 61, UINT, 3), (51, 61, 60, EIGHT, EIGHT, EIGHT)]
    assert read(two_kernels(head=builtin, more=composite)).entry_points[1].block == (8, 8, 8)


def test_vanished_blocks() -> None:
    for head in ([], [(16, FILL, 17, 8, 0, 1)], [(16, FILL, 17, 8, 0)], [(331, FILL, 38, 80, 80, 80)]):
        with pytest.raises(KernelError, match="block"):
            read(two_kernels(head=head))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ([(23, 70, UINT, 4)], "a vector"),
        ([(28, 70, UINT, EIGHT)], "an array"),
        ([(30, 70, UINT)], "a struct"),
        ([(20, 70)], "bool"),
        ([(21, 70, 24, 0)], "int24"),
        ([(22, 70, 128)], "float128"),
        ([], "no type"),
    ],
)
def test_push_constants_that_cannot_be(declared: list[tuple[Any, ...]], words: str) -> None:
    with pytest.raises(KernelError, match=f"push constant 'n' of the kernel 'fill' is .*{words}"):
        read(two_kernels(more=declared, members=(INT, 70)))


def test_push_constants_that_overlap() -> None:
    with pytest.raises(KernelError, match="overlap"):
        read(two_kernels(more=[(22, DOUBLE, 64)], members=(DOUBLE, UINT)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no SPIR-V"),
        (b"#version 450\n", "no SPIR-V"),
        (two_kernels()[:18], "cut off"),
        (two_kernels()[:-4], "cut off in the middle of a function"),
        (two_kernels()[:-8], "cut off in the middle of the instruction"),
        (two_kernels() + b"\0\0\0\0", "no length"),
        (two_kernels() + b"\0", "cut off"),
        (two_kernels()[:20], "no compute kernel"),
        (b"".join(two_kernels()[i : i + 4][::-1] for i in range(0, 400, 4)), "big-endian"),
        (assemble([], bound=0), "ids"),
        (assemble([], bound=1 << 30), "ids"),
        (assemble([], version=0x20010300), "header"),
        (assemble([(17,)]), "too short"),
        (assemble([(17, 6), (15, 6, 1, "k")]), r"OpenCL's.*backend='opencl'"),
        (assemble([(15, 5, 1, 0x41414141)]), "no end"),
        (assemble([(15, 5, 1, "k")]), "no function"),
        (assemble([(15, 5, 1, "k"), (15, 5, 1, "k")]), "of one name"),
        (assemble([(15, 4, 1, "fragment")]), "no compute kernel"),
        (assemble([(54, 1, 2, 0, 3), (54, 1, 2, 0, 3)]), "within a function"),
        (assemble([(54, 1, 2, 0, 3), (56,)] * 2), "two functions"),
        (assemble([(54, 1, 100, 0, 3)]), "the id 100"),
        (assemble([(74, 1, 2)]), "groups of decorations"),
    ],
)
def test_rubbish(data: bytes, words: str) -> None:
    with pytest.raises(KernelError, match=words) as caught:
        read(data)
    assert "some.spv" in str(caught.value)


def test_what_nobody_passes() -> None:
    image = two_kernels(
        more=[(25, 70, FLOAT, 1, 0, 0, 0, 1, 0), (32, 71, 0, 70), (5, 72, "picture")], interface=(72,), version=0x10600
    )
    at = image.index(struct.pack("<4I", 4 << 16 | 59, BLOCK_PTR, A, 12))
    image = image[:at] + struct.pack("<4I", 4 << 16 | 59, 71, 72, 0) + image[at:]
    with pytest.raises(KernelError, match=r"'fill' takes 'picture', an image, which cannot be passed"):
        read(image)


def test_shared_memory_is_counted() -> None:
    shared = [(28, 70, UINT, EIGHT), (28, 71, 70, EIGHT), (32, 72, 4, 71), (59, 72, 73, 4)]
    fill, _ = read(two_kernels(more=shared, interface=(73,), version=0x10600)).entry_points
    assert fill.shared_nbytes == 4 * 8 * 8
    endless = [(28, 70, UINT, 82)] + [(28, 71 + i, 70 + i, 82) for i in range(9)]
    endless = [(43, UINT, 82, 0xFFFFFFFF), *endless, (32, 80, 4, 79), (59, 80, 81, 4)]
    fill, _ = read(two_kernels(more=endless, interface=(81,), version=0x10600)).entry_points
    assert fill.shared_nbytes > 1 << 60  # and no number without end


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    for prefix in (b"", b"\x03\x02\x23\x07\x00\x03\x01\x00\x00\x00\x00\x00\x64\x00\x00\x00\x00\x00\x00\x00"):
        try:
            read(prefix + data)
        except KernelError:
            pass


_WORD = st.integers(0, 100) | st.integers(0, 0xFFFFFFFF)
_GOOD = two_kernels()


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(_GOOD) // 4 - 1), _WORD), min_size=1, max_size=4))
def test_words_that_were_changed(changes: list[tuple[int, int]]) -> None:
    words = list(struct.unpack(f"<{len(_GOOD) // 4}I", _GOOD))
    for at, word in changes:
        words[at] = word
    try:
        read(struct.pack(f"<{len(words)}I", *words))
    except KernelError:
        pass


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(5, 80) | st.sampled_from([331, 5341]), st.lists(_WORD, max_size=6)), max_size=30))
def test_random_instructions(instructions: list[tuple[int, list[int]]]) -> None:
    entry: list[tuple[Any, ...]] = [(15, 5, 1, "k"), (16, 1, 17, 1, 1, 1)]
    ending: list[tuple[Any, ...]] = [(54, 1, 1, 0, 1), (56,)]
    try:
        read(assemble([*entry, *((op, *operands) for op, operands in instructions), *ending]))
    except KernelError:
        pass
