# SPDX-License-Identifier: Apache-2.0
"""What tensors live on: memory, copies and streams, one file a kind of device. Server side only."""

from .base import Backend, BackendError, KernelError, Memory, Timer
from .registry import BackendTable

__all__ = ["Backend", "BackendError", "BackendTable", "KernelError", "Memory", "Timer"]
