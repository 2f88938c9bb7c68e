# SPDX-License-Identifier: Apache-2.0
"""Devices without Python: the C runtime (``runtime/``), what builds it, and what loads modules into it."""
