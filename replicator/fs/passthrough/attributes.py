"""Attributes, extended attributes, and the text of a symlink."""

import errno
import os
import stat

from replicator.fs.attributes import attributes_of, is_replicated_xattr, set_times
from replicator.fs.credentials import Caller
from replicator.fs.nodes import Node
from replicator.fs.passthrough.captured import Captured, without_privileges
from replicator.ops import AttributeMask, Kind

_ACCESS_ACL = b"system.posix_acl_access"
_CAPABILITY = b"security.capability"


class AttributeOperations(Captured):
    """stat(2), setattr, xattr(7)."""

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
