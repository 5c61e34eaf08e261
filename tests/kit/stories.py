"""A checker of stories: no step that the tables of states forbid, and no gap."""

from collections.abc import Sequence

from replicator.states import (
    MIRROR,
    OWNED,
    REPLICATION,
    TRANSMIT,
    MirrorEvent,
    ReplicationEvent,
    TransmitEvent,
)
from replicator.status import (
    ConnectionState,
    Dimension,
    MirrorStatus,
    ReplicationStatus,
    StoryEntry,
    TargetDataState,
    TransmitMode,
)

_CONNECTION = {
    TransmitMode.STARTED: {
        ConnectionState.STARTED,
        ConnectionState.ERROR,
        ConnectionState.STOPPED,
    },
    TransmitMode.PAUSED: {ConnectionState.PAUSED, ConnectionState.ERROR, ConnectionState.STOPPED},
    TransmitMode.STOPPED: {ConnectionState.STOPPED},
    TransmitMode.SCHEDULED: {ConnectionState.SCHEDULED},
    TransmitMode.ERROR: {ConnectionState.ERROR},
}


def check_story(story: Sequence[StoryEntry]) -> None:
    """Raises AssertionError with the first entry that cannot follow what was before."""
    now: dict[Dimension, str] = {}
    completed = False  # a mirror, since the target said last what its data is
    for index, entry in enumerate(story):
        where = f"{entry} after {story[max(index - 5, 0) : index]}"
        if index:
            assert entry.sequence == story[index - 1].sequence + 1, f"a gap before {where}"
            assert entry.before == now.get(entry.dimension, entry.before), f"not from there: {where}"
        assert entry.after != entry.before or entry.reason, f"no news: {where}"
        assert entry.lasted_s is None or entry.lasted_s >= 0, where
        # A recovery of next to nothing is over before the target has said that it began.
        unheard = entry.dimension is Dimension.DATA and completed
        assert unheard or _may_follow(entry, now), f"forbidden step: {where}"
        if entry.dimension is Dimension.MIRROR and entry.event == MirrorEvent.END:
            completed = entry.reason == "complete"
        elif entry.dimension is Dimension.DATA and entry.after == TargetDataState.OK:
            completed = False
        now[entry.dimension] = entry.after


def _may_follow(entry: StoryEntry, now: dict[Dimension, str]) -> bool:
    before, after = entry.before, entry.after
    restarted = not before or entry.event == "sender started"
    if entry.dimension is Dimension.TRANSMIT:
        return restarted or TRANSMIT[TransmitMode(before), TransmitEvent(entry.event)] == after
    if entry.dimension is Dimension.CONNECTION:
        transmit = now.get(Dimension.TRANSMIT)
        if after == ConnectionState.PAUSED and transmit == TransmitMode.STARTED:
            return "the target's queue is full" in (entry.event, *entry.reason.split(": "))
        return restarted or ConnectionState(after) in _CONNECTION[TransmitMode(transmit or after)]
    if entry.dimension is Dimension.MIRROR:
        if restarted or entry.event in ("mirror begins", MirrorEvent.END):
            return after == (MirrorStatus.MIRRORING if entry.event == "mirror begins" else MirrorStatus.IDLE)
        # The run that is taken up had ended, and the connection was idle.
        return MIRROR.get((MirrorStatus(before), MirrorEvent(entry.event))) == after or (
            entry.event == MirrorEvent.TAKEN_UP and before == MirrorStatus.IDLE
        )
    if entry.dimension is Dimension.DATA:
        unfounded = before != TargetDataState.MIRRORING and entry.event != OWNED
        return restarted or after != TargetDataState.OK or not unfounded
    if entry.dimension is Dimension.REPLICATION:
        outside = {before, after} & {ReplicationStatus.OUT_OF_MEMORY}
        if restarted or outside:
            return True
        return REPLICATION[ReplicationStatus(before), ReplicationEvent(entry.event)] == after
    return True
