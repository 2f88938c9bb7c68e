# SPDX-License-Identifier: Apache-2.0
"""A grpcio client on plain bytes."""

import time
from collections.abc import Iterator
from typing import Any, Self

from benchmarks.servers.grpc import PIECE


class GrpcClient:
    def __init__(self, port: int, size: int = 0, file: str = "") -> None:
        self._port, self._size = port, size
        self._channel: Any = None

    def __enter__(self) -> Self:
        import grpc

        options = [("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self._port}", options=options)
        grpc.channel_ready_future(self._channel).result(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def calls(self, count: int, warm: int) -> float:
        """Microseconds a call."""
        echo = self._channel.unary_unary("/bench/echo")
        message = (7).to_bytes(8, "little")
        start = 0.0
        for turn in range(-warm, count):
            if turn == 0:
                start = time.perf_counter()
            echo(message)
        return (time.perf_counter() - start) / count * 1e6

    def up(self) -> float:
        """Seconds to move the data there, in one stream."""

        def pieces() -> Iterator[bytes]:
            yield self._size.to_bytes(8, "little")
            for _ in range(self._size // PIECE):
                yield piece

        piece = bytes(PIECE)
        start = time.perf_counter()
        answer = self._channel.stream_unary("/bench/take")(pieces())
        if int.from_bytes(answer, "little") != self._size:
            raise RuntimeError("not all of it arrived")
        return time.perf_counter() - start

    def down(self, fresh: bool) -> float:
        """Seconds to get the data, in one stream, into one block of memory."""
        start = time.perf_counter()
        held = bytearray(self._size)
        filled = 0
        for piece in self._channel.unary_stream("/bench/give")(self._size.to_bytes(8, "little")):
            held[filled : filled + len(piece)] = piece
            filled += len(piece)
        if filled != self._size:
            raise RuntimeError("not all of it arrived")
        return time.perf_counter() - start
