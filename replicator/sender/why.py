"""Why is this path not on the target (yet)? What a connection knows of one path."""

import os
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from replicator import limits
from replicator.errors import JournalError
from replicator.mirror.order import is_below_or_equal
from replicator.ops import NAME_KINDS, Kind, Record, shown
from replicator.queue.cursor import Cursor
from replicator.queue.settings import JournalSettings
from replicator.sender.doubts import dirty_text, quarantine_text
from replicator.sender.flow import Flow
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    PathOperation,
    Problem,
    ReplicationStatus,
    TargetStatus,
)
from replicator.world import World


def concerns(record: Record, path: bytes) -> bool:
    """Whether an operation is one on `path`, on something below it, or on a name above it."""
    for touched in (record.path, record.path2):
        if touched and is_below_or_equal(touched, path):
            return True
        if touched and record.kind in NAME_KINDS and is_below_or_equal(path, touched):
            return True
    return False


class Looked(NamedTuple):
    """What the journal has of a path."""

    operations: list[Record]  # the last ones, oldest first, without their data
    holes: list[Record]  # losses that the stream has not reached
    whole: bool  # all that is kept was looked at


async def look(world: World, settings: JournalSettings, flow: Flow, path: bytes) -> Looked:
    """Read what is kept of the journal, or the newest of it. Raises JournalError."""
    found: deque[Record] = deque(maxlen=limits.WHY_OPERATIONS)
    holes: list[Record] = []
    kept, head = flow.cursor.acknowledged, flow.cursor.head().sequence
    start = max(kept, head - limits.WHY_RECORDS)
    # A cursor of its own, without a slot: nothing is kept for it, and nobody waits for it.
    cursor = Cursor.open(world, settings, flow.journal_id, None)
    try:
        if start < head:
            await world.in_thread(partial(cursor.look_from, start))
            while cursor.position.sequence < head:
                run = await world.in_thread(partial(cursor.read, limits.READ_CHUNK_BYTES))
                if run is None:
                    break
                for _, _, record in run.records:
                    if record.kind == Kind.HOLE and record.sequence > flow.position.sequence:
                        holes.append(record._replace(payload=bytes(record.payload)))
                    elif concerns(record, path):
                        found.append(record._replace(payload=b""))
    finally:
        cursor.close()
    return Looked(list(found), holes, start == kept)


def stage_of(sequence: int, sent: int, received: int, applied: int, durable: int) -> str:
    """Where an operation is: journaled, sent, received, applied, or durable."""
    if sequence <= durable:
        return "durable"
    if sequence <= applied:
        return "applied"
    if sequence <= received:
        return "received"
    return "sent" if sequence <= sent else "journaled"


def why_it_waits(stage: str, status: ConnectionStatus) -> str:
    """What an operation in this stage waits for."""
    if stage == "durable":
        return ""
    if stage == "applied":
        return "it is in the copy; the target's next sync makes it durable"
    if stage == "journaled" and status.replication_status is ReplicationStatus.STOPPED:
        return "replication is stopped: it will not be sent; start it, then a mirror"
    if status.state is ConnectionState.ERROR:
        return f"the connection is in error and tried again: {status.state_reason}"
    if status.state in (ConnectionState.STOPPED, ConnectionState.SCHEDULED):
        return status.state_reason or "the connection is being made"
    if stage == "journaled":
        if status.target_queue_full:
            return "the target's queue is full: it is sent when there is room again"
        if status.state is ConnectionState.PAUSED:
            return "transmission is paused"
        return "it is in the queue behind what is being sent"
    if status.target_status is TargetStatus.RETRYING:
        return f"the target tries again: {status.target_status_reason}"
    if status.target_status in (TargetStatus.PAUSED, TargetStatus.PAUSE_PENDING):
        return "the target is paused"
    return "it is on its way" if stage == "sent" else "it is in the target's queue behind what is applied"


def operation(record: Record, stage: str, waits_for: str) -> PathOperation:
    return PathOperation(
        sequence=record.sequence,
        time=record.wall_ns / 1e9,
        operation=Kind(record.kind).name.lower().replace("_", " "),
        path=shown(record.path),
        path2=shown(record.path2),
        stage=stage,
        waits_for=waits_for,
    )


async def explain(
    world: World,
    settings: JournalSettings,
    flow: Flow,
    path: str,
    marks: tuple[int, int, int],
    status: ConnectionStatus,
    problems: Sequence[Problem],
) -> dict[str, object]:
    """What a sender knows of `path`, relative to the captured directory: members of `PathConnection`.
    `marks`: received, applied, durable. `problems`: of the last mirror or recovery.
    """
    name = os.fsencode(path)
    note = ""
    looked = Looked([], [], True)
    try:
        looked = await look(world, settings, flow, name)
        if not looked.whole:
            note = f"only the newest {limits.WHY_RECORDS} operations of the queue were looked at"
    except JournalError as error:
        note = f"the journal could not be looked at: {error}"
    dirty = dirty_text(flow.order, looked.holes, name, losing=flow.cursor.losing)
    quarantined = quarantine_text(problems, path)
    if not (looked.operations or dirty or quarantined or note):
        note = "no operation on it is in the queue: what was captured of it before is on the target"
    operations = []
    for record in looked.operations:
        stage = stage_of(record.sequence, flow.position.sequence, *marks)
        operations.append(operation(record, stage, why_it_waits(stage, status)))
    return {
        "operations": operations,
        "note": note,
        "mirror_pending": flow.order.active and flow.order.is_pending(name),
        "dirty": dirty,
        "quarantined": quarantined,
    }
