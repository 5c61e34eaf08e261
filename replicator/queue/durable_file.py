"""Small files that are replaced as a whole."""

import os

from replicator.world import Disk


def replace_durably(disk: Disk, path: str, parts: list[bytes | memoryview]) -> None:
    """`path` holds `parts`; a crash or power loss leaves the old or the new of it. Blocks. OSError."""
    temporary = path + ".new"
    handle = disk.open_append(temporary)
    try:
        disk.append(handle, parts, 0)
        disk.truncate(temporary, sum(map(len, parts)))
        disk.fsync(handle)  # after power loss an empty one would be of no use
    finally:
        disk.close(handle)
    disk.replace(temporary, path)
    disk.fsync_directory(os.path.dirname(path))
