"""What all operations share: the captured objects, what is recorded of them, and under which path."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from replicator import limits
from replicator.fs.attributes import attributes_of
from replicator.fs.handles import DirectoryHandle, FileHandle
from replicator.fs.ledger import Ledger
from replicator.fs.mtimes import LateMtimes, Notes
from replicator.fs.nodes import Node, NodeTable
from replicator.fs.ranges import Ranges
from replicator.fs.recorder import Recorder
from replicator.fs.search import Search, find_name
from replicator.ops import AttributeMask, Kind

OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class Entry(NamedTuple):
    """An object as a reply names it. The kernel now holds one more reference to the node."""

    node_id: int
    state: os.stat_result


class Captured:
    """One captured directory, as far as every operation needs it.

    Owns `root_fd`, a descriptor of the directory below the mount, and `notes`.
    """

    def __init__(
        self,
        root_fd: int,
        recorder: Recorder,
        *,
        descriptors_max: int = limits.NODE_DESCRIPTORS,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        notes: Notes | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.nodes = NodeTable(root_fd, descriptors_max, ledger)
        self._recorder = recorder
        self._notes = notes
        self._mtimes = LateMtimes(self.nodes, recorder, self._path, self._is_lost, monotonic_ns, notes)
        self._ranges = Ranges(recorder, self._mtimes, self._path)
        self.mode_dropped: Callable[[int], None] | None = None
        """Told the id of a node that lost suid or sgid by a change that does not answer with attributes."""
        self.note_inode: Callable[[int], None] = _note_nothing
        """Told the inode number of what stands at a name, before that is moved or removed; of a file without
        name, before it gets its first.
        """
        self.redoing: int | None = None
        """A killed predecessor may have done the operation called now, on this inode: then it is done."""
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._outside: set[int] = set()  # nodes without known name: all their names lie outside the root

    def lookup(self, parent_id: int, name: bytes) -> Entry:
        parent = self.nodes.get(parent_id)
        state = os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
        return self._entry(parent, name, state)

    def forget(self, references: Iterable[tuple[int, int]]) -> None:
        """The kernel gives references back: (node id, count)."""
        for node_id, count in references:
            self.nodes.forget(node_id, count)

    def _entry(self, parent: Node, name: bytes, state: os.stat_result) -> Entry:
        node = self.nodes.attach(parent, name, state)
        self.nodes.looked_up(node)
        return Entry(node.id, state)

    def _directory(self, node: Node) -> int:
        try:
            return self.nodes.directory(node)
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
        self.nodes.close_directories()
        return self.nodes.directory(node)

    # --- paths ---

    def _path(self, node: Node) -> bytes | None:
        """The path to record an operation under, an active one if there are several; None without a name."""
        path = self.nodes.path(node)
        if path is None:
            if node.links > 0 and not node.is_directory:
                path = self._search_name(node)
        elif node.others is not None and not self._recorder.is_active(path):
            for parent, name in node.others:
                other = self.nodes.child_path(parent, name)
                if other is not None and self._recorder.is_active(other):
                    return other
        return path

    def _search_name(self, node: Node) -> bytes | None:
        """A file that lives on under a hard link that was never looked up."""
        if node.id in self._outside or not self._recorder.active:
            return None
        result = find_name(self.nodes, node, limits.NAME_SEARCH_ENTRIES)
        if result is Search.FOUND:
            self.nodes.unpin(node)
            return self.nodes.path(node)
        if result is Search.NOWHERE:
            self._outside.add(node.id)
        return None

    def _is_lost(self, node: Node) -> bool:
        """Whether a node without a path lives on under a name that a search did not find."""
        return node.links > 0 and not node.is_directory and node.id not in self._outside

    def doubt(self, node_id: int) -> None:
        """The content of a file may have changed in a way that no request told."""
        try:
            path = self._path(self.nodes.get(node_id))
        except OSError:  # it is forgotten, so it has no name that matters
            return
        if path is not None and self._recorder.is_active(path):
            self._recorder.doubt(path)

    def identity(self, node_id: int) -> tuple[int, int]:
        """Device and inode number in the storage below."""
        node = self.nodes.get(node_id)
        return node.device, node.inode

    # --- modes ---

    def _record_mode(self, node: Node, path: bytes, state: os.stat_result) -> None:
        payload = attributes_of(state, AttributeMask.MODE).encode()
        self._recorder.append_more(
            Kind.SETATTR, path, payload=payload, flags=int(node.flags), inode=node.inode
        )

    def _tell_mode_dropped(self, node: Node) -> None:
        if self.mode_dropped is not None:
            self.mode_dropped(node.id)


def _note_nothing(inode: int) -> None:
    """For when no successor could use it."""


def without_privileges(mode: int) -> int:
    """The mode after a user changed the content: suid goes, and sgid if the group may execute."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
