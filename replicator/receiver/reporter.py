"""What a target tells its source: marks, refusals and states as they change.

What is sent is what is true then: wake-ups carry nothing.
"""

from collections.abc import Iterator

import msgspec
import trio

from replicator import limits
from replicator.net.frames import (
    DRIFT_FEATURE,
    ORPHANS_FEATURE,
    Acknowledge,
    Connect,
    Drift,
    Orphans,
    PiecesRefused,
    TargetState,
)
from replicator.net.session import Session, SessionEnded
from replicator.ops import Position
from replicator.orphans import OrphanReport
from replicator.receiver.intake import Intake
from replicator.receiver.replica import Replica
from replicator.receiver.replica_state import journal_ids
from replicator.receiver.spool import Spool


class Reporter:
    """Of one receiver; one session at a time."""

    def __init__(self, replica: Replica, intake: Intake, spool: Spool) -> None:
        self._replica = replica
        self._intake = intake
        self._spool = spool
        self._news = trio.Event()
        self._hurries = False

    def hurry(self) -> None:
        """Somebody waits for what is new."""
        self._hurries = True
        self._news.set()

    def news(self) -> None:
        """A mark, a status or a refusal is new."""
        self._news.set()

    async def run(self, session: Session, connect: Connect, features: frozenset[str] = frozenset()) -> None:
        """Until the session ends. `features`: what the source understands."""
        ids = journal_ids(connect)
        told = 0 if DRIFT_FEATURE in features else None  # number of the last drift
        last_marks: Acknowledge | None = None
        last_state: TargetState | None = None
        replica = self._replica
        refusals = replica.refusals.count - len(replica.refusals.kept)  # those that are kept are sent again
        last_orphans: tuple[OrphanReport, bool] | None = None
        orphans_at = -1.0
        state_at = last_at = -1.0
        try:
            while True:
                self._news, self._hurries = trio.Event(), False
                # Refusals first: a batch that is acknowledged is done with for the source.
                new = min(replica.refusals.count - refusals, len(replica.refusals.kept))
                refusals = replica.refusals.count
                marks = self._marks_now(ids)
                state = self._state_now()
                while replica.checked:
                    await session.send(replica.checked.popleft())
                for refused in list(replica.refusals.kept)[len(replica.refusals.kept) - new :]:
                    await session.send(PiecesRefused(refused.refused, refused.batch))
                now = trio.current_time()
                if state != last_state and (
                    last_state is None
                    or msgspec.structs.replace(state, queued_bytes=last_state.queued_bytes) != last_state
                    or now - state_at >= limits.TARGET_STATE_INTERVAL_S
                ):
                    last_state, state_at = state, now
                    await session.send(state)
                if ORPHANS_FEATURE in features:
                    orphans = replica.orphans.report, replica.orphans.settings.automatic
                    finished = not orphans[0].at_work
                    if orphans != last_orphans and (
                        finished or last_orphans is None or now - orphans_at >= limits.TARGET_STATE_INTERVAL_S
                    ):
                        last_orphans, orphans_at = orphans, now
                        for part in orphan_frames(*orphans):
                            await session.send(part)
                for drift in self._drift_now(ids, told) if told is not None else ():
                    told = drift.number
                    await session.send(drift)
                if marks != last_marks:
                    last_marks, last_at = marks, now
                    await session.send(marks)
                await self._news.wait()
                if not replica.drained:
                    with trio.move_on_after(limits.ACKNOWLEDGE_INTERVAL_S):
                        while not (replica.drained or self._hurries):
                            self._news = trio.Event()
                            await self._news.wait()
                elif trio.current_time() - last_at < limits.ACKNOWLEDGE_PAUSE_S and not self._hurries:
                    await trio.sleep(limits.ACKNOWLEDGE_PAUSE_S)
        except SessionEnded:
            pass  # the reader finds out by itself

    def _marks_now(self, ids: tuple[str, ...]) -> Acknowledge:
        received, replica = self._intake.received, self._replica
        nothing = Position(0, 0)
        # Batches are numbered from a MIRROR_BEGIN on; applied ones of an earlier mirror would be mistaken for
        # this one's.
        same_mirror = received.mirror_id == replica.state.mirror_id
        return Acknowledge(
            tuple(received.marks.get(i, nothing).sequence for i in ids),
            tuple(replica.applied.marks.get(i, nothing).sequence for i in ids),
            tuple(replica.durability.durable.get(i, nothing).sequence for i in ids),
            received.batches,
            replica.applied.batches if same_mirror else 0,
            replica.durability.settled,
            tuple(replica.durability.secured.get(i, nothing).sequence for i in ids),
            replica.state.epoch,
        )

    def _drift_now(self, ids: tuple[str, ...], told: int) -> list[Drift]:
        """Reports of drift after this one. A copy that was not exact anyway needs a mirror first."""
        replica, drift = self._replica, self._replica.drift
        if not (replica.state.mirroring or replica.state.drifted):
            return []
        return [
            Drift(
                report.number,
                ids.index(report.journal_id),
                report.encoded,
                drift.changes,
                drift.last_path,
                replica.state.drifted,
                report.tail,
            )
            for report in drift.reports
            if told < report.number <= drift.told and report.journal_id in ids
        ]

    def _state_now(self) -> TargetState:
        replica = self._replica
        return TargetState(
            replica.halts.status,
            replica.state.data_state,
            replica.halts.reason[:1000],
            self._spool.queued_bytes,
            self._intake.full,
        )


def orphan_frames(report: OrphanReport, wanted: bool) -> Iterator[Orphans]:
    """The report, and its names in as many frames as they need."""
    encoded = msgspec.msgpack.encode(msgspec.structs.replace(report, names=()))
    start = size = 0
    for index, name in enumerate(report.names):
        size += len(name.encode()) + 8
        if size > limits.ORPHANS_FRAME_BYTES:
            yield Orphans(wanted, encoded, start, report.names[start:index])
            start, size = index, len(name.encode()) + 8
    yield Orphans(wanted, encoded, start, report.names[start:])
