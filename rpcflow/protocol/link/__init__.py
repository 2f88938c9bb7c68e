# SPDX-License-Identifier: Apache-2.0
"""The link layer: what makes a stream of bytes of a serial line. Specified in docs/reference/link.md."""

from .frames import MAX_PAYLOAD, MIN_PAYLOAD, Frame, FrameReader, Kind, Reason, encode
from .machine import DeviceLink, HostLink, Link, Sizes, State

__all__ = [
    "MAX_PAYLOAD",
    "MIN_PAYLOAD",
    "DeviceLink",
    "Frame",
    "FrameReader",
    "HostLink",
    "Kind",
    "Link",
    "Reason",
    "Sizes",
    "State",
    "encode",
]
