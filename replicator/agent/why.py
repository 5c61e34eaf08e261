"""Why is this path not on the target (yet)? What a connection knows of one path."""

import os
from collections import deque
from functools import partial

from replicator import limits
from replicator.agent.flow import Flow
from replicator.errors import JournalError
from replicator.mirror.order import is_below_or_equal
from replicator.ops import NAME_KINDS, Kind, Record, shown
from replicator.queue.cursor import Cursor
from replicator.queue.settings import JournalSettings
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    PathOperation,
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


async def last_operations(
    world: World, settings: JournalSettings, flow: Flow, path: bytes
) -> tuple[list[Record], bool]:
    """The last operations on `path` that are still in the journal, oldest first, without their data; and
    whether all that is kept was looked at. Raises JournalError.
    """
    found: deque[Record] = deque(maxlen=limits.WHY_OPERATIONS)
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
                found.extend(
                    record._replace(payload=b"") for _, _, record in run.records if concerns(record, path)
                )
    finally:
        cursor.close()
    return list(found), start == kept


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
    if status.state is ConnectionState.STOPPED:
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
) -> tuple[list[PathOperation], str, bool]:
    """(last operations on `path`, which is relative to the captured directory; what else is to be said; may
    the mirror still have to bring it). `marks`: received, applied, durable.
    """
    name = os.fsencode(path)
    pending = flow.order.active and flow.order.is_pending(name)
    note = ""
    try:
        records, whole = await last_operations(world, settings, flow, name)
    except JournalError as error:
        return [], f"the journal could not be looked at: {error}", pending
    if not records:
        note = "no operation on it is in the queue: what was captured of it before is on the target"
    if not whole:
        note = f"only the newest {limits.WHY_RECORDS} operations of the queue were looked at"
    operations = []
    for record in records:
        stage = stage_of(record.sequence, flow.position.sequence, *marks)
        operations.append(operation(record, stage, why_it_waits(stage, status)))
    return operations, note, pending
