"""Rows of buffers that stand for one run of bytes."""

from collections.abc import Iterator

from replicator import limits
from replicator.net.engine import Buffer

_JOIN_BYTES = 128 * limits.KIB  # up to this, copying is cheaper than further system calls


def joined(buffers: list[Buffer]) -> Iterator[Buffer]:
    """The same bytes in fewer buffers: small neighbours are copied together, large ones are left alone."""
    row: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if size + len(buffer) > _JOIN_BYTES and row:
            yield b"".join(row) if len(row) > 1 else row[0]
            row, size = [], 0
        row.append(buffer)
        size += len(buffer)
    if row:
        yield b"".join(row) if len(row) > 1 else row[0]


def cut(buffers: list[Buffer], size: int) -> Iterator[list[Buffer]]:
    """The same bytes in rows of at most `size`; nothing is copied."""
    row: list[Buffer] = []
    room = size
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view):
            part = view[:room]
            row.append(part)
            room -= len(part)
            view = view[len(part) :]
            if not room:
                yield row
                row, room = [], size
    if row:
        yield row
