"""Typed frames of a session. `docs/developers/protocol.md` has the bytes.

Stream frames (CONNECT, RECORDS, DERIVED, BATCH, MIRROR_BEGIN, MIRROR_END, CHECKS) form the ordered stream:
the target applies them strictly in the order of their arrival, across sessions. All others are conversation.
Bulk data travels as raw bytes behind its head, everything else as msgpack.
"""

from enum import IntEnum
from typing import Annotated

import msgspec

from replicator import limits
from replicator.bounds import Count, Id, Path
from replicator.failovers import Promotion

PROTOCOL_VERSION = 1

DRIFT_FEATURE = "drift"
"""In a source's HELLO: it understands DRIFT."""

ORPHANS_FEATURE = "orphans"
"""In a source's HELLO: it understands ORPHANS."""

PACKED_FEATURE = "zstd"
"""In a HELLO: whoever says it understands PACKED."""

Marks = Annotated[tuple[Count, ...], msgspec.Meta(max_length=limits.JOURNALS)]
"""Of each journal of a connection, a sequence."""


class FrameType(IntEnum):
    """What a frame is. 0 is invalid."""

    HELLO = 1
    CONNECT = 2
    CONNECTED = 3
    REFUSED = 4
    RECORDS = 10
    DERIVED = 11
    BATCH = 12
    MIRROR_BEGIN = 13
    MIRROR_END = 14
    CHECKS = 15
    ACKNOWLEDGE = 20
    PIECES_REFUSED = 21
    TARGET_STATE = 22
    DRIFT = 24
    DISCONNECT = 23
    ORPHANS = 25
    ORPHAN_TASK = 26
    CHECKED = 27
    SECURE = 28
    PING = 30
    BYE = 31
    PACKED = 32


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Base of all frames."""


class Greeting(Frame, frozen=True):
    """The first line of a session. No frame of its own: it stands before the first one, readable for a
    person.
    """

    version: int
    purpose: str  # "replicate"
    connection_uuid: str


class Hello(Frame, frozen=True):
    """First frame of both sides."""

    version: int
    agent_uuid: Id
    agent_name: str
    features: Annotated[tuple[Id, ...], msgspec.Meta(max_length=limits.FEATURES)] = ()


class PathMap(Frame, frozen=True):
    """Objects at `source` (relative to the root of that journal) and below go to the absolute path
    `target`.
    """

    journal: Count
    source: Path
    target: Path


class JournalInfo(Frame, frozen=True):
    """One journal of a connection; frames name it by its index in Connect.journals."""

    journal_id: Id
    root: Path  # absolute path on the source, for messages and link remapping
    rules_root: Path = b""  # as the rules of the set name it; b"": as `root`. Another one in a restore


class Connect(Frame, frozen=True):
    """Source → target: this session carries that connection."""

    connection_uuid: Id
    repset: str
    generation: Count
    set_definition: str  # JSON, kept by the target (RS-01)
    journals: Annotated[tuple[JournalInfo, ...], msgspec.Meta(max_length=limits.JOURNALS)]
    maps: Annotated[tuple[PathMap, ...], msgspec.Meta(max_length=limits.MAPS)]
    remap_links: bool = False
    lock: Id = "none"  # status.TargetLock: what others may do with the copy while the connection lasts
    epoch: Count = 0  # of the set: each restore raises it, and a target accepts no older one


class Mark(Frame, frozen=True):
    """A position in one journal: sequence with its chain value as proof."""

    sequence: Count
    chain: Count


KnownMarks = Annotated[tuple[Mark | None, ...], msgspec.Meta(max_length=limits.JOURNALS)]


class Connected(Frame, frozen=True):
    """Target → source: accepted; the stream goes on after `received` of each journal. No mark: the target
    knows nothing yet.
    """

    received: KnownMarks
    applied: KnownMarks
    durable: KnownMarks
    data_state: Id  # status.TargetDataState
    mirroring: bool  # the stream is between MIRROR_BEGIN and MIRROR_END
    stream_batches: Count  # number of the last batch received since the last MIRROR_BEGIN; 0: none
    mirror_id: Id  # of that MIRROR_BEGIN; "" for none
    receiver_pid: Count
    power_lost: bool = False  # the target lost power, and no mirror has begun since: it needs to be compared
    orphans: bool | None = (
        None  # mirrors are to list all names, for its orphans; None: it knows nothing of that
    )
    checks: bool = False  # it understands CHECKS
    secures: bool = False  # it understands SECURE
    epoch: Count = 0  # of the copy: above that of CONNECT, the source may not transmit


class RefusedConnection(Frame, frozen=True):
    """Target → source: not accepted. `retry`: whether trying again by itself can help. `promotion`: somebody
    else has owned the copy since, and the source may not transmit.
    """

    reason: str
    retry: bool
    promotion: Promotion | None = None


class StreamHead(Frame, frozen=True):
    """What the heads of RECORDS and DERIVED have in common. `by_identity`: apply these only to hard-linked
    files the target knows by identity, never by path.
    """

    journal: Count
    previous: Mark
    last: Mark
    by_identity: bool = False


class Records(StreamHead, frozen=True):
    """Head of RECORDS: the raw records that follow continue `previous` without a gap; the last of them is
    `last`.
    """


class Derived(StreamHead, frozen=True):
    """Head of DERIVED: one record follows that stands for all of (previous, last]; it continues nobody's
    chain (its own previous chain value is 0). It is missing when those operations concern nothing of the set:
    the frame then only advances the position.
    """


class PieceBatch(Frame, frozen=True):
    """Head of BATCH: the bytes that follow are an encoded pieces.Batch of this number."""

    number: Count = 0


class MirrorBegin(Frame, frozen=True):
    """From here on the target is tolerant: a mirror brings what is missing."""

    mirror_id: Id
    kind: Id
    orphans: Id = ""  # what its lists of names are for, see `replicator.orphans.MODES`; "": not for orphans
    continued: bool = False  # what a full mirror brought, and did not end, counts as brought


class MirrorEnd(Frame, frozen=True):
    """From here on the target is strict. `complete` False: the mirror was stopped; the data state becomes
    Mirror Required.
    """

    mirror_id: Id
    complete: bool
    drift: Count = 0  # number of the last DRIFT whose paths it has brought
    orphans: bool = True  # its lists of names are whole; False: a person has stopped that


class Checks(Frame, frozen=True):
    """Head of CHECKS: the bytes that follow are an encoded checks.CheckBatch of this number. The target
    compares its copy with it at this place of the stream, and changes nothing.
    """

    number: Count


class Checked(Frame, frozen=True):
    """Target → source: what it found when it came to the CHECKS of this number: checks.Finding values,
    encoded. `mirroring`: a mirror had begun before them and not ended, so they say nothing. Not repeated: a
    source whose session broke off asks again.
    """

    number: Count
    findings: bytes
    mirroring: bool = False


class Acknowledge(Frame, frozen=True):
    """Target → source: the three marks, one per journal (sequence only), and the numbers of the last batches
    since MIRROR_BEGIN; 0: none. `settled`: the mirror that ended last, if all it brought is durable.
    """

    received: Marks
    applied: Marks
    durable: Marks
    batches_received: Count
    batches_applied: Count
    settled: Id = ""
    secured: Marks = ()  # as `durable`, and as true; but its position may be synced later
    epoch: Count = 0  # as in Connected


class Secure(Frame, frozen=True):
    """Source → target: somebody waits. Acknowledge at once, and again as soon as the copy is on stable
    storage up to these sequences, one per journal; 0: none.
    """

    durable: Marks


class TargetState(Frame, frozen=True):
    """Target → source, when it changes: status.TargetStatus and TargetDataState values, and the reason to
    show.
    """

    status: Id
    data_state: Id
    reason: str
    queued_bytes: Count
    queue_full: bool = False  # send no more of the stream until this is over (AD-02)


class PiecesRefused(Frame, frozen=True):
    """Target → source: pieces.Refused values, encoded by the caller. `batch`: of this one; 0: of a record."""

    refused: bytes
    batch: Count = 0


class Drift(Frame, frozen=True):
    """Target → source: somebody else has changed the copy. `dirty`: an encoded dirty map in terms of the
    source's paths; b"": anything may have changed. Told again in each session until a MIRROR_END has a
    `drift` of this `number` or more. `exact`: but for what was reported so, the copy is exact. `tail`: it was
    changed by the host of the copy while that was the source; what the source does not have of it goes.
    """

    number: Count
    journal: Count
    dirty: bytes
    changes: Count  # ever noticed, for people
    last_path: Path  # of them
    exact: bool
    tail: bool = False


class Orphans(Frame, frozen=True):
    """Target → source: how far the handling of orphans is, in each session and when it changes. `wanted`: as
    `Connected.orphans`. `report`: an orphans.OrphanReport, encoded, without its names, of which `names` are
    those from `first` on.
    """

    wanted: bool
    report: bytes
    first: Count = 0
    names: Annotated[tuple[str, ...], msgspec.Meta(max_length=limits.ENTRIES)] = ()


class OrphanTask(Frame, frozen=True):
    """Source → target: pause, resume or stop the removal of orphans."""

    action: Id


class Disconnect(Frame, frozen=True):
    """Source → target: the connection ends; the target forgets it (data stays)."""

    connection_uuid: Id


class Packed(Frame, frozen=True):
    """Head of PACKED: what follows is the next piece of this direction's zstd stream, which becomes `size`
    bytes of frames: cut anywhere, and none of them PACKED itself.
    """

    size: Count


class Ping(Frame, frozen=True):
    """Sent when nothing else was."""


class Bye(Frame, frozen=True):
    """A side ends the session on purpose."""

    reason: str


FRAME_TYPE: dict[type[Frame], FrameType] = {
    Hello: FrameType.HELLO,
    Connect: FrameType.CONNECT,
    Connected: FrameType.CONNECTED,
    RefusedConnection: FrameType.REFUSED,
    Records: FrameType.RECORDS,
    Derived: FrameType.DERIVED,
    PieceBatch: FrameType.BATCH,
    MirrorBegin: FrameType.MIRROR_BEGIN,
    MirrorEnd: FrameType.MIRROR_END,
    Checks: FrameType.CHECKS,
    Acknowledge: FrameType.ACKNOWLEDGE,
    PiecesRefused: FrameType.PIECES_REFUSED,
    TargetState: FrameType.TARGET_STATE,
    Drift: FrameType.DRIFT,
    Disconnect: FrameType.DISCONNECT,
    Orphans: FrameType.ORPHANS,
    OrphanTask: FrameType.ORPHAN_TASK,
    Checked: FrameType.CHECKED,
    Secure: FrameType.SECURE,
    Ping: FrameType.PING,
    Bye: FrameType.BYE,
    Packed: FrameType.PACKED,
}

BULK_TYPES = frozenset(
    {FrameType.RECORDS, FrameType.DERIVED, FrameType.BATCH, FrameType.CHECKS, FrameType.PACKED}
)
"""Frames whose msgpack body is only a head: raw bytes follow it."""
