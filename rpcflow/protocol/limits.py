# SPDX-License-Identifier: Apache-2.0
"""How much a peer may ask us to take in, and why that much."""

import attrs

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@attrs.frozen
class Limits:
    """Upper bounds on what comes off the line, in bytes unless said otherwise.

    Each is checked before memory is taken for what it bounds.
    """

    key_nbytes: int = 4 * KIB
    """A handshake key. Real ones are tens of bytes: a device type, or a type and a random match key."""
    packet_nbytes: int = MIB
    """A packet without the bulk data (tensor payload, long strings and bytes) it may carry."""
    value_nbytes: int = 4 * GIB
    """One string or bytes value: an uploaded library, say. Memory for it grows as its bytes arrive."""
    bulk_nbytes: int = 64 * KIB
    """In a packet over ``packet_nbytes``, a value at least this long goes to a sink as it arrives."""
    ndim: int = 64
    """Dimensions of a tensor; NumPy stops at 64 too."""
    tracker_frame_nbytes: int = MIB
    """A message to a tracker; stock's own limit."""
    tracker_answer_nbytes: int = 64 * MIB
    """A tracker's answer: a summary of 10,000 devices takes 2 MiB."""


DEFAULT_LIMITS = Limits()

BULK_NBYTES = 64 * KIB
"""A buffer at least this long is sent from where it lies; copying a shorter one is quicker."""
