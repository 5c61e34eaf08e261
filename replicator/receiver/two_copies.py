"""A value kept in two copies that are written in turn: an interrupted write leaves the one before it whole.

    offset  bytes
         0      8   checksum (XXH3, 64 bits, big-endian) of all that follows, to the end of the value
         8      8   number of the value, little-endian; 0: never written, so zeros are no value
        16      4   bytes of the value, little-endian
        20          the value

Value number n stands in copy n & 1. Of two whole copies the one with the higher number counts.
"""

import struct
from collections.abc import Iterable

import xxhash

_HEAD = struct.Struct("<QQI")
HEAD_BYTES = _HEAD.size


def encode(number: int, value: bytes) -> bytes:
    """One copy."""
    covered = b"%b%b" % (_HEAD.pack(0, number, len(value))[8:], value)
    return xxhash.xxh3_64_digest(covered) + covered


def newest(copies: Iterable[bytes | memoryview]) -> tuple[int, bytes | None]:
    """Number and value of the newest whole copy; (0, None) if there is none."""
    best: tuple[int, bytes | None] = (0, None)
    for copy in copies:
        if len(copy) < HEAD_BYTES:
            continue
        _, number, size = _HEAD.unpack_from(copy)
        if number <= best[0] or HEAD_BYTES + size > len(copy):
            continue
        covered = bytes(copy[8 : HEAD_BYTES + size])
        if xxhash.xxh3_64_digest(covered) == copy[:8]:
            best = (number, covered[HEAD_BYTES - 8 :])
    return best
