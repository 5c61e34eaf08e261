"""The receiver: one process per connection, on the target. Spools what arrives, and a replica applies it.

The network task has each frame verified and appended to the spool (`intake.py`); the replica (`replica.py`)
applies the spool whether a session is there or not; a report task (`reporter.py`) sends the three marks,
refusals and states. A newer socket replaces an older session. Everything comes through the World, so that the
simulator runs it as it is; `main` puts it in a process.
"""

import base64
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import trio

from replicator import config, limits
from replicator.child import control, interpreter
from replicator.errors import (
    JournalError,
    ProtocolError,
    RemoteProtocolError,
    ReplicatorError,
    UsageError,
)
from replicator.failovers import Promotion
from replicator.fs import credentials
from replicator.fs.bare_files import BareFiles
from replicator.mirror.local_copy import Wanted
from replicator.net.engine import Engine, Event, Role
from replicator.net.frames import Connect, Disconnect, OrphanTask, RefusedConnection, Secure
from replicator.net.session import PeerLeft, Session, SessionEnded
from replicator.ops import shown
from replicator.orphans import OrphanReport, OrphanSettings
from replicator.paths import Home, remove_if_empty
from replicator.queue.settings import JournalSettings
from replicator.queue.statistics import JournalStatistics
from replicator.receiver.acceptance import Refused, accept
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.drift import Drift, one_for_each_journal
from replicator.receiver.drift_watch import DriftWatch
from replicator.receiver.drill_hold import DrillHold
from replicator.receiver.intake import Intake
from replicator.receiver.local_offers import OwnProcesses, serve_offers
from replicator.receiver.position_file import PositionFile
from replicator.receiver.recovery import Remains, open_page
from replicator.receiver.refused_file import RefusedFile
from replicator.receiver.replica import Replica
from replicator.receiver.replica_state import Marks, ReplicaState, StateFile
from replicator.receiver.replica_tree import ReplicaTree, Tree, release, remove_unfinished
from replicator.receiver.reporter import Reporter
from replicator.receiver.spool import Spool
from replicator.security.channel import Handover, take_over
from replicator.status import TargetDataState, TargetLock, TargetStatus
from replicator.world import World


class ReceiverStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the control call `status` answers."""

    connection_uuid: str
    pid: int
    connected: bool  # a source is there now
    source_uuid: str
    source_name: str
    repset: str
    targets: tuple[str, ...]
    lock: TargetLock  # over them
    target_status: TargetStatus
    target_status_reason: str
    target_data_state: TargetDataState
    mirroring: bool
    watch: str  # for changes of others: on, off, or why it cannot be done
    foreign_changes: int  # noticed by this process
    foreign_path: str  # of the last of them
    spool_full: bool
    queued_bytes: int
    memory_queue_bytes: int
    disk_queue_bytes: int
    queue: JournalStatistics
    orphans: OrphanReport  # without names
    epoch: int = 0  # of the set: raised by each restore
    restoring: str = ""  # uuid of the restore that reads the copy
    synchronous: bool = False  # programs on the source wait for it
    closed: str = ""  # uuid of the group that takes it over
    promotion: Promotion | None = None  # who owns the data since
    owned: bool = False  # this host does: nothing is applied
    fork: dict[str, tuple[int, int]] = {}  # where the copy stood then
    applied_until: float | None = None  # when the source did the last operation that is applied, by its clock
    exact_but_drifted: bool = False  # but for what others have changed
    positions: dict[str, tuple[int, int]] = {}  # as `applied`, with chain values
    operations: int  # applied by this process
    last_path: str
    received: dict[str, int]
    applied: dict[str, int]
    durable: dict[str, int]


class Receiver:
    """See the module. `run` until `stop` or `forget`; everything else may be called while it runs."""

    def __init__(
        self,
        world: World,
        arguments: ReceiverArguments,
        open_tree: Callable[[Connect, str], Tree] = ReplicaTree,
    ) -> None:
        """Opens state and spool. Raises ReplicatorError if they are damaged or another process has them."""
        self.forgotten = False
        self._world = world
        self._arguments = arguments
        self._directory = directory = Home(arguments.home).target(arguments.connection_uuid)
        self._memory = memory = arguments.memory_directory
        self._spool_directory = arguments.disk_directory or os.path.join(directory, "spool")
        world.disk.makedirs(directory)
        world.disk.makedirs(memory)
        state_file = StateFile(world, directory)
        state = state_file.load() or ReplicaState(connection_uuid=arguments.connection_uuid)
        settings = JournalSettings(
            memory,
            self._spool_directory,
            arguments.segment_bytes,
            arguments.memory_bytes,
            arguments.disk_bytes,
            arguments.disk_free_min_bytes,
        )
        self._spool = spool = Spool(world, settings, arguments.connection_uuid)
        try:
            self._positions = PositionFile(world, directory)
            self._received_page = open_page(world, memory, "received")
            self._applied_page = open_page(world, memory, "applied")
            refused_file = RefusedFile(world, memory)
            remains = Remains(
                world,
                directory,
                spool,
                state_file,
                self._positions,
                self._received_page,
                self._applied_page,
                refused_file,
            )
            found = remains.recover(state)
        except BaseException:
            spool.close()
            raise
        self.replica = Replica(
            world,
            spool,
            state_file,
            found.state,
            self._positions,
            found.applied,
            self._applied_page,
            found.refused,
            refused_file.save,
            lambda connect: open_tree(connect, directory),
            self._news_here,
            _drift(world, directory, found.state),
            found.comes_again,
            arguments.orphans,
        )
        self.own = OwnProcesses()
        self._drift_watch = DriftWatch(
            world,
            self.replica,
            Home(arguments.home).bell,
            self.own,
            wanted=arguments.watch != config.WATCH_OFF,
        )
        self.drill_hold = DrillHold(self.replica)
        self._intake = Intake(spool, self.replica, found.received, self._received_page, self._news_here)
        self._reporter = Reporter(self.replica, self._intake, spool)
        self.replica.answered = self._reporter.hurry
        self._adopted: tuple[trio.abc.Stream, bytes, tuple[str, ...]] | None = None
        self._adoption = trio.Event()
        self._session_scope: trio.CancelScope | None = None
        self._connected = False
        self._peer_uuid = ""  # who has proved to be at the other end of the session
        self._ending = ""
        self._lost = ""  # why the session that is there ends
        self._restored = ""  # the restore that makes void what was received and not applied

    # --- what the agent asks for ---

    def adopt(
        self, stream: trio.abc.Stream, first_bytes: bytes = b"", other_targets: tuple[str, ...] = ()
    ) -> None:
        """Carry on with this stream; a session that is there ends. `first_bytes`: what was read from it
        already, the greeting included. `other_targets`: where other connections of this agent write.
        """
        if self._adopted is not None:
            _close_now(self._adopted[0])
        if self._ending:
            _close_now(stream)
            return
        self._adopted = (stream, first_bytes, other_targets)
        self._connected = False  # until it is accepted
        self._adoption.set()
        if self._session_scope is not None:
            self._session_scope.cancel()

    def pause(self) -> None:
        """PT-01: apply nothing; what arrives is spooled."""
        self.replica.pause()

    def resume(self) -> None:
        self.replica.resume()

    async def restore_begins(self, restore: str) -> None:
        """The copy stands still until `restore_ends` or `restored`, and is durable as it is now."""
        await self.replica.hold_for(restore)
        self.drill_hold.keep()

    async def restore_ends(self, restore: str) -> None:
        """The copy is what it was, and goes on."""
        await self.replica.release(restore)
        self.drill_hold.keep()

    def drop_peer(self, uuid: str) -> None:
        """That agent is trusted no more: a session with it ends at once."""
        if self._session_scope is not None and self._peer_uuid == uuid:
            self._lost = "the certificate of this source is revoked"
            self._session_scope.cancel()

    async def restored(self, restore: str, epoch: int, source_uuid: str = "") -> None:
        """A source was restored from the copy. This process ends; for the next one, what was received and not
        applied never was.
        """
        if self.replica.state.restoring != restore:
            return  # it was done already
        await self.replica.restored(epoch, source_uuid)
        self._restored = restore
        self._end("the source was restored from this copy")

    async def shut(self, group: str) -> None:
        """No source is let in any more: the copy is being taken over. A session that is there ends."""
        await self.replica.shut(group)
        if self._session_scope is not None:
            self._lost = f"{self._arguments.agent_name} is taking over"
            self._session_scope.cancel()

    async def reopen(self, group: str) -> None:
        """It is not taken over after all."""
        await self.replica.reopen(group)

    async def promote(self, record: Promotion) -> None:
        """The data belongs to this host now; see `Replica.promote`."""
        await self.replica.promote(record)

    async def learn(self, record: Promotion) -> None:
        """Another host owns what the source of this copy had. A session with that ends."""
        await self.replica.learn(record)
        if self._session_scope is not None:
            self._lost = f"{record.owner_name} has taken over"
            self._session_scope.cancel()

    async def seal(self) -> dict[str, bytes | None]:
        """What is changed in the copy from now on is captured. By journal id: what others had changed before,
        as an encoded dirty map in terms of the former source's paths; None: anything.
        """
        replica = self.replica
        if replica.is_promoted and replica.state.closed:
            await self._drift_watch.look_now()
            await replica.seal()
            self._drift_watch.look_again()
        return {
            report.journal_id: None if report.dirty is None else report.encoded
            for report in one_for_each_journal(replica.drift.reports)
        }

    def set_orphans(self, settings: OrphanSettings) -> None:
        """How orphans are handled from now on; what was decided already goes on."""
        self.replica.orphan_settings = settings
        self.replica.tell()

    def offer(self, wanted: Wanted) -> int | None:
        """To a sender on this host."""
        tree = self.replica.tree
        try:
            return tree.offer(*msgspec.structs.astuple(wanted)) if tree is not None else None
        except ReplicatorError:  # it is none of the copy's places
            return None

    def stop(self) -> None:
        """End `run` cleanly; the next process goes on here."""
        self._end("the target is being stopped")

    def forget(self) -> None:
        """End `run` and remove what is known of the connection. The copy stays as it is."""
        self.forgotten = True
        self._end("the connection was deleted on the target")

    def _end(self, reason: str) -> None:
        self._ending = self._ending or reason
        self.replica.stop()
        self._adoption.set()
        if self._session_scope is not None:
            self._session_scope.cancel()

    def status(self) -> ReceiverStatus:
        replica, state = self.replica, self.replica.state
        memory_bytes, disk_bytes = self._spool.usage()
        connect = state.connect
        return ReceiverStatus(
            connection_uuid=self._arguments.connection_uuid,
            pid=os.getpid(),
            connected=self._connected,
            source_uuid=state.source_uuid,
            source_name=state.source_name,
            repset=connect.repset if connect is not None else "",
            targets=tuple(shown(m.target) for m in connect.maps) if connect is not None else (),
            lock=TargetLock(connect.lock) if connect is not None else TargetLock.NONE,
            target_status=replica.status,
            target_status_reason=replica.reason,
            target_data_state=state.data_state,
            mirroring=state.mirroring,
            watch=self._drift_watch.state,
            foreign_changes=replica.drift.changes,
            foreign_path=shown(replica.drift.last_path),
            spool_full=self._intake.full,
            queued_bytes=self._spool.queued_bytes,
            memory_queue_bytes=memory_bytes,
            disk_queue_bytes=disk_bytes,
            queue=self._spool.statistics(),
            orphans=msgspec.structs.replace(replica.orphans, names=()),
            epoch=state.epoch,
            restoring=state.restoring,
            synchronous=replica.is_waited_for,
            closed=state.closed,
            promotion=state.promotion,
            owned=replica.is_promoted,
            fork=_pairs(state.fork),
            applied_until=replica.applied.wall_ns / 1e9 or None,
            exact_but_drifted=state.drifted and not state.mirroring,
            positions=_pairs(replica.applied.marks),
            operations=replica.operations,
            last_path=shown(replica.last_path),
            received=_sequences(self._intake.received.marks),
            applied=_sequences(replica.applied.marks),
            durable=_sequences(replica.durable),
        )

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve sessions and apply, until `stop` or `forget`. Cancelling it is like a kill: nothing is
        lost.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.replica.keep_durable)
                nursery.start_soon(self.replica.keep_secure)
                nursery.start_soon(self._drift_watch.run)
                nursery.start_soon(self.drill_hold.run)
                task_status.started()
                async with trio.open_nursery() as working:
                    working.start_soon(self._apply)
                    working.start_soon(self._serve_sessions)
                await self._drift_watch.look_now()
                nursery.cancel_scope.cancel()
            if self._restored:
                self.replica.spool_lost()
                self._intake.spool_lost("the source was restored from this copy")
                await self.replica.release(self._restored)
            if not self.forgotten:
                try:
                    await self.replica.make_durable(clean=True)
                except OSError as error:
                    print(f"stopped without sync: {error}", file=sys.stderr, flush=True)
        finally:
            self.replica.close()
            self._spool.close()
            self._positions.close()
            self._received_page.close()
            self._applied_page.close()
            if self._adopted is not None:
                _close_now(self._adopted[0])
        if self.forgotten:
            self._release()
            self._remove_everything()

    def _release(self) -> None:
        connect = self.replica.state.connect
        if connect is None:
            return
        try:
            release(connect)
        except OSError as error:
            self._log(f"the copy may still be locked, see findmnt: {error}")
        try:
            remove_unfinished(connect)
        except OSError as error:
            self._log(f"unfinished files are left in the copy: {error}")

    async def _apply(self) -> None:
        while True:
            try:
                await self.replica.run()
                return
            except JournalError as error:  # AD-03: an I/O error, or damage
                reason = f"the target's queue is lost, what it held has to come again: {error}"
                self._log(reason)
                self.replica.spool_lost()
                self._intake.spool_lost(reason)
                if self._session_scope is not None:
                    self._lost = reason
                    self._session_scope.cancel()

    def _remove_everything(self) -> None:
        disk = self._world.disk
        for directory in (self._memory, self._spool_directory, self._directory):
            for name in disk.listdir(directory) if disk.exists(directory) else ():
                path = os.path.join(directory, name)
                if path != os.path.join(self._directory, "spool"):
                    disk.unlink(path)

    # --- sessions ---

    async def _serve_sessions(self) -> None:
        while not self._ending:
            if self._adopted is None:
                self._adoption = trio.Event()
                await self._adoption.wait()
                continue
            (stream, first_bytes, others), self._adopted = self._adopted, None
            session = Session(stream, Engine(Role.TARGET), first_bytes=first_bytes)
            self._peer_uuid = session.peer_uuid
            reason = self._lost = ""
            with trio.CancelScope() as self._session_scope:
                reason = await self._run_session(session, others)
            self._connected = False
            self._session_scope = None
            reason = reason or self._lost
            replaced = not reason and not self._ending
            await session.close(
                reason or self._ending or "replaced by a newer connection", linger=not replaced
            )

    async def _run_session(self, session: Session, others: tuple[str, ...]) -> str:
        """Returns what to tell the peer at the end."""
        reason = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.heartbeat)
            try:
                with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                    connect, features = await accept(
                        session, self._arguments, self.replica, self._intake, others
                    )
                self._connected = True
                self._log(f"connected to {self.replica.state.source_name}")
                nursery.start_soon(self._reporter.run, session, connect, features)
                while True:
                    await self._handle(await session.receive())
            except PeerLeft as end:
                reason = "goodbye"
                self._log(f"the source ended the session: {end}")
            except SessionEnded as end:
                reason = str(end)
                self._log(reason)
            except ProtocolError as error:
                reason = f"protocol error: {error}"
                self._log(reason)
            except Refused as refused:
                reason = str(refused)
                self._log(f"refused: {refused}")
                try:
                    await session.send(RefusedConnection(reason[:1000], refused.retry, refused.promotion))
                except SessionEnded:
                    pass
            except trio.TooSlowError:
                reason = "the source did not introduce itself in time"
                self._log(reason)
            nursery.cancel_scope.cancel()
        return reason

    async def _handle(self, event: Event) -> None:
        if isinstance(event, OrphanTask):
            self.replica.act_on_orphans(event.action)
            return
        if isinstance(event, Secure):
            journals = self._intake.received.journals
            self.replica.want_secured(dict(zip(journals, event.durable, strict=False)))
            self._reporter.hurry()  # that it was received is an answer, too
            return
        if not isinstance(event, Disconnect):
            await self._intake.take(event)
            return
        if event.connection_uuid != self._arguments.connection_uuid:
            raise RemoteProtocolError("a source deletes another connection than its own")
        self.forget()
        await trio.lowlevel.checkpoint()  # ends this session

    def _news_here(self) -> None:
        """A mark, a status or a refusal is new."""
        self._reporter.news()
        self._intake.look_for_room()

    def _log(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _drift(world: World, directory: str, state: ReplicaState) -> Drift:
    drift = Drift(world, directory)
    if drift.damaged or (state.drifted and not drift.pending):
        for journal in state.connect.journals if state.connect is not None else ():
            drift.add(journal.journal_id, None)
    return drift


def _sequences(marks: Marks) -> dict[str, int]:
    return {journal_id: position.sequence for journal_id, position in marks.items()}


def _pairs(marks: Marks) -> dict[str, tuple[int, int]]:
    return {journal_id: (position.sequence, position.chain) for journal_id, position in marks.items()}


def _close_now(stream: trio.abc.Stream) -> None:
    """Close without waiting, outside of a task that could."""
    trio.lowlevel.spawn_system_task(trio.aclose_forcefully, stream)


# --- the process ---


def handlers(receiver: Receiver) -> dict[str, Callable[..., Awaitable[object]]]:
    """Control calls of a receiver."""

    async def adopt(
        first: str, other_targets: Sequence[str], handover: object = None, descriptors: Sequence[int] = ()
    ) -> None:
        """One descriptor, a TCP socket; `first`: what was read from it, in base64. `handover`: of a secured
        one.
        """
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise UsageError("adopt needs one socket")
        stream = trio.SocketStream(trio.socket.socket(fileno=descriptors[0]))
        secured = None if handover is None else take_over(stream, msgspec.convert(handover, Handover))
        receiver.adopt(secured or stream, base64.b64decode(first), tuple(other_targets))

    async def status() -> ReceiverStatus:
        return receiver.status()

    async def pause() -> None:
        receiver.pause()

    async def resume() -> None:
        receiver.resume()

    async def use() -> None:
        await receiver.replica.take_into_use()

    async def set_orphans(settings: object) -> None:
        receiver.set_orphans(msgspec.convert(settings, OrphanSettings))

    async def restore_begins(restore: str) -> None:
        await receiver.restore_begins(restore)

    async def restore_ends(restore: str) -> None:
        await receiver.restore_ends(restore)

    async def drill_goes_on(restore: str) -> None:
        receiver.drill_hold.keep(restore)

    async def restored(restore: str, epoch: int, source_uuid: str = "") -> None:
        await receiver.restored(restore, epoch, source_uuid)

    async def shut(group: str) -> None:
        await receiver.shut(group)

    async def reopen(group: str) -> None:
        await receiver.reopen(group)

    async def promote(record: object) -> None:
        await receiver.promote(msgspec.convert(record, Promotion))

    async def learn(record: object) -> None:
        await receiver.learn(msgspec.convert(record, Promotion))

    async def seal() -> dict[str, bytes | None]:
        return await receiver.seal()

    async def drop_peer(uuid: str) -> None:
        receiver.drop_peer(uuid)

    async def stop() -> None:
        receiver.stop()

    async def forget() -> None:
        receiver.forget()

    return {
        "adopt": adopt,
        "status": status,
        "pause": pause,
        "resume": resume,
        "use": use,
        "set_orphans": set_orphans,
        "restore_begins": restore_begins,
        "restore_ends": restore_ends,
        "drill_goes_on": drill_goes_on,
        "restored": restored,
        "shut": shut,
        "reopen": reopen,
        "promote": promote,
        "learn": learn,
        "seal": seal,
        "drop_peer": drop_peer,
        "stop": stop,
        "forget": forget,
    }


async def serve(world: World, arguments: ReceiverArguments) -> None:
    """The whole process: control socket and receiver."""
    receiver = Receiver(
        world,
        arguments,
        partial(
            ReplicaTree,
            keeps_existing=arguments.keeps_existing,
            keep_deleted=arguments.keep_deleted,
            bare=BareFiles(Home(arguments.home).bare_files, world.clock.boot_id()),
        ),
    )
    socket_path = Home(arguments.home).socket("receiver", arguments.connection_uuid)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    receiver.stop()

            nursery.start_soon(stop_on_signal)
            nursery.start_soon(serve_offers, arguments.connection_uuid, receiver.offer, receiver.own)
            await nursery.start(partial(control.serve, socket_path, handlers(receiver)))
            await receiver.run()
            nursery.cancel_scope.cancel()
    if receiver.forgotten:
        target = Home(arguments.home).target(arguments.connection_uuid)
        for directory in (arguments.memory_directory, arguments.disk_directory or target, target):
            shutil.rmtree(directory, ignore_errors=True)
        remove_if_empty(os.path.dirname(arguments.memory_directory))


def run(arguments_file: str) -> None:
    """`python -m replicator.receiver.process --arguments FILE`."""
    with open(arguments_file, "rb") as file:
        arguments = msgspec.json.decode(file.read(), type=ReceiverArguments)
    credentials.prepare_process()
    interpreter.tune()
    try:
        trio.run(serve, World(), arguments)
    except ReplicatorError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--arguments":
        raise SystemExit("usage: python -m replicator.receiver.process --arguments FILE")
    run(sys.argv[2])
