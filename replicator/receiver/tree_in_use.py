"""The tree that a replica applies to: another one after each change of maps or rules."""

import trio

from replicator.receiver.replica_tree import Tree


class TreeInUse:
    """`lock`: the tree is being synced, or replaced."""

    def __init__(self) -> None:
        self.tree: Tree | None = None
        self.changed = trio.Event()  # set, and replaced, when `tree` is another one
        self.lock = trio.Lock()
        self.is_stale = False  # what it keeps open may stand for something else

    def tell(self) -> None:
        """Who waits for `changed` looks again."""
        self.changed.set()
        self.changed = trio.Event()

    def look_afresh(self) -> None:
        if self.is_stale and self.tree is not None:
            self.tree.forget_descriptors()
            self.is_stale = False

    def close(self) -> None:
        if self.tree is not None:
            self.tree.close()
            self.tree = None
