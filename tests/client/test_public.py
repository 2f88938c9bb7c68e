# SPDX-License-Identifier: Apache-2.0
"""The public names, against the interface as it is documented."""

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

import rpcflow
from rpcflow import sync

CONNECT = (
    "(url, port=None, key='', session_timeout=0, session_constructor_args=None, enable_logging=False, *, "
    "wait_timeout=None, call_timeout=None, poll=None, firmware=None, "
    "token=None, pin=None, ca=None, identity=None)"
)
TIME_EVALUATOR = (
    "(self, func_name, dev, number=10, repeat=1, min_repeat_ms=0, limit_zero_time_iterations=100, "
    "cooldown_interval_ms=0, repeats_to_cooldown=1, cache_flush_bytes=0, f_preproc='')"
)
REQUEST = "(self, key, priority=1, session_timeout=0, max_retry=5, session_constructor_args=None, *, wait_timeout=None)"
EMPTY = "(self, shape, dtype='float32', mem_scope=None)"
MAKERS = ["cpu", "cuda", "cl", "vulkan", "metal", "rocm", "ext_dev", "hexagon", "webgpu"]
ERRORS = [
    "RPCError",
    "RemoteError",
    "FunctionNotFoundError",
    "RPCSessionTimeoutError",
    "WaitTimeoutError",
    "CallTimeoutError",
    "ConnectionLostError",
    "SessionCrashedError",
    "KeyMismatchError",
    "DuplicateKeyError",
    "ProtocolError",
    "AuthenticationError",
    "PermissionDeniedError",
]


def signature(function: Any) -> str:
    """Without annotations."""
    plain = inspect.signature(function)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in plain.parameters.values()]
    return str(plain.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connect", CONNECT),
        ("register", "(name, func=None, override=False)"),
        ("LocalSession", "()"),
        ("sync.connect", CONNECT),
        *(
            (f"{module}{name}", expected)
            for module in ("", "sync.")
            for name, expected in [
                ("connect_tracker", "(url, port=None, *, token=None, pin=None, ca=None, identity=None)"),
                ("with_minrpc", "(compile_func, server='posix_popen_server', runtime='libtvm')"),
                ("TrackerSession", "(addr, *, token=None, pin=None, ca=None, identity=None)"),
                ("TrackerSession.request", REQUEST),
                ("TrackerSession.request_and_run", "(self, key, func, priority=1, session_timeout=0, max_retry=2)"),
                ("TrackerSession.summary", "(self)"),
                ("TrackerSession.text_summary", "(self)"),
            ]
        ),
        ("sync.TrackerSession.close", "(self)"),
        ("sync.LocalSession", "()"),
        ("sync.tensor", "(array, device)"),
        ("sync.empty", "(shape, dtype, device)"),
        *(
            (f"{module}{name}", expected)
            for module, session in (("", "Session"), ("sync.", "RPCSession"))
            for name, expected in [
                (f"{session}.system_lib", "(self)"),
                (f"{session}.get_function", "(self, name)"),
                (f"{session}.device", "(self, dev_type, dev_id=0)"),
                (f"{session}.upload", "(self, data, target=None)"),
                (f"{session}.download", "(self, path)"),
                (f"{session}.remove", "(self, path)"),
                (f"{session}.listdir", "(self, path)"),
                (f"{session}.load_module", "(self, path, *, backend=None, signature=None, options=())"),
                (f"{session}.download_linked_module", "(self, path)"),
                *((f"{session}.{maker}", "(self, dev_id=0)") for maker in MAKERS),
                ("Device.tensor", "(self, array)"),
                ("Device.empty", EMPTY),
                ("Device.attr", "(self, name)"),
                ("Tensor.view", "(self, shape, dtype=None, byte_offset=0)"),
                ("Tensor.numpy", "(self)"),
                ("Tensor.copyfrom", "(self, array)"),
                ("Tensor.copyto", "(self, target)"),
                ("Module.time_evaluator", TIME_EVALUATOR),
            ]
        ),
    ],
)
def test_signatures(name: str, expected: str) -> None:
    found: Any = rpcflow
    for part in name.split("."):
        found = getattr(found, part)
    assert signature(found) == expected


SYNC_SERVER = [
    ("host", "0.0.0.0"),
    ("port", 9091),
    ("port_end", 9199),
    ("is_proxy", False),
    ("tracker_addr", None),
    ("key", ""),
    ("load_library", None),
    ("custom_addr", None),
    ("silent", False),
    ("no_fork", False),
    ("server_init_callback", None),
    ("reuse_addr", True),
    ("timeout", None),
]


@pytest.mark.parametrize(("server", "host"), [(rpcflow.Server, "127.0.0.1"), (sync.Server, "0.0.0.0")])
def test_servers_take_what_stock_takes_in_its_order(server: Any, host: str) -> None:
    parameters = inspect.signature(server).parameters
    positional = [(p.name, p.default) for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [("host", host), *SYNC_SERVER[1:]]
    assert parameters["max_sessions"].default == 1
    assert all(p.default is not p.empty for p in parameters.values() if p.kind is not p.VAR_KEYWORD)


@pytest.mark.parametrize("module", [rpcflow, sync])
def test_all_names_are_there_and_no_more(module: Any) -> None:
    assert module.__all__ == sorted(module.__all__, key=lambda name: (name.islower(), name)) or sorted(
        module.__all__
    ) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_what_the_interface_names() -> None:
    assert set(ERRORS) <= set(rpcflow.__all__)
    assert {"connect", "connect_tracker", "register", "Server", "LocalSession"} <= set(rpcflow.__all__)
    assert {"connect_tracker", "TrackerSession"} <= set(sync.__all__)
    assert {"connect", "Server", "RPCSession", "LocalSession", "tensor", "empty"} <= set(sync.__all__)


def test_the_errors() -> None:
    for name in ERRORS:
        kind = getattr(rpcflow, name)
        assert issubclass(kind, rpcflow.RPCError)
        assert issubclass(kind, RuntimeError)
    assert issubclass(rpcflow.FunctionNotFoundError, AttributeError)
    assert issubclass(rpcflow.WaitTimeoutError, TimeoutError)
    assert issubclass(rpcflow.CallTimeoutError, TimeoutError)
    assert issubclass(rpcflow.ConnectionLostError, ConnectionError)


def test_errors_carry_their_fields_through_a_pickle() -> None:
    import pickle

    error = rpcflow.RPCSessionTimeoutError("late", budget=1.0, used=1.5, call="f")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.details) == (type(error), "late", error.details)
    assert (again.budget, again.used, again.call) == (1.0, 1.5, "f")


def test_the_version_is_the_distributions() -> None:
    import tomllib
    from pathlib import Path

    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["version"] == rpcflow.__version__


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import rpcflow; rpcflow.RPCError", ["trio", "anyio", "numpy", "tvm_ffi", "click", "asyncio"]),
        ("from rpcflow import sync; sync.connect", ["tvm_ffi", "ml_dtypes", "cloudpickle", "click"]),
        ("from rpcflow import sync; sync.connect, sync.connect_tracker", ["trio", "anyio", "asyncio"]),
        ("import rpcflow; rpcflow.connect", ["tvm_ffi", "ml_dtypes", "cloudpickle", "click"]),
    ],
)
def test_imports_bring_no_more_than_is_needed(program: str, absent: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(absent) & set(run.stdout.split())


def test_public_modules_import_alone() -> None:
    for name in ("rpcflow.transports", "rpcflow.transports.testing", "rpcflow.transports.memory", "rpcflow.errors"):
        importlib.import_module(name)
