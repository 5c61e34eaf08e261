"""Files that are read, or replaced, as a whole. All of it blocks, and raises OSError."""

import os

from replicator.world import Disk

_NEW = ".new"  # what is being written


def read_whole(disk: Disk, path: str) -> bytes:
    handle = disk.open_read(path)
    try:
        return disk.read(handle, disk.size(path), 0)
    finally:
        disk.close(handle)


def read_if_there(disk: Disk, path: str) -> bytes | None:
    """None: there is no such file."""
    return read_whole(disk, path) if disk.exists(path) else None


def replace_durably(disk: Disk, path: str, parts: list[bytes | memoryview]) -> None:
    """`path` holds `parts`; a crash or power loss leaves the old or the new of it."""
    _write_beside(disk, path, parts, durably=True)
    disk.replace(path + _NEW, path)
    disk.fsync_directory(os.path.dirname(path))


def replace(disk: Disk, path: str, parts: list[bytes | memoryview]) -> None:
    """The same for a kill, but not for a power loss: that may leave anything."""
    _write_beside(disk, path, parts, durably=False)
    disk.replace(path + _NEW, path)


def _write_beside(disk: Disk, path: str, parts: list[bytes | memoryview], *, durably: bool) -> None:
    handle = disk.open_append(path + _NEW)
    try:
        disk.append(handle, parts, 0)
        disk.truncate(path + _NEW, sum(map(len, parts)))
        if durably:
            disk.fsync(handle)  # after power loss an empty one would be of no use
    finally:
        disk.close(handle)
