# SPDX-License-Identifier: Apache-2.0
"""Servers are for Linux."""

import sys

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]
