# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzer over the C runtime; ``make fuzz`` runs it for longer."""

import os
import subprocess
from pathlib import Path

import pytest

from .building import CORE, INCLUDE, RUNTIME, need, run

SOURCES = [RUNTIME / "fuzz" / "runtime_fuzz.c", *CORE]
SIZES = {"default": [], "least": ["PACKET_NBYTES=256", "TENSOR_NBYTES=128", "MAX_ARGS=12", "MESSAGE_NBYTES=32"]}


@pytest.mark.parametrize("sizes", SIZES)
def test_fuzzing_for_a_moment(tmp_path: Path, sizes: str) -> None:
    clang = need("clang", "clang libclang-rt-14-dev")
    fuzzer, corpus = tmp_path / "fuzzer", tmp_path / "corpus"
    corpus.mkdir()
    macros = [f"-DRPCFLOW_{size}" for size in SIZES[sizes]]
    sanitizers = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    run([clang, *sanitizers, *macros, *INCLUDE, *SOURCES, "-o", fuzzer])
    command = [str(fuzzer), "-runs=20000", "-max_len=1000", "-len_control=20", "-seed=1", str(corpus)]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=os.environ, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "Done 20000 runs" in ran.stderr
