# SPDX-License-Identifier: Apache-2.0
"""``python -m rpcflow`` is the command ``rpcflow``."""

from .cli import main

main()
