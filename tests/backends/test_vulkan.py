# SPDX-License-Identifier: Apache-2.0
"""What is Vulkan's own: memory that the host does not see, work in flight, what kernels say of themselves."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from rpcflow.backends.base import BackendError, KernelError, KernelSource
from rpcflow.backends.vulkan import VulkanBackend
from rpcflow.backends.vulkan_memory import VulkanDevice
from rpcflow.protocol.dtype import DataType
from rpcflow.protocol.values import Device

from . import rig_vulkan
from .rig_vulkan import compiled
from .test_spirv import COPY, FILL, assemble, two_kernels

DEVICE = Device(7, 0)
BYTES = DataType.parse("uint8")
BLOCK = (64, 1, 1)
RNG = np.random.default_rng(11)

SPIN = """#version 450
layout(local_size_x = 64) in;
layout(binding = 0) buffer X { uint x[]; };
layout(push_constant) uniform P { uint rounds; };
void main() {
    uint v = x[gl_GlobalInvocationID.x];
    for (uint i = 0; i < rounds; i++) v = v * 1664525u + 1013904223u;
    x[gl_GlobalInvocationID.x] = v;
}
"""


@pytest.fixture(scope="module", autouse=True)
def there() -> None:
    absent = rig_vulkan.make().absent
    if absent:
        pytest.skip(f"vulkan: {absent}")


@pytest.fixture(params=[True, False], ids=["direct", "staged"])
def backend(request: pytest.FixtureRequest) -> Iterator[VulkanBackend]:
    made = VulkanBackend(direct=request.param)
    yield made
    made.close()


def put(backend: VulkanBackend, data: np.ndarray[Any, Any]) -> Any:
    """Memory with data in it, as a session does it."""
    memory = backend.allocate(DEVICE, data.nbytes, 64, BYTES, None)
    write(backend, memory, 0, data.tobytes())
    return memory


def write(backend: VulkanBackend, memory: Any, offset: int, data: bytes) -> None:
    sink = backend.sink(memory, offset, len(data))
    at = 0
    while at < len(data):
        room = sink.get_buffer()
        count = min(len(room), len(data) - at, 1_000_003)
        room[:count] = data[at : at + count]
        sink.filled(count)
        at += count
    backend.received(memory, offset, len(data), sink)


def get(backend: VulkanBackend, memory: Any, dtype: str = "uint8") -> Any:
    return np.frombuffer(bytes(backend.read(memory, 0, memory.nbytes)), dtype)


def load(backend: VulkanBackend, code: bytes, name: str = "main", file: str = "k.spv", **signature: list[str]) -> Any:
    return backend.load(KernelSource(file, ".spv", code, signature))[name]


def vadd(backend: VulkanBackend) -> Any:
    file, code = rig_vulkan.make().files["vadd"]
    return load(backend, code, "vadd", file)


def alive(backend: VulkanBackend) -> int:
    device: VulkanDevice = backend.device(0)
    device.sweep()
    return len(device._alive)


# ------------------------------------------------------------------------------------------------ memory


def test_data_by_either_way(backend: VulkanBackend) -> None:
    data = RNG.integers(0, 256, (9 << 20) + 5, "uint8")  # several pieces, and a rest
    memory = put(backend, data)
    assert np.array_equal(get(backend, memory), data)
    write(backend, memory, 4_000_001, b"x" * 3)
    data[4_000_001:4_000_004] = ord("x")
    assert np.array_equal(get(backend, memory), data)
    assert bytes(backend.read(memory, 4_000_000, 5)) == data[4_000_000:4_000_005].tobytes()


def test_data_behind_work_in_flight(backend: VulkanBackend) -> None:
    add = vadd(backend)
    x, y = put(backend, np.ones(4096, "float32")), put(backend, np.zeros(4096, "float32"))
    for _ in range(150):  # more than are in flight at a time
        add.launch(0, [x.address, y.address, y.address, 4096], (64, 1, 1), BLOCK)
    assert np.array_equal(get(backend, y, "float32"), np.full(4096, 150))
    for _ in range(10):
        add.launch(0, [x.address, y.address, y.address, 4096], (64, 1, 1), BLOCK)
    write(backend, y, 0, np.zeros(4096, "float32").tobytes())
    assert not get(backend, y).any()


def test_overlapping_copies_leave_nothing(backend: VulkanBackend) -> None:
    data = RNG.integers(0, 256, 1000, "uint8")
    memory = put(backend, data)
    before = alive(backend)
    for source, target, nbytes in [(0, 1, 999), (7, 0, 900), (500, 3, 500), (5, 5, 10)]:
        backend.copy(memory, source, memory, target, nbytes, 0)
        data[target : target + nbytes] = data[source : source + nbytes].copy()
    assert np.array_equal(get(backend, memory), data)
    backend.synchronize(0, 0)
    assert alive(backend) == before


def test_memory_that_is_freed_while_in_use(backend: VulkanBackend) -> None:
    add = vadd(backend)
    x, y = put(backend, np.ones(64, "float32")), put(backend, np.zeros(64, "float32"))
    spin = load(backend, compiled(SPIN))
    slow = put(backend, np.ones(1 << 14, "uint32"))
    backend.synchronize(0, 0)
    before = alive(backend)
    spin.launch(0, [slow.address, 20_000], (1 << 8, 1, 1), BLOCK)
    add.launch(0, [x.address, x.address, y.address, 64], (1, 1, 1), BLOCK)
    del x, slow, spin, add
    gc.collect()
    assert alive(backend) >= before - 1  # some of it may be done by now, not all
    assert np.array_equal(get(backend, y, "float32"), np.full(64, 2))
    assert alive(backend) == before - 4


def test_memory_in_two_streams(backend: VulkanBackend) -> None:
    add, x = vadd(backend), put(backend, np.ones(64, "float32"))
    before = alive(backend)
    for _ in range(20):
        stream = backend.create_stream(0)
        backend.set_stream(0, stream)
        y = put(backend, np.zeros(64, "float32"))
        add.launch(0, [x.address, x.address, y.address, 64], (1, 1, 1), BLOCK)
        assert get(backend, y, "float32").sum() == 128
        backend.free_stream(0, stream)
    assert len(x.block.raw.uses) <= 1  # streams that are gone are not remembered
    del y
    gc.collect()
    assert alive(backend) <= before + 1  # what passes data on


def test_as_with_several_queues(backend: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VulkanDevice, "several_queues", True)
    add, x = vadd(backend), put(backend, np.ones(64, "float32"))
    for _ in range(3):
        add.launch(0, [x.address, x.address, x.address, 64], (1, 1, 1), BLOCK)
    backend.copy(x, 0, x, 4, 8, 0)
    assert get(backend, x, "float32").sum() == 8 * 64


def test_no_room(backend: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match="cannot be had"):
        backend.allocate(DEVICE, 1 << 50, 64, BYTES, None)
    device: VulkanDevice = backend.device(0)
    before = alive(backend)

    def refuse(*args: Any) -> int:
        return -2

    with monkeypatch.context() as patch:
        patch.setattr(device, "lib", _Lib(device.lib, vkAllocateMemory=refuse))
        with pytest.raises(MemoryError, match=r"vulkan\(0\): 100 bytes .*OUT_OF_DEVICE_MEMORY"):
            backend.allocate(DEVICE, 100, 64, BYTES, None)
    assert alive(backend) == before
    assert put(backend, np.ones(100, "uint8")).nbytes == 100


class _Lib:
    """A driver of which some functions are others."""

    def __init__(self, lib: Any, **others: Callable[..., int]) -> None:
        self._lib = lib
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)


def test_work_that_is_refused(backend: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    add, x = vadd(backend), put(backend, np.ones(64, "float32"))
    stream = backend.streams.get(0, 0)
    args = [x.address, x.address, x.address, 64]
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_lib", _Lib(stream._lib, vkQueueSubmit=lambda *args: -4))
        for _ in range(200):
            with pytest.raises(BackendError, match=r"vulkan\(0\): it takes no work: VK_ERROR_DEVICE_LOST"):
                add.launch(0, list(args), (1, 1, 1), BLOCK)
    add.launch(0, list(args), (1, 1, 1), BLOCK)
    assert get(backend, x, "float32").sum() == 128


# ------------------------------------------------------------------------------------------------ time


def test_the_device_measures(backend: VulkanBackend) -> None:
    spin, x = load(backend, compiled(SPIN)), put(backend, np.ones(1 << 12, "uint32"))
    timer = backend.timer(0)
    if timer is None:
        pytest.skip("the device has no clock")
    times = []
    for rounds in (10, 1000, 100_000):
        timer.start()
        spin.launch(0, [x.address, rounds], (64, 1, 1), BLOCK)
        times.append(timer.stop())
    assert 0 < times[0] < times[2] < 60
    before = alive(backend)
    del timer
    assert alive(backend) == before - 1


# ------------------------------------------------------------------------------------------------ kernels


def test_several_kernels_in_a_file(backend: VulkanBackend) -> None:
    kernels = backend.load(KernelSource("two.spv", ".spv", two_kernels()))
    assert list(kernels) == ["fill", "copy"]
    a, b = put(backend, np.zeros(4, "uint32")), put(backend, np.zeros(4, "uint32"))
    fill, copy = kernels["fill"], kernels["copy"]
    assert [str(param) for param in fill.params] == ["a: uint32*", "start: int32", "n: uint32"]
    assert [str(param) for param in copy.params] == ["data: uint32*", "a: uint32*"]
    assert fill.block == (8, 2, 1)
    fill.launch(0, [a.address, -1, 7], (1, 1, 1), (8, 2, 1))
    copy.launch(0, [b.address, a.address], (1, 1, 1), (4, 1, 1))
    assert get(backend, b, "uint32")[0] == 7


def test_main_goes_by_the_name_of_its_file(backend: VulkanBackend) -> None:
    kernels = backend.load(KernelSource("spin.spv", ".spv", compiled(SPIN)))
    assert list(kernels) == ["main", "spin"]
    assert kernels["main"] is kernels["spin"]
    given = {"spin": ["uint32*", "int32"]}
    assert str(backend.load(KernelSource("spin.spv", ".spv", compiled(SPIN), given))["spin"].params[1]).endswith(
        "rounds: int32"
    )


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (["uint32*"], "has 1 parameters; it takes 2"),
        (["uint32*", "uint64"], "uint64 for parameter 1, which is uint32"),
        (["uint32", "uint32*"], "uint32 for parameter 0, which is tensor"),
        (["uint32*", "local"], "local memory for parameter 1"),
        (["uint32*", "complex64"], "complex64, which cannot be passed"),
    ],
)
def test_signatures_that_do_not_fit(signature: list[str], words: str) -> None:
    backend = VulkanBackend()
    with pytest.raises(KernelError, match=words):
        load(backend, compiled(SPIN), main=signature)
    backend.close()


SCALARS = """#version 450
#extension GL_EXT_shader_explicit_arithmetic_types : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_16bit_storage : require
layout(local_size_x = 1) in;
layout(set = 1, binding = 2) buffer Out { double r[]; };
layout(push_constant) uniform P {
    int8_t a; uint8_t b; int16_t c; uint16_t d; float16_t e; int f; uint g; float h; int64_t i; uint64_t j; double k;
    uint l;
};
void main() {
    r[0] = double(a); r[1] = double(b); r[2] = double(c); r[3] = double(d); r[4] = double(float(e)); r[5] = double(f);
    r[6] = double(g); r[7] = double(h); r[8] = double(i); r[9] = double(j); r[10] = k; r[11] = l != 0 ? 1.0lf : 0.0lf;
}
"""


def test_scalars_of_all_types(backend: VulkanBackend) -> None:
    types = ["int8", "uint8", "int16", "uint16", "float16", "int32", "uint32", "float32", "int64", "uint64", "float64"]
    try:
        kernel = load(backend, compiled(SCALARS), main=["float64*", *types, "bool"])
    except KernelError as error:
        pytest.skip(str(error))
    out = put(backend, np.zeros(12))
    values = [-5, 250, -3000, 60000, 1.5, -(1 << 30), 1 << 31, 2.5, -(1 << 50), 1 << 60, 1e100, True]
    kernel.launch(0, [out.address, *values], (1, 1, 1), (1, 1, 1))
    assert get(backend, out, "float64").tolist() == values


def test_a_kernel_without_parameters(backend: VulkanBackend) -> None:
    kernel = load(backend, compiled("#version 450\nlayout(local_size_x = 1) in;\nvoid main() {}"))
    assert kernel.params == ()
    for _ in range(100):
        kernel.launch(0, [], (1, 1, 1), (1, 1, 1))
    backend.synchronize(0, 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("layout(binding = 1) uniform sampler2D s; void f() { x[0] = texture(s, vec2(0)).x; }", "'s', an image with"),
        ("layout(binding = 1, r32f) uniform image2D s; void f() { x[0] = imageLoad(s, ivec2(0)).x; }", "'s', an image"),
        ("layout(binding = 1) uniform U { float u; }; void f() { x[0] = u; }", "'u', a uniform buffer"),
        ("layout(binding = 1) buffer U { float u[]; } us[2]; void f() { x[0] = us[0].u[0]; }", "'us', an array"),
        ("layout(push_constant) uniform P { vec4 v; }; void f() { x[0] = v.x; }", "'v' .* a vector"),
        ("layout(push_constant) uniform P { float v[4]; }; void f() { x[0] = v[1]; }", "'v' .* an array"),
        ("shared float v[1 << 24]; void f() { v[1] = x[1]; barrier(); x[0] = v[1]; }", "bytes of memory that a block"),
        ("layout(push_constant) uniform P { layout(offset = 4096) float v; }; void f() { x[0] = v; }", "bytes of push"),
    ],
)
def test_what_kernels_cannot_take(line: str, words: str) -> None:
    source = f"#version 450\nlayout(local_size_x = 1) in;\nlayout(binding = 0) buffer X {{ float x[]; }};\n{line}\n"
    backend = VulkanBackend()
    with pytest.raises(KernelError, match=words) as caught:
        load(backend, compiled(source + "void main() { f(); }"))
    assert "'main'" in str(caught.value)
    backend.close()


def test_huge_blocks() -> None:
    backend = VulkanBackend()
    with pytest.raises(KernelError, match="a block has at most"):
        load(backend, two_kernels(head=[(16, n, 17, 1 << 20, 1, 1) for n in (FILL, COPY)]), "fill")
    backend.close()


def test_options_are_not_for_what_is_compiled() -> None:
    backend = VulkanBackend()
    with pytest.raises(KernelError, match="no options"):
        backend.load(KernelSource("k.spv", ".spv", compiled(SPIN), {}, ["-O3"]))
    backend.close()


def test_capabilities_and_versions(backend: VulkanBackend) -> None:
    device: VulkanDevice = backend.device(0)
    plain = device.physical
    double = "#version 450\nlayout(local_size_x = 1) in;\nlayout(binding = 0) buffer X { double x[]; };\n"
    code = compiled(double + "void main() { x[0] *= 2.0lf; }")
    device.physical = attrs.evolve(plain, features=plain.features - {"shaderFloat64"})
    with pytest.raises(KernelError, match=r"k\.spv needs the capability Float64, which .* does not have"):
        load(backend, code)
    device.physical = attrs.evolve(plain, version=1 << 22 | 1 << 12)
    with pytest.raises(KernelError, match=r"is SPIR-V 1\.5; .* takes 1\.3 at most"):
        load(backend, compiled(SPIN, "main", "--target-env", "vulkan1.2"))
    device.physical = attrs.evolve(plain, subgroup=(1, 0))
    code = assemble([(17, 1), (17, 61), (15, 5, 1, "k"), (16, 1, 17, 1, 1, 1), (54, 2, 1, 0, 3), (56,)])
    with pytest.raises(KernelError, match=r"number 61 \(of subgroups\)"):
        load(backend, code)
    device.physical = plain


@pytest.fixture(params=["vulkan1.0", "vulkan1.1", "vulkan1.2", "vulkan1.3"])
def environment(request: pytest.FixtureRequest) -> Any:
    return request.param


def load_for(environment: str, backend: VulkanBackend, source: str) -> Any:
    try:
        return load(backend, compiled(source, "main", "--target-env", environment))
    except KernelError as error:
        if "at most: compile it for that" not in str(error):
            raise
        return pytest.skip(str(error))


def test_modules_for_any_vulkan(backend: VulkanBackend, environment: str) -> None:
    """Older and newer ones say differently what is a storage buffer, and what a kernel uses."""
    kernel = load_for(environment, backend, SPIN)
    x = put(backend, np.ones(64, "uint32"))
    kernel.launch(0, [x.address, 1], (1, 1, 1), BLOCK)
    assert (get(backend, x, "uint32") == 1664525 + 1013904223).all()


def test_blocks_of_constants_that_could_be_others(backend: VulkanBackend, environment: str) -> None:
    kernel = load_for(environment, backend, SPIN.replace("local_size_x = 64", "local_size_x_id = 0, local_size_y = 2"))
    assert kernel.block == (1, 2, 1)
    x = put(backend, np.zeros(64, "uint32"))
    kernel.launch(0, [x.address, 1], (3, 1, 1), (1, 2, 1))
    assert np.count_nonzero(get(backend, x, "uint32")) == 3


@pytest.mark.skipif(shutil.which("spirv-val") is None, reason="no spirv-val")
def test_the_validator_has_a_word() -> None:
    backend = VulkanBackend()
    nonsense = [(17, 1), (14, 0, 1), (15, 5, 1, "k"), (16, 1, 17, 1, 1, 1), (19, 2), (33, 3, 2), (54, 2, 1, 0, 3)]
    with pytest.raises(KernelError, match=r"k\.spv is no valid SPIR-V: line"):
        load(backend, assemble([*nonsense, (248, 4), (62, 77, 78), (253,), (56,)]))
    backend.close()


# ------------------------------------------------------------------------------------------------ launches


def test_views_that_cannot_be(backend: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    add, x = vadd(backend), put(backend, np.ones(1024, "float32"))
    device: VulkanDevice = backend.device(0)
    good = [x.address] * 3
    if device.alignment > 1:
        with pytest.raises(KernelError, match=rf"argument 1 begins 1 bytes .* multiples of {device.alignment} bytes"):
            add.launch(0, [x.address, x.address + 1, x.address, 64], (1, 1, 1), BLOCK)
    with pytest.raises(KernelError, match="argument 2 is a view of no bytes"):
        add.launch(0, [x.address, x.address, x.address + 4096, 64], (1, 1, 1), BLOCK)
    with pytest.raises(BackendError, match="is not in the memory"):
        add.launch(0, [x.address, x.address, x.address + 4097, 64], (1, 1, 1), BLOCK)
    with pytest.raises(KernelError, match="grid"):
        add.launch(0, [*good, 64], (1 << 40, 1, 1), BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(device, "max_range", 4095)
        with pytest.raises(KernelError, match=r"argument 0 is in a memory that goes on for 4096 bytes; .* see 4095"):
            add.launch(0, [*good, 64], (1, 1, 1), BLOCK)
    assert get(backend, x, "float32").sum() == 1024
    empty = put(backend, np.zeros(0, "uint8"))
    add.launch(0, [empty.address] * 3 + [0], (1, 1, 1), BLOCK)
    backend.synchronize(0, 0)


def test_a_session_that_is_over(backend: VulkanBackend) -> None:
    add, x = vadd(backend), put(backend, np.ones(64, "float32"))
    timer = backend.timer(0)
    add.launch(0, [x.address, x.address, x.address, 64], (1, 1, 1), BLOCK)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="is over"):
        add.launch(0, [x.address, x.address, x.address, 64], (1, 1, 1), BLOCK)
    with pytest.raises(BackendError, match="is over"):
        put(backend, np.ones(64))
    del add, x, timer
    gc.collect()


def test_sessions_come_and_go() -> None:
    """In one process, as LocalSession has them."""

    def once() -> None:
        backend = VulkanBackend()
        assert backend.absence() is None
        add, x = vadd(backend), put(backend, np.ones(1 << 16, "float32"))
        add.launch(0, [x.address, x.address, x.address, 64], (1, 1, 1), BLOCK)
        backend.close()

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(5):
        once()
    before = resident()
    for _ in range(25):
        once()
    assert resident() - before < 8 << 20


# ------------------------------------------------------------------------------------------------ what is missing


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vulkan", None)
    backend = VulkanBackend()
    assert "pip install 'rpcflow[vulkan]'" in str(backend.absence())
    assert backend.version() == ""
    with pytest.raises(BackendError, match=r"there is no vulkan\(0\) here: the package vulkan"):
        backend.device(0)
    backend.close()


def test_no_loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vulkan.py").write_text("raise OSError('Cannot find Vulkan SDK version.')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vulkan", raising=False)
    backend = VulkanBackend()
    assert "the Vulkan loader cannot be loaded (Cannot find" in str(backend.absence())
    assert "libvulkan1" in str(backend.absence())
    backend.close()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "/nonexistent.json")
    backend = VulkanBackend()
    assert "mesa-vulkan-drivers" in str(backend.absence())
    assert backend.attribute(0, 0) == 0
    backend.close()


def test_versions(backend: VulkanBackend) -> None:
    assert backend.version().startswith("vulkan 1.")
    assert "Vulkan 1." in backend.version().partition(",")[2]
