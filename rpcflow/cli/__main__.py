# SPDX-License-Identifier: Apache-2.0
"""``python -m rpcflow.cli`` is the command ``rpcflow``."""

from . import main

main()
