# SPDX-License-Identifier: Apache-2.0
"""Bytes in order, or a clean failure: how two ends reach each other, one file a scheme."""

from .base import AsyncChannel, BlockingChannel, Transport
from .registry import check_transport, check_url, find_meeting_transport, find_transport
from .url import Url

__all__ = [
    "AsyncChannel",
    "BlockingChannel",
    "Transport",
    "Url",
    "check_transport",
    "check_url",
    "find_meeting_transport",
    "find_transport",
]
