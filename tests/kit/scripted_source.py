"""A source that a test plays by hand: a journal of records, and one session of it with a receiver."""

from collections.abc import Callable
from typing import Any

import trio

from replicator.mirror.pieces import Batch, Refused, decode_refused, encode_batch
from replicator.net.engine import Engine, Event, Role
from replicator.net.frames import (
    Acknowledge,
    Connect,
    Connected,
    Derived,
    Frame,
    Hello,
    JournalInfo,
    Mark,
    PathMap,
    PieceBatch,
    PiecesRefused,
    Records,
    RefusedConnection,
    TargetState,
)
from replicator.net.session import Session, SessionEnded
from replicator.ops import START, Position, Record
from replicator.queue import record as codec

CONNECTION = "9f0c6c0e-6f43-4b1b-9d0e-000000000001"
PATIENCE_S = 300.0  # of virtual time: heartbeats would let a test wait for ever
SOURCE_AGENT = "11111111-6f43-4b1b-9d0e-000000000001"


class RecordedJournal:
    """Records in a chain, as a journal has them."""

    def __init__(self, journal_id: str = "j0") -> None:
        self.journal_id = journal_id
        self.positions: list[Position] = [START]
        self._encoded: list[bytes] = []

    def add(self, record: Record) -> None:
        last = self.positions[-1]
        buffers, _, chain = codec.encode(
            record.kind,
            last.sequence + 1,
            last.chain,
            7,
            1,
            1,
            record.path,
            record.path2,
            record.payload,
            record.flags,
            record.inode,
            record.generation,
            record.arg0,
            record.arg1,
        )
        self._encoded.append(b"".join(buffers))
        self.positions.append(Position(last.sequence + 1, chain))

    def __len__(self) -> int:
        return len(self._encoded)

    def run(self, begin: int, end: int, index: int = 0, **more: Any) -> tuple[Records, bytes]:
        """Records after number `begin` up to number `end`."""
        head = Records(index, Mark(*self.positions[begin]), Mark(*self.positions[end]), **more)
        return head, b"".join(self._encoded[begin:end])

    def advance(self, begin: int, end: int, data: bytes = b"", index: int = 0) -> tuple[Derived, bytes]:
        return Derived(index, Mark(*self.positions[begin]), Mark(*self.positions[end])), data


def connect_frame(target: str, journals: tuple[str, ...] = ("j0",), **changes: Any) -> Connect:
    values: dict[str, Any] = {
        "connection_uuid": CONNECTION,
        "repset": "home",
        "generation": 1,
        "set_definition": "{}",
        "journals": tuple(JournalInfo(name, b"/source/" + name.encode()) for name in journals),
        "maps": tuple(
            PathMap(index, b"", target.encode() + (b"" if not index else b"-%d" % index))
            for index in range(len(journals))
        ),
    }
    return Connect(**{**values, **changes})


class ScriptedSession:
    """One session, from the source's side. `events` are all that the target said since CONNECTED."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.session = Session(stream, Engine(Role.SOURCE))
        self.events: list[Event] = []
        self.refused: list[Refused] = []
        self.ended = ""
        self._changed = trio.Event()

    async def open(
        self, connect: Connect, agent_uuid: str = SOURCE_AGENT, uuid: str = CONNECTION
    ) -> Connected | RefusedConnection:
        await self.session.greet(uuid)
        await self.session.send(Hello(1, agent_uuid, "source"))
        answer = await self.session.receive()
        if isinstance(answer, RefusedConnection):
            return answer
        assert isinstance(answer, Hello)
        await self.session.send(connect)
        answer = await self.session.receive()
        assert isinstance(answer, Connected | RefusedConnection)
        return answer

    async def listen(self) -> None:
        """Collect what the target says; run it beside. Returns at the end of the session."""
        try:
            while True:
                event = await self.session.receive()
                self.events.append(event)
                if isinstance(event, PiecesRefused):
                    self.refused += decode_refused(event.refused)
                self._notify()
        except SessionEnded as end:
            self.ended = str(end) or "ended"
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                assert not self.ended, f"the session ended: {self.ended}"
                await self._changed.wait()

    async def until_ended(self) -> str:
        with trio.fail_after(PATIENCE_S):
            while not self.ended:
                await self._changed.wait()
        return self.ended

    @property
    def acknowledged(self) -> Acknowledge:
        found = [e for e in self.events if isinstance(e, Acknowledge)]
        return found[-1] if found else Acknowledge((0,) * 8, (0,) * 8, (0,) * 8, 0, 0)

    @property
    def state(self) -> TargetState:
        return [e for e in self.events if isinstance(e, TargetState)][-1]

    @property
    def data_states(self) -> list[str]:
        """All that the target said it was, in this session."""
        return [e.data_state for e in self.events if isinstance(e, TargetState)]

    async def applied(self, sequence: int, index: int = 0) -> None:
        await self.until(lambda: self.acknowledged.applied[index] >= sequence)

    async def durable(self, sequence: int, index: int = 0) -> None:
        await self.until(lambda: self.acknowledged.durable[index] >= sequence)

    async def batches(self, number: int) -> None:
        await self.until(lambda: self.acknowledged.batches_applied >= number)

    async def send(self, frame: Frame, data: bytes | None = None) -> None:
        await self.session.send(frame, data)

    async def send_batch(self, batch: Batch) -> None:
        await self.session.send(PieceBatch(batch.number), encode_batch(batch))
