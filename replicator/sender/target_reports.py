"""What the target reports in a session, and what follows from it here. The other side of `reporter.py`."""

import errno
import os

from replicator.bounds import MALFORMED, one_line
from replicator.errors import RemoteProtocolError
from replicator.fs.beneath import UnsafePathError, check_name, check_path
from replicator.mirror.pieces import Refused, decode_refused
from replicator.mirror.scan import join
from replicator.net.engine import Event
from replicator.net.frames import Acknowledge, Checked, Drift, Orphans, PiecesRefused, TargetState
from replicator.ops import Identity, shown
from replicator.queue.dirty_codec import CorruptDirtyMap
from replicator.queue.dirty_tree import parent_of
from replicator.sender.changes import Changes, Wake
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.drift_repair import DriftRepair
from replicator.sender.flow import Flow
from replicator.sender.introduction import check_epoch
from replicator.sender.known_copy import KnownCopy
from replicator.sender.lag_watch import LagWatch
from replicator.sender.mirrors import Mirrors
from replicator.sender.orphan_control import OrphanControl
from replicator.sender.resync import Resync
from replicator.sender.sent_pieces import SentPieces
from replicator.sender.tracking import Tracker
from replicator.sender.verifier import Verifier
from replicator.status import TargetDataState, TargetStatus

_NOWHERE = frozenset({os.strerror(errno.ENOENT), os.strerror(errno.ENOTDIR)})


class TargetReports:
    """Between two checkpoints everything here is consistent with what was heard."""

    def __init__(
        self,
        flows: list[Flow],
        copy: KnownCopy,
        states: ConnectionStates,
        tracker: Tracker,
        mirrors: Mirrors,
        sent: SentPieces,
        resync: Resync,
        drift: DriftRepair,
        orphans: OrphanControl,
        verifier: Verifier,
        lag: LagWatch,
        changes: Changes,
        *,
        shipper: Wake,
        scanner: Wake,
        epoch: int = 0,
    ) -> None:
        """`epoch`: of this source. A target that says a higher one ends the session."""
        self._epoch = epoch
        self._flows = flows
        self._copy = copy
        self._states = states
        self._tracker = tracker
        self._mirrors = mirrors
        self._sent = sent
        self._shipper = shipper
        self._scanner = scanner
        self._resync = resync
        self._drift = drift
        self._orphans = orphans
        self._verifier = verifier
        self._lag = lag
        self._changes = changes

    def handle(self, event: Event) -> None:
        """Raises CopyInUse, Superseded, RemoteProtocolError: they end the session."""
        try:
            self._handle(event)
        except (*MALFORMED, CorruptDirtyMap, UnsafePathError) as error:
            raise RemoteProtocolError(f"the target says what makes no sense: {error}") from None

    def _handle(self, event: Event) -> None:
        if isinstance(event, Acknowledge):
            self._acknowledged(event)
        elif isinstance(event, TargetState):
            self._state(event)
        elif isinstance(event, PiecesRefused):
            if self._sent.is_settled(event.batch):
                return  # told again because the target cannot know what was heard
            for refused in decode_refused(event.refused):
                self._refused_piece(refused)
            self._scanner.ring()
        elif isinstance(event, Orphans):
            self._orphans.told(event)
        elif isinstance(event, Checked):
            self._verifier.answered(event)
        elif isinstance(event, Drift):
            self._states.changed_by_others(f"{event.changes} changes, the last of {shown(event.last_path)}")
            self._resync.changed_by_others(exact=event.exact)
            self._drift.report(event)
            self._changes.notify()

    def _acknowledged(self, frame: Acknowledge) -> None:
        if not len(frame.received) == len(frame.applied) == len(frame.durable) == len(self._flows):
            raise RemoteProtocolError("the target acknowledges other journals than those of the connection")
        check_epoch(self._epoch, frame.epoch, retry=True)
        mirrors = self._mirrors
        self._copy.acknowledged(frame)
        self._tracker.let_journals_forget()
        kept = all(d >= f.cursor.acknowledged for f, d in zip(self._flows, self._copy.durable, strict=True))
        if mirrors.settle(frame.settled, kept=kept):
            self._tracker.let_journals_forget()
        self._lag.acknowledged(frame.received, frame.applied, frame.durable)
        self._sent.acknowledged(frame.batches_applied)
        if mirrors.run is not None:
            self._mirrors.wake_workers()
        self._changes.notify()

    def _check_journal(self, index: int) -> None:
        if index >= len(self._flows):
            raise RemoteProtocolError(f"the target names journal {index}, which does not exist")

    def _state(self, frame: TargetState) -> None:
        if frame.data_state not in list(TargetDataState) or frame.status not in list(TargetStatus):
            raise RemoteProtocolError(f"the target is in no known state: {frame.status}, {frame.data_state}")
        if self._mirrors.run is None and self._copy.is_exact:
            self._mirrors.was_exact = frame.data_state == TargetDataState.MIRROR_REQUIRED
        self._copy.is_now(TargetDataState(frame.data_state))
        self._states.target_says(TargetStatus(frame.status), self._copy.data_state, one_line(frame.reason))
        if frame.queue_full is not self._states.target_queue_full:
            self._states.target_queue(full=frame.queue_full)
            self._shipper.ring()
            self._lag.wake()
        self._resync.refuse_copy_in_use()
        self._changes.notify()

    def _refused_piece(self, refused: Refused) -> None:
        self._check_journal(refused.journal)
        flow, path = self._flows[refused.journal], refused.path
        check_path(path)
        for name in refused.names:
            check_name(name)
        paths = [join(path, name) for name in refused.names] or [path]
        if self._mirrors.run is None and refused.retry:  # single paths the target could not keep up to date
            self._mirrors.recover_paths(flow, paths)
            self._mirrors.hold()
        run = self._mirrors.run
        if run is None or not flow.order.active:
            return
        order = flow.order
        if refused.begun:
            if order.goes_on(refused.number, refused.begun, compare=refused.links > 0) and not refused.links:
                run.matched(refused.begun)
            return
        if refused.number:
            request = order.differ(refused.number, refused.blocks)
            run.differed(sum(length for _, length, _ in refused.blocks) if request is not None else 0)
            if request is None or refused.blocks:
                return  # else its blocks cannot be compared
        if refused.size:
            order.not_as_claimed(refused.identity)
            run.not_as_claimed(refused.size, max(len(refused.names), 1))
        if refused.links:
            self._mirrors.compare(flow, path, refused.identity, refused.links)
            return
        if not refused.retry and refused.reason in _NOWHERE and run.try_again(path):
            # Others have removed the directory it belongs into: that comes first.
            with run.expecting(flow.order):
                flow.order.require(parent_of(path))
        elif not refused.retry:
            run.problem(path, f"target: {one_line(refused.reason)}")
        elif refused.names:
            # What is to be sent whole need not be claimed once more, one by one.
            inodes = {} if run.comparison.blocks else self._sent.inodes_of(flow, path, refused.names)
            for name, lacking in zip(refused.names, paths, strict=True):
                inode = inodes.get(name)
                flow.read_again(lacking, Identity(inode, 0) if inode is not None else None)
        else:
            order.never_compare(refused.identity)
            flow.read_again(path, refused.identity)
