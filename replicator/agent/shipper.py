"""The shipper of a sender: makes one ordered stream of records and pieces, and sends it.

One task. The decisions between two checkpoints are atomic: what a record does to the order of its flow and
the frame that carries it belong together, so `ship` collects frames first and sends them afterwards.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import trio

from replicator import limits
from replicator.agent.dirt import Dirt, root_change
from replicator.agent.flow import Flow, OpenTransfer, QueuedPiece
from replicator.agent.lag_watch import LagWatch
from replicator.agent.mirroring import MirrorRun
from replicator.agent.pace import Pace
from replicator.agent.states import MirrorEvent
from replicator.errors import ReplicatorError
from replicator.mirror.order import Decision, Order, name_change_touches
from replicator.mirror.pieces import (
    NO_CONTENT,
    Abandon,
    Batch,
    Finish,
    LinkTo,
    Listing,
    Names,
    Part,
    Patch,
    Patched,
    Same,
    Times,
    encode_batch,
)
from replicator.mirror.requirements import concerns, require_dirty
from replicator.mirror.scan import Found
from replicator.net.engine import Data
from replicator.net.frames import Derived, Frame, Mark, MirrorBegin, MirrorEnd, PieceBatch, Records
from replicator.net.session import Session
from replicator.ops import (
    NAME_KINDS,
    RENAME_EXCHANGE,
    START,
    TWO_PATH_KINDS,
    Flag,
    Identity,
    Kind,
    Position,
    Record,
    shown,
)
from replicator.queue import record as codec
from replicator.queue.cursor import Run
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap
from replicator.queue.merge import Merge
from replicator.status import TargetDataState

logger = logging.getLogger(__name__)


class RootChanged(ReplicatorError):
    """The root of a connected set was renamed or deleted (RS-15): shipping it would empty the target.

    A person decides.
    """

    def __init__(self, change: str) -> None:
        super().__init__(
            f"{change}; the target was left as it is: put it back and `dtctl transmit start`, or disconnect"
        )


class SentBatch(NamedTuple):
    """A batch the target has not yet acknowledged as applied."""

    number: int
    bytes: int
    flow: Flow
    found: list[Found]


class Shipment(NamedTuple):
    """A frame ready to be sent."""

    frame: Frame
    data: Data | None


@dataclass
class Totals:
    """What was sent, of all sessions of this sender."""

    sent_bytes: int = 0
    operations: int = 0
    mirror_bytes: int = 0
    last_path: bytes = b""


@dataclass
class Shipper:
    """See the module.

    `begin_recovery` starts a mirror run for paths that moved into the set, or were lost;
    `distrust_since(wall_ns, now)` says that operations were lost after that time. `before_jump` and then
    `catch_up` are called before the stream goes on at a place that the target has not reached.
    """

    flows: list[Flow]
    mirror_run: Callable[[], MirrorRun | None]
    begin_recovery: Callable[[], MirrorRun]
    distrust_since: Callable[[int, bool], None]
    end_run: Callable[[bool], None]
    wake_scanner: Callable[[], None]
    scanner_idle: Callable[[], bool]
    lag: LagWatch
    pace: Pace
    dirt: Dirt
    stir: Callable[[], None]
    before_jump: Callable[[], Awaitable[None]]
    catch_up: Callable[[], None]
    totals: Totals = field(default_factory=Totals)
    replicating: bool = True
    data_state: TargetDataState = TargetDataState.MIRROR_REQUIRED
    sent_batches: deque[SentBatch] = field(default_factory=deque)
    batches: int = 0  # number of the last batch; never starts again
    piece_bytes_in_flight: int = 0
    announced: str = ""  # id of the run whose MIRROR_BEGIN is in the stream
    jump_pending: bool = True  # what was tracked has to be brought another way
    _wake: trio.Event = field(default_factory=trio.Event)
    _halted: RootChanged | None = None
    _merge: Merge | None = None
    _current: tuple[Flow, Run, int] | None = None

    def wake(self) -> None:
        self._wake.set()

    def _rang(self) -> None:
        self.lag.rang()
        self.stir()
        self.wake()

    async def run(self, session: Session, allowed: Callable[[], bool]) -> None:
        """Ship until cancelled.

        Nothing is shipped while `allowed` says no. Raises RootChanged, SessionEnded.
        """
        self._halted = None
        self._current = None
        self.pace.session_begins()
        self._merge = Merge([flow.cursor for flow in self.flows])
        self.jump_pending = True
        bell = _Bell(self._merge, self._rang)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.run)
            while True:
                self._wake = trio.Event()
                if allowed():
                    if self.jump_pending:
                        await self.before_jump()
                    shipments = self._collect()
                    for frame, data in shipments:
                        await session.send(frame, data)
                    self.lag.sent()
                    if self._halted is not None:
                        raise self._halted
                    if shipments:
                        continue
                    if self._current is None:
                        bell.arm()
                await self._wake.wait()

    # --- between two checkpoints ---

    def _collect(self) -> list[Shipment]:
        """What can be sent now; empty if there is nothing.

        Positions and orders are as if it were sent already.
        """
        out: list[Shipment] = []
        if self.jump_pending:
            self._jump(out)
        run = self.mirror_run()
        if run is not None and self.announced != run.run_id:
            self._announce(run, out)
        for flow in self.flows:
            while flow.pieces and flow.pieces[0].place <= flow.position.sequence:
                self._emit(flow, flow.pieces.popleft(), out)
                if len(out) >= 8:
                    return out
        following = self._next()
        if following is not None:
            self._ship(*following, out)
        elif not out and run is not None:
            self._finish_run(run, out)
        return out

    def _jump(self, out: list[Shipment]) -> None:
        """The target goes over what it is not sent. It hears before that it is not exact from there on."""
        self.jump_pending = False
        self.catch_up()
        run = self.mirror_run()
        if run is not None and self.announced != run.run_id:
            self._announce(run, out)
        for flow in self.flows:
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
            self._current = (self.flows[read[0]], read[1], 0)
            self.lag.read(read[0], read[1].records[0][2])
        flow = self._current[0]
        barrier = flow.barrier
        return None if barrier is not None and flow.position.sequence >= barrier else self._current

    def _advance(self, count: int) -> None:
        """The next `count` records are in the stream."""
        assert self._current is not None
        flow, run, index = self._current
        if not self.replicating:
            if not self.dirt.active:
                self.dirt.begin(known=False)
            self.dirt.skip()
        if self.dirt.active:
            for _, _, record in run.records[index : index + count]:
                self.dirt.fold(flow, record)
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
        """What to do with one record; a `Record` is to be shipped in its stead."""
        if not self.replicating:
            return Decision.SKIP
        kind = record.kind
        if kind == Kind.HOLE:
            self._recover_lost(flow, record, out)
            return Decision.SKIP
        if kind == Kind.DOUBT:
            named = (record.path, record.path2) if record.path2 else (record.path,)
            paths = [p for p in named if flow.filter.may_contain(p)]
            self.recover(flow, paths, exact=True, out=out)
            return Decision.SKIP
        derived = self._filtered(flow, record, out)
        if derived is not None:
            return derived
        if not flow.order.active:
            return Decision.SHIP
        if kind in NAME_KINDS:
            self._abandon(flow, record, out)
        decision = flow.order.ship(record)
        if decision is Decision.SKIP and record.flags & Flag.MULTILINK and not flow.all_required:
            # This name may be gone before it is brought; the others are not known, and lack the operation.
            flow.require_all(self.mirror_run())
            self.wake_scanner()
        elif kind in NAME_KINDS:
            self.wake_scanner()
        return decision

    def _filtered(self, flow: Flow, record: Record, out: list[Shipment]) -> Decision | Record | None:
        """What the set's rules say: None to go on, else the answer."""
        rules = flow.filter
        if not rules.everything_below(b""):
            is_directory = bool(record.flags & Flag.DIRECTORY)
            inside = rules.may_contain(record.path) if is_directory else rules.includes(record.path)
        else:
            is_directory = False
            inside = True
        if record.kind in NAME_KINDS and inside:
            self._guard_roots(flow, record)
        if inside and (record.kind not in TWO_PATH_KINDS or rules.everything_below(b"")):
            return None
        if record.kind not in TWO_PATH_KINDS:
            return Decision.SKIP
        inside2 = rules.may_contain(record.path2) if is_directory else rules.includes(record.path2)
        if not inside and not inside2:
            return Decision.SKIP
        if record.kind == Kind.LINK:
            if inside and inside2:
                return None
            if inside2:  # LK-10: from outside: its content has to be read
                self.recover(flow, [record.path2], exact=False, out=out)
            return Decision.SKIP
        if record.arg0 & RENAME_EXCHANGE:
            if inside and inside2 and not is_directory:
                return None
            paths = [p for p, i in ((record.path, inside), (record.path2, inside2)) if i]
            self.recover(flow, paths, exact=True, out=out)
            return None if inside and inside2 else Decision.SKIP
        if inside and inside2:
            if is_directory and not (
                rules.everything_below(record.path) and rules.everything_below(record.path2)
            ):
                self.recover(
                    flow, [record.path2], exact=True, out=out
                )  # the rules below may differ at the new place
            return None
        if inside:  # LK-04, LK-13: moved out of the set
            return record._replace(kind=Kind.REMOVE_TREE, path2=b"", payload=b"", arg0=0)
        self.recover(flow, [record.path2], exact=True, out=out)  # moved into the set
        return record._replace(kind=Kind.REMOVE_TREE, path=record.path2, path2=b"", payload=b"", arg0=0)

    def _guard_roots(self, flow: Flow, record: Record) -> None:
        change = root_change(flow, record)
        if change:
            raise RootChanged(change)

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
        totals = self.totals
        totals.sent_bytes += size
        totals.operations += operations
        totals.last_path = last.path

    # --- mirror ---

    def _announce(self, run: MirrorRun, out: list[Shipment]) -> None:
        self.announced = run.run_id
        self.sent_batches.clear()
        self.piece_bytes_in_flight = 0
        out.append(Shipment(MirrorBegin(run.run_id, run.kind, run.orphan_mode), None))

    def recover(
        self, flow: Flow, paths: list[bytes], *, exact: bool, out: list[Shipment] | None = None
    ) -> None:
        """Bring these paths: start a run for them if none is active.

        `out`: this happens in the stream, and what is shipped next needs a tolerant target.
        """
        if paths:
            self._recovering(flow, exact, out)
            for path in paths:
                flow.order.require(path)
                if out is None:  # else the record that says so is folded
                    self.dirt.add(flow, path)

    def _recovering(self, flow: Flow, exact: bool, out: list[Shipment] | None) -> MirrorRun:
        run = self.mirror_run() or self.begin_recovery()
        run.exact = run.exact or exact
        flow.order.active = True
        if out is not None and self.announced != run.run_id:
            self._announce(run, out)
        self.wake_scanner()
        return run

    def _recover_lost(self, flow: Flow, hole: Record, out: list[Shipment]) -> None:
        """Bring what a HOLE says was lost; everything if it does not say."""
        dirty = None
        if len(hole.payload):
            try:
                dirty = DirtyMap.decode(hole.payload)
            except CorruptDirtyMap as error:
                logger.warning("a loss in the journal: everything is compared: %s", error)
        if dirty is not None and not concerns(dirty, flow.filter):
            return
        run, order = self._recovering(flow, True, out), flow.order
        self.distrust_since(flow.passed_wall_ns, dirty is None)
        order.operations_lost()
        flow.links_seen.clear()
        for transfer in flow.transfers:  # some of it may have been read before
            if transfer.read is not None:
                order.void(transfer.read.identity)
        if dirty is None:
            run.bring_everything()
            for root in flow.filter.roots:
                order.require(root)
        else:
            with run.expecting(order):
                require_dirty(dirty, flow.filter, order, in_place=not run.partial)

    def _abandon(self, flow: Flow, record: Record, out: list[Shipment]) -> None:
        """A name on the way to a file that is being transferred changes here: what was sent of it is void."""
        for transfer in list(flow.transfers):
            if transfer.sent and name_change_touches(record, transfer.path):
                flow.end_transfer(transfer)
                self._void(flow, transfer)
                self._send_batch(flow, [Found(transfer.path, Abandon(transfer.path, transfer.number))], out)

    def _void(self, flow: Flow, transfer: OpenTransfer) -> None:
        assert transfer.read is not None
        flow.order.void(transfer.read.identity)
        flow.links_seen.discard(transfer.read.identity)
        if transfer in flow.transfers:
            flow.transfers.remove(transfer)

    def _emit(self, flow: Flow, piece: QueuedPiece, out: list[Shipment]) -> None:
        """A piece has come to its place.

        Claims that meanwhile cannot be trusted are read again instead.
        """
        order = flow.order
        if not order.active or (piece.patch is not None and not order.may_patch(piece.patch)):
            self.wake_scanner()
            return
        entries: list[Found] = []
        for found in piece.found:
            entry = found.entry
            if isinstance(entry, Same | LinkTo) and not self._still_holds(order, entry, found.identity):
                flow.read_again(found.path, found.identity)
                continue
            self._enter(flow, piece, found, piece.transfer)
            if entry is not None:
                entries.append(found)
        if entries:
            self._send_batch(flow, entries, out)
        self.wake_scanner()  # there is room for another piece, or something to read again

    def _still_holds(self, order: Order, entry: Same | LinkTo, identity: Identity) -> bool:
        """Whether what the scanner knew when it chose not to send the content is true at this place."""
        if isinstance(entry, LinkTo):
            return order.link_is_known(identity)
        run = self.mirror_run()
        claims = run is not None and run.compares
        return (claims or order.was_brought(identity)) and not order.must_send_whole(identity, entry.path)

    def _enter(self, flow: Flow, piece: QueuedPiece, found: Found, transfer: OpenTransfer | None) -> None:
        """Account for one entry that enters the stream."""
        order, entry = flow.order, found.entry
        run = self.mirror_run()
        assert run is not None
        if isinstance(entry, Listing):
            order.directory_sent(found.path, piece.directories, piece.names)
        elif isinstance(entry, Part):
            if entry.first:
                assert transfer is not None
                transfer.sent = True
                order.file_sent(found.path, found.identity, whole=True, links=found.links, complete=False)
            run.done_bytes += found.size
            run.sent_bytes += found.size
        elif isinstance(entry, Finish):
            order.transfer_sent(found.path, found.identity)
            run.done_files += 1
            if transfer in flow.transfers:
                flow.transfers.remove(transfer)
        elif isinstance(entry, Abandon):
            assert transfer is not None
            self._void(flow, transfer)
        elif isinstance(entry, Times):
            return
        elif isinstance(entry, Names):
            order.names_sent(found.path)
        elif isinstance(entry, Patch):
            run.patched(sum(length for _, length in entry.holes), found.size)
            run.current = shown(found.path)
        elif isinstance(entry, Patched):
            assert piece.patch is not None
            order.patch_sent(piece.patch, found.links)
            run.done_files += 1
        else:
            again = order.was_brought(found.identity)
            identity = found.identity if entry is not None else None
            order.file_sent(found.path, identity, whole=found.whole, links=found.links)
            if entry is None or (again and found.links == 1):
                return  # nothing, or moved meanwhile and counted before
            run.found_whole(found.size)
            run.done_files += 1
            run.done_bytes += found.size
            if found.whole:
                run.sent_bytes += found.size
            else:
                run.skipped_bytes += found.size
            run.current = shown(found.path)

    def _send_batch(self, flow: Flow, entries: list[Found], out: list[Shipment]) -> None:
        self.batches += 1
        batch = Batch(self.batches, flow.index, tuple(f.entry for f in entries if f.entry is not None))
        data = encode_batch(batch)
        size = sum(map(len, data))
        out.append(Shipment(PieceBatch(self.batches), data))
        # Contents are not kept: what is lost on the way is read again.
        kept = [f if f.entry is None else _without_data(f) for f in entries]
        self.sent_batches.append(SentBatch(self.batches, size, flow, kept))
        self.pace.sent(self.batches, size, self.piece_bytes_in_flight)
        self.piece_bytes_in_flight += size
        self.totals.sent_bytes += size
        self.totals.mirror_bytes += size

    @property
    def pieces_queued(self) -> int:
        """Pieces that are read and not applied."""
        return len(self.sent_batches) + sum(len(flow.pieces) for flow in self.flows)

    @property
    def piece_bytes_queued(self) -> int:
        return self.piece_bytes_in_flight + sum(p.bytes for flow in self.flows for p in flow.pieces)

    def may_send_pieces(self) -> bool:
        """Whether the scanner may read on: mirror data in flight and in the queue is bounded, so replication
        goes first.
        """
        return (
            self.pieces_queued < limits.PIECES_IN_FLIGHT and self.piece_bytes_queued < self.pace.window_bytes
        )

    def acknowledged(self, batches_applied: int) -> None:
        """The target has applied the batches up to this number."""
        self.pace.arrived(batches_applied)
        while self.sent_batches and self.sent_batches[0].number <= batches_applied:
            batch = self.sent_batches.popleft()
            self.piece_bytes_in_flight -= batch.bytes
            for found in batch.found:
                if isinstance(found.entry, Patched):
                    batch.flow.order.patch_settled(found.identity)

    def forget_batches_after(self, number: int) -> None:
        """The target has not received the batches after this one: what they held is brought again."""
        while self.sent_batches and self.sent_batches[-1].number > number:
            batch = self.sent_batches.pop()
            self.piece_bytes_in_flight -= batch.bytes
            for found in batch.found:
                batch.flow.lost(found)

    def _finish_run(self, run: MirrorRun, out: list[Shipment]) -> None:
        """Nothing can be shipped now: is the mirror complete?"""
        if run.stopped:
            self._end(run, False, out)
            return
        if not self.scanner_idle() or any(f.pieces or not f.nothing_to_read() for f in self.flows):
            run.happen(MirrorEvent.MORE)
            return
        if any(f.position.sequence < f.order.scanned_head for f in self.flows):
            return
        run.happen(MirrorEvent.ALL_SENT)
        if self.sent_batches:
            return
        assert all(f.order.nothing_pending() for f in self.flows), "a pending path nobody would bring"
        self._end(run, run.problem_count == 0 and not run.partial, out)

    def _end(self, run: MirrorRun, complete: bool, out: list[Shipment]) -> None:
        out.append(Shipment(MirrorEnd(run.run_id, complete, run.drift, not run.orphans_stopped), None))
        for flow in self.flows:
            flow.forget_mirror()
        self.sent_batches.clear()
        self.piece_bytes_in_flight = 0
        self.announced = ""
        self.end_run(complete)


class _Bell:
    """Wakes the shipper when the journals have something to read; waits only while armed, that is when it had
    read all.

    What comes after a silence is shipped at once. After that, small changes are collected for a moment: each
    wake costs this host, and the target, as much as many operations do, and applications need the processors.
    """

    def __init__(self, merge: Merge, wake: Callable[[], None]) -> None:
        self._merge = merge
        self._wake_shipper = wake
        self._armed = trio.Event()

    def arm(self) -> None:
        self._armed.set()

    async def run(self) -> None:
        rang_s = -limits.SHIP_PAUSE_S
        while True:
            await self._armed.wait()
            pause_until_s = rang_s + limits.SHIP_PAUSE_S
            while (  # noqa: ASYNC110  # nobody rings for the bytes
                trio.current_time() < pause_until_s and self._merge.unread_bytes < limits.SHIP_PAUSE_BYTES
            ):
                await trio.sleep(limits.SHIP_PAUSE_S / 4)
            await self._merge.wait()
            rang_s = trio.current_time()
            self._armed = trio.Event()
            self._wake_shipper()


def _position_before(run: Run, index: int) -> Position:
    if index == 0:
        return run.previous
    record = run.records[index - 1][2]
    return Position(record.sequence, record.chain)


def _without_data(found: Found) -> Found:
    entry = found.entry
    if isinstance(entry, Times | Listing | Abandon | Patched):
        return found
    if isinstance(entry, Names):
        return found._replace(entry=msgspec.structs.replace(entry, names=(), types=b"", kept=()))
    if isinstance(entry, Patch):
        return found._replace(entry=msgspec.structs.replace(entry, data=NO_CONTENT))
    return Found(found.path, None, found.identity, found.links, found.size)
