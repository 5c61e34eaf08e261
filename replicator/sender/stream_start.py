"""Where the stream goes on in a new session: where the target is, or beyond, where what is tracked ends."""

from collections.abc import Sequence
from typing import NamedTuple

from replicator import limits
from replicator.errors import JournalError
from replicator.net.frames import Connected
from replicator.ops import START, Position
from replicator.queue.cursor import UnreadableJournal
from replicator.sender.continuation import goes_on_at
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.sender_state import SenderStateFile
from replicator.sender.tracking import Tracker, row_at


class Lost(NamedTuple):
    """Operations after the target's position are neither in a journal nor tracked."""

    why: str
    since_wall_ns: int  # 0: nobody knows


class StreamStart:
    """`roots`: of the mounts, as people know them, one for each flow."""

    def __init__(
        self, flows: list[Flow], roots: Sequence[str], memory: SenderStateFile, dirt: Dirt, tracker: Tracker
    ) -> None:
        self.root_changed = False
        """A root of the set was gone among what comes next: that stopped the stream."""
        self._flows = flows
        self._roots = roots
        self._memory = memory
        self._dirt = dirt
        self._tracker = tracker
        self._lost_why = ""
        self._lost_since_ns = 0

    async def find(
        self, connected: Connected, *, exact: bool, complete: bool, torn: bool, lost_since_ns: int
    ) -> Lost | None:
        """Bring all flows to where they go on. If not all can, nothing of the stream is left to rely on.

        `exact`: the copy lacks nothing but what the journals have after its positions. `complete`: so it was
        once, so that a position it does not know any more is a loss. `torn`: it has, beyond its durable
        marks, anything of what was ever sent. `lost_since_ns`: since when operations are lost, if they are.
        Raises UnreadableJournal: it is tried once more, see `Flow.session_ended`.
        """
        self._lost_why = "the journal does not go on where the target is"
        self._lost_since_ns = lost_since_ns
        unknown = False
        for flow, mark in zip(self._flows, connected.received, strict=True):
            flow.reached = Position(mark.sequence, mark.chain) if mark is not None else START
            if mark is None:
                # Not the head: what was changed since the connection was made is known here, and a comparison
                # by size and mtime need not find it.
                flow.seek_first()
                unknown = True
        if self._dirt.active or torn:
            placed = await self._go_on_tracked(torn)
        else:
            placed = self._go_on_journaled(connected, exact)
        if placed and not (unknown and complete):
            return None
        if placed:
            self._lost_why = "the target does not know how far its copy has come"
        return Lost(self._lost_why, self._lost_since_ns)

    def go_on_restored(self, connected: Connected) -> bool:
        """The source was restored from the copy, and equals it where what is tracked begins: the stream jumps
        over whatever the journals have before that. False: the journals do not have it any more, nor say what
        they have lost since.
        """
        try:
            for flow, mark in zip(self._flows, connected.received, strict=True):
                flow.reached = Position(mark.sequence, mark.chain) if mark is not None else START
                self._track_on_in_row(flow)
                flow.seek(flow.position)
        except JournalError:
            return False
        return True

    # --- nothing is tracked ---

    def _go_on_journaled(self, connected: Connected, exact: bool) -> bool:
        """The flows go on where the target is. False: not all can."""
        placed = True
        for flow, mark in zip(self._flows, connected.received, strict=True):
            if mark is None:
                continue
            reached = Position(mark.sequence, mark.chain)
            passed_wall_ns = flow.passed_wall_ns if flow.position == reached else 0
            try:
                self._refuse_root_put_back(flow)
                self._refuse_damaged(flow, reached)
                flow.seek(reached)
            except UnreadableJournal:
                raise
            except JournalError:
                if self._continue_row(flow, mark.sequence, exact):
                    continue
                flow.seek_head()
                placed = False
                if passed_wall_ns:
                    self._lost_since_ns = min(passed_wall_ns, self._lost_since_ns or passed_wall_ns)
        return placed

    def _continue_row(self, flow: Flow, received: int, exact: bool) -> bool:
        """The journal has not this record (any more): go on where it tells what is different instead.

        False: it does not.
        """
        start = None if self.root_changed else flow.cursor.row_start()
        position = goes_on_at(received, start, flow.cursor.covered, exact=exact)
        if position is None:
            return False
        flow.seek(position)
        # If the recovery is interrupted, everything is compared, and nothing that is newer is believed.
        flow.passed_wall_ns = max(self._memory.state.alive_wall_ns - limits.UNSYNCED_MAX_NS, 0)
        return True

    # --- something is ---

    async def _go_on_tracked(self, torn: bool) -> bool:
        """The flows go on where the target is, or where what is tracked ends. False: not all can."""
        dirt, tracker = self._dirt, self._tracker
        try:
            for flow in self._flows:
                reached = flow.reached
                assert reached is not None
                self._refuse_root_put_back(flow)
                self._refuse_damaged(flow, reached)
                self._track_on_in_row(flow)
                if not tracker.reaches(flow, reached):
                    raise JournalError("the journal has begun anew: nobody knows what it has lost")
                if flow.position.sequence < reached.sequence and dirt.active:
                    await tracker.fold_until(flow, reached.sequence)
                elif not tracker.tracking and reached.sequence >= flow.cursor.acknowledged:
                    flow.seek(reached)
                if flow.position.sequence == reached.sequence and flow.position != reached:
                    raise JournalError(f"record {reached.sequence} of the target is a different one")
            if torn and not dirt.active:
                dirt.begin()
            if torn:
                for flow in self._flows:
                    await tracker.fold_until(flow, flow.sent_max)
            for flow in self._flows:
                if not tracker.tracking and flow.cursor.position != flow.position:
                    flow.cursor.seek(flow.position)
        except JournalError as error:
            if isinstance(error, UnreadableJournal) and all(f.damaged_at is None for f in self._flows):
                raise
            for flow in self._flows:
                flow.seek_head()
            return False
        return True

    def _track_on_in_row(self, flow: Flow) -> None:
        """What is tracked may end in a former row of the journal: go on in the present one. JournalError."""
        tracker = self._tracker
        former = row_at(flow.position) != row_at(flow.cursor.head())
        if former and self._dirt.active and not tracker.tracking and not tracker.continue_row(flow):
            raise JournalError("the journal has begun anew: nobody knows what it has lost")

    # --- where no flow goes on ---

    def _refuse_damaged(self, flow: Flow, reached: Position) -> None:
        """AD-03: a journal that could not be read on twice, once the target has all before that place."""
        if flow.damaged_at == reached:
            self._lost_why = f"the journal of {self._roots[flow.index]} is damaged"
            raise JournalError(self._lost_why)

    def _refuse_root_put_back(self, flow: Flow) -> None:
        if self.root_changed and all(flow.source.exists(root) for root in flow.filter.roots):
            raise JournalError("a person put the root back: what happened between is compared, not repeated")
