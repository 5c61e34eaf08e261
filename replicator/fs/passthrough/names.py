"""Names that are given, moved and taken away."""

import errno
import os
import stat

from replicator import limits
from replicator.fs import calls
from replicator.fs.nodes import Node
from replicator.fs.passthrough.captured import OUT_OF_DESCRIPTORS, Captured, Entry
from replicator.fs.whole_file import read_whole
from replicator.ops import RENAME_EXCHANGE, RENAME_NOREPLACE, Flag, Kind


class NameOperations(Captured):
    """link(2), unlink(2), rmdir(2), rename(2)."""

    # --- giving ---

    def link(self, node_id: int, parent_id: int, name: bytes) -> Entry:
        node = self.nodes.get(node_id)
        parent = self.nodes.get(parent_id)
        if node.links == 0 or self.redoing:
            return self._link_unnamed(node, parent, name)
        old_path = self._path(node)
        new_path = self.nodes.child_path(parent, name)
        recording = new_path is not None and self._recorder.begin(Kind.LINK, old_path, new_path)
        try:
            state, _ = self._link(node, parent, name)
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
        self.note_inode(node.inode)  # so that a successor sees that it was without one
        recording = self._recorder.begin(Kind.FILE, path)
        try:
            state, directory = self._link(node, parent, name)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        if recording and path is not None:
            self._mtimes.changed(parent)
            self._record_whole(node, path, directory, name)
        entry = self._entry(parent, name, state)
        self.nodes.unpin(node)
        return entry

    def _link(self, node: Node, parent: Node, name: bytes) -> tuple[os.stat_result, int]:
        """linkat(2). The object's new state, and a descriptor of `parent`."""
        address, directory = self.nodes.address_and_directory(node, parent)
        # A pinned object's address is a magic link to it; another's is its own name, maybe a symlink.
        try:
            os.link(address, name, dst_dir_fd=directory, follow_symlinks=node.descriptor >= 0)
        except FileExistsError:
            if self.redoing is None:
                raise
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if state.st_ino != node.inode or state.st_dev != node.device:  # no predecessor has done it
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return state, directory

    def _record_whole(self, node: Node, path: bytes, directory: int, name: bytes) -> None:
        """One record; of a file that does not fit, that a mirror has to bring it, which gives it its name
        when it is complete.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                whole = read_whole(descriptor, limits.UNNAMED_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            self._recorder.doubt(path)
            self._recorder.abandon()  # the flight is over: what it did is told
        else:
            self._recorder.append(Kind.FILE, path, payload=whole.encode(), inode=node.inode)

    # --- taking away ---

    def unlink(self, parent_id: int, name: bytes) -> None:
        self._remove(Kind.UNLINK, self.nodes.get(parent_id), name)

    def rmdir(self, parent_id: int, name: bytes) -> None:
        self._remove(Kind.RMDIR, self.nodes.get(parent_id), name)

    def _remove(self, kind: Kind, parent: Node, name: bytes) -> None:
        nodes = self.nodes
        state = self._state(parent, name)
        links: int | None = None
        if state is not None:
            inode, node, flags, links = state.st_ino, nodes.find(state), _flags_of(state), _links_left(state)
            self.note_inode(inode)
        elif self.redoing:  # a killed predecessor has removed it
            inode, node = self.redoing, nodes.by_inode(self.redoing)
            flags = int(Flag.DIRECTORY if kind is Kind.RMDIR else Flag.NONE)
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        path = nodes.child_path(parent, name)
        recording = self._recorder.begin(kind, path)
        if state is not None:
            self._remove_below(kind, parent, name, node, recording)
        if recording and path is not None:
            self._mtimes.changed(parent)
            self._recorder.append(kind, path, flags=flags, inode=inode)
        if node is not None:
            self._name_removed(node, parent, name, links)

    def _remove_below(
        self, kind: Kind, parent: Node, name: bytes, node: Node | None, recording: bool
    ) -> None:
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

    def _pin_last_name(self, node: Node, parent: Node, name: bytes) -> bool:
        """Before `name` goes away: keep a grip on the object if that is the only name we know."""
        if node.others is not None or node.parent is not parent or node.name != name:
            return False
        try:
            self.nodes.pin(node)
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            self.nodes.close_directories()
            self.nodes.pin(node)
        return True

    def _name_removed(self, node: Node, parent: Node, name: bytes, links: int | None) -> None:
        """`links`: how many names the object has left; None: to be found out."""
        if links is None:
            links = 0 if node.descriptor < 0 else os.fstat(node.descriptor).st_nlink
        node.links = links
        self.nodes.remove_name(node, parent, name)

    # --- moving ---

    def rename(
        self, parent_id: int, name: bytes, new_parent_id: int, new_name: bytes, flags: int = 0
    ) -> None:
        """rename(2) with the flags RENAME_NOREPLACE or RENAME_EXCHANGE; others are EINVAL."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        nodes = self.nodes
        parent, new_parent = nodes.get(parent_id), nodes.get(new_parent_id)
        done = self.redoing is not None and self._is_renamed(parent, name, new_parent, new_name)
        replaced = self._state(new_parent, new_name)
        links: int | None = None
        if done:
            assert replaced is not None
            state = replaced
            others = [node for node in nodes.at(new_parent, new_name) if node is not nodes.find(state)]
        else:
            state = os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
            self.note_inode(state.st_ino)
            if replaced is not None and os.path.samestat(state, replaced):
                self._rename_below(parent, name, new_parent, new_name, flags)
                return  # two names of one file: rename(2) leaves both
            other = None if replaced is None else nodes.find(replaced)
            others = [] if other is None else [other]
            links = None if replaced is None else _links_left(replaced)
        path, new_path = nodes.child_path(parent, name), nodes.child_path(new_parent, new_name)
        recording = new_path is not None and self._recorder.begin(Kind.RENAME, path, new_path)
        if not done:
            self._replace_below(parent, name, new_parent, new_name, flags, others, recording)
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
        if path is not None and new_path is not None:
            self._mtimes.moved(path, new_path, exchanged=bool(flags & RENAME_EXCHANGE))
        moved = nodes.find(state)
        for other in others:
            if flags & RENAME_EXCHANGE:
                nodes.move_name(other, new_parent, new_name, parent, name)
            else:
                self._name_removed(other, new_parent, new_name, links)
        if moved is not None:
            nodes.move_name(moved, parent, name, new_parent, new_name)

    def _replace_below(
        self,
        parent: Node,
        name: bytes,
        new_parent: Node,
        new_name: bytes,
        flags: int,
        others: list[Node],
        recording: bool,
    ) -> None:
        """`others`: what loses its name by that."""
        pinned: list[Node] = []
        try:
            if not flags:
                pinned = [node for node in others if self._pin_last_name(node, new_parent, new_name)]
            self._rename_below(parent, name, new_parent, new_name, flags)
        except OSError:
            if recording:
                self._recorder.abandon()
            for node in pinned:
                self.nodes.unpin(node)
            raise

    def _rename_below(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int) -> None:
        old_fd, new_fd = self.nodes.two_directories(parent, new_parent)
        if flags:
            calls.renameat2(old_fd, name, new_fd, new_name, flags)
        else:
            os.rename(name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def _is_renamed(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> bool:
        """Whether the object that a killed predecessor was moving stands at its new name."""
        new = self._state(new_parent, new_name)
        if new is None or new.st_ino != self.redoing:
            return False
        old = self._state(parent, name)
        return old is None or old.st_ino != new.st_ino  # two names of one file are left as they are

    def _state(self, parent: Node, name: bytes) -> os.stat_result | None:
        """Of what stands there; None: nothing."""
        try:
            return os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None


def _flags_of(state: os.stat_result) -> int:
    if stat.S_ISDIR(state.st_mode):
        return int(Flag.DIRECTORY)
    return int(Flag.MULTILINK) if state.st_nlink > 1 else 0


def _links_left(before: os.stat_result) -> int:
    """How many names an object has when one of them is gone."""
    return 0 if stat.S_ISDIR(before.st_mode) else before.st_nlink - 1
