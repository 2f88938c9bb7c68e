# SPDX-License-Identifier: Apache-2.0
"""The open sides of one group, measured turn about. A side that fails is out; the others go on."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.agent import Agent
from benchmarks.result import Series
from benchmarks.sides import SIDES


@dataclass(frozen=True)
class Settings:
    """How much is measured: all of it, or a quick look."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full


Placement = Literal["free", "apart", "together"]


def cores(placement: Placement) -> tuple[Sequence[int], Sequence[int]]:
    """Where servers and where clients may run: anywhere, on different halves of the cores, or on one core."""
    if placement == "free" or not hasattr(os, "sched_getaffinity"):
        return (), ()
    all_cores = sorted(os.sched_getaffinity(0))
    if placement == "together":
        return all_cores[:1], all_cores[:1]
    if len(all_cores) < 2:
        raise RuntimeError("this machine has one core: nothing can run apart")
    half = len(all_cores) // 2
    return all_cores[half:], all_cores[:half]


@dataclass(frozen=True)
class Take:
    """What a side does for one sample: a method of its client that returns a number."""

    method: str
    args: tuple[Any, ...] = ()
    most: int | None = None  # rounds this side takes part in, where it is too slow for all of them


@dataclass
class OpenSide:
    server: Agent
    client: Agent
    folder: Path  # the server's temporary folder


class Bench:
    """Opens sides by name and keeps the reason of each that could not be opened."""

    def __init__(self, placement: Placement = "free") -> None:
        self._server_cores, self._client_cores = cores(placement)
        self._stack = ExitStack()
        self._open: dict[str, OpenSide] = {}
        self.errors: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, *names: str, **options: Any) -> None:
        for name in names:
            print(f"benchmarks: starting {name}", file=sys.stderr)
            try:
                self._open[name] = self._start(name, options)
            except Exception as error:
                self._fail(name, error)

    def _start(self, name: str, options: Mapping[str, Any]) -> OpenSide:
        side = SIDES[name]
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        env = {"TMPDIR": folder}
        server = self._stack.enter_context(Agent(side.server.target, side.server.options, env, self._server_cores))
        wanted = {**side.client.options, **options, "port": server.call("port")}
        client = self._stack.enter_context(Agent(side.client.target, wanted, None, self._client_cores))
        return OpenSide(server, client, Path(folder))

    def _fail(self, name: str, error: Exception) -> None:
        self.errors[name] = str(error) or repr(error)
        self._open.pop(name, None)

    def side(self, name: str) -> OpenSide:
        if name in self.errors:
            raise RuntimeError(self.errors[name])
        return self._open[name]

    def call(self, name: str, method: str, *args: Any) -> Any:
        return self.side(name).client.call(method, *args)

    def interleave(self, takes: Mapping[str, Take], rounds: int) -> dict[str, Series]:
        """One round that does not count, then `rounds` of them: every side once a round, in turn."""
        samples: dict[str, list[float]] = {name: [] for name in takes}
        errors = {name: self.errors[name] for name in takes if name in self.errors}
        for turn in range(-1, rounds):
            for name, take in takes.items():
                if name in errors or (take.most is not None and turn >= take.most):
                    continue
                try:
                    value = self.call(name, take.method, *take.args)
                except Exception as error:
                    errors[name] = str(error) or repr(error)
                    continue
                if turn >= 0:
                    samples[name].append(float(value))
        return {name: Series(tuple(samples[name]), errors.get(name)) for name in takes}
