"""The one exception of this package."""

from __future__ import annotations

import grpc


class NibbleError(Exception):
    """A call that failed, or a job that did not succeed.

    `code` is the gRPC status code, `message` the server's sentence, unchanged. The grpc.RpcError
    of a failed call is the exception's `__cause__`.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def from_rpc(error: grpc.RpcError) -> NibbleError:
    """The NibbleError of a failed call."""
    return NibbleError(error.code(), error.details() or "")


def from_number(code: int, message: str) -> NibbleError:
    """The NibbleError of a nibble.v1.Failure, whose code is a number."""
    known = {status.value[0]: status for status in grpc.StatusCode}
    return NibbleError(known.get(code, grpc.StatusCode.UNKNOWN), message)
