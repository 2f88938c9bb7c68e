# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [--quick] [--only NAME ...] [--json FILE]``"""

import argparse
import json
import os
import platform
import sys
import traceback
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.bench import Settings
from benchmarks.result import Row, Series
from benchmarks.table import render

GROUPS = (
    "calls",
    "tensors",
    "files",
    "connect",
    "footprint",
    "kernel",
    "tracker",
    "proxy",
    "fleet",
    "pipe",
    "serial",
    "tls",
    "flood",
    "devices",
)
PACKAGES = ("rpcflow", "apache-tvm", "apache-tvm-ffi", "rpyc", "grpcio", "trio", "anyio", "numpy")


def machine() -> str:
    """One line that says what this was measured on."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{model}, {cores} cores, {system}, Python {platform.python_version()}"


def packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def measure(group: str, settings: Settings) -> list[Row]:
    print(f"benchmarks: group {group}", file=sys.stderr)
    rows: list[Row] = []
    try:
        for row in import_module(f"benchmarks.groups.{group}").rows(settings):
            rows.append(row)
    except Exception:
        rows.append(Row(group, "(the group itself)", "", Series(error=traceback.format_exc(limit=-4))))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="rpcflow side by side with its peers")
    parser.add_argument("--quick", action="store_true", help="less data, fewer rounds: a look, not a figure")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there as well")
    options = parser.parse_args()
    settings = Settings(quick=options.quick)
    rows = [row for group in GROUPS if group in (options.only or GROUPS) for row in measure(group, settings)]
    head = {"machine": machine(), "packages": packages(), "quick": options.quick}
    print(head["machine"], head["packages"], sep="\n", end="\n\n")
    print(render(rows))
    if options.quick:
        print("(--quick: less data and fewer rounds than the figures are stated for)")
    if options.json:
        options.json.write_text(json.dumps({**head, "rows": [row.as_json() for row in rows]}, indent=1) + "\n")
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
