"""The server that a command talks to."""

import contextlib
from collections.abc import Iterator

# Makes the stubs of nibble.v1 when they are imported, from the .proto files on the path.
import grpc_tools.protoc  # noqa: F401

from nibble_client import Client, NibbleError
from nibble_tools.failure import Failure


@contextlib.contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client; what the server refuses becomes a Failure."""
    try:
        with Client(address) as client:
            yield client
    except NibbleError as error:
        where = f"server {address}" if error.code.name == "UNAVAILABLE" else error.code.name
        raise Failure(f"{error.message} ({where})") from error
