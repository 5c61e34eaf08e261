"""A target tree as records are applied to it: where paths lie, and which names files are known by."""

import os
from collections.abc import Sequence
from typing import Protocol

from replicator.fs.beneath import Root
from replicator.fs.path_maps import PathMaps
from replicator.ops import Identity


class Links(Protocol):
    """Which paths hold the files that have several names, by identity. False while it knows none."""

    def __bool__(self) -> bool: ...
    def add(self, identity: Identity, path: bytes) -> None: ...
    def find(self, identity: Identity) -> bytes | None: ...
    def names(self, identity: Identity) -> list[bytes]: ...
    def forget(self, path: bytes) -> None:
        """`path` and all below it."""
        ...

    def rename(self, old: bytes, new: bytes) -> None: ...
    def exchange(self, one: bytes, other: bytes) -> None: ...


class AppliedTree:
    """`links` None: no names are remembered."""

    def __init__(self, maps: Sequence[tuple[bytes, Root]], links: Links | None) -> None:
        self.maps = PathMaps(maps)
        self.links = links

    def remove(self, path: bytes) -> bool:
        """Remove whatever is at `path`, with all below. False if there was nothing."""
        root, below = self.maps.place_name(path)
        if self.links:
            self.links.forget(path)
        return root.remove(below)

    def look(self, path: bytes) -> os.stat_result | None:
        """The state of what is at `path` itself, None if there is nothing."""
        root, below = self.maps.place(path)
        return root.look(below) if below else os.fstat(root.descriptor)
