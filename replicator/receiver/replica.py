"""The replica: applies the spool to the target tree, strictly in order, exactly once, and knows how far it
is.

The applied position is stored in shared memory after every operation, so a successor of a killed process
finds the one operation in doubt. What fails is tried again and shown; nothing overtakes it. One task runs
`run`, another `keep_durable`; all state changes between two checkpoints.
"""

import errno
import os
import struct
import sys
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
import trio

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.failovers import Promotion
from replicator.mirror.checks import decode_checks, encode_findings
from replicator.mirror.comparison import Claim
from replicator.mirror.mirroring import FORCED, FULL, OVERRULING
from replicator.mirror.pieces import (
    Alike,
    Batch,
    Begun,
    Digests,
    Listing,
    Names,
    Refused,
    Same,
    decode_batch,
    encode_refused,
)
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
from replicator.ops import NAME_KINDS, NO_IDENTITY, TWO_PATH_KINDS, Kind, Position, Record, shown
from replicator.orphans import OrphanReport, OrphanSettings
from replicator.queue import record as codec
from replicator.receiver.drift import Drift, moves
from replicator.receiver.position_file import PositionFile
from replicator.receiver.replica_state import (
    Applied,
    Marks,
    RefusedBatch,
    ReplicaState,
    StateFile,
    encode,
)
from replicator.receiver.replica_tree import Tree
from replicator.receiver.shared_value import SharedValue
from replicator.receiver.spool import Spool, Spooled
from replicator.states import APPLY, DATA, ApplyEvent, DataEvent, Machine, step
from replicator.status import TargetDataState, TargetLock, TargetStatus
from replicator.world import World

_TARGET_IS_ILL = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
        *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE),
    }
)
"""Errors that concern the whole target, not one path: also a tolerant target waits for their end."""

_FAILURES = (OSError, ReplicatorError, ValueError, OverflowError, struct.error)
"""How an operation fails. The last three mean values that no honest source sends; they must not end this
process.
"""

_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})
"""Errors of an operation on names that meets something here which the source does not have there."""

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
        self.state = state
        self.applied = applied
        self.drained = False
        self.operations = 0  # applied by this process
        self.last_path = b""
        self.refused: deque[RefusedBatch] = deque(refused)
        self.refusals = len(refused)  # ever appended to `refused`
        self.checked: deque[Checked] = deque(maxlen=limits.CHECKS_IN_FLIGHT * 2)  # to be told, once
        self.settled = ""  # the mirror that has ended, and all it brought is on stable storage
        self.tree: Tree | None = None
        self.tree_changed = trio.Event()  # set, and replaced, when `tree` is another one
        self.drift = drift
        self.orphan_settings = orphans or OrphanSettings()
        self._orphan_step_s = 0.0
        self._orphan_actions: list[str] = []
        self._apply_state: Machine[TargetStatus, ApplyEvent] = Machine(APPLY, TargetStatus.OK, self._moved)
        self._world = world
        self._spool = spool
        self._state_file = state_file
        self._positions = positions
        self._page = page
        self._save_refused = save_refused
        self._open_tree = open_tree
        self._changed = changed
        self._journals: tuple[str, ...] = ()
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._held = False  # pause or stop was asked for: look before the next operation
        self._paused = False
        self._source_chosen = False
        self._stopping = False
        self._unsynced = trio.Event()
        self._unsynced_bytes = 0
        self._much_unsynced = trio.Event()
        self.secured: Marks = dict(positions.marks)
        """Up to where the copy is on stable storage; `durable` says so durably, and may come later."""
        self._wanted: dict[str, int] = {}  # what somebody waits for to be secured, by journal
        self._secure_now = trio.Event()
        self.is_waited_for = False  # programs on the source have waited for this copy: a synchronous mount
        self.answered: Callable[[], None] = changed
        """Called when something is secured that somebody waits for."""
        self._tree_lock = trio.Lock()  # the tree is being synced, or replaced
        self._save_lock = trio.Lock()
        self._since_breath = 0
        self._breath_ns = 0
        self._in_doubt = False
        self._comes_again = comes_again
        self._given_up: set[bytes] = set()  # paths that failed for too long, until a mirror brings them
        self._stale_descriptors = False  # the tree was synced: a good time to look at it afresh

    @property
    def status(self) -> TargetStatus:
        return self._apply_state.state

    @property
    def reason(self) -> str:
        """Why it is retrying."""
        return self._apply_state.reason

    # --- what others ask for ---

    def wake(self) -> None:
        """There is something new in the spool."""
        self.drained = False
        self._wake.set()

    def pause(self) -> None:
        """PT-01: the operation in progress is finished, then nothing is applied until `resume`."""
        if not self._paused:
            self._paused = self._held = True
            if not self.state.restoring:
                self._apply_state.happen(ApplyEvent.PAUSE)
            self._wake.set()

    def resume(self) -> None:
        if self.state.data_state is TargetDataState.RESTORE_REQUIRED and not self._source_chosen:
            raise ReplicatorError("the copy is in use: its source has to choose (dtctl recovery force)")
        if self._paused:
            self._paused = False
            self._go_on()

    def _go_on(self) -> None:
        if not self._stands_still:
            self._held = self._stopping
            self._apply_state.happen(ApplyEvent.RESUME)
            self._wake.set()

    @property
    def _stands_still(self) -> bool:
        """Nothing is applied: a person wants that, or a restore reads the copy."""
        return self._paused or bool(self.state.restoring)

    async def hold_for(self, restore: str) -> None:
        """Stand still, durably, until `restored` or `release`: also in the next process. OSError."""
        if self.state.restoring not in ("", restore):
            raise ReplicatorError(f"the copy is being restored already ({self.state.restoring})")
        if not self.state.restoring:
            self._held = True
            if not self._paused:
                self._apply_state.happen(ApplyEvent.PAUSE)
            self.state = msgspec.structs.replace(self.state, restoring=restore)
            self._wake.set()
        await self._save(restoring=restore)
        while self.status is not TargetStatus.PAUSED and not self._stopping:
            await self._idle.wait()
        await self.make_durable()  # the source will be what is there now

    async def release(self, restore: str) -> None:
        """The restore has ended, and the source is none that was restored: go on."""
        if self.state.restoring == restore:
            await self._save(restoring="")
            self._go_on()

    async def restored(self, epoch: int, source_uuid: str = "") -> None:
        """A source was restored from the copy as it is: no older one may change it any more. What was
        received and not applied counts for nothing: see `Receiver.restored`. `source_uuid`: whose it is from
        now on; "": that is not proved.
        """
        if epoch > self.state.epoch:
            owner = {"source_uuid": source_uuid} if source_uuid else {}
            await self._save(epoch=epoch, fork=dict(self.applied.marks), **owner)

    async def learn_epoch(self, epoch: int) -> None:
        """A source of a later epoch writes from now on: nobody of an earlier one does. That the copy is of
        that epoch, and equals such a source somewhere, is more than that.
        """
        if epoch > self.state.source_epoch:
            await self._save(source_epoch=epoch)

    async def shut(self, group: str) -> None:
        """The copy is about to be promoted: no source is let in from now on, durably, until `reopen`."""
        if self.state.closed not in ("", group):
            raise ReplicatorError(f"the copy is being taken over already ({self.state.closed})")
        await self._save(closed=group)

    async def reopen(self, group: str) -> None:
        """It is not promoted after all: its source may go on. Nothing, if it was."""
        if self.state.closed == group and not self.is_promoted:
            await self._save(closed="")
        await self.release(group)

    async def promote(self, record: Promotion) -> None:
        """This host owns the data from now on. What is in the spool stays there, and is never applied.

        `closed` stays until `seal`. Raises ReplicatorError: it does not stand still for that, or belongs to
        somebody else since.
        """
        known = self.state.promotion
        if known is not None and (known.group, known.epoch) == (record.group, record.epoch):
            return
        if record.epoch <= self.state.epoch:
            raise ReplicatorError(f"the copy is of epoch {self.state.epoch} already")
        if self.state.restoring != record.group or self.status is not TargetStatus.PAUSED:
            raise ReplicatorError("the copy does not stand still for a promotion")
        self._paused = self._held = True
        self._data_event(DataEvent.PROMOTED)
        marks = dict(self.applied.marks)
        await self._save(
            epoch=record.epoch,
            fork=marks,
            promotion=record,
            owned=True,
            restoring="",
            closed=record.group,
        )
        self._changed()

    async def seal(self) -> None:
        """What is changed here from now on is captured, and no longer any business of this copy."""
        if self.is_promoted and self.state.closed:
            await self._save(closed="")

    @property
    def is_promoted(self) -> bool:
        """Whether this host owns the data, and not the source."""
        promotion = self.state.promotion
        return self.state.owned and promotion is not None and promotion.epoch == self.state.epoch

    async def learn(self, record: Promotion) -> None:
        """Another host owns the data of its source from now on: that one is refused."""
        if record.epoch > self.state.epoch:
            await self._save(epoch=record.epoch, fork=dict(self.applied.marks), promotion=record)

    async def take_into_use(self) -> None:
        """From now on the copy is changed here: nothing is applied until the source was chosen to survive."""
        if self.status is not TargetStatus.PAUSED:
            raise ReplicatorError("it is written by its source: pause it first (dtctl target pause)")
        if self.state.data_state not in (TargetDataState.OK, TargetDataState.RESTORE_REQUIRED):
            raise ReplicatorError(f"the copy is no state that its source was in: {self.state.data_state}")
        self._data_event(DataEvent.USED)
        await self._save()
        self._changed()

    def choose_source(self) -> None:
        """A mirror arrives that a person has forced: go on."""
        if self.state.data_state is TargetDataState.RESTORE_REQUIRED:
            self._source_chosen = True
            self.resume()

    def stop(self) -> None:
        """`run` returns after the operation in progress."""
        self._stopping = self._held = True
        self._wake.set()
        self._stir()

    # --- applying ---

    async def run(self) -> None:
        """Apply what is in the spool and what comes, until `stop`. Raises JournalError if the spool is
        damaged.
        """
        self._in_doubt = self._comes_again or (
            not self.state.clean and self._spool.head != self.applied.spool
        )
        if self.state.data_state is TargetDataState.RESTORE_REQUIRED and not self._source_chosen:
            self.pause()
        if self.state.restoring:
            self._held = True
            self._apply_state.happen(ApplyEvent.PAUSE)
        try:
            if self.state.connect is not None:
                await self._configure(self.state.connect)
            while not self._stopping:
                self._heed_orphan_actions()
                frame = self._spool.read() if not self._stands_still else None
                if frame is not None:
                    self._look_afresh()
                    await self._apply_frame(frame)
                    self._since_breath += 1
                    if trio.current_time() - self._orphan_step_s >= limits.ORPHAN_PAUSE_S:
                        self._remove_orphans()
                    if self._since_breath >= _BREATH_OPERATIONS:
                        await self._breathe()
                    continue
                if self._stands_still:
                    self._apply_state.happen(ApplyEvent.HELD)
                else:
                    self._in_doubt = self._comes_again
                    self.drained = True
                    self._stir()
                    if self._remove_orphans():
                        await self._breathe()
                        continue
                    self._changed()
                self._wake = trio.Event()
                await self._wake.wait()
                self._since_breath = 0
                self._breath_ns = self._world.clock.monotonic_ns()
        except _Stopped:
            pass

    # --- orphans ---

    @property
    def orphans(self) -> OrphanReport:
        """How far their handling is."""
        return self.tree.orphans.report if self.tree is not None else OrphanReport()

    def act_on_orphans(self, action: str) -> None:
        """`pause`, `resume` or `stop` their removal, between two operations."""
        self._orphan_actions.append(action)
        self._wake.set()

    def _heed_orphan_actions(self) -> None:
        while self._orphan_actions and self.tree is not None:
            action, orphans = self._orphan_actions.pop(0), self.tree.orphans
            if action == "pause":
                orphans.pause()
            elif action == "resume":
                orphans.resume()
            elif action == "stop":
                orphans.stop(self._world.clock.wall_ns())
            self._changed()

    def _remove_orphans(self) -> bool:
        """Some of them, between two operations. Whether there were any."""
        tree = self.tree
        if tree is None or not tree.orphans.removing:
            return False
        clock = self._world.clock
        tree.remove_orphans(self.orphan_settings, clock.monotonic_ns, clock.wall_ns())
        self._orphan_step_s = trio.current_time()
        self._unsynced.set()
        return True

    def spool_lost(self) -> None:
        """After `run` has raised JournalError: what is in the spool counts no more; it may be run again."""
        self._comes_again = self._comes_again or self._in_doubt
        self._spool.seek_head()
        applied = self.applied
        applied.spool, applied.done = self._spool.head, 0  # the marks are exact to the operation
        self._page.store(encode(applied))

    def close(self) -> None:
        """After `run`."""
        if self.tree is not None:
            self.tree.close()
            self.tree = None

    async def _apply_frame(self, frame: Spooled) -> None:
        if self.state.clean:
            # From here on the tree is newer than what was durable at the clean stop, whatever becomes of this
            # host.
            await self._save(clean=False)
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
        if self._held:
            await self._hold()
        tree = self.tree
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
            except _FAILURES as error:
                if tolerant and _errno(error) not in _TARGET_IS_ILL:
                    self._refuse_record(journal, record, error)
                    break
                if not tolerant and kind in NAME_KINDS and _errno(error) in _IN_THE_WAY:
                    if kind == Kind.RMDIR:  # what nobody replicates stays, and keeps its directory
                        print(f"kept: {_reason(error)}", file=sys.stderr, flush=True)
                        break
                    # The name was free on the source: what has it here is none of ours.
                    print(f"replaced what was in the way: {_reason(error)}", file=sys.stderr, flush=True)
                    tolerant = True
                    continue
                now = trio.current_time()
                if failing_since is None:
                    failing_since = now
                if _errno(error) not in _TARGET_IS_ILL and (
                    record.path in self._given_up or now - failing_since > limits.APPLY_GIVE_UP_S
                ):
                    # The rest must not wait for one path for ever: the source compares and brings it again.
                    print(f"skipped, to be brought again: {_reason(error)}", file=sys.stderr, flush=True)
                    self._refuse_record(journal, record, error)
                    await self._lost_something()
                    if len(self._given_up) < limits.PROBLEMS_KEPT:
                        self._given_up.add(record.path)
                    break
                # What was in doubt stays so. Otherwise it may be there, without all of its attributes.
                in_doubt = in_doubt or kind in _CREATING
                await self._wait_to_retry(_reason(error), delay_s)
                delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
                # Meanwhile it may have turned out that others have changed the copy.
                tolerant = tolerant or self.state.data_state is not TargetDataState.OK
        if self.status is TargetStatus.RETRYING:
            self._apply_state.happen(ApplyEvent.WORKS)
        if moves(record) and self.drift.follow(self._journals[journal], record):
            await self.changed_by_others(self.drift.since_ns)
        self.operations += 1
        self.last_path = record.path
        self._unsynced.set()
        self._since_breath += 1
        if self._since_breath >= _BREATH_OPERATIONS or (
            self._world.clock.monotonic_ns() - self._breath_ns >= _BREATH_NS
        ):
            await self._breathe()

    def _refuse_record(self, journal: int, record: Record, error: BaseException) -> None:
        """What this record speaks of is not exact now: the mirror has to bring it again."""
        paths = [record.path, record.path2] if record.kind in TWO_PATH_KINDS else [record.path]
        reason = _reason(error)
        self._refuse([Refused(journal, path, record.identity, reason) for path in paths if path])

    async def _breathe(self) -> None:
        self._changed()
        await trio.lowlevel.checkpoint()
        self._since_breath = 0
        self._breath_ns = self._world.clock.monotonic_ns()

    async def _place(self, frame: Spooled, number: int) -> None:
        batch = decode_batch(frame.data)
        self._in_doubt = False  # placing the same batch twice gives the same tree
        delay_s = limits.APPLY_RETRY_FIRST_S
        while True:
            if self._held:
                await self._hold()
            tree = self.tree
            assert tree is not None
            try:
                if self.drift.has_tail:
                    self._note_missing(tree, batch)
                refused = await self._world.in_thread(partial(_placed, tree, batch))
                break
            except OSError as error:
                await self._wait_to_retry(_reason(error), delay_s)
                delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
        if self.status is TargetStatus.RETRYING:
            self._apply_state.happen(ApplyEvent.WORKS)
        if refused:
            self._refuse(refused, batch.number)
        self._unsynced.set()
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
        delay_s = limits.APPLY_RETRY_FIRST_S
        while True:
            if self._held:
                await self._hold()
            tree = self.tree
            assert tree is not None
            try:
                self._look_afresh()
                found = await self._world.in_thread(partial(tree.compare, batch))
                break
            except OSError as error:
                await self._wait_to_retry(_reason(error), delay_s)
                delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
        if self.status is TargetStatus.RETRYING:
            self._apply_state.happen(ApplyEvent.WORKS)
        self.checked.append(Checked(batch.number, encode_findings(found), self.state.mirroring))
        self._frame_done(frame)
        self._changed()

    async def keeps_up(self) -> bool:
        """Wait a little for the end of the spool. False: applying it takes longer, or is held up."""
        with trio.move_on_after(limits.SPOOL_DRAIN_S):
            while not self.drained and not self._held and self.status is TargetStatus.OK:
                await self._idle.wait()
        return self.drained and not self._held

    def place_now(self, batch: Batch) -> bool:
        """Place a batch that has just arrived, past the spool. False: it cannot be now, so it belongs there.

        Without a checkpoint. For a target that keeps up: whatever is in the spool comes first. A batch that a
        kill interrupts was never received: the source reads it again.
        """
        tree = self.tree
        if not self.drained or self._held or not self.state.mirroring or tree is None or takes_long(batch):
            return False
        if self.drift.has_tail:
            return False
        self._look_afresh()
        try:
            refused = _placed(tree, batch)
        except OSError:
            return False  # the target is ill: `run` shows it, and tries again
        if refused:
            self._refuse(refused, batch.number)
        self._unsynced.set()
        self.applied.batches = batch.number
        self._page.store(encode(self.applied))
        self._changed()
        return True

    def _look_afresh(self) -> None:
        if self._stale_descriptors and self.tree is not None:
            self.tree.forget_descriptors()
            self._stale_descriptors = False

    def _frame_done(self, frame: Spooled, *, batches: int | None = None) -> None:
        applied = self.applied
        applied.spool = frame.position
        applied.done = 0
        applied.intent = b""
        if batches is not None:
            applied.batches = batches
        self._page.store(encode(applied))
        self._spool.release(frame.position)
        if self._wanted:
            self._look_at_wanted()
        self._unsynced_bytes += len(frame.data)
        if self._unsynced_bytes >= limits.SYNC_BYTES:
            self._much_unsynced.set()

    # --- the order of the stream also says what kind of target this is ---

    async def _configure(self, connect: Connect) -> None:
        """The maps and journals that count from here on."""
        delay_s = limits.APPLY_RETRY_FIRST_S
        async with self._tree_lock:
            if self.tree is not None:
                self.tree.close()
                self.tree = None
            while True:
                try:
                    self.tree = self._open_tree(self._as_locked(connect))
                    self.tree.suspect(self.state.suspect_since_ns)
                    self.tree.mirror_since(self.state.mirror_since_ns)
                    break
                except (OSError, ReplicatorError) as error:
                    await self._wait_to_retry(_reason(error), delay_s)
                    delay_s = min(delay_s * 2, limits.APPLY_RETRY_MAX_S)
        if self.status is TargetStatus.RETRYING:
            self._apply_state.happen(ApplyEvent.WORKS)
        self.tree_changed.set()
        self.tree_changed = trio.Event()
        self._journals = tuple(journal.journal_id for journal in connect.journals)
        if connect != self.state.connect:
            former = self.state.connect
            self.refused.clear()  # their journals' numbers mean nothing any more
            self._save_refused([])
            self.applied.marks = {k: v for k, v in self.applied.marks.items() if k in self._journals}
            known = former is None or (former.journals == connect.journals and former.maps == connect.maps)
            if former is not None:  # other rules, or another place
                self.tree.orphans.stop(self._world.clock.wall_ns())
            if not known:
                self._data_event(DataEvent.OTHER_PLACE)
            if former is None:  # what is there already was made by others, and is as durable as it will be
                wall_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS
                positions = self._positions
                await self._world.in_thread(partial(positions.save, positions.marks, wall_ns))
            await self._save(connect=connect)

    def _as_locked(self, connect: Connect) -> Connect:
        """What programs of this host have in use is locked no more, whatever the former source wanted."""
        in_use = self.is_promoted and not self.state.closed
        return msgspec.structs.replace(connect, lock=TargetLock.NONE) if in_use else connect

    async def _begin_mirror(self, begin: MirrorBegin) -> None:
        assert self.tree is not None
        self.refused.clear()
        self._save_refused([])
        self._given_up.clear()
        self._stale_descriptors = True  # what others did to the copy is what a mirror is for
        since_ns: int | None = None
        if begin.kind in (FULL, FORCED):
            since_ns = self.state.mirror_since_ns if begin.continued and self.state.mirroring else None
            since_ns = self.tree.clock_ns() if since_ns is None else since_ns
        self.tree.begin_mirror()
        self.tree.mirror_since(since_ns)
        self.tree.orphans.begin(begin.orphans, begin.mirror_id, self._world.clock.wall_ns())
        forced = begin.kind in OVERRULING
        self._data_event(DataEvent.FORCED if forced else DataEvent.MIRROR_BEGINS)
        # Durable, or the next start after a power cut would not know that a mirror needs to be done again.
        await self._save(
            mirroring=True, mirror_id=begin.mirror_id, mirror_since_ns=since_ns, power_lost=False
        )
        self._changed()

    async def _end_mirror(self, end: MirrorEnd) -> None:
        assert self.tree is not None
        # The source has heard of those before the last batch, or it would not have ended the mirror.
        self.refused = deque(r for r in self.refused if r.batches >= self.applied.batches)
        self._save_refused(list(self.refused))
        self.tree.forget_links()
        await self._world.in_thread(partial(_give_up_transfers, self.tree))
        decide = partial(
            self.tree.orphans.end,
            end.mirror_id,
            end.complete and end.orphans,
            self.orphan_settings,
            self._world.clock.wall_ns(),
        )
        await self._world.in_thread(decide)
        self._data_event(DataEvent.MIRROR_COMPLETE if end.complete else DataEvent.MIRROR_INCOMPLETE)
        if end.complete:
            self.drift.repaired(end.drift)
            if self.drift.pending:  # reported too late for this mirror
                self._data_event(DataEvent.DRIFT)
        exact = end.complete and not self.drift.pending
        suspect_since_ns = None if exact else self.state.suspect_since_ns
        self.tree.suspect(suspect_since_ns)
        await self._save(mirroring=False, mirror_id=end.mirror_id, suspect_since_ns=suspect_since_ns)
        self._unsynced.set()
        self._much_unsynced.set()  # what is complete is made durable soon
        self._changed()

    async def _lost_something(self) -> None:
        """A journal that says it lost operations: the source brings what is missing, until then this is no
        exact copy.
        """
        if not self.state.mirroring and self.state.data_state is TargetDataState.OK:
            self._data_event(DataEvent.LOSS)
            await self._save()
            self._changed()

    def _data_event(self, event: DataEvent) -> None:
        before = self.state
        data_state = step(DATA, before.data_state, event)
        drifted = event is DataEvent.DRIFT and (before.drifted or before.data_state is TargetDataState.OK)
        self.state = msgspec.structs.replace(before, data_state=data_state, drifted=drifted)

    def tell(self) -> None:
        """There is something new to tell the source."""
        self._changed()

    async def changed_by_others(self, since_ns: int | None) -> None:
        """Something was added to `drift`. `since_ns`: it is not known what, but all of it was changed since
        then.
        """
        self._data_event(DataEvent.DRIFT)
        self._stale_descriptors = True  # a directory that is kept open may be another one, or none
        if since_ns is not None:
            former_ns = self.state.suspect_since_ns
            since_ns = since_ns if former_ns is None else min(former_ns, since_ns)
            if self.tree is not None:
                self.tree.suspect(since_ns)
            await self._save(suspect_since_ns=since_ns)
        else:
            await self._save()
        self._changed()

    # --- trouble ---

    def _refuse(self, refused: list[Refused], batches: int | None = None) -> None:
        """Keep refusals until the source has surely heard of them: it never has more batches under way than
        this.
        """
        number = self.applied.batches if batches is None else batches
        self.refused.append(RefusedBatch(number, encode_refused(refused), batches or 0))
        self.refusals += 1
        while (
            len(self.refused) > limits.PIECES_IN_FLIGHT
            and self.refused[0].batches < number - limits.PIECES_IN_FLIGHT
        ):
            self.refused.popleft()
        self._save_refused(list(self.refused))
        self._changed()

    async def _wait_to_retry(self, reason: str, delay_s: float) -> None:
        if reason != self.reason:
            print(f"retrying: {reason}", file=sys.stderr, flush=True)
        self._apply_state.happen(ApplyEvent.FAIL, reason)
        with trio.move_on_after(delay_s):
            while not self._held:
                self._wake = trio.Event()
                await self._wake.wait()
        if self._held:
            await self._hold()

    async def _hold(self) -> None:
        while self._stands_still and not self._stopping:
            self._apply_state.happen(ApplyEvent.HELD)
            self._wake = trio.Event()
            await self._wake.wait()
        if self._stopping:
            raise _Stopped

    def _moved(self, before: TargetStatus, after: TargetStatus, event: ApplyEvent, reason: str) -> None:
        self._stir()
        self._changed()

    def _stir(self) -> None:
        """Those who wait for the end of the spool look again."""
        self._idle.set()
        self._idle = trio.Event()

    # --- durability ---

    @property
    def durable(self) -> Marks:
        """Up to where the copy is on stable storage."""
        return self._positions.marks

    async def keep_durable(self) -> None:
        """Sync the copy while there is something new, and move the durable marks. Until cancelled."""
        if self.applied.marks != self.durable or self.state.mirror_id:
            self._unsynced.set()  # of a predecessor: a source keeps everything until it hears that
        while True:
            await self._unsynced.wait()
            # A sync of many changes costs little more than of one, and what a mirror brings may be repeated.
            delay_s = limits.SYNC_DELAY_MIRRORING_S if self.state.mirroring else limits.SYNC_DELAY_S
            with trio.move_on_after(delay_s):
                await self._much_unsynced.wait()
            self._unsynced = trio.Event()
            self._much_unsynced = trio.Event()
            self._unsynced_bytes = 0
            try:
                await self.make_durable()
            except OSError as error:
                print(f"cannot make the copy durable: {_reason(error)}", file=sys.stderr, flush=True)
                self._unsynced.set()
            await trio.sleep(limits.SYNC_INTERVAL_S)

    async def make_durable(self, *, clean: bool = False) -> None:
        """Everything applied so far is on stable storage, and `durable` says so. OSError.

        `clean`: nothing follows, so that this is still exact in a later boot.
        """
        async with self._tree_lock:
            tree, marks, done_ns = self.tree, dict(self.applied.marks), self.applied.wall_ns
            settled = "" if self.state.mirroring else self.state.mirror_id
            repaired = self.drift.mark()
            wall_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS

            def sync() -> None:
                if tree is not None:
                    tree.sync()
                # After it: a position must never be ahead of the copy.
                self._positions.save(marks, wall_ns, done_ns)

            await self._world.in_thread(sync)
            self._is_secured(marks)
            self.settled = settled
            self.drift.settle(repaired)
            self._stale_descriptors = True
        if clean:
            await self._save(clean=True)
        self._changed()

    # --- what somebody waits for ---

    def want_secured(self, wanted: dict[str, int]) -> None:
        """A program on the source waits until everything up to these sequences is secured."""
        self.is_waited_for = True
        for journal_id, sequence in wanted.items():
            if sequence > max(self._wanted.get(journal_id, 0), _sequence(self.secured, journal_id)):
                self._wanted[journal_id] = sequence
        self._look_at_wanted()

    def _look_at_wanted(self) -> None:
        marks = self.applied.marks
        if any(_sequence(marks, journal_id) >= wanted for journal_id, wanted in self._wanted.items()):
            self._secure_now.set()

    def _is_secured(self, marks: Marks) -> None:
        self.secured = marks
        before = len(self._wanted)
        self._wanted = {
            journal_id: wanted
            for journal_id, wanted in self._wanted.items()
            if wanted > _sequence(marks, journal_id)
        }
        if len(self._wanted) < before:
            self.answered()

    async def keep_secure(self) -> None:
        """Sync the copy at once when somebody waits for what is applied. Until cancelled.

        Those that come to wait meanwhile share the next sync. The durable marks follow later, as ever.
        """
        while True:
            await self._secure_now.wait()
            self._secure_now = trio.Event()
            try:
                async with self._tree_lock:
                    tree, marks = self.tree, dict(self.applied.marks)
                    if tree is not None:
                        await self._world.in_thread(tree.sync)
                    self._is_secured(marks)
            except OSError as error:
                print(f"cannot sync the copy: {_reason(error)}", file=sys.stderr, flush=True)
                await trio.sleep(limits.APPLY_RETRY_FIRST_S)
            self._look_at_wanted()

    async def know_source(self, source_uuid: str, source_name: str) -> None:
        if (source_uuid, source_name) != (self.state.source_uuid, self.state.source_name):
            await self._save(source_uuid=source_uuid, source_name=source_name)

    async def _save(self, **changes: object) -> None:
        async with self._save_lock:
            state = msgspec.structs.replace(self.state, boot_id=self._world.clock.boot_id(), **changes)
            await self._world.in_thread(lambda: self._state_file.save(state))
            # Meanwhile these may have changed, and only these.
            self.state = msgspec.structs.replace(
                state, data_state=self.state.data_state, drifted=self.state.drifted
            )


def _sequence(marks: Marks, journal_id: str) -> int:
    position = marks.get(journal_id)
    return position.sequence if position is not None else 0


def _placed(tree: Tree, batch: Batch) -> list[Refused]:
    """What was refused of it. OSError if the whole target is ill."""
    try:
        return tree.place(batch)
    except OSError:
        raise
    except _FAILURES as error:
        return [Refused(batch.journal, e.path, NO_IDENTITY, _reason(error), False) for e in batch.entries]


def _give_up_transfers(tree: Tree) -> None:
    try:
        tree.give_up_transfers()
    except OSError as error:  # they only take room
        print(f"unfinished files are left: {_reason(error)}", file=sys.stderr, flush=True)


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


class _Stopped(Exception):
    """Applying ends between two operations."""


def _errno(error: BaseException) -> int:
    number = getattr(error, "errno", 0)
    return number if isinstance(number, int) else 0


def _reason(error: BaseException) -> str:
    """One line: what failed on which path, and why."""
    if isinstance(error, OSError):
        where = f"{shown(os.fsencode(error.filename))}: " if error.filename else ""
        return where + (error.strerror or str(error))
    return str(error)
