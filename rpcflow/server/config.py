# SPDX-License-Identifier: Apache-2.0
"""What a launcher and its workers are told."""

import attrs


@attrs.frozen
class WorkerConfig:
    """Everything but the session itself.

    Args:
        key: what the server answers with.
        sys_path: the module search path of the process that made the server.
        imports: modules to import, which register functions.
        libraries: shared libraries to load for all to see, as absolute paths.
        callback: a callable pickled by cloudpickle, called once after the imports; None for none.
        allowed: folders that paths may lie in besides the session's own.
        packet_timeout: seconds a client may stop in the middle of a packet.
        no_fork: spawn workers instead of forking them.
        poll: False turns adaptive polling off.
        greets: a worker answers the client's key; False where a proxy has done that.
        init_in_worker: imports and callback run in each worker, because they leave threads or devices behind.
        sandbox: the launcher and its workers run in a sandbox, see :mod:`rpcflow.server.sandbox`.
        sandbox_grant: what it lets through: ``net``, or absolute paths.
        hidden: files that it shows to nobody, wherever they lie: keys, policies.
    """

    key: str = ""
    sys_path: list[str] = attrs.Factory(list)
    imports: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    callback: bytes | None = None
    allowed: tuple[str, ...] = ()
    packet_timeout: float = 60.0
    no_fork: bool = False
    poll: bool | None = None
    greets: bool = True
    init_in_worker: bool = False
    sandbox: bool = False
    sandbox_grant: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
