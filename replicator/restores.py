"""Restores: what is asked for, which dangers have names, and what is known of a copy and of a restore.

Values that agents exchange and show; which dangers there are is decided in `agent/restore_checks.py`.
"""

from enum import StrEnum

import msgspec

from replicator.orphans import OrphanAction
from replicator.repset import ReplicationSet


class Existing(StrEnum):
    """What becomes of files that are there already (RT-06, RT-07)."""

    OVERWRITE = "overwrite"  # those that differ
    MISSING = "missing"  # none: only what is missing is made
    NEWER = "newer"  # those that are newer in the copy


class Danger(StrEnum):
    """What a restore is refused for, unless it was asked for by this name."""

    REPLICATING = "replicating"  # a source still replicates to the copy
    WAITING = "waiting"  # the copy's queue holds operations that would be void
    INCOMPLETE = "incomplete"  # the copy is no state that its source was in
    NOT_EMPTY = "not-empty"  # a directory that is not the former source has something in it
    NEWER = "newer"  # files there are newer than in the copy


class Phase(StrEnum):
    """How far a restore is."""

    RUNNING = "running"
    FINISHING = "finishing"  # everything is there; both sides are being told
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


class Root(msgspec.Struct, frozen=True):
    """One part of a copy: absolute paths on the source, and on the host of the copy."""

    source: str
    replica: str


class CopyView(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that is kept on a host, as its agent describes it to those who may restore from it."""

    uuid: str  # of its connection
    repset: ReplicationSet  # as the copy knows it (RT-04)
    roots: tuple[Root, ...]
    source_uuid: str
    source_name: str
    agent: str  # who keeps it
    data_state: str
    connected: bool  # a source is there now
    paused: bool
    waiting_bytes: int  # received and not applied
    remap_links: bool
    epoch: int
    restoring: str  # uuid of a restore that reads it now


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an administrator asks for on the host that gets the data."""

    copy: str  # a connection here (id, uuid, set); with `source`: a copy there (uuid, or the name of its set)
    source: str = ""  # HOST[:PORT] of the agent that keeps the copy; "": that of the connection
    paths: tuple[str, ...] = ()  # absolute, on the source; (): the whole set
    to: str = ""  # another directory for all of it
    maps: tuple[Root, ...] = ()  # source → directory here (`replica` is that one)
    existing: Existing = Existing.OVERWRITE
    checksum: bool = False
    orphans: OrphanAction | None = None  # of what the copy does not have there; None: keep
    orphans_directory: str = ""
    orphans_older_than_days: float = 0.0
    orphans_over_limit: bool = False
    even_if: tuple[Danger, ...] = ()
    definition: bool = False  # keep the set's definition here as well (RT-05)
    protect: bool = False  # and capture, and go on replicating to the copy
    dry_run: bool = False


class Step(msgspec.Struct, frozen=True):
    """One thing that a restore does, or leaves as it is."""

    action: str  # create, overwrite, replace, attributes, keep, remove
    path: str  # here
    reason: str = ""
    size: int = 0  # bytes of its content


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore would do (`--dry-run`). Counts are exact; of the steps only so many are kept."""

    steps: tuple[Step, ...] = ()
    left_out: int = 0
    counts: dict[str, int] = {}
    bytes: int = 0  # of what is created, overwritten or replaced, by sizes of files
    refused: str = ""  # why it would not begin; "": it would


class RestoreView(msgspec.Struct, frozen=True, kw_only=True):
    """One restore, as shown. Sizes in bytes, times in seconds."""

    id: int
    uuid: str
    phase: Phase
    reason: str
    repset: str
    source: str
    roots: tuple[Root, ...]
    paths: tuple[str, ...]
    started: float
    finished: float
    connected: bool = False
    paused: bool = False
    percent: float | None = None
    done_files: int = 0
    done_bytes: int = 0
    sent_bytes: int = 0
    skipped_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    orphans: str = ""
    problem_count: int = 0
    problems: tuple[str, ...] = ()
    resumed: str = ""  # what became of protection
