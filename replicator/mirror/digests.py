"""Digests of what files hold, so that two copies are compared without sending either.

Digests are xxh3 with 64 bits: each is compared with exactly one other, of the same place, so a difference is
missed with a probability of 2^-64. Data is read in pieces of `READ_BYTES` into one buffer: that is all the
memory it takes, and it stays in the processor's cache. Blocking functions, meant for a thread.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

import xxhash

from replicator import limits
from replicator.fs.attributes import data_extents
from replicator.mirror.patches import Range

DIGEST_BYTES = 8
UNIT_BYTES = 4096
"""What is sent again is a multiple of this: pages, and blocks of nearly all file systems."""

Extent = tuple[int, int]  # (offset, length)

_digest = xxhash.xxh3_64_digest


def cut(extents: Iterable[Extent], block_bytes: int) -> Iterator[Range]:
    """Blocks: (first byte, the one after the last). Extents are cut where a multiple of `block_bytes` is."""
    for offset, length in extents:
        end = offset + length
        while offset < end:
            stop = min(offset // block_bytes * block_bytes + block_bytes, end)
            yield offset, stop
            offset = stop


def count_blocks(extents: Iterable[Extent], block_bytes: int) -> int:
    """How many `cut` yields, without cutting."""
    return sum(
        (offset + length - 1) // block_bytes - offset // block_bytes + 1
        for offset, length in extents
        if length
    )


def read_blocks(
    descriptor: int, extents: Iterable[Extent], block_bytes: int
) -> Iterator[tuple[int, int, memoryview]]:
    """Blocks (start, end) and their content, valid until the next one; shorter where the file ends."""
    step = max(limits.COMPARE_READ_BYTES // block_bytes, 1) * block_bytes
    view = memoryview(bytearray(step))
    for offset, length in extents:
        end = offset + length
        while offset < end:
            stop = min(offset // block_bytes * block_bytes + step, end)
            read = os.preadv(descriptor, [view[: stop - offset]], offset)
            begin = offset
            for start, last in cut([(offset, stop - offset)], block_bytes):
                yield start, last, view[start - begin : max(min(last - begin, read), start - begin)]
            offset = stop


def digest_blocks(
    descriptor: int,
    extents: Sequence[Extent],
    block_bytes: int,
    anchors: bytearray | None = None,
    anchor_bytes: int = 0,
) -> tuple[bytes, int | None]:
    """Digests of blocks, and where they end if the file was cut off meanwhile. `anchors` gets the first bytes
    of each.
    """
    digests: list[bytes] = []
    for start, end, content in read_blocks(descriptor, extents, block_bytes):
        if len(content) < end - start:
            return b"".join(digests), start
        digests.append(_digest(content))
        if anchors is not None:
            anchors += bytes(content[:anchor_bytes]).ljust(anchor_bytes, b"\0")
    return b"".join(digests), None


def differing(
    descriptor: int, start: int, end: int, block_bytes: int, extents: Sequence[Extent], digests: bytes
) -> list[tuple[int, int, bytes]]:
    """Blocks (offset, length, digests of their units here) of a file here that are not as `digests` say.

    Where a hole is here, and data there, no units are told: zeros are no hole.
    """
    lacking = subtracted(extents, list(data_extents(descriptor, end, start)))
    found: list[tuple[int, int, bytes]] = []
    place = hole = 0
    for first, last, content in read_blocks(descriptor, extents, block_bytes):
        while hole < len(lacking) and sum(lacking[hole]) <= first:
            hole += 1
        if (hole < len(lacking) and lacking[hole][0] < last) or len(content) < last - first:
            found.append((first, last - first, b""))
        elif _digest(content) != digests[place : place + DIGEST_BYTES]:
            found.append((first, last - first, digest_units(content)))
        place += DIGEST_BYTES
    return found


def digest_units(content: memoryview) -> bytes:
    """Digests of the units of one block."""
    return b"".join([_digest(content[at : at + UNIT_BYTES]) for at in range(0, len(content), UNIT_BYTES)])


def differing_units(content: memoryview, there: bytes) -> list[Range]:
    """Ranges within one block whose units are not as `there`, none touching another."""
    here = digest_units(content)
    found: list[Range] = []
    for number, at in enumerate(range(0, len(content), UNIT_BYTES)):
        place = number * DIGEST_BYTES
        if here[place : place + DIGEST_BYTES] == there[place : place + DIGEST_BYTES]:
            continue
        end = min(at + UNIT_BYTES, len(content))
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], end)
        else:
            found.append((at, end))
    return found


def digest_of_file(descriptor: int, size: int) -> bytes:
    """Of all data of a small file, and of where its holes are."""
    hasher = xxhash.xxh3_64(b"%d" % size)
    for offset, length in data_extents(descriptor, size):
        hasher.update(b"%d %d;" % (offset, length))
        hasher.update(os.pread(descriptor, length, offset))
    return hasher.digest()


def subtracted(extents: Iterable[Extent], others: Sequence[Extent]) -> list[Extent]:
    """What of `extents` lies in none of `others`. All sorted."""
    found: list[Extent] = []
    index = 0
    for offset, length in extents:
        end = offset + length
        while index < len(others) and sum(others[index]) <= offset:
            index += 1
        at = index
        while offset < end:
            if at == len(others) or others[at][0] >= end:
                found.append((offset, end - offset))
                break
            first, count = others[at]
            if first > offset:
                found.append((offset, first - offset))
            offset = first + count
            at += 1
    return found


def gaps(start: int, end: int, extents: Iterable[Extent]) -> list[Extent]:
    """What of a range lies in none of `extents`."""
    return subtracted([(start, end - start)], list(extents))


def unequal(descriptor: int, extents: Sequence[Extent], block_bytes: int, digests: bytes) -> list[Extent]:
    """Blocks of a file here that do not hold what `digests` say; holes hold zeros, and so does what lies
    behind the end of a shorter file: its size is another matter.
    """
    found: list[Extent] = []
    place = 0
    for first, last, content in read_blocks(descriptor, extents, block_bytes):
        if _digest(padded(content, last - first)) != digests[place : place + DIGEST_BYTES]:
            found.append((first, last - first))
        place += DIGEST_BYTES
    return found


def padded(content: memoryview, length: int) -> memoryview | bytes:
    """So many bytes: a file that grows behind its end has zeros there."""
    return content if len(content) == length else bytes(content).ljust(length, b"\0")


def not_zero(descriptor: int, offset: int, length: int, block_bytes: int) -> list[Extent]:
    """Blocks of a range that hold something else than zeros."""
    zeros = bytes(block_bytes)
    return [
        (first, last - first)
        for first, last, content in read_blocks(descriptor, [(offset, length)], block_bytes)
        if content != zeros[: len(content)]
    ]
