# SPDX-License-Identifier: Apache-2.0
"""The client's side: what both APIs share (:mod:`.core`, :mod:`.operations`, :mod:`.objects`), and the async one."""
