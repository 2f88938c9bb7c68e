# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzer over the C link; ``make fuzz`` runs it for longer."""

import subprocess
from pathlib import Path

import pytest

from .building import INCLUDE, RUNTIME, need, run

SOURCES = [RUNTIME / "fuzz" / "link_fuzz.c", *sorted((RUNTIME / "src").glob("link*.c"))]
SIZES = {
    "several": ["PAYLOAD_NBYTES=64", "SEND_FRAMES=3"],
    "least": ["PAYLOAD_NBYTES=32", "SEND_FRAMES=1", "RECEIVE_FRAMES=1"],
}


@pytest.mark.parametrize("sizes", SIZES)
def test_fuzzing_for_a_moment(tmp_path: Path, sizes: str) -> None:
    clang = need("clang", "clang libclang-rt-14-dev")
    fuzzer, corpus = tmp_path / "fuzzer", tmp_path / "corpus"
    corpus.mkdir()
    macros = [f"-DRPCFLOW_LINK_{size}" for size in SIZES[sizes]]
    sanitizers = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    run([clang, "-std=c99", *sanitizers, *macros, *INCLUDE, *SOURCES, "-o", fuzzer])
    command = [str(fuzzer), "-runs=20000", "-max_len=600", "-len_control=20", "-seed=1", str(corpus)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "Done 20000 runs" in ran.stderr
