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

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from replicator import limits
from replicator.fs import calls
from replicator.fs.attributes import attributes_of, is_replicated_xattr, proc_path, set_times
from replicator.fs.credentials import Caller, CreatedBy
from replicator.fs.handles import DirectoryHandle, FileHandle, Name
from replicator.fs.holder import Descriptors
from replicator.fs.ledger import Known, Ledger
from replicator.fs.mtimes import LateMtimes, Notes
from replicator.fs.nodes import Node, NodeTable
from replicator.fs.ranges import Ranges, readable
from replicator.fs.recorder import Recorder
from replicator.fs.search import Search, find_name
from replicator.ops import (
    CREATION_MASK,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AttributeMask,
    Flag,
    Kind,
)

# The kernel writes dirty pages of a shared mapping through any open handle, at the right offset: a backing
# descriptor with O_APPEND would put them at the end. O_DIRECT would need aligned buffers. O_SYNC is done
# apart from the write, so that waiting for the disk holds up nobody else.
_SYNC_FLAGS = os.O_SYNC | os.O_DSYNC
_DROPPED_FLAGS = (
    os.O_APPEND | os.O_DIRECT | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_NONBLOCK | _SYNC_FLAGS
)
# The mtime as well: what is never written has no other occasion to tell it.
_CREATION_MASK = CREATION_MASK | AttributeMask.MTIME
_DOTS = (b".", b"..")
_ACCESS_ACL = b"system.posix_acl_access"
_CAPABILITY = b"security.capability"
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class Entry(NamedTuple):
    """An object as a reply names it. The kernel now holds one more reference to the node."""

    node_id: int
    state: os.stat_result


class DirectoryEntry(NamedTuple):
    """One name of a directory. `position` is where reading goes on after it."""

    name: bytes
    position: int
    node_id: int
    state: os.stat_result


class Passthrough:
    """One captured directory. Owns `root_fd`, a descriptor of the directory below the mount, and `notes`."""

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
        """Told, before a name is moved or removed, the inode number of what stands there."""
        self.redoing: int | None = None
        """A killed predecessor may have done the operation called now, on this inode: then it is done."""
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._outside: set[int] = set()  # nodes without known name: all their names lie outside the root

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

    def is_open(self, handle_id: int) -> bool:
        return handle_id in self._files or handle_id in self._directories

    def open_files(self) -> list[tuple[int, int]]:
        """(handle id, node id) of every open file."""
        return [(handle_id, handle.node.id) for handle_id, handle in self._files.items()]

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

    def close(self) -> None:
        """Close every descriptor. Pending mtimes are the business of `settle`."""
        for descriptor in (*self._files, *self._directories):
            os.close(descriptor)
        self._files.clear()
        self._directories.clear()
        self.nodes.close()
        if self._notes is not None:
            self._notes.close()

    @property
    def root_fd(self) -> int:
        return self.nodes.root.descriptor

    # --- nodes ---

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
            if error.errno not in _OUT_OF_DESCRIPTORS:
                raise
        self.nodes.close_directories()
        return self.nodes.directory(node)

    # --- attributes ---

    def getattr(self, node_id: int) -> os.stat_result:
        return self.nodes.stat(self.nodes.get(node_id))

    def statx(self, node_id: int, mask: int) -> bytes:
        """struct statx, with what `mask` asks for as far as the storage below knows it."""
        return self.nodes.statx(self.nodes.get(node_id), mask)

    def setattr(
        self,
        node_id: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        handle_id: int | None = None,
        drop_privileges: bool = False,
    ) -> os.stat_result:
        """Change what is given. Records: TRUNCATE for the size, one SETATTR with the results for the rest.

        `drop_privileges`: a new size takes suid and sgid away, as the kernel did not (FATTR_KILL_SUIDGID).
        """
        node = self.nodes.get(node_id)
        state = self.nodes.stat(node)
        if mode is uid is gid is size is atime_ns is mtime_ns is None:  # the kernel asked for a new ctime
            if not node.is_directory and state.st_mode & (stat.S_ISUID | stat.S_ISGID):
                # Of a change of owner that names none, which takes these bits away, also when root does it.
                return self.setattr(node_id, uid=-1, gid=-1)
            return state
        is_link = stat.S_ISLNK(state.st_mode)
        if is_link and (mode is not None or size is not None):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        path = self._path(node)
        recording = self._recorder.begin(Kind.SETATTR if size is None else Kind.TRUNCATE, path)
        resized = False
        mask = 0
        try:
            address, follow = self.nodes.address(node)
            if size is not None:
                if handle_id is not None and handle_id in self._files:
                    os.ftruncate(handle_id, size)
                else:
                    os.truncate(address, size)
                resized = True
                if drop_privileges:
                    unprivileged = without_privileges(state.st_mode)
                    mode = unprivileged if mode is None and unprivileged != state.st_mode else mode
            if uid is not None or gid is not None:
                owner = -1 if uid is None else uid
                group = -1 if gid is None else gid
                os.chown(address, owner, group, follow_symlinks=follow)
                # The kernel below may have cleared suid and sgid.
                mask |= AttributeMask.UID | AttributeMask.GID | AttributeMask.MODE
            if mode is not None:
                os.chmod(address, mode & 0o7777)
                mask |= AttributeMask.MODE
            if atime_ns is not None or mtime_ns is not None:
                self._set_times(node, atime_ns, mtime_ns)
                mask |= AttributeMask.ATIME if atime_ns is not None else 0
                mask |= AttributeMask.MTIME if mtime_ns is not None else 0
            state = self.nodes.stat(node)
        except OSError:
            if recording and path is not None:
                self._recorder.abandon()
                if resized or mask:
                    self._recorder.doubt(path)
            raise
        if not recording or path is None:
            return state
        payload = attributes_of(state, mask).encode() if mask else b""
        flags = int(node.flags)
        if size is not None:
            self._mtimes.changed(node)
            self._recorder.append(Kind.TRUNCATE, path, flags=flags, inode=node.inode, arg0=size)
            if mask:
                self._recorder.append_more(Kind.SETATTR, path, payload=payload, flags=flags, inode=node.inode)
        else:
            self._recorder.append(Kind.SETATTR, path, payload=payload, flags=flags, inode=node.inode)
        if mtime_ns is not None:
            self._mtimes.told(node)
        return state

    def _set_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        if node.descriptor >= 0 or node.parent is None:
            set_times(node.descriptor, atime_ns, mtime_ns)
        else:
            set_times(self._directory(node.parent), atime_ns, mtime_ns, name=node.name)

    def readlink(self, node_id: int) -> bytes:
        node = self.nodes.get(node_id)
        if node.descriptor >= 0 or node.parent is None:
            return os.readlink(b"", dir_fd=node.descriptor)
        return os.readlink(node.name, dir_fd=self._directory(node.parent))

    # --- creating ---

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
            flags & ~(_DROPPED_FLAGS | os.O_TRUNC) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            directory = self._directory(parent)
            if self.redoing is not None and _exists(name, directory):
                open_flags &= ~(os.O_CREAT | os.O_EXCL)
            with CreatedBy(caller):
                descriptor = os.open(name, open_flags, mode & 0o7777, dir_fd=directory)
            state = os.fstat(descriptor)
        except OSError as error:
            if recording:
                self._recorder.abandon()
            if error.errno in _OUT_OF_DESCRIPTORS and self.nodes.open_directories:
                self.nodes.close_directories()
                return self.create(parent_id, name, mode, flags, caller)
            if error.errno == errno.EEXIST and not flags & os.O_EXCL:
                # Somebody made it in the storage below since the kernel found nothing there.
                entry = self.lookup(parent_id, name)
                return self.open(entry.node_id, flags, caller), entry
            raise
        entry = self._created(Kind.CREATE, parent, name, path, recording, state)
        return self._add_handle(descriptor, self.nodes.get(entry.node_id), flags), entry

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

    def create_unnamed(self, parent_id: int, mode: int, flags: int, caller: Caller) -> tuple[int, Entry]:
        """O_TMPFILE: a file without name, open. `link` may give it one."""
        parent = self.nodes.get(parent_id)
        open_flags = flags & ~_DROPPED_FLAGS | os.O_TMPFILE | flags & os.O_EXCL | os.O_CLOEXEC
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

    # --- names ---

    def link(self, node_id: int, parent_id: int, name: bytes) -> Entry:
        node = self.nodes.get(node_id)
        parent = self.nodes.get(parent_id)
        if node.links == 0:
            return self._link_unnamed(node, parent, name)
        old_path = self._path(node)
        new_path = self.nodes.child_path(parent, name)
        recording = new_path is not None and self._recorder.begin(Kind.LINK, old_path, new_path)
        try:
            address, descriptor = self.nodes.address_and_directory(node, parent)
            # A pinned object's address is a magic link to it; another's is its own name, maybe a symlink.
            with self._unless_done(FileExistsError):
                os.link(address, name, dst_dir_fd=descriptor, follow_symlinks=node.descriptor >= 0)
            state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        node.links = state.st_nlink
        if recording and old_path is not None and new_path is not None:
            self._mtimes.changed(parent)
            self._recorder.append(
                Kind.LINK, old_path, path2=new_path, flags=int(node.flags), inode=node.inode
            )
        return self._entry(parent, name, state)

    def _link_unnamed(self, node: Node, parent: Node, name: bytes) -> Entry:
        """A file of `create_unnamed` gets its first name: here it begins to exist for a target."""
        path = self.nodes.child_path(parent, name)
        recording = self._recorder.begin(Kind.CREATE, path)
        try:
            address, descriptor = self.nodes.address_and_directory(node, parent)
            with self._unless_done(FileExistsError):
                os.link(address, name, dst_dir_fd=descriptor, follow_symlinks=True)
            state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        if recording and path is not None:
            try:
                with readable(node.descriptor) as content:
                    self._ranges.record_new(node, path, content)
            except OSError:  # or too large to be journaled in one step
                self._recorder.doubt(path)
            self._recorder.abandon()  # the flight is over: what it did is told
            self._mtimes.changed(parent)
        elif self.redoing is not None and path is not None and self._recorder.is_active(path):
            self._recorder.doubt(path)  # a killed predecessor has recorded some of it, or all
        entry = self._entry(parent, name, state)
        self.nodes.unpin(node)
        return entry

    def unlink(self, parent_id: int, name: bytes) -> None:
        self._remove(Kind.UNLINK, self.nodes.get(parent_id), name)

    def rmdir(self, parent_id: int, name: bytes) -> None:
        self._remove(Kind.RMDIR, self.nodes.get(parent_id), name)

    def _remove(self, kind: Kind, parent: Node, name: bytes) -> None:
        try:
            state = os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
        except FileNotFoundError:
            if not self.redoing:  # nothing stood there when it was tried first
                raise
            self._removed(kind, parent, name, self.redoing)
            return
        node = self.nodes.find(state)
        path = self.nodes.child_path(parent, name)
        self.note_inode(state.st_ino)
        recording = self._recorder.begin(kind, path)
        pinned = False
        try:
            pinned = node is not None and self._pin_last_name(node, parent, name)
            remove = os.rmdir if kind is Kind.RMDIR else os.unlink
            remove(name, dir_fd=self._directory(parent))
        except OSError:
            if recording:
                self._recorder.abandon()
            if pinned and node is not None:
                self.nodes.unpin(node)
            raise
        if recording and path is not None:
            self._mtimes.changed(parent)
            self._recorder.append(kind, path, flags=_flags_of(state), inode=state.st_ino)
        if node is not None:
            self._name_removed(node, parent, name, state)

    def _removed(self, kind: Kind, parent: Node, name: bytes, inode: int) -> None:
        """A killed predecessor has removed it: record that, and what it still had to forget."""
        node = self.nodes.by_inode(inode)
        path = self.nodes.child_path(parent, name)
        if self._recorder.begin(kind, path) and path is not None:
            self._mtimes.changed(parent)
            flags = Flag.DIRECTORY if kind is Kind.RMDIR else Flag.NONE
            self._recorder.append(kind, path, flags=int(flags), inode=inode)
        if node is not None:
            node.links = 0 if node.descriptor < 0 else os.fstat(node.descriptor).st_nlink
            self.nodes.remove_name(node, parent, name)

    @contextmanager
    def _unless_done(self, done: type[OSError]) -> Iterator[None]:
        """`done` says that a killed predecessor had done this already, if it may have."""
        try:
            yield
        except done:
            if self.redoing is None:
                raise

    def _pin_last_name(self, node: Node, parent: Node, name: bytes) -> bool:
        """Before `name` goes away: keep a grip on the object if that is the only name we know."""
        if node.others is not None or node.parent is not parent or node.name != name:
            return False
        try:
            self.nodes.pin(node)
        except OSError as error:
            if error.errno not in _OUT_OF_DESCRIPTORS:
                raise
            self.nodes.close_directories()
            self.nodes.pin(node)
        return True

    def _name_removed(self, node: Node, parent: Node, name: bytes, before: os.stat_result) -> None:
        node.links = 0 if node.is_directory else before.st_nlink - 1
        self.nodes.remove_name(node, parent, name)

    def rename(
        self, parent_id: int, name: bytes, new_parent_id: int, new_name: bytes, flags: int = 0
    ) -> None:
        """rename(2) with the flags RENAME_NOREPLACE or RENAME_EXCHANGE; others are EINVAL."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        nodes = self.nodes
        parent, new_parent = nodes.get(parent_id), nodes.get(new_parent_id)
        if self.redoing is not None and self._is_renamed(parent, name, new_parent, new_name):
            self._renamed(parent, name, new_parent, new_name, flags)
            return
        state = os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
        replaced: os.stat_result | None
        try:
            replaced = os.stat(new_name, dir_fd=self._directory(new_parent), follow_symlinks=False)
        except FileNotFoundError:
            replaced = None
        self.note_inode(state.st_ino)
        is_same = replaced is not None and os.path.samestat(state, replaced)
        other = None if replaced is None or is_same else nodes.find(replaced)
        path, new_path = nodes.child_path(parent, name), nodes.child_path(new_parent, new_name)
        recording = not is_same and new_path is not None and self._recorder.begin(Kind.RENAME, path, new_path)
        pinned = False
        try:
            pinned = other is not None and not flags and self._pin_last_name(other, new_parent, new_name)
            old_fd, new_fd = nodes.two_directories(parent, new_parent)
            if flags:
                calls.renameat2(old_fd, name, new_fd, new_name, flags)
            else:
                os.rename(name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        except OSError:
            if recording:
                self._recorder.abandon()
            if pinned and other is not None:
                nodes.unpin(other)
            raise
        if is_same:  # two names of one file: rename(2) leaves both
            return
        if recording and path is not None and new_path is not None:
            self._mtimes.changed(parent)
            if new_parent is not parent:
                self._mtimes.changed(new_parent)
            self._recorder.append(
                Kind.RENAME,
                path,
                path2=new_path,
                flags=_flags_of(state),
                inode=state.st_ino,
                arg0=flags,
            )
            if stat.S_ISDIR(state.st_mode) or flags:
                self._mtimes.directory_moved()
        moved = nodes.find(state)
        if flags & RENAME_EXCHANGE:
            if moved is not None:
                nodes.move_name(moved, parent, name, new_parent, new_name)
            if other is not None:
                nodes.move_name(other, new_parent, new_name, parent, name)
            return
        if other is not None and replaced is not None:
            self._name_removed(other, new_parent, new_name, replaced)
        if moved is not None:
            nodes.move_name(moved, parent, name, new_parent, new_name)

    def _is_renamed(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> bool:
        """Whether the object that a killed predecessor was moving stands at its new name."""
        try:
            state = os.stat(new_name, dir_fd=self._directory(new_parent), follow_symlinks=False)
            if state.st_ino != self.redoing:
                return False
        except FileNotFoundError:
            return False
        try:
            old = os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
        except FileNotFoundError:
            return True
        return old.st_ino != self.redoing  # exchanged; two names of one file are left as they are

    def _renamed(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int) -> None:
        """A killed predecessor has renamed it: record that, and what it still had to forget."""
        nodes = self.nodes
        state = os.stat(new_name, dir_fd=self._directory(new_parent), follow_symlinks=False)
        path, new_path = nodes.child_path(parent, name), nodes.child_path(new_parent, new_name)
        if self._recorder.begin(Kind.RENAME, path, new_path) and path is not None and new_path is not None:
            self._mtimes.changed(parent)
            self._mtimes.changed(new_parent)
            self._recorder.append(
                Kind.RENAME,
                path,
                path2=new_path,
                flags=_flags_of(state),
                inode=state.st_ino,
                arg0=flags,
            )
        self._mtimes.directory_moved()
        moved = nodes.find(state)
        for node in nodes.at(new_parent, new_name):
            if node is moved:
                continue
            if flags & RENAME_EXCHANGE:
                nodes.move_name(node, new_parent, new_name, parent, name)
            else:
                node.links = 0 if node.descriptor < 0 else os.fstat(node.descriptor).st_nlink
                nodes.remove_name(node, new_parent, new_name)
        if moved is not None:
            nodes.move_name(moved, parent, name, new_parent, new_name)

    # --- files ---

    def open(self, node_id: int, flags: int, caller: Caller) -> int:
        """Open a regular file; returns a handle id. O_TRUNC truncates, and is recorded as that."""
        node = self.nodes.get(node_id)
        if flags & os.O_TRUNC:
            return self._open_truncated(node, flags, caller)
        return self._add_handle(self._open(node, flags), node, flags)

    def _open(self, node: Node, flags: int) -> int:
        flags = flags & ~_DROPPED_FLAGS | os.O_CLOEXEC
        try:
            return self._open_once(node, flags)
        except OSError as error:
            if error.errno not in _OUT_OF_DESCRIPTORS:
                raise
        self.nodes.close_directories()
        return self._open_once(node, flags)

    def _open_once(self, node: Node, flags: int) -> int:
        if node.descriptor >= 0 or node.parent is None:
            return os.open(self.nodes.address(node)[0], flags & ~os.O_NOFOLLOW)
        descriptor = os.open(node.name, flags | os.O_NOFOLLOW, dir_fd=self.nodes.directory(node.parent))
        state = os.fstat(descriptor)
        if state.st_ino != node.inode or state.st_dev != node.device:
            os.close(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return descriptor

    def _open_truncated(self, node: Node, flags: int, caller: Caller) -> int:
        path = self._path(node)
        recording = self._recorder.begin(Kind.TRUNCATE, path)
        try:
            descriptor = self._open(node, flags & ~os.O_TRUNC)
            try:
                os.ftruncate(descriptor, 0)
                # The kernel clears these bits itself on other truncations, but not on this one.
                mode = os.fstat(descriptor).st_mode
                unprivileged = mode if caller.uid == 0 else without_privileges(mode)
                if unprivileged != mode:
                    os.fchmod(descriptor, unprivileged & 0o7777)
                    self._tell_mode_dropped(node)
            except OSError:
                os.close(descriptor)
                raise
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        if recording and path is not None:
            self._mtimes.changed(node)
            self._recorder.append(Kind.TRUNCATE, path, flags=int(node.flags), inode=node.inode, arg0=0)
            if unprivileged != mode:
                self._record_mode(node, path, os.fstat(descriptor))
        return self._add_handle(descriptor, node, flags)

    def _add_handle(self, descriptor: int, node: Node, flags: int) -> int:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        self._files[descriptor] = FileHandle(descriptor, node, writable, bool(flags & _SYNC_FLAGS))
        node.uses += 1
        return descriptor

    def read(self, handle_id: int, offset: int, size: int) -> bytes:
        return os.pread(handle_id, size, offset)

    def write(self, handle_id: int, offset: int, data: bytes | memoryview) -> int:
        """Returns the bytes written, which the record carries: fewer only if the storage is full."""
        node = self._files[handle_id].node
        path = self._path(node)
        recorder = self._recorder
        if not recorder.begin(Kind.WRITE, path) or path is None:
            if path is None and node.links > 0:
                self._mtimes.changed(node)
            return os.pwrite(handle_id, data, offset)
        try:
            count = os.pwrite(handle_id, data, offset)
        except OSError:
            recorder.abandon()
            raise
        self._mtimes.changed(node)
        recorder.append(
            Kind.WRITE,
            path,
            payload=data if count == len(data) else data[:count],
            flags=int(node.flags),
            inode=node.inode,
            arg0=offset,
        )
        return count

    def drop_privileges(self, handle_id: int) -> None:
        """Somebody without CAP_FSETID has changed the content: suid and sgid go."""
        node = self._files[handle_id].node
        mode = os.fstat(handle_id).st_mode
        unprivileged = without_privileges(mode)
        if unprivileged == mode:
            return
        path = self._path(node)
        recording = self._recorder.begin(Kind.SETATTR, path)
        try:
            os.fchmod(handle_id, unprivileged & 0o7777)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        if recording and path is not None:
            payload = attributes_of(os.fstat(handle_id), AttributeMask.MODE).encode()
            self._recorder.append(
                Kind.SETATTR, path, payload=payload, flags=int(node.flags), inode=node.inode
            )
        self._tell_mode_dropped(node)

    def _tell_mode_dropped(self, node: Node) -> None:
        if self.mode_dropped is not None:
            self.mode_dropped(node.id)

    def allocate(self, handle_id: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2): allocate, punch a hole or zero; EOPNOTSUPP for what moves the rest of the file."""
        self._ranges.allocate(self._files[handle_id].node, handle_id, mode, offset, length)

    def copy_range(
        self, source_handle_id: int, source_offset: int, handle_id: int, offset: int, length: int
    ) -> int:
        """copy_file_range(2): returns the bytes copied, at most `limits.COPY_RANGE_BYTES`."""
        node = self._files[handle_id].node
        return self._ranges.copy(source_handle_id, source_offset, node, handle_id, offset, length)

    def seek(self, handle_id: int, offset: int, whence: int) -> int:
        """Where data (SEEK_DATA) or a hole (SEEK_HOLE) begins. Nothing else uses a descriptor's position."""
        return os.lseek(handle_id, offset, whence)

    def is_synchronous(self, handle_id: int) -> bool:
        """Whether a write is to be followed by `fsync` before its reply (O_SYNC, O_DSYNC)."""
        return self._files[handle_id].synchronous

    def flush(self, handle_id: int) -> None:
        """An application closed one of its descriptors."""

    def release(self, handle_id: int) -> None:
        """The last descriptor of an open file is gone: its mtime is final as far as this program goes."""
        (self._released(handle_id))()

    def release_later(self, handle_id: int) -> Callable[[], None] | None:
        """The same. A call still to be made, in any thread, if closing may take long (a removed file)."""
        node = self._files[handle_id].node
        close = self._released(handle_id)
        if node.links == 0:
            return close
        close()
        return None

    def _released(self, handle_id: int) -> Callable[[], None]:
        handle = self._files.pop(handle_id)
        node = handle.node
        if handle.writable:
            self._mtimes.closed(node)
        self.nodes.release(node)
        return partial(os.close, handle_id)

    def fsync(self, handle_id: int, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(handle_id)

    # --- directories ---

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
        self.fsync(handle_id, datasync)

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self.nodes.root.descriptor)

    # --- extended attributes ---

    def lacks_capability(self, node_id: int) -> bool:
        """Whether it is known that there is no security.capability: the kernel asks before every write."""
        return self.nodes.get(node_id).lacks_capability

    def getxattr(self, node_id: int, name: bytes) -> bytes:
        node = self.nodes.get(node_id)
        address, follow = self.nodes.address(node)
        try:
            return os.getxattr(address, name, follow_symlinks=follow)
        except OSError as error:
            if name == _CAPABILITY and error.errno in (errno.ENODATA, errno.ENOTSUP):
                node.lacks_capability = True
            raise

    def listxattr(self, node_id: int) -> list[bytes]:
        address, follow = self.nodes.address(self.nodes.get(node_id))
        return [os.fsencode(name) for name in os.listxattr(address, follow_symlinks=follow)]

    def setxattr(
        self,
        node_id: int,
        name: bytes,
        value: bytes,
        caller: Caller,
        flags: int = 0,
        drop_group_id: bool | None = None,
    ) -> None:
        """Set an attribute. An access ACL may change the mode: a SETATTR follows then.

        `drop_group_id`: whether the sgid bit goes; None: find out what the caller may.
        """
        node = self.nodes.get(node_id)
        node.lacks_capability = node.lacks_capability and name != _CAPABILITY
        path = self._path(node) if is_replicated_xattr(name) else None
        recording = self._recorder.begin(Kind.SETXATTR, path)
        before = self.nodes.stat(node) if name == _ACCESS_ACL else None
        try:
            address, follow = self.nodes.address(node)
            os.setxattr(address, name, value, flags, follow_symlinks=follow)
            after = None if before is None else self._after_acl(node, caller, drop_group_id)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        if recording and path is not None:
            self._recorder.append(
                Kind.SETXATTR,
                path,
                path2=name,
                payload=value,
                flags=int(node.flags),
                inode=node.inode,
                arg0=flags,
            )
            if after is not None and before is not None and after.st_mode != before.st_mode:
                self._record_mode(node, path, after)

    def _after_acl(self, node: Node, caller: Caller, drop_group_id: bool | None) -> os.stat_result:
        """Who sets an ACL without being in the file's group takes its sgid bit away; capture is in all."""
        state = self.nodes.stat(node)
        if not state.st_mode & stat.S_ISGID:
            return state
        if drop_group_id is None:
            drop_group_id = caller.uid != 0 and not caller.is_in_group(state.st_gid)
        if drop_group_id:
            os.chmod(self.nodes.address(node)[0], state.st_mode & 0o7777 & ~stat.S_ISGID)
            state = self.nodes.stat(node)
        return state

    def removexattr(self, node_id: int, name: bytes) -> None:
        node = self.nodes.get(node_id)
        path = self._path(node) if is_replicated_xattr(name) else None
        recording = self._recorder.begin(Kind.REMOVEXATTR, path)
        try:
            address, follow = self.nodes.address(node)
            os.removexattr(address, name, follow_symlinks=follow)
        except OSError as error:
            if self.redoing is None or error.errno != errno.ENODATA:
                if recording:
                    self._recorder.abandon()
                raise
        if recording and path is not None:
            self._recorder.append(Kind.REMOVEXATTR, path, path2=name, flags=int(node.flags), inode=node.inode)

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

    def recover(self, in_doubt: Iterable[bytes]) -> None:
        """Journal the mtimes a killed predecessor still had to, and those beside what it was changing."""
        paths = dict.fromkeys(os.path.dirname(path) for path in in_doubt)
        if self._notes is not None:
            paths |= dict.fromkeys(self._notes.previous)
        self._mtimes.tell_previous(paths)
        if self._notes is not None:
            self._notes.clear()  # told once is enough, if this process is killed as well

    def _is_lost(self, node: Node) -> bool:
        """Whether a node without a path lives on under a name that a search did not find."""
        return node.links > 0 and not node.is_directory and node.id not in self._outside

    def _record_mode(self, node: Node, path: bytes, state: os.stat_result) -> None:
        payload = attributes_of(state, AttributeMask.MODE).encode()
        self._recorder.append_more(
            Kind.SETATTR, path, payload=payload, flags=int(node.flags), inode=node.inode
        )

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


def _note_nothing(inode: int) -> None:
    """For when no successor could use it."""


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _flags_of(state: os.stat_result) -> int:
    if stat.S_ISDIR(state.st_mode):
        return int(Flag.DIRECTORY)
    return int(Flag.MULTILINK) if state.st_nlink > 1 else 0


def without_privileges(mode: int) -> int:
    """The mode after a user changed the content: suid goes, and sgid if the group may execute."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
