"""The receiver: one process per connection, on the target. Spools what arrives, and a replica applies it.

The network task verifies each frame and appends it to the spool; the replica (see `replica.py`) applies the
spool whether a session is there or not; a report task sends the three marks, refusals and states. A newer
socket replaces an older session. Everything comes through the World, so that the simulator runs it as it is;
`main` puts it in a process.
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
import xxhash

from replicator import limits
from replicator.agent import control, interpreter
from replicator.agent import replica_state as states
from replicator.agent.position_file import PositionFile
from replicator.agent.replica import Replica
from replicator.agent.replica_paths import RefusedTarget, check_lock, check_targets, make_targets
from replicator.agent.replica_state import Applied, Received, RefusedBatch, ReplicaState, StateFile
from replicator.agent.replica_tree import LINKS_PREFIX, ReplicaTree, Tree, release
from replicator.agent.shared_value import SharedValue
from replicator.agent.spool import Spool
from replicator.agent.states import DATA, DataEvent, step
from replicator.errors import JournalError, ProtocolError, RemoteProtocolError, ReplicatorError, UsageError
from replicator.fs import credentials
from replicator.mirror.pieces import decode_batch
from replicator.net.engine import Buffer, Engine, Event, Role
from replicator.net.frames import (
    PROTOCOL_VERSION,
    Acknowledge,
    Connect,
    Connected,
    Derived,
    Disconnect,
    Frame,
    Greeting,
    Hello,
    Mark,
    MirrorBegin,
    MirrorEnd,
    PieceBatch,
    PiecesRefused,
    Records,
    RefusedConnection,
    StreamHead,
    TargetState,
)
from replicator.net.session import PeerLeft, Session, SessionEnded
from replicator.ops import Position, shown
from replicator.paths import Home, remove_if_empty
from replicator.queue import record as codec
from replicator.queue.journal import JournalSettings
from replicator.status import TargetDataState, TargetLock, TargetStatus
from replicator.world import World


class ReceiverArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The arguments file of a receiver process."""

    home: str
    connection_uuid: str
    agent_uuid: str
    agent_name: str
    memory_directory: str  # of the spool's memory tier, for this connection alone
    segment_bytes: int = limits.SEGMENT_BYTES
    memory_bytes: int = limits.MEMORY_QUEUE_BYTES
    disk_bytes: int | None = limits.DISK_QUEUE_BYTES
    disk_free_min_bytes: int = limits.DISK_FREE_MIN_BYTES


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
    spool_full: bool
    queued_bytes: int
    memory_queue_bytes: int
    disk_queue_bytes: int
    operations: int  # applied by this process
    last_path: str
    received: dict[str, int]
    applied: dict[str, int]
    durable: dict[str, int]


class _Refused(Exception):
    """This connection is not accepted."""

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


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
        self._directory = Home(arguments.home).target(arguments.connection_uuid)
        self._memory = arguments.memory_directory
        self._refused_path = os.path.join(self._memory, "refused")
        world.disk.makedirs(self._directory)
        world.disk.makedirs(self._memory)
        self._state_file = StateFile(world, self._directory)
        state = self._state_file.load() or ReplicaState(connection_uuid=arguments.connection_uuid)
        settings = JournalSettings(
            self._memory,
            os.path.join(self._directory, "spool"),
            arguments.segment_bytes,
            arguments.memory_bytes,
            arguments.disk_bytes,
            arguments.disk_free_min_bytes,
        )
        self._spool = Spool(world, settings, arguments.connection_uuid)
        try:
            self._positions = PositionFile(world, self._directory)
            self._received_page = self._open_page("received")
            self._applied_page = self._open_page("applied")
            state, applied, refused = self._recover(state)
        except BaseException:
            self._spool.close()
            raise
        self.replica = Replica(
            world,
            self._spool,
            self._state_file,
            state,
            self._positions,
            applied,
            self._applied_page,
            refused,
            self._save_refused,
            lambda connect: open_tree(connect, self._directory),
            self._news_here,
        )
        self._news = trio.Event()
        self._room = trio.Event()
        self._spool_full = False
        self._adopted: tuple[trio.abc.Stream, bytes, tuple[str, ...]] | None = None
        self._adoption = trio.Event()
        self._session_scope: trio.CancelScope | None = None
        self._connected = False
        self._ending = ""

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
        self._adoption.set()
        if self._session_scope is not None:
            self._session_scope.cancel()

    def pause(self) -> None:
        """PT-01: apply nothing; what arrives is spooled."""
        self.replica.pause()

    def resume(self) -> None:
        self.replica.resume()

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
            spool_full=self._spool_full,
            queued_bytes=self._spool.queued_bytes,
            memory_queue_bytes=memory_bytes,
            disk_queue_bytes=disk_bytes,
            operations=replica.operations,
            last_path=shown(replica.last_path),
            received=_sequences(self._received.marks),
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
                task_status.started()
                async with trio.open_nursery() as working:
                    working.start_soon(self.replica.run)
                    working.start_soon(self._serve_sessions)
                nursery.cancel_scope.cancel()
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
            if self.replica.state.connect is not None:
                release(self.replica.state.connect)
            self._remove_everything()

    def _remove_everything(self) -> None:
        disk = self._world.disk
        for directory in (self._memory, os.path.join(self._directory, "spool"), self._directory):
            for name in disk.listdir(directory) if disk.exists(directory) else ():
                path = os.path.join(directory, name)
                if path != os.path.join(self._directory, "spool"):
                    disk.unlink(path)

    # --- coming back ---

    def _open_page(self, name: str) -> SharedValue:
        path = os.path.join(self._memory, name)
        return SharedValue(self._world, path, limits.POSITION_BYTES, create=True)

    def _recover(self, state: ReplicaState) -> tuple[ReplicaState, Applied, list[RefusedBatch]]:
        """Where spool and tree stand. Sets `_received`."""
        pages = self._received_page.load(), self._applied_page.load()
        if state.boot_id == self._world.clock.boot_id() and pages[0] is not None and pages[1] is not None:
            self._received = states.decode(pages[0], Received)
            applied = states.decode(pages[1], Applied)
            try:
                self._spool.seek(self._received.spool)
                while (frame := self._spool.read()) is not None:  # a kill came between spool and page
                    self._note_received(frame.frame, frame.data, frame.position)
                self._spool.seek(applied.spool)
            except JournalError as error:
                print(f"the spool is lost: {error}", file=sys.stderr, flush=True)
            else:
                return state, applied, self._load_refused()
        # Another boot, or the memory is gone: what was not durable may be there in part. The source compares.
        connect = state.connect
        lost = connect is not None and not state.clean
        suspect_since_ns = state.suspect_since_ns
        if lost and suspect_since_ns is None:
            suspect_since_ns = self._positions.wall_ns
        self._remove_identities()
        self._spool.seek_head()
        self._received = Received(
            self._spool.head,
            dict(self._positions.marks),
            connect=_fingerprint(connect) if connect is not None else 0,
            journals=_journal_ids(connect) if connect is not None else (),
        )
        applied = Applied(self._spool.head, 0, dict(self._positions.marks))
        state = msgspec.structs.replace(
            state,
            boot_id=self._world.clock.boot_id(),
            mirroring=False,
            mirror_id="",
            data_state=state.data_state
            if state.clean and not state.mirroring
            else step(DATA, state.data_state, DataEvent.POWER_LOST),
            suspect_since_ns=suspect_since_ns,
            power_lost=state.power_lost or (lost and state.data_state != TargetDataState.MIRROR_REQUIRED),
        )
        # This order: until the last of them is written, the next start comes here again.
        self._save_refused([])
        self._received_page.store(states.encode(self._received))
        self._applied_page.store(states.encode(applied))
        self._state_file.save(state)
        return state, applied, []

    def _remove_identities(self) -> None:
        """The tables of hard links are not synced: after power loss they may not even open."""
        disk = self._world.disk
        for name in disk.listdir(self._directory):
            if name.startswith(LINKS_PREFIX):
                disk.unlink(os.path.join(self._directory, name))

    def _save_refused(self, refused: list[RefusedBatch]) -> None:
        disk = self._world.disk
        if not refused:
            if disk.exists(self._refused_path):
                disk.unlink(self._refused_path)
            return
        data = msgspec.msgpack.encode(refused)
        temporary = self._refused_path + ".new"
        handle = disk.open_append(temporary)
        try:
            disk.append(handle, [data], 0)
        finally:
            disk.close(handle)
        disk.truncate(temporary, len(data))
        disk.replace(temporary, self._refused_path)

    def _load_refused(self) -> list[RefusedBatch]:
        disk = self._world.disk
        if not disk.exists(self._refused_path):
            return []
        handle = disk.open_read(self._refused_path)
        try:
            data = disk.read(handle, disk.size(self._refused_path), 0)
        finally:
            disk.close(handle)
        return msgspec.msgpack.decode(data, type=list[RefusedBatch])

    # --- sessions ---

    async def _serve_sessions(self) -> None:
        while not self._ending:
            if self._adopted is None:
                self._adoption = trio.Event()
                await self._adoption.wait()
                continue
            (stream, first_bytes, others), self._adopted = self._adopted, None
            session = Session(stream, Engine(Role.TARGET), first_bytes=first_bytes)
            reason = ""
            with trio.CancelScope() as self._session_scope:
                reason = await self._run_session(session, others)
            self._connected = False
            self._session_scope = None
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
                    connect = await self._introduce(session, others)
                self._connected = True
                self._log(f"connected to {self.replica.state.source_name}")
                nursery.start_soon(self._report, session, connect)
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
            except _Refused as refused:
                reason = str(refused)
                self._log(f"refused: {refused}")
                try:
                    await session.send(RefusedConnection(reason[:1000], refused.retry))
                except SessionEnded:
                    pass
            except trio.TooSlowError:
                reason = "the source did not introduce itself in time"
                self._log(reason)
            nursery.cancel_scope.cancel()
        return reason

    async def _introduce(self, session: Session, others: tuple[str, ...]) -> Connect:
        arguments = self._arguments
        greeting = await session.receive()
        assert isinstance(greeting, Greeting)
        if greeting.connection_uuid != arguments.connection_uuid:
            raise RemoteProtocolError(f"{greeting.connection_uuid} is not the connection of this receiver")
        hello = await session.receive()
        if not isinstance(hello, Hello) or hello.version != PROTOCOL_VERSION:
            raise _Refused(f"this agent speaks version {PROTOCOL_VERSION} of the protocol only", retry=False)
        await session.send(Hello(PROTOCOL_VERSION, arguments.agent_uuid, arguments.agent_name))
        connect = await session.receive()
        if not isinstance(connect, Connect) or connect.connection_uuid != arguments.connection_uuid:
            raise RemoteProtocolError("the source names another connection than in its greeting")
        ids = _journal_ids(connect)
        if not 0 < len(ids) <= limits.JOURNALS or len(set(ids)) != len(ids):
            raise RemoteProtocolError(f"{len(ids)} journals, or one of them twice")
        try:
            private = (arguments.home, os.path.dirname(arguments.memory_directory))
            same_host = hello.agent_uuid == arguments.agent_uuid
            check_targets(connect, others=others, private=private, same_host=same_host)
            check_lock(connect)
        except RefusedTarget as error:
            raise _Refused(str(error), retry=False) from None
        try:
            make_targets(connect, self.replica.state.connect)
        except OSError as error:
            raise _Refused(
                f"{shown(os.fsencode(error.filename or ''))}: {error.strerror}", retry=True
            ) from None
        except ReplicatorError as error:
            raise _Refused(str(error), retry=True) from None
        await self.replica.know_source(hello.agent_uuid, hello.agent_name)
        if _fingerprint(connect) != self._received.connect:
            await self._append(connect)
        received, replica = self._received, self.replica
        await session.send(
            Connected(
                _marks(received.marks, ids),
                _marks(replica.applied.marks, ids),
                _marks(replica.durable, ids),
                replica.state.data_state,
                received.mirroring,
                received.batches,
                received.mirror_id,
                os.getpid(),
                replica.state.power_lost and not received.mirroring,
            )
        )
        return connect

    # --- what arrives ---

    async def _handle(self, event: Event) -> None:
        if isinstance(event, tuple):
            frame, data = event
            if isinstance(frame, Records):
                await self._records(frame, data)
            elif isinstance(frame, Derived):
                await self._derived(frame, data)
            elif isinstance(frame, PieceBatch):
                await self._batch(frame, data)
        elif isinstance(event, MirrorBegin):
            await self._append(event)
        elif isinstance(event, MirrorEnd):
            if not self._received.mirroring or event.mirror_id != self._received.mirror_id:
                raise RemoteProtocolError("the end of a mirror that was not begun")
            await self._append(event)
        elif isinstance(event, Disconnect):
            if event.connection_uuid != self._arguments.connection_uuid:
                raise RemoteProtocolError("a source deletes another connection than its own")
            self.forget()
            await trio.lowlevel.checkpoint()  # ends this session

    def _journal_id(self, index: int) -> str:
        journals = self._received.journals
        if index >= len(journals):
            raise RemoteProtocolError(f"journal {index} does not exist: the connection has {len(journals)}")
        return journals[index]

    async def _records(self, head: Records, data: memoryview) -> None:
        """Verify, and spool what is new of it."""
        known = self._received.marks.get(self._journal_id(head.journal))
        previous = Position(head.previous.sequence, head.previous.chain)
        last = previous
        cut: int | None = 0 if known is None or known == previous else None
        try:
            for offset, length, record in codec.iterate(data, previous):
                last = Position(record.sequence, record.chain)
                if last == known:
                    cut = offset + length
        except JournalError as error:
            raise RemoteProtocolError(f"records that do not prove themselves: {error}") from None
        if last != Position(head.last.sequence, head.last.chain):
            raise RemoteProtocolError(f"records end at {last.sequence} and not at {head.last.sequence}")
        if cut is None:
            assert known is not None
            if last.sequence < known.sequence:
                return  # a repetition
            raise RemoteProtocolError(f"records from {previous.sequence} on do not continue {known.sequence}")
        if cut == len(data):
            return  # a repetition, or nothing at all
        if cut:
            assert known is not None
            data = data[cut:]
            head = Records(head.journal, Mark(*known), head.last, head.by_identity)
        await self._append(head, data)

    async def _derived(self, head: Derived, data: memoryview) -> None:
        known = self._received.marks.get(self._journal_id(head.journal))
        previous = Position(head.previous.sequence, head.previous.chain)
        if known is not None and known != previous:
            if head.last.sequence <= known.sequence:
                return  # a repetition
            raise RemoteProtocolError(
                f"an operation after {previous.sequence} does not continue {known.sequence}"
            )
        if data:
            try:
                _, length = codec.decode(data)
                codec.check(data, 0, length, 0)
            except JournalError as error:
                raise RemoteProtocolError(f"a derived record does not prove itself: {error}") from None
            if length != len(data):
                raise RemoteProtocolError("a DERIVED frame holds more than one record")
        await self._append(head, data)

    async def _batch(self, head: PieceBatch, data: memoryview) -> None:
        received = self._received
        if not received.mirroring:
            raise RemoteProtocolError("pieces outside of a mirror")
        try:
            batch = decode_batch(data)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"pieces cannot be decoded: {error}") from None
        self._journal_id(batch.journal)
        if batch.number != head.number:
            raise RemoteProtocolError(f"pieces {batch.number} came as {head.number}")
        if batch.number <= received.batches:
            return  # a repetition
        if not await self.replica.keeps_up() or not self.replica.place_now(batch):
            await self._append(head, data)
            return
        # Stored in this order: a successor that finds it applied and not received is sent it again.
        received.batches = batch.number
        self._received_page.store(states.encode(received))

    async def _append(self, frame: Frame, data: Buffer = b"") -> None:
        """Into the spool. While that is full nothing is read from the network: the source waits, nothing is
        lost.
        """
        while not self._spool.append(frame, data):
            if not self._spool_full:
                self._spool_full = True
                self._log("the spool is full: the source has to wait")
            self._room = trio.Event()
            with trio.move_on_after(limits.SPOOL_RETRY_S):
                await self._room.wait()
        self._spool_full = False
        # No checkpoint from the append to here: spool and position belong together for everyone in this
        # process.
        self._note_received(frame, data, self._spool.head)
        self._received_page.store(states.encode(self._received))
        self.replica.wake()
        self._news.set()

    def _note_received(self, frame: Frame, data: Buffer, position: Position) -> None:
        received = self._received
        received.spool = position
        if isinstance(frame, StreamHead):
            journal_id = received.journals[frame.journal]
            received.marks[journal_id] = Position(frame.last.sequence, frame.last.chain)
        elif isinstance(frame, PieceBatch):
            received.batches = frame.number
        elif isinstance(frame, MirrorBegin):
            received.mirroring, received.mirror_id, received.batches = True, frame.mirror_id, 0
        elif isinstance(frame, MirrorEnd):
            received.mirroring = False
        elif isinstance(frame, Connect):
            received.connect = _fingerprint(frame)
            received.journals = _journal_ids(frame)
            received.marks = {k: v for k, v in received.marks.items() if k in received.journals}

    # --- what goes back ---

    def _news_here(self) -> None:
        """A mark, a status or a refusal is new."""
        self._news.set()
        self._room.set()

    async def _report(self, session: Session, connect: Connect) -> None:
        """Send marks, refusals and states as they change. What is sent is what is true then: wake-ups carry
        nothing.
        """
        ids = _journal_ids(connect)
        last_marks: Acknowledge | None = None
        last_state: TargetState | None = None
        refusals = self.replica.refusals - len(self.replica.refused)  # those that are kept are sent again
        state_at = last_at = -1.0
        replica = self.replica
        try:
            while True:
                self._news = trio.Event()
                # Refusals first: a batch that is acknowledged is done with for the source.
                new = min(replica.refusals - refusals, len(replica.refused))
                refusals = replica.refusals
                marks = self._marks_now(ids)
                state = self._state_now()
                for refused in list(replica.refused)[len(replica.refused) - new :]:
                    await session.send(PiecesRefused(refused.refused))
                now = trio.current_time()
                if state != last_state and (
                    last_state is None
                    or msgspec.structs.replace(state, queued_bytes=last_state.queued_bytes) != last_state
                    or now - state_at >= limits.TARGET_STATE_INTERVAL_S
                ):
                    last_state, state_at = state, now
                    await session.send(state)
                if marks != last_marks:
                    last_marks, last_at = marks, now
                    await session.send(marks)
                await self._news.wait()
                if not replica.drained:
                    with trio.move_on_after(limits.ACKNOWLEDGE_INTERVAL_S):
                        while not replica.drained:
                            self._news = trio.Event()
                            await self._news.wait()
                elif trio.current_time() - last_at < limits.ACKNOWLEDGE_PAUSE_S:
                    await trio.sleep(limits.ACKNOWLEDGE_PAUSE_S)
        except SessionEnded:
            pass  # the reader finds out by itself

    def _marks_now(self, ids: tuple[str, ...]) -> Acknowledge:
        received, replica = self._received, self.replica
        nothing = Position(0, 0)
        # Batches are numbered from a MIRROR_BEGIN on; applied ones of an earlier mirror would be mistaken for
        # this one's.
        same_mirror = received.mirror_id == replica.state.mirror_id
        return Acknowledge(
            tuple(received.marks.get(i, nothing).sequence for i in ids),
            tuple(replica.applied.marks.get(i, nothing).sequence for i in ids),
            tuple(replica.durable.get(i, nothing).sequence for i in ids),
            received.batches,
            replica.applied.batches if same_mirror else 0,
        )

    def _state_now(self) -> TargetState:
        replica = self.replica
        return TargetState(
            replica.status, replica.state.data_state, replica.reason[:1000], self._spool.queued_bytes
        )

    def _log(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _sequences(marks: states.Marks) -> dict[str, int]:
    return {journal_id: position.sequence for journal_id, position in marks.items()}


def _marks(marks: states.Marks, ids: tuple[str, ...]) -> tuple[Mark | None, ...]:
    return tuple(Mark(*marks[i]) if i in marks else None for i in ids)


def _journal_ids(connect: Connect) -> tuple[str, ...]:
    return tuple(journal.journal_id for journal in connect.journals)


def _fingerprint(connect: Connect) -> int:
    value: int = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(connect))
    return value


def _close_now(stream: trio.abc.Stream) -> None:
    """Close without waiting, outside of a task that could."""
    trio.lowlevel.spawn_system_task(trio.aclose_forcefully, stream)


# --- the process ---


def handlers(receiver: Receiver) -> dict[str, Callable[..., Awaitable[object]]]:
    """Control calls of a receiver."""

    async def adopt(first: str, other_targets: Sequence[str], descriptors: Sequence[int] = ()) -> None:
        """One descriptor, a TCP socket; `first`: what was read from it, in base64."""
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise UsageError("adopt needs one socket")
        stream = trio.SocketStream(trio.socket.socket(fileno=descriptors[0]))
        receiver.adopt(stream, base64.b64decode(first), tuple(other_targets))

    async def status() -> ReceiverStatus:
        return receiver.status()

    async def pause() -> None:
        receiver.pause()

    async def resume() -> None:
        receiver.resume()

    async def stop() -> None:
        receiver.stop()

    async def forget() -> None:
        receiver.forget()

    return {
        "adopt": adopt,
        "status": status,
        "pause": pause,
        "resume": resume,
        "stop": stop,
        "forget": forget,
    }


async def serve(world: World, arguments: ReceiverArguments) -> None:
    """The whole process: control socket and receiver."""
    receiver = Receiver(world, arguments)
    socket_path = Home(arguments.home).socket("receiver", arguments.connection_uuid)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    receiver.stop()

            nursery.start_soon(stop_on_signal)
            await nursery.start(partial(control.serve, socket_path, handlers(receiver)))
            await receiver.run()
            nursery.cancel_scope.cancel()
    if receiver.forgotten:
        for directory in (arguments.memory_directory, Home(arguments.home).target(arguments.connection_uuid)):
            shutil.rmtree(directory, ignore_errors=True)
        remove_if_empty(os.path.dirname(arguments.memory_directory))


def main(arguments_file: str) -> None:
    """`python -m replicator.agent.receiver --arguments FILE`."""
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
        raise SystemExit("usage: python -m replicator.agent.receiver --arguments FILE")
    main(sys.argv[2])
