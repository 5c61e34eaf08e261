"""The sender: one process per connection, on the source.

`Sender` is made of the parts that ship, mirror, track and tell, and takes the commands. It has its edges
(World, flows) given, so that the simulator runs it as it is; `main` puts it in a process.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import trio

from replicator import limits
from replicator.child import control, interpreter
from replicator.diagnostics import is_nowhere
from replicator.errors import ReplicatorError
from replicator.limit_calendar import LimitEntry
from replicator.net.frames import Disconnect
from replicator.net.session import SessionEnded
from replicator.ops import Position
from replicator.orphans import OrphanReport
from replicator.paths import Home
from replicator.schedules import Schedule
from replicator.sender.arguments import SenderArguments
from replicator.sender.changes import Changes, Wake
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.copies import Adoption, open_copies, stream_of
from replicator.sender.decider import Decider
from replicator.sender.dialler import Dialler
from replicator.sender.dirt import Dirt
from replicator.sender.drift_repair import DriftRepair
from replicator.sender.flow import Flow
from replicator.sender.journals import open_flows
from replicator.sender.known_copy import KnownCopy
from replicator.sender.lag_watch import LagWatch
from replicator.sender.limit_watch import LimitWatch
from replicator.sender.mirror_stream import MirrorStream
from replicator.sender.mirrors import Mirrors
from replicator.sender.nowhere import Nowhere
from replicator.sender.orphan_control import OrphanControl
from replicator.sender.pace import Pace
from replicator.sender.resync import Resync
from replicator.sender.run_reports import RunReports
from replicator.sender.scanner import Scanner
from replicator.sender.sender_state import SenderState, SenderStateFile
from replicator.sender.sender_status import SenderStatus
from replicator.sender.sent_pieces import SentPieces
from replicator.sender.session_schedule import SessionSchedule
from replicator.sender.sessions import Sessions
from replicator.sender.shipments import Totals
from replicator.sender.shipper import Shipper
from replicator.sender.story import Story
from replicator.sender.stream_start import StreamStart
from replicator.sender.synchronous import Synchronous
from replicator.sender.tail import Tail, tail_of
from replicator.sender.target_reports import TargetReports
from replicator.sender.tracking import Tracker
from replicator.sender.transmission_control import TransmissionControl
from replicator.sender.verifier import Verifier
from replicator.sender.verify_control import VerifyControl
from replicator.sender.verify_log import VerifyLog, VerifyLogSettings
from replicator.sender.verify_run import VerifyOptions
from replicator.states import MirrorEvent, ReplicationEvent, TransmitEvent
from replicator.status import (
    ConnectionStatus,
    Lag,
    RunReport,
    TargetDataState,
    TargetStatus,
    TransmitMode,
    VerifyPhase,
    VerifyProgress,
)
from replicator.synchrony import Readiness
from replicator.transmission import TransmissionOrders
from replicator.transmission_schedule import TransmissionSchedule
from replicator.world import World


class Sender:
    """See the module.

    `run` until `stop`; everything else may be called from other tasks of the same trio run.
    """

    def __init__(self, world: World, arguments: SenderArguments, flows: list[Flow]) -> None:
        options, home, uuid = arguments.options, Home(arguments.home), arguments.connection_uuid
        self._world = world
        self._arguments = arguments
        self._flows = flows
        self._agent_bell = home.bell
        self._changes = changes = Changes(self._tell_agent)
        self._shipper_wake = shipper_wake = Wake()
        scanner_wake = Wake()
        first = SenderState(
            replicating=options.replicate,
            mirror_wanted=options.mirror,
            mirror_newer=options.newer,
            mirror_checksum=options.checksum,
            mirror_exact=options.orphans == "delete",
        )
        memory = self._memory = SenderStateFile(world, home.source(uuid), first)
        self.story = Story(world, home.story(uuid))
        self._lag = lag = LagWatch(world, flows)
        self.dirt = dirt = Dirt(world, home.dirt(uuid), flows)
        self._copy = copy = KnownCopy(len(flows), memory)
        self._states = states = ConnectionStates(
            memory, self.story, lambda: self.mirrors.run is not None, changes.notify
        )
        self._pace = pace = Pace(world.clock, options.recovery_share)
        # Larger than any number of an earlier process: late acknowledgements cannot be confused.
        sent = SentPieces(flows, pace, last_number=world.clock.wall_ns() // 1000)
        self.mirrors = mirrors = Mirrors(
            world,
            flows,
            copy,
            memory,
            changes,
            states.mirror_moved,
            dirt,
            options.remirror,
            pace,
            sent,
            shipper=shipper_wake,
            scanner=scanner_wake,
            automatic=options.automatic_recovery,
            checksum_all=options.checksum_all,
        )
        mirrors.mix.ratio = options.replication_ratio
        self._tracker = tracker = Tracker(
            world,
            flows,
            dirt,
            copy,
            states,
            lambda: self._sessions.hears_of_changes,
            lambda reason: self._sessions.leave(reason),
        )
        self._take_up_restored()
        start = StreamStart(flows, [j.root for j in arguments.journals], memory, dirt, tracker)
        self.resync = resync = Resync(
            flows, start, copy, memory, dirt, tracker, mirrors, states, lag, shipper_wake
        )
        scanner = Scanner(
            world,
            flows,
            lambda: mirrors.run,
            mirrors.may_scan,
            pace,
            wake=scanner_wake,
            shipper=shipper_wake,
        )
        self.totals = totals = Totals()
        heading = f"Connection {arguments.connection_id}, {arguments.repset.name} --> {arguments.target_name}"
        log = VerifyLog(world, home.log, heading, arguments.repset.name)
        log.settings = options.verify_log
        self.verify = verify = VerifyControl(
            world,
            home.verify(uuid),
            log,
            RunReports(world, home.runs(uuid)),
            lambda: world.doorbells.ring(self._agent_bell),
        )
        mirrors.ended = verify.reports.mirror_ended
        self._verify_pace = Pace(world.clock, options.recovery_share)
        self.verifier = verifier = Verifier(
            world,
            flows,
            mirrors,
            self._verify_pace,
            totals,
            changes,
            [os.fsencode(journal.root) for journal in arguments.journals],
            shipper=shipper_wake,
            began=verify.began,
            differs=verify.differs,
            ended=verify.ended,
        )
        verify.attach(verifier)
        stream = MirrorStream(flows, mirrors, scanner, sent, resync, totals)
        self._shipper = shipper = Shipper(
            flows,
            mirrors,
            stream,
            Decider(mirrors, stream),
            resync,
            tracker,
            dirt,
            lag,
            pace,
            totals,
            verifier,
            shipper_wake,
            replicating=states.replicating,
            synchronous=lambda: self._synchronous,
        )
        drift = DriftRepair(flows, mirrors, remove=options.orphans == "delete")
        self._orphans = orphans = OrphanControl(
            mirrors, changes, lambda: world.doorbells.ring(self._agent_bell)
        )
        orphans.ended = verify.reports.orphans_ended
        self.reports = reports = TargetReports(
            flows,
            copy,
            states,
            tracker,
            mirrors,
            sent,
            resync,
            drift,
            orphans,
            verifier,
            lag,
            changes,
            shipper=shipper_wake,
            scanner=scanner_wake,
            epoch=arguments.epoch,
        )
        self._synchronous = synchronous = Synchronous(flows, copy, self._readiness, shipper.hurry)
        self._transmission = transmission = TransmissionControl(world, options.transmission)
        self._limit_watch = LimitWatch(world, options.limit_calendar, transmission.set_bandwidth)
        for_target = partial(transmission.set_bandwidth, target=True)
        self._target_limit_watch = LimitWatch(world, options.target_calendar, for_target)
        self._schedule = SessionSchedule(
            world, home.schedule(uuid), options.schedule, flows, copy, states, totals
        )
        self._sessions = sessions = Sessions(
            world,
            arguments,
            flows,
            memory,
            states,
            copy,
            tracker,
            mirrors,
            shipper,
            scanner,
            resync,
            reports,
            orphans,
            verifier,
            lag,
            synchronous,
            transmission,
            changes,
            self._schedule,
        )
        self._schedule.attach(
            connected=lambda: self._connected,
            interrupt=sessions.interrupt,
            works=self._works,
            given_up=lambda: tracker.tracking,
            pieces=lambda: len(sent),
            ring=self._transmit_moved,
        )
        self._status = SenderStatus(
            world,
            arguments,
            flows,
            copy,
            states,
            sessions,
            tracker,
            dirt,
            mirrors,
            sent,
            totals,
            pace,
            drift,
            orphans,
            verify,
            lag,
            self._schedule,
            transmission,
        )
        self.removed = False

    def _take_up_restored(self) -> None:
        """The source was restored from the copy since the last process: once, durably, before anything is
        journaled that a person or program changes.
        """
        restored = self._arguments.restored
        if restored is None or restored.restore == self._memory.state.restored_last:
            return
        for flow in self._flows:
            head = restored.heads.get(flow.journal_id)
            if head is None:
                flow.seek_first()
            else:
                flow.stand_at(*head, passed_wall_ns=0)
        self.dirt.begin_restored(restored.lacking, restored.differing)
        self.mirrors.restored(restored.restore, complete=restored.resume)
        self._states.transmission(TransmitEvent.START)
        if not restored.resume:
            reason = "a restore was given up half-way: if what is here shall survive, `dtctl transmit start`"
            self._states.transmission(TransmitEvent.FAIL, reason)
        elif restored.waits:
            self._states.transmission(TransmitEvent.FAIL, restored.waits)

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection up until `stop` or `disconnect`."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lag.run, lambda: self._sessions.hears_of_changes)
            nursery.start_soon(self._watch_queue)
            nursery.start_soon(self._tracker.run)
            nursery.start_soon(self.verify.run)
            nursery.start_soon(self._schedule.run)
            nursery.start_soon(self._limit_watch.run)
            nursery.start_soon(self._target_limit_watch.run)
            await self._sessions.run()
            nursery.cancel_scope.cancel()
        self._transmission.close()
        if not self.removed and self.dirt.changed:  # DC-09
            self.dirt.save()

    async def _watch_queue(self) -> None:
        """See a queue that is full, and one that has room again."""
        while True:
            self._states.memory(exhausted=self._lag.queue_exhausted)
            await trio.sleep(limits.QUEUE_LOOK_S)

    async def disconnect(self) -> bool:
        """End the connection for good.

        Returns whether the target was told.
        """
        told = False
        session = self._sessions.session
        if session is not None:
            self._transmission.lift()
            with trio.move_on_after(limits.CONNECT_TIMEOUT_S):
                try:
                    await session.send(Disconnect(self._arguments.connection_uuid))
                    told = True
                except (SessionEnded, OSError):
                    pass
        self.removed = True
        self._lag.close()
        self._tracker.close()
        self._synchronous.close()
        for flow in self._flows:
            flow.cursor.remove()
        self._memory.remove()
        self.dirt.remove()
        self.story.remove()
        self.verify.remove()
        self._schedule.remove()
        self.stop()
        return told

    def stop(self) -> None:
        """End `run`.

        The connection stays and goes on with the next process.
        """
        self._sessions.stop()

    def begin_session(self) -> None:
        """Another stream is there: whatever session there is now has lost its own."""
        if self._connected:
            self._sessions.interrupt()

    # --- commands ---

    def mirror_start(
        self, kind: str = "difference", orphans: str = "", newer: bool = False, checksum: bool = False
    ) -> None:
        if is_nowhere(self._arguments.target_host) and kind != "log":
            kind, newer, checksum = "full", False, False  # there is nothing to compare with
        exact = (orphans or self._arguments.options.orphans) == "delete"
        self.mirrors.start(kind, exact=exact, newer=newer, checksum=checksum, connected=self._connected)

    def orphans_start(self, mode: str) -> str:
        """OR-02, by hand. Returns the id of the run."""
        return self._orphans.start(mode, self._sessions.session)

    async def orphans_act(self, action: str) -> None:
        await self._orphans.act(action, self._sessions.session)

    def orphans(self) -> OrphanReport:
        """The last report, with names."""
        return self._orphans.report

    def mirror_stop(self) -> None:
        self.mirrors.stop(connected=self._connected)

    def mirror_pause(self) -> None:
        self.mirrors.pause()

    def mirror_resume(self) -> None:
        self.mirrors.resume_paused()

    def set_recovery(self, share: float | None = None, automatic: bool | None = None) -> None:
        """How much of its time a recovery or mirror may work; whether a recovery begins by itself."""
        if share is not None and share != self._pace.share:
            self._pace.share = share
            self._verify_pace.share = share
            if self.mirrors.run is not None:
                self.mirrors.run.other_pace(self._world.clock.monotonic_ns())
        if automatic is not None:
            self.mirrors.set_automatic(automatic)
        self._changes.notify()

    def force_source(self) -> None:
        """The source survives: what was changed in the copy since it was taken into use is lost (DC-25)."""
        self.mirrors.force()
        self.transmit_start()

    # --- verification ---

    def verify_start(self, **options: object) -> str:
        """VF-01. Returns the id of the run."""
        return self.verify.start(msgspec.convert(options, VerifyOptions))

    def verify_act(self, action: str) -> None:
        self.verify.act(action)

    def verify_schedule(self, schedule: object, options: object) -> None:
        """VF-04. `schedule` None: no more."""
        wanted = msgspec.convert(schedule, Schedule) if schedule is not None else None
        self.verify.schedule(wanted, msgspec.convert(options, VerifyOptions))

    def verify_background(self, bytes_per_s: int, options: object) -> None:
        self.verify.background(bytes_per_s, msgspec.convert(options, VerifyOptions))

    def verify_progress(self) -> VerifyProgress:
        """The last report, with names."""
        return self.verify.progress(names=True)

    def runs(self, kinds: list[str], count: int | None = None) -> list[RunReport]:
        """How runs ended, oldest first."""
        return self.verify.reports.newest(kinds, count)

    def set_transmission(self, orders: object) -> None:
        """How well it is compressed, and how much of the line it may take."""
        self._transmission.obey(msgspec.convert(orders, TransmissionOrders))
        self._changes.notify()

    def set_limit_calendar(self, entries: object, target: object = ()) -> None:
        """TX-06. They hold when this returns. `target`: of the limit that all connections to it share."""
        self._limit_watch.set(msgspec.convert(entries, list[LimitEntry]))
        self._target_limit_watch.set(msgspec.convert(target, list[LimitEntry]))

    def configure(
        self,
        remirror: str,
        reconnect: bool,
        checksum_all: bool = False,
        verify_log: object = None,
        replication_ratio: int = 0,
    ) -> None:
        """The agent's configuration may be another than when this process began."""
        if verify_log is not None:
            self.verify.log.settings = msgspec.convert(verify_log, VerifyLogSettings)
        self.mirrors.remirror = remirror
        self.mirrors.checksum_all = checksum_all
        self.mirrors.mix.ratio = replication_ratio
        self._sessions.reconnect = reconnect

    def replicate_start(self) -> None:
        """RP-01.

        What happened meanwhile was tracked, and is brought; where it was not, a mirror is advised (RP-02).
        """
        self._set_replicating(ReplicationEvent.START)
        self.resync.want()

    def replicate_stop(self) -> None:
        self._set_replicating(ReplicationEvent.STOP)

    def _set_replicating(self, event: ReplicationEvent) -> None:
        self._states.replicate(event)
        self._shipper.replicating = on = self._states.replicating
        if not on and self.mirrors.run is None and self._copy.is_exact:
            # Begins and ends in the stream: from here on the copy is not exact.
            self.mirrors.begin_recovery().happen(MirrorEvent.STOP)
        self._changes.notify()
        self._shipper_wake.ring()

    def supersede(self, reason: str) -> None:
        """Another agent owns the copy: nothing is transmitted, whoever asks for it, until this is taken back
        (""). Then only a person starts it again.
        """
        self._sessions.supersede(reason)
        self._transmit_moved()

    def transmit_start(self) -> None:
        self._sessions.check_superseded()
        self.dirt.root_changed = ""  # a person has looked
        self._set_transmit(TransmitEvent.START)
        self._schedule.by_hand()

    def transmit_stop(self) -> None:
        """The network connection ends, changes are queued here (CS-01 Stopped)."""
        self._set_transmit(TransmitEvent.STOP)
        self._sessions.interrupt()

    def drop_peer(self, uuid: str) -> None:
        """That agent is trusted no more."""
        self._sessions.drop_peer(uuid)

    async def tail(self, marks: object, *, exact: bool) -> Tail:
        """What was done here behind these positions of the copy. `exact`: it was, there."""
        with trio.move_on_after(limits.CONNECT_TIMEOUT_S):
            while self._connected:  # noqa: ASYNC110  # a moment
                await trio.sleep(limits.CHILD_POLL_S)
        if self._connected or not self._sessions.is_superseded:
            raise ReplicatorError("this connection still transmits")
        positions = msgspec.convert(marks, dict[str, tuple[int, int]])
        found: dict[str, bytes | None] = {}
        for flow in self._flows:
            known = positions.get(flow.journal_id)
            fork = Position(*known) if known is not None and exact else None
            tail = await tail_of(flow, self.dirt, fork)
            found[flow.journal_id] = None if tail is None else tail.encode()
        return Tail(found, max(self._memory.state.alive_wall_ns - limits.UNSYNCED_MAX_NS, 0))

    def transmit_pause(self) -> None:
        """The network connection stays, changes are queued here (CS-01 Paused)."""
        self._set_transmit(TransmitEvent.PAUSE)

    def transmit_resume(self) -> None:
        """As before it was stopped or paused: by the schedule, where there is one."""
        self._sessions.check_superseded()
        self._set_transmit(TransmitEvent.RESUME)
        self._schedule.look()

    def set_schedule(self, schedule: object) -> None:
        """TX-04. It holds when this returns."""
        self._schedule.set(msgspec.convert(schedule, TransmissionSchedule))
        self._changes.notify()

    def _set_transmit(self, event: TransmitEvent) -> None:
        self._states.transmission(event)
        self._transmit_moved()

    def _transmit_moved(self) -> None:
        self._shipper_wake.ring()
        self._lag.wake()
        self._tracker.wake()

    def _works(self) -> bool:
        """Whether a mirror, recovery or verification that is not held has not ended."""
        run, verification = self.mirrors.run, self.verifier.run_under_way
        if verification is not None and not verification.background:
            return verification.phase is VerifyPhase.RUNNING or verification.phase is VerifyPhase.REPAIRING
        if run is None:
            return self.resync.pending
        return not run.paused

    # --- what is asked ---

    def status(self) -> ConnectionStatus:
        """The snapshot of this connection; number and target name are the agent's to fill in."""
        return self._status.snapshot()

    async def why(self, mount_id: str, path: str) -> dict[str, object]:
        """What this connection knows of `path`, relative to the directory that this mount captures."""
        return await self._status.why(mount_id, path)

    def lag(self) -> Lag:
        """The meter, with its history."""
        return self._lag.lag()

    def recovering(self) -> bool:
        """Whether a recovery or mirror wants to work now."""
        run, verification = self.mirrors.run, self.verifier.run_under_way
        if verification is not None and not self.verifier.waits_for and not verification.background:
            return True
        return self._connected and run is not None and not run.paused and not run.stopped

    async def wait(self, sequences: dict[str, int], timeout_s: float | None) -> bool:
        """Whether, in that time, everything up to these sequences (by journal id) was applied and no mirror
        runs any more.
        """
        with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")):
            while True:
                if not self._states.replicating:
                    raise ReplicatorError("replication is stopped: `dtctl replicate start`")
                if self._mirrored and all(
                    applied >= sequences.get(flow.journal_id, 0)
                    for flow, applied in zip(self._flows, self._copy.applied, strict=True)
                ):
                    return True
                await self._changes.wait()
        return False

    @property
    def _mirrored(self) -> bool:
        mirroring = self.mirrors.run is not None or self._copy.data_state is TargetDataState.MIRRORING
        return not mirroring and not self.resync.pending

    # --- small things ---

    def _readiness(self) -> Readiness:
        """Whether programs can wait for the target."""
        sessions = self.__dict__.get("_sessions")
        if sessions is None or sessions.session is None:
            paused = self._states.transmit is not TransmitMode.STARTED
            return Readiness.PAUSED if paused else Readiness.AWAY
        if not sessions.target_secures:
            return Readiness.UNABLE
        if self._states.transmit is not TransmitMode.STARTED or not self._states.replicating:
            return Readiness.PAUSED
        if self._states.target_status in (TargetStatus.PAUSED, TargetStatus.PAUSE_PENDING):
            return Readiness.PAUSED
        if self._states.target_queue_full or self._states.target_status is not TargetStatus.OK:
            return Readiness.AWAY
        exact = self._copy.is_exact and self.mirrors.is_settled and not self.dirt.active
        return Readiness.INEXACT if not exact or self.resync.pending else Readiness.READY

    @property
    def _connected(self) -> bool:
        return self._sessions.session is not None

    def _tell_agent(self) -> None:
        """Ring if something is new that an administrator may want to find in the log."""
        if "_synchronous" in self.__dict__:  # else it is still being made
            self._synchronous.observe()
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
        "supersede transmit_start transmit_stop transmit_pause transmit_resume set_schedule set_transmission "
        "set_limit_calendar stop lag configure set_recovery drop_peer recovering force_source "
        "orphans_start orphans "
        "verify_start verify_act verify_schedule verify_background verify_progress runs"
    )
    calls = {name: plain(getattr(sender, name)) for name in names.split()}
    story = plain(sender.story.since)
    calls["orphans_act"] = sender.orphans_act
    calls["tail"] = sender.tail
    return calls | {"wait": wait, "disconnect": sender.disconnect, "story": story, "why": sender.why}


async def serve(world: World, arguments: SenderArguments) -> None:
    """The whole process: flows, control socket, sender."""
    if arguments.is_restore:
        await _serve_restore(world, arguments)
        return
    if is_nowhere(arguments.target_host):
        await _serve_nowhere(world, arguments)
        return
    world = replace(world, connect=Dialler(arguments, world.connect).dial)
    flows = await open_flows(world, arguments)
    sender = Sender(world, arguments, flows)
    await _run(sender, arguments, handlers(sender))


async def _serve_restore(world: World, arguments: SenderArguments) -> None:
    adoption = Adoption()
    world = replace(world, connect=adoption.dial)
    flows, writers = open_copies(world, arguments)
    sender = Sender(world, arguments, flows)

    async def adopt(descriptors: Sequence[int] = (), handover: object = None) -> None:
        adoption.give(stream_of(descriptors, handover))
        sender.begin_session()

    await _run(sender, arguments, handlers(sender) | {"adopt": adopt})
    for writer in writers:
        writer.close(persist=False)


async def _serve_nowhere(world: World, arguments: SenderArguments) -> None:
    nowhere = Nowhere(world, Home(arguments.home).diagnostics(arguments.connection_uuid))
    world = replace(world, connect=nowhere.dial)
    sender = Sender(world, arguments, await open_flows(world, arguments))

    async def diagnostics(*, reset: bool = False, lines: Mapping[str, int] | None = None) -> object:
        if reset:
            nowhere.reset()
        return nowhere.report(lines)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(nowhere.run)
        await _run(sender, arguments, handlers(sender) | {"diagnostics": diagnostics})
        nursery.cancel_scope.cancel()


async def _run(
    sender: Sender, arguments: SenderArguments, calls: dict[str, Callable[..., Awaitable[object]]]
) -> None:
    socket_path = Home(arguments.home).socket("sender", arguments.connection_uuid)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(control.serve, socket_path, calls))
        await sender.run()
        nursery.cancel_scope.cancel()


def run(arguments_file: str) -> None:
    """`python -m replicator.sender.process --arguments FILE`."""
    with open(arguments_file, "rb") as file:
        arguments = msgspec.json.decode(file.read(), type=SenderArguments)
    interpreter.tune()
    trio.run(serve, World(), arguments)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--arguments":
        raise SystemExit("usage: python -m replicator.sender.process --arguments FILE")
    run(sys.argv[2])
