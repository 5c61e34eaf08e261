"""The replica: applies the spool to the target tree, strictly in order, exactly once, and knows how far it
is.

The applied position is stored in shared memory after every operation, so a successor of a killed process
finds the one operation in doubt. What fails is tried again and shown; nothing overtakes it. One task runs
`run`, another `keep_durable`; all state changes between two checkpoints.
"""

import sys
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
import trio

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.mirror.checks import Finding, decode_checks, encode_findings
from replicator.mirror.comparison import Claim
from replicator.mirror.mirroring import FORCED, FULL, OVERRULING
from replicator.mirror.pieces import Alike, Batch, Begun, Digests, Listing, Names, Refused, Same, decode_batch
from replicator.net.frames import (
    Checked,
    Checks,
    Connect,
    Derived,
    MirrorBegin,
    MirrorEnd,
    PieceBatch,
    Records,
    StreamHead,
)
from replicator.ops import NAME_KINDS, NO_IDENTITY, TWO_PATH_KINDS, Kind, Position, Record
from replicator.orphans import OrphanSettings
from replicator.queue import record as codec
from replicator.receiver.drift import Drift, moves
from replicator.receiver.durability import Durability
from replicator.receiver.failures import FAILURES, IN_THE_WAY, TARGET_IS_ILL, errno_of, reason_of
from replicator.receiver.halts import Halts, Stopped
from replicator.receiver.kept_state import KeptState
from replicator.receiver.orphan_steps import OrphanSteps
from replicator.receiver.ownership import Ownership
from replicator.receiver.position_file import PositionFile
from replicator.receiver.refusals import Refusals
from replicator.receiver.replica_state import Applied, RefusedBatch, ReplicaState, StateFile, encode
from replicator.receiver.replica_tree import Tree
from replicator.receiver.shared_value import SharedValue
from replicator.receiver.spool import Spool, Spooled
from replicator.receiver.tree_in_use import TreeInUse
from replicator.states import DataEvent
from replicator.status import TargetDataState, TargetLock, TargetStatus
from replicator.world import World

_T = TypeVar("_T")

_CREATING = frozenset({Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.MKNOD})
_BREATH_OPERATIONS = 64
_BREATH_NS = 3_000_000
"""Other tasks get their turn after so many operations or so much time."""


class Replica:
    """`changed` is called when a mark, a status or a refusal is new; the caller then looks at the
    attributes.
    """

    def __init__(
        self,
        world: World,
        spool: Spool,
        state_file: StateFile,
        state: ReplicaState,
        positions: PositionFile,
        applied: Applied,
        page: SharedValue,
        refused: list[RefusedBatch],
        save_refused: Callable[[list[RefusedBatch]], None],
        open_tree: Callable[[Connect], Tree],
        changed: Callable[[], None],
        drift: Drift,
        comes_again: bool = False,
        orphans: OrphanSettings | None = None,
    ) -> None:
        """`comes_again`: the spool is lost, and with it the operation that a killed predecessor was in the
        middle of; its source sends it once more.
        """
        self.applied = applied
        self.drained = False
        self.operations = 0  # applied by this process
        self.last_path = b""
        self.checked: deque[Checked] = deque(maxlen=limits.CHECKS_IN_FLIGHT * 2)  # to be told, once
        self.drift = drift
        self.in_use = in_use = TreeInUse()
        self._kept = kept = KeptState(world, state_file, state)
        self.halts = halts = Halts(kept, changed)
        self.refusals = Refusals(applied, refused, save_refused, changed)
        self.durability = durability = Durability(world, positions, kept, applied, drift, in_use, changed)
        self.ownership = Ownership(kept, applied, halts, durability, changed)
        self.orphans = OrphanSteps(
            world, orphans or OrphanSettings(), in_use, durability, changed, halts.wake
        )
        self._world = world
        self._spool = spool
        self._positions = positions
        self._page = page
        self._open_tree = open_tree
        self._changed = changed
        self._journals: tuple[str, ...] = ()
        self._since_breath = 0
        self._breath_ns = 0
        self._in_doubt = False
        self._comes_again = comes_again
        self._given_up: set[bytes] = set()  # paths that failed for too long, until a mirror brings them

    @property
    def state(self) -> ReplicaState:
        """What is remembered over a loss of power."""
        return self._kept.state

    # --- what others ask for ---

    def wake(self) -> None:
        """There is something new in the spool."""
        self.drained = False
        self.halts.wake()

    def stop(self) -> None:
        """`run` returns after the operation in progress."""
        self.halts.stop()

    # --- applying ---

    async def run(self) -> None:
        """Apply what is in the spool and what comes, until `stop`. Raises JournalError if the spool is
        damaged.
        """
        self._in_doubt = self._comes_again or (
            not self.state.clean and self._spool.head != self.applied.spool
        )
        halts = self.halts
        halts.begin()
        try:
            if self.state.connect is not None:
                await self._configure(self.state.connect)
            while not halts.stopping:
                self.orphans.heed()
                frame = self._spool.read() if not halts.stands_still else None
                if frame is not None:
                    self.in_use.look_afresh()
                    await self._apply_frame(frame)
                    self._since_breath += 1
                    self.orphans.step_if_due()
                    if self._since_breath >= _BREATH_OPERATIONS:
                        await self._breathe()
                    continue
                if halts.stands_still:
                    halts.is_held()
                else:
                    self._in_doubt = self._comes_again
                    self.drained = True
                    halts.stir()
                    if self.orphans.step():
                        await self._breathe()
                        continue
                    self._changed()
                await halts.rest()
                self._since_breath = 0
                self._breath_ns = self._world.clock.monotonic_ns()
        except Stopped:
            pass

    def spool_lost(self) -> None:
        """After `run` has raised JournalError: what is in the spool counts no more; it may be run again."""
        self._comes_again = self._comes_again or self._in_doubt
        self._spool.seek_head()
        applied = self.applied
        applied.spool, applied.done = self._spool.head, 0  # the marks are exact to the operation
        self._page.store(encode(applied))

    def close(self) -> None:
        """After `run`."""
        self.in_use.close()

    async def _apply_frame(self, frame: Spooled) -> None:
        if self.state.clean:
            # From here on the tree is newer than what was durable at the clean stop, whatever becomes of this
            # host.
            await self._kept.save(clean=False)
        head = frame.frame
        if isinstance(head, Records | Derived):
            await self._apply_records(frame, head)
        elif isinstance(head, PieceBatch):
            await self._place(frame, head.number)
        elif isinstance(head, Checks):
            await self._compare(frame)
        elif isinstance(head, MirrorBegin):
            await self._begin_mirror(head)
            self._frame_done(frame, batches=0)
        elif isinstance(head, MirrorEnd):
            await self._end_mirror(head)
            self._frame_done(frame)
        elif isinstance(head, Connect):
            await self._configure(head)
            self._frame_done(frame)
        else:
            raise ReplicatorError(f"the spool holds a {type(head).__name__}, which is not for a tree")

    async def _apply_records(self, frame: Spooled, head: StreamHead) -> None:
        applied = self.applied
        journal, journal_id = head.journal, self._journals[head.journal]
        begin = applied.done
        index, offset, size = 0, 0, len(frame.data)
        while offset < size:
            record, length = codec.decode(
                frame.data, offset
            )  # verified when it arrived, and as part of the frame
            offset += length
            index += 1
            if index <= begin:
                continue
            await self._apply(journal, record, head.by_identity)
            applied.wall_ns = record.wall_ns
            if offset < size:
                applied.done = index
                applied.marks[journal_id] = Position(record.sequence, record.chain)
                applied.intent = b""
                self._page.store(encode(applied))
        applied.marks[journal_id] = Position(head.last.sequence, head.last.chain)
        self._frame_done(frame)

    async def _apply(self, journal: int, record: Record, by_identity: bool) -> None:
        """One record, as often as it takes. Almost always without a checkpoint."""
        if self.halts.due:
            await self.halts.heed()
        tree = self.in_use.tree
        assert tree is not None
        # Without a complete mirror the target lacks what nobody has promised to bring.
        tolerant = self.state.data_state is not TargetDataState.OK
        kind = record.kind
        if kind == Kind.HOLE or kind == Kind.DOUBT:
            await self._lost_something()
            return
        in_doubt, self._in_doubt, self._comes_again = self._in_doubt, False, False
        intent = self.applied.intent if in_doubt else b""
        delay_s = limits.APPLY_RETRY_FIRST_S
        failing_since: float | None = None
        while True:
            try:
                if not in_doubt:
                    intent = tree.intent(journal, record)
                    if intent:
                        self.applied.intent = intent
                        self._page.store(encode(self.applied))
                operation = partial(
                    tree.apply,
                    journal,
                    record,
                    tolerant=tolerant,
                    by_identity=by_identity,
                    in_doubt=in_doubt,
                    intent=intent,
                )
                if kind == Kind.REMOVE_TREE or (tolerant and kind == Kind.RENAME):
                    # It may remove a whole tree: heartbeats must go on meanwhile.
                    await self._world.in_thread(operation)
                else:
                    operation()
                break
            except FAILURES as error:
                if tolerant and errno_of(error) not in TARGET_IS_ILL:
                    self._refuse_record(journal, record, error)
                    break
                if not tolerant and kind in NAME_KINDS and errno_of(error) in IN_THE_WAY:
                    if kind == Kind.RMDIR:  # what nobody replicates stays, and keeps its directory
                        print(f"kept: {reason_of(error)}", file=sys.stderr, flush=True)
                        break
                    # The name was free on the source: what has it here is none of ours.
                    print(f"replaced what was in the way: {reason_of(error)}", file=sys.stderr, flush=True)
                    tolerant = True
                    continue
                now = trio.current_time()
                if failing_since is None:
                    failing_since = now
                if errno_of(error) not in TARGET_IS_ILL and (
                    record.path in self._given_up or now - failing_since > limits.APPLY_GIVE_UP_S
                ):
                    # The rest must not wait for one path for ever: the source compares and brings it again.
                    print(f"skipped, to be brought again: {reason_of(error)}", file=sys.stderr, flush=True)
                    self._refuse_record(journal, record, error)
                    await self._lost_something()
                    if len(self._given_up) < limits.PROBLEMS_KEPT:
                        self._given_up.add(record.path)
                    break
                # What was in doubt stays so. Otherwise it may be there, without all of its attributes.
                in_doubt = in_doubt or kind in _CREATING
                await self.halts.fails(reason_of(error), delay_s)
                delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
                # Meanwhile it may have turned out that others have changed the copy.
                tolerant = tolerant or self.state.data_state is not TargetDataState.OK
        self.halts.works()
        if moves(record) and self.drift.follow(self._journals[journal], record):
            await self.changed_by_others(self.drift.since_ns)
        self.operations += 1
        self.last_path = record.path
        self.durability.touched()
        self._since_breath += 1
        if self._since_breath >= _BREATH_OPERATIONS or (
            self._world.clock.monotonic_ns() - self._breath_ns >= _BREATH_NS
        ):
            await self._breathe()

    def _refuse_record(self, journal: int, record: Record, error: BaseException) -> None:
        """What this record speaks of is not exact now: the mirror has to bring it again."""
        paths = [record.path, record.path2] if record.kind in TWO_PATH_KINDS else [record.path]
        reason = reason_of(error)
        self.refusals.add([Refused(journal, path, record.identity, reason) for path in paths if path])

    async def _breathe(self) -> None:
        self._changed()
        await trio.lowlevel.checkpoint()
        self._since_breath = 0
        self._breath_ns = self._world.clock.monotonic_ns()

    async def _place(self, frame: Spooled, number: int) -> None:
        batch = decode_batch(frame.data)
        self._in_doubt = False  # placing the same batch twice gives the same tree

        async def place(tree: Tree) -> list[Refused]:
            if self.drift.has_tail:
                self._note_missing(tree, batch)
            return await self._world.in_thread(partial(_placed, tree, batch))

        refused = await self._until_done(place)
        if refused:
            self.refusals.add(refused, batch.number)
        self.durability.touched()
        self._frame_done(frame, batches=batch.number)
        self._changed()

    def _note_missing(self, tree: Tree, batch: Batch) -> None:
        """What a former source has removed is missing here, and only a list of names tells so. OSError."""
        missing = tree.missing_above(batch)
        for path in missing:
            self.drift.lacks(self._journals[batch.journal], path)
        if missing:
            self._changed()

    async def _compare(self, frame: Spooled) -> None:
        """Look whether the copy is as the source says at this place."""
        batch = decode_checks(frame.data)
        self._in_doubt = self._comes_again  # a killed predecessor was not in the middle of an operation

        async def compare(tree: Tree) -> list[Finding]:
            self.in_use.look_afresh()
            return await self._world.in_thread(partial(tree.compare, batch))

        found = await self._until_done(compare)
        self.checked.append(Checked(batch.number, encode_findings(found), self.state.mirroring))
        self._frame_done(frame)
        self._changed()

    async def _until_done(self, step: Callable[[Tree], Awaitable[_T]]) -> _T:
        """What `step` returns. It is tried again while the whole target is ill (OSError)."""
        delay_s = limits.APPLY_RETRY_FIRST_S
        while True:
            if self.halts.due:
                await self.halts.heed()
            tree = self.in_use.tree
            assert tree is not None
            try:
                found = await step(tree)
                break
            except OSError as error:
                await self.halts.fails(reason_of(error), delay_s)
                delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
        self.halts.works()
        return found

    async def keeps_up(self) -> bool:
        """Wait a little for the end of the spool. False: applying it takes longer, or is held up."""
        halts = self.halts
        with trio.move_on_after(limits.SPOOL_DRAIN_S):
            while not self.drained and not halts.due and halts.status is TargetStatus.OK:
                await halts.stirred()
        return self.drained and not halts.due

    def place_now(self, batch: Batch) -> bool:
        """Place a batch that has just arrived, past the spool. False: it cannot be now, so it belongs there.

        Without a checkpoint. For a target that keeps up: whatever is in the spool comes first. A batch that a
        kill interrupts was never received: the source reads it again.
        """
        tree = self.in_use.tree
        if (
            not self.drained
            or self.halts.due
            or not self.state.mirroring
            or tree is None
            or takes_long(batch)
        ):
            return False
        if self.drift.has_tail:
            return False
        self.in_use.look_afresh()
        try:
            refused = _placed(tree, batch)
        except OSError:
            return False  # the target is ill: `run` shows it, and tries again
        if refused:
            self.refusals.add(refused, batch.number)
        self.durability.touched()
        self.applied.batches = batch.number
        self._page.store(encode(self.applied))
        self._changed()
        return True

    def _frame_done(self, frame: Spooled, *, batches: int | None = None) -> None:
        applied = self.applied
        applied.spool = frame.position
        applied.done = 0
        applied.intent = b""
        if batches is not None:
            applied.batches = batches
        self._page.store(encode(applied))
        self._spool.release(frame.position)
        self.durability.passed(len(frame.data))

    # --- the order of the stream also says what kind of target this is ---

    async def _configure(self, connect: Connect) -> None:
        """The maps and journals that count from here on."""
        delay_s = limits.APPLY_RETRY_FIRST_S
        async with self.in_use.lock:
            self.in_use.close()
            while True:
                try:
                    self.in_use.tree = self._open_tree(self._as_locked(connect))
                    self.in_use.tree.suspect(self.state.suspect_since_ns)
                    self.in_use.tree.mirror_since(self.state.mirror_since_ns)
                    break
                except (OSError, ReplicatorError) as error:
                    await self.halts.fails(reason_of(error), delay_s)
                    delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
        self.halts.works()
        self.in_use.tell()
        self._journals = tuple(journal.journal_id for journal in connect.journals)
        if connect != self.state.connect:
            former = self.state.connect
            self.refusals.clear()  # their journals' numbers mean nothing any more
            self.applied.marks = {k: v for k, v in self.applied.marks.items() if k in self._journals}
            known = former is None or (former.journals == connect.journals and former.maps == connect.maps)
            if former is not None:  # other rules, or another place
                self.in_use.tree.orphans.stop(self._world.clock.wall_ns())
            if not known:
                self._kept.happen(DataEvent.OTHER_PLACE)
            if former is None:  # what is there already was made by others, and is as durable as it will be
                wall_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS
                positions = self._positions
                await self._world.in_thread(partial(positions.save, positions.marks, wall_ns))
            await self._kept.save(connect=connect)

    def _as_locked(self, connect: Connect) -> Connect:
        """What programs of this host have in use is locked no more, whatever the former source wanted."""
        in_use = self.ownership.is_promoted and not self.state.closed
        return msgspec.structs.replace(connect, lock=TargetLock.NONE) if in_use else connect

    async def _begin_mirror(self, begin: MirrorBegin) -> None:
        assert self.in_use.tree is not None
        self.refusals.clear()
        self._given_up.clear()
        self.in_use.is_stale = True  # what others did to the copy is what a mirror is for
        since_ns: int | None = None
        if begin.kind in (FULL, FORCED):
            since_ns = self.state.mirror_since_ns if begin.continued and self.state.mirroring else None
            since_ns = self.in_use.tree.clock_ns() if since_ns is None else since_ns
        self.in_use.tree.begin_mirror()
        self.in_use.tree.mirror_since(since_ns)
        self.in_use.tree.orphans.begin(begin.orphans, begin.mirror_id, self._world.clock.wall_ns())
        forced = begin.kind in OVERRULING
        self._kept.happen(DataEvent.FORCED if forced else DataEvent.MIRROR_BEGINS)
        # Durable, or the next start after a power cut would not know that a mirror needs to be done again.
        await self._kept.save(
            mirroring=True, mirror_id=begin.mirror_id, mirror_since_ns=since_ns, power_lost=False
        )
        self._changed()

    async def _end_mirror(self, end: MirrorEnd) -> None:
        assert self.in_use.tree is not None
        self.refusals.forget_heard()
        self.in_use.tree.forget_links()
        await self._world.in_thread(partial(_give_up_transfers, self.in_use.tree))
        decide = partial(
            self.in_use.tree.orphans.end,
            end.mirror_id,
            end.complete and end.orphans,
            self.orphans.settings,
            self._world.clock.wall_ns(),
        )
        await self._world.in_thread(decide)
        self._kept.happen(DataEvent.MIRROR_COMPLETE if end.complete else DataEvent.MIRROR_INCOMPLETE)
        if end.complete:
            self.drift.repaired(end.drift)
            if self.drift.pending:  # reported too late for this mirror
                self._kept.happen(DataEvent.DRIFT)
        exact = end.complete and not self.drift.pending
        suspect_since_ns = None if exact else self.state.suspect_since_ns
        self.in_use.tree.suspect(suspect_since_ns)
        await self._kept.save(mirroring=False, mirror_id=end.mirror_id, suspect_since_ns=suspect_since_ns)
        self.durability.soon()
        self._changed()

    async def _lost_something(self) -> None:
        """A journal that says it lost operations: the source brings what is missing, until then this is no
        exact copy.
        """
        if not self.state.mirroring and self.state.data_state is TargetDataState.OK:
            self._kept.happen(DataEvent.LOSS)
            await self._kept.save()
            self._changed()

    def tell(self) -> None:
        """There is something new to tell the source."""
        self._changed()

    async def changed_by_others(self, since_ns: int | None) -> None:
        """Something was added to `drift`. `since_ns`: it is not known what, but all of it was changed since
        then.
        """
        self._kept.happen(DataEvent.DRIFT)
        self.in_use.is_stale = True  # a directory that is kept open may be another one, or none
        if since_ns is not None:
            former_ns = self.state.suspect_since_ns
            since_ns = since_ns if former_ns is None else min(former_ns, since_ns)
            if self.in_use.tree is not None:
                self.in_use.tree.suspect(since_ns)
            await self._kept.save(suspect_since_ns=since_ns)
        else:
            await self._kept.save()
        self._changed()


def _placed(tree: Tree, batch: Batch) -> list[Refused]:
    """What was refused of it. OSError if the whole target is ill."""
    try:
        return tree.place(batch)
    except OSError:
        raise
    except FAILURES as error:
        return [Refused(batch.journal, e.path, NO_IDENTITY, reason_of(error), False) for e in batch.entries]


def _give_up_transfers(tree: Tree) -> None:
    try:
        tree.give_up_transfers()
    except OSError as error:  # they only take room
        print(f"unfinished files are left: {reason_of(error)}", file=sys.stderr, flush=True)


def takes_long(batch: Batch) -> bool:
    """Whether heartbeats could be late: removing what the source lacks may mean whole trees, and files that
    are compared have to be read.
    """
    claimed = sum(len(entry.names) for entry in batch.entries if isinstance(entry, Alike))
    return claimed > limits.STEP_FILES or any(
        (
            isinstance(entry, Listing)
            and (entry.exact or entry.orphans or len(entry.directories) > limits.STEP_FILES)
        )
        or isinstance(entry, Names | Digests | Begun)
        or (isinstance(entry, Same) and (entry.digest or entry.claim is Claim.ELSEWHERE))
        for entry in batch.entries
    )
