"""What a sender does with its journals while it cannot ship them: it folds them into its dirt, so that they
need not be kept.

A connection whose target is away or slow holds its journals back. Before one of them is exhausted, and so
hurts every connection of its mount, the sender gives up shipping (its session ends), and *tracks*: it reads
on, folds, makes the map durable, and lets the journal forget, in bounded time and memory, until the stream
goes on. It then jumps to where the map ends, and what the map names is brought.
"""

import sys
from collections.abc import Callable

import trio

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Position
from replicator.queue.recovery import ROW_SHIFT
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.continuation import goes_on_at
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.known_copy import KnownCopy
from replicator.world import World


class Tracker:
    """`ships`: whether the stream goes on, so that `stir` is called when something is journaled.
    `exhausting(reason)` is called when the journals are about to be full because of this connection, `begin`
    when no session uses the flows.
    """

    def __init__(
        self,
        world: World,
        flows: list[Flow],
        dirt: Dirt,
        copy: KnownCopy,
        states: ConnectionStates,
        ships: Callable[[], bool],
        exhausting: Callable[[str], None],
    ) -> None:
        self.tracking = False
        self._world = world
        self._flows = flows
        self._dirt = dirt
        self._copy = copy
        self._states = states
        self._ships = ships
        self._exhausting = exhausting
        self._wake = trio.Event()
        self._at_head = trio.Event()
        self._left: trio.Event | None = None  # while the task uses the cursors
        self._idle = False
        self._saved_ns = world.clock.monotonic_ns()
        self._unsaved_bytes = 0
        self._closed = False

    # --- what the sender says ---

    def begin(self, *, exact: bool) -> None:
        """Nobody ships: from here on, what is journaled is tracked. `exact`: the target was so, when it was
        heard of last.
        """
        self.tracking = True
        self._at_head = trio.Event()
        if self._dirt.active:
            for flow in self._flows:
                self._go_to(flow, flow.position)
        else:
            known = exact
            for flow in self._flows:  # what the target has beyond its last durable mark is not known yet
                known = self._go_to(flow, None) and known
            self._dirt.begin(known=known)
        self.wake()

    async def end(self) -> None:
        """The stream goes on from where the flows stand; nothing here uses their cursors any more."""
        self.tracking = False
        self.wake()
        while self._left is not None:
            await self._left.wait()

    def wake(self) -> None:
        self._wake.set()

    def stir(self) -> None:
        """Something was journaled where nothing was before."""
        if self._idle:
            self._wake.set()

    def close(self) -> None:
        """The cursors are about to go."""
        self._closed = True
        self.tracking = False
        self.wake()

    async def at_head(self) -> None:
        """Return when what is journaled already is tracked, or when that takes too long to wait for."""
        with trio.move_on_after(limits.TRACK_WAIT_S):
            while self.tracking:
                await self._at_head.wait()
                break

    def _go_to(self, flow: Flow, position: Position | None) -> bool:
        """The cursor goes to `position`, or to the last durable mark. False: the journal does not have it."""
        cursor = flow.cursor
        try:
            if not cursor.resumed and position is None:
                raise JournalError("the journal does not go on where the target is")
            if position is None:
                cursor.look_from(cursor.acknowledged)
            else:
                cursor.seek(position)
        except JournalError as error:
            self._lost(flow, error)
            return False
        if position is None:
            flow.position = cursor.position
        return True

    def continue_row(self, flow: Flow) -> bool:
        """The journal has begun a new row, whose HOLE tells what may be different since: fold that, too."""
        start = flow.cursor.row_start()
        position = goes_on_at(flow.position.sequence, start, flow.cursor.covered, exact=True)
        if position is None or not self._dirt.active:
            return False
        flow.cursor.seek(position)
        flow.position = position
        return True

    def reaches(self, flow: Flow, reached: Position) -> bool:
        """Whether what is folded began where the target is, or before, as far as rows of the journal go."""
        base, row = self._dirt.base(flow), row_at(reached)
        if row in (base >> ROW_SHIFT, row_at(flow.position)):
            return True
        start = flow.cursor.row_start()
        told = goes_on_at(reached.sequence, start, flow.cursor.covered, exact=True)
        return told is not None and told.sequence == base

    def _lost(self, flow: Flow, error: JournalError) -> None:
        if self._dirt.active and self.continue_row(flow):
            return
        print(f"what the target lacks cannot be told: {error}", file=sys.stderr, flush=True)
        flow.position = flow.cursor.seek_head()
        if self._dirt.active:
            self._dirt.everything()

    # --- where the stream goes on ---

    async def fold_until(self, flow: Flow, sequence: int) -> None:
        """Fold what is journaled up to that record. JournalError: the journal does not have it."""
        if flow.cursor.position != flow.position:
            flow.cursor.seek(flow.position)
        while flow.position.sequence < sequence:
            if not self._step(flow, sequence):
                raise JournalError(f"record {sequence} is not in the journal")
            await trio.lowlevel.checkpoint()

    def _step(self, flow: Flow, last: int | None = None) -> int:
        """Fold the next records, up to `last`; how many bytes they are. JournalError."""
        run = flow.cursor.read(limits.READ_CHUNK_BYTES)
        if run is None:
            return 0
        dirt = self._dirt
        record = None
        for _, _, record in run.records:
            if last is not None and record.sequence > last:
                flow.cursor.seek(flow.position)
                break
            dirt.fold(flow, record)
            flow.position = Position(record.sequence, record.chain)
            flow.passed_wall_ns = record.wall_ns
        return len(run.data)

    # --- the task ---

    async def run(self) -> None:
        """Look after the journals until cancelled, or closed."""
        while not self._closed:
            if self.tracking:
                self._left = trio.Event()
                try:
                    await self._track()
                finally:
                    self._left.set()
                    self._left = None
            else:
                await self._watch()

    async def _track(self) -> None:
        """One chunk of each journal, or a wait for more."""
        done = 0
        for flow in self._flows:
            try:
                done += self._step(flow)
            except JournalError as error:
                self._lost(flow, error)
        if done:
            self._dirt.lacks()
        self._unsaved_bytes += done
        if self._must_save(at_head=not done):
            self._save()
        if done:
            await trio.lowlevel.checkpoint()
            return
        self._at_head.set()
        self._wake = trio.Event()
        with trio.move_on_after(limits.TRACK_SAVE_QUIET_S if self._dirt.changed else limits.TRACK_IDLE_S):
            async with trio.open_nursery() as nursery:
                for flow in self._flows:
                    nursery.start_soon(self._until_readable, flow, nursery)
                await self._wake.wait()
                nursery.cancel_scope.cancel()

    async def _until_readable(self, flow: Flow, nursery: trio.Nursery) -> None:
        try:
            await flow.cursor.wait()
        except JournalError:
            await trio.sleep(limits.TRACK_IDLE_S)  # it was stopped: its next process opens it anew
        nursery.cancel_scope.cancel()

    def _must_save(self, *, at_head: bool) -> bool:
        if not self._dirt.changed:
            return False
        if self._unsaved_bytes >= limits.TRACK_SAVE_BYTES:
            return True
        if self.little_room and (at_head or 2 * self._unsaved_bytes >= self._room_bytes()):
            return True
        return self._unsaved_s() >= (limits.TRACK_SAVE_QUIET_S if at_head else limits.TRACK_SAVE_S)

    def _unsaved_s(self) -> float:
        return (self._world.clock.monotonic_ns() - self._saved_ns) / 1e9

    def _save(self) -> None:
        self._saved_ns = self._world.clock.monotonic_ns()
        self._unsaved_bytes = 0
        if self._dirt.save():
            self.let_journals_forget()

    def let_journals_forget(self) -> None:
        """What is durable on the target, or tracked durably."""
        for flow, durable in zip(self._flows, self._copy.durable, strict=True):
            keep = durable
            if self._dirt.active:
                # What is saved is enough, but takes a recovery: where there is room, the target has it first.
                keep = self._dirt.saved(flow)
                if self._states.replicating and not (self.tracking or self.little_room):
                    keep = min(keep, durable)
            flow.cursor.acknowledge(keep)

    async def _watch(self) -> None:
        """Shipping, or nothing to do: see whether the journals get full, and save dirt from time to time."""
        self._wake = trio.Event()
        reason = self._reason_to_track()
        if reason:
            self._exhausting(reason)
        elif self._dirt.changed and (self.little_room or self._unsaved_s() >= limits.TRACK_SAVE_S):
            self._save()
        with trio.move_on_after(self._pause_s()):
            await self._wake.wait()
        self._idle = False

    def _pause_s(self) -> float:
        """Until the next look: no writer fills what is left before."""
        if self._ships() and not self._dirt.changed and not any(f.cursor.held()[0] for f in self._flows):
            self._idle = True
            return limits.QUEUE_LOOK_S
        soonest_s = self._room_bytes() / limits.TRACK_WRITER_BYTES_PER_S
        return min(max(soonest_s, limits.TRACK_LOOK_MIN_S), limits.TRACK_LOOK_MAX_S)

    def _room_bytes(self) -> int:
        """Of the journal that has least; where nobody knows, there is enough."""
        rooms = [room for flow in self._flows if (room := flow.cursor.room_bytes()) is not None]
        return min(rooms, default=limits.TRACK_WRITER_BYTES_PER_S)

    def _reason_to_track(self) -> str:
        share = limits.TRACK_ROOM_CONNECTED if self._ships() else limits.TRACK_ROOM_AWAY
        if any(_holds_back(flow, share) for flow in self._flows):
            return "the queue is nearly full"
        return ""

    @property
    def little_room(self) -> bool:
        """Whether a journal has to be told soon what it may forget."""
        return any(_little_room(flow, limits.TRACK_ROOM_AWAY) for flow in self._flows)


def _little_room(flow: Flow, share: float) -> bool:
    room = flow.cursor.room_bytes()
    if room is None:
        return flow.cursor.losing
    return room < share * (room + flow.cursor.kept_most_bytes())


def _holds_back(flow: Flow, share: float) -> bool:
    """Whether a journal gets full, and nobody holds it back more than this connection."""
    if not _little_room(flow, share):
        return False
    held, most = flow.cursor.held()[1], flow.cursor.kept_most_bytes()
    return held > 0 and held >= most - limits.SEGMENT_MIN_BYTES


def row_at(position: Position) -> int:
    """The row of a journal that goes on after this position."""
    return position.sequence >> ROW_SHIFT
