"""Moving the disk tier of a journal to another directory, while nobody writes it.

In two steps, because copying may take long: `copy` may be called before, too, while a writer is at work, and
then only what is new is left to do. Until the owner has noted the new place, the former one counts; an
interruption anywhere is taken up by calling both again. A marker in the new place says where the former one
is, so that it is removed in the end whatever happens.
"""

import contextlib

from replicator.queue import segment
from replicator.queue.durable_file import read_whole
from replicator.queue.recovery import COPY_BYTES
from replicator.world import Disk

MARKER = "moved-from"


def copy(disk: Disk, former: str, new: str, *, in_use: bool = False) -> None:
    """Make `new` equal to `former`, durably. OSError: `former` still counts, and is complete.

    `in_use`: somebody writes there, so the newest segment is left for the next call.
    """
    disk.makedirs(new)
    _write(disk, f"{new}/{MARKER}", former.encode("utf-8", "surrogateescape"))
    names = _names(disk, former)
    numbers = segment.numbers_in(disk, former)
    growing = segment.path_of("", numbers[-1])[1:] if numbers else ""
    wanted = [name for name in names if not in_use or (name.endswith(segment.SUFFIX) and name != growing)]
    for name in wanted:
        source, target = f"{former}/{name}", f"{new}/{name}"
        closed = name.endswith(segment.SUFFIX) and name != growing
        try:
            if closed and disk.exists(target) and disk.size(target) == disk.size(source):
                continue  # nobody writes into it any more
            _copy_file(disk, source, target)
        except FileNotFoundError:
            if not in_use:
                raise
            # All of its readers have passed it meanwhile.
    if not in_use:
        for name in _names(disk, new):
            if name not in wanted:
                disk.unlink(f"{new}/{name}")
    disk.fsync_directory(new)
    disk.fsync_directory(new.rpartition("/")[0] or "/")


def finish(disk: Disk, new: str) -> str:
    """Remove what a move to `new` has left behind, once `new` counts. Returns the former place, or "".

    Errors are ignored: it is tried again with the next call.
    """
    marker = f"{new}/{MARKER}"
    with contextlib.suppress(OSError):
        if not disk.exists(marker):
            return ""
        former = read_whole(disk, marker).decode("utf-8", "surrogateescape")
        if former and former != new:
            discard(disk, former)
        disk.unlink(marker)
        return former
    return ""


def discard(disk: Disk, directory: str) -> None:
    """Remove the files of a journal there: a place that does not count. OSError."""
    if disk.exists(directory):
        for name in (*_names(disk, directory), MARKER):
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(f"{directory}/{name}")


def _names(disk: Disk, directory: str) -> list[str]:
    """Whatever a journal may have there, but for half a copy."""
    try:
        names = disk.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(n for n in names if n != MARKER and not n.endswith(segment.TEMPORARY_SUFFIX))


def _copy_file(disk: Disk, source: str, target: str) -> None:
    temporary = target + segment.TEMPORARY_SUFFIX
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(temporary)
    reading = disk.open_read(source)
    try:
        writing = disk.open_append(temporary)
        try:
            offset = 0
            while data := disk.read(reading, COPY_BYTES, offset):
                disk.append(writing, [data], offset)
                offset += len(data)
            disk.fsync(writing)
        finally:
            disk.close(writing)
    finally:
        disk.close(reading)
    disk.replace(temporary, target)


def _write(disk: Disk, path: str, data: bytes) -> None:
    handle = disk.open_append(path)
    try:
        disk.append(handle, [data], 0)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.truncate(path, len(data))
