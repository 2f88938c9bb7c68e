# SPDX-License-Identifier: Apache-2.0
"""A grpcio server on plain bytes, with no generated code: echo, and bulk data in pieces of 1 MiB."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

PIECE = 1 << 20


def echo(request: bytes, _: Any) -> bytes:
    return request


def take(pieces: Iterator[bytes], _: Any) -> bytes:
    """Put what arrives where a tensor would be."""
    held: bytearray | None = None
    filled = 0
    for piece in pieces:
        if held is None:  # the first piece says how much will come
            held = bytearray(int.from_bytes(piece, "little"))
            continue
        held[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled.to_bytes(8, "little")


class GrpcServer:
    def __init__(self) -> None:
        self._server: Any = None
        self._port = 0

    def __enter__(self) -> Self:
        import grpc

        piece = bytes(PIECE)

        def give(request: bytes, _: Any) -> Iterator[bytes]:
            for _turn in range(int.from_bytes(request, "little") // PIECE):
                yield piece

        handlers = {
            "echo": grpc.unary_unary_rpc_method_handler(echo),
            "take": grpc.stream_unary_rpc_method_handler(take),
            "give": grpc.unary_stream_rpc_method_handler(give),
        }
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def port(self) -> int:
        return self._port
