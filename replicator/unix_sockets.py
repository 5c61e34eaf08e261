"""Unix sockets, where Python leaves off: addresses of deep paths, and who is at the other end."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from replicator import limits

_UCRED = struct.Struct("=iII")  # struct ucred of unix(7)


class Credentials(NamedTuple):
    """Whoever has connected, or listens, as it was then."""

    pid: int  # 0: out of sight, in another container
    uid: int
    gid: int


class HasPeer(Protocol):
    """A connected socket, of Python or of trio."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...


def peer_credentials(connected: HasPeer) -> Credentials:
    """Who is at the other end: SO_PEERCRED, unix(7). Raises OSError."""
    ucred = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(ucred))


@contextmanager
def socket_address(path: str) -> Iterator[str]:
    """A spelling of `path` that fits into the address of a Unix socket, however deep the home directory lies.

    Good until the end of the block, in this process. OSError if its directory is not there.
    """
    if len(os.fsencode(path)) <= limits.UNIX_SOCKET_PATH_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
