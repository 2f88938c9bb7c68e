# SPDX-License-Identifier: Apache-2.0
"""Keeps a session to its grant: whatever it asks for is put to this first, and nothing has been done when it says no.

A grant binds what is asked for by name. It does not bind code: who may upload and load a module runs that with the
worker's rights, and a function that is allowed does what it does. It is best to name what is allowed, since new
functions come with each library; the tables here close the ways around a grant that leave names out.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Final

from rpcflow.backends import Backend
from rpcflow.devices import DEVICE_TYPES, Attribute, device_name
from rpcflow.errors import PermissionDeniedError
from rpcflow.protocol.values import Device
from rpcflow.security.grant import Grant, matches

LOCAL: Final = "rpc.LocalSession"
"""The constructor of a session in this process; that of a session without a constructor as well."""
ELSEWHERE: Final = frozenset({"rpc.Connect", "rpc.PopenSession", "rpc.CreatePipeClient"})
"""Constructors of sessions that do not run in this process."""
_ALL: Final = ("*",)
_ALWAYS: Final = frozenset({"tvm.rpc.server.GetCRTMaxPacketSize"})
"""Part of the protocol: a client has to know how long a packet may be."""
_LOADERS: Final = (
    "tvm.rpc.server.load_module",
    "tvm.rpc.server.download_linked_module",
    "tvm.rpc.server.ImportModule",
    "*.ModuleLoad*",
    "*.ModuleImportModule",
    "ffi.Module.load_from_*",
    "ffi.Module.create.*",
    "ffi.FunctionFromExternC",
    "ffi.MakeField?etter",
    "ffi.ModuleGlobalsAdd",
    "relax.ExecutableLoadFromFile",
    "relax.ExecBuilder*",
    "rpc.ImportRemoteModule",
    "rpc.LoadRemoteModule",
    "runtime.CSourceModuleCreate",
    "runtime.ModuleImport",
    "runtime.SourceModuleCreate",
    "codegen.LLVMModuleCreate",
    "target.Build",
    "tirx.build",
    "runtime.module.load*",
    "runtime.disco.*load_vm_module",
    "target.build.*",
)
"""What makes code of files, of data or of bare addresses, in the registries of tvm-ffi and TVM."""
_WRITERS: Final = (
    "tvm.rpc.server.upload",
    "tvm.rpc.server.remove",
    "*.ModuleWriteToFile",
    "*.ModuleSaveToFile",
    "runtime.SaveParamsToFile",
)
"""What writes or removes files by names that it is given."""
_ROUNDABOUT: Final = (
    "ffi.FunctionFromExternC",
    "ffi.FunctionRemoveGlobal",
    "ir.EnvFunc*",
    "rpc.CreateEventDrivenServer",
    "rpc.CreatePipeClient",
    "rpc.Connect",
    "rpc.ImportRemoteModule",
    "rpc.LoadRemoteModule",
    "rpc.LocalSession",
    "rpc.PopenSession",
    "rpc.ServerLoop",
    "runtime.disco.*",
    "vm.builtin.*py_func*",
)
"""What finds or replaces other functions, or begins sessions that know nothing of a grant: where anything at all is
limited, these have to be among the functions by their full names."""


class Guard:
    """A session's grant, applied.

    Every method raises PermissionDeniedError for what is not granted, and its text says so.

    Args:
        grant: what the session may do.
    """

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._who = repr(grant.who) if grant.who else "this session"

    @staticmethod
    def of(grant: Grant) -> "Guard | None":
        """A guard, or None where there is nothing to guard."""
        limited = not (grant.functions == grant.constructors == grant.devices == _ALL and grant.upload and grant.load)
        return Guard(grant) if limited else None

    def function(self, name: str) -> None:
        """A function is looked up by its name."""
        grant = self._grant
        if name in _ALWAYS:
            return
        if name in ELSEWHERE or name == LOCAL:  # TVM has them as functions as well
            self.constructor(name, as_function=True)
        if not matches(grant.functions, name) or (_any(_ROUNDABOUT, name) and name not in grant.functions):
            raise self._denied(f"use the function {name!r}", function=name)
        if not grant.load and _any(_LOADERS, name):
            raise self._denied(f"load modules, which the function {name!r} does", function=name)
        if not grant.upload and _any(_WRITERS, name):
            raise self._denied(f"write or remove files, which the function {name!r} does", function=name)

    def constructor(self, name: str, as_function: bool = False) -> None:
        """A session is begun by that constructor."""
        if not matches(self._grant.constructors, name):
            raise self._denied(f"use the session constructor {name!r}", constructor=name)
        if not as_function and name not in ELSEWHERE and name != LOCAL:
            self.function(name)  # one of the registry's

    def device(self, device: Device) -> None:
        """Something is to be done on a device."""
        if not self.allows_device(device):
            where = _device(device)
            raise self._denied(f"use the device {where}", device=where)

    def allows_device(self, device: Device) -> bool:
        """Whether a device may be used."""
        return matches(self._grant.devices, _device(device))

    def first_of(self, backend: Backend) -> int:
        """The number of the first device of a backend that may be used; at least one must be."""
        dev_type = DEVICE_TYPES[backend.kind]
        number = 0
        while not self.allows_device(Device(dev_type, number)):
            number += 1
            if not backend.attribute(number, Attribute.exist):
                self.device(Device(dev_type, 0))  # it is one of those that are not
        return number

    def of_backend(self, backend: Backend) -> Callable[[int], None]:
        """What looks whether a device of a backend may be used, by its number."""
        dev_type = DEVICE_TYPES[backend.kind]
        return lambda dev_id: self.device(Device(dev_type, dev_id))

    def write(self) -> None:
        """A file is to be written."""
        if not self._grant.upload:
            raise self._denied("write files")

    def _denied(self, what: str, **fields: str) -> PermissionDeniedError:
        return PermissionDeniedError(f"the server's policy does not let {self._who} {what}", **fields)


def _device(device: Device) -> str:
    return f"{device_name(device.dev_type)}:{device.dev_id}"


def _any(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
