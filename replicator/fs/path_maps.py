"""Where the paths of a journal lie on a target."""

from collections.abc import Sequence
from typing import NamedTuple

from replicator.errors import ReplicatorError
from replicator.fs.beneath import Root
from replicator.ops import shown


class OutsideError(ReplicatorError):
    """A path outside of every mapping, or the root of a mapping where a name inside is needed."""


class Place(NamedTuple):
    """A path of the source, where it lies on the target."""

    root: Root
    path: bytes


class PathMaps:
    """Where the paths of one journal lie on the target. The longest prefix decides."""

    def __init__(self, maps: Sequence[tuple[bytes, Root]]) -> None:
        ordered = sorted(maps, key=lambda item: len(item[0]), reverse=True)
        self._maps = [(prefix, prefix + b"/", root) for prefix, root in ordered]
        self._everything = ordered[0][1] if len(ordered) == 1 and not ordered[0][0] else None
        self._starts = [prefix + b"/" for prefix, _ in ordered if prefix]
        self.roots = tuple(dict.fromkeys(root for _, root in ordered))

    def place(self, path: bytes) -> Place:
        """OutsideError if no mapping has it."""
        if self._everything is not None:
            return Place(self._everything, path)
        for prefix, start, root in self._maps:
            if not prefix:
                return Place(root, path)
            if path.startswith(start):
                return Place(root, path[len(start) :])
            if path == prefix:
                return Place(root, b"")
        raise OutsideError(f"{shown(path)} is outside of every mapped path")

    def place_name(self, path: bytes) -> Place:
        """As `place`, for a name to be created, moved or removed: never a mapped root, nor above one."""
        place = self.place(path)
        if not place.path or any(start.startswith(path + b"/") for start in self._starts):
            raise OutsideError(f"{shown(path) or '/'} is the root of a mapping, or holds one")
        return place

    def are_names(self, directory: bytes) -> bool:
        """Whether no mapping of its own begins in that directory."""
        start = directory + b"/" if directory else b""
        return not any(root.startswith(start) for root in self._starts)

    def is_root(self, path: bytes) -> bool:
        """Whether a mapping of its own begins at `path`."""
        return path + b"/" in self._starts

    def target_text(self, path: bytes) -> bytes | None:
        """The absolute path on the target, None if no mapping has it."""
        try:
            root, below = self.place(path)
        except OutsideError:
            return None
        return root.path + b"/" + below if below else root.path
