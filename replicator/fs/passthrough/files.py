"""Open files: their content."""

import errno
import os
from collections.abc import Callable
from functools import partial

from replicator.fs.attributes import attributes_of
from replicator.fs.credentials import Caller
from replicator.fs.handles import FileHandle
from replicator.fs.nodes import Node
from replicator.fs.passthrough.captured import OUT_OF_DESCRIPTORS, Captured, without_privileges
from replicator.ops import AttributeMask, Kind

# The kernel writes dirty pages of a shared mapping through any open handle, at the right offset: a backing
# descriptor with O_APPEND would put them at the end. O_DIRECT would need aligned buffers. O_SYNC is done
# apart from the write, so that waiting for the disk holds up nobody else.
_SYNC_FLAGS = os.O_SYNC | os.O_DSYNC
DROPPED_FLAGS = os.O_APPEND | os.O_DIRECT | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_NONBLOCK | _SYNC_FLAGS


class FileOperations(Captured):
    """From open(2) to close(2)."""

    def open(self, node_id: int, flags: int, caller: Caller) -> int:
        """Open a regular file; returns a handle id. O_TRUNC truncates, and is recorded as that."""
        node = self.nodes.get(node_id)
        if flags & os.O_TRUNC:
            return self._open_truncated(node, flags, caller)
        return self._add_handle(self._open(node, flags), node, flags)

    def _open(self, node: Node, flags: int) -> int:
        flags = flags & ~DROPPED_FLAGS | os.O_CLOEXEC
        try:
            return self._open_once(node, flags)
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
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

    def handle_path(self, handle_id: int) -> bytes | None:
        """Where an open file or directory is now; None: it has no name (any more), so no target has it."""
        found = self._files.get(handle_id) or self._directories.get(handle_id)
        return None if found is None else self._path(found.node)

    def node_of(self, handle_id: int) -> int:
        """The id of an open file's node."""
        return self._files[handle_id].node.id

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
