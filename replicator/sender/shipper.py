"""The shipper of a sender: makes one ordered stream of records and pieces, and sends it.

One task. The decisions between two checkpoints are atomic: what a record does to the order of its flow and
the frame that carries it belong together, so `ship` collects frames first and sends them afterwards.
"""

from collections.abc import Callable

import trio

from replicator import limits
from replicator.mirror.order import Decision
from replicator.net.frames import Derived, Mark, Records
from replicator.net.session import Session
from replicator.ops import NAME_KINDS, START, Kind, Position, Record
from replicator.queue import record as codec
from replicator.queue.cursor import Run
from replicator.queue.merge import Merge
from replicator.sender.changes import Wake
from replicator.sender.decider import Decider
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.lag_watch import LagWatch
from replicator.sender.mirror_stream import MirrorStream
from replicator.sender.mirrors import Mirrors
from replicator.sender.pace import Pace
from replicator.sender.resync import Resync
from replicator.sender.root_guard import RootChanged
from replicator.sender.shipments import Shipment, Totals
from replicator.sender.synchronous import Synchronous
from replicator.sender.tracking import Tracker
from replicator.sender.verifier import Verifier


class Shipper:
    """See the module. `wake` rings when there may be something to ship."""

    def __init__(
        self,
        flows: list[Flow],
        mirrors: Mirrors,
        stream: MirrorStream,
        decider: Decider,
        resync: Resync,
        tracker: Tracker,
        dirt: Dirt,
        lag: LagWatch,
        pace: Pace,
        totals: Totals,
        verifier: Verifier,
        wake: Wake,
        *,
        replicating: bool,
        synchronous: "Callable[[], Synchronous]",
    ) -> None:
        self.replicating = replicating
        """Else records are passed over, and tracked."""
        self._flows = flows
        self._mirrors = mirrors
        self._stream = stream
        self._decider = decider
        self._resync = resync
        self._tracker = tracker
        self._dirt = dirt
        self._lag = lag
        self._pace = pace
        self._totals = totals
        self._verifier = verifier
        self._wake = wake
        self._synchronous = synchronous
        self._bell: _Bell | None = None
        self._halted: RootChanged | None = None
        self._merge: Merge | None = None
        self._current: tuple[Flow, Run, int] | None = None

    def _rang(self) -> None:
        self._lag.rang()
        self._tracker.stir()
        self._wake.ring()

    async def run(self, session: Session, allowed: Callable[[], bool]) -> None:
        """Ship until cancelled.

        Nothing is shipped while `allowed` says no. Raises RootChanged, SessionEnded.
        """
        self._halted = None
        self._current = None
        self._pace.session_begins()
        self._merge = Merge([flow.cursor for flow in self._flows])
        self._resync.jump_pending = True
        synchronous = self._synchronous()
        synchronous.session_begins()
        bell = self._bell = _Bell(self._merge, self._rang, lambda: synchronous.is_wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.run)
            while True:
                self._wake.begin()
                if allowed():
                    if self._resync.jump_pending:
                        await self._tracker.end()
                    shipments = self._collect()
                    for shipment in shipments:
                        saved_bytes = await session.send(shipment.frame, shipment.data)
                        self._totals.shipped(shipment, saved_bytes)
                        if isinstance(shipment.frame, Records):
                            self._mirrors.mix.shipped()
                    self._lag.sent()
                    if self._halted is not None:
                        raise self._halted
                    request = synchronous.request()
                    if request is not None:
                        await session.send(request)
                        continue
                    if shipments:
                        continue
                    if self._current is None:
                        bell.arm()
                await self._wake.wait()

    def hurry(self) -> None:
        """Look at once whether there is something to send: somebody waits for it."""
        if self._bell is not None:
            self._bell.hurry()
        self._wake.ring()

    # --- between two checkpoints ---

    def _collect(self) -> list[Shipment]:
        """What can be sent now; empty if there is nothing.

        Positions and orders are as if it were sent already.
        """
        out: list[Shipment] = []
        jumps = self._resync.jump_pending
        if jumps:
            self._resync.catch_up()
        self._stream.announce(out)
        if jumps:
            self._jump(out)
        for flow in self._flows:
            while flow.pieces and flow.pieces[0].place <= flow.position.sequence:
                self._stream.emit(flow, out)
                if len(out) >= 8:
                    return out
            while flow.checks and flow.checks[0].place <= flow.position.sequence:
                self._verifier.emit(flow, flow.checks.popleft(), out)
                if len(out) >= 8:
                    return out
        following = self._next()
        if following is not None:
            self._ship(*following, out)
        elif not out and self._mirrors.run is not None:
            self._stream.finish(self._mirrors.run, out)
        return out

    def _jump(self, out: list[Shipment]) -> None:
        """The target goes over what it is not sent. It has heard that it is not exact from there on."""
        for flow in self._flows:
            reached, flow.reached = flow.reached, None
            # A target that has no position yet gets one, also where nothing is passed over.
            if reached is not None and (reached != flow.position or reached == START):
                out.append(Shipment(Derived(flow.index, Mark(*reached), Mark(*flow.position)), b""))

    def _next(self) -> tuple[Flow, Run, int] | None:
        """The next records in order: their flow, their run, the index of the first.

        None: nothing may be shipped now.
        """
        assert self._merge is not None
        if self._current is None:
            read = self._merge.read()
            if read is None:
                return None
            self._current = (self._flows[read[0]], read[1], 0)
            self._lag.read(read[0], read[1].records[0][2])
        flow = self._current[0]
        barrier = flow.barrier
        return None if barrier is not None and flow.position.sequence >= barrier else self._current

    def _advance(self, count: int) -> None:
        """The next `count` records are in the stream."""
        assert self._current is not None
        flow, run, index = self._current
        if not self.replicating:
            if not self._dirt.active:
                self._dirt.begin(known=False)
            self._dirt.skip()
        if self._dirt.active:
            for _, _, record in run.records[index : index + count]:
                self._dirt.fold(flow, record)
        if self._verifier.run_under_way is not None:
            for _, _, record in run.records[index : index + count]:
                self._verifier.passed(flow, record)
        index += count
        record = run.records[index - 1][2]
        flow.position = Position(record.sequence, record.chain)
        flow.sent_max = max(flow.sent_max, record.sequence)
        flow.passed_wall_ns = record.wall_ns
        self._current = (flow, run, index) if index < len(run.records) else None

    def _ship(self, flow: Flow, run: Run, index: int, out: list[Shipment]) -> None:
        """Records from `index` on, up to the barrier of their flow, as frames."""
        barrier = flow.barrier
        count = len(run.records) - index
        if barrier is not None:
            count = min(count, barrier - flow.position.sequence)
        if self._ships_all(flow, run.records, index, count):
            self._records(flow, run, index, index + count, out)
            self._advance(count)
            return
        end = index + count
        while index < end and (flow.barrier is None or flow.position.sequence < flow.barrier):
            try:
                taken = self._decided(flow, run, index, end, out)
            except RootChanged as error:  # what was decided before it is sent first
                self._halted = error
                return
            index += taken
            self._advance(taken)

    def _ships_all(self, flow: Flow, records: list[tuple[int, int, Record]], index: int, count: int) -> bool:
        """The common case, quickly: no mirror, the whole mount, nothing special among the records."""
        if not self.replicating or flow.order.active or not flow.filter.everything_below(b""):
            return False
        for position in range(index, index + count):
            record = records[position][2]
            if record.kind >= Kind.DOUBT:
                return False
        return True

    def _decided(self, flow: Flow, run: Run, index: int, end: int, out: list[Shipment]) -> int:
        """Ship or skip as many records from `index` as share one decision.

        Returns how many.
        """
        first = run.records[index][2]
        decision = self._decide(flow, first, out)
        if isinstance(decision, Record):
            self._derived(flow, run.records[index][2], decision, out)
            return 1
        stop = index + 1
        # Only plain data operations are taken together: they change nothing in the order of the flow.
        if first.kind not in NAME_KINDS and decision is not Decision.BY_IDENTITY:
            while stop < end:
                record = run.records[stop][2]
                if record.kind in NAME_KINDS or record.kind >= Kind.DOUBT:
                    break
                if self._decide(flow, record, out) is not decision:
                    # Asked twice, which is harmless: a data operation has no other effect than "touched".
                    break
                stop += 1
        if decision is Decision.SKIP:
            self._advance_only(flow, run, index, stop, out)
        else:
            self._records(flow, run, index, stop, out, by_identity=decision is Decision.BY_IDENTITY)
        return stop - index

    def _decide(self, flow: Flow, record: Record, out: list[Shipment]) -> Decision | Record:
        return self._decider.decide(flow, record, out) if self.replicating else Decision.SKIP

    # --- frames ---

    def _records(
        self, flow: Flow, run: Run, index: int, end: int, out: list[Shipment], *, by_identity: bool = False
    ) -> None:
        previous = _position_before(run, index)
        first_offset = run.records[index][0]
        last_offset, last_length, last = run.records[end - 1]
        data = run.data[first_offset : last_offset + last_length]
        head = Records(flow.index, Mark(*previous), Mark(last.sequence, last.chain), by_identity)
        out.append(Shipment(head, data))
        self._count(last, len(data), end - index)

    def _advance_only(self, flow: Flow, run: Run, index: int, end: int, out: list[Shipment]) -> None:
        last = run.records[end - 1][2]
        head = Derived(flow.index, Mark(*_position_before(run, index)), Mark(last.sequence, last.chain))
        out.append(Shipment(head, b""))

    def _derived(self, flow: Flow, original: Record, derived: Record, out: list[Shipment]) -> None:
        buffers, _, _ = codec.encode(
            derived.kind,
            derived.sequence,
            0,
            derived.boot,
            derived.monotonic_ns,
            derived.wall_ns,
            derived.path,
            derived.path2,
            derived.payload,
            derived.flags,
            derived.inode,
            derived.generation,
            derived.arg0,
            derived.arg1,
        )
        head = Derived(flow.index, Mark(*flow.position), Mark(original.sequence, original.chain))
        data = b"".join(buffers)
        out.append(Shipment(head, data))
        self._count(original, len(data), 1)

    def _count(self, last: Record, size: int, operations: int) -> None:
        totals = self._totals
        totals.sent_bytes += size
        totals.operations += operations
        totals.last_path = last.path


class _Bell:
    """Wakes the shipper when the journals have something to read; waits only while armed, that is when it had
    read all.

    What comes after a silence is shipped at once. After that, small changes are collected for a moment: each
    wake costs this host, and the target, as much as many operations do, and applications need the processors.
    """

    def __init__(self, merge: Merge, wake: Callable[[], None], is_urgent: Callable[[], bool]) -> None:
        self._merge = merge
        self._wake_shipper = wake
        self._is_urgent = is_urgent
        self._armed = trio.Event()
        self._hurry = trio.Event()

    def hurry(self) -> None:
        """Somebody waits: do not pause."""
        self._hurry.set()

    def arm(self) -> None:
        self._armed.set()

    async def run(self) -> None:
        rang_s = -limits.SHIP_PAUSE_S
        while True:
            await self._armed.wait()
            pause_until_s = rang_s + limits.SHIP_PAUSE_S
            while (
                trio.current_time() < pause_until_s
                and self._merge.unread_bytes < limits.SHIP_PAUSE_BYTES
                and not self._is_urgent()
            ):
                self._hurry = trio.Event()
                with trio.move_on_after(limits.SHIP_PAUSE_S / 4):  # nobody rings for the bytes
                    await self._hurry.wait()
            await self._merge.wait()
            rang_s = trio.current_time()
            self._armed = trio.Event()
            self._wake_shipper()


def _position_before(run: Run, index: int) -> Position:
    if index == 0:
        return run.previous
    record = run.records[index - 1][2]
    return Position(record.sequence, record.chain)
