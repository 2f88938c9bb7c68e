# SPDX-License-Identifier: Apache-2.0
"""float64 to float16, in C, against NumPy's."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from .building import INCLUDE, RUNTIME, SANITIZED, STRICT_C, need, run


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("half") / "half.so"
    flags = [flag.replace("address,", "") for flag in SANITIZED]
    source = RUNTIME / "src" / "half.c"
    run([need("gcc", "gcc"), *STRICT_C, *flags, *INCLUDE, "-shared", "-fPIC", source, "-o", made])
    loaded = ctypes.CDLL(str(made))
    loaded.rpcflow_half.restype = ctypes.c_uint16
    loaded.rpcflow_half.argtypes = [ctypes.c_uint64]
    return loaded


def test_all_numbers_and_what_lies_between_them(library: ctypes.CDLL) -> None:
    """Each float16, the middle to the next one, and the float64 just below and above both."""
    halves = np.arange(0x7C01, dtype="uint16").view("float16").astype("float64")
    halves[-1] = 65536.0
    middles = (halves[1:] + halves[:-1]) / 2
    exact = np.concatenate([halves, middles, [65520.0, 1e300, 5e-324, np.inf, np.finfo("float64").max]])
    with np.errstate(over="ignore"):
        values = np.concatenate([exact, np.nextafter(exact, -np.inf), np.nextafter(exact, np.inf)])
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype("float16").view("uint16")
    got = [library.rpcflow_half(bits) for bits in values.view("uint64").tolist()]
    assert np.array_equal(np.array(got, "uint16"), expected)


def test_what_is_no_number(library: ctypes.CDLL) -> None:
    for bits in (0x7FF0000000000001, 0x7FF8000000000000, 0xFFFFFFFFFFFFFFFF):
        half = np.array([library.rpcflow_half(bits)], "uint16").view("float16")[0]
        assert np.isnan(half)
        assert np.signbit(half) == bool(bits >> 63)


def test_the_name_that_kernels_use(tmp_path: Path) -> None:
    """It can be replaced by a library that has it."""
    made = tmp_path / "half.o"
    gcc = need("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    run([gcc, "-mcpu=cortex-m3", "-mthumb", *INCLUDE, "-c", RUNTIME / "src" / "half.c", "-o", made])
    assert " W __truncdfhf2" in run(["arm-none-eabi-nm", made])
