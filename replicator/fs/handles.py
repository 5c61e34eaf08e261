"""What an application's open file or directory is on our side."""

from dataclasses import dataclass, field

from replicator.fs.nodes import Node


class FileHandle:
    """An open regular file. `descriptor` is also the number the kernel knows it by."""

    __slots__ = ("descriptor", "node", "synchronous", "writable")

    def __init__(self, descriptor: int, node: Node, writable: bool, synchronous: bool) -> None:
        self.descriptor = descriptor
        self.node = node
        self.writable = writable
        self.synchronous = synchronous  # O_SYNC or O_DSYNC: whoever replies to a write syncs first


@dataclass(slots=True)
class DirectoryHandle:
    """An open directory. Positions are places in `names`, because inode numbers repeat among hard links.

    The snapshot is taken when reading starts at 0, so that a rewound directory shows what is there now.
    """

    node: Node
    names: list[bytes] = field(default_factory=list)
    is_read: bool = False
