"""What changed while two sides were apart, learned record by record: it plays the dirty map of a sender.

Exact and unbounded, so that what a recovery brings can be measured against it.
"""

from dataclasses import dataclass, field

from replicator.mirror.order import Order, is_below_or_equal, parent_of
from replicator.mirror.patches import TO_END
from replicator.ops import NAME_KINDS, RENAME_EXCHANGE, Flag, Identity, Kind, Record


@dataclass
class DirtyObject:
    """An object changed in place."""

    path: bytes
    regions: list[tuple[int, int]] = field(default_factory=list)
    multilink: bool = False


class Dirt:
    """`observe` every change, `require` what may be old, `clear` when nothing is."""

    def __init__(self) -> None:
        self.directories: set[bytes] = set()
        self.replaced: set[bytes] = set()
        self.objects: dict[int, DirtyObject] = {}

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def require(self, order: Order) -> None:
        for path in sorted(self.replaced):
            if not any(is_below_or_equal(path, other) for other in self.replaced if other != path):
                order.require_replaced(path)
        for directory in sorted(self.directories):
            order.require_names(directory)
        for inode, found in self.objects.items():
            if not self._is_replaced(found.path) or found.multilink:
                order.require_regions(
                    found.path, Identity(inode, 0), found.regions, multilink=found.multilink
                )

    @property
    def changed_bytes(self) -> int:
        return sum(length for found in self.objects.values() for _, length in found.regions)

    def _is_replaced(self, path: bytes) -> bool:
        return any(is_below_or_equal(path, replaced) for replaced in self.replaced)

    # --- learning ---

    def observe(self, record: Record) -> None:
        if record.kind in NAME_KINDS:
            self._name_changed(record)
            return
        found = self.objects.setdefault(record.inode, DirtyObject(record.path))
        found.multilink = found.multilink or bool(record.flags & Flag.MULTILINK)
        if record.kind == Kind.WRITE:
            found.regions.append((record.arg0, len(record.payload)))
        elif record.kind == Kind.TRUNCATE:
            found.regions.append((record.arg0, TO_END - record.arg0))
        elif record.kind == Kind.FALLOCATE:
            found.regions.append((record.arg0, record.arg1))

    def _name_changed(self, record: Record) -> None:
        kind, path, path2 = record.kind, record.path, record.path2
        if kind == Kind.LINK:
            self.directories.add(parent_of(path2))
            self.replaced.add(path2)
            self.objects.setdefault(record.inode, DirtyObject(path)).multilink = True
            return
        self.directories.add(parent_of(path))
        if kind in (Kind.UNLINK, Kind.RMDIR):
            self._forget(path)
        elif kind == Kind.RENAME:
            self.directories.add(parent_of(path2))
            if record.arg0 & RENAME_EXCHANGE:
                aside = path + b"\0"
                self._move(path, aside)
                self._move(path2, path)
                self._move(aside, path2)
                self.replaced.add(path)
            else:
                self._forget(path2)
                self._move(path, path2)
            self.replaced.add(path2)
        else:
            self._forget(path)
            self.objects.pop(record.inode, None)
            self.replaced.add(path)

    def _forget(self, path: bytes) -> None:
        """What is there has no such name any more."""
        self.directories = {d for d in self.directories if not is_below_or_equal(d, path)}
        self.replaced = {p for p in self.replaced if not is_below_or_equal(p, path)}
        self.objects = {
            inode: found
            for inode, found in self.objects.items()
            if found.multilink or not is_below_or_equal(found.path, path)
        }

    def _move(self, old: bytes, new: bytes) -> None:
        def moved(path: bytes) -> bytes:
            return new + path[len(old) :] if is_below_or_equal(path, old) else path

        self.directories = {moved(d) for d in self.directories}
        self.replaced = {moved(p) for p in self.replaced}
        for found in self.objects.values():
            found.path = moved(found.path)
