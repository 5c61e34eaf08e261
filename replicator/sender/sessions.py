"""The sessions of a sender, one after the other: it connects, ships, and connects again.

While no session uses the flows, they may be tracked (`tracking.py`): here a session is ended for that, and
the tracking begins.
"""

import errno
from functools import partial
from math import inf

import trio

from replicator import limits
from replicator.errors import ProtocolError, ReplicatorError
from replicator.failovers import Promotion
from replicator.mirror.local_copy import reach
from replicator.net.engine import Engine, Role
from replicator.net.session import KeysUsed, Session, SessionEnded
from replicator.sender.arguments import SenderArguments
from replicator.sender.changes import Changes
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.flow import Flow
from replicator.sender.introduction import (
    ConnectionRefused,
    Superseded,
    introduce,
    peer_address,
    reason_of,
    what_ended,
)
from replicator.sender.known_copy import KnownCopy
from replicator.sender.lag_watch import LagWatch
from replicator.sender.mirrors import Mirrors
from replicator.sender.orphan_control import OrphanControl
from replicator.sender.resync import Resync
from replicator.sender.root_guard import RootChanged
from replicator.sender.scanner import Scanner
from replicator.sender.sender_state import SenderStateFile
from replicator.sender.session_schedule import SessionSchedule
from replicator.sender.shipper import Shipper
from replicator.sender.size_count import count_sizes
from replicator.sender.synchronous import Synchronous
from replicator.sender.target_reports import TargetReports
from replicator.sender.tracking import Tracker
from replicator.sender.transmission_control import TransmissionControl
from replicator.sender.verifier import Verifier
from replicator.states import ReplicationEvent, TransmitEvent
from replicator.status import TransmitMode
from replicator.world import World


def _no_answer() -> OSError:
    return OSError(errno.ETIMEDOUT, "no answer in time")


class Sessions:
    """`run` until `stop`; everything else may be called from other tasks of the same trio run."""

    def __init__(
        self,
        world: World,
        arguments: SenderArguments,
        flows: list[Flow],
        memory: SenderStateFile,
        states: ConnectionStates,
        copy: KnownCopy,
        tracker: Tracker,
        mirrors: Mirrors,
        shipper: Shipper,
        scanner: Scanner,
        resync: Resync,
        reports: TargetReports,
        orphans: OrphanControl,
        verifier: Verifier,
        lag: LagWatch,
        synchronous: Synchronous,
        transmission: TransmissionControl,
        changes: Changes,
        schedule: SessionSchedule,
    ) -> None:
        self.reconnect = arguments.options.reconnect
        """By itself, after a connection was lost."""
        self.session: Session | None = None  # the one that is up
        self.connected_since: float | None = None
        self.receiver_pid: int | None = None
        self.target_address = ""  # kept when the session ends: who it was
        self._world = world
        self._arguments = arguments
        self._flows = flows
        self._memory = memory
        self._states = states
        self._copy = copy
        self._tracker = tracker
        self._mirrors = mirrors
        self._shipper = shipper
        self._scanner = scanner
        self._resync = resync
        self._reports = reports
        self._orphans = orphans
        self._verifier = verifier
        self._lag = lag
        self._synchronous = synchronous
        self.target_secures = False  # it understands SECURE
        self._transmission = transmission
        self._changes = changes
        self._schedule = schedule
        self._attempting = False  # a session uses the flows, or will
        self._leaving = ""  # why the session ends, if it ends to track
        self._stopping = False
        self._scope: trio.CancelScope | None = None
        self._note_boot(arguments.options.reconnect_at_start)
        self.promotion: Promotion | None = None
        """Of another agent, as the target has told in this process."""
        self._superseded = ""
        self.supersede(arguments.superseded)

    def _note_boot(self, reconnect: bool) -> None:
        """AD-08: whether to connect by itself after the host was down."""
        state = self._memory.state
        boot_id, former = self._world.clock.boot_id(), state.boot_id
        if boot_id == former:
            return
        state.boot_id = boot_id
        self._memory.save()
        if former and not reconnect and self._states.transmit is not TransmitMode.STOPPED:
            reason = "the host was down, and it is not connected again by itself: `dtctl transmit start`"
            self._states.transmission(TransmitEvent.STOP, reason)

    # --- one after the other ---

    async def run(self) -> None:
        """Keep the connection up until `stop`."""
        delay_s = limits.RECONNECT_FIRST_S
        while not self._stopping:
            if self._leaving:
                self._track(self._leaving)
            if not self._schedule.wants_network:
                await self._changes.wait()
                continue
            self._scope = trio.CancelScope()
            with self._scope:
                connected = False
                try:
                    await self._tracker.at_head()
                    connected = await self._session_once()
                except RootChanged as error:
                    self._resync.root_is_gone()
                    self._states.replicate(ReplicationEvent.FAIL, "a root of the set is gone")
                    self._states.transmission(TransmitEvent.FAIL, str(error))
                    continue
                except KeysUsed:
                    connected = True  # nothing was lost: at once again, whatever AD-12 says of losses
                except (OSError, SessionEnded, ProtocolError, ReplicatorError) as error:
                    connected = self.connected_since is not None
                    retry = getattr(error, "retry", True)
                    reason = reason_of(error, self._arguments.target_name)
                    self._states.lost(reason)
                    if retry and connected and not self.reconnect:  # AD-12
                        retry = False
                        reason = f"{reason}; it is not connected again by itself: `dtctl transmit start`"
                    if not retry:
                        if isinstance(error, Superseded):
                            self.promotion = error.promotion
                            self._states.superseded(reason)
                        else:
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

    def stop(self) -> None:
        """End `run`."""
        self._stopping = True
        self._changes.notify()
        self.interrupt()

    def interrupt(self) -> None:
        """End the session, or the attempt; `run` goes on with what is to be then."""
        if self._scope is not None:
            self._scope.cancel()

    def supersede(self, reason: str) -> None:
        """Why nothing may be transmitted; "": it may."""
        if reason != self._superseded:
            self._superseded = reason
            if reason:
                self._states.superseded(reason)
                self.interrupt()

    @property
    def is_superseded(self) -> bool:
        """Whether another agent owns the data, so that nothing is transmitted."""
        return bool(self._superseded)

    def check_superseded(self) -> None:
        """Raises ReplicatorError."""
        if self._superseded:
            raise ReplicatorError(self._superseded)

    # --- one ---

    async def _session_once(self) -> bool:
        """One session, from connecting to its end.

        Raises what ended it.
        """
        arguments = self._arguments
        self._attempting = True
        stream = await self._connect()
        how = arguments.options.congestion_control
        session = Session(stream, Engine(Role.SOURCE), congestion_control=how)
        try:
            with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                connected, features = await introduce(session, arguments)
            self._know_target(session.peer_uuid)
            self._transmission.session_begins(session, features)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.heartbeat)
                self._orphans.session_begins(connected)
                self._verifier.session_begins(understood=connected.checks)
                await self._resync.resume(connected)
                self.session = session
                self.target_secures = connected.secures
                self.target_address = peer_address(stream)
                self.connected_since = self._world.clock.wall_ns() / 1e9
                self.receiver_pid = connected.receiver_pid
                self._states.connected()
                if arguments.options.local_copy:
                    where = partial(reach, arguments.connection_uuid, connected.receiver_pid)
                    self._scanner.local = await self._world.in_thread(where)
                nursery.start_soon(self._shipper.run, session, self._may_ship)
                nursery.start_soon(self._scanner.run)
                nursery.start_soon(count_sizes, self._world, self._flows, self._mirrors, self._changes)
                nursery.start_soon(self._note_alive)
                nursery.start_soon(self._synchronous.run)
                nursery.start_soon(self._verifier.run)
                while True:
                    self._reports.handle(await session.receive())
        except BaseExceptionGroup as group:
            raise what_ended(group) from None
        except trio.TooSlowError:
            raise _no_answer() from None
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await session.close("sender stops" if self._stopping else "")
        return True

    async def _connect(self) -> trio.abc.Stream:
        """Raises OSError, also if nothing answers: where packets are dropped, no host says so."""
        # The other side of a restore dials when it wants to, or can.
        timeout_s = inf if self._arguments.is_restore else limits.CONNECT_TIMEOUT_S
        try:
            with trio.fail_after(timeout_s):
                return await self._world.connect(self._arguments.target_host, self._arguments.target_port)
        except trio.TooSlowError:
            raise _no_answer() from None

    def _know_target(self, uuid: str) -> None:
        """Another agent must not take the place of the one that has the copy, whoever else is trusted."""
        state = self._memory.state
        if self._arguments.is_restore or uuid == state.target_uuid or not uuid:
            return
        if state.target_uuid:
            raise ConnectionRefused(
                "another agent answers there than the one that has the copy: disconnect, and connect anew,"
                " if that is meant",
                retry=True,
            )
        state.target_uuid = uuid
        self._memory.save()

    def drop_peer(self, uuid: str) -> None:
        """That agent is trusted no more: a session with it ends at once."""
        if self.session is not None and self.session.peer_uuid == uuid:
            self._states.lost("the certificate of the target is revoked")
            self.interrupt()

    def _session_over(self) -> None:
        self._attempting = False
        self.session = None
        self.connected_since = None
        self.receiver_pid = None
        self._verifier.session_over()
        self._transmission.session_over()
        if self._scanner.local is not None:
            self._scanner.local.close()
            self._scanner.local = None
        for flow in self._flows:
            flow.session_ended()
        self._states.session_over()
        self._lag.wake()
        self._tracker.wake()  # nobody rings from here on

    @property
    def hears_of_changes(self) -> bool:
        """Whether the shipper is rung when something is journaled."""
        return self.session is not None and self._may_ship()

    def _may_ship(self) -> bool:
        flows = self._states.transmit is TransmitMode.STARTED and self._schedule.may_send
        return flows and not self._states.target_queue_full

    async def _note_alive(self) -> None:
        while True:
            self._memory.state.alive_wall_ns = self._world.clock.wall_ns()
            self._memory.save()
            await trio.sleep(limits.ALIVE_NOTE_S)

    # --- instead of one ---

    def leave(self, reason: str) -> None:
        """AD-01: before a journal is full because of this connection, end the session and track."""
        if self._leaving or self._tracker.tracking:
            return
        self._leaving = reason
        if self._attempting:
            if self.session is not None:
                self._states.lost(f"{reason}: disconnected, and what changes is tracked")
            self.interrupt()
        else:
            self._track(reason)

    def _track(self, reason: str) -> None:
        """Nobody uses the flows."""
        self._leaving = ""
        mirrors = self._mirrors
        exact = (self._copy.was_exact_last or mirrors.was_exact) and mirrors.run is None
        self._tracker.begin(exact=exact and self._memory.state.mirror_wanted is None)
        self._states.replicate(ReplicationEvent.FAIL, f"{reason}: what changes is tracked")
        self._changes.notify()
