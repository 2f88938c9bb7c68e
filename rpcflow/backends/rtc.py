# SPDX-License-Identifier: Apache-2.0
"""Compilers in a library, NVRTC and HIPRTC, which are alike but for the beginning of their functions' names."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from .base import KernelError, KernelSource


@attrs.frozen(eq=False)
class Compiler:
    """A compiler's functions.

    ``api``: the binding; ``prefix``: of its functions; ``create``: makes a program of a text and its name; ``destroy``.
    """

    api: Any
    prefix: str
    create: Callable[[bytes, bytes], Any]
    destroy: Callable[[Any], Any]

    def compile(self, source: KernelSource, options: Sequence[str], forms: Sequence[str]) -> list[bytes]:
        """A source compiled, in each of the forms, by their names in the binding.

        Raises:
            KernelError: it does not compile: in the compiler's own words.
        """
        text = source.text
        if "\0" in text:
            raise KernelError(f"{source.name} is no source: it has a zero byte in it")
        status, program = self.create(text.encode(), source.name.encode())
        if status:
            raise KernelError(f"{source.name} cannot be compiled: {self._name(status)}")
        try:
            (status,) = self._call("CompileProgram")(program, len(options), [option.encode() for option in options])
            if status:
                log = self._bytes(source, program, "ProgramLog").split(b"\0")[0].decode(errors="replace").strip()
                raise KernelError(f"{source.name} does not compile:\n{log or self._name(status)}")
            return [self._bytes(source, program, form) for form in forms]
        finally:
            self.destroy(program)

    def _bytes(self, source: KernelSource, program: Any, what: str) -> bytes:
        status, nbytes = self._call(f"Get{what}Size")(program)
        room = bytearray(int(nbytes) if not status else 0)
        if not status and room:
            (status,) = self._call(f"Get{what}")(program, room)
        if status:
            raise KernelError(f"the compiler does not give {source.name} as {what}: {self._name(status)}")
        return bytes(room)

    def _call(self, name: str) -> Any:
        return getattr(self.api, self.prefix + name)

    def _name(self, status: Any) -> str:
        return str(getattr(status, "name", status))
