# SPDX-License-Identifier: Apache-2.0
"""The tracker: who has which devices, and who waits for one.

:mod:`.scheduler`, :mod:`.devices` and :mod:`.desk` are pure: they know neither sockets nor clocks. :mod:`.line` and
:mod:`.service` put them on the network.
"""
