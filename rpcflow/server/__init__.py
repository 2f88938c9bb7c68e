# SPDX-License-Identifier: Apache-2.0
"""The server: a supervisor that listens, a launcher that forks, a worker for each session.

The supervisor (any event loop, the program's own process) accepts, reads keys and holds deadlines. The launcher (a
process of one thread, warm with all imports) forks a worker for each session. The worker speaks to the client over
the socket it was handed, and is the only one to run user code.
"""
