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
from replicator.agent.flow import Flow
from replicator.agent.mirrors import Mirrors
from replicator.agent.scanner import Scanner
from replicator.agent.sender_arguments import JournalArguments, SenderArguments
from replicator.agent.sender_state import SenderState, SenderStateFile
from replicator.agent.shipper import RootChanged, Shipper
from replicator.errors import JournalError, ProtocolError, ReplicatorError
from replicator.mirror.pieces import Refused, decode_refused
from replicator.mirror.scan import Source, join
from replicator.net.engine import Engine, Event, Role
from replicator.net.frames import (
    PROTOCOL_VERSION,
    Acknowledge,
    Connect,
    Connected,
    Derived,
    Disconnect,
    Hello,
    JournalInfo,
    Mark,
    PathMap,
    PiecesRefused,
    RefusedConnection,
    TargetState,
)
from replicator.net.session import Session, SessionEnded
from replicator.ops import START, Position, shown
from replicator.paths import Home
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings
from replicator.repset import compile_filter
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    MirrorProgress,
    MirrorStatus,
    ReplicationStatus,
    TargetDataState,
    TargetStatus,
    TransmitMode,
)
from replicator.world import World


class Sender:
    """See the module.

    `run` until `stop`; everything else may be called from other tasks of the same trio run.
    """

    def __init__(self, world: World, arguments: SenderArguments, flows: list[Flow]) -> None:
        self._world = world
        self._arguments = arguments
        self._flows = flows
        self._agent_bell = Home(arguments.home).bell
        self._told: tuple[object, ...] = ()  # the agent, by its bell
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
        self._changes = Changes(self._tell_agent)
        self._mirrors = mirrors = Mirrors(world, flows, self._memory, self._changes)
        self.shipper = Shipper(
            flows,
            lambda: mirrors.run,
            mirrors.begin_recovery,
            mirrors.end,
            self._wake_scanner,
            lambda: self._scanner.idle,
        )
        self.shipper.replicating = self._state.replicating
        # Larger than any number of an earlier process: late acknowledgements cannot be confused.
        self.shipper.batches = world.clock.wall_ns() // 1000
        self._scanner = Scanner(world, flows, lambda: mirrors.run, mirrors.may_scan, self.shipper.wake)
        mirrors.shipper, mirrors.scanner = self.shipper, self._scanner
        self._session: Session | None = None
        self._state_name = ConnectionState.STOPPED
        self._state_reason = ""
        self._target_status = TargetStatus.NOT_LOADED
        self._target_reason = ""
        self._received = [0] * len(flows)
        self._applied = [0] * len(flows)
        self._durable = [0] * len(flows)
        self._connected_since: float | None = None
        self._receiver_pid: int | None = None
        self._root_changed = False
        self._stopping = False
        self.removed = False
        self._transmit_scope: trio.CancelScope | None = None

    @property
    def _state(self) -> SenderState:
        return self._memory.state

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection up until `stop` or `disconnect`."""
        task_status.started()
        delay_s = limits.RECONNECT_FIRST_S
        while not self._stopping:
            if (
                self._state.transmit is not TransmitMode.STARTED
                and self._state.transmit is not TransmitMode.PAUSED
            ):
                await self._changes.wait()
                continue
            self._transmit_scope = trio.CancelScope()
            with self._transmit_scope:
                connected = False
                try:
                    connected = await self._session_once()
                except RootChanged as error:
                    self._root_changed = True
                    self._set_transmit(TransmitMode.ERROR)
                    self._set_state(ConnectionState.ERROR, str(error))
                    continue
                except (OSError, SessionEnded, ProtocolError, ReplicatorError) as error:
                    connected = self._connected_since is not None
                    retry = getattr(error, "retry", True)
                    self._set_state(ConnectionState.ERROR, _reason(error, self._target_name))
                    if not retry:
                        self._set_transmit(TransmitMode.ERROR)
                        continue
                finally:
                    self._session_over()
                if connected:
                    delay_s = limits.RECONNECT_FIRST_S
                if not self._stopping:
                    await trio.sleep(delay_s * (0.75 + self._world.random.random() / 2))
                    delay_s = min(delay_s * 2, limits.RECONNECT_MAX_S)
        self._set_state(ConnectionState.STOPPED, "")

    @property
    def _target_name(self) -> str:
        return f"{self._arguments.target_host}:{self._arguments.target_port}"

    async def _session_once(self) -> bool:
        """One session, from connecting to its end.

        Raises what ended it.
        """
        arguments = self._arguments
        with trio.fail_after(limits.CONNECT_TIMEOUT_S):
            stream = await self._world.connect(arguments.target_host, arguments.target_port)
        session = Session(stream, Engine(Role.SOURCE))
        try:
            with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                connected = await self._introduce(session)
            self._resume_at(connected)
            self._session = session
            self._connected_since = self._world.clock.wall_ns() / 1e9
            self._receiver_pid = connected.receiver_pid
            self._target_status = TargetStatus.OK
            self._set_state(
                ConnectionState.PAUSED
                if self._state.transmit is TransmitMode.PAUSED
                else ConnectionState.STARTED,
                "",
            )
            for frame in self._starting_positions:
                await session.send(frame, b"")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.heartbeat)
                nursery.start_soon(self.shipper.run, session, self._may_ship)
                nursery.start_soon(self._scanner.run)
                nursery.start_soon(self._mirrors.count_sizes)
                nursery.start_soon(self._note_alive)
                while True:
                    self._handle(await session.receive())
        except BaseExceptionGroup as group:
            raise _first(group) from None
        except trio.TooSlowError:
            raise OSError(errno.ETIMEDOUT, "no answer in time") from None
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await session.close("sender stops" if self._stopping else "")
        return True

    async def _introduce(self, session: Session) -> Connected:
        arguments = self._arguments
        await session.greet(arguments.connection_uuid)
        await session.send(Hello(PROTOCOL_VERSION, arguments.agent_uuid, arguments.agent_name))
        hello = await session.receive()
        if isinstance(hello, RefusedConnection):
            raise ConnectionRefused(hello.reason, retry=hello.retry)
        assert isinstance(hello, Hello)
        await session.send(
            Connect(
                arguments.connection_uuid,
                arguments.repset.name,
                arguments.repset.generation,
                msgspec.json.encode(arguments.repset).decode(),
                tuple(JournalInfo(f.journal_id, os.fsencode(j.root)) for f, j in self._pairs()),
                tuple(
                    PathMap(m.journal, os.fsencode(m.source), os.fsencode(m.target)) for m in arguments.maps
                ),
                arguments.options.remap_links,
            )
        )
        answer = await session.receive()
        if isinstance(answer, RefusedConnection):
            raise ConnectionRefused(answer.reason, retry=answer.retry)
        assert isinstance(answer, Connected)
        return answer

    def _pairs(self) -> list[tuple[Flow, JournalArguments]]:
        return list(zip(self._flows, self._arguments.journals, strict=True))

    def _session_over(self) -> None:
        self._session = None
        self._connected_since = None
        self._receiver_pid = None
        self._target_status = TargetStatus.NOT_LOADED
        for flow in self._flows:
            flow.session_ended()
        self._changes.notify()

    # --- where to go on ---

    def _resume_at(self, connected: Connected) -> None:
        """Bring flows, orders and the mirror in line with what the target has."""
        self.shipper.data_state = TargetDataState(connected.data_state)
        self._starting_positions: list[Derived] = []
        lost = False
        for index, flow in enumerate(self._flows):
            mark = connected.received[index]
            if mark is None:
                flow.seek_head()
                self._starting_positions.append(Derived(index, Mark(*START), Mark(*flow.position)))
                lost = lost or connected.data_state == TargetDataState.OK
                continue
            try:
                if self._root_changed and all(flow.source.exists(root) for root in flow.filter.roots):
                    raise JournalError(
                        "a person put the root back: what happened between is compared, not repeated"
                    )
                flow.seek(Position(mark.sequence, mark.chain))
            except JournalError:
                flow.seek_head()
                self._starting_positions.append(Derived(index, mark, Mark(*flow.position)))
                lost = True
            self._received[index] = mark.sequence
            applied, durable = connected.applied[index], connected.durable[index]
            self._applied[index] = applied.sequence if applied else 0
            self._durable[index] = durable.sequence if durable else 0
        self._root_changed = self._root_changed and not lost
        self._mirrors.resume(connected, lost)

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
            for flow, durable in zip(self._flows, event.durable, strict=True):
                flow.cursor.acknowledge(durable)
            unapplied = self.shipper.unapplied
            while unapplied and self._applied[unapplied[0][0]] >= unapplied[0][1]:
                unapplied.popleft()
            self.shipper.acknowledged(event.batches_applied)
            if self._mirrors.run is not None:
                self._scanner.wake()
                self.shipper.wake()
            self._changes.notify()
        elif isinstance(event, TargetState):
            self._target_status = TargetStatus(event.status)
            self._target_reason = event.reason
            if self._mirrors.run is None and self.shipper.data_state is TargetDataState.OK:
                self._mirrors.was_exact = event.data_state == TargetDataState.MIRROR_REQUIRED
            self.shipper.data_state = TargetDataState(event.data_state)
            self._changes.notify()
        elif isinstance(event, PiecesRefused):
            for refused in decode_refused(event.refused):
                self._refused_piece(refused)
            self._scanner.wake()

    def _refused_piece(self, refused: Refused) -> None:
        flow, path = self._flows[refused.journal], refused.path
        paths = [join(path, name) for name in refused.names] or [path]
        if self._mirrors.run is None and refused.retry:  # single paths the target could not keep up to date
            self.shipper.recover(flow, paths, exact=True)
        if self._mirrors.run is None or not flow.order.active:
            return
        if not refused.retry:
            self._mirrors.run.problem(path, f"target: {refused.reason}")
        elif refused.names:
            for lacking in paths:
                flow.read_again(lacking)
        else:
            flow.read_again(path, refused.identity)

    # --- commands ---

    def mirror_start(self, kind: str = "difference", orphans: str = "") -> None:
        exact = (orphans or self._arguments.options.orphans) == "delete"
        self._mirrors.start(kind, exact=exact, connected=self._session is not None)

    def mirror_stop(self) -> None:
        self._mirrors.stop(connected=self._session is not None)

    def mirror_pause(self) -> None:
        self._mirrors.pause()

    def mirror_resume(self) -> None:
        self._mirrors.resume_paused()

    def _wake_scanner(self) -> None:
        self._scanner.wake()
        self._changes.notify()

    def replicate_start(self) -> None:
        """RP-01.

        What happened meanwhile was not kept: a mirror is advised (RP-02).
        """
        self._set_replicating(True)

    def replicate_stop(self) -> None:
        self._set_replicating(False)

    def _set_replicating(self, on: bool) -> None:
        self._state.replicating = self.shipper.replicating = on
        self._memory.save()
        if not on and self._mirrors.run is None and self.shipper.data_state is TargetDataState.OK:
            run = (
                self._mirrors.begin_recovery()
            )  # begins and ends in the stream: from here on the copy is not exact
            run.stopped = True
        self._changes.notify()
        self.shipper.wake()

    def transmit_start(self) -> None:
        self._set_transmit(TransmitMode.STARTED)
        if self._session is not None:
            self._set_state(ConnectionState.STARTED, "")

    def transmit_stop(self) -> None:
        """The network connection ends, changes are queued here (CS-01 Stopped)."""
        self._set_transmit(TransmitMode.STOPPED)
        self._set_state(ConnectionState.STOPPED, "transmission was stopped")
        self._interrupt()

    def transmit_pause(self) -> None:
        """The network connection stays, changes are queued here (CS-01 Paused)."""
        self._set_transmit(TransmitMode.PAUSED)
        if self._session is not None:
            self._set_state(ConnectionState.PAUSED, "")

    def transmit_resume(self) -> None:
        self.transmit_start()

    async def wait(self, sequences: dict[str, int], timeout_s: float | None) -> bool:
        """Whether, in that time, everything up to these sequences (by journal id) was applied and no mirror
        runs any more.
        """
        with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")):
            while True:
                if not self._state.replicating:
                    raise ReplicatorError("replication is stopped: `dtctl replicate start`")
                mirrored = (
                    self._mirrors.run is None and self.shipper.data_state is not TargetDataState.MIRRORING
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
        for flow in self._flows:
            flow.cursor.remove()
        self._memory.remove()
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
        ops = bytes_ = 0
        for flow, applied in zip(self._flows, self._applied, strict=True):
            queued_ops, queued_bytes = flow.cursor.backlog()
            ops += max(flow.cursor.head().sequence - applied, 0) if applied else queued_ops
            bytes_ += queued_bytes
        if not self._state.replicating:
            replication = ReplicationStatus.STOPPED
        elif ops and self._session is not None:
            replication = ReplicationStatus.REPLICATING
        else:
            replication = ReplicationStatus.READY
        oldest = self.shipper.unapplied[0][2] if self.shipper.unapplied else None
        lag_s = max(self._world.clock.wall_ns() - oldest, 0) / 1e9 if oldest is not None else 0.0
        ids = [flow.journal_id for flow in self._flows]
        return ConnectionStatus(
            id=0,
            uuid=self._arguments.connection_uuid,
            repset=self._arguments.repset.name,
            target=self._target_name,
            state=self._state_name,
            state_reason=self._state_reason,
            target_data_state=self.shipper.data_state
            if self._mirrors.run is None
            else TargetDataState.MIRRORING,
            target_status=self._target_status,
            target_status_reason=self._target_reason,
            transmit_mode=self._state.transmit,
            mirror_status=progress.status if self._mirrors.run is not None else MirrorStatus.IDLE,
            replication_status=replication,
            queued_ops=ops,
            queued_bytes=bytes_,
            sent_bytes=totals.sent_bytes,
            sent_compressed_bytes=totals.sent_bytes,
            sent_ops=totals.operations,
            sent_mirror_bytes=totals.mirror_bytes,
            skipped_mirror_bytes=progress.skipped_bytes,
            remaining_mirror_bytes=progress.remaining_bytes if self._mirrors.run is not None else 0,
            lag_seconds=lag_s,
            last_file=shown(totals.last_path),
            connected_since=self._connected_since,
            received=dict(zip(ids, self._received, strict=True)),
            applied=dict(zip(ids, self._applied, strict=True)),
            durable=dict(zip(ids, self._durable, strict=True)),
            sender_pid=os.getpid(),
            receiver_pid=self._receiver_pid,
            mirror=progress,
        )

    @property
    def _data_state(self) -> TargetDataState:
        return self.shipper.data_state if self._mirrors.run is None else TargetDataState.MIRRORING

    # --- small things ---

    def _may_ship(self) -> bool:
        return self._state.transmit is TransmitMode.STARTED

    def _set_transmit(self, mode: TransmitMode) -> None:
        self._state.transmit = mode
        self._memory.save()
        self._changes.notify()
        self.shipper.wake()

    def _set_state(self, state: ConnectionState, reason: str) -> None:
        if (state, reason) != (self._state_name, self._state_reason):
            print(f"{state.value}{': ' if reason else ''}{reason}", file=sys.stderr, flush=True)
        self._state_name, self._state_reason = state, reason
        self._changes.notify()

    def _interrupt(self) -> None:
        if self._transmit_scope is not None:
            self._transmit_scope.cancel()

    def _tell_agent(self) -> None:
        """Ring if something is new that an administrator may want to find in the log."""
        notable = (self._state_name, self._mirrors.run is None, self._target_status, self.shipper.data_state)
        if notable != self._told:
            self._told = notable
            self._world.doorbells.ring(self._agent_bell)


class ConnectionRefused(ReplicatorError):
    """The target does not accept this connection.

    `retry`: trying again by itself may help.
    """

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended a session: RootChanged before what only followed from it, a bug before all; the group if it
    is cancelled.
    """
    leaves: list[BaseException] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        elif not isinstance(error, trio.Cancelled):
            leaves.append(error)

    collect(group)
    bug = any(not isinstance(e, SessionEnded | ProtocolError | OSError | ReplicatorError) for e in leaves)
    if bug or not leaves:
        return group
    return next((e for e in leaves if isinstance(e, RootChanged)), leaves[0])


def _reason(error: BaseException, target: str) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and not isinstance(error, ReplicatorError):
        return f"{target}: {error.strerror or text}"
    return text


# --- the process ---


async def open_flows(world: World, arguments: SenderArguments) -> list[Flow]:
    """Journals, cursors and source trees of a connection; waits for captures that are not up yet."""
    flows: list[Flow] = []
    for index, journal in enumerate(arguments.journals):
        settings = JournalSettings(journal.memory_directory, journal.disk_directory)
        while True:
            try:
                root_fd = await _capture_root(journal.capture_socket)
                cursor = Cursor.open(
                    world, settings, journal.mount_id, arguments.connection_uuid, create=True
                )
                lookahead = Cursor.open(world, settings, journal.mount_id, None)
                break
            except (OSError, ReplicatorError) as error:
                print(f"waiting for the mount {journal.root}: {error}", file=sys.stderr, flush=True)
                await trio.sleep(limits.RECONNECT_FIRST_S)
        make_filter = partial(compile_filter, arguments.repset, os.fsencode(journal.root))
        source = Source(root_fd, make_filter)
        flows.append(Flow(index, journal.mount_id, cursor, lookahead, make_filter(), source))
    return flows


async def _capture_root(socket_path: str) -> int:
    async with control.Control(socket_path) as capture:
        _, descriptors = await capture.call_with_descriptors("root")
    return descriptors[0]


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
        "transmit_start transmit_stop transmit_pause transmit_resume stop"
    )
    calls = {name: plain(getattr(sender, name)) for name in names.split()}
    return calls | {"wait": wait, "disconnect": sender.disconnect}


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
