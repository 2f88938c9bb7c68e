# SPDX-License-Identifier: Apache-2.0
"""The driver where atheris is not installed: recorded inputs, changed here and there, and noise."""

import time
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from .targets import Target

_PHASES = (Phase.generate, Phase.shrink)
_ROUND = 500
_LENGTHS = [0, 1, 3, 4, 7, 8, 0xFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1]
_TOKENS = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from(_LENGTHS).map(lambda n: n.to_bytes(8, "little")),
    st.integers(0, 130).map(lambda n: n.to_bytes(4, "little")),
)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Noise, and what was recorded with a few bytes changed, taken out, doubled or put in."""
    seeds = list(target.seeds())

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(0, 5))):
            at = draw(st.integers(0, len(data)))
            match draw(st.sampled_from(["flip", "overwrite", "put", "cut", "repeat", "end"])):
                case "flip" if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
                case "overwrite":
                    token = draw(_TOKENS)
                    data[at : at + len(token)] = token
                case "put":
                    data[at:at] = draw(_TOKENS)
                case "cut":
                    del data[at : at + draw(st.integers(1, 20))]
                case "repeat":
                    data[at:at] = data[at : at + draw(st.integers(1, 80))]
                case "end":
                    del data[at:]
        return bytes(data)

    prefix = st.binary(min_size=target.prefix_nbytes, max_size=target.prefix_nbytes)
    return st.builds(lambda head, body: head + body, prefix, st.one_of(changed(), changed(), st.binary(max_size=200)))


def explore(
    target: Target, seed: int, seconds: float, examples: int | None = None
) -> tuple[bytes, BaseException] | None:
    """Run a target until the time is over (or so many examples are); a finding is its smallest input and error."""
    end = time.monotonic() + seconds
    failing = b""

    def attempt(data: bytes) -> None:
        nonlocal failing
        if time.monotonic() > end and not failing:
            return
        try:
            target.run(data)
        except BaseException:
            failing = data  # the last one is the smallest
            raise

    made = 0
    while time.monotonic() < end and (examples is None or made < examples):
        count = _ROUND if examples is None else min(_ROUND, examples - made)
        check: Any = given(inputs(target))(attempt)
        check = settings(
            max_examples=count,
            database=None,
            deadline=None,
            derandomize=False,
            phases=_PHASES,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )(check)
        try:
            seeded(seed + made)(check)()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return failing, error
        made += count
    return None
