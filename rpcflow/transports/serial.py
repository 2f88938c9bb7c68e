# SPDX-License-Identifier: Apache-2.0
"""``serial:///dev/ttyUSB0?baud=115200``: a device without Python on a serial line.

pyserial opens the port and sets it up (extra ``serial``); bytes go past it, when the descriptor is ready for them.
"""

import errno
import os
import secrets
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import attrs

from rpcflow.errors import ConnectionLostError
from rpcflow.protocol.link import HostLink, Sizes

from .link_channel import BlockingLinkChannel, LinkEnd
from .url import Url, file_path

if TYPE_CHECKING:
    from .async_link_channel import AsyncLinkChannel

_RESET_SECONDS: Final = 0.05
"""The width of a pulse that resets a device."""
_FEW_NBYTES: Final = 256
"""That may still be on their way out when a port is closed; closing waits for them."""
_WITHOUT: Final = (errno.EINVAL, errno.ENOTTY, errno.EIO)
"""What a port without modem lines says of them."""


def _flag(text: str) -> bool:
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ValueError("is 1 or 0")


def _one_of(*known: str) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in known:
            raise ValueError(f"is one of {', '.join(known)}")
        return text

    return choose


def _number(least: float, most: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise ValueError(f"is a number from {least:g} to {most:g}")
        return value

    return read


@attrs.frozen
class Settings:
    """The options behind the question mark of a ``serial:`` address.

    Args:
        baud: bits a second.
        parity: ``none``, ``even`` or ``odd``.
        stopbits: 1 or 2.
        rtscts: the lines RTS and CTS hold the flow up; not usable with ``reset=rts``.
        xonxoff: the bytes XON and XOFF hold it up.
        dsrdtr: the lines DSR and DTR hold it up.
        reset: the line that resets the device: it is pulsed when the port has been opened.
        timeout: seconds without a word from the device until the line is taken for dead.
        payload: most bytes of a frame, 32 to 1,024; the device may want less.
        window: most frames under way, 1 to 64; the device may want fewer.
        firmware: path of the ELF file of what the device runs; for ``load_module``.
    """

    baud: int = attrs.field(default=115200, metadata={"read": _number(50, 20_000_000)})
    parity: str = attrs.field(default="none", metadata={"read": _one_of("none", "even", "odd")})
    stopbits: int = attrs.field(default=1, metadata={"read": _number(1, 2)})
    rtscts: bool = attrs.field(default=False, metadata={"read": _flag})
    xonxoff: bool = attrs.field(default=False, metadata={"read": _flag})
    dsrdtr: bool = attrs.field(default=False, metadata={"read": _flag})
    reset: str = attrs.field(default="none", metadata={"read": _one_of("none", "dtr", "rts")})
    timeout: float = attrs.field(default=5.0, metadata={"read": _number(0.1, 86400, float)})
    payload: int = attrs.field(default=1024, metadata={"read": _number(32, 1024)})
    window: int = attrs.field(default=64, metadata={"read": _number(1, 64)})
    firmware: str | None = attrs.field(default=None, metadata={"read": str})

    @classmethod
    def of(cls, url: Url) -> "Settings":
        """Read an address's options.

        Raises:
            ValueError: one of them is not known, is given twice, or cannot be.
        """
        fields = {field.name: field for field in attrs.fields(cls)}
        given: dict[str, Any] = {}
        for name, text in url.query:
            if name not in fields:
                raise ValueError(f"{url}: {name!r} is not known; known are {', '.join(fields)}")
            if name in given:
                raise ValueError(f"{url}: {name} is given twice")
            try:
                given[name] = fields[name].metadata["read"](text)
            except ValueError as error:
                raise ValueError(f"{url}: {name} {error}, not {text!r}") from None
        settings = cls(**given)
        if settings.rtscts and settings.reset == "rts":
            raise ValueError(f"{url}: RTS holds up the flow, or resets the device; not both")
        if settings.dsrdtr and settings.reset == "dtr":
            raise ValueError(f"{url}: DTR holds up the flow, or resets the device; not both")
        return settings

    @property
    def byte_seconds(self) -> float:
        """How long the line takes for a byte."""
        return (1 + 8 + (self.parity != "none") + self.stopbits) / self.baud


class Port:
    """An open serial port that is nobody else's.

    Raises:
        ImportError: pyserial is missing.
        ConnectionLostError: there is no such port, or it cannot be had.
        ValueError: it cannot do what the settings say.
    """

    def __init__(self, path: str, settings: Settings) -> None:
        serial = pyserial()
        self._flow = settings.rtscts or settings.xonxoff or settings.dsrdtr
        self.where = f"{path} at {settings.baud} baud"
        try:
            self._port = serial.Serial(
                path,
                settings.baud,
                parity={"none": "N", "even": "E", "odd": "O"}[settings.parity],
                stopbits=settings.stopbits,
                timeout=0,
                rtscts=settings.rtscts,
                xonxoff=settings.xonxoff,
                dsrdtr=settings.dsrdtr,
                exclusive=True,
            )
        except ValueError as error:
            raise ValueError(f"{path} cannot be set to {settings.baud} baud and the other settings: {error}") from error
        except OSError as error:
            raise _refused(path, error) from error
        try:
            self.fd: int = self._port.fileno()
            self._set_up()
        except OSError as error:
            self.close()
            raise _refused(path, error) from error
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        import fcntl
        import termios

        try:
            # pyserial has it so that a read without data is the same as a read from a port that has been unplugged.
            attributes = termios.tcgetattr(self.fd)
            attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.fd, termios.TCSANOW, attributes)
        except termios.error as error:
            raise OSError(*error.args) from error
        fcntl.ioctl(self.fd, termios.TIOCEXCL)  # pyserial's lock is for those who ask for it

    def hold(self, line: str, on: bool) -> None:
        """Set a modem line, ``dtr`` or ``rts``, if there is one.

        Raises:
            ConnectionLostError: the port is gone.
        """
        try:
            setattr(self._port, line, on)
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise ConnectionLostError(f"{self.where}: {error}") from error

    def forget(self) -> None:
        """Throw away what has come so far."""
        import termios

        try:
            termios.tcflush(self.fd, termios.TCIFLUSH)
        except termios.error:
            pass  # gone: the first read says so

    def close(self) -> None:
        """Let go of it. Closing waits for what is still on its way out, so that must be little, and nothing where the
        device can hold it up."""
        if self._port.is_open:
            import fcntl
            import termios

            try:
                fcntl.ioctl(self._port.fileno(), termios.TIOCNXCL)
                waiting = self._port.out_waiting
                if waiting > _FEW_NBYTES or (waiting and self._flow):
                    termios.tcflush(self._port.fileno(), termios.TCOFLUSH)
            except OSError:
                pass  # unplugged
            self._port.close()


class SerialTransport:
    """Connects to a device on a serial line."""

    greets = False
    sockets = False

    def check(self) -> None:
        """Raises ImportError where pyserial is missing."""
        pyserial()

    async def connect(self, url: Url, *, poll: bool | None = None) -> "AsyncLinkChannel":
        import anyio

        from .async_link_channel import AsyncLinkChannel  # not needed by blocking programs and workers

        settings, port = _open(url)
        channel = AsyncLinkChannel(_line(settings, port), port.close)
        try:
            if settings.reset != "none":
                port.hold(settings.reset, True)
                await anyio.sleep(_RESET_SECONDS)
                port.hold(settings.reset, False)
            port.forget()
            await channel.begin()
        except BaseException:
            channel.close()
            raise
        return channel

    def connect_blocking(
        self, url: Url, *, deadline: float | None = None, poll: bool | None = None
    ) -> BlockingLinkChannel:
        settings, port = _open(url)
        try:
            channel = BlockingLinkChannel(_line(settings, port), port.close)
        except BaseException:
            port.close()
            raise
        try:
            if settings.reset != "none":
                port.hold(settings.reset, True)
                time.sleep(_RESET_SECONDS)
                port.hold(settings.reset, False)
            port.forget()
            channel.begin(deadline)
        except BaseException:
            channel.close()
            raise
        return channel


transport: Final = SerialTransport()


def pyserial() -> Any:
    """The package.

    Raises:
        ImportError: it is missing.
    """
    try:
        return import_module("serial")
    except ImportError as error:
        raise ImportError("serial lines need pyserial: pip install 'rpcflow[serial]'") from error


def ports() -> list[tuple[str, str, str]]:
    """The serial ports of this machine: device, description and hardware id of each.

    Raises:
        ImportError: pyserial is missing.
    """
    pyserial()
    found = import_module("serial.tools.list_ports").comports()
    return sorted((port.device, port.description or "", port.hwid or "") for port in found)


def _open(url: Url) -> tuple[Settings, Port]:
    if url.host or not url.path:
        raise ValueError(f"{url}: what follows serial:// is the path of a port, as in serial:///dev/ttyUSB0")
    if sys.platform == "win32":
        raise ConnectionLostError("serial lines are for POSIX systems; this is Windows")
    settings = Settings.of(url)
    return settings, Port(file_path(url), settings)


def _line(settings: Settings, port: Port) -> LinkEnd:
    sizes = Sizes(
        payload=settings.payload,
        window=settings.window,
        xonxoff=settings.xonxoff,
        byte_seconds=settings.byte_seconds,
    )
    link = HostLink(lambda: 1 + secrets.randbelow(0xFFFF), time.monotonic(), sizes=sizes, timeout=settings.timeout)
    return LinkEnd(port.fd, link, port.where)


def _refused(path: str, error: OSError) -> ConnectionLostError:
    code = error.errno
    if code is None and isinstance(error.__context__, OSError):
        code = error.__context__.errno
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        there = ", ".join(device for device, _, _ in ports()) or "none"
        return ConnectionLostError(f"there is no port {path}; the ports there are: {there}")
    if code in (errno.EACCES, errno.EPERM):
        return ConnectionLostError(
            f"{path} may not be opened by this user: on most systems that takes membership of the group dialout"
        )
    if code in (errno.EBUSY, errno.EWOULDBLOCK, errno.EAGAIN):
        return ConnectionLostError(f"{path} is busy: another program has it open")
    if code == errno.ENOTTY or (code is None and os.path.exists(path) and not _is_terminal(path)):
        return ConnectionLostError(f"{path} is not a serial port")
    return ConnectionLostError(f"{path} cannot be opened: {error}")


def _is_terminal(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.isatty(fd)
    finally:
        os.close(fd)
