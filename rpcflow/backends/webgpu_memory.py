# SPDX-License-Identifier: Apache-2.0
"""A device of wgpu's and its memory.

WebGPU moves multiples of 4 bytes between multiples of 4, and nothing within one buffer. What is asked for here is bytes
of any number between any places: words at the edges are read, changed and written back; what lies askew goes by way of
the host. There is one queue, in whose order everything happens.
"""

from typing import Any, Final

import attrs

from .base import BackendError

_PIECE_NBYTES: Final = 8 << 20
"""Read at a time; a device keeps a buffer of that size for it."""
_SMALL_NBYTES: Final = 64 << 10
"""Up to that, reading by a buffer made for it is quicker than waiting for the one there is."""
_SUBMITTED_NBYTES: Final = 1 << 20
"""Written before the queue is told to begin; until then wgpu keeps the data."""
_WAITED_NBYTES: Final = 64 << 20
"""Written before the device has to catch up, for the same reason."""


@attrs.define(eq=False)
class Buffer:
    """A storage buffer. ``nbytes``: as asked for; ``size``: as it is, with what nobody looks at behind."""

    handle: Any
    nbytes: int
    size: int


class Device:
    """A device, opened.

    Args:
        wgpu: the binding.
        name: as in ``webgpu(0)``, for errors.
        adapter: wgpu's.
        features: those to ask for.

    Raises:
        BackendError: it cannot be used.
    """

    def __init__(self, wgpu: Any, name: str, adapter: Any, features: list[str]) -> None:
        self.wgpu = wgpu
        self.name = name
        self.info = adapter.info
        try:
            self.gpu = adapter.request_device_sync(required_features=features, required_limits=dict(adapter.limits))
        except (RuntimeError, KeyError, wgpu.GPUError) as error:
            raise BackendError(f"{name} cannot be used: {one_line(error)}", device=name) from error
        self.queue = self.gpu.queue
        self.features = frozenset(features)
        limits = self.gpu.limits
        self.max_nbytes = int(limits["max-buffer-size"]) & ~3
        self.max_binding = int(limits["max-storage-buffer-binding-size"])
        self.align = int(limits["min-storage-buffer-offset-alignment"])
        self.max_blocks = int(limits["max-compute-workgroups-per-dimension"])
        self.max_threads = [int(limits[f"max-compute-workgroup-size-{axis}"]) for axis in "xyz"]
        self.max_in_block = int(limits["max-compute-invocations-per-workgroup"])
        self.max_shared = int(limits["max-compute-workgroup-storage-size"])
        usage = wgpu.BufferUsage
        self.storage_usage = usage.STORAGE | usage.COPY_SRC | usage.COPY_DST
        self.uniform_usage = usage.UNIFORM | usage.COPY_DST
        self._copy_usage = usage.COPY_SRC | usage.COPY_DST
        self._read_usage = usage.MAP_READ | usage.COPY_DST
        self._read_mode = wgpu.MapMode.READ
        self._staging: Any = None
        self._mark: Any = None
        self._unsubmitted = 0
        self._unwaited = 0

    def told(self) -> "_Told":
        """Around calls of wgpu: makes its errors BackendErrors or MemoryErrors."""
        return _Told(self)

    def allocate(self, nbytes: int) -> Buffer:
        """A storage buffer."""
        size = max(nbytes + 3 & ~3, 4)
        return Buffer(self._make(size, self.storage_usage), nbytes, size)

    def between(self, size: int) -> Any:
        """A buffer of wgpu's to copy by way of, or to read from instead of another."""
        return self._make(size, self.storage_usage)

    def _make(self, size: int, usage: int) -> Any:
        with self.told():
            return self.gpu.create_buffer(size=size, usage=usage)

    def wait(self) -> None:
        """Until all is done that was submitted."""
        with self.told():
            if self._mark is None:
                self._mark = self._make(4, self.storage_usage)
            self.queue.read_buffer(self._mark)  # comes behind everything else
        self._unsubmitted = self._unwaited = 0

    def write(self, buffer: Buffer, offset: int, data: memoryview) -> None:
        """Host memory into a buffer."""
        end = offset + len(data)
        start, stop = offset & ~3, end + 3 & ~3
        if start != offset or stop != end:
            words = bytearray(stop - start)
            if start != offset:
                words[:4] = self._words(buffer, start, 4)
            if stop != end and end < buffer.nbytes:
                words[-4:] = self._words(buffer, stop - 4, 4)
            words[offset - start : end - start] = data
            data = memoryview(words)
        with self.told():
            self.queue.write_buffer(buffer.handle, start, data)
            self._unsubmitted += len(data)
            if self._unsubmitted >= _SUBMITTED_NBYTES:
                self.queue.submit([])
                self._unwaited += self._unsubmitted
                self._unsubmitted = 0
        if self._unwaited >= _WAITED_NBYTES:
            self.wait()

    def read(self, buffer: Buffer, offset: int, data: memoryview) -> None:
        """A buffer into host memory."""
        done = 0
        while done < len(data):
            begin = offset + done
            count = min(len(data) - done, _PIECE_NBYTES - (begin & 3))
            start, stop = begin & ~3, begin + count + 3 & ~3
            if stop - start <= _SMALL_NBYTES:
                words = self._words(buffer, start, stop - start)
                data[done : done + count] = words[begin - start : begin - start + count]
            else:
                self._piece(buffer, start, stop - start, data[done : done + count], begin - start)
            done += count

    def _words(self, buffer: Buffer, start: int, size: int) -> memoryview:
        with self.told():
            words: memoryview = self.queue.read_buffer(buffer.handle, start, size)
        return words

    def _piece(self, buffer: Buffer, start: int, size: int, data: memoryview, skip: int) -> None:
        if self._staging is None:
            self._staging = self._make(_PIECE_NBYTES, self._read_usage)
        staging = self._staging
        with self.told():
            encoder = self.gpu.create_command_encoder()
            encoder.copy_buffer_to_buffer(buffer.handle, start, staging, 0, size)
            self.queue.submit([encoder.finish()])
            staging.map_sync(self._read_mode, 0, size)
            data[:] = staging.read_mapped(0, size, copy=False)[skip : skip + len(data)]
            staging.unmap()

    def copy(self, source: Buffer, source_offset: int, target: Buffer, target_offset: int, nbytes: int) -> None:
        """From a buffer into another, or within one."""
        end = target_offset + nbytes
        if source_offset & 3 or target_offset & 3 or (nbytes & 3 and end < target.nbytes):
            data = memoryview(bytearray(nbytes))
            self.read(source, source_offset, data)
            self.write(target, target_offset, data)
            return
        size = nbytes + 3 & ~3
        between = self._make(size, self._copy_usage) if source is target else None
        with self.told():
            encoder = self.gpu.create_command_encoder()
            if between is None:
                encoder.copy_buffer_to_buffer(source.handle, source_offset, target.handle, target_offset, size)
            else:
                encoder.copy_buffer_to_buffer(source.handle, source_offset, between, 0, size)
                encoder.copy_buffer_to_buffer(between, 0, target.handle, target_offset, size)
            self.queue.submit([encoder.finish()])
            if between is not None:
                between.destroy()  # once the queue is done with it

    def close(self) -> None:
        """The session is over."""
        self._staging = self._mark = None


class _Told:
    """See :meth:`Device.told`."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        device, wgpu = self._device, self._device.wgpu
        if isinstance(error, wgpu.GPUOutOfMemoryError) or "not enough memory" in str(error).lower():
            raise MemoryError(f"{device.name}: {one_line(error)}") from error
        if isinstance(error, wgpu.GPUError) or type(error) is RuntimeError:  # the latter where mapping fails
            raise BackendError(f"{device.name}: {one_line(error)}", device=device.name) from error


def one_line(error: BaseException) -> str:
    """An error's words, without what wgpu puts before each and without line breaks."""
    return " ".join(words(error).split())


def words(error: BaseException) -> str:
    """An error's words, without what wgpu puts before each."""
    lines = str(error).strip().splitlines()
    while lines and (not lines[0].strip() or lines[0].strip() in ("Validation Error", "Caused by:")):
        lines.pop(0)
    if len(lines) > 1 and lines[0].strip().startswith("In wgpu"):
        lines.pop(0)
    return "\n".join(line for line in lines if line.strip())
