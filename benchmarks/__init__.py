# SPDX-License-Identifier: Apache-2.0
"""rpcflow side by side with its peers, on this machine, in one run: ``python -m benchmarks``.

How it is arranged::

    __main__      options, runs the groups, prints the table
    groups/       one file a group of rows: what is measured, against whom, and the figure to reach
    sides         who takes part: a server and a client for each
    bench         the open sides of one group, measured turn about
    agent         a process of its own that holds one server or one client and does what it is told
    servers/      the servers an agent can hold       clients/   the clients
    proc          what the kernel says of a process: memory, descriptors, children
    result        samples, targets, rows              table      how rows are printed

Each server and each client is a process of its own, so that no peer's threads or memory weigh on another.
Sides that are compared are measured in turns (A B C A B C ...) within the same minute, after a round that is
thrown away; what is printed is the median of the rounds, with the least and the greatest.
"""
