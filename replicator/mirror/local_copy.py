"""Large files of a source and a copy on one host and one file system: the kernel copies them, or shares
blocks.

The receiver makes a file without a name and passes it, open, through a socket that only processes of this
host and user reach. So that it is there proves where both are: nobody has to believe anything. The sender
puts the content there while the place of a piece is open, when it would read it otherwise; all else of the
transfer goes its usual way. So content comes earlier than its piece. But the file is applied to from the
first piece on, and what was done behind that comes once more: it ends as the source has it.
"""

import array
import os
import socket

import msgspec

from replicator.bounds import Count, Path
from replicator.fs.copying import clone, copy_on
from replicator.unix_sockets import HasPeer, peer_credentials

MESSAGE_BYTES = 8192
OFFERED = b"+"
_PATIENCE_S = 5.0


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """A file without a name for transfer number `transfer` of what is at `path`."""

    journal: Count
    path: Path
    transfer: Count


def address(connection_uuid: str, receiver_pid: int) -> bytes:
    """Of the receiver's socket: abstract, so it is gone with its process (unix(7))."""
    return f"\0replicator-copy-{connection_uuid}-{receiver_pid}".encode()


def peer_of_ours(connected: HasPeer) -> int | None:
    """The process at the other end; None: it is another user's, or out of sight (another container's)."""
    peer = peer_credentials(connected)
    return peer.pid if peer.pid > 0 and peer.uid == os.geteuid() else None


class LocalTarget:
    """The receiver of a connection, on this host. Blocking; one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def offer(self, journal: int, path: bytes, transfer: int) -> int | None:
        """A descriptor of a file without a name, of the caller; None: there is none."""
        try:
            self._socket.send(msgspec.msgpack.encode(Wanted(journal, path, transfer)))
            answer, descriptors, _, _ = socket.recv_fds(self._socket, 16, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
        if answer == OFFERED and len(descriptors) == 1:
            return descriptors[0]
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def close(self) -> None:
        self._socket.close()


def reach(connection_uuid: str, receiver_pid: int) -> LocalTarget | None:
    """None: it is on another host, or does not offer anything."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_PATIENCE_S)
        sock.connect(address(connection_uuid, receiver_pid))
        if peer_of_ours(sock) is not None:
            return LocalTarget(sock)
    except OSError:
        pass
    sock.close()
    return None


class LocalCopy:
    """The content of one file on its way to `descriptor`, which it takes over."""

    def __init__(self, source: int, descriptor: int) -> None:
        """OSError: they are not on one file system."""
        self._source = source
        self._descriptor = descriptor
        self._begun = False
        if os.fstat(source).st_dev != os.fstat(descriptor).st_dev:
            os.close(descriptor)
            raise OSError("not on one file system")

    def go_on(self, offset: int, end: int, bytes_max: int) -> tuple[int, int]:
        """As `copying.copy_on`; the first time all of it, where blocks can be shared. OSError."""
        if not self._begun:
            self._begun = True
            if clone(self._source, self._descriptor):
                size = os.fstat(self._descriptor).st_size
                return size, size
        return copy_on(self._source, self._descriptor, offset, end, bytes_max)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def ancillary(descriptor: int) -> list[tuple[int, int, bytes]]:
    """What passes a descriptor on (sendmsg(2))."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]).tobytes())]
