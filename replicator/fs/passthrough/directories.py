"""Open directories."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from replicator.fs.handles import DirectoryHandle, Name
from replicator.fs.passthrough.captured import Captured, Entry

_DOTS = (b".", b"..")


class DirectoryEntry(NamedTuple):
    """One name of a directory. `position` is where reading goes on after it."""

    name: bytes
    position: int
    node_id: int
    state: os.stat_result


class DirectoryOperations(Captured):
    """From opendir(3) to closedir(3)."""

    def opendir(self, node_id: int) -> int:
        node = self.nodes.get(node_id)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(".", flags, dir_fd=self._directory(node))
        self._directories[descriptor] = DirectoryHandle(descriptor, node)
        node.uses += 1
        return descriptor

    def names(self, handle_id: int, position: int) -> Iterator[Name]:
        """Names from `position` on, with "." and "..". One is consumed when the next is asked for."""
        return self._directories[handle_id].names(position)

    def entry(self, handle_id: int, name: bytes) -> Entry | None:
        """What stands at a name that `names` told: a reference. None: it was removed since."""
        try:
            state = os.stat(name, dir_fd=handle_id, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self._entry(self._directories[handle_id].node, name, state)

    def readdir(self, handle_id: int, position: int) -> Iterator[DirectoryEntry]:
        """Entries from `position` on, without "." and "..". Each one consumed is a reference."""
        for name in self.names(handle_id, position):
            if name.name not in _DOTS and (entry := self.entry(handle_id, name.name)) is not None:
                yield DirectoryEntry(name.name, name.position, *entry)

    def releasedir(self, handle_id: int) -> None:
        handle = self._directories.pop(handle_id)
        os.close(handle_id)
        self.nodes.release(handle.node)

    def fsyncdir(self, handle_id: int, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(handle_id)
