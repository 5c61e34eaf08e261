"""What a dirty map is made of: its entries as values, and the nodes that keep them."""

from array import array
from enum import IntFlag
from typing import NamedTuple

from replicator.ops import Identity


class Scope(IntFlag):
    """What of an entry may differ; see the module."""

    NAMES = 1
    FILES = 2
    TREE = 4
    WHOLE = 8
    ATTRIBUTES = 16
    DIRECTORY = 32  # the attributes are those of a directory
    LINKED = 64  # a file with several names; the path is one it had


class Dirty(NamedTuple):
    """One entry, as a value."""

    path: bytes
    scope: Scope
    identity: Identity  # of the file or moved object; `NO_IDENTITY`: not known
    regions: tuple[tuple[int, int], ...] = ()  # bytes [start, end); `regions.END`: to the end of the file


class Estimate(NamedTuple):
    """How much there is to compare. What is not known without looking at the source is only counted."""

    files: int  # entries that name one file
    bytes: int  # in regions of known length
    directories: int  # whose names or files have to be looked at
    trees: int


OF_DIRECTORIES = int(Scope.NAMES | Scope.FILES | Scope.DIRECTORY)
OF_FILES = int(Scope.WHOLE)
TREE = int(Scope.TREE)  # enumerations are slow where it counts

# What things cost in memory, in bytes: rather too much. A test compares it with what they do cost.
NODE_BYTES = 320  # with its identity, and its place in the directory above
CHILDREN_BYTES = 240
REGIONS_BYTES = 120
BOUNDARY_BYTES = 9


class Node:
    """What is known of one path: of the directory or file there, not of its name."""

    __slots__ = ("bounds", "children", "identity", "scope")

    def __init__(self) -> None:
        self.scope = 0
        self.identity = 0  # generation and inode in one number
        self.bounds: array[int] | None = None
        self.children: dict[bytes, Node] | None = None

    @property
    def is_file(self) -> bool:
        """Whether the entry is of something that is no directory."""
        return not self.scope & (OF_DIRECTORIES | TREE) and self.children is None

    @property
    def of_file(self) -> bool:
        """Whether anything is said here that only a file can have."""
        return bool(self.scope & OF_FILES) or self.bounds is not None

    @property
    def says_something(self) -> bool:
        return bool(self.scope) or self.bounds is not None

    def entry(self, path: bytes) -> Dirty:
        bounds = self.bounds
        pairs = tuple(zip(bounds[::2], bounds[1::2], strict=True)) if bounds is not None else ()
        return Dirty(path, Scope(self.scope), unpack(self.identity), pairs)


def bounds_cost(bounds: "array[int] | None") -> int:
    return 0 if bounds is None else REGIONS_BYTES + BOUNDARY_BYTES * len(bounds)


def pack(identity: Identity) -> int:
    return identity.generation << 64 | identity.inode


def unpack(number: int) -> Identity:
    return Identity(number & (1 << 64) - 1, number >> 64)
