"""The target "Diagnostics": it takes all that is sent, measures it, and says that it has applied it. Nothing
leaves the host (SM-01).

It is the other end of a socket pair in the sender's own process, and speaks the protocol of a target, so that
capture, queue, mirror, schedule and statistics do what they do always. It has nothing to compare with: for it
mirrors are full ones.
"""

import os
import socket
import sys
from collections.abc import Mapping

import msgspec
import trio
import zstandard

from replicator import limits
from replicator.diagnostics import Amount, DiagnosticsReport, Measured, report
from replicator.errors import ProtocolError, RemoteProtocolError
from replicator.net.engine import Engine, Event, Role
from replicator.net.frames import (
    PROTOCOL_VERSION,
    Acknowledge,
    Connect,
    Connected,
    Derived,
    Disconnect,
    Greeting,
    Hello,
    Mark,
    MirrorBegin,
    MirrorEnd,
    PieceBatch,
    Records,
    TargetState,
)
from replicator.net.session import Session, SessionEnded
from replicator.queue.durable_file import read_if_there, replace
from replicator.status import TargetDataState, TargetStatus
from replicator.transmission import LINKS_BIT_PER_S
from replicator.world import World


class NowhereState(msgspec.Struct):
    """What is remembered: how far the stream came, and what was measured of it."""

    marks: dict[str, tuple[int, int]] = {}  # by journal id: sequence and chain
    data_state: TargetDataState = TargetDataState.MIRROR_REQUIRED
    mirroring: bool = False
    mirror_id: str = ""
    batches: int = 0
    settled: str = ""
    full_id: str = ""  # the mirror of everything that is measured
    measured: Measured = msgspec.field(default_factory=Measured)


class Nowhere:
    """See the module. `dial` as `World.connect`; `run` beside the sender."""

    def __init__(self, world: World, path: str) -> None:
        self._world = world
        self._path = path
        self._state = self._load()
        if not self._state.measured.since:
            self._state.measured.since = self._now()
        self._durable = dict(self._state.marks)  # as they are on disk: a source keeps the rest
        self._saved_s = trio.current_time()
        self._send_dialled, self._dialled = trio.open_memory_channel[trio.SocketStream](1)
        self._compressor = zstandard.ZstdCompressor(level=limits.DIAGNOSTICS_LEVEL)
        self._samples: dict[bool, bytearray] = {}  # being collected: of changes, of the mirror
        self._news = trio.Event()
        self._forgotten = False

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """One end of a connection of which `run` has the other."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        await self._send_dialled.send(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        return trio.SocketStream(trio.socket.from_stdlib_socket(theirs))

    def report(self, lines: Mapping[str, int] | None = None) -> DiagnosticsReport:
        """`lines`: bits per second by name, that are judged before the known links."""
        for amount in (self._state.measured.changes, self._state.measured.mirror):
            if not amount.sampled_bytes:
                self._compress(amount)
        return report(self._state.measured, self._now(), {**(lines or {}), **LINKS_BIT_PER_S})

    def reset(self) -> None:
        """Measure anew from now on; the mirror's part stays."""
        known = self._state.measured
        self._state.measured = Measured(
            since=self._now(), mirror=known.mirror, mirror_complete=known.mirror_complete
        )
        self._save()

    async def run(self) -> None:
        """Serve sessions, one after the other, until cancelled."""
        try:
            async for stream in self._dialled:
                await self._serve(Session(stream, Engine(Role.TARGET)))
        finally:
            self._save()

    # --- one session ---

    async def _serve(self, session: Session) -> None:
        reason = ""
        try:
            connect = await self._accept(session)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.heartbeat)
                nursery.start_soon(self._acknowledge, session, connect)
                try:
                    while not self._forgotten:
                        self._take(connect, await session.receive())
                except SessionEnded:
                    pass
                nursery.cancel_scope.cancel()
        except (SessionEnded, ProtocolError, BaseExceptionGroup) as error:
            reason = str(error)
            print(f"diagnostics: {reason}", file=sys.stderr, flush=True)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await session.close(reason)

    async def _accept(self, session: Session) -> Connect:
        """As `receiver/acceptance.py`: up to CONNECTED."""
        greeting, hello = await session.receive(), await session.receive()
        if not isinstance(greeting, Greeting) or not isinstance(hello, Hello):
            raise RemoteProtocolError("no greeting")
        await session.send(Hello(PROTOCOL_VERSION, hello.agent_uuid, hello.agent_name))
        connect = await session.receive()
        if not isinstance(connect, Connect):
            raise RemoteProtocolError("no connection was asked for")
        state = self._state
        ids = [journal.journal_id for journal in connect.journals]
        state.marks = {key: mark for key, mark in state.marks.items() if key in ids}
        known = tuple(Mark(*state.marks[i]) if i in state.marks else None for i in ids)
        durable = tuple(Mark(*self._durable[i]) if i in self._durable else None for i in ids)
        await session.send(
            Connected(
                known,
                known,
                durable,
                state.data_state,
                state.mirroring,
                state.batches,
                state.mirror_id,
                os.getpid(),
            )
        )
        return connect

    async def _acknowledge(self, session: Session, connect: Connect) -> None:
        ids = [journal.journal_id for journal in connect.journals]
        told: TargetState | None = None
        try:
            while True:
                self._news = trio.Event()
                if trio.current_time() - self._saved_s >= limits.SYNC_DELAY_S:
                    self._save()
                state = self._state
                now = TargetState(TargetStatus.OK, state.data_state, "", 0)
                if now != told:
                    told = now
                    await session.send(now)
                marks = tuple(state.marks.get(i, (0, 0))[0] for i in ids)
                durable = tuple(self._durable.get(i, (0, 0))[0] for i in ids)
                await session.send(
                    Acknowledge(marks, marks, durable, state.batches, state.batches, state.settled)
                )
                with trio.move_on_after(limits.SYNC_DELAY_S if durable != marks else float("inf")):
                    await self._news.wait()
                await trio.sleep(limits.DIAGNOSTICS_ANSWER_S)
        except SessionEnded:
            pass  # the reader says so

    def _take(self, connect: Connect, event: Event) -> None:
        state = self._state
        measured = state.measured
        if isinstance(event, tuple):
            frame, data = event
            if isinstance(frame, Records | Derived):
                journal_id = connect.journals[frame.journal].journal_id
                state.marks[journal_id] = (frame.last.sequence, frame.last.chain)
                measured.count(self._now(), len(data))
                self._sample(measured.changes, data)
            elif isinstance(frame, PieceBatch):
                state.batches = frame.number
                if state.mirror_id == state.full_id:
                    measured.mirror.bytes += len(data)
                    self._sample(measured.mirror, data)
        elif isinstance(event, MirrorBegin):
            state.mirroring, state.mirror_id, state.batches = True, event.mirror_id, 0
            state.data_state = TargetDataState.MIRRORING
            if event.kind == "full":
                state.full_id = event.mirror_id
                if not event.continued:
                    measured.mirror, measured.mirror_complete = Amount(), False
        elif isinstance(event, MirrorEnd):
            state.mirroring, state.settled = False, event.mirror_id
            complete = event.complete
            state.data_state = TargetDataState.OK if complete else TargetDataState.MIRROR_REQUIRED
            if event.mirror_id == state.full_id:
                measured.mirror_complete = complete
        elif isinstance(event, Disconnect):
            self._forgotten = True
            self._remove()
        self._news.set()

    def _sample(self, amount: Amount, data: bytes | memoryview) -> None:
        """Compress a part of it: small frames together, as a stream would."""
        if amount.bytes < amount.sampled_bytes * limits.DIAGNOSTICS_SAMPLED:
            return
        sample = self._samples.setdefault(amount is self._state.measured.mirror, bytearray())
        sample += data[: limits.DIAGNOSTICS_SAMPLE_BYTES - len(sample)]
        if len(sample) >= limits.DIAGNOSTICS_SAMPLE_BYTES:
            self._compress(amount)

    def _compress(self, amount: Amount) -> None:
        sample = self._samples.pop(amount is self._state.measured.mirror, None)
        if sample:
            amount.sampled_bytes += len(sample)
            amount.compressed_bytes += len(self._compressor.compress(bytes(sample)))

    def _now(self) -> float:
        return self._world.clock.wall_ns() / 1e9

    # --- the file ---

    def _load(self) -> NowhereState:
        data = read_if_there(self._world.disk, self._path)
        if data is None:
            return NowhereState()
        try:
            return msgspec.json.decode(data, type=NowhereState)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            print(f"{self._path}: damaged, measured anew: {error}", file=sys.stderr, flush=True)
            return NowhereState()

    def _save(self) -> None:
        """Not durably: what a loss of power takes is measured again."""
        self._saved_s = trio.current_time()
        if self._forgotten:
            return
        self._world.disk.makedirs(os.path.dirname(self._path))
        replace(self._world.disk, self._path, [msgspec.json.encode(self._state)])
        self._durable = dict(self._state.marks)

    def _remove(self) -> None:
        try:
            self._world.disk.unlink(self._path)
        except OSError:
            pass  # there is none
