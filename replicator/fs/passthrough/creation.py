"""Objects that begin to exist."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from replicator.fs.attributes import attributes_of, proc_path
from replicator.fs.credentials import Caller, CreatedBy
from replicator.fs.nodes import Node
from replicator.fs.passthrough.captured import OUT_OF_DESCRIPTORS, Entry
from replicator.fs.passthrough.files import DROPPED_FLAGS, FileOperations
from replicator.fs.unfinished import exists
from replicator.ops import CREATION_MASK, AttributeMask, Flag, Kind

# The mtime as well: what is never written has no other occasion to tell it.
_CREATION_MASK = CREATION_MASK | AttributeMask.MTIME


class CreationOperations(FileOperations):
    """mknod(2), mkdir(2), symlink(2), and open(2) with O_CREAT or O_TMPFILE."""

    def mknod(self, parent_id: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        parent = self.nodes.get(parent_id)
        kind = Kind.CREATE if stat.S_ISREG(mode) else Kind.MKNOD
        path, recording = self._begin_creation(kind, parent, name)
        try:
            descriptor = self._directory(parent)
            with CreatedBy(caller), self._unless_done(FileExistsError):
                os.mknod(name, mode, rdev, dir_fd=descriptor)
            state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        return self._created(kind, parent, name, path, recording, state)

    def mkdir(self, parent_id: int, name: bytes, mode: int, caller: Caller) -> Entry:
        parent = self.nodes.get(parent_id)
        path, recording = self._begin_creation(Kind.MKDIR, parent, name)
        try:
            descriptor = self._directory(parent)
            with CreatedBy(caller), self._unless_done(FileExistsError):
                os.mkdir(name, mode & 0o7777, dir_fd=descriptor)
            state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        return self._created(Kind.MKDIR, parent, name, path, recording, state)

    def symlink(self, parent_id: int, name: bytes, text: bytes, caller: Caller) -> Entry:
        parent = self.nodes.get(parent_id)
        path, recording = self._begin_creation(Kind.SYMLINK, parent, name)
        try:
            descriptor = self._directory(parent)
            with CreatedBy(caller), self._unless_done(FileExistsError):
                os.symlink(text, name, dir_fd=descriptor)
            state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        return self._created(Kind.SYMLINK, parent, name, path, recording, state, text)

    def create(self, parent_id: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Entry]:
        """Create a regular file and open it. Returns its handle id and entry."""
        parent = self.nodes.get(parent_id)
        path, recording = self._begin_creation(Kind.CREATE, parent, name)
        open_flags = (
            flags & ~(DROPPED_FLAGS | os.O_TRUNC) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            directory = self._directory(parent)
            if self.redoing is not None and exists(name, directory):
                open_flags &= ~(os.O_CREAT | os.O_EXCL)
            with CreatedBy(caller):
                descriptor = os.open(name, open_flags, mode & 0o7777, dir_fd=directory)
            state = os.fstat(descriptor)
        except OSError as error:
            if recording:
                self._recorder.abandon()
            if error.errno in OUT_OF_DESCRIPTORS and self.nodes.open_directories:
                self.nodes.close_directories()
                return self.create(parent_id, name, mode, flags, caller)
            if error.errno == errno.EEXIST and not flags & os.O_EXCL:
                # Somebody made it in the storage below since the kernel found nothing there.
                entry = self.lookup(parent_id, name)
                return self.open(entry.node_id, flags, caller), entry
            raise
        entry = self._created(Kind.CREATE, parent, name, path, recording, state)
        return self._add_handle(descriptor, self.nodes.get(entry.node_id), flags), entry

    def create_unnamed(self, parent_id: int, mode: int, flags: int, caller: Caller) -> tuple[int, Entry]:
        """O_TMPFILE: a file without name, open. `link` may give it one."""
        parent = self.nodes.get(parent_id)
        open_flags = flags & ~DROPPED_FLAGS | os.O_TMPFILE | flags & os.O_EXCL | os.O_CLOEXEC
        with CreatedBy(caller):
            descriptor = os.open(b".", open_flags, mode & 0o7777, dir_fd=self._directory(parent))
        try:
            pinned = os.open(proc_path(descriptor), os.O_PATH | os.O_CLOEXEC)
        except OSError:
            os.close(descriptor)
            raise
        state = os.fstat(descriptor)
        node = self.nodes.attach_unnamed(state, pinned)
        self.nodes.looked_up(node)
        node.lacks_capability = True
        return self._add_handle(descriptor, node, flags), Entry(node.id, state)

    def _begin_creation(self, kind: Kind, parent: Node, name: bytes) -> tuple[bytes, bool]:
        path = self.nodes.child_path(parent, name)
        return path or b"", self._recorder.begin(kind, path)

    def _created(
        self,
        kind: Kind,
        parent: Node,
        name: bytes,
        path: bytes,
        recording: bool,
        state: os.stat_result,
        text: bytes = b"",
    ) -> Entry:
        if recording:
            self._mtimes.changed(parent)
            self._recorder.append(
                kind,
                path,
                path2=text,
                payload=attributes_of(state, _CREATION_MASK).encode(),
                flags=int(Flag.DIRECTORY) if kind is Kind.MKDIR else 0,
                inode=state.st_ino,
            )
        entry = self._entry(parent, name, state)
        if kind is Kind.CREATE:
            self.nodes.get(entry.node_id).lacks_capability = True
        return entry

    @contextmanager
    def _unless_done(self, done: type[OSError]) -> Iterator[None]:
        """`done` says that a killed predecessor had done this already, if it may have."""
        try:
            yield
        except done:
            if self.redoing is None:
                raise
