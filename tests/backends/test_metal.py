# SPDX-License-Identifier: Apache-2.0
"""Metal beyond what all backends do alike: what a parameter is, options, errors that come late, the timer; and where
there is none. Most of it needs the fake, and says so."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcflow import sync
from rpcflow.backends.metal import MetalBackend
from rpcflow.backends.metal_source import Declared, declarations
from rpcflow.errors import RemoteError

from .fakes import metal
from .functions import offer

VADD = """
kernel void vadd(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]],
                 device float *c [[buffer(2)]], constant int &n [[buffer(3)]]) {}
"""
ONE = Declared("device", True)


@pytest.fixture(scope="module")
def server() -> Iterator[sync.Server]:
    with sync.Server("127.0.0.1", 0, silent=True, server_init_callback=offer(metal.install)) as running:
        yield running


@pytest.fixture
def session(server: sync.Server) -> Iterator[sync.RPCSession]:
    with sync.connect("127.0.0.1", server.port) as made:
        yield made


def load(session: sync.RPCSession, source: str, **options: Any) -> Any:
    session.upload(source.encode(), "k.metal")
    return session.load_module("k.metal", **options)


# ------------------------------------------------------------------------------------------------ parameters


def test_scalars_of_every_type(session: sync.RPCSession) -> None:
    values = {"char": -1, "uchar": 255, "short": -2, "ushort": 65535, "int": -3, "uint": 4, "long": -5, "ulong": 6}
    values |= {"half": 1.5, "float": 2.5, "bool": True}
    parameters = "".join(f", constant {kind} &v{i} [[buffer({i})]]" for i, kind in enumerate(values, start=1))
    source = f"kernel void all_scalars(device uchar *out [[buffer(0)]]{parameters}) {{}}"
    out = session.metal(0).tensor(np.zeros(64, "uint8"))
    load(session, source)["all_scalars"](out, *values.values(), grid=1, block=1)
    dtypes = "int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 bool"
    expected = b"".join(np.array(v, t).tobytes() for v, t in zip(values.values(), dtypes.split(), strict=True))
    assert out.numpy().tobytes()[: len(expected)] == expected


def test_local_memory(session: sync.RPCSession) -> None:
    source = "kernel void with_local(device long *x [[buffer(0)]], threadgroup float *t [[threadgroup(0)]]) {}"
    kernel = load(session, source)["with_local"]
    x = session.metal(0).tensor(np.zeros(1, "int64"))
    kernel(x, 100, grid=1, block=32)
    assert x.numpy()[0] == 112  # a multiple of 16
    for nbytes in (0, -16, 1 << 20):
        with pytest.raises(RemoteError, match="local memory"):
            kernel(x, nbytes, grid=1, block=32)


@pytest.mark.parametrize(
    ("parameter", "given", "value"),
    [
        ("constant int *v [[buffer(1)]]", None, "tensor"),
        ("const device int *v [[buffer(1)]]", None, "tensor"),
        ("device const int &v [[buffer(1)]]", None, "tensor"),
        ("constant int &v [[buffer(1)]]", None, "scalar"),
        ("constant int& v[[buffer( 1 )]]", None, "scalar"),
        ("constant int &v [[buffer(1)]]", "int32*", "tensor"),
        ("constant int *v [[buffer(1)]]", "int32", "scalar"),
        ("MACRO", "int32", "scalar"),
        ("MACRO", "int32*", "tensor"),
    ],
)
def test_tensor_or_scalar(session: sync.RPCSession, parameter: str, given: str | None, value: str) -> None:
    macro = "#define MACRO constant int &v [[buffer(1)]]\n"
    source = f"{macro}kernel void fill(device int *x [[buffer(0)]], {parameter}) {{}}"
    signature = {"fill": f"int32*, {given}"} if given else None
    kernel = load(session, source, signature=signature)["fill"]
    device = session.metal(0)
    x = device.tensor(np.zeros(1, "int32"))
    kernel(x, 7 if value == "scalar" else device.tensor(np.array([7], "int32")), grid=1, block=1)
    assert x.numpy()[0] == 7


@pytest.mark.parametrize(
    ("parameters", "signature", "words"),
    [
        ("device int *x [[buffer(0)]], MACRO", None, "does not show.*signature"),
        ("device int *x [[buffer(0)]], constant S &v [[buffer(1)]]", None, "no scalar"),
        ("texture2d<float> x [[texture(0)]]", None, "neither a buffer nor a scalar"),
        ("device int *x [[buffer(0)]]", "int32*, int32", "has 2 parameters; it takes 1"),
        ("device int *x [[buffer(0)]]", "int32", "written to"),
        ("device int *x [[buffer(0)]], constant int &v [[buffer(1)]]", "int32*, int64", "4 bytes, no int64"),
        ("device int *x [[buffer(0)]], constant int &v [[buffer(1)]]", "int32*, float64", "Metal has no float64"),
        ("device int *x [[buffer(0)]], constant int &v [[buffer(1)]]", "int32*, local", "is a buffer"),
        ("threadgroup int *x [[threadgroup(0)]]", "int32*", "is local memory"),
    ],
)
def test_parameters_that_cannot_be(
    session: sync.RPCSession, parameters: str, signature: str | None, words: str
) -> None:
    source = f"#define MACRO constant int &v [[buffer(1)]]\nkernel void fill({parameters}) {{}}"
    with pytest.raises(RemoteError, match=words) as caught:
        load(session, source, signature={"fill": signature} if signature else None)
    assert caught.value.remote_type == "KernelError"


def test_views_that_are_not_aligned(session: sync.RPCSession) -> None:
    vadd = load(session, VADD)["vadd"]
    x = session.metal(0).tensor(np.zeros(256, "uint8"))
    with pytest.raises(RemoteError, match=r"begins 2 bytes into its memory.*multiples of 4"):
        vadd(x.view((64,), byte_offset=2), x, x, 1, grid=1, block=1)
    with pytest.raises(RemoteError, match="no bytes"):
        vadd(x.view((0,), byte_offset=256), x, x, 1, grid=1, block=1)
    session.metal(0).sync()


# ------------------------------------------------------------------------------------------------ compiling


def test_options(session: sync.RPCSession) -> None:
    source = VADD.replace("{}", "{ undeclared_thing; }")
    options = ["-Dundeclared_thing=n", "-DUNUSED", "-fno-fast-math"]
    assert load(session, source, options=options)["vadd"]
    assert load(session, source, options=["-Dundeclared_thing"])["vadd"]
    for option in ("-O3", "-D", "--help"):
        with pytest.raises(RemoteError, match=r"KernelError.*-DNAME=VALUE"):
            load(session, source, options=[option])


def test_what_the_compiler_says(session: sync.RPCSession) -> None:
    with pytest.raises(RemoteError, match=r"k\.metal does not compile:\nprogram_source:1:1: error: .*'nosuch'"):
        load(session, "kernel void nosuch(device int *x [[buffer(0)]]) {}")
    with pytest.raises(RemoteError, match="'too_large' cannot be made ready:\nCompute function exceeds"):
        load(session, "kernel void too_large(device int *x [[buffer(0)]]) {}")


def test_what_is_no_kernel_is_left_out(session: sync.RPCSession) -> None:
    vertex = "vertex float4 corner(uint i [[vertex_id]]) { return 0; }"
    with pytest.raises(AttributeError):
        load(session, VADD + vertex)["corner"]
    with pytest.raises(RemoteError, match="holds no kernels"):
        load(session, vertex)


def test_another_device(session: sync.RPCSession) -> None:
    """Compiled for it when it is first used; the second fake's reflection is that of older systems."""
    device = session.metal(1)
    assert (session.metal(0).device_name, device.device_name) == ("Fake M1", "Fake M2")  # the default one is first
    vadd = load(session, VADD)["vadd"]
    x = device.tensor(np.ones(10, "float32"))
    for _ in range(2):
        vadd(x, x, x, 10, grid=1, block=64)
    assert np.array_equal(x.numpy(), np.full(10, 4))
    there = x.copyto(session.metal(0))
    assert np.array_equal(there.numpy(), np.full(10, 4))


def test_reflection_of_older_systems() -> None:
    from rpcflow.backends.metal_kernels import slots

    bindings = metal.compiled(VADD, metal.CompileOptions())["vadd"].bindings
    assert slots("vadd", metal.OldReflection(bindings)) == slots("vadd", metal.Reflection(bindings))


# ------------------------------------------------------------------------------------------------ running


def test_what_goes_wrong_is_told_at_the_next_wait(session: sync.RPCSession) -> None:
    device = session.metal(0)
    fault = load(session, "kernel void fault(device int *x [[buffer(0)]]) {}")["fault"]
    x = device.tensor(np.zeros(4, "int32"))
    for wait in (device.sync, x.numpy, lambda: x.copyfrom(np.zeros(4, "int32"))):
        fault(x, grid=1, block=1)
        with pytest.raises(RemoteError, match=r"metal\(0\): Caused GPU Address Fault") as caught:
            wait()
        assert caught.value.remote_type == "BackendError"
        wait()  # told once
    stream = device.create_stream()
    device.set_stream(stream)
    fault(x, grid=1, block=1)
    device.set_stream(0)
    device.sync()
    with pytest.raises(RemoteError, match="Address Fault"):
        device.sync(stream)


def test_more_launches_than_fit_into_a_queue(session: sync.RPCSession) -> None:
    vadd = load(session, VADD)["vadd"]
    device = session.metal(0)
    one, total = device.tensor(np.ones(10, "float32")), device.tensor(np.zeros(10, "float32"))
    for _ in range(1000):
        vadd(one, total, total, 10, grid=1, block=64)
    assert np.array_equal(total.numpy(), np.full(10, 1000))


def test_time_evaluator(session: sync.RPCSession) -> None:
    """The fake's command buffers begin a millisecond after each other and take half of it."""
    module = load(session, VADD)
    device = session.metal(0)
    x = device.tensor(np.zeros(10, "float32"))
    result = module.time_evaluator("vadd", device, number=100, repeat=3)(x, x, x, 10, grid=1, block=64)
    assert result.results == pytest.approx([0.5e-3] * 3)


def test_exceptions_of_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a command: the encoder has to be ended all the same, or the process would be."""

    def refuse(*args: Any) -> None:
        raise metal.Error("NSInvalidArgumentException -  no")

    with metal_installed(), sync.LocalSession() as session:
        vadd = load(session, VADD)["vadd"]
        x = session.metal(0).tensor(np.ones(64, "float32"))
        with monkeypatch.context() as patch:
            patch.setattr(metal.Encoder, "dispatchThreadgroups_threadsPerThreadgroup_", refuse)
            with pytest.raises(RemoteError, match=r"metal\(0\): NSInvalidArgumentException - no") as caught:
                vadd(x, x, x, 64, grid=1, block=64)
            assert caught.value.remote_type == "BackendError"
            patch.setattr(metal.Encoder, "copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_", refuse)
            with pytest.raises(RemoteError, match="NSInvalidArgumentException"):
                x.copyto(session.metal(0))
        vadd(x, x, x, 64, grid=1, block=64)
        assert np.array_equal(x.numpy(), np.full(64, 2))


@pytest.mark.parametrize("name", ["newCommandQueue", "commandBuffer"])
def test_metal_gives_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner = metal.Device if name == "newCommandQueue" else metal.Queue
    monkeypatch.setattr(owner, name, lambda self: None)
    with metal_installed(), sync.LocalSession() as session, pytest.raises(RemoteError, match=r"metal\(0\) has no more"):
        x = session.metal(0).tensor(np.ones(64))
        x.copyto(session.metal(0))


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with metal_installed():
        monkeypatch.setattr(sys.modules["Metal"], "MTLCreateSystemDefaultDevice", lambda: None)
        monkeypatch.setattr(sys.modules["Metal"], "MTLCopyAllDevices", lambda: None)
        assert MetalBackend().absence() == "no metal device was found"


class metal_installed:
    """The fake, in this process, for the time being."""

    def __enter__(self) -> None:
        metal.install()

    def __exit__(self, *_: object) -> None:
        del sys.modules["Metal"], sys.modules["objc"]


def test_versions() -> None:
    backend = MetalBackend()
    with metal_installed():
        assert backend.absence() is None
        assert backend.version().startswith("pyobjc-framework-Metal")
        assert backend.unified


@pytest.mark.skipif(sys.platform == "darwin", reason="there is Metal here")
def test_not_on_this_system() -> None:
    with sync.Server("127.0.0.1", 0, silent=True) as server, sync.connect("127.0.0.1", server.port) as session:
        assert not session.metal(0).exist
        words = r"no metal\(0\) here: Metal is for macOS, and this is linux; there: pip install 'rpcflow\[metal\]'"
        with pytest.raises(RemoteError, match=words):
            session.metal(0).empty(3)
        with pytest.raises(RemoteError, match="Metal is for macOS"):
            load(session, VADD)
    command = [sys.executable, "-m", "rpcflow", "doctor"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False).stdout
    assert "Metal is for macOS" in said


# ------------------------------------------------------------------------------------------------ declarations


def test_declarations() -> None:
    source = """
    // kernel void no(device int *x [[buffer(0)]])
    /* kernel void neither(device int *x) */
    template <typename T> T kernel_helper(T x) { return x; }
    kernel void first(device const float *a [[buffer(0)]], constant int &n [[ buffer(1) ]], /* and, */
                      threadgroup float *t [[threadgroup(0)]], uint2 at [[thread_position_in_grid]],
                      constant array<float, 3> *three, device float (&x)[4], constant float many[3] [[buffer(7)]]) {
        int kernel_size = 3; a / 2; f(1, 2);
    }
    [[kernel]] void second() {}
    kernel [[max_total_threads_per_threadgroup(64)]] void third(const constant uint& n [[buffer(0)]]) {}
    """
    found = declarations(source)
    assert set(found) == {"first", "second", "third"}
    first = found["first"]
    assert first["a"] == ONE
    assert first["n"] == Declared("constant", False)
    assert first["t"] == Declared("threadgroup", True)
    assert first["at"] == Declared("", False)
    assert first["three"] == Declared("constant", True)
    assert first["many"] == Declared("constant", True)
    assert found["second"] == {}
    assert found["third"] == {"n": Declared("constant", False)}


WORDS = st.sampled_from(
    re.findall(r"\S+|\n", "kernel void f x ( ) [[ ]] [ ] { } < > , * & // /* */ / = ; device constant \n")
)


@given(st.one_of(st.text(), st.lists(WORDS, max_size=80).map(" ".join)))
def test_rubbish(source: str) -> None:
    for parameters in declarations(source).values():
        assert all(isinstance(declared, Declared) for declared in parameters.values())


@pytest.mark.parametrize("piece", ["/*", "[[", "kernel ", "kernel f(", "kernel(", "(", "//", "kernel f(a,", "]]", "<"])
def test_much_rubbish(piece: str) -> None:
    assert not declarations(piece * 300_000)


SPACES = st.sampled_from(["device", "constant", "threadgroup"])
NAMES = st.from_regex(r"v[a-z0-9_]{0,8}\Z", fullmatch=True)


@given(st.dictionaries(NAMES, st.tuples(SPACES, st.booleans())), st.sampled_from([" ", "\n", " /* , */ ", "  "]))
def test_any_declaration(parameters: dict[str, tuple[str, bool]], gap: str) -> None:
    text = f",{gap}".join(
        f"{space}{gap}float {'*' if pointer else '&'}{name}{gap}[[buffer({i})]]"
        for i, (name, (space, pointer)) in enumerate(parameters.items())
    )
    found = declarations(f"using namespace metal;{gap}kernel{gap}void run({text}) {{}}")
    assert found == {"run": {name: Declared(*how) for name, how in parameters.items()}}
