"""Pieces: what a scanner reads from the source and a target puts into its tree.

A piece stands in the ordered stream at a place (see docs/developers/architecture.md, "Ordering"). Paths are
bytes relative to the captured root of one journal. One `Batch` travels as one frame: small entries are packed
together. Contents of files stand behind the encoded entries, so that neither side copies them.
"""

import struct
from typing import Annotated

import msgspec

from replicator import limits
from replicator.bounds import I64, Count, Extent, Name, Path, Size
from replicator.mirror.comparison import Claim
from replicator.mirror.patches import Block
from replicator.ops import Attributes, Identity

Xattrs = Annotated[dict[bytes, bytes], msgspec.Meta(max_length=limits.XATTRS)]
NameList = Annotated[tuple[Name, ...], msgspec.Meta(max_length=limits.NAMES)]
Extents = Annotated[tuple[Extent, ...], msgspec.Meta(max_length=limits.BLOCKS)]
Buffer = bytes | bytearray | memoryview


class Content:
    """Bytes of a file. Encoded, an entry has their number only: they follow, uncopied, in order."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    def __len__(self) -> int:
        return len(self.buffer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and self.buffer == other.buffer

    def __hash__(self) -> int:
        return hash(bytes(self.buffer))

    def __repr__(self) -> str:
        return f"Content({bytes(self.buffer[:20])!r}, {len(self.buffer)} bytes)"


NO_CONTENT = Content(b"")


class Entry(msgspec.Struct, frozen=True, tag_field="t", array_like=True):
    """Base of all entries of a batch."""

    path: Path


class Listing(Entry, frozen=True, tag=1):
    """A directory: create it if missing (replacing what is no directory), with these attributes and xattrs
    (mtime excepted).

    `directories` are its sub-directories in the set, created empty at once if missing so that the mtime set
    by `Times` stays. `exact`: remove every other name not in `names` (recursively): operations that removed
    them may have been missed. `orphans`: other names are orphans, for the target's settings. Both: as
    `exact`, but what the rules of the set exclude stays. Neither: `names` is empty and nothing is removed.
    """

    attributes: Attributes
    xattrs: Xattrs
    directories: NameList = ()
    exact: bool = False
    names: NameList = ()
    orphans: bool = False


class Object(Entry, frozen=True, tag=2):
    """Anything without content: symlink (`link_text`), fifo, socket, device."""

    identity: Identity
    links: Count
    attributes: Attributes
    xattrs: Xattrs
    link_text: Path = b""


class File(Entry, frozen=True, tag=3):
    """A regular file, whole.

    `data` holds the extents one after another; what is in none of them is a hole.
    """

    identity: Identity
    links: Count
    attributes: Attributes
    xattrs: Xattrs
    size: Size
    extents: Extents  # (offset, length)
    data: Content


class Part(Entry, frozen=True, tag=4):
    """Some content of a file too large for one entry.

    Parts of a transfer come in order; `first` opens it. `changed_ns` of that: a part of this file is worth
    keeping over a kill (see `begun.py`); it is its ctime, or 0: it may be changed at this moment. `offered`:
    its content is in the file that was offered for this transfer (see `local_copy.py`), or will be.
    """

    identity: Identity
    transfer: Count
    first: bool
    extents: Extents
    data: Content
    changed_ns: I64 | None = None
    offered: bool = False


class Finish(Entry, frozen=True, tag=5):
    """The end of a transfer: the copy gets its size, attributes and xattrs and takes its name."""

    identity: Identity
    transfer: Count
    links: Count
    attributes: Attributes
    xattrs: Xattrs
    size: Size


class Abandon(Entry, frozen=True, tag=6):
    """A transfer ends without a file: its name changed on the source meanwhile."""

    transfer: Count


class Same(Entry, frozen=True, tag=7):
    """A claim (see `comparison.Claim`): the target's file is right as it is, so only attributes and xattrs
    need care. By default: it has this size and mtime.

    Checked in its turn. `blocks`: where it does not hold, the target's file is an old copy of this one from
    here on, and is refused with its `links`: its blocks are compared. Else it is to be sent whole.
    """

    identity: Identity
    links: Count
    attributes: Attributes
    xattrs: Xattrs
    size: Size
    claim: Claim = Claim.SIZE_AND_TIME
    blocks: bool = False
    digest: bytes = b""  # of `Claim.CONTENT`: see `digests.digest_of_file`


class LinkTo(Entry, frozen=True, tag=8):
    """Another name of a file that was already sent under a different one.

    `Refused` if the target does not know it.
    """

    identity: Identity
    links: Count


class Times(Entry, frozen=True, tag=9):
    """Mtime of a directory whose entries are all in place."""

    mtime_ns: I64


class Names(Entry, frozen=True, tag=10):
    """A part of the list of names of a directory that is there: those after `after` up to `until` (b"": the
    last), sorted.

    `types` has a letter for each (see `NAME_TYPES`). Names of that part that are neither in `names` nor in
    `kept` are removed (recursively), and so is what has another type; what the target then lacks of `names`
    it refuses by name. Attributes and xattrs (mtime excepted) are the directory's. `orphans`: nothing is
    removed; other names are orphans, for the target's settings.
    """

    attributes: Attributes
    xattrs: Xattrs
    after: Name
    until: Name
    names: NameList
    types: bytes
    kept: NameList = ()
    orphans: bool = False


class Patch(Entry, frozen=True, tag=11):
    """Some content of a regular file that is there, changed in place; the rest of it stays.

    `data` holds the extents one after another, `holes` become holes; then the file gets this size.
    """

    identity: Identity
    links: Count
    size: Size
    extents: Extents  # (offset, length)
    holes: Extents
    data: Content
    rebuild: Count = 0  # number of a comparison: of the file that it builds


class Patched(Entry, frozen=True, tag=12):
    """Attributes, xattrs and (of a regular file) size of an object that is there: the end of its patches."""

    identity: Identity
    links: Count
    attributes: Attributes
    xattrs: Xattrs
    size: Size
    rebuild: Count = 0


class Digests(Entry, frozen=True, tag=13):
    """A claim: from `start` to `end` a regular file that is there holds data with these digests.

    `extents` are the data, all else in this range becomes a hole. They are cut at multiples of `block_bytes`
    (see `digests.cut`); `digests` has 8 bytes for each of these blocks. First the file gets this size.
    Refused with the `number` and the blocks that differ.

    With `anchors`, of a file that is built beside the old one, and gets its name with `Patched`: a block that
    is found anywhere in the old one is taken from there. They are the first bytes of the blocks
    (`moved.ANCHOR_BYTES` of each; fewer of a shorter one are filled up). `begins`: it is begun, with the
    parts `kept` (offset, length) of the old one.
    """

    identity: Identity
    number: Count  # of this comparison; never used again
    size: Size
    start: Size
    end: Size
    block_bytes: Size
    extents: Extents  # (offset, length)
    digests: bytes
    anchors: bytes = b""
    begins: bool = False
    kept: Extents = ()


class Alike(Entry, frozen=True, tag=14):
    """A claim about files of the directory `path`: they are regular, have one name, no replicated extended
    attributes, and these links, owners, modes, sizes and mtimes.

    `states`: of each in columns, see `fs.many_states`. Refused with the `names` that are not so.
    """

    names: NameList
    states: bytes
    claim: Claim = Claim.SIZE_AND_TIME  # or BROUGHT


class Files(Entry, frozen=True, tag=15):
    """Files of the directory `path`, whole: regular ones without holes, and symbolic links, whose texts are
    their contents; without replicated extended attributes.

    `states` as of `Alike`; `data` holds the contents one after another. `inodes`: of each, as a column of
    `states`, if one of them has several names (generation 0); else empty.
    """

    names: NameList
    states: bytes
    data: Content
    inodes: bytes = b""


class Links(Entry, frozen=True, tag=16):
    """As `LinkTo`, for many names of the directory `path`. `inodes`: of each, as of `Files`."""

    names: tuple[bytes, ...]
    inodes: bytes


class Begun(Entry, frozen=True, tag=17):
    """A question: is a part of this large file here, of a transfer that broke off? Then that is the copy of
    it from here on, and what it lacks comes as patches whose `rebuild` is this `number`.

    `changed_ns`: its ctime now, 0 if that proves nothing. The answer is a `Refused` with the `number` and
    `begun`, or without: nothing is here.
    """

    identity: Identity
    links: Count
    number: Count
    changed_ns: I64


NAME_TYPES = b"dfl-"
"""Directory, regular file, symlink, anything else."""

AnyEntry = (
    Listing
    | Object
    | File
    | Part
    | Finish
    | Abandon
    | Same
    | LinkTo
    | Times
    | Names
    | Patch
    | Patched
    | Digests
    | Alike
    | Files
    | Links
    | Begun
)


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """One frame of pieces: all of one journal, all with the same place.

    `number` grows from batch to batch, and never restarts.
    """

    number: Count
    journal: Count  # index of the journal within the connection
    entries: Annotated[tuple[AnyEntry, ...], msgspec.Meta(max_length=limits.ENTRIES)]


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """A piece the target could not put in place, by path: the sender sends it again, whole.

    `retry` False: it failed for a reason that sending again does not mend (permission, name too long): a
    problem to show. `names`: it is these names of the directory `path` that are to be sent. `links`: the
    target has an old copy of the file with so many names, whose blocks are to be compared. `number`: of a
    comparison, which found these `blocks` different. `size`: of the files of which a claim does not hold.
    `begun`: a part of the file is here, up to there, a multiple of 4 KiB; it has to be compared if there are
    `links`.
    """

    journal: Count
    path: Path
    identity: Identity
    reason: str
    retry: bool = True
    names: NameList = ()
    links: Count = 0
    number: Count = 0
    blocks: Annotated[tuple[Block, ...], msgspec.Meta(max_length=limits.BLOCKS)] = ()
    size: Size = 0
    begun: Size = 0


_LENGTH = struct.Struct("<I")  # of the encoded entries


def encode_batch(batch: Batch) -> list[Buffer]:
    """Length, entries and contents, to be sent one after another. Contents are not copied."""
    contents: list[Buffer] = []

    def keep(content: object) -> int:
        assert isinstance(content, Content)
        if content.buffer:
            contents.append(content.buffer)
        return len(content.buffer)

    entries = msgspec.msgpack.encode(batch, enc_hook=keep)
    return [_LENGTH.pack(len(entries)) + entries, *contents]


def decode_batch(data: Buffer) -> Batch:
    """The contents are views of `data`.

    Raises msgspec.DecodeError / ValidationError on malformed input.
    """
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        raise msgspec.DecodeError("a batch without its length")
    end = _LENGTH.size + _LENGTH.unpack_from(view)[0]
    contents = view[end:]
    taken = 0

    def take(_: type, length: object) -> Content:
        nonlocal taken
        if not isinstance(length, int) or not 0 <= length <= len(contents) - taken:
            raise ValueError("contents are missing")
        start = taken
        taken += length
        return Content(contents[start:taken])

    batch = msgspec.msgpack.decode(view[_LENGTH.size : end], type=Batch, dec_hook=take)
    if end > len(view) or taken != len(contents):
        raise msgspec.DecodeError("contents that belong to no entry")
    return batch


_refused_encoder = msgspec.msgpack.Encoder()
_refused_decoder = msgspec.msgpack.Decoder(Annotated[list[Refused], msgspec.Meta(max_length=limits.ENTRIES)])


def encode_refused(refused: list[Refused]) -> bytes:
    return _refused_encoder.encode(refused)


def decode_refused(data: bytes | memoryview) -> list[Refused]:
    """Raises msgspec.DecodeError / ValidationError on malformed input."""
    found: list[Refused] = _refused_decoder.decode(data)
    return found
