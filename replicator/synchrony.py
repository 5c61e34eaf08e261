"""Synchronous replication: what there is to say of it. Data and a table.

A mount may ask that what programs make durable is durable on its targets, too, before they hear of it. Each
connection that counts is in one of the states below; `capture/synchrony.py` moves them.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum
from typing import Final, Literal

import msgspec

Sync = Literal["async", "fsync", "all"]
Policy = Literal["degrade", "strict"]


class Readiness(IntEnum):
    """What the sender of a connection says of itself, in the shared header of a journal."""

    AWAY = 0  # nobody has said anything: no sender, no session
    READY = 1
    INEXACT = 2  # a mirror or recovery is needed, or runs
    PAUSED = 3  # by a person, or a schedule
    UNABLE = 4  # the target's software knows nothing of it


WHY: Final[Mapping[Readiness, str]] = {
    Readiness.AWAY: "the target is away",
    Readiness.READY: "the target is slow",
    Readiness.INEXACT: "the copy is not complete: a mirror or recovery comes first",
    Readiness.PAUSED: "it is paused or stopped",
    Readiness.UNABLE: "the target's software cannot do it: update it",
}

LASTING: Final = frozenset({Readiness.PAUSED, Readiness.UNABLE})
"""Somebody wants it so: to wait for its end is in vain."""


class SyncState(StrEnum):
    """Of one connection and mount."""

    SYNCHRONOUS = "Synchronous"
    WAITING = "Waiting"  # strict, and programs wait for a target that does not answer
    DEGRADED = "Degraded"  # asynchronous, until the target has caught up


class SyncEvent(StrEnum):
    CAUGHT_UP = "the target has caught up"
    OVERDUE = "the target does not answer in time"
    GIVEN_UP = "programs wait no longer"


_S, _E = SyncState, SyncEvent
SYNC: Final[Mapping[tuple[SyncState, SyncEvent], SyncState]] = {
    (_S.DEGRADED, _E.CAUGHT_UP): _S.SYNCHRONOUS,
    (_S.DEGRADED, _E.OVERDUE): _S.DEGRADED,
    (_S.DEGRADED, _E.GIVEN_UP): _S.DEGRADED,
    (_S.SYNCHRONOUS, _E.CAUGHT_UP): _S.SYNCHRONOUS,
    (_S.SYNCHRONOUS, _E.OVERDUE): _S.WAITING,
    (_S.SYNCHRONOUS, _E.GIVEN_UP): _S.DEGRADED,
    (_S.WAITING, _E.CAUGHT_UP): _S.SYNCHRONOUS,
    (_S.WAITING, _E.OVERDUE): _S.WAITING,
    (_S.WAITING, _E.GIVEN_UP): _S.DEGRADED,
}


_WORST: Final = (SyncState.DEGRADED, SyncState.WAITING, SyncState.SYNCHRONOUS)


class SyncView(msgspec.Struct, frozen=True, kw_only=True):
    """One connection of a synchronous mount, as it is shown."""

    connection: str  # its uuid
    state: SyncState
    since: float  # seconds since the epoch
    reason: str = ""  # why it is not synchronous
    waiting: int = 0  # operations of programs that wait for this target now
    times: int = 0  # it was left, by this process


def worst(views: Iterable[SyncView]) -> SyncView | None:
    """Of one connection, which may read several mounts. None: all are asynchronous."""
    return min(views, key=lambda view: _WORST.index(view.state), default=None)
