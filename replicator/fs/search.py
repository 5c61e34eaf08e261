"""Find a name of a file that capture knows by no name.

It happens to hard links only: a program holds a file open by one name, that name is removed, and the file
lives on under another that nobody has looked up. What the program writes then belongs to that other name.
"""

import os
from collections import deque
from enum import Enum

from replicator.fs.nodes import Node, NodeTable

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Search(Enum):
    """How a search ended."""

    FOUND = 1  # the node has a name now
    NOWHERE = 2  # all its names lie outside the captured directory
    TOO_LARGE = 3  # given up


def find_name(table: NodeTable, node: Node, entries_max: int) -> Search:
    """Give `node` a name found by its inode number, looking at about `entries_max` entries at most."""
    root = os.open(".", _OPEN_DIRECTORY, dir_fd=table.root.descriptor)
    try:
        return _walk(root, table, node, entries_max)
    finally:
        os.close(root)


def _walk(root: int, table: NodeTable, node: Node, entries_max: int) -> Search:
    looked_at = 0
    directories = deque([b""])
    while directories:
        directory = directories.popleft()
        try:
            descriptor = os.open(directory or b".", _OPEN_DIRECTORY, dir_fd=root)
        except OSError:  # too deep for one path, or gone: it can only cost completeness
            looked_at = entries_max
            continue
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    looked_at += 1
                    name = os.fsencode(entry.name)
                    path = directory + b"/" + name if directory else name
                    if entry.inode() == node.inode and _attach(table, node, path):
                        return Search.FOUND
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(path)
        finally:
            os.close(descriptor)
        if looked_at >= entries_max and directories:
            return Search.TOO_LARGE
    return Search.NOWHERE if looked_at < entries_max else Search.TOO_LARGE


def _attach(table: NodeTable, node: Node, path: bytes) -> bool:
    *parents, name = path.split(b"/")
    parent = table.root
    for part in parents:
        state = os.stat(part, dir_fd=table.directory(parent), follow_symlinks=False)
        parent = table.attach(parent, part, state)
    state = os.stat(name, dir_fd=table.directory(parent), follow_symlinks=False)
    return state.st_dev == node.device and table.attach(parent, name, state) is node
