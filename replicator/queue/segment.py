"""Segment files: their names, the header each begins with, and what lies in a tier."""

import struct
from typing import NamedTuple
from uuid import UUID

import xxhash

from replicator.errors import JournalError
from replicator.ops import Position
from replicator.world import Disk

HEADER_BYTES = 64
SUFFIX = ".segment"
TEMPORARY_SUFFIX = ".temporary"
DAMAGED_SUFFIX = ".damaged"
DAMAGED_PREFIX = "damaged-"

_MAGIC = b"RJS\x01"
_VERSION = 1
_HEADER = struct.Struct("<4sHHII16sQQQ")
_CHECKSUM = struct.Struct("<Q")
_DIGITS = 10


class SegmentHeader(NamedTuple):
    """The first 64 bytes of a segment file."""

    number: int
    boot: int  # short id of the boot that created it
    journal: UUID
    first_sequence: int
    previous_chain: int
    bytes_before: int  # bytes of all records of the journal before this segment: where the one before it ends

    @property
    def previous(self) -> Position:
        """The position right before its first record."""
        return Position(self.first_sequence - 1, self.previous_chain)

    def encode(self) -> bytes:
        head = _HEADER.pack(
            _MAGIC,
            _VERSION,
            HEADER_BYTES,
            self.number,
            self.boot,
            self.journal.bytes,
            self.first_sequence,
            self.previous_chain,
            self.bytes_before,
        )
        return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))


def decode_header(data: bytes | memoryview) -> SegmentHeader:
    """Raises JournalError if `data` does not begin with a whole segment header of this format."""
    if len(data) < HEADER_BYTES:
        raise JournalError("segment header cut short")
    magic, version, size, number, boot, journal, first, chain, before = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise JournalError("not a journal segment")
    if version != _VERSION or size != HEADER_BYTES:
        raise JournalError(f"segment of unknown format version {version}")
    if _CHECKSUM.unpack_from(data, _HEADER.size)[0] != xxhash.xxh3_64_intdigest(bytes(data[: _HEADER.size])):
        raise JournalError("checksum of the segment header does not fit")
    return SegmentHeader(number, boot, UUID(bytes=journal), first, chain, before)


def read_header(disk: Disk, handle: int) -> SegmentHeader:
    return decode_header(disk.read(handle, HEADER_BYTES, 0))


def path_of(directory: str, number: int) -> str:
    return f"{directory}/{number:0{_DIGITS}d}{SUFFIX}"


def numbers_in(disk: Disk, directory: str) -> list[int]:
    """Numbers of the segments in a tier, ascending. A missing directory has none."""
    try:
        names = disk.listdir(directory)
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return sorted(int(stem) for stem in stems if len(stem) >= _DIGITS and stem.isdecimal() and stem.isascii())
