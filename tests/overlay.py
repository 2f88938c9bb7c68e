# SPDX-License-Identifier: Apache-2.0
"""What lies under the sessions of tests that do not care: plain TCP, or TLS with RPCFLOW_TEST_OVER=tls."""

from __future__ import annotations

import os
from typing import Any

Security = dict[str, Any]
"""Options for servers."""
Urls = dict[int, str]
"""Whole addresses of the servers that run, by port."""


def security() -> Security:
    """The options for servers."""
    over = os.environ.get("RPCFLOW_TEST_OVER", "tcp")
    assert over in ("tcp", "tls"), f"RPCFLOW_TEST_OVER={over} is neither tcp nor tls"
    return {"tls": True} if over == "tls" else {}
