"""Checks: what a source says its objects are at a place of the stream, for a target that only compares; and
findings, what the target has instead.

Paths are bytes relative to the captured root of one journal. One `CheckBatch` travels as one frame.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from replicator import limits
from replicator.bounds import I64, U32, Count, Name, Path, Size
from replicator.mirror.pieces import Buffer, Extents, NameList, Xattrs
from replicator.ops import Attributes, Identity


class Aspect(StrEnum):
    """In what two objects of the same name may differ."""

    MISSING = "missing"  # the target has nothing of that name
    EXTRA = "extra"  # the source has nothing of that name
    TYPE = "type"
    SIZE = "size"
    CONTENT = "content"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    XATTRS = "xattrs"
    ACL = "acl"
    LINK_TEXT = "link text"  # of a symlink
    DEVICE = "device"
    HARD_LINK = "hard link"  # two names are one file on one side only


SECURITY = frozenset({Aspect.MODE, Aspect.OWNER, Aspect.XATTRS, Aspect.ACL})


class Content(msgspec.Struct, frozen=True, array_like=True):
    """From `start` to `end` a regular file holds data with these digests; all else in that range is zeros, be
    it data or hole.

    `extents` are cut at multiples of `block_bytes` (see `digests.cut`); `digests` has 8 bytes for each block.
    """

    start: Size
    end: Size
    block_bytes: Size
    extents: Extents
    digests: bytes


class Check(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One object, of any type, with all that can be compared of it.

    `peer`: another name that is (`is_peer`) the same object, or (not `is_peer`) surely another.
    """

    path: Path
    identity: Identity
    attributes: Attributes
    xattrs: Xattrs
    size: Size = 0  # of a regular file
    links: Count = 1
    link_text: Path = b""
    content: Content | None = None
    peer: Path = b""
    is_peer: bool = True


class CheckNames(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A directory's names after `after` up to `until` (b"": the last), of the set. What else the target has
    there, is not in `kept`, and no rule excludes, is extra.
    """

    path: Path
    after: Name
    until: Name
    names: NameList
    kept: NameList = ()


AnyCheck = Check | CheckNames


class CheckBatch(msgspec.Struct, frozen=True, array_like=True):
    """All of one journal, all with the same place. `number` grows, and never restarts."""

    number: Count
    journal: Count
    checks: Annotated[tuple[AnyCheck, ...], msgspec.Meta(max_length=limits.ENTRIES)]


class There(msgspec.Struct, frozen=True, array_like=True):
    """What the target has under a name. Sizes in bytes, times in ns since the epoch."""

    mode: U32
    uid: U32
    gid: U32
    rdev: Count
    size: Size
    mtime_ns: I64
    links: Count
    link_text: Path = b""


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """What is not as check number `index` of a batch says.

    `blocks`: (offset, length) whose content differs. `names`: extra ones, with what they are; `count` of
    them, which may be more. `peer`: a name that is the same object here. `problem`: it could not be compared.
    """

    index: Count
    aspects: Annotated[tuple[Aspect, ...], msgspec.Meta(max_length=len(Aspect))] = ()
    there: There | None = None
    blocks: Extents = ()
    names: Annotated[tuple[tuple[Name, There], ...], msgspec.Meta(max_length=limits.CHECK_EXTRA_NAMES)] = ()
    count: Count = 0
    peer: Path = b""
    problem: str = ""


_batches = msgspec.msgpack.Decoder(CheckBatch)
_findings = msgspec.msgpack.Decoder(Annotated[list[Finding], msgspec.Meta(max_length=limits.ENTRIES)])


def encode_checks(batch: CheckBatch) -> bytes:
    return msgspec.msgpack.encode(batch)


def decode_checks(data: Buffer) -> CheckBatch:
    """Raises msgspec.DecodeError / ValidationError on malformed input."""
    return _batches.decode(data)


def encode_findings(findings: list[Finding]) -> bytes:
    return msgspec.msgpack.encode(findings)


def decode_findings(data: Buffer) -> list[Finding]:
    """Raises msgspec.DecodeError / ValidationError on malformed input."""
    found: list[Finding] = _findings.decode(data)
    return found
