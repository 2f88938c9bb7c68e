# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz``: fuzz for a while; the status is 1 where something was found.

Each finding is written to fuzz/findings/ and can be run again with ``--run FILE --target NAME``.
"""

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from .by_hypothesis import explore
from .targets import TARGETS, corpus_of

HERE = Path(__file__).parent
FINDINGS = HERE / "findings"
WORK = HERE / ".work"
"""What coverage has shown to be interesting, kept from run to run."""
_MAX_NBYTES = 8192
_GRACE_SECONDS = 90
"""For starting a process, importing with instrumentation, and its last input."""


def minutes_each(minutes: float, targets: int) -> float:
    """The share of one target."""
    return minutes / targets


def report(name: str, data: bytes, folder: Path = FINDINGS) -> Path:
    """Keep a finding, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{name}: FOUND something; run it again with\n  python -m fuzz --target {name} --run {path}", flush=True)
    return path


def run_once(name: str, data: bytes) -> bool:
    """Run one input; whether it was good."""
    try:
        TARGETS[name].run(data)
    except Exception:
        traceback.print_exc()
        return False
    return True


def with_hypothesis(name: str, seed: int, seconds: float) -> bool:
    """Fuzz one target here; whether nothing was found."""
    found = explore(TARGETS[name], seed, seconds)
    if found is None:
        return True
    data, error = found
    traceback.print_exception(error)
    report(name, data)
    return False


def with_atheris(name: str, seed: int, seconds: float) -> bool:
    """Fuzz one target in a process of its own; whether nothing was found."""
    kept = WORK / "corpus" / name
    kept.mkdir(parents=True, exist_ok=True)
    for data in corpus_of(name):
        (kept / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=WORK) as artifacts:
        return _with_libfuzzer(name, kept, Path(artifacts), seed, seconds)


def _with_libfuzzer(name: str, kept: Path, artifacts: Path, seed: int, seconds: float) -> bool:
    command = [sys.executable, "-m", "fuzz.by_atheris", name, str(kept), f"-max_total_time={max(1, round(seconds))}"]
    command += [f"-seed={seed % (1 << 31) or 1}", f"-artifact_prefix={artifacts}/", f"-max_len={_MAX_NBYTES}"]
    command += ["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"]
    try:
        ran = subprocess.run(
            command,
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + _GRACE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: the process did not end in time", flush=True)
        return False
    found = sorted(artifacts.iterdir())
    for path in found:
        report(name, path.read_bytes())
    if found or ran.returncode:
        print(ran.stdout[-4000:], ran.stderr[-4000:], sep="\n", flush=True)
        return False
    runs = [line.split()[-1] for line in ran.stderr.splitlines() if "number_of_executed_units" in line]
    print(f"  {runs[0] if runs else 'some'} inputs", flush=True)
    return True


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="for all targets together (default: 5)")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="as printed by the run to be repeated")
    parser.add_argument("--driver", choices=["auto", "atheris", "hypothesis"], default="auto")
    parser.add_argument("--run", type=Path, metavar="FILE", help="run one input, a finding say, and no more")
    parser.add_argument("--list", action="store_true", help="say what the targets are")
    chosen = parser.parse_args(args)
    names = chosen.target or list(TARGETS)
    if chosen.list:
        for name in names:
            print(f"{name}: {TARGETS[name].run.__doc__}")
        return 0
    if chosen.run is not None:
        if len(names) != 1:
            parser.error("--run wants one --target")
        return 0 if run_once(names[0], chosen.run.read_bytes()) else 1
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1, 1 << 31)
    has_atheris = importlib.util.find_spec("atheris") is not None
    if chosen.driver == "atheris" and not has_atheris:
        parser.error("atheris is not installed: pip install atheris")
    fuzz = with_hypothesis if chosen.driver == "hypothesis" or not has_atheris else with_atheris
    print(f"seed {seed}, {fuzz.__name__.replace('_', ' ')}", flush=True)
    good = True
    for name in names:
        seconds = 60 * minutes_each(chosen.minutes, len(names))
        begin = time.monotonic()
        print(f"{name}: {seconds:.0f} s", flush=True)
        bad = [data for data in corpus_of(name) if not run_once(name, data)]
        for data in bad:
            report(name, data)
        good = not bad and good
        good = fuzz(name, seed, max(0.0, seconds - (time.monotonic() - begin))) and good
    print("nothing found" if good else f"findings are in {FINDINGS}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
