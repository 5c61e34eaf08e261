"""What a dirty map knows, as a tree of names: how it is added to, made coarser, merged and cleared.

`dirty.py` says what the entries mean.
"""

import itertools
from array import array
from collections.abc import Iterator
from typing import Self

from replicator import limits
from replicator.queue import dirty_codec, regions
from replicator.queue.coarsening import coarsen
from replicator.queue.dirty_entry import (
    BOUNDARY_BYTES,
    CHILDREN_BYTES,
    NODE_BYTES,
    OF_DIRECTORIES,
    Dirty,
    Estimate,
    Node,
    Scope,
    bounds_cost,
    pack,
)

# Enumerations are slow where it counts.
_NAMES, _FILES, _TREE, _WHOLE = map(int, (Scope.NAMES, Scope.FILES, Scope.TREE, Scope.WHOLE))
_ATTRIBUTES, _DIRECTORY, _LINKED = map(int, (Scope.ATTRIBUTES, Scope.DIRECTORY, Scope.LINKED))


class DirtyTree:
    """A dirty map without `fold`. `limit_bytes` is for what it takes in memory, by estimate."""

    def __init__(self, limit_bytes: int = limits.DIRTY_MAP_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.root = Node()
        self.links: dict[int, tuple[Node, bytes]] = {}
        self.cost_bytes = NODE_BYTES
        self.coarsened = 0
        """How often it was made coarser."""
        # Files written lately, and paths that something above covers. Whoever takes something away clears it.
        self._hot: dict[bytes, Node] = {}
        self._hot_files = max(16, limit_bytes >> 13)

    # --- looking ---

    @property
    def is_empty(self) -> bool:
        root = self.root
        return not (root.scope or root.children or root.bounds is not None or self.links)

    @property
    def is_everything(self) -> bool:
        return bool(self.root.scope & _TREE)

    def __iter__(self) -> Iterator[Dirty]:
        """All entries: a directory before what is in it, names in order, files with several names last."""
        for path, node in self.walk():
            if node.says_something:
                yield node.entry(path)
        for node, path in self.links.values():
            yield node.entry(path)

    def is_whole(self, path: bytes) -> bool:
        """Whether all of a file at this path may differ."""
        node = self.root
        directory = parent_of(path)
        for name in path.split(b"/"):
            if node.scope & _TREE:
                return True
            child = node.children.get(name) if node.children else None
            if child is None:
                return bool(node.scope & _FILES) and node is self._find(directory)
            node = child
        return bool(node.scope & (_TREE | _WHOLE))

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All nodes but those of files with several names, in that order."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                stack += [
                    (prefix + name, node.children[name]) for name in sorted(node.children, reverse=True)
                ]

    def estimate(self) -> Estimate:
        files = size = directories = trees = 0
        for entry in self:
            if entry.scope & _TREE:
                trees += 1
            elif entry.scope & (_NAMES | _FILES):
                directories += 1
            elif not entry.scope & _DIRECTORY:
                files += 1
                size += sum(end - start for start, end in entry.regions if end != regions.END)
        return Estimate(files, size, directories, trees)

    # --- merging ---

    def merge(self, other: "DirtyTree") -> None:
        """Cover what `other` covers, too. `other` is of later operations, if either is."""
        for path, node in other.walk():
            if node.says_something:
                self.include(path, node.scope, node.identity, node.bounds)
        for node, path in other.links.values():
            self.include(path, node.scope, node.identity, node.bounds)

    def include(self, path: bytes, scope: int, identity: int, bounds: "array[int] | None" = None) -> None:
        """Add one entry, and keep the limit."""
        self.add(path, scope, identity, bounds)
        if self.cost_bytes > self.limit_bytes:
            self.coarsen()

    def include_entry(self, path: bytes, entry: Dirty) -> None:
        """Add what an entry of another map says, of this path."""
        bounds = array(regions.type_code, itertools.chain.from_iterable(entry.regions))
        self.include(path, int(entry.scope), pack(entry.identity), bounds or None)

    def add(self, path: bytes, scope: int, identity: int = 0, bounds: "array[int] | None" = None) -> None:
        """Add one entry without regard to the limit."""
        if self.is_everything:
            return
        if scope & _LINKED:
            self._add_to_file(self._linked(identity, path), scope, bounds)
        elif scope & _TREE:
            self._add_tree(path, identity)
        elif scope & OF_DIRECTORIES:
            self._add_to_directory(path, scope)
        else:
            self._add_to_file(self._file(path, identity), scope, bounds)

    def _add_tree(self, path: bytes, identity: int) -> None:
        node = self._reach(path)
        if node is None:
            return
        self.make_tree(node)
        node.identity = identity
        if node is self.root:
            self.links.clear()
            self.cost_bytes = NODE_BYTES

    def _add_to_directory(self, path: bytes, scope: int) -> None:
        node = self._reach(path)
        if node is None:
            return
        if node.of_file:
            self.make_tree(node)
            return
        node.scope |= scope
        if scope & _FILES:
            self.make_files(node)

    def _add_to_file(self, node: Node | None, scope: int, bounds: "array[int] | None") -> None:
        if node is None or node.scope & _WHOLE:
            return
        if scope & _WHOLE:
            self.make_whole(node)
            return
        node.scope |= scope & _ATTRIBUTES
        if bounds is None:
            return
        if node.bounds is None:
            self._set_bounds(node, array(regions.type_code, bounds))
            return
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            self._widen(node, start, end)

    # --- as bytes ---

    def encode(self) -> bytes:
        """See `dirty_codec`. Never longer than what the map costs in memory."""
        linked = ((path, node) for node, path in self.links.values())
        nodes = itertools.chain(self.walk(), linked)
        return dirty_codec.encode(
            (path, node.scope, node.identity, node.bounds) for path, node in nodes if node.says_something
        )

    @classmethod
    def decode(cls, data: bytes | memoryview, limit_bytes: int = limits.DIRTY_MAP_BYTES) -> Self:
        """Made coarser where it would cost more than the limit. Raises CorruptDirtyMap."""
        decoded = cls(limit_bytes)
        for item in dirty_codec.items(data):
            decoded.include(*item)
        return decoded

    # --- nodes ---

    def _reach(self, path: bytes) -> Node | None:
        """The node of this path, made if need be. None: a tree covers it."""
        node = self.root
        if node.scope & _TREE:
            return None
        if not path:
            return node
        for name in path.split(b"/"):
            children = node.children
            if children is None:
                if node.of_file:  # two kinds of object at one path: only a comparison can tell
                    self.make_tree(node)
                    return None
                children = node.children = {}
                self.cost_bytes += CHILDREN_BYTES
            child = children.get(name)
            if child is None:
                child = children[name] = Node()
                self.cost_bytes += NODE_BYTES + len(name)
            elif child.scope & _TREE:
                return None
            node = child
        return node

    def _file(self, path: bytes, identity: int) -> Node | None:
        """The node of a file. None: a tree, or the files of its directory, cover it."""
        if not path:  # the root is no file
            self.add(b"", _TREE)
            return None
        parent = self._find(parent_of(path))
        if parent is not None and parent.scope & _FILES:
            child = parent.children.get(_name_of(path)) if parent.children else None
            if child is None:
                return None
        node = self._reach(path)
        if node is None:
            return None
        if node.scope & OF_DIRECTORIES or node.children is not None:
            self.make_tree(node)
            return None
        if identity:
            node.identity = identity
        return node

    def _linked(self, identity: int, path: bytes) -> Node | None:
        """The node of a file with several names. None: everything is dirty."""
        if self.root.scope & _TREE:
            return None
        if not identity:  # nobody could find its other names
            self.make_everything()
            return None
        known = self.links.get(identity)
        if known is None:
            node = Node()
            node.scope = _LINKED
            node.identity = identity
            self.cost_bytes += NODE_BYTES + CHILDREN_BYTES + len(path)
        else:
            node, former = known
            self.cost_bytes += len(path) - len(former)
        self.links[identity] = node, path
        return node

    def _unlink_identity(self, identity: int) -> None:
        known = self.links.pop(identity, None)
        if known is not None:
            self._set_bounds(known[0], None)
            self.cost_bytes -= NODE_BYTES + CHILDREN_BYTES + len(known[1])

    def _find(self, path: bytes) -> Node | None:
        node: Node | None = self.root
        for name in path.split(b"/") if path else ():
            node = node.children.get(name) if node is not None and node.children else None
        return node

    def _detach(self, path: bytes) -> None:
        """Forget what is known of this path and of what is below."""
        self._forget(path, prune=False)

    def _forget(self, path: bytes, *, prune: bool) -> None:
        """The same. `prune`: only if it says nothing, and so with what is above."""
        chain = [self.root]
        names = path.split(b"/")
        for name in names:
            children = chain[-1].children
            child = children.get(name) if children else None
            if child is None:
                return
            chain.append(child)
        if chain[-1].is_file and not prune:
            self._hot.pop(path, None)
        else:
            self._hot.clear()
        while len(chain) > 1:
            node = chain.pop()
            if prune and (node.says_something or node.children):
                return
            prune = True
            parent, name = chain[-1], names.pop()
            assert parent.children is not None
            self.cost_bytes -= self.weigh(node) + len(name)
            del parent.children[name]
            if not parent.children:
                parent.children = None
                self.cost_bytes -= CHILDREN_BYTES

    def _widen(self, node: Node, start: int, end: int) -> None:
        bounds = node.bounds
        assert bounds is not None
        before = len(bounds)
        regions.add(bounds, start, end)
        if len(bounds) != before:
            self.cost_bytes += (len(bounds) - before) * BOUNDARY_BYTES
            if len(bounds) > 2 * limits.DIRTY_REGIONS:
                self._set_bounds(node, regions.thinned(bounds, limits.DIRTY_REGIONS // 2))

    def _set_bounds(self, node: Node, bounds: "array[int] | None") -> None:
        self.cost_bytes += bounds_cost(bounds) - bounds_cost(node.bounds)
        node.bounds = bounds

    def weigh(self, node: Node) -> int:
        """What a node with all below it costs, without its own name."""
        cost = 0
        stack = [node]
        while stack:
            node = stack.pop()
            cost += NODE_BYTES + bounds_cost(node.bounds)
            if node.children is not None:
                cost += CHILDREN_BYTES + sum(map(len, node.children))
                stack += node.children.values()
        return cost

    # --- becoming coarser ---

    def coarsen(self) -> None:
        """Forget details, the cheapest first, until there is some room below the limit again."""
        self.coarsened += 1
        self._hot.clear()
        coarsen(self, self.limit_bytes * 3 // 4)

    def thin(self, node: Node, intervals: int) -> None:
        assert node.bounds is not None
        self._set_bounds(node, regions.thinned(node.bounds, intervals))

    def make_whole(self, node: Node) -> None:
        self._set_bounds(node, None)
        node.scope = node.scope & _LINKED | _WHOLE

    def make_files(self, node: Node) -> None:
        """All files of this directory instead of some."""
        node.scope |= _FILES
        for name, child in list((node.children or {}).items()):
            if child.is_file:
                assert node.children is not None
                del node.children[name]
                self.cost_bytes -= self.weigh(child) + len(name)
        if node.children is not None and not node.children:
            node.children = None
            self.cost_bytes -= CHILDREN_BYTES
        self._hot.clear()

    def make_tree(self, node: Node) -> None:
        """Everything at and below instead of some of it."""
        self.cost_bytes -= self.weigh(node) - NODE_BYTES
        node.children = node.bounds = None
        node.scope = _TREE
        self._hot.clear()

    def make_everything(self) -> None:
        self._add_tree(b"", 0)

    # --- clearing ---

    def discard(self, entry: Dirty) -> bool:
        """What exactly this entry says is repaired. False: the map does not say just that (any more).

        What is folded below something that covers it leaves no trace, so fold elsewhere while this map is
        being repaired, and merge what is left of it.
        """
        if entry.scope & _LINKED:
            identity = pack(entry.identity)
            known = self.links.get(identity)
            if known is None or known[0].entry(known[1]) != entry:
                return False
            self._unlink_identity(identity)
            return True
        node = self._find(entry.path)
        if node is None or node.entry(entry.path) != entry:
            return False
        self._set_bounds(node, None)
        node.scope = node.identity = 0
        self._hot.clear()
        if entry.path:
            self._forget(entry.path, prune=True)
        return True


def parent_of(path: bytes) -> bytes:
    return path[: path.rindex(b"/")] if b"/" in path else b""


def _name_of(path: bytes) -> bytes:
    return path[path.rfind(b"/") + 1 :]
