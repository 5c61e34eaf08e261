"""What a sender tells those who ask about its connection: a snapshot, made of what its parts know."""

import os
from dataclasses import dataclass

import msgspec

from replicator.ops import shown
from replicator.queue.journal import JournalSettings
from replicator.sender.arguments import SenderArguments
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.dirt import Dirt
from replicator.sender.drift_repair import DriftRepair
from replicator.sender.flow import Flow
from replicator.sender.known_copy import KnownCopy
from replicator.sender.lag_watch import LagWatch
from replicator.sender.mirrors import Mirrors
from replicator.sender.orphan_control import OrphanControl
from replicator.sender.pace import Pace
from replicator.sender.recovery_status import recovery_text
from replicator.sender.sent_pieces import SentPieces
from replicator.sender.session_schedule import SessionSchedule
from replicator.sender.sessions import Sessions
from replicator.sender.shipments import Totals
from replicator.sender.tracking import Tracker
from replicator.sender.transmission_control import TransmissionControl
from replicator.sender.verify_control import VerifyControl
from replicator.sender.why import explain
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    MirrorProgress,
    MirrorStatus,
    RecoveryStatus,
    ReplicationStatus,
    TargetStatus,
    VerifyPhase,
)
from replicator.world import World


@dataclass(frozen=True)
class SenderStatus:
    """The parts that know; nothing here changes them."""

    world: World
    arguments: SenderArguments
    flows: list[Flow]
    copy: KnownCopy
    states: ConnectionStates
    sessions: Sessions
    tracker: Tracker
    dirt: Dirt
    mirrors: Mirrors
    sent: SentPieces
    totals: Totals
    pace: Pace
    drift: DriftRepair
    orphans: OrphanControl
    verify: VerifyControl
    lag: LagWatch
    schedule: SessionSchedule
    transmission: TransmissionControl

    def snapshot(self) -> ConnectionStatus:
        """Number and target name are the agent's to fill in."""
        states, copy, sessions, totals, dirt = self.states, self.copy, self.sessions, self.totals, self.dirt
        pieces = self.sent.queued
        progress, mirroring = self._progress(), self.mirrors.run is not None
        operations, bytes_ = self._queued()
        tracked = dirt.estimate() if dirt.active and dirt.outstanding else None
        lag = self.lag.lag()
        replicated = totals.sent_bytes - totals.mirror_bytes
        saved_replicated = totals.saved_bytes - totals.saved_mirror_bytes
        ids = [flow.journal_id for flow in self.flows]
        return ConnectionStatus(
            id=0,
            uuid=self.arguments.connection_uuid,
            repset=self.arguments.repset.name,
            target=self.arguments.target_name,
            target_address=sessions.target_address,
            state=states.connection,
            state_reason=states.reason,
            target_data_state=states.target_data,
            target_status=states.target_status,
            target_status_reason=states.target_reason,
            target_queue_full=states.target_queue_full,
            transmit_mode=states.transmit,
            mirror_status=self._mirror_status(),
            replication_status=states.replication(queued=bool(operations)),
            queued_ops=operations + pieces,
            queued_bytes=bytes_ + self.sent.queued_bytes,
            queued_replication_ops=operations,
            queued_replication_bytes=bytes_,
            queued_mirror_ops=pieces,
            sent_bytes=totals.sent_bytes,
            sent_compressed_bytes=totals.sent_bytes - totals.saved_bytes,
            sent_ops=totals.operations,
            sent_replication_bytes=replicated,
            sent_compressed_replication_bytes=replicated - saved_replicated,
            sent_mirror_bytes=totals.mirror_bytes,
            sent_compressed_mirror_bytes=totals.mirror_bytes - totals.saved_mirror_bytes,
            skipped_mirror_bytes=progress.skipped_bytes,
            remaining_mirror_bytes=progress.remaining_bytes if mirroring else 0,
            foreign_changes=self.drift.changes,
            foreign_path=self.drift.last_path,
            lag_seconds=lag.seconds,
            lag=msgspec.structs.replace(lag, last_minute=(), last_hour=()),
            promotion=sessions.promotion,
            tracking=self.tracker.tracking,
            tracked_since=dirt.since_wall_ns / 1e9 if tracked is not None else None,
            tracked_files=tracked.files if tracked is not None else 0,
            tracked_bytes=tracked.bytes if tracked is not None else 0,
            tracked_directories=tracked.directories if tracked is not None else 0,
            tracked_trees=tracked.trees if tracked is not None else 0,
            tracked_enough=tracked is None or dirt.sufficient,
            last_file=shown(totals.last_path),
            connected_since=sessions.connected_since,
            received=dict(zip(ids, copy.received, strict=True)),
            applied=dict(zip(ids, copy.applied, strict=True)),
            durable=dict(zip(ids, copy.durable, strict=True)),
            sender_pid=os.getpid(),
            receiver_pid=sessions.receiver_pid,
            mirror=progress,
            recovery=self._recovery(),
            orphans=msgspec.structs.replace(self.orphans.report, names=()),
            schedule=self.schedule.status(),
            verify=self.verify.progress(),
            transmission=self.transmission.status(),
        )

    def _mirror_status(self) -> MirrorStatus:
        status = self.mirrors.status
        run = self.verify.verifier.run_under_way
        if status is MirrorStatus.IDLE and run is not None and run.phase is VerifyPhase.RUNNING:
            return MirrorStatus.VERIFYING
        return status

    def _progress(self) -> MirrorProgress:
        last = self.mirrors.last
        if last is None:
            return MirrorProgress()
        coming = self.sent.coming
        progress = last.progress(
            self.world.clock.monotonic_ns(), coming_files=coming.files, coming_bytes=coming.bytes
        )
        if self.pace.share <= 0:
            progress = msgspec.structs.replace(progress, remaining_s=None)
        states = self.states
        could = states.connection is ConnectionState.STARTED and states.target_status is TargetStatus.OK
        held = could and self.mirrors.run is not None and self.pace.is_held
        return msgspec.structs.replace(progress, held=held)

    def _queued(self) -> tuple[int, int]:
        """Operations that are not applied, and bytes of what is not sent."""
        operations = bytes_ = 0
        for flow, applied in zip(self.flows, self.copy.applied, strict=True):
            queued_operations, queued_bytes = flow.cursor.backlog()
            kept = applied and not self.tracker.tracking
            operations += max(flow.cursor.head().sequence - applied, 0) if kept else queued_operations
            bytes_ += queued_bytes
        return operations, bytes_

    def _recovery(self) -> RecoveryStatus:
        """Priority and speed are the agent's to fill in."""
        share, automatic = self.pace.share, self.mirrors.automatic
        status = self.states.replication(queued=False)
        pending = status in (ReplicationStatus.PENDING, ReplicationStatus.OUT_OF_MEMORY)
        text = recovery_text(self.mirrors.run, pending=pending, automatic=automatic, share=share)
        return RecoveryStatus(text=text, automatic=automatic, share=share)

    async def why(self, mount_id: str, path: str) -> dict[str, object]:
        """What this connection knows of `path`, relative to the directory that this mount captures."""
        index = next(i for i, flow in enumerate(self.flows) if flow.journal_id == mount_id)
        flow, journal, copy = self.flows[index], self.arguments.journals[index], self.copy
        last = self.mirrors.last
        found = await explain(
            self.world,
            JournalSettings(journal.memory_directory, journal.disk_directory),
            flow,
            path,
            (copy.received[index], copy.applied[index], copy.durable[index]),
            self.snapshot(),
            last.problems if last is not None else [],
        )
        if tracked := self.dirt.why(flow, os.fsencode(path)):
            found |= {"dirty": f"it changed while the target was away: {tracked}", "note": ""}
        return found
