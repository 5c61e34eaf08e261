"""What a receiver says of itself when its agent asks."""

import os

import msgspec

from replicator.failovers import Promotion
from replicator.ops import shown
from replicator.orphans import OrphanReport
from replicator.queue.statistics import JournalStatistics
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.intake import Intake
from replicator.receiver.replica import Replica
from replicator.receiver.replica_state import Marks
from replicator.receiver.spool import Spool
from replicator.status import TargetDataState, TargetLock, TargetStatus


class ReceiverStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the control call `status` answers."""

    connection_uuid: str
    pid: int
    connected: bool  # a source is there now
    source_uuid: str
    source_name: str
    repset: str
    targets: tuple[str, ...]
    lock: TargetLock  # over them
    target_status: TargetStatus
    target_status_reason: str
    target_data_state: TargetDataState
    mirroring: bool
    watch: str  # for changes of others: on, off, or why it cannot be done
    foreign_changes: int  # noticed by this process
    foreign_path: str  # of the last of them
    spool_full: bool
    queued_bytes: int
    memory_queue_bytes: int
    disk_queue_bytes: int
    queue: JournalStatistics
    orphans: OrphanReport  # without names
    epoch: int = 0  # of the set: raised by each restore
    restoring: str = ""  # uuid of the restore that reads the copy
    synchronous: bool = False  # programs on the source wait for it
    closed: str = ""  # uuid of the group that takes it over
    promotion: Promotion | None = None  # who owns the data since
    owned: bool = False  # this host does: nothing is applied
    fork: dict[str, tuple[int, int]] = {}  # where the copy stood then
    applied_until: float | None = None  # when the source did the last operation that is applied, by its clock
    exact_but_drifted: bool = False  # but for what others have changed
    positions: dict[str, tuple[int, int]] = {}  # as `applied`, with chain values
    operations: int  # applied by this process
    last_path: str
    received: dict[str, int]
    applied: dict[str, int]
    durable: dict[str, int]


def status_of(
    arguments: ReceiverArguments,
    replica: Replica,
    intake: Intake,
    spool: Spool,
    watch: str,
    *,
    connected: bool,
) -> ReceiverStatus:
    """`watch`: see `ReceiverStatus.watch`."""
    state = replica.state
    memory_bytes, disk_bytes = spool.usage()
    connect = state.connect
    return ReceiverStatus(
        connection_uuid=arguments.connection_uuid,
        pid=os.getpid(),
        connected=connected,
        source_uuid=state.source_uuid,
        source_name=state.source_name,
        repset=connect.repset if connect is not None else "",
        targets=tuple(shown(m.target) for m in connect.maps) if connect is not None else (),
        lock=TargetLock(connect.lock) if connect is not None else TargetLock.NONE,
        target_status=replica.halts.status,
        target_status_reason=replica.halts.reason,
        target_data_state=state.data_state,
        mirroring=state.mirroring,
        watch=watch,
        foreign_changes=replica.drift.changes,
        foreign_path=shown(replica.drift.last_path),
        spool_full=intake.full,
        queued_bytes=spool.queued_bytes,
        memory_queue_bytes=memory_bytes,
        disk_queue_bytes=disk_bytes,
        queue=spool.statistics(),
        orphans=msgspec.structs.replace(replica.orphans.report, names=()),
        epoch=state.epoch,
        restoring=state.restoring,
        synchronous=replica.durability.is_waited_for,
        closed=state.closed,
        promotion=state.promotion,
        owned=replica.ownership.is_promoted,
        fork=_pairs(state.fork),
        applied_until=replica.applied.wall_ns / 1e9 or None,
        exact_but_drifted=state.drifted and not state.mirroring,
        positions=_pairs(replica.applied.marks),
        operations=replica.operations,
        last_path=shown(replica.last_path),
        received=_sequences(intake.received.marks),
        applied=_sequences(replica.applied.marks),
        durable=_sequences(replica.durability.durable),
    )


def _sequences(marks: Marks) -> dict[str, int]:
    return {journal_id: position.sequence for journal_id, position in marks.items()}


def _pairs(marks: Marks) -> dict[str, tuple[int, int]]:
    return {journal_id: (position.sequence, position.chain) for journal_id, position in marks.items()}
