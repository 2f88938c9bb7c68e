# SPDX-License-Identifier: Apache-2.0
"""Modules for a device that runs a known firmware: linked on the host, at the address the device gives.

The firmware's ELF file says where its functions are, so the module calls those; what the firmware lacks comes along
out of the compiler's libraries. An image is what lies in the device's memory: code, constants and variables in one
piece, and behind them the table that ``rpcflow.minrpc.load`` reads::

    count, count of initialisers, address of each initialiser, (address of function, address of its name) ...

in words of the processor's size, and the names, each ended by a NUL.
"""

import io
import os
import re
from collections.abc import Sequence
from typing import Final

import attrs

from rpcflow.server.linking import LOADABLE, LinkError, archived

from .elf import Elf, read_elf
from .files import Files
from .targets import Target, check_object, target_of

KERNEL_PREFIX: Final = "__tvm_ffi_"
"""Of the symbols of functions that a module offers."""
ALIGNMENT: Final = 64
"""Of an image, in bytes, as of all the device's blocks."""
_MOST_PADDING: Final = 1 << 16
_REGISTRATION: Final = "TVMFFIEnvModRegisterSystemLibSymbol"
_INITIALISERS: Final = ("__rpcflow_initialisers_begin", "__rpcflow_initialisers_end")
_UNDEFINED: Final = re.compile(r"undefined reference to `([^']+)'")

_SCRIPT: Final = """\
{externs}
{registration} = 0;
{unwinding}
SECTIONS {{
  . = {address:#x};
  .rpcflow_image : {{
    *(.text .text.* .gnu.linkonce.t.* .glue_7 .glue_7t .vfp11_veneer .v4_bx)
    . = ALIGN({word});
    *(.rodata .rodata.* .srodata .srodata.* .gnu.linkonce.r.*)
    . = ALIGN({word});
    *(.got .got.plt .igot .igot.plt)
    *(.data .data.* .sdata .sdata.* .gnu.linkonce.d.*)
    . = ALIGN({word});
    {begin} = .;
    KEEP(*(SORT_BY_INIT_PRIORITY({without}.init_array.*) {without}.init_array))
    {end} = .;
    *(.bss .bss.* .sbss .sbss.* COMMON)
    . = ALIGN({word});
  }}
  /DISCARD/ : {{
    *(.ARM.exidx* .ARM.extab* .eh_frame* .gcc_except_table*)
    *(.init_array .init_array.* .ctors .ctors.* .preinit_array* .fini_array* .dtors* .note* .comment .debug*)
  }}
}}
"""


@attrs.frozen
class Image:
    """What is written to the device. ``table``: where in it the table begins."""

    address: int
    data: bytes
    table: int


@attrs.define
class Linker:
    """Links one module.

    Args:
        name: of the module, for messages.
        data: an object (``.o``), or an archive of objects (``.tar``), by the suffix of the name.
        firmware_path: the ELF file of what the device runs.
        files: for what the compiler reads and writes.
    """

    name: str
    data: bytes
    firmware_path: str
    files: Files
    firmware: Elf = attrs.field(init=False)
    target: Target = attrs.field(init=False)
    guess: int = attrs.field(init=False, default=0)
    """An address near those that the device will give: as long as calls reach as far, the size stays the same."""
    _firmware: str = attrs.field(init=False)
    _compiler: str = attrs.field(init=False)
    _functions: list[str] = attrs.field(init=False, factory=list)
    _quiet: list[str] = attrs.field(init=False, factory=list)
    _objects: list[str] = attrs.field(init=False, factory=list)

    def prepare(self) -> None:
        """Look at the files, and put them where the compiler reads them. Takes milliseconds.

        Raises:
            LinkError: the module does not run there, or something is missing.
        """
        try:
            with open(self.firmware_path, "rb") as file:
                contents = file.read()
        except OSError as error:
            raise LinkError(f"the firmware's file {self.firmware_path} cannot be read: {error.strerror}") from error
        self.firmware = read_elf(os.path.basename(self.firmware_path), contents)
        self.target = target_of(self.firmware)
        self._firmware = self.files.write("firmware.elf", self.firmware.weakened(contents))
        self._take_objects()
        self._compiler = self.target.compiler()
        self.guess = (self.firmware.end() + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

    def _take_objects(self) -> None:
        if self.name.endswith(".o"):
            objects = [self.data]
        elif self.name.endswith(".tar"):
            objects = list(archived(io.BytesIO(self.data), self.name))
        else:
            known = "a device without files loads objects (.o) and archives of objects (.tar)"
            if self.name.endswith(LOADABLE):
                raise LinkError(f"{self.name} is a library for an operating system; {known}")
            raise LinkError(f"{self.name} cannot be loaded as a module: {known}")
        for i, data in enumerate(objects):
            given = read_elf(self.name, data)
            check_object(self.firmware, given)
            symbols = given.symbols()
            names = {symbol.name for symbol in symbols}
            if "rpcflow_register" in names:
                raise LinkError(
                    f"{self.name} registers functions as firmware does (RPCFLOW_REGISTER); a module that is loaded "
                    f"offers those called {KERNEL_PREFIX}NAME"
                )
            path = self.files.write(f"{i}.o", data)
            self._objects.append(path)
            if _REGISTRATION in names:
                self._quiet.append(path)
            self._functions += [
                symbol.name
                for symbol in symbols
                if symbol.defined and symbol.function and symbol.name.startswith(KERNEL_PREFIX)
            ]
        self._functions = list(dict.fromkeys(self._functions))
        if not self._functions:
            raise LinkError(f"{self.name} offers no function: there is no symbol {KERNEL_PREFIX}NAME in it")

    def check_build(self, device_id: bytes) -> None:
        """Make sure that the device runs the firmware we link with.

        Raises:
            LinkError: it does not.
        """
        ours = self.firmware.build_id
        if not ours or not device_id:
            which = f"{self.firmware.name} has" if not ours else "the device's firmware has"
            raise LinkError(f"{which} no build id; link it with -Wl,--build-id and keep the section for it")
        if ours != device_id:
            raise LinkError(
                f"the device does not run {self.firmware.name}: the build id of that file is {ours.hex()}, the "
                f"device's is {device_id.hex()}",
                file_build_id=ours.hex(),
                device_build_id=device_id.hex(),
            )

    def command(self, address: int) -> list[str]:
        """What links the module for an address."""
        arm = self.firmware.machine == "EM_ARM"
        quiet = " ".join(self._quiet)
        script = _SCRIPT.format(
            externs="\n".join(f'EXTERN("{name}")' for name in self._functions),
            registration=_REGISTRATION,
            # The one in libgcc would bring its unwinder along; nothing here unwinds.
            unwinding="".join(f"__aeabi_unwind_cpp_pr{i} = 0; " for i in range(3)) if arm else "",
            address=address,
            word=8,
            begin=_INITIALISERS[0],
            end=_INITIALISERS[1],
            # Registering with a system library is what an object does when it is part of the firmware. Nothing would
            # take the names out again; the table says them instead.
            without=f"EXCLUDE_FILE({quiet}) " if quiet else "",
        )
        kept = "\n".join([*self._functions, *_INITIALISERS])
        return [
            self._compiler,
            *self.target.flags,
            f"--specs={self.target.specs}",
            "-nostartfiles",
            "-fno-lto",  # its plugin would have a temporary file
            "-static",
            f"-Wl,--just-symbols={self._firmware}",
            f"-Wl,--retain-symbols-file={self.files.write('kept', kept.encode())}",
            "-Wl,--gc-sections,--build-id=none",
            "-Wl,--entry=0",
            "-T",
            self.files.write("image.ld", script.encode()),
            "-o",
            self.files.write("image.elf"),
            *self._objects,
            "-lm",
        ]

    def output(self) -> bytes:
        """What the linker wrote, as an ELF file."""
        return self.files.read("image.elf")

    def image(self, address: int) -> Image:
        """What the linker wrote for ``address``, with its table.

        Raises:
            LinkError: it cannot be loaded as it is.
        """
        linked = read_elf(f"{self.name}, linked", self.output())
        begin, contents = linked.memory()
        if not 0 <= begin - address <= _MOST_PADDING:
            raise LinkError(
                f"{self.name} has sections for places of their own, such as {begin:#x}: it cannot be loaded"
            )
        contents = bytes(begin - address) + contents  # variables that lie at multiples of more than the image does
        values = {symbol.name: symbol.value for symbol in linked.symbols() if symbol.defined}
        word = self.target.pointer_nbytes
        first, last = (values[name] - address for name in _INITIALISERS)
        initialisers = [int.from_bytes(contents[at : at + word], "little") for at in range(first, last, word)]
        table = (len(contents) + word - 1) // word * word
        words = [len(self._functions), len(initialisers), *initialisers]
        names_at = address + table + (len(words) + 2 * len(self._functions)) * word
        names = b""
        for symbol in self._functions:
            words += [values[symbol], names_at + len(names)]
            names += symbol.removeprefix(KERNEL_PREFIX).encode() + b"\0"
        data = contents.ljust(table, b"\0") + b"".join(w.to_bytes(word, "little") for w in words) + names
        return Image(address, data, table)

    def failure(self, command: Sequence[str], output: str) -> LinkError:
        """What the compiler's complaint means."""
        missing = list(dict.fromkeys(_UNDEFINED.findall(output)))
        if not missing:
            why = f"linking {self.name} failed"
            if "cannot read spec file" in output or "cannot find -l" in output:
                why += f" for want of a library (on Debian: apt-get install {self.target.package})"
        else:
            why = f"{self.name} needs what neither the firmware nor the compiler's libraries have: {', '.join(missing)}"
        return LinkError(f"{why}: {' '.join(command)}\n{output.strip()}", command=list(command))
