# SPDX-License-Identifier: Apache-2.0
"""Programs out of modules that TVM compiled, by real compilers, and sessions with them."""

import contextlib
import gc
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy
import pytest

import rpcflow
from rpcflow import sync as rpc
from rpcflow.errors import FunctionNotFoundError, RemoteError
from rpcflow.minrpc import with_minrpc as module
from rpcflow.minrpc.building import BuildError
from rpcflow.sync import with_minrpc

from .building import HERE, need
from .compiled import BIG, N, compiled
from .conftest import Built
from .emulated import running

RUNTIMES = ("libtvm", "libtvm_ffi", "minimal")
COMPILERS = ("gcc", "g++", "clang", "function")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
TIME_LIMIT = 100  # seconds


def compile_function(name: str) -> Any:
    """What stands for a compiler in :data:`COMPILERS`."""
    if name != "function":
        return need(name, name)
    need("g++", "g++")
    from tvm.support import cc

    return cc.create_executable


def use_kernels(remote: Any) -> None:
    """Every kernel, against NumPy."""
    module, device = remote.system_lib(), remote.cpu()
    random = numpy.random.default_rng(7)

    def call(name: str, result: Any, *arguments: Any) -> None:
        out = device.empty(result.shape, str(result.dtype))
        module[name](*[device.tensor(argument) for argument in arguments], out)
        numpy.testing.assert_allclose(out.numpy(), result, rtol=1e-5, atol=1e-6)

    a, b = random.random((2, 100_000), dtype="float32")
    call("vadd", a + b, a, b)
    call("doubled", a * 2, a)
    call("exponential", numpy.exp(a[:N]), a[:N])
    p, q = random.random((8, 16), dtype="float32"), random.random((16, 4), dtype="float32")
    call("matmul", p @ q, p, q)
    call("reverse", (a[:BIG] + 1)[::-1] * 2, a[:BIG])
    halves = numpy.arange(-50, 50).astype("float16")
    call("halve", halves / numpy.float16(2), halves)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_export_library(library: Any, tmp_path: Path, runtime: str, compiler: str) -> None:
    program = tmp_path / "model.minrpc"
    library.export_library(str(program), fcompile=with_minrpc(compile_function(compiler), runtime=runtime))
    assert os.listdir(tmp_path) == [program.name]
    with rpc.PopenSession(str(program)) as remote:
        use_kernels(remote)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_kernel_finds_wrong(built: Built, runtime: str) -> None:
    with rpc.PopenSession(built("posix_popen_server", runtime)) as remote:
        module, device = remote.system_lib(), remote.cpu()
        x, integers = device.empty((4,), "float32"), device.empty((4,), "int32")
        for arguments, words in (((x, x), "3 arguments"), ((x, x, integers), "float32"), ((x, x, 1), "")):
            with pytest.raises(RemoteError) as caught:
                module["vadd"](*arguments)
            assert "vadd(a: Tensor([n], float32)" in caught.value.remote_message
            assert words in caught.value.remote_message
        with pytest.raises(RemoteError, match=r"shape|extent"):
            module["exponential"](device.empty((N + 1,), "float32"), device.empty((N,), "float32"))
        with pytest.raises(FunctionNotFoundError):
            module["nothing"]
        with pytest.raises(FunctionNotFoundError):
            remote.get_function("nothing")
        use_kernels(remote)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_time_evaluator(built: Built, runtime: str) -> None:
    with rpc.PopenSession(built("posix_popen_server", runtime)) as remote:
        device = remote.cpu()
        x, out = device.tensor(numpy.arange(1000, dtype="float32")), device.empty((1000,), "float32")
        evaluator = remote.system_lib().time_evaluator("vadd", device, number=3, repeat=4)
        gc.collect()  # the module: what is measured stays
        timed = evaluator(x, x, out)
        assert len(timed.results) == 4
        assert all(seconds > 0 for seconds in timed.results)
        assert (out.numpy() == numpy.arange(1000) * 2).all()
        with pytest.raises(RemoteError, match="float32"):
            evaluator(x, x, device.empty((1000,), "int32"))
        with pytest.raises(RemoteError, match="nothing"):
            remote.system_lib().time_evaluator("nothing", device)
        for _ in range(100):  # there are places for 64
            assert remote.system_lib().time_evaluator("vadd", device)(x, x, out).mean > 0
        if runtime == "libtvm":
            flushing = remote.system_lib().time_evaluator("vadd", device, f_preproc="cache_flush_cpu_non_first_arg")
            assert flushing(x, x, out).mean > 0
        for _ in range(100):
            with pytest.raises(RemoteError, match="there is no function none"):
                remote.system_lib().time_evaluator("vadd", device, f_preproc="none")


STOCK = """
import sys
import numpy, tvm
from tvm import rpc

remote = rpc.connect("127.0.0.1", int(sys.argv[2])) if sys.argv[1] == "tcp" else rpc.PopenSession(sys.argv[2])
module, device = remote.system_lib(), remote.cpu()
a = numpy.arange(1000, dtype="float32")
x, out = tvm.runtime.tensor(a, device), tvm.runtime.empty((1000,), "float32", device)
module["vadd"](x, x, out)
numpy.testing.assert_equal(out.numpy(), a * 2)
module["doubled"](out, out)
numpy.testing.assert_equal(out.numpy(), a * 4)
try:
    module["vadd"](x, x)
except tvm.error.RPCError as error:
    assert "3 arguments" in str(error), error
else:
    raise AssertionError("it took two arguments")
timed = module.time_evaluator("vadd", device, number=2, repeat=3)(x, x, out)
assert len(timed.results) == 3
try:
    remote.get_function("nothing")
except AttributeError:
    pass
if sys.argv[3] != "minimal":
    shape = remote.get_function("ffi.Shape")(3, 4, 5)
    assert remote.get_function("t.length")(shape) == 3
    counter = remote.get_function("t.counter")(5)
    assert counter() == 6
    made = remote.get_function("t.made")(3)
    numpy.testing.assert_equal(made.numpy(), numpy.arange(6).reshape(3, 2))
    assert remote.get_function("t.sum")(made) == 15
    assert remote.get_function("t.echo")("a text that is long") == "a text that is long"
print("all well")
"""


def run_stock(*arguments: str) -> None:
    """A client of stock TVM, in a process of its own: it reaps nothing."""
    command = [sys.executable, "-c", STOCK, *arguments]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert (ran.returncode, ran.stdout) == (0, "all well\n"), ran.stderr


@contextlib.contextmanager
def served(program: str) -> Iterator[int]:
    """A posix_tcp_server; gives its port."""
    with subprocess.Popen(
        [program, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = re.fullmatch(r"READY tcp://127\.0\.0\.1:(\d+)\n", process.stdout.readline())
            assert ready
            yield int(ready[1])
            process.send_signal(signal.SIGTERM)
            _, words = process.communicate(timeout=60)
            assert (process.returncode, words) == (0, "")
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tcp_server(built: Built, with_objects: Built, runtime: str) -> None:
    make = built if runtime == "minimal" else with_objects
    with served(make("posix_tcp_server", runtime)) as port:
        for _ in range(2):
            with rpc.connect("127.0.0.1", port) as remote:
                use_kernels(remote)
        run_stock("tcp", str(port), runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_stock_popen_session(built: Built, with_objects: Built, runtime: str) -> None:
    make = built if runtime == "minimal" else with_objects
    run_stock("popen", make("posix_popen_server", runtime), runtime)


# ---- What it makes programs of


def call_twice(program: Path, name: str) -> float:
    with rpc.PopenSession(str(program)) as remote:
        x = remote.cpu().tensor(numpy.ones(1, dtype="float32"))
        remote.system_lib()[name](x, x, x)
        remote.system_lib()[name](x, x, x)
        return float(x.numpy()[0])


def test_objects_sources_and_archives(library: Any, tmp_path: Path) -> None:
    need("gcc", "gcc")
    given, archive = tmp_path / "kernels.o", tmp_path / "kernels.tar"
    library.mod.write_to_file(str(given))
    library.export_library(str(archive))
    hello = tmp_path / "hello.c"
    hello.write_text(
        "#include <rpcflow/runtime.h>\n"
        "static int hello(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {\n"
        "  (void)self, (void)args;\n"
        "  result->type = RPCFLOW_INT, result->u.as_int = HELLO + count;\n"
        "  return 0;\n"
        "}\n"
        "RPCFLOW_REGISTER(hello, hello);\n"
    )
    static = tmp_path / "libkernels.a"
    subprocess.run(["ar", "crs", static, given], check=True)
    whole = f"-Wl,--whole-archive,{static},--no-whole-archive"  # nothing refers to a kernel
    fcompile = with_minrpc("gcc", runtime="minimal")
    for number, (objects, options) in enumerate(
        (
            ([str(given), str(hello)], ["-DHELLO=40"]),
            ([str(archive), str(hello)], "-DHELLO=40 -O1"),
            ([str(hello)], ("-DHELLO=40", whole)),
        )
    ):
        program = tmp_path / f"program{number}"
        fcompile(str(program), objects, options)
        assert call_twice(program, "vadd") == 4
        with rpc.PopenSession(str(program)) as remote:
            assert remote.get_function("hello")(1, 2) == 42
    fcompile(tmp_path / "alone", str(given))
    assert call_twice(tmp_path / "alone", "vadd") == 4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_source_that_tvm_generates(tmp_path: Path, runtime: str) -> None:
    need("gcc", "gcc")
    if importlib.util.find_spec("tvm") is None:
        pytest.skip("SKIPPED, apache-tvm is missing: generated C was NOT TESTED")
    import tvm.libinfo
    import tvm_ffi.libinfo

    source, names = tmp_path / "kernels.c", tmp_path / "names.c"
    compiled("c", "vadd", "matmul").mod.write_to_file(str(source))
    names.write_text(  # generated C does not register its functions
        "int TVMFFIEnvModRegisterSystemLibSymbol(const char *, void *);\n"
        "int __tvm_ffi_vadd(void *, void *, int, void *);\n"
        "__attribute__((constructor)) static void offer(void) {\n"
        '  TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi_vadd", (void *)__tvm_ffi_vadd);\n'
        "}\n"
    )
    options = [f"-I{path}" for path in (tvm.libinfo.find_include_path(), tvm_ffi.libinfo.find_include_path())]
    with_minrpc("gcc", runtime=runtime)(tmp_path / "program", [str(source), str(names)], options)
    assert call_twice(tmp_path / "program", "vadd") == 4


def test_sizes_are_options(library: Any, tmp_path: Path) -> None:
    need("gcc", "gcc")
    library.export_library(
        str(tmp_path / "small"), fcompile=with_minrpc("gcc", runtime="minimal"), options="-DRPCFLOW_MAX_ARGS=12"
    )
    with rpc.PopenSession(str(tmp_path / "small")) as remote:
        with pytest.raises(RemoteError, match="RPCFLOW_MAX_ARGS"):
            remote.system_lib()["vadd"](*range(13))
        use_kernels(remote)


@pytest.mark.parametrize("board", ["lm3s6965evb", "mps2-an386"])
def test_firmware(tmp_path: Path, board: str) -> None:
    need("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    if importlib.util.find_spec("tvm") is None:
        pytest.skip("SKIPPED, apache-tvm is missing: firmware was NOT TESTED with what TVM compiles")
    server, target = "cortex_m_uart_server", {"kind": "llvm", "mtriple": "thumbv7m-none-eabi", "mcpu": "cortex-m3"}
    if board == "mps2-an386":
        server, target = f"{server}:{board}", {"kind": "llvm", "mtriple": "thumbv7em-none-eabihf", "mcpu": "cortex-m4"}
    target["mfloat-abi"] = "hard" if board == "mps2-an386" else "soft"
    firmware = tmp_path / "firmware.elf"
    fcompile = with_minrpc("arm-none-eabi-gcc", server, "minimal")
    assert "arm" in fcompile.get_target_triple()
    compiled(target, "vadd", "exponential", "halve").export_library(str(firmware), fcompile=fcompile)
    assert os.listdir(tmp_path) == ["firmware.elf"]
    with running(board, firmware) as port, rpc.connect(f"serial://{port}?baud=115200") as remote:
        module, device = remote.system_lib(), remote.cpu()
        x, out = numpy.linspace(-3, 3, N, dtype="float32"), device.empty((N,), "float32")
        module["vadd"](device.tensor(x), device.tensor(x), out)
        assert (out.numpy() == x + x).all()
        module["exponential"](device.tensor(x), out)
        numpy.testing.assert_allclose(out.numpy(), numpy.exp(x), rtol=1e-5)
        halves = device.tensor(numpy.arange(10, dtype="float16"))
        module["halve"](halves, halves)
        assert (halves.numpy() == numpy.arange(10) / 2).all()
        with pytest.raises(RemoteError, match="float32"):
            module["vadd"](halves, halves, halves)


# ---- What can go wrong


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For outputs. Temporary files must be gone at the end, and so must be all but what was there."""
    temporary, outputs = tmp_path / "tmp", tmp_path / "outputs"
    temporary.mkdir()
    outputs.mkdir()
    (outputs / "program").write_bytes(b"as it was")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield outputs
    assert os.listdir(temporary) == []
    assert os.listdir(outputs) == ["program"]
    assert (outputs / "program").read_bytes() == b"as it was"


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compile_error(folder: Path, tmp_path: Path, compiler: str) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int wrong(void) { return nowhere; }\n")
    fcompile = with_minrpc(compile_function(compiler), runtime="minimal")
    with pytest.raises(RuntimeError, match="nowhere") as caught:
        fcompile(str(folder / "program"), [str(wrong)])
    assert str(wrong) in str(caught.value)
    assert "-o " in str(caught.value)
    if compiler != "function":
        assert isinstance(caught.value, BuildError)
        assert isinstance(caught.value, rpcflow.RPCError)
        assert caught.value.command is not None
        assert os.path.basename(caught.value.command[0]) == compiler
        assert "nowhere" in (caught.value.output or "")


def test_a_link_error(folder: Path, tmp_path: Path) -> None:
    need("gcc", "gcc")
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int nowhere(void);\nint wrong(void) { return nowhere(); }\n")
    with pytest.raises(BuildError, match="undefined reference to `nowhere'"):
        with_minrpc("gcc", runtime="minimal")(str(folder / "program"), [str(wrong)])


def test_a_compiler_that_is_not_there(folder: Path) -> None:
    for name in ("no-such-compiler", "/no/such/compiler", "gcc --version"):
        fcompile = with_minrpc(name, runtime="minimal")
        with pytest.raises(BuildError, match=f"there is no compiler {name}"):
            fcompile(str(folder / "program"), [])
        with pytest.raises(BuildError, match=f"there is no compiler {name}"):
            fcompile.get_target_triple()


def test_a_compiler_that_is_no_program(folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong-cc"
    wrong.write_bytes(b"\0")
    wrong.chmod(0o755)
    fcompile = with_minrpc(str(wrong), runtime="minimal")
    with pytest.raises(BuildError, match="wrong-cc: Exec format error"):
        fcompile(str(folder / "program"), [])
    with pytest.raises(BuildError, match="wrong-cc: Exec format error"):
        fcompile.get_target_triple()


def test_options_that_cannot_be_read(folder: Path) -> None:
    for compiler in ("gcc", compile_function("function")):
        with pytest.raises(BuildError, match="No closing quotation"):
            with_minrpc(compiler, runtime="minimal")(str(folder / "program"), [], options="-DX='1")


def test_objects_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    need("gcc", "gcc")
    fcompile = with_minrpc("gcc", runtime="minimal")
    for name, words in (("none.o", "no file"), ("none.txt", "known suffixes"), ("none.so", "known suffixes")):
        with pytest.raises(BuildError, match=words):
            fcompile(str(folder / "program"), [str(tmp_path / name)])


def test_a_folder_that_is_not_there(folder: Path) -> None:
    need("gcc", "gcc")
    for compiler in ("gcc", compile_function("function")):
        with pytest.raises(BuildError, match="No such file or directory"):
            with_minrpc(compiler, runtime="minimal")(str(folder / "none" / "program"), [])


def test_compile_functions_that_do_not_do_it(folder: Path) -> None:
    def half(output: str, objects: list[str], options: list[str]) -> None:
        Path(output).write_bytes(b"half of it")
        raise KeyError("the rest")

    with pytest.raises(KeyError, match="the rest"):
        with_minrpc(half, runtime="minimal")(str(folder / "program"), [])
    with pytest.raises(BuildError, match="did not write program"):
        with_minrpc(lambda *_, **__: None, runtime="minimal")(str(folder / "program"), [])


def test_compile_functions_get_it_all(tmp_path: Path) -> None:
    seen: list[Any] = []

    def compile_func(output: str, objects: list[str], options: list[str]) -> str:
        seen.append((output, objects, options))
        Path(output).write_bytes(b"done")
        return "what it returns"

    compile_func.get_target_triple = lambda: "some-triple"  # type: ignore[attr-defined]
    compile_func.object_format = "obj"  # type: ignore[attr-defined]
    fcompile = with_minrpc(compile_func, runtime="minimal")
    assert fcompile(str(tmp_path / "program.exe"), ["a.o"], ["-g"]) == "what it returns"
    ((output, objects, options),) = seen
    assert os.path.basename(output) == "program.exe"
    assert objects[0] == "a.o"
    assert all(os.path.isfile(path) for path in objects[1:])
    assert "-g" in options
    assert (tmp_path / "program.exe").read_bytes() == b"done"
    assert fcompile.need_system_lib is True
    assert fcompile.get_target_triple() == "some-triple"
    assert fcompile.object_format == "obj"
    assert not hasattr(fcompile, "output_format")


def test_a_module_that_is_no_system_library(tmp_path: Path) -> None:
    tvm = pytest.importorskip("tvm", reason="SKIPPED, apache-tvm is missing")
    from tvm import te

    a = te.placeholder((4,), "float32", name="a")
    function = te.create_prim_func([a, te.compute((4,), lambda i: a[i], name="b")])
    plain = tvm.compile(tvm.IRModule({"copy": function.with_attr("global_symbol", "copy")}), target="llvm")
    with pytest.raises(ValueError, match=r"with_minrpc.* need --system-lib"):
        plain.export_library(str(tmp_path / "program"), fcompile=with_minrpc("gcc", runtime="minimal"))


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"'popen'.*posix_popen_server, posix_tcp_server, cortex_m_uart_server"):
        with_minrpc("gcc", "popen")
    with pytest.raises(ValueError, match=r"'tvm'; there are libtvm, libtvm_ffi, minimal"):
        with_minrpc("gcc", runtime="tvm")
    for runtime in ("libtvm", "libtvm_ffi"):
        with pytest.raises(ValueError, match="'minimal'"):
            with_minrpc("arm-none-eabi-gcc", "cortex_m_uart_server", runtime)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: dict[str, ModuleSpec | None] = {"tvm": None, "tvm_ffi": None}
    monkeypatch.setattr(module, "find_spec", found.get)
    with pytest.raises(BuildError, match=r"'libtvm' .* apache-tvm-ffi is not installed .* 'libtvm_ffi' or 'minimal'"):
        with_minrpc("gcc")
    with pytest.raises(BuildError, match=r"'libtvm_ffi' .* apache-tvm-ffi is not installed .* choose 'minimal'"):
        with_minrpc("gcc", runtime="libtvm_ffi")
    with_minrpc("gcc", runtime="minimal")
    for name in found:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / name)]
        found[name] = spec
    with pytest.raises(BuildError, match=r"has no libtvm_ffi\.so"):
        with_minrpc("gcc")
    (tmp_path / "tvm_ffi" / "lib").mkdir(parents=True)
    (tmp_path / "tvm_ffi" / "lib" / "libtvm_ffi.so").touch()
    with pytest.raises(BuildError, match=r"has no libtvm_runtime\.so.*'libtvm_ffi' or 'minimal'"):
        with_minrpc("gcc")
    with_minrpc("gcc", runtime="libtvm_ffi")


def test_it_is_light() -> None:
    """Asking for it does not import TVM, which takes seconds; nor does linking TVM's library."""
    code = (
        "import sys; from rpcflow import with_minrpc; from rpcflow.sync import with_minrpc as same\n"
        "assert with_minrpc is same; with_minrpc('gcc', runtime=sys.argv[1])\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('tvm', 'tvm_ffi', 'numpy', 'trio')])"
    )
    runtime = "libtvm" if importlib.util.find_spec("tvm") else "minimal"
    command = [sys.executable, "-c", code, runtime]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
