"""A small model of a file system, for dirty maps: operations on it as records, and a recovery that copies
just what a map names.

The content of a file is a list of cells of 1 KiB. The copy is flat, by path: files there share nothing, so
that a write through one name of several leaves the others wrong.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from replicator.ops import RENAME_EXCHANGE, Flag, Kind, Record
from replicator.queue.dirty import Dirty, DirtyMap, Scope

CELL_BYTES = 1024
CELLS_MAX = 96
DEPTH_MAX = 3
NAMES = (b"a", b"b", b"c", b"dd", b"e", b"f")
KEEP_SIZE = 1
PUNCH_HOLE = 2

CALM = range(5)
"""What a step does if it changes no name."""

KINDS = 15

Step = tuple[int, int, int, int]
"""(what, which object, which other object or name, where and how much)"""


@dataclass
class Object:
    inode: int
    attributes: int = 0
    cells: list[int] | None = None  # None: a directory
    entries: "dict[bytes, Object]" = field(default_factory=dict)
    links: int = 1

    @property
    def is_directory(self) -> bool:
        return self.cells is None


Flat = dict[bytes, tuple[int, tuple[int, ...] | None]]
"""By path: attributes, content (None: a directory)."""


def record(kind: Kind, path: bytes, **fields: object) -> Record:
    empty = Record(kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, path, b"", b"")
    return empty._replace(**fields)


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


class Model:
    """The source. `step` does something that is possible, and returns what capture would record."""

    def __init__(self) -> None:
        self.root = Object(1)
        self.values = 0

    def walk(self) -> Iterator[tuple[bytes, Object]]:
        stack = [(b"", self.root)]
        while stack:
            path, found = stack.pop()
            yield path, found
            stack += [
                (join(path, name), child) for name, child in sorted(found.entries.items(), reverse=True)
            ]

    def flat(self) -> Flat:
        return {p: (o.attributes, None if o.cells is None else tuple(o.cells)) for p, o in self.walk()}

    def _value(self) -> int:
        self.values += 1
        return self.values

    def _free_inode(self) -> int:
        """The lowest one: numbers are given again."""
        used = {found.inode for _, found in self.walk()}
        return next(number for number in range(1, len(used) + 2) if number not in used)

    def step(self, step: Step) -> list[Record]:
        what, which, other, where = step
        everything = list(self.walk())
        files = [(p, o) for p, o in everything if not o.is_directory]
        directories = [(p, o) for p, o in everything if o.is_directory]
        named = [(p, o) for p, o in everything if p]
        kinds = (
            *(self._write, self._truncate, self._allocate, self._set_attributes, self._write),
            *(
                self._create,
                self._create,
                self._mkdir,
                self._link,
                self._link,
                self._unlink,
                self._rmdir,
                self._rename,
            ),
            *(self._exchange, self._doubt),
        )
        assert len(kinds) == KINDS
        kind = kinds[what % KINDS]
        if kind in (self._create, self._mkdir):
            choices = [(p, o) for p, o in directories if p.count(b"/") < DEPTH_MAX]
        elif kind in (self._rename, self._exchange, self._doubt):
            choices = named
        elif kind == self._rmdir:
            choices = [(p, o) for p, o in directories if p and not o.entries]
        elif kind == self._set_attributes:
            choices = everything
        else:
            choices = files
        if not choices:
            return []
        path, found = choices[which % len(choices)]
        return kind(path, found, directories, other, where)

    # --- operations; each returns its records ---

    def _create(self, path: bytes, found: Object, _: object, other: int, where: int) -> list[Record]:
        name = NAMES[other % len(NAMES)]
        if name in found.entries:
            return []
        made = Object(self._free_inode(), self._value(), [])
        found.entries[name] = made
        kind = (Kind.CREATE, Kind.CREATE, Kind.SYMLINK, Kind.MKNOD)[where % 4]
        return [record(kind, join(path, name), inode=made.inode)]

    def _mkdir(self, path: bytes, found: Object, _: object, other: int, where: int) -> list[Record]:
        name = NAMES[other % len(NAMES)]
        if name in found.entries:
            return []
        made = Object(self._free_inode(), self._value())
        found.entries[name] = made
        return [record(Kind.MKDIR, join(path, name), inode=made.inode, flags=Flag.DIRECTORY)]

    def _place(self, directories: list[tuple[bytes, Object]], other: int) -> tuple[bytes, Object, bytes]:
        path, directory = directories[other // len(NAMES) % len(directories)]
        return path, directory, NAMES[other % len(NAMES)]

    def _link(
        self, path: bytes, found: Object, directories: list[tuple[bytes, Object]], other: int, where: int
    ) -> list[Record]:
        parent, directory, name = self._place(directories, other)
        if name in directory.entries:
            return []
        directory.entries[name] = found
        found.links += 1
        flags = Flag.MULTILINK
        return [record(Kind.LINK, path, path2=join(parent, name), inode=found.inode, flags=flags)]

    def _parent(self, path: bytes) -> tuple[Object, bytes]:
        *above, name = path.split(b"/")
        directory = self.root
        for part in above:
            directory = directory.entries[part]
        return directory, name

    def _flags(self, found: Object) -> Flag:
        if found.is_directory:
            return Flag.DIRECTORY
        return Flag.MULTILINK if found.links > 1 else Flag.NONE

    def _unlink(self, path: bytes, found: Object, *_: object) -> list[Record]:
        flags = self._flags(found)
        directory, name = self._parent(path)
        del directory.entries[name]
        found.links -= 1
        return [record(Kind.UNLINK, path, inode=found.inode, flags=flags)]

    def _rmdir(self, path: bytes, found: Object, *_: object) -> list[Record]:
        directory, name = self._parent(path)
        del directory.entries[name]
        return [record(Kind.RMDIR, path, inode=found.inode, flags=Flag.DIRECTORY)]

    def _rename(
        self, path: bytes, found: Object, directories: list[tuple[bytes, Object]], other: int, where: int
    ) -> list[Record]:
        parent, directory, name = self._place(directories, other)
        new = join(parent, name)
        replaced = directory.entries.get(name)
        if new == path or replaced is found or (new + b"/").startswith(path + b"/"):
            return []
        if new.count(b"/") > DEPTH_MAX or (path + b"/").startswith(new + b"/"):
            return []
        if replaced is not None:
            if replaced.is_directory != found.is_directory or replaced.entries:
                return []
            replaced.links -= 1
        old, old_name = self._parent(path)
        del old.entries[old_name]
        directory.entries[name] = found
        flags = self._flags(found)
        return [record(Kind.RENAME, path, path2=new, inode=found.inode, flags=flags)]

    def _exchange(
        self, path: bytes, found: Object, directories: list[tuple[bytes, Object]], other: int, where: int
    ) -> list[Record]:
        parent, directory, name = self._place(directories, other)
        new = join(parent, name)
        second = directory.entries.get(name)
        if second is None or second is found:
            return []
        if (new + b"/").startswith(path + b"/") or (path + b"/").startswith(new + b"/"):
            return []
        old, old_name = self._parent(path)
        old.entries[old_name], directory.entries[name] = second, found
        fields = {"inode": found.inode, "flags": self._flags(found), "arg0": RENAME_EXCHANGE}
        return [record(Kind.RENAME, path, path2=new, **fields)]

    def _write(self, path: bytes, found: Object, _: object, other: int, where: int) -> list[Record]:
        cells = found.cells
        assert cells is not None
        start, count = where % CELLS_MAX, 1 + other % 6
        cells += [0] * (start + count - len(cells))
        cells[start : start + count] = [self._value()] * count
        fields = {"inode": found.inode, "flags": self._flags(found), "arg0": start * CELL_BYTES}
        return [record(Kind.WRITE, path, payload=bytes(count * CELL_BYTES), **fields)]

    def _truncate(self, path: bytes, found: Object, _: object, other: int, where: int) -> list[Record]:
        cells = found.cells
        assert cells is not None
        size = where % CELLS_MAX
        cells[size:] = [0] * (size - len(cells))
        fields = {"inode": found.inode, "flags": self._flags(found), "arg0": size * CELL_BYTES}
        return [record(Kind.TRUNCATE, path, **fields)]

    def _allocate(self, path: bytes, found: Object, _: object, other: int, where: int) -> list[Record]:
        cells = found.cells
        assert cells is not None
        start, count = where % CELLS_MAX, 1 + other % 6
        punch = other % 2
        if punch:
            cells[start : start + count] = [0] * len(cells[start : start + count])
        else:
            cells += [0] * (start + count - len(cells))
        mode = KEEP_SIZE | PUNCH_HOLE if punch else 0
        fields = {"inode": found.inode, "flags": self._flags(found)}
        where_said = {"arg0": start * CELL_BYTES, "arg1": count * CELL_BYTES}
        return [record(Kind.FALLOCATE, path, payload=mode.to_bytes(4, "little"), **fields, **where_said)]

    def _set_attributes(self, path: bytes, found: Object, _: object, other: int, where: int) -> list[Record]:
        found.attributes = self._value()
        kind = (Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR)[other % 3]
        return [record(kind, path, inode=found.inode, flags=self._flags(found))]

    def _doubt(self, path: bytes, found: Object, *_: object) -> list[Record]:
        """Something happened to it that no other record tells."""
        if found.links == 1 and found.cells is not None:
            found.cells.append(self._value())
        found.attributes = self._value() if found.links == 1 else found.attributes
        return [record(Kind.DOUBT, path)]


def changes_names(step: Step) -> bool:
    return step[0] % KINDS not in CALM


def random_steps(chance: random.Random, count: int, *, calm: bool = False) -> list[Step]:
    """`calm`: they change contents and attributes, and names stay."""
    numbers = CALM if calm else range(1000)
    return [
        (chance.choice(numbers), chance.randrange(1000), chance.randrange(1000), chance.randrange(1000))
        for _ in range(count)
    ]


# --- recovery ---


def recover(dirty: DirtyMap, source: Model, copy: Flat) -> None:
    """Copy just what `dirty` names. A path whose directory is missing in the copy is an error: directories
    come first.
    """
    there = source.flat()
    for entry in dirty:
        _recover_entry(entry, source, there, copy)


def _recover_entry(entry: Dirty, source: Model, there: Flat, copy: Flat) -> None:
    path, scope = entry.path, entry.scope
    if scope & Scope.LINKED:
        for name, found in source.walk():
            if found.inode == entry.identity.inode and name in copy:
                _copy_file(name, entry, there, copy)
    elif scope & Scope.TREE:
        _copy_tree(path, there, copy)
    elif scope & (Scope.NAMES | Scope.FILES | Scope.DIRECTORY):
        if there.get(path, (0, ()))[1] is not None or copy.get(path, (0, ()))[1] is not None:
            return
        if scope & Scope.NAMES:
            names, old = _names(path, there), _names(path, copy)
            for name in names ^ old:
                _copy_tree(name, there, copy)
        if scope & Scope.FILES:
            for name in _names(path, there) & _names(path, copy):
                if there[name][1] is not None:
                    _copy_tree(name, there, copy)
        if scope & Scope.ATTRIBUTES:
            copy[path] = (there[path][0], None)
    else:
        _copy_file(path, entry, there, copy)


def _copy_file(path: bytes, entry: Dirty, there: Flat, copy: Flat) -> None:
    if path not in there or there[path][1] is None:
        return
    if entry.scope & Scope.WHOLE:
        _copy_tree(path, there, copy)
        return
    if path not in copy or copy[path][1] is None:
        return
    attributes, cells = there[path]
    old_attributes, old = copy[path]
    assert cells is not None
    assert old is not None
    if entry.scope & Scope.ATTRIBUTES:
        old_attributes = attributes
    if entry.regions:
        new = [*old[: len(cells)], *[0] * (len(cells) - len(old))]
        for start, end in entry.regions:
            part = slice(start // CELL_BYTES, min(end // CELL_BYTES, len(cells)))
            new[part] = cells[part]
        old = tuple(new)
    copy[path] = (old_attributes, old)


def _copy_tree(path: bytes, there: Flat, copy: Flat) -> None:
    below = path + b"/" if path else b""
    for name in [name for name in copy if name == path or name.startswith(below)]:
        del copy[name]
    if path in there:
        parent = path.rpartition(b"/")[0]
        assert not path or copy.get(parent, (0, ()))[1] is None, f"{path!r} before its directory"
    copy.update({n: v for n, v in there.items() if n == path or n.startswith(below)})


def _names(directory: bytes, tree: Flat) -> set[bytes]:
    prefix = directory + b"/" if directory else b""
    return {p for p in tree if p and p.startswith(prefix) and b"/" not in p[len(prefix) :] and p != directory}
