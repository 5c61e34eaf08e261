"""Content of one file for another one, without a way through this process: blocks shared, or copied by the
kernel.
"""

import fcntl
import os

from replicator.fs.attributes import data_extents

_FICLONE = 0x40049409  # linux/fs.h


def clone(source: int, descriptor: int) -> bool:
    """Make an empty file share all blocks with another one (ioctl_ficlone(2)), as it is at one moment. False:
    the file system cannot, or they are not on the same one.
    """
    try:
        fcntl.ioctl(descriptor, _FICLONE, source)
    except OSError:
        return False
    return True


def copy_on(source: int, descriptor: int, offset: int, end: int, bytes_max: int) -> tuple[int, int]:
    """Copy data from `offset` on to the same place, in order, holes left out: at most so much. Returns where
    to go on, `end` if there is nothing more, and how many bytes were copied. OSError.

    A source that is cut off meanwhile just ends there: who cut it off has that told, as all changes.
    """
    copied = 0
    for start, length in data_extents(source, end, offset):
        offset, last = start, start + length
        while offset < last:
            if copied >= bytes_max:
                return offset, copied
            count = os.copy_file_range(
                source, descriptor, min(last - offset, bytes_max - copied), offset, offset
            )
            if not count:
                return end, copied
            offset += count
            copied += count
    return end, copied
