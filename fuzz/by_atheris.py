# SPDX-License-Identifier: Apache-2.0
"""The driver where atheris is installed: ``python -m fuzz.by_atheris TARGET`` and libFuzzer's own options.

It runs in a process of its own, because libFuzzer ends its process.
"""

import sys

import atheris

with atheris.instrument_imports(include=["rpcflow"]):
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target until libFuzzer's options say to stop."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
