"""What arrives at a target: each frame is verified against what was received before, and goes into the spool.

Whatever does not continue what is there, or does not prove itself, is the peer's mistake and ends the
session; whatever was received before is dropped.
"""

import sys
from collections.abc import Callable

import trio

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import JournalError, RemoteProtocolError
from replicator.mirror.checks import decode_checks
from replicator.mirror.mirroring import OVERRULING, RESTORED
from replicator.mirror.pieces import decode_batch
from replicator.net.engine import Buffer, Event
from replicator.net.frames import (
    Checks,
    Connect,
    Derived,
    Frame,
    Mark,
    MirrorBegin,
    MirrorEnd,
    PieceBatch,
    Records,
    StreamHead,
)
from replicator.net.session import SessionEnded
from replicator.ops import Position
from replicator.queue import record as codec
from replicator.queue.validity import impossible
from replicator.receiver.replica import Replica, takes_long
from replicator.receiver.replica_state import (
    Applied,
    Received,
    ReplicaState,
    encode,
    fingerprint,
    journal_ids,
)
from replicator.receiver.shared_value import SharedValue
from replicator.receiver.spool import Spool


def only_applied(applied: Applied, state: ReplicaState) -> Received:
    """What counts as received when the spool is lost: what is applied. The source has the rest, for it keeps
    all that is not durable here.
    """
    connect = state.connect
    return Received(
        applied.spool,
        dict(applied.marks),
        connect=fingerprint(connect) if connect is not None else 0,
        journals=journal_ids(connect) if connect is not None else (),
        mirroring=state.mirroring,
        mirror_id=state.mirror_id,
        batches=applied.batches if state.mirroring else 0,
    )


def note(received: Received, frame: Frame, position: Position) -> None:
    """This frame of the stream is in the spool, where it ends at `position`."""
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
        received.connect = fingerprint(frame)
        received.journals = journal_ids(frame)
        received.marks = {k: v for k, v in received.marks.items() if k in received.journals}


class Intake:
    """Of one receiver; one session at a time. `news` is called when a mark is new."""

    def __init__(
        self, spool: Spool, replica: Replica, received: Received, page: SharedValue, news: Callable[[], None]
    ) -> None:
        self.received = received
        self.full = False  # the source is to wait
        self._spool = spool
        self._replica = replica
        self._page = page
        self._news = news
        self._room = trio.Event()
        self._waiting = False  # what has arrived does not fit
        self._full_bytes = 0  # so much was in the spool when it was full
        self._closed = ""
        self._epoch = 0

    def open(self, epoch: int) -> None:
        """A session begins, of a source of that epoch: it hears now what was received, and goes on there."""
        self._closed = ""
        self._epoch = epoch
        # What waited for room may have gone with its session: if all else is applied, nothing more tells.
        self.look_for_room()

    def spool_lost(self, reason: str) -> None:
        """Nothing that is not applied was received; nor is anything, until another session begins."""
        self._closed = reason
        self.full = False
        self.received = only_applied(self._replica.applied, self._replica.state)
        self._page.store(encode(self.received))

    def look_for_room(self) -> None:
        """The spool may have room again: something was applied."""
        if not self.full:
            return
        self._spool.collect()
        self._room.set()
        self._look()

    def _look(self) -> None:
        """Whether the source may go on: with the first bit of room, both would pause and resume all the
        time.
        """
        used = sum(self._spool.usage())
        roomy = used <= self._full_bytes * limits.SPOOL_RESUME_PERCENT // 100 or self._replica.drained
        if self.full and roomy and not self._waiting:
            self.full = False
            print("the spool has room again: the source may go on", file=sys.stderr, flush=True)
            self._news()

    def _exhausted(self) -> None:
        if not self.full:
            self.full, self._full_bytes = True, sum(self._spool.usage())
            print("the spool is full: the source has to wait", file=sys.stderr, flush=True)
            self._news()

    async def take(self, event: Event) -> None:
        """A part of the stream. Raises RemoteProtocolError, SessionEnded."""
        self._check_open()
        if isinstance(event, tuple):
            frame, data = event
            if isinstance(frame, Records):
                await self._records(frame, data)
            elif isinstance(frame, Derived):
                await self._derived(frame, data)
            elif isinstance(frame, PieceBatch):
                await self._batch(frame, data)
            elif isinstance(frame, Checks):
                await self._checks(frame, data)
        elif isinstance(event, MirrorBegin):
            if event.kind == RESTORED and self._epoch > self._replica.state.epoch:
                # It would compare nothing, and believe that it has nothing to bring.
                raise RemoteProtocolError("this copy does not know that its source became equal to it")
            await self.append(event)
            if event.kind in OVERRULING:
                self._replica.halts.choose_source()
        elif isinstance(event, MirrorEnd):
            if not self.received.mirroring or event.mirror_id != self.received.mirror_id:
                raise RemoteProtocolError("the end of a mirror that was not begun")
            await self.append(event)

    def _check_open(self) -> None:
        if self._closed:  # what is under way follows on something that is lost
            raise SessionEnded(self._closed)

    def _journal_id(self, index: int) -> str:
        journals = self.received.journals
        if index >= len(journals):
            raise RemoteProtocolError(f"journal {index} does not exist: the connection has {len(journals)}")
        return journals[index]

    async def _records(self, head: Records, data: memoryview) -> None:
        """Verify, and spool what is new of it."""
        known = self.received.marks.get(self._journal_id(head.journal))
        previous = Position(head.previous.sequence, head.previous.chain)
        last = previous
        cut: int | None = 0 if known is None or known == previous else None
        try:
            for offset, length, record in codec.iterate(data, previous):
                if why := impossible(record):
                    raise RemoteProtocolError(f"record {record.sequence} is impossible: {why}")
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
        await self.append(head, data)

    async def _derived(self, head: Derived, data: memoryview) -> None:
        known = self.received.marks.get(self._journal_id(head.journal))
        previous = Position(head.previous.sequence, head.previous.chain)
        if known is not None and known != previous:
            if head.last.sequence <= known.sequence:
                return  # a repetition
            raise RemoteProtocolError(
                f"an operation after {previous.sequence} does not continue {known.sequence}"
            )
        if data:
            try:
                record, length = codec.decode(data)
                codec.check(data, 0, length, 0)
            except JournalError as error:
                raise RemoteProtocolError(f"a derived record does not prove itself: {error}") from None
            if length != len(data):
                raise RemoteProtocolError("a DERIVED frame holds more than one record")
            if why := impossible(record):
                raise RemoteProtocolError(f"a derived record is impossible: {why}")
        await self.append(head, data)

    async def _batch(self, head: PieceBatch, data: memoryview) -> None:
        received = self.received
        if not received.mirroring:
            raise RemoteProtocolError("pieces outside of a mirror")
        try:
            batch = decode_batch(data)
        except MALFORMED as error:
            raise RemoteProtocolError(f"pieces cannot be decoded: {error}") from None
        self._journal_id(batch.journal)
        if batch.number != head.number:
            raise RemoteProtocolError(f"pieces {batch.number} came as {head.number}")
        if batch.number <= received.batches:
            return  # a repetition
        keeps_up = not takes_long(batch) and await self._replica.keeps_up()
        self._check_open()
        if not keeps_up or not self._replica.place_now(batch):
            await self.append(head, data)
            return
        # Stored in this order: a successor that finds it applied and not received is sent it again.
        received.batches = batch.number
        self._page.store(encode(received))

    async def _checks(self, head: Checks, data: memoryview) -> None:
        try:
            batch = decode_checks(data)
        except MALFORMED as error:
            raise RemoteProtocolError(f"checks cannot be decoded: {error}") from None
        self._journal_id(batch.journal)
        if batch.number != head.number:
            raise RemoteProtocolError(f"checks {batch.number} came as {head.number}")
        await self.append(head, data)

    async def append(self, frame: Frame, data: Buffer = b"") -> None:
        """Into the spool. While that is full nothing is read from the network, and the source is told to wait
        (AD-02); nothing is lost.
        """
        try:
            while not self._spool.append(frame, data):
                self._waiting = True
                self._exhausted()
                self._room = trio.Event()
                with trio.move_on_after(limits.SPOOL_RETRY_S):
                    await self._room.wait()
                self._check_open()
        finally:
            self._waiting = False
        # No checkpoint from the append to here: spool and position belong together for everyone in this
        # process.
        note(self.received, frame, self._spool.head)
        self._page.store(encode(self.received))
        self._replica.wake()
        self._news()
