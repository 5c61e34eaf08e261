"""The node table: every object the kernel knows, the names it has, and a way to reach it.

An object is reached by one of its names, relative to a descriptor of its parent directory. That is exact,
because all changes of names pass through capture, and it costs no descriptor per file: only directories hold
one, up to a cap, and are opened again by name when they are needed. An object whose last known name goes away
is *pinned* first by a descriptor of its own, which also keeps its inode number from being given to another
object while the kernel still uses it.

Not thread-safe: one thread owns a table.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from replicator.fs import calls
from replicator.fs.attributes import proc_path
from replicator.fs.ledger import Known, Ledger
from replicator.ops import Flag

logger = logging.getLogger(__name__)

ROOT_ID: Final = 1  # the kernel's number for the root

_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FIRST_FOREIGN_ID = 1 << 62  # above any inode number in use

Name = tuple["Node", bytes]


class Node:
    """One object. `name` within `parent` is the name it is reached by; hard links have more in `others`."""

    __slots__ = (
        "_epoch",
        "_path",
        "changed_ns",
        "descriptor",
        "device",
        "id",
        "inode",
        "is_directory",
        "lacks_capability",
        "links",
        "lookups",
        "name",
        "others",
        "parent",
        "place",
        "used",
        "uses",
    )

    def __init__(self, node_id: int, inode: int, device: int, is_directory: bool) -> None:
        self.id = node_id
        self.inode = inode
        self.device = device
        self.is_directory = is_directory
        self.links = 1  # st_nlink
        self.parent: Node | None = None  # None: the root, or no known name
        self.name = b""
        self.others: set[Name] | None = None
        self.lookups = 0  # references the kernel holds
        self.place = -1  # in the ledger
        self.uses = 0  # references of ours: names of children, open handles, pending times
        self.descriptor = -1  # O_PATH
        self.used = False  # since the last look for a descriptor to close
        self.changed_ns = 0  # monotonic time of the last change of content or entries
        self.lacks_capability = False  # known to have no security.capability
        self._path: bytes | None = None  # directories only
        self._epoch = -1

    @property
    def flags(self) -> Flag:
        """Flags of a record about this object."""
        if self.is_directory:
            return Flag.DIRECTORY
        return Flag.MULTILINK if self.links > 1 else Flag.NONE


class NodeTable:
    """All nodes of one capture. Owns `root_fd`."""

    def __init__(self, root_fd: int, descriptors_max: int, ledger: Ledger | None = None) -> None:
        """`ledger` is told what a successor must know."""
        state = os.fstat(root_fd)
        self._ledger = ledger
        if ledger is not None:
            ledger.living = self._move_to_new_log
        self.root = Node(ROOT_ID, state.st_ino, state.st_dev, True)
        self.root.descriptor = root_fd
        self.root.lookups = 1
        self.root._path = b""
        self._descriptors_max = max(descriptors_max, 4)
        self._nodes: dict[int, Node] = {ROOT_ID: self.root}
        self._foreign: dict[tuple[int, int], int] = {}  # (inode, device) of other devices' objects -> id
        self._next_foreign_id = _FIRST_FOREIGN_ID
        self._open_directories: dict[int, Node] = {}  # by id; the first is the next to be closed
        self._turn: Iterator[int] = iter(())  # ids not yet looked at by `spare`
        self._held: Node | None = None  # a directory whose descriptor is in use
        self._epoch = 0  # counts renames of directories: cached paths of an older epoch are void

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    @property
    def open_directories(self) -> int:
        return len(self._open_directories)

    def close(self) -> None:
        for node in self._nodes.values():
            if node.descriptor >= 0:
                os.close(node.descriptor)
                node.descriptor = -1

    # --- finding ---

    def get(self, node_id: int) -> Node:
        """ESTALE if the kernel names a node it was never given (or has forgotten)."""
        try:
            return self._nodes[node_id]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def find(self, state: os.stat_result) -> Node | None:
        """The node of the object `state` describes, if the kernel knows it."""
        node_id = self._id_of(state)
        return None if node_id is None else self._nodes.get(node_id)

    def by_inode(self, inode: int) -> Node | None:
        """The node of an object of the root's device."""
        return self.root if inode == self.root.inode else self._nodes.get(inode)

    def at(self, parent: Node, name: bytes) -> list[Node]:
        """All nodes that are known by this name: slow, for when none but one should be."""
        return [
            node
            for node in self._nodes.values()
            if (node.parent is parent and node.name == name)
            or (node.others is not None and (parent, name) in node.others)
        ]

    def _id_of(self, state: os.stat_result) -> int | None:
        inode, device = state.st_ino, state.st_dev
        if device == self.root.device:
            if inode == self.root.inode:
                return ROOT_ID
            if inode != ROOT_ID and inode < _FIRST_FOREIGN_ID:
                return inode
        return self._foreign.get((inode, device))

    def attach(self, parent: Node, name: bytes, state: os.stat_result) -> Node:
        """The node of the object that stands at `name` in `parent`; created if it is new."""
        node_id = self._new_id(state)
        node = self._nodes.get(node_id)
        if node is None:
            is_directory = stat.S_ISDIR(state.st_mode)
            node = self._nodes[node_id] = Node(node_id, state.st_ino, self._device(state), is_directory)
        node.links = state.st_nlink
        if node.parent is not parent or node.name != name:
            self.add_name(node, parent, name)
        return node

    def _new_id(self, state: os.stat_result) -> int:
        """Its id, given now if it has none."""
        node_id = self._id_of(state)
        if node_id is None:
            node_id = self._next_foreign_id
            self._next_foreign_id += 1
            self._foreign[state.st_ino, state.st_dev] = node_id
        return node_id

    def _device(self, state: os.stat_result) -> int:
        """The same number object for all: millions of nodes live on one device."""
        device = state.st_dev
        return self.root.device if device == self.root.device else device

    def attach_unnamed(self, state: os.stat_result, descriptor: int) -> Node:
        """The node of a new file that stands at no name (O_TMPFILE). Takes `descriptor`: it stays pinned."""
        node_id = self._new_id(state)
        node = self._nodes[node_id] = Node(node_id, state.st_ino, self._device(state), False)
        node.links = state.st_nlink
        node.descriptor = descriptor
        self._tell_name(node)
        return node

    # --- names ---

    def add_name(self, node: Node, parent: Node, name: bytes) -> None:
        if node is self.root:
            return
        if node.is_directory and node.parent is not None:
            if node.parent is parent and node.name == name:
                return
            self.remove_name(node, node.parent, node.name)  # somebody renamed it in the storage below
        if node.parent is None:
            node.parent, node.name = parent, name
            self._epoch += node._path is not None  # paths cached while it had its former name are void
        elif node.parent is parent and node.name == name:
            return
        elif node.others is None:
            node.others = {(parent, name)}
        elif (parent, name) in node.others:
            return
        else:
            node.others.add((parent, name))
        parent.uses += 1
        if self._ledger is not None:
            self._tell_name(node, parent, name)

    def remove_name(self, node: Node, parent: Node, name: bytes) -> None:
        """`name` in `parent` is no longer this object's. Unknown names are ignored."""
        if node.parent is parent and node.name == name:
            if node.others:
                node.parent, node.name = node.others.pop()
            else:
                node.parent, node.name = None, b""
        elif node.others is not None and (parent, name) in node.others:
            node.others.remove((parent, name))
        else:
            return
        if not node.others:
            node.others = None
        self._tell_gone(node, parent, name)
        self.release(parent)

    def move_name(self, node: Node, old_parent: Node, old_name: bytes, parent: Node, name: bytes) -> None:
        """Rename: one name becomes another. A descriptor the object was pinned by is not touched."""
        old = (old_parent, old_name)
        if node.parent is old_parent and node.name == old_name:
            node.parent, node.name = parent, name
        elif node.others is not None and old in node.others:
            node.others.remove(old)
            node.others.add((parent, name))
        else:  # a name nobody had looked up
            self.add_name(node, parent, name)
            return
        self._tell_name(node, parent, name)
        self._tell_gone(node, old_parent, old_name)
        parent.uses += 1
        self.release(old_parent)
        if node.is_directory:
            self._epoch += 1

    def names(self, node: Node) -> list[Name]:
        """All known names."""
        found: list[Name] = [] if node.parent is None else [(node.parent, node.name)]
        if node.others:
            found += node.others
        return found

    def path(self, node: Node) -> bytes | None:
        """Path relative to the root by the name it is reached by; None if no name is known."""
        parent = node.parent
        if parent is None:
            return b"" if node is self.root else None
        if not node.is_directory:
            directory = parent._path if parent._epoch == self._epoch else self.path(parent)
            if directory:
                return directory + b"/" + node.name
            return node.name if directory is not None else None
        if node._epoch == self._epoch:
            return node._path
        directory = self.path(parent)
        if directory is None:
            return None
        node._path = directory + b"/" + node.name if directory else node.name
        node._epoch = self._epoch
        return node._path

    def child_path(self, parent: Node, name: bytes) -> bytes | None:
        """Path of a name within a directory; None if the directory itself has none any more."""
        directory = parent._path if parent._epoch == self._epoch else self.path(parent)
        if directory:
            return directory + b"/" + name
        return name if directory is not None else None

    # --- reaching ---

    def directory(self, node: Node) -> int:
        """A descriptor of this directory, valid until the next call of this table."""
        descriptor = node.descriptor
        if descriptor < 0:
            descriptor = self._open_directory(node)
        node.used = True
        return descriptor

    def two_directories(self, one: Node, other: Node) -> tuple[int, int]:
        """Descriptors of both, valid until the next call of this table."""
        descriptor = self.directory(one)
        self._held = one
        try:
            return descriptor, self.directory(other)
        finally:
            self._held = None

    def _open_directory(self, node: Node) -> int:
        parent = node.parent
        if parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        descriptor = os.open(node.name, _OPEN_DIRECTORY, dir_fd=self.directory(parent))
        state = os.fstat(descriptor)
        if state.st_ino != node.inode or state.st_dev != node.device:
            os.close(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        node.descriptor = descriptor
        self._open_directories[node.id] = node
        if len(self._open_directories) > self._descriptors_max:
            self._close_one(keep=node)
        return descriptor

    def _close_one(self, keep: Node) -> None:
        """Second chance: a directory used since the last look goes to the end of the row once."""
        row = self._open_directories
        for _ in range(2 * len(row)):
            node_id, node = next(iter(row.items()))
            del row[node_id]
            if node.used or node is keep or node is self._held:
                node.used = False
                row[node_id] = node
            else:
                os.close(node.descriptor)
                node.descriptor = -1
                return

    def close_directories(self) -> None:
        """Give all descriptors back that can be opened again: the process has run out of them."""
        for node in self._open_directories.values():
            os.close(node.descriptor)
            node.descriptor = -1
        self._open_directories.clear()

    def pin(self, node: Node) -> None:
        """Open a descriptor that stays while the node lives. Call before its last known name goes away."""
        if node.descriptor >= 0:
            self._open_directories.pop(node.id, None)
            return
        if node.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        node.descriptor = os.open(node.name, _OPEN_ANY, dir_fd=self.directory(node.parent))

    def unpin(self, node: Node) -> None:
        """The name stays after all, or another was found."""
        if node is self.root or node.descriptor < 0:
            return
        if node.is_directory:
            self._open_directories[node.id] = node
        else:
            os.close(node.descriptor)
            node.descriptor = -1

    def stat(self, node: Node) -> os.stat_result:
        """State of the object. ESTALE if another stands at its name: somebody changed the storage below."""
        if node.descriptor >= 0:
            state = os.fstat(node.descriptor)
        else:
            parent = node.parent
            if parent is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            state = os.stat(node.name, dir_fd=self.directory(parent), follow_symlinks=False)
            if state.st_ino != node.inode or state.st_dev != node.device:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        node.links = state.st_nlink
        return state

    def statx(self, node: Node, mask: int) -> bytes:
        """struct statx of the object. Raises OSError as `stat` does."""
        if node.descriptor >= 0:
            return calls.statx(node.descriptor, b"", calls.AT_EMPTY_PATH, mask)
        parent = node.parent
        if parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        found = calls.statx(self.directory(parent), node.name, calls.AT_SYMLINK_NOFOLLOW, mask)
        if calls.statx_inode(found) != node.inode:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    def address_and_directory(self, node: Node, directory: Node) -> tuple[bytes, int]:
        """`address` of an object and the descriptor of a directory, valid until the next call."""
        if node.descriptor >= 0 or node.parent is None:
            return self.address(node)[0], self.directory(directory)
        descriptor, other = self.two_directories(node.parent, directory)
        return b"/proc/self/fd/%d/%s" % (descriptor, node.name), other

    def address(self, node: Node) -> tuple[bytes, bool]:
        """A path by which this process reaches the object, and whether its last part is to be followed."""
        if node.descriptor >= 0:
            return proc_path(node.descriptor).encode(), True
        if node.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return b"/proc/self/fd/%d/%s" % (self.directory(node.parent), node.name), False

    # --- living ---

    def spare(self, count: int) -> list[Node]:
        """Up to `count` objects that only the kernel holds on to, those it has known longest first.

        Objects with anything of ours (children, open handles, pending mtimes) are passed over. Calls in a row
        look at different ones, each at a bounded number, until all had their turn; then one finds nothing.
        """
        found: list[Node] = []
        looked_at = 0
        for node_id in islice(self._turn, 4 * count):
            looked_at += 1
            node = self._nodes.get(node_id)
            if node is not None and not node.uses and node.parent is not None:
                found.append(node)
                if len(found) == count:
                    break
        if not looked_at:
            self._turn = iter(list(self._nodes))
        return found

    def forget(self, node_id: int, count: int) -> None:
        """The kernel gives `count` references back."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.lookups -= count
            self._tell_references(node)
            self._drop_unused(node)

    def looked_up(self, node: Node) -> None:
        """The kernel is given one more reference."""
        node.lookups += 1
        if node.place >= 0:
            self._tell_references(node)

    def release(self, node: Node) -> None:
        """Give one of our own references (`uses`) back."""
        node.uses -= 1
        self._drop_unused(node)

    def _drop_unused(self, node: Node) -> None:
        # A parent may go with its last child, and its parent with it: a loop, because trees can be deep.
        while node.lookups <= 0 and node.uses <= 0 and node is not self.root:
            if self._nodes.pop(node.id, None) is None:
                return
            self._tell_forgotten(node)
            if node.id >= _FIRST_FOREIGN_ID:
                del self._foreign[node.inode, node.device]
            if node.descriptor >= 0:
                self._open_directories.pop(node.id, None)
                os.close(node.descriptor)
                node.descriptor = -1
            if node.others:
                for parent, _ in node.others:
                    self.release(parent)
                node.others = None
            if node.parent is None:
                return
            parent, node.parent = node.parent, None
            parent.uses -= 1
            node = parent

    # --- what a successor must know ---

    def _tell_name(self, node: Node, parent: Node | None = None, name: bytes = b"") -> None:
        if self._ledger is not None:
            try:
                self._write_name(self._ledger, node, parent, name)
            except OSError as error:
                self._give_ledger_up(error)

    def _write_name(self, ledger: Ledger, node: Node, parent: Node | None, name: bytes) -> None:
        known = node.id, node.inode, node.device, node.is_directory, max(node.lookups, 0)
        parent_id = 0 if parent is None else parent.id
        if node.place >= 0:
            ledger.named(*known, parent_id, name)
            return
        place = ledger.object(*known, parent_id, name)
        if node.place < 0:  # else it has been moved meanwhile
            node.place = place

    def _tell_gone(self, node: Node, parent: Node, name: bytes) -> None:
        if self._ledger is not None:
            try:
                self._ledger.gone(node.id, parent.id, name)
            except OSError as error:
                self._give_ledger_up(error)

    def _tell_forgotten(self, node: Node) -> None:
        if self._ledger is not None:
            try:
                self._ledger.forgotten(node.id)
            except OSError as error:
                self._give_ledger_up(error)

    def _tell_references(self, node: Node) -> None:
        if self._ledger is not None and node.place >= 0:
            self._ledger.references(node.place, node.lookups)

    def _move_to_new_log(self) -> Iterator[None]:
        """Of the ledger: one object at each step, those that are forgotten meanwhile not at all."""
        for node_id in list(self._nodes):
            node, ledger = self._nodes.get(node_id), self._ledger
            if node is None or node is self.root or ledger is None:
                continue
            if node.place >= 0 and not ledger.is_left_behind(node.place):
                continue
            known = node.id, node.inode, node.device, node.is_directory, max(node.lookups, 0)
            if node.others is not None:
                for other, name in node.others:
                    ledger.named(*known, other.id, name)
            # The last, for with its place it counts as moved: also for a successor.
            parent = node.parent
            node.place = ledger.object(*known, 0 if parent is None else parent.id, node.name)
            yield

    def _give_ledger_up(self, error: OSError) -> None:
        """Without it a successor makes a new mount: that costs programs their open files."""
        logger.warning("a kill of this process would not be survived: %s", error)
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.remove()

    def restore(self, alive: Iterable[Known], pinned: Mapping[tuple[int, int], int]) -> None:
        """Know again what a predecessor knew. `pinned`: O_PATH descriptors by (inode, device), now ours.

        The ledger is the predecessor's, and goes on.
        """
        alive = list(alive)
        for known in alive:
            if known.id != ROOT_ID:
                node = Node(known.id, known.inode, known.device, known.is_directory)
                node.lookups = known.references
                node.place = known.place
                self._nodes[known.id] = node
                if known.id >= _FIRST_FOREIGN_ID:
                    self._foreign[known.inode, known.device] = known.id
                    self._next_foreign_id = max(self._next_foreign_id, known.id + 1)
        ledger, self._ledger = self._ledger, None
        for known in alive:
            for parent_id, name in known.names:
                parent = self._nodes.get(parent_id)
                if parent is not None and known.id != ROOT_ID:
                    self.add_name(self._nodes[known.id], parent, name)
        unused = dict(pinned)
        for node in list(self._nodes.values()):
            descriptor = unused.pop((node.inode, node.device), -1)
            if descriptor >= 0 and node.descriptor < 0:
                node.descriptor = descriptor
                node.links = os.fstat(descriptor).st_nlink
                if node.is_directory and node.parent is not None:
                    self._open_directories[node.id] = node
                elif node.parent is not None:
                    self.unpin(node)
        for descriptor in unused.values():
            os.close(descriptor)
        self._ledger = ledger
