# SPDX-License-Identifier: Apache-2.0
"""Both ends of a session as state machines: messages in, actions and bytes out.

Nothing here does I/O or keeps time. :mod:`.client` and :mod:`.server` hold the machines, :mod:`.handles` the
table of what a server gave out, :mod:`.wire_errors` how errors are put into words and taken out of them
again.
"""
