"""The mirror runs of a sender: how one begins and ends, and how it is taken up after an interruption.

One run at most is under way. What is left to bring is the business of the flows' orders; a run is the frame
around it: kind, options, counters. All changes happen between two checkpoints.
"""

import uuid
from collections.abc import Callable

import trio

from replicator import limits
from replicator.mirror.mirroring import (
    CHECKSUM,
    FORCED,
    FULL,
    KINDS,
    RECOVERY,
    MirrorRun,
)
from replicator.net.frames import Connected
from replicator.ops import Identity
from replicator.orphans import MIRROR
from replicator.sender.changes import Changes, Wake
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.known_copy import KnownCopy
from replicator.sender.mix import Mix
from replicator.sender.pace import Pace
from replicator.sender.sender_state import SenderStateFile
from replicator.sender.sent_pieces import SentPieces
from replicator.states import COMPLETE, MirrorEvent
from replicator.status import MirrorStatus, TargetDataState
from replicator.world import World

MIRROR_BEGINS = "mirror begins"
NOT_BY_ITSELF = "automatic recovery is off"


class Mirrors:
    """`shipper` and `scanner` wake who work for the run under way; `sent` is what of it is in the stream.

    `moved(status, event, reason)` hears of each step of the mirror status. `automatic`: recoveries begin by
    themselves (DC-22).
    """

    def __init__(
        self,
        world: World,
        flows: list[Flow],
        copy: KnownCopy,
        memory: SenderStateFile,
        changes: Changes,
        moved: Callable[[MirrorStatus, str, str], None],
        dirt: Dirt,
        remirror: str,
        pace: Pace,
        sent: SentPieces,
        *,
        shipper: Wake,
        scanner: Wake,
        automatic: bool = True,
        checksum_all: bool = False,
    ) -> None:
        """`remirror`: what brings what was only tracked (AD-10), see `limits.REMIRROR`. `checksum_all`: a
        mirror that compares blocks compares those of all files (MR-05).
        """
        self.checksum_all = checksum_all
        self.automatic = automatic
        self.pace = pace
        self.mix = Mix(flows)
        self.run: MirrorRun | None = None
        self.last: MirrorRun | None = None
        self.was_exact = False
        """The target was exact, until it had to give a single path up; or it is about to be: the end of a
        complete run is in the stream, and it has not said so yet.
        """
        self.dirt = dirt
        self.remirror = remirror
        self.drift: Callable[[MirrorRun, bool], None] = lambda run, begins: None
        """Hears of each run that begins, and of each that has ended complete: see `DriftRepair.heed`."""
        self._world = world
        self.ended: Callable[[MirrorRun], None] = lambda run: None
        """Hears of each run that has ended."""
        self._flows = flows
        self._copy = copy
        self._memory = memory
        self._changes = changes
        self._moved = moved
        self._sent = sent
        self._shipper = shipper
        self._scanner = scanner
        self._ended: tuple[MirrorRun, list[int]] | None = None  # and where in each journal
        # Number of the last comparison: larger than any of an earlier process.
        self._comparisons = world.clock.wall_ns() // 1000
        self.orphans_wanted = False
        self._to_settle = ""  # id of a complete run that is not durable on the target yet

    # --- beginning and ending ---

    def begin(
        self,
        kind: str,
        *,
        exact: bool,
        newer: bool = False,
        checksum: bool = False,
        distrust_ctime_after_ns: int | None = None,
        lost: bool = False,
        continued: bool = False,
    ) -> MirrorRun:
        """Bring the whole set. `exact`: and remove what the source does not have. `newer`, `checksum`: see
        `mirror/comparison.py`.

        `distrust_ctime_after_ns`: files changed later are sent whole, whatever size and mtime say. `lost`:
        what the target lacks is not known. `continued`: the target is in the middle of a mirror of a
        predecessor of this process.
        """
        exact_now = not lost and self.is_exact_now  # should it be stopped, what is folded is enough to know
        unfinished_ns = self._memory.state.mirror_started_wall_ns
        if unfinished_ns is not None:  # what an earlier run had left to bring was not shipped either
            given_ns = distrust_ctime_after_ns
            distrust_ctime_after_ns = unfinished_ns if given_ns is None else min(given_ns, unfinished_ns)
        started_ns = distrust_ctime_after_ns
        if started_ns is None:
            started_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS
        run = self._new_run(
            kind, exact, started_ns, newer=newer, checksum=checksum, track=exact_now, settled=False
        )
        run.continued = continued and kind in (FULL, FORCED)
        run.orphans, run.lists_names = MIRROR, self.orphans_wanted
        run.distrust_ctime_after_ns = distrust_ctime_after_ns
        for flow in self._flows:
            flow.forget_mirror()
            flow.broken_off_bytes = 0
            flow.all_required = True
            flow.order.begin(flow.filter.roots)
        self.drift(run, True)
        self.wake_workers()
        return run

    def begin_recovery(self) -> MirrorRun:
        """Bring some paths only; the orders are told by the caller which."""
        started_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS
        dirt = self.dirt
        exact_now = self.is_exact_now
        lacking = dirt.outstanding and (not dirt.known or bool(dirt.told))
        partial = lacking if dirt.active else not exact_now
        settled = self._memory.state.settled and (dirt.active or exact_now)
        # If it is interrupted, everything is compared, and what the source does not have is removed.
        run = self._new_run(RECOVERY, True, started_ns, track=exact_now, settled=settled)
        run.exact = False
        run.some_paths = True
        run.partial = partial
        for flow in self._flows:
            flow.order.begin(())
        self.drift(run, True)
        self._sent.announced = ""
        self._shipper.ring()
        return run

    @property
    def is_exact_now(self) -> bool:
        """Whether the target is an exact copy of where the stream is."""
        return self.run is None and (self._copy.is_exact or self.was_exact)

    def recover_tracked(self) -> MirrorRun:
        """Bring all that the target may lack, in a run of its own."""
        if self.run is not None:
            self.forget_run()
        run = self.begin_recovery()
        run.partial = False
        self.dirt.bring()
        self.recover(self.dirt.require)
        return run

    def forget_run(self) -> None:
        """Another run brings what this one had left."""
        for flow in self._flows:
            flow.forget_mirror()
        self._sent.clear()

    def recover(self, require: Callable[[Flow], None]) -> MirrorRun:
        """Bring what is known to be old: `require` asks the order of each flow for names, regions and paths.
        All else the target must have.
        """
        run = self.run or self.begin_recovery()
        run.exact = True  # what is gone was removed while both sides were apart
        for flow in self._flows:
            flow.order.active = True
            with run.expecting(flow.order):
                require(flow)
        self.wake_workers()
        return run

    def recovering(self, flow: Flow, *, exact: bool) -> MirrorRun:
        """The run that brings single paths of this flow: the order is told by the caller which. `exact`: and
        removes what the source does not have.
        """
        run = self.run or self.begin_recovery()
        run.exact = run.exact or exact
        flow.order.active = True
        self.wake_scanner()
        return run

    def recover_paths(self, flow: Flow, paths: list[bytes]) -> None:
        """Bring these, of which no record says that the target lacks them."""
        self.recovering(flow, exact=True)
        for path in paths:
            flow.order.require(path)
            self.dirt.add(flow, path)

    def compare(
        self, flow: Flow, path: bytes, identity: Identity, links: int, *, elsewhere: bool = False
    ) -> None:
        """The target has an old copy of that file at `path`, or `elsewhere`: compare their blocks."""
        self._comparisons += 1
        flow.order.require_compared(
            path, identity, self._comparisons, multilink=links > 1, elsewhere=elsewhere
        )
        self._scanner.ring()

    def ask_begun(self, flow: Flow, path: bytes, identity: Identity, links: int) -> int:
        """The target may have a part of that file: bring what it lacks. Returns the number it is asked by."""
        self._comparisons += 1
        flow.order.require_begun(path, identity, self._comparisons, multilink=links > 1)
        self._scanner.ring()
        return self._comparisons

    def distrust_since(self, wall_ns: int, now: bool) -> None:
        """Operations since then did not come into the stream: whoever compares instead of bringing what they
        changed must not believe size and mtime of files with a later ctime. That is a successor of this
        process; `now`: this run as well. 0: nobody knows when that was.
        """
        self.hold()
        run, state = self.run, self._memory.state
        assert run is not None
        state.mirror_exact = True
        since_ns = max(wall_ns - limits.FILE_CLOCK_STEP_NS, 0)
        if now:
            former_ns = run.distrust_ctime_after_ns
            run.distrust_ctime_after_ns = since_ns if former_ns is None else min(former_ns, since_ns)
        if state.mirror_started_wall_ns is None or since_ns < state.mirror_started_wall_ns:
            state.mirror_started_wall_ns = since_ns
            self._memory.save()

    def begin_wanted(
        self,
        kind: str,
        *,
        exact: bool,
        distrust_ctime_after_ns: int | None = None,
        continued: bool = False,
    ) -> MirrorRun:
        """The mirror that was asked for begins again, with its options; or a recovery, which has none."""
        state = self._memory.state
        wanted = kind in KINDS and kind == state.mirror_wanted
        return self.begin(
            kind,
            exact=exact,
            newer=wanted and state.mirror_newer,
            checksum=wanted and state.mirror_checksum,
            distrust_ctime_after_ns=distrust_ctime_after_ns,
            continued=continued,
        )

    def _new_run(
        self,
        kind: str,
        exact: bool,
        started_wall_ns: int,
        *,
        newer: bool = False,
        checksum: bool = False,
        track: bool,
        settled: bool,
    ) -> MirrorRun:
        """`track`: the target is exact now, so that what is folded from here on is all that it may lack."""
        world = self._world
        identifier = str(uuid.UUID(int=world.random.getrandbits(128)))
        run = MirrorRun(
            identifier,
            kind,
            exact,
            world.clock.monotonic_ns(),
            newer=newer,
            # What begins by itself compares blocks where that is what brings what a target lacks.
            checksum=checksum or (kind not in KINDS and self.remirror == CHECKSUM),
            checksum_all=checksum and self.checksum_all,
            restored=bool(self._memory.state.restored),
            moved=self._step,
        )
        self.run = self.last = run
        if track and not self.dirt.active:
            self.dirt.begin(told=identifier)
        self.dirt.tell(identifier)
        state = self._memory.state
        taken_up = state.mirror_wanted is not None  # what an earlier one, or a predecessor, had left
        paused = taken_up and state.mirror_paused
        run.by_itself = kind == RECOVERY
        state.mirror_wanted, state.mirror_exact = kind, exact
        state.mirror_newer, state.mirror_checksum = newer, checksum
        unfinished_ns = state.mirror_started_wall_ns
        state.mirror_started_wall_ns = (
            started_wall_ns if unfinished_ns is None else min(started_wall_ns, unfinished_ns)
        )
        state.mirror_paused = paused
        state.settled = settled
        self._memory.save()
        self.was_exact = False
        self._to_settle = ""
        self._moved(run.status, MIRROR_BEGINS, kind)
        if paused:
            run.happen(MirrorEvent.PAUSE, "it was paused before")
        return run

    def _step(self, before: MirrorStatus, after: MirrorStatus, event: MirrorEvent, reason: str) -> None:
        if event is not MirrorEvent.END:  # which says how, see `end`
            self._moved(after, event, reason)

    def forget_end(self) -> None:
        """What has ended is not all that the target lacks."""
        self._ended = None

    def end(self, complete: bool) -> None:
        """The end of the run is in the stream (or it never began there)."""
        run = self.run
        assert run is not None
        run.finished_ns = self._world.clock.monotonic_ns()
        run.happen(MirrorEvent.END)
        run.complete = self.was_exact = complete
        if complete:
            self.drift(run, False)
        self._ended = (run, [flow.position.sequence for flow in self._flows])
        self.run = None
        if complete:
            self.dirt.brought()
            self._to_settle = run.run_id
        state = self._memory.state
        state.mirror_wanted = None
        if complete:  # else its successor must not believe what was not shipped meanwhile
            state.mirror_started_wall_ns = None
        state.mirror_paused = state.mirror_by_hand = False
        self._memory.save()
        self._moved(MirrorStatus.IDLE, MirrorEvent.END, COMPLETE if complete else "not complete")
        self.ended(run)
        self._changes.notify()

    # --- the next session ---

    def resume(self, connected: Connected, lost: bool, *, was_exact: bool) -> None:
        """Bring the run in line with what the target has. `lost`: operations between its position and ours
        are neither in the journal nor tracked, so everything is compared. `was_exact`: so the target was
        heard to be last.

        What the stream will jump over is for `bring_tracked`.
        """
        run, state = self.run, self._memory.state
        self.was_exact = False
        knows = None not in connected.received
        if connected.data_state == TargetDataState.RESTORE_REQUIRED:  # and the source was chosen
            self.begin(FORCED, exact=True)
        elif lost:
            distrust_ns = self._maybe_torn_after_ns()
            self.begin(RECOVERY, exact=True, distrust_ctime_after_ns=distrust_ns, lost=True)
        elif connected.power_lost and not self.dirt.active:  # what was brought by mirrors may be torn
            partial_run = run is not None and run.some_paths
            self.begin_wanted(
                RECOVERY if partial_run else state.mirror_wanted or RECOVERY,
                exact=state.mirror_exact,  # of the last one, if none runs: what it removed may be back
                distrust_ctime_after_ns=state.mirror_started_wall_ns,
            )
        elif run is not None and not (knows or run.partial or run.stopped):
            self.begin_wanted(  # nothing that it has brought is there any more
                run.kind, exact=run.exact, distrust_ctime_after_ns=state.mirror_started_wall_ns
            )
        elif run is not None:
            self.take_up(connected)
        elif connected.mirroring and self._ended is not None and self._ended[0].run_id == connected.mirror_id:
            self._end_again()  # the target has not heard that it was complete
        elif connected.mirroring:  # of a predecessor of this process, which died
            self._begin_again(state.mirror_wanted or RECOVERY, continued=True)
        elif connected.data_state == TargetDataState.OK:
            # Perhaps a predecessor has brought what was dirty: known for good when it is durable.
            self._to_settle = connected.mirror_id
        elif state.mirror_wanted is not None:
            self._begin_again(state.mirror_wanted)
        elif connected.data_state == TargetDataState.MIRROR_REQUIRED:
            # Exact but for what it will say: since the last session others have changed something there, or
            # single paths could not be kept up to date.
            self.was_exact = was_exact and knows and not connected.power_lost and not self.dirt.told
        if self.run is not None and connected.mirroring:
            self._go_on_with_begun()
        self.hold()

    def _go_on_with_begun(self) -> None:
        """The target was interrupted in a mirror: it may have parts of large files."""
        for flow in self._flows:
            flow.order.begun_questions = limits.BEGUN_QUESTIONS
            flow.times_again.update(flow.filter.roots)  # it may have died when it had made or named one there

    def take_up(self, connected: Connected) -> None:
        """The run under way goes on: what the target did not receive of it is brought again."""
        run, sent = self.run, self._sent
        if run is None:
            return
        for flow in self._flows:
            run.done_bytes -= flow.broken_off_bytes
            flow.broken_off_bytes = 0
        known = connected.mirroring and connected.mirror_id == run.run_id
        sent.forget_after(connected.stream_batches if known else 0)
        if not known:
            sent.announced = ""

    @property
    def brings_everything(self) -> bool:
        """Whether what mirrors of the whole set brought may not be durable on the target, or one runs."""
        run, state = self.run, self._memory.state
        if run is not None:
            return run.kind != RECOVERY or not run.some_paths
        return not state.settled or state.mirror_wanted in (*KINDS, FORCED)

    @property
    def is_settled(self) -> bool:
        """Nothing is being brought, and all that was is durable on the target."""
        return self.run is None and not self._to_settle

    def settle(self, settled_id: str, *, kept: bool) -> bool:
        """The target says that all the mirror of this id brought is durable. `kept`: the journals have all
        that is not. Whether nothing is dirty any more.
        """
        dirt = self.dirt
        if self.run is not None or not self._copy.is_exact or not kept:
            return False
        if self._to_settle and settled_id == self._to_settle:
            self._to_settle = ""
            if not self._memory.state.settled:
                self._memory.state.settled = True
                self._memory.save()
            if not dirt.active:  # everything was compared instead of what was tracked
                self._restore_known()
        elif self._to_settle or dirt.told:
            return False
        if not dirt.active or dirt.outstanding:
            return False
        self._restore_known()  # first: that it is to be told, and nothing is tracked, means a loss
        dirt.clear()
        return True

    def restored(self, restore: str, *, complete: bool) -> None:
        """The source was restored from the copy, or only in part. Whatever had been left to bring before is
        void.
        """
        state = self._memory.state
        state.restored, state.restored_last = restore if complete else "", restore
        state.mirror_wanted = state.mirror_started_wall_ns = None
        state.mirror_paused = state.mirror_by_hand = state.pending = False
        state.settled = state.exact = True  # the copy was durable before it was read
        self._memory.save()

    def _restore_known(self) -> None:
        """The copy has heard of it, for good."""
        if self._memory.state.restored:
            self._memory.state.restored = ""
            self._memory.save()

    def _begin_again(self, kind: str, *, continued: bool = False) -> None:
        state = self._memory.state
        if kind == RECOVERY and self.dirt.active and self.dirt.sufficient:
            self.recover_tracked()
            return
        self.begin_wanted(
            kind,
            exact=state.mirror_exact,
            distrust_ctime_after_ns=state.mirror_started_wall_ns,
            continued=continued,
        )

    def _end_again(self) -> None:
        assert self._ended is not None
        run, ends = self._ended
        run.finished_ns = None
        self.run = run
        run.happen(MirrorEvent.TAKEN_UP)
        self._sent.announced = run.run_id
        for flow, end in zip(self._flows, ends, strict=True):
            flow.order.active = True
            flow.order.scanned_head = end

    def _maybe_torn_after_ns(self) -> int:
        """If it was power loss that took the journal: a file changed here since then may have lost content
        that the target has, and kept size and mtime.
        """
        state = self._memory.state
        after_ns = max(state.alive_wall_ns - limits.UNSYNCED_MAX_NS, 0)
        interrupted_ns = state.mirror_started_wall_ns
        return after_ns if interrupted_ns is None else min(after_ns, interrupted_ns)

    @property
    def status(self) -> MirrorStatus:
        run = self.run
        if run is None:
            return MirrorStatus.IDLE
        if run.looks_for_orphans and run.status is MirrorStatus.MIRRORING:
            return MirrorStatus.REMOVING_ORPHANS
        return run.status

    def want_orphans(self, wanted: bool) -> None:
        """Whether the target's settings have mirrors handle its orphans."""
        self.orphans_wanted = wanted
        if self.run is not None and self.run.orphans == MIRROR:
            self.run.lists_names = wanted

    @property
    def forced(self) -> bool:
        """Whether the source was chosen, or restored from the copy, and the target does not know yet."""
        return self._memory.state.mirror_wanted == FORCED or bool(self._memory.state.restored)

    def hold(self) -> None:
        """Something has to be recovered: if not by itself, when a person says so (DC-22)."""
        run = self.run
        if run is None or not run.by_itself or run.paused or run.stopped:
            return
        if not self.automatic and not self._memory.state.mirror_by_hand:
            self.set_paused(run, True, NOT_BY_ITSELF)

    def set_paused(self, run: MirrorRun, paused: bool, reason: str) -> None:
        """Also for a successor of this process."""
        run.happen(MirrorEvent.PAUSE if paused else MirrorEvent.RESUME, reason)
        run.other_pace(self._world.clock.monotonic_ns())
        self._memory.state.mirror_paused = paused
        self._memory.save()
        self._changes.notify()

    # --- beside it ---

    def wake_workers(self) -> None:
        """There may be something to bring, and to ship."""
        self._scanner.ring()
        self._shipper.ring()

    def wake_scanner(self) -> None:
        """There may be something to read, or room for what is read: see `may_scan`."""
        self._scanner.ring()
        self._changes.notify()

    async def may_scan(self) -> None:
        """Return when the scanner may take a step."""
        while True:
            run, pause_s = self.run, None
            if run is None or run.paused or run.stopped:
                self.pace.rest()
            elif self._sent.may_send():
                pause_s = self.pace.pause_s(in_flight=self._sent.queued > 0)
                if pause_s == 0:
                    if not self.mix.holds:
                        self.mix.step()
                        return
                    pause_s = limits.MIX_LOOK_S
            with trio.move_on_after(float("inf") if pause_s is None else pause_s):
                await self._changes.wait()
