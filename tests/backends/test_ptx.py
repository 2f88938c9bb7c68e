# SPDX-License-Identifier: Apache-2.0
"""What kernels a file has: PTX and symbol tables, right ones and rubbish."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow.backends import KernelError
from rpcflow.backends.elf import amd_kernels, cuda_kernels
from rpcflow.backends.kernels import Param
from rpcflow.backends.ptx import UNMARKED, aliases, entries, plain_name
from rpcflow.protocol.dtype import DataType

from .fakes.gpu import elf

TEXT = """
.version 9.5
.target sm_120 // .entry not_this( .param .u64 x ) { }
/* nor .entry this() {} */
.file 1 ".entry nor_this() {"
.visible .entry vadd(
	.param .u64 .ptr .global .align 4 vadd_param_0, /* .param .u32 no, */
	.param .u64 vadd_param_1,
	.param .u32 n,
	.param.f32 alpha
)
.maxntid 64, 1, 1
.reqntid 8, 4
.pragma "nounroll {";
{
	call (r), f, (.param .u32);
	ret;
}
.extern .entry declared(.param .u64 x)
 ;
.weak .entry _Z4typed(.param .s8 a, .param .b16 b, .param .f64 c, .param .u8 d, .param .f16 e) { }
.entry %odd$name(.param .align 4 .b8 s[12], .param .u32 n) { }
.entry none
{ }
.entry surface(.param .texref t) { }
"""


def test_entries() -> None:
    found = entries("k.ptx", TEXT)
    assert list(found) == ["vadd", "_Z4typed", "%odd$name", "none", "surface"]
    vadd = found["vadd"]
    assert vadd.params == (
        Param(None, "vadd_param_0"),
        Param(None, "vadd_param_1", note=UNMARKED),
        Param(DataType.parse("uint32"), "n", wraps=True),
        Param(DataType.parse("float32"), "alpha"),
    )
    assert vadd.sizes == (8, 8, 4, 4)
    assert vadd.block == (8, 4, 1)
    assert not vadd.trouble
    typed = found["_Z4typed"]
    assert [str(param.dtype) for param in typed.params or ()] == ["int8", "uint16", "float64", "uint8", "float16"]
    assert typed.sizes == (1, 2, 8, 1, 2)
    assert typed.block is None
    assert "struct or array of 12 bytes" in found["%odd$name"].trouble
    assert found["%odd$name"].sizes == (12, 4)
    assert found["none"].params == ()
    assert ".texref t" in found["surface"].trouble


def test_what_is_said_of_parameters() -> None:
    params = entries("k.ptx", TEXT)["vadd"].params
    assert params is not None
    assert "signature" in str(params[1])
    assert str(params[2]) == "n: int32 or uint32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".entry f(.param .u64 x", "have no end"),
        (".entry f(.param .u64 x)", "has no body"),
        (".entry f", "has no body"),
        (".entry f(" + "," * 5000 + "){}", "more than 4096 parameters"),
    ],
)
def test_heads_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        entries("k.ptx", text)


@pytest.mark.parametrize("part", ["", " ", ".param", ".param .u64", "[3]", ".param .b8 x[", ".param .b8 x[-1]", "x]"])
def test_parameters_that_are_none(part: str) -> None:
    assert entries("k.ptx", f".entry f(.param .u32 a, {part}) {{}}")["f"].trouble


TOKENS = '.entry|f|(|)|{|}|;|,|.param|.u64|.b8|[|]|9|/*|*/|//|"|.ptr|.reqntid|\\|$|%|_Z1f| |\n'
PIECES = st.sampled_from(TOKENS.split("|"))


@given(st.one_of(st.text(), st.lists(PIECES).map(" ".join), st.lists(PIECES).map("".join)))
def test_rubbish(text: str) -> None:
    try:
        found = entries("k.ptx", text)
    except KernelError:
        return
    for name, entry in found.items():
        assert name == entry.name
        assert entry.params is not None
        assert entry.sizes is not None
        assert len(entry.params) == len(entry.sizes)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_$]{0,20}", fullmatch=True)
KINDS = {"f32": 4, "f64": 8, "u64": 8, "u64 .ptr .align 1": 8, "s32": 4, "u32": 4, "b16": 2, "u8": 1}


@given(st.dictionaries(NAMES, st.lists(st.sampled_from(sorted(KINDS)), max_size=9), max_size=5))
def test_round_trip(kernels: dict[str, list[str]]) -> None:
    text = ""
    for name, kinds in kernels.items():
        params = ", ".join(f".param .{kind} {name}_{i}" for i, kind in enumerate(kinds))
        text += f".visible .entry {name}({params}) {{ ret; }}\n"
    found = entries("k.ptx", text)
    assert {name: list(entry.sizes or ()) for name, entry in found.items()} == {
        name: [KINDS[kind] for kind in kinds] for name, kinds in kernels.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "/*" * 300_000,
        '"' * 300_000,
        ".entry " * 100_000,
        ".entry f; " * 60_000,
        ".entry f()" + " " * 500_000,
        ".entry f(" + "a" * 500_000 + "){}",
        ".entry f()" + ".reqntid 1 " * 50_000 + "{}",
        "// " * 200_000,
    ],
)
def test_long_rubbish_takes_no_time(text: str) -> None:
    began = time.perf_counter()
    try:
        entries("k.ptx", text)
    except KernelError:
        pass
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("mangled", "plain"),
    [
        ("_Z4vaddPfS_i", "vadd"),
        ("_ZN3foo1tIfEEvPT_", "t"),
        ("_ZL5thirdPf", "third"),
        ("_ZN12_GLOBAL__N_14thisEPf", "this"),
        ("vadd", None),
        ("_Z", None),
        ("_Z4", None),
        ("_Z99x", None),
        ("_Z0", None),
        ("_ZNK", None),
    ],
)
def test_plain_names(mangled: str, plain: str | None) -> None:
    assert plain_name(mangled) == plain


@given(st.text())
def test_plain_names_of_rubbish(text: str) -> None:
    plain_name("_Z" + text)


def test_aliases() -> None:
    names = dict.fromkeys(("_Z1aPf", "_Z1bPf", "_Z1bPd", "c", "_Z1cv"))
    assert aliases(names) == {"a": "_Z1aPf"}  # b is two, and c is another


# ------------------------------------------------------------------------------------------------ symbol tables

SYMBOLS = [
    ("vadd", 0x12, 0x10),
    ("helper", 0x12, 0),
    ("hidden", 0x02, 0x10),
    ("scale", 0x22, 0x10),
    ("vadd", 0x12, 0x10),
    ("mul.kd", 0x11, 3),
    ("mul", 0x12, 3),
    (".kd", 0x11, 3),
]


def test_symbol_tables() -> None:
    data = elf(SYMBOLS)
    assert cuda_kernels("k.cubin", data) == ["vadd", "scale"]
    assert amd_kernels("k.hsaco", data) == ["mul"]


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=16))
def test_damaged_symbol_tables(at: int, garbage: bytes) -> None:
    data = bytearray(elf(SYMBOLS))
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    for read in (cuda_kernels, amd_kernels):
        try:
            read("k", bytes(data))
        except KernelError:
            pass


@given(st.integers(0, 10_000))
def test_truncated_symbol_tables(length: int) -> None:
    data = elf(SYMBOLS)
    with pytest.raises(KernelError):
        cuda_kernels("k.cubin", data[: length % len(data)])


@given(st.binary(max_size=200))
def test_what_is_no_symbol_table(data: bytes) -> None:
    for begin in (b"", b"\x7fELF", b"\x7fELF\x02\x01"):
        try:
            assert not cuda_kernels("k", begin + data)
        except KernelError:
            pass
