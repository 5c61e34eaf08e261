"""The sender: one process per connection, on the source.

Connects, ships journals and pieces in order, reconnects, resumes. `Sender` has its edges (World, flows)
given, so that the simulator runs it as it is; `main` puts it in a process.
"""

import errno
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from replicator import limits
from replicator.agent import control, interpreter
from replicator.agent.changes import Changes
from replicator.agent.connection_states import ConnectionStates
from replicator.agent.continuation import goes_on_at, is_exact
from replicator.agent.dirt import Dirt
from replicator.agent.drift_repair import DriftRepair
from replicator.agent.flow import Flow
from replicator.agent.introduction import CopyInUse, introduce, peer_address, reason_of, what_ended
from replicator.agent.lag_watch import LagWatch
from replicator.agent.mirroring import RECOVERY, remirror_kind
from replicator.agent.mirrors import Mirrors
from replicator.agent.orphan_control import OrphanControl
from replicator.agent.pace import Pace
from replicator.agent.recovery_status import recovery_text
from replicator.agent.scanner import Scanner
from replicator.agent.sender_arguments import SenderArguments
from replicator.agent.sender_journals import open_flows
from replicator.agent.sender_state import SenderState, SenderStateFile
from replicator.agent.shipper import RootChanged, Shipper
from replicator.agent.states import DataEvent, MirrorEvent, ReplicationEvent, TransmitEvent
from replicator.agent.story import Story
from replicator.agent.tracking import Tracker, row_at
from replicator.agent.why import explain
from replicator.errors import JournalError, ProtocolError, ReplicatorError
from replicator.mirror.pieces import Refused, decode_refused
from replicator.mirror.scan import join
from replicator.net.engine import Engine, Event, Role
from replicator.net.frames import (
    Acknowledge,
    Connected,
    Disconnect,
    Drift,
    Orphans,
    PiecesRefused,
    TargetState,
)
from replicator.net.session import Session, SessionEnded
from replicator.ops import START, Position, shown
from replicator.orphans import OrphanReport
from replicator.paths import Home
from replicator.queue.cursor import UnreadableJournal
from replicator.queue.dirty_tree import parent_of
from replicator.queue.journal import JournalSettings
from replicator.status import (
    ConnectionStatus,
    Dimension,
    Lag,
    MirrorProgress,
    RecoveryStatus,
    ReplicationStatus,
    TargetDataState,
    TargetStatus,
    TransmitMode,
)
from replicator.world import World

_NOWHERE = frozenset({os.strerror(errno.ENOENT), os.strerror(errno.ENOTDIR)})


class Sender:
    """See the module.

    `run` until `stop`; everything else may be called from other tasks of the same trio run.
    """

    def __init__(self, world: World, arguments: SenderArguments, flows: list[Flow]) -> None:
        self._world = world
        self._arguments = arguments
        self._flows = flows
        self._agent_bell = Home(arguments.home).bell
        options = arguments.options
        self._memory = SenderStateFile(
            world,
            Home(arguments.home).source(arguments.connection_uuid),
            SenderState(
                replicating=options.replicate,
                mirror_wanted=options.mirror,
                mirror_exact=options.orphans == "delete",
            ),
        )
        self.story = Story(world, Home(arguments.home).story(arguments.connection_uuid))
        self._lag = LagWatch(world, flows)
        self._changes = Changes(self._tell_agent)
        self.dirt = Dirt(world, Home(arguments.home).dirt(arguments.connection_uuid), flows)
        self._states = ConnectionStates(
            self._memory, self.story, lambda: self._mirrors.run is not None, self._changes.notify
        )
        self._pace = Pace(world.clock, options.recovery_share)
        self._mirrors = mirrors = Mirrors(
            world,
            flows,
            self._memory,
            self._changes,
            self._states.mirror_moved,
            self.dirt,
            remirror_kind(options.remirror),
            self._pace,
            automatic=options.automatic_recovery,
        )
        self._reconnect = options.reconnect
        self._tracker = Tracker(
            world,
            flows,
            self.dirt,
            self._hears_of_changes,
            self._queue_exhausting,
            self._let_journals_forget,
        )
        self.shipper = Shipper(
            flows,
            lambda: mirrors.run,
            mirrors.begin_recovery,
            mirrors.distrust_since,
            self._run_ends,
            self._wake_scanner,
            lambda: self._scanner.idle,
            self._lag,
            self._pace,
            self.dirt,
            self._tracker.stir,
            self._tracker.end,
            self._catch_up,
        )
        self.shipper.replicating = self._states.replicating
        # Larger than any number of an earlier process: late acknowledgements cannot be confused.
        self.shipper.batches = world.clock.wall_ns() // 1000
        self._scanner = Scanner(
            world, flows, lambda: mirrors.run, mirrors.may_scan, self.shipper.wake, self._pace
        )
        mirrors.shipper, mirrors.scanner = self.shipper, self._scanner
        self._orphans = OrphanControl(mirrors, self._changes, lambda: world.doorbells.ring(self._agent_bell))
        self._drift = DriftRepair(flows, mirrors, remove=options.orphans == "delete")
        self._session: Session | None = None
        self._received = [0] * len(flows)
        self._applied = [0] * len(flows)
        self._durable = [0] * len(flows)
        self._connected_since: float | None = None
        self._receiver_pid: int | None = None
        self._target_address = ""  # kept when the session ends: who it was
        self._root_changed = False
        self._attempting = False  # a session uses the flows, or will
        self._leaving = ""  # why the session ends, if it ends to track
        self._torn = False  # the target has lost what was not durable; it is tracked
        self._recover_wanted = False
        self._lost_why = ""
        self._lost_since_ns = 0
        self._target_mirror = ""  # id of the last run it had heard of when the session began
        self._stopping = False
        self.removed = False
        self._transmit_scope: trio.CancelScope | None = None
        self._note_boot(options.reconnect_at_start)

    def _note_boot(self, reconnect: bool) -> None:
        """AD-08: whether to connect by itself after the host was down."""
        boot_id, former = self._world.clock.boot_id(), self._state.boot_id
        if boot_id == former:
            return
        self._state.boot_id = boot_id
        self._memory.save()
        if former and not reconnect and self._states.transmit is not TransmitMode.STOPPED:
            reason = "the host was down, and it is not connected again by itself: `dtctl transmit start`"
            self._states.transmission(TransmitEvent.STOP, reason)

    @property
    def _state(self) -> SenderState:
        return self._memory.state

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection up until `stop` or `disconnect`."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lag.run, self._hears_of_changes)
            nursery.start_soon(self._watch_queue)
            nursery.start_soon(self._tracker.run)
            await self._keep_up()
            nursery.cancel_scope.cancel()
        if not self.removed and self.dirt.changed:  # DC-09
            self.dirt.save()

    async def _keep_up(self) -> None:
        delay_s = limits.RECONNECT_FIRST_S
        while not self._stopping:
            if self._leaving:
                self._track(self._leaving)
            if self._states.transmit not in (TransmitMode.STARTED, TransmitMode.PAUSED):
                await self._changes.wait()
                continue
            self._transmit_scope = trio.CancelScope()
            with self._transmit_scope:
                connected = False
                try:
                    await self._tracker.at_head()
                    connected = await self._session_once()
                except RootChanged as error:
                    self._root_changed = not self._jumps
                    self._states.replicate(ReplicationEvent.FAIL, "a root of the set is gone")
                    self._states.transmission(TransmitEvent.FAIL, str(error))
                    continue
                except (OSError, SessionEnded, ProtocolError, ReplicatorError) as error:
                    connected = self._connected_since is not None
                    retry = getattr(error, "retry", True)
                    reason = reason_of(error, self._target_name)
                    self._states.lost(reason)
                    if retry and connected and not self._reconnect:  # AD-12
                        retry = False
                        reason = f"{reason}; it is not connected again by itself: `dtctl transmit start`"
                    if not retry:
                        self._states.transmission(TransmitEvent.FAIL, reason)
                        continue
                finally:
                    self._session_over()
                if connected:
                    delay_s = limits.RECONNECT_FIRST_S
                if not self._stopping:
                    await trio.sleep(delay_s * (0.75 + self._world.random.random() / 2))
                    delay_s = min(delay_s * 2, limits.RECONNECT_MAX_S)
        self._states.sender_stops()

    @property
    def _target_name(self) -> str:
        return f"{self._arguments.target_host}:{self._arguments.target_port}"

    async def _session_once(self) -> bool:
        """One session, from connecting to its end.

        Raises what ended it.
        """
        arguments = self._arguments
        self._attempting = True
        with trio.fail_after(limits.CONNECT_TIMEOUT_S):
            stream = await self._world.connect(arguments.target_host, arguments.target_port)
        session = Session(stream, Engine(Role.SOURCE))
        try:
            with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                connected = await introduce(session, arguments)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.heartbeat)
                self._orphans.session_begins(connected)
                await self._resume_at(connected)
                self._session = session
                self._target_address = peer_address(stream)
                self._connected_since = self._world.clock.wall_ns() / 1e9
                self._receiver_pid = connected.receiver_pid
                self._states.connected()
                nursery.start_soon(self.shipper.run, session, self._may_ship)
                nursery.start_soon(self._scanner.run)
                nursery.start_soon(self._mirrors.count_sizes)
                nursery.start_soon(self._note_alive)
                while True:
                    self._handle(await session.receive())
        except BaseExceptionGroup as group:
            raise what_ended(group) from None
        except trio.TooSlowError:
            raise OSError(errno.ETIMEDOUT, "no answer in time") from None
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await session.close("sender stops" if self._stopping else "")
        return True

    def _session_over(self) -> None:
        self._attempting = False
        self._session = None
        self._connected_since = None
        self._receiver_pid = None
        for flow in self._flows:
            flow.session_ended()
        self._states.session_over()
        self._lag.wake()
        self._tracker.wake()  # nobody rings from here on

    # --- where to go on ---

    async def _resume_at(self, connected: Connected) -> None:
        """Bring flows, orders and the mirror in line with what the target has."""
        dirt, flows = self.dirt, self._flows
        was_exact = dirt.active or self._state.exact
        self._lost_why = "the journal does not go on where the target is"
        self._lost_since_ns = dirt.distrust_wall_ns if dirt.active else 0  # 0: nobody knows
        self._target_mirror = connected.mirror_id
        self._note_data_state(TargetDataState(connected.data_state))
        self._states.reported_data = self.shipper.data_state
        self._guard_copy()
        unknown = any(mark is None for mark in connected.received)
        torn = connected.power_lost and was_exact and not unknown and not self._mirrors.brings_everything
        lost = False
        if unknown or (connected.power_lost and not torn):
            await self._tracker.end()
            dirt.clear()
        elif (
            dirt.active
            and not (dirt.told or connected.power_lost)
            and self._mirrors.run is None
            and self.shipper.data_state is not TargetDataState.OK
        ):
            dirt.known = False  # it lacks something of which nobody here has heard
        for index, flow in enumerate(flows):
            mark = connected.received[index]
            flow.reached = Position(mark.sequence, mark.chain) if mark is not None else START
            if mark is None:
                # Not the head: what was changed since the connection was made is known here, and a comparison
                # by size and mtime need not find it.
                flow.seek_first()
                lost = (
                    lost or connected.data_state == TargetDataState.OK or (connected.power_lost and was_exact)
                )
                continue
            self._received[index] = mark.sequence
            applied, durable = connected.applied[index], connected.durable[index]
            self._applied[index] = applied.sequence if applied else 0
            self._durable[index] = durable.sequence if durable else 0
        if dirt.active or torn:
            lost = not await self._place_dirty(torn) or lost
        else:
            lost = not self._place_clean(connected) or lost
        if lost:
            await self._tracker.end()
            dirt.clear()
        self._torn = torn and not lost
        self._lag.resume(self._applied, self._durable)
        self._root_changed = self._root_changed and not lost
        if lost:
            self._states.replicate(ReplicationEvent.FAIL, self._lost_why)
        if lost or not (self._torn or self._jumps):
            self._mirrors.resume(connected, lost)
        else:
            self._mirrors.take_up(connected)
        if lost and self._lost_since_ns:
            self._mirrors.distrust_since(self._lost_since_ns, True)

    @property
    def _jumps(self) -> bool:
        """Whether the target is not where the stream goes on, and what is in between is tracked."""
        return self.dirt.active and any(flow.reached not in (None, flow.position) for flow in self._flows)

    def _place_clean(self, connected: Connected) -> bool:
        """The flows go on where the target is. False: not all can. UnreadableJournal: it is tried once more,
        see `Flow.session_ended`.
        """
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
                if self._continue_row(flow, mark.sequence, connected):
                    continue
                flow.seek_head()
                placed = False
                if passed_wall_ns:
                    self._lost_since_ns = min(passed_wall_ns, self._lost_since_ns or passed_wall_ns)
        return placed

    def _refuse_damaged(self, flow: Flow, reached: Position) -> None:
        """AD-03: a journal that could not be read on twice, once the target has all before that place."""
        if flow.damaged_at == reached:
            root = self._arguments.journals[flow.index].root
            self._lost_why = f"the journal of {root} is damaged"
            raise JournalError(self._lost_why)

    def _refuse_root_put_back(self, flow: Flow) -> None:
        if self._root_changed and all(flow.source.exists(root) for root in flow.filter.roots):
            raise JournalError("a person put the root back: what happened between is compared, not repeated")

    def _go_on_dirty(self, flow: Flow) -> None:
        """What is tracked may end in a former row of the journal: go on in the present one. JournalError."""
        tracker = self._tracker
        former = row_at(flow.position) != row_at(flow.cursor.head())
        if former and self.dirt.active and not tracker.tracking and not tracker.continue_row(flow):
            raise JournalError("the journal has begun anew: nobody knows what it has lost")

    async def _place_dirty(self, torn: bool) -> bool:
        """The flows go on where the target is, or where what is tracked ends. False: not all can.

        `torn`: the target has, beyond its durable mark, anything of what was ever sent.
        """
        dirt, tracker = self.dirt, self._tracker
        try:
            for flow in self._flows:
                reached = flow.reached
                assert reached is not None
                self._refuse_root_put_back(flow)
                self._refuse_damaged(flow, reached)
                self._go_on_dirty(flow)
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
                raise  # as in `_place_clean`
            for flow in self._flows:
                flow.seek_head()
            return False
        return True

    def _catch_up(self) -> None:
        """The stream goes on. What it jumps over, or what was not shipped before, is brought by what the dirt
        says.
        """
        dirt, mirrors = self.dirt, self._mirrors
        replicating = self._states.replicating
        wanted, self._recover_wanted = self._recover_wanted, False
        torn, self._torn = self._torn, False
        if not dirt.active:
            return
        if self._jumps or torn:
            self._guard_roots()
            mirrors.bring_tracked(replicating=replicating)
        elif mirrors.run is not None:
            self._recover_wanted = wanted  # when it has ended
        elif self.shipper.data_state is TargetDataState.OK:
            self._bring_what_exact_lacks()
        elif wanted and replicating and dirt.outstanding:
            mirrors.bring_tracked(replicating=True)

    def _bring_what_exact_lacks(self) -> None:
        """The target is an exact copy of where it is, and the stream goes on there."""
        dirt, replicating = self.dirt, self._states.replicating
        if dirt.skipped:  # while a mirror ran that was to be without replication
            if replicating:
                self._mirrors.bring_tracked(replicating=True)
        elif not dirt.told or dirt.told == self._target_mirror:
            dirt.brought()  # it has all of it
        elif dirt.outstanding:  # it has never heard that it lacks something
            self._mirrors.bring_tracked(replicating=replicating)

    def _changed_by_others(self, drift: Drift) -> None:
        """AD-09. A copy that was exact until then lacks no more than one that still is."""
        if drift.exact and self.dirt.active and self._mirrors.run is None and not (self._jumps or self._torn):
            self._bring_what_exact_lacks()
        self._drift.report(drift)

    def _run_ends(self, complete: bool) -> None:
        """The end of a mirror run is in the stream."""
        if complete and self._states.reported_data is TargetDataState.MIRROR_REQUIRED:
            self._states.reported_data = TargetDataState.MIRRORING  # until it has heard of the end
        self._mirrors.end(complete)
        if not complete and self.dirt.outstanding and self._states.replicating:
            self._states.replicate(ReplicationEvent.FAIL, "what the target lacks is not brought")
        if self._recover_wanted:
            self.shipper.jump_pending = True
            self.shipper.wake()

    def _guard_roots(self) -> None:
        """RS-15, for what was tracked."""
        change = self.dirt.root_changed
        for flow in self._flows:
            for root in flow.filter.roots:
                if root and not flow.source.exists(root):
                    change = change or f"the root {shown(root)!r} of the replication set is gone"
        if change:
            raise RootChanged(change)

    def _queue_exhausting(self, reason: str) -> None:
        """AD-01: before a journal is full because of this connection."""
        if self._leaving or self._tracker.tracking:
            return
        self._leaving = reason
        if self._attempting:
            if self._session is not None:
                self._states.lost(f"{reason}: disconnected, and what changes is tracked")
            self._interrupt()
        else:
            self._track(reason)

    def _track(self, reason: str) -> None:
        """Nobody uses the flows."""
        self._leaving = ""
        exact = (self._state.exact or self._mirrors.was_exact) and self._mirrors.run is None
        self._tracker.begin(exact=exact and self._state.mirror_wanted is None)
        self._states.replicate(ReplicationEvent.FAIL, f"{reason}: what changes is tracked")
        self._changes.notify()

    def _let_journals_forget(self) -> None:
        """What is durable on the target, or tracked durably."""
        for flow, durable in zip(self._flows, self._durable, strict=True):
            keep = durable
            if self.dirt.active:
                # What is saved is enough, but takes a recovery: where there is room, the target has it first.
                keep = self.dirt.saved(flow)
                if self._states.replicating and not (self._tracker.tracking or self._tracker.little_room):
                    keep = min(keep, durable)
            flow.cursor.acknowledge(keep)

    def _note_data_state(self, data_state: TargetDataState) -> None:
        self.shipper.data_state = data_state
        exact = data_state is TargetDataState.OK
        if exact is not self._state.exact:
            self._state.exact = exact
            self._memory.save()

    def _continue_row(self, flow: Flow, received: int, connected: Connected) -> bool:
        """The journal has not this record (any more): go on where it tells what is different instead.

        False: it does not.
        """
        exact = self._mirrors.run is None and is_exact(
            connected.data_state, mirroring=connected.mirroring, power_lost=connected.power_lost
        )
        start = None if self._root_changed else flow.cursor.row_start()
        position = goes_on_at(received, start, flow.cursor.covered, exact=exact)
        if position is None:
            return False
        flow.seek(position)
        # If the recovery is interrupted, everything is compared, and nothing that is newer is believed.
        flow.passed_wall_ns = max(self._state.alive_wall_ns - limits.UNSYNCED_MAX_NS, 0)
        return True

    async def _note_alive(self) -> None:
        while True:
            self._state.alive_wall_ns = self._world.clock.wall_ns()
            self._memory.save()
            await trio.sleep(limits.ALIVE_NOTE_S)

    # --- what the target says ---

    def _handle(self, event: Event) -> None:
        if isinstance(event, Acknowledge):
            self._received = list(event.received)
            self._applied = list(event.applied)
            self._durable = list(event.durable)
            self._let_journals_forget()
            kept = all(d >= f.cursor.acknowledged for f, d in zip(self._flows, self._durable, strict=True))
            if self._mirrors.settle(event.settled, kept=kept):
                self._let_journals_forget()
            self._lag.acknowledged(event.received, event.applied, event.durable)
            self.shipper.acknowledged(event.batches_applied)
            if self._mirrors.run is not None:
                self._scanner.wake()
                self.shipper.wake()
            self._changes.notify()
        elif isinstance(event, TargetState):
            if self._mirrors.run is None and self.shipper.data_state is TargetDataState.OK:
                self._mirrors.was_exact = event.data_state == TargetDataState.MIRROR_REQUIRED
            self._note_data_state(TargetDataState(event.data_state))
            self._states.target_says(TargetStatus(event.status), self.shipper.data_state, event.reason)
            if event.queue_full is not self._states.target_queue_full:
                self._states.target_queue(full=event.queue_full)
                self.shipper.wake()
                self._lag.wake()
            self._guard_copy()
            self._changes.notify()
        elif isinstance(event, PiecesRefused):
            for refused in decode_refused(event.refused):
                self._refused_piece(refused)
            self._scanner.wake()
        elif isinstance(event, Orphans):
            self._orphans.told(event)
        elif isinstance(event, Drift):
            what = f"{event.changes} changes, the last of {shown(event.last_path)}"
            self.story.note(Dimension.DATA, self._states.target_data, DataEvent.DRIFT, what)
            self._changed_by_others(event)
            self._changes.notify()

    def _refused_piece(self, refused: Refused) -> None:
        flow, path = self._flows[refused.journal], refused.path
        paths = [join(path, name) for name in refused.names] or [path]
        if self._mirrors.run is None and refused.retry:  # single paths the target could not keep up to date
            self.shipper.recover(flow, paths, exact=True)
            self._mirrors.hold()
        if self._mirrors.run is None or not flow.order.active:
            return
        run = self._mirrors.run
        if not refused.retry and refused.reason in _NOWHERE and run.try_again(path):
            # Others have removed the directory it belongs into: that comes first.
            with run.expecting(flow.order):
                flow.order.require(parent_of(path))
        elif not refused.retry:
            run.problem(path, f"target: {refused.reason}")
        elif refused.names:
            for lacking in paths:
                flow.read_again(lacking)
        else:
            flow.read_again(path, refused.identity)

    # --- commands ---

    def mirror_start(self, kind: str = "difference", orphans: str = "") -> None:
        exact = (orphans or self._arguments.options.orphans) == "delete"
        self._mirrors.start(kind, exact=exact, connected=self._session is not None)

    def orphans_start(self, mode: str) -> str:
        """OR-02, by hand. Returns the id of the run."""
        return self._orphans.start(mode, self._session)

    async def orphans_act(self, action: str) -> None:
        await self._orphans.act(action, self._session)

    def orphans(self) -> OrphanReport:
        """The last report, with names."""
        return self._orphans.report

    def mirror_stop(self) -> None:
        self._mirrors.stop(connected=self._session is not None)

    def mirror_pause(self) -> None:
        self._mirrors.pause()

    def mirror_resume(self) -> None:
        self._mirrors.resume_paused()

    def set_recovery(self, share: float | None = None, automatic: bool | None = None) -> None:
        """How much of its time a recovery or mirror may work; whether a recovery begins by itself."""
        if share is not None and share != self._pace.share:
            self._pace.share = share
            if self._mirrors.run is not None:
                self._mirrors.run.other_pace(self._world.clock.monotonic_ns())
        if automatic is not None:
            self._mirrors.set_automatic(automatic)
        self._changes.notify()

    def force_source(self) -> None:
        """The source survives: what was changed in the copy since it was taken into use is lost (DC-25)."""
        self._mirrors.force()
        self.transmit_start()

    def _guard_copy(self) -> None:
        if self.shipper.data_state is TargetDataState.RESTORE_REQUIRED and not self._mirrors.forced:
            raise CopyInUse

    def recovering(self) -> bool:
        """Whether a recovery or mirror wants to work now."""
        run = self._mirrors.run
        return self._session is not None and run is not None and not run.paused and not run.stopped

    def _wake_scanner(self) -> None:
        self._scanner.wake()
        self._changes.notify()

    def configure(self, remirror: str, reconnect: bool) -> None:
        """The agent's configuration may be another than when this process began."""
        self._mirrors.remirror = remirror_kind(remirror)
        self._reconnect = reconnect

    def replicate_start(self) -> None:
        """RP-01.

        What happened meanwhile was tracked, and is brought; where it was not, a mirror is advised (RP-02).
        """
        self._set_replicating(ReplicationEvent.START)
        if self.dirt.active and self._mirrors.run is None and self._state.mirror_wanted is None:
            self._state.mirror_wanted = RECOVERY  # also if this process ends before it begins
            self._memory.save()
        self._recover_wanted = self.shipper.jump_pending = True
        self.shipper.wake()

    def replicate_stop(self) -> None:
        self._set_replicating(ReplicationEvent.STOP)

    def _set_replicating(self, event: ReplicationEvent) -> None:
        self._states.replicate(event)
        self.shipper.replicating = on = self._states.replicating
        if not on and self._mirrors.run is None and self.shipper.data_state is TargetDataState.OK:
            # Begins and ends in the stream: from here on the copy is not exact.
            self._mirrors.begin_recovery().happen(MirrorEvent.STOP)
        self._changes.notify()
        self.shipper.wake()

    def transmit_start(self) -> None:
        self.dirt.root_changed = ""  # a person has looked
        self._set_transmit(TransmitEvent.START)

    def transmit_stop(self) -> None:
        """The network connection ends, changes are queued here (CS-01 Stopped)."""
        self._set_transmit(TransmitEvent.STOP)
        self._interrupt()

    def transmit_pause(self) -> None:
        """The network connection stays, changes are queued here (CS-01 Paused)."""
        self._set_transmit(TransmitEvent.PAUSE)

    def transmit_resume(self) -> None:
        self._set_transmit(TransmitEvent.RESUME)

    async def wait(self, sequences: dict[str, int], timeout_s: float | None) -> bool:
        """Whether, in that time, everything up to these sequences (by journal id) was applied and no mirror
        runs any more.
        """
        with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")):
            while True:
                if not self._states.replicating:
                    raise ReplicatorError("replication is stopped: `dtctl replicate start`")
                mirrored = (
                    self._mirrors.run is None
                    and self.shipper.data_state is not TargetDataState.MIRRORING
                    and not (
                        self._tracker.tracking
                        or self._jumps
                        or (self.dirt.active and self.shipper.jump_pending)
                    )
                )
                if mirrored and all(
                    applied >= sequences.get(flow.journal_id, 0)
                    for flow, applied in zip(self._flows, self._applied, strict=True)
                ):
                    return True
                await self._changes.wait()
        return False

    async def disconnect(self) -> bool:
        """End the connection for good.

        Returns whether the target was told.
        """
        told = False
        session = self._session
        if session is not None:
            with trio.move_on_after(limits.CONNECT_TIMEOUT_S):
                try:
                    await session.send(Disconnect(self._arguments.connection_uuid))
                    told = True
                except (SessionEnded, OSError):
                    pass
        self.removed = True
        self._lag.close()
        self._tracker.close()
        for flow in self._flows:
            flow.cursor.remove()
        self._memory.remove()
        self.dirt.remove()
        self.story.remove()
        self.stop()
        return told

    def stop(self) -> None:
        """End `run`.

        The connection stays and goes on with the next process.
        """
        self._stopping = True
        self._changes.notify()
        self._interrupt()

    # --- status ---

    def status(self) -> ConnectionStatus:
        """The snapshot of this connection; number and target name are the agent's to fill in."""
        totals = self.shipper.totals
        now_ns = self._world.clock.monotonic_ns()
        progress = self._mirrors.last.progress(now_ns) if self._mirrors.last is not None else MirrorProgress()
        if self._pace.share <= 0:
            progress = msgspec.structs.replace(progress, remaining_s=None)
        ops = bytes_ = 0
        for flow, applied in zip(self._flows, self._applied, strict=True):
            queued_ops, queued_bytes = flow.cursor.backlog()
            kept = applied and not self._tracker.tracking
            ops += max(flow.cursor.head().sequence - applied, 0) if kept else queued_ops
            bytes_ += queued_bytes
        pieces = self.shipper.pieces_queued
        tracked = self.dirt.estimate() if self.dirt.active and self.dirt.outstanding else None
        lag = self._lag.lag()
        ids = [flow.journal_id for flow in self._flows]
        return ConnectionStatus(
            id=0,
            uuid=self._arguments.connection_uuid,
            repset=self._arguments.repset.name,
            target=self._target_name,
            target_address=self._target_address,
            state=self._states.connection,
            state_reason=self._states.reason,
            target_data_state=self._states.target_data,
            target_status=self._states.target_status,
            target_status_reason=self._states.target_reason,
            target_queue_full=self._states.target_queue_full,
            transmit_mode=self._states.transmit,
            mirror_status=self._mirrors.status,
            replication_status=self._states.replication(queued=bool(ops)),
            queued_ops=ops + pieces,
            queued_bytes=bytes_ + self.shipper.piece_bytes_queued,
            queued_replication_ops=ops,
            queued_replication_bytes=bytes_,
            queued_mirror_ops=pieces,
            sent_bytes=totals.sent_bytes,
            sent_compressed_bytes=totals.sent_bytes,
            sent_ops=totals.operations,
            sent_replication_bytes=totals.sent_bytes - totals.mirror_bytes,
            sent_compressed_replication_bytes=totals.sent_bytes - totals.mirror_bytes,
            sent_mirror_bytes=totals.mirror_bytes,
            sent_compressed_mirror_bytes=totals.mirror_bytes,
            skipped_mirror_bytes=progress.skipped_bytes,
            remaining_mirror_bytes=progress.remaining_bytes if self._mirrors.run is not None else 0,
            foreign_changes=self._drift.changes,
            foreign_path=self._drift.last_path,
            lag_seconds=lag.seconds,
            lag=msgspec.structs.replace(lag, last_minute=(), last_hour=()),
            tracking=self._tracker.tracking,
            tracked_since=self.dirt.since_wall_ns / 1e9 if tracked is not None else None,
            tracked_files=tracked.files if tracked is not None else 0,
            tracked_bytes=tracked.bytes if tracked is not None else 0,
            tracked_directories=tracked.directories if tracked is not None else 0,
            tracked_trees=tracked.trees if tracked is not None else 0,
            tracked_enough=tracked is None or self.dirt.sufficient,
            last_file=shown(totals.last_path),
            connected_since=self._connected_since,
            received=dict(zip(ids, self._received, strict=True)),
            applied=dict(zip(ids, self._applied, strict=True)),
            durable=dict(zip(ids, self._durable, strict=True)),
            sender_pid=os.getpid(),
            receiver_pid=self._receiver_pid,
            mirror=progress,
            recovery=self._recovery_status(),
            orphans=msgspec.structs.replace(self._orphans.report, names=()),
        )

    def _recovery_status(self) -> RecoveryStatus:
        """Priority and speed are the agent's to fill in."""
        share, automatic = self._pace.share, self._mirrors.automatic
        status = self._states.replication(queued=False)
        pending = status in (ReplicationStatus.PENDING, ReplicationStatus.OUT_OF_MEMORY)
        text = recovery_text(self._mirrors.run, pending=pending, automatic=automatic, share=share)
        return RecoveryStatus(text=text, automatic=automatic, share=share)

    async def why(self, mount_id: str, path: str) -> dict[str, object]:
        """What this connection knows of `path`, relative to the directory that this mount captures."""
        index = next(i for i, flow in enumerate(self._flows) if flow.journal_id == mount_id)
        flow, journal = self._flows[index], self._arguments.journals[index]
        last = self._mirrors.last
        found = await explain(
            self._world,
            JournalSettings(journal.memory_directory, journal.disk_directory),
            flow,
            path,
            (self._received[index], self._applied[index], self._durable[index]),
            self.status(),
            last.problems if last is not None else [],
        )
        if tracked := self.dirt.why(flow, os.fsencode(path)):
            found |= {"dirty": f"it changed while the target was away: {tracked}", "note": ""}
        return found

    def lag(self) -> Lag:
        """The meter, with its history."""
        return self._lag.lag()

    # --- small things ---

    def _hears_of_changes(self) -> bool:
        """Whether the shipper is rung when something is journaled."""
        return self._session is not None and self._may_ship()

    async def _watch_queue(self) -> None:
        """See a queue that is full, and one that has room again."""
        while True:
            self._states.memory(exhausted=self._lag.queue_exhausted)
            await trio.sleep(limits.QUEUE_LOOK_S)

    def _may_ship(self) -> bool:
        return self._states.transmit is TransmitMode.STARTED and not self._states.target_queue_full

    def _set_transmit(self, event: TransmitEvent) -> None:
        self._states.transmission(event)
        self.shipper.wake()
        self._lag.wake()
        self._tracker.wake()

    def _interrupt(self) -> None:
        if self._transmit_scope is not None:
            self._transmit_scope.cancel()

    def _tell_agent(self) -> None:
        """Ring if something is new that an administrator may want to find in the log."""
        if self._states.observe():
            self._world.doorbells.ring(self._agent_bell)


# --- the process ---


def handlers(sender: Sender) -> dict[str, Callable[..., Awaitable[object]]]:
    """Control calls of a sender."""

    def plain(function: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        async def call(**arguments: object) -> object:
            return function(**arguments)

        return call

    async def wait(sequences: dict[str, int], timeout_s: float | None = None) -> bool:
        return await sender.wait(sequences, timeout_s)

    names = (
        "status mirror_start mirror_stop mirror_pause mirror_resume replicate_start replicate_stop "
        "transmit_start transmit_stop transmit_pause transmit_resume stop lag configure set_recovery "
        "recovering force_source orphans_start orphans"
    )
    calls = {name: plain(getattr(sender, name)) for name in names.split()}
    story = plain(sender.story.since)
    calls["orphans_act"] = sender.orphans_act
    return calls | {"wait": wait, "disconnect": sender.disconnect, "story": story, "why": sender.why}


async def serve(world: World, arguments: SenderArguments) -> None:
    """The whole process: flows, control socket, sender."""
    flows = await open_flows(world, arguments)
    sender = Sender(world, arguments, flows)
    socket_path = Home(arguments.home).socket("sender", arguments.connection_uuid)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(control.serve, socket_path, handlers(sender)))
        await sender.run()
        nursery.cancel_scope.cancel()


def main(arguments_file: str) -> None:
    """`python -m replicator.agent.sender --arguments FILE`."""
    with open(arguments_file, "rb") as file:
        arguments = msgspec.json.decode(file.read(), type=SenderArguments)
    interpreter.tune()
    trio.run(serve, World(), arguments)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--arguments":
        raise SystemExit("usage: python -m replicator.agent.sender --arguments FILE")
    main(sys.argv[2])
