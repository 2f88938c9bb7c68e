"""The OpenCL and WebGPU devices of our servers: by our clients and stock's, with what TVM compiled and with kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpcflow import sync
from rpcflow.errors import PermissionDeniedError, RemoteError
from tests.backends.rigs import prepared
from tests.once import once

from .conftest import need_tvm
from .device_kernels import compile_device_kernels
from .peers import Link

pytestmark = pytest.mark.interop
PAIRINGS = [("stock", "rpcflow"), ("sync", "rpcflow"), ("trio", "rpcflow")]


@pytest.fixture(params=PAIRINGS, ids=["-".join(pairing) for pairing in PAIRINGS])
def pairing(request: pytest.FixtureRequest) -> tuple[str, str]:
    need_tvm()
    names: tuple[str, str] = request.param
    return names


@pytest.fixture(scope="session")
def device_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_tvm()
    return once(tmp_path_factory, "device-kernels", compile_device_kernels)


@pytest.fixture(params=["opencl", "webgpu"])
def kind(request: pytest.FixtureRequest) -> str:
    prepared(request.param)
    name: str = request.param
    return name


@pytest.mark.parametrize("suffix", ["so", "tar"])
def test_what_tvm_compiled(link: Link, kind: str, device_kernels: Path, suffix: str) -> None:
    client, device = link.client, link.session.device(kind, 0)
    assert client.attr(device, "exist")
    link.session.upload(str(device_kernels / f"vadd-{kind}.{suffix}"))
    module = link.session.load_module(f"vadd-{kind}.{suffix}")
    a, b = np.random.default_rng(1).random((2, 1024), "float32")
    x, y, z = client.tensor(device, a), client.tensor(device, b), client.empty(device, (1024,), "float32")
    module["vadd"](x, y, z)
    device.sync()
    np.testing.assert_allclose(z.numpy(), a + b)
    timed = module.time_evaluator("vadd", device, number=3, repeat=2)(x, y, z)
    assert all(0 < seconds < 1 for seconds in timed.results)


def test_scalars_of_what_tvm_compiled(link: Link, kind: str, device_kernels: Path) -> None:
    client, device = link.client, link.session.device(kind, 0)
    link.session.upload(str(device_kernels / f"scale-{kind}.so"))
    scale = link.session.load_module(f"scale-{kind}.so")["scale"]
    for length in (1, 100, 4096):
        data = np.arange(length, dtype="float32")
        out = client.empty(device, (length,), "float32")
        scale(client.tensor(device, data), 2.5, out)
        np.testing.assert_allclose(out.numpy(), data * 2.5)
    scale(client.empty(device, (0,), "float32"), 1.0, client.empty(device, (0,), "float32"))


def test_what_does_not_fit(link: Link, kind: str, device_kernels: Path) -> None:
    client, device = link.client, link.session.device(kind, 0)
    link.session.upload(str(device_kernels / f"vadd-{kind}.so"))
    vadd = link.session.load_module(f"vadd-{kind}.so")["vadd"]
    on_host, here = link.empty((1024,), "float32"), client.empty(device, (1024,), "float32")
    with pytest.raises(client.RPCError):
        vadd(on_host, on_host, on_host)
    with pytest.raises(client.RPCError):
        vadd(here, here, client.empty(device, (1000,), "float32"))
    other = client.empty(device, (1024,), "float32")
    vadd(here, other, client.empty(device, (1024,), "float32"))
    device.sync()


def test_a_stock_client_launches_a_kernel(link: Link) -> None:
    """Over stock's wire: the arguments, then the six numbers."""
    rig = prepared("opencl")
    client, device = link.client, link.session.cl(0)
    name, source = rig.files["vadd"]
    link.session.upload(bytearray(source), name)
    module = link.session.load_module(name)
    data = np.arange(1000, dtype="float32")
    x, z = client.tensor(device, data), client.empty(device, (1000,), "float32")
    module["vadd"](x, x, z, 1000, 16, 1, 1, 64, 1, 1)
    np.testing.assert_array_equal(z.numpy(), data * 2)
    with pytest.raises(client.RPCError, match="takes 4 arguments"):
        module["vadd"](x, x, z)
    timed = module.time_evaluator("vadd", device, number=3)(x, x, z, 1000, 16, 1, 1, 64, 1, 1)
    assert timed.mean > 0
    other = client.empty(device, (1000,), "float32")
    z.copyto(other)
    np.testing.assert_array_equal(other.numpy(), data * 2)
    stream = client.stream(device, "create")
    client.stream(device, "set", stream)
    module["vadd"](z, x, z, 1000, 16, 1, 1, 64, 1, 1)
    device.sync(stream)
    client.stream(device, "free", stream)
    np.testing.assert_array_equal(z.numpy(), data * 3)


_ALONE = """
import sys
sys.modules["tvm"] = None  # as where it is not installed
import numpy as np
from rpcflow import sync

kind, folder, with_runtime = sys.argv[1:]
if with_runtime == "runtime":
    del sys.modules["tvm"]
    import tvm
with sync.LocalSession() as session:
    device = session.device(kind)
    data = np.arange(1024, dtype="float32")
    # No memory twice: TVM before 0.27 declares all of a kernel's to be written, which WebGPU does not take.
    x, y, z = device.tensor(data), device.tensor(data), device.empty(1024)
    for name in ("vadd", "scale", "vadd"):
        session.upload(f"{folder}/{name}-{kind}.so")
        module = session.load_module(f"{name}-{kind}.so")
        if name == "vadd":
            module["vadd"](x, y, z)
        else:
            module["scale"](z, 0.5, x)
            assert np.array_equal(x.numpy(), data)
    assert np.array_equal(z.numpy(), data * 2)
print("right")
"""


@pytest.mark.parametrize("runtime", ["runtime", "no runtime"])
def test_with_and_without_the_runtime(kind: str, device_kernels: Path, runtime: str) -> None:
    """tvm-ffi is enough; and TVM in the same process is not in the way."""
    if runtime == "runtime":
        need_tvm()
    command = [sys.executable, "-c", _ALONE, kind, str(device_kernels), runtime]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.endswith("right\n"), done.stderr


@pytest.mark.parametrize("cut", [0, 7, 8, 40, -1, -9])
@pytest.mark.parametrize("which", ["opencl", "webgpu"])
def test_device_code_cut_short(device_kernels: Path, which: str, cut: int) -> None:
    from rpcflow.backends import KernelError
    from rpcflow.server.tvm_kernels import parse

    data = device_code(device_kernels / f"vadd-{which}.so", which)
    functions, sources = parse(which, data)
    assert list(functions) == ["vadd_kernel"]
    assert all("vadd_kernel" in text for text in sources.values())
    for broken in (data[:cut], data + b"\0", b"\xff" * 8 + data[8:]):
        with pytest.raises(KernelError):
            parse(which, broken)


def device_code(path: Path, kind: str) -> bytes:
    """What the library hands to the loader of that kind."""
    import tvm_ffi

    from rpcflow import registry

    taken: list[bytes] = []

    def take(data: Any) -> Any:
        taken.append(bytes(data))
        return tvm_ffi.system_lib(f"rpcflow_test_{kind}_")

    with registry.lent({f"ffi.Module.load_from_bytes.{kind}": take}):
        tvm_ffi.load_module(str(path))
    return taken[0]


def test_no_device_for_it(device_kernels: Path) -> None:
    program = """
import sys, rpcflow
from rpcflow import sync
with sync.LocalSession() as session:
    session.upload(sys.argv[1])
    try:
        session.load_module("vadd-opencl.so")
    except rpcflow.RemoteError as error:
        print(error)
"""
    nowhere = {"OCL_ICD_VENDORS": "/nowhere", "OPENCL_VENDOR_PATH": "/nowhere"}
    command = [sys.executable, "-c", program, str(device_kernels / "vadd-opencl.so")]
    environment = {**os.environ, **nowhere}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert "KernelError: the module has device code for opencl" in done.stdout, done.stderr


_CUDA = """
import sys
from rpcflow import sync
with sync.LocalSession() as session:
    session.upload(sys.argv[1])
    try:
        module = session.load_module("vadd-cuda.so")
    except RuntimeError as error:
        print(error)
    else:
        import numpy as np
        x = session.cuda().tensor(np.ones(1024, "float32"))
        z = session.cuda().empty(1024)
        module["vadd"](x, x, z)
        assert z.numpy().sum() == 2048
        print("right")
"""


def test_cuda_by_the_runtime(device_kernels: Path) -> None:
    """TVM's own runtime for CUDA is loaded where there is a driver; else we are told what is missing."""
    if (device_kernels / "no-cuda").exists():
        pytest.skip(f"TVM cannot compile for CUDA here: {(device_kernels / 'no-cuda').read_text()}")
    command = [sys.executable, "-c", _CUDA, str(device_kernels / "vadd-cuda.so")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout != "right\n":
        assert "device code for cuda" in done.stdout
        assert "TVM's runtime for that cannot be loaded: " in done.stdout


@pytest.mark.parametrize("kind", ["opencl", "webgpu"])
def test_a_device_that_a_policy_denies(device_kernels: Path, tmp_path: Path, kind: str) -> None:
    prepared(kind)
    policy = tmp_path / "policy.toml"
    policy.write_text('[policy.all]\ndevices = ["cpu:*"]\n[anonymous]\npolicy = "all"\n')
    with sync.Server("127.0.0.1", 0, silent=True, policy=policy) as server:
        with sync.connect("127.0.0.1", server.port) as session:
            session.upload(str(device_kernels / f"vadd-{kind}.so"))
            with pytest.raises(PermissionDeniedError, match=f"{kind}:0"):
                session.load_module(f"vadd-{kind}.so")
            assert session.cpu().tensor(np.ones(3)).numpy().sum() == 3


def test_setting_a_device_that_a_policy_denies(device_kernels: Path, tmp_path: Path) -> None:
    prepared("opencl")
    policy = tmp_path / "policy.toml"
    policy.write_text('[policy.all]\ndevices = ["opencl:0"]\n[anonymous]\npolicy = "all"\n')
    with sync.Server("127.0.0.1", 0, silent=True, policy=policy) as server:
        with sync.connect("127.0.0.1", server.port) as session:
            session.upload(str(device_kernels / "vadd-opencl.so"))
            module = session.load_module("vadd-opencl.so")
            x, z = session.cl().tensor(np.ones(1024, "float32")), session.cl().empty(1024)
            module["vadd"](x, x, z)
            assert z.numpy().sum() == 2048
            module["__tvm_set_device"](4, 0)
            with pytest.raises(RemoteError, match="opencl:1"):
                module["__tvm_set_device"](4, 1)
