"""Divergence bundles as bytes: what a losing branch had, in a directory of its own (home/divergence/<id>/).

    manifest.json      `Manifest`: whose branch, where it forked, how much there is
    <n>.keys           the tail's dirty map of root number n (`queue/dirty_codec.py`)
    <n>.entries        frames, see below
    <n>.data           content that the frames refer to, and nothing else
    <n>.records        the tail's records as they stood in the journal (`queue/FORMAT.md`); missing: it had
                       them no more

A frame is `length, 4 bytes | xxh32 of the body, 4 | body`, little-endian; the body is one of the structures
below in msgpack, an array that begins with its tag. Frames stand in the order in which they were read:

    Saved      one object, or what of it differs. Directories come before what is in them
    Content    of the regular file `Saved` last: its data, in blocks, each with its place and digest
    Names      of the directory `Saved` last: its names, complete; in parts
    Absent     nothing has this name in the losing branch

Blocks stand one after another in `data`, in the order of the frames, so a block's place there follows from
those before it. What of a saved region no block covers is a hole.

A bundle is built beside its place (`<id>.part`), synced, and renamed: it is complete, or not there. The
manifest says how long each file is. What is damaged is found by the checksums, and never exported.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import BinaryIO

import msgspec
import xxhash

from replicator.bounds import MALFORMED
from replicator.errors import ReplicatorError

VERSION = 1
MANIFEST = "manifest.json"
FRAME_BYTES_MAX = 4 << 20
_HEAD = struct.Struct("<II")


class BundleError(ReplicatorError):
    """A bundle cannot be made, read or found. One line, saying what to do."""


class Part(IntEnum):
    """How much of an object was saved."""

    WHOLE = 1  # all of it; of a directory: its attributes and names, and what is saved below
    REGIONS = 2  # of a regular file: these regions, its size and attributes
    ATTRIBUTES = 3  # mode, owner, times, extended attributes; of a file its size as well
    ABOVE = 4  # a directory that did not differ: its attributes, for whoever makes it again


class Saved(msgspec.Struct, frozen=True, array_like=True, tag="object"):
    """One object. `path` is relative to the root, which is b"". `regions`: [start, end) in bytes, within the
    size. `same_as`: a path saved before that is a name of the same file; what that has is not saved again.
    """

    path: bytes
    part: Part
    mode: int  # with its type, as in stat(2)
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    rdev: int = 0
    text: bytes = b""  # of symbolic links
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    regions: tuple[tuple[int, int], ...] = ()
    inode: int = 0
    links: int = 1
    same_as: bytes | None = None


class Content(msgspec.Struct, frozen=True, array_like=True, tag="content"):
    """`blocks`: (offset, length, digest) each; the digest is `digest_of` its data."""

    blocks: tuple[tuple[int, int, int], ...]


class Names(msgspec.Struct, frozen=True, array_like=True, tag="names"):
    names: tuple[bytes, ...]


class Absent(msgspec.Struct, frozen=True, array_like=True, tag="absent"):
    path: bytes


Frame = Saved | Content | Names | Absent

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def digest_of(data: bytes | memoryview) -> int:
    """63 bits: what msgpack and SQLite take as a number."""
    digest: int = xxhash.xxh3_64_intdigest(data)
    return digest >> 1


def encode(frame: Frame) -> bytes:
    body = _encoder.encode(frame)
    return _HEAD.pack(len(body), xxhash.xxh32_intdigest(body)) + body


def frames(file: BinaryIO, size: int) -> Iterator[Frame]:
    """All frames of an `entries` file that has to be `size` bytes long. BundleError where it is damaged."""
    offset = 0
    while offset < size:
        head = file.read(_HEAD.size)
        length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (FRAME_BYTES_MAX + 1, 0)
        body = file.read(length) if length <= FRAME_BYTES_MAX else b""
        if len(body) != length or xxhash.xxh32_intdigest(body) != checksum:
            raise BundleError(f"the bundle is damaged: its entries at byte {offset}")
        try:
            yield _decoder.decode(body)
        except MALFORMED as error:
            raise BundleError(f"the bundle is damaged: its entries at byte {offset}: {error}") from None
        offset += _HEAD.size + length


class RootManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One captured directory of the losing branch. Positions are (sequence, chain) in its journal; None: not
    known.
    """

    journal: str
    path: str  # absolute, on the host of the branch
    fork: tuple[int, int] | None = None  # the last operation that both branches have
    head: tuple[int, int] | None = None  # the last operation of the losing branch
    objects: int = 0
    absent: int = 0
    records: int = 0  # in the file of records
    entries_bytes: int = 0
    data_bytes: int = 0
    records_bytes: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is. `epoch` is the losing branch's, `winner_epoch` the one that superseded it."""

    version: int = VERSION
    id: str
    group: str
    group_name: str = ""
    agent: str = ""  # uuid of the one whose branch it is
    agent_name: str = ""
    host: str = ""
    epoch: int = 0
    winner_epoch: int = 0
    winner: str = ""  # name of the owner that superseded it
    time: float = 0.0  # when it was saved, seconds since the epoch of clocks
    reason: str = ""
    roots: tuple[RootManifest, ...] = ()

    @property
    def objects(self) -> int:
        return sum(root.objects for root in self.roots)

    @property
    def absent(self) -> int:
        return sum(root.absent for root in self.roots)

    @property
    def bytes(self) -> int:
        return sum(root.entries_bytes + root.data_bytes + root.records_bytes for root in self.roots)
