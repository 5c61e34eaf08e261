"""The file system: performs every operation on the storage below and records it. Synchronous; knows no FUSE.

A binding translates a kernel's requests into calls; tests call directly. Objects are named by node ids, open
files and directories by handle ids, names are bytes. Every operation raises OSError with the errno for the
application.

Mutations must come from one thread, one after another: the order of calls is the order of records. `read` and
the syncs touch nothing but a descriptor and may run in threads beside them.

A record tells the state after its operation and is appended before the call returns. Failed operations leave
none, and so do operations on files that have no name any more. An mtime to be told later is noted before the
record ends the operation: a successor of a killed process finds one or the other.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from replicator.fs.handles import DirectoryHandle
from replicator.fs.holder import Descriptors
from replicator.fs.ledger import Known
from replicator.fs.passthrough.attributes import AttributeOperations
from replicator.fs.passthrough.captured import Entry
from replicator.fs.passthrough.creation import CreationOperations
from replicator.fs.passthrough.directories import DirectoryEntry, DirectoryOperations
from replicator.fs.passthrough.names import NameOperations


class Passthrough(AttributeOperations, CreationOperations, NameOperations, DirectoryOperations):
    """One captured directory, with all operations on it.

    They are one object and not several: the kernel's requests come one by one, and each costs microseconds.
    """

    @property
    def root_fd(self) -> int:
        return self.nodes.root.descriptor

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self.nodes.root.descriptor)

    def close(self) -> None:
        """Close every descriptor. Pending mtimes are the business of `settle`."""
        for descriptor in (*self._files, *self._directories):
            os.close(descriptor)
        self._files.clear()
        self._directories.clear()
        self.nodes.close()
        if self._notes is not None:
            self._notes.close()

    # --- taking over from a killed predecessor ---

    @property
    def head_sequence(self) -> int:
        """Of the last record."""
        return self._recorder.head_sequence

    @contextmanager
    def redo(self, inode: int, recorded: bool) -> Iterator[None]:
        """Within the block one operation is called that a killed predecessor may have done.

        `inode` is what it noted of the object. `recorded`: it has done it, and journaled that.
        """
        self.redoing, self._recorder.muted = inode, recorded
        try:
            yield
        finally:
            self.redoing, self._recorder.muted = None, False
            self._mtimes.settled()

    def is_open(self, handle_id: int) -> bool:
        return handle_id in self._files or handle_id in self._directories

    def open_files(self) -> list[tuple[int, int]]:
        """(handle id, node id) of every open file."""
        return [(handle_id, handle.node.id) for handle_id, handle in self._files.items()]

    def resume(self, alive: Iterable[Known], held: Descriptors) -> None:
        """Know again what a killed predecessor knew, with the descriptors it had, at the same numbers."""
        self.nodes.restore(alive, held.pinned)
        for descriptor, flags in held.files.items():
            state = os.fstat(descriptor)
            node = self.nodes.find(state)
            if node is None:  # the kernel forgot the object: it never got this handle, or has given it back
                os.close(descriptor)
                continue
            node.links = state.st_nlink
            self._add_handle(descriptor, node, flags)
        for descriptor in held.directories:
            node = self.nodes.find(os.fstat(descriptor))
            if node is None:
                os.close(descriptor)
                continue
            self._directories[descriptor] = DirectoryHandle(descriptor, node)
            node.uses += 1

    def recover(self, in_doubt: Iterable[bytes], unsettled: Iterable[bytes] = ()) -> None:
        """Journal the mtimes a killed predecessor still had to, and those beside what it was changing.

        `unsettled`: those of what it was changing that are names made, moved or removed: the mtimes there
        wait until that is journaled.
        """
        paths = dict.fromkeys(os.path.dirname(path) for path in in_doubt)
        if self._notes is not None:
            paths |= dict.fromkeys(self._notes.previous)
        self._mtimes.tell_previous(paths, unsettled)
        if self._notes is not None:
            self._notes.clear()  # told once is enough, if this process is killed as well

    # --- late mtimes ---

    def tick(self) -> None:
        """Journal the mtimes of files and directories that have been quiet for `limits.QUIET_MTIME_S`."""
        self._mtimes.tick()

    def settle(self) -> None:
        """Journal all mtimes that are still pending, at once."""
        self._mtimes.settle()

    @property
    def pending_mtimes(self) -> int:
        return len(self._mtimes)


__all__ = ["DirectoryEntry", "Entry", "Passthrough"]
