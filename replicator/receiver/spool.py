"""The spool of a target: stream frames as they arrived, in order, in a journal of the receiver's own.

One record of kind FRAME per stream frame: `path` is the frame type (one byte) and the encoded head, `payload`
the data. A frame whose data is larger than a record may be goes into several; `arg0` is the number of those
that follow.
"""

from collections import deque
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import JournalError
from replicator.net.engine import Buffer
from replicator.net.frames import FRAME_TYPE, Frame, FrameType
from replicator.ops import Kind, Position, Record
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings, JournalWriter
from replicator.queue.statistics import JournalStatistics
from replicator.world import World

_encoder = msgspec.msgpack.Encoder()
_decoders = {number: msgspec.msgpack.Decoder(frame_class) for frame_class, number in FRAME_TYPE.items()}


class Spooled(NamedTuple):
    """One frame of the spool. `data` is a view that lives as long as it is referred to."""

    position: Position  # of its (last) record
    frame: Frame
    data: memoryview


class Spool:
    """Written by the network task and read by the apply task of one process; no checkpoints inside."""

    def __init__(self, world: World, settings: JournalSettings, connection_uuid: str) -> None:
        """Raises JournalError if another process has it, or its files cannot be used."""
        self._writer = JournalWriter.open(world, settings, connection_uuid)
        try:
            self._cursor = Cursor.open(world, settings, connection_uuid, connection_uuid, create=True)
        except BaseException:
            self._writer.close(persist=False)
            raise
        self._records: deque[Record] = deque()
        self._memory_bytes = settings.memory_bytes
        self._read_bytes = 0

    @property
    def head(self) -> Position:
        return self._writer.position

    def append(self, frame: Frame, data: Buffer = b"") -> bool:
        """Whether it is in the spool; False: no room now, and nothing was kept. Call again after
        `release`.
        """
        name = bytes((FRAME_TYPE[type(frame)],)) + _encoder.encode(frame)
        payload: Buffer = data
        if len(name) > limits.PATH_BYTES:  # a Connect with many rules
            name, payload = name[:1], name[1:]
        view = memoryview(payload)
        maximum = limits.RECORD_PAYLOAD_BYTES
        parts = max(1, -(-len(view) // maximum))
        for part in range(parts):
            piece = view[part * maximum : (part + 1) * maximum]
            if not self._writer.append(Kind.FRAME, name, payload=piece, arg0=parts - 1 - part):
                # The writer will put a HOLE before the next record that fits, and what stands here of a
                # frame in several parts is incomplete: the reader passes over both.
                return False
        return True

    def read(self) -> Spooled | None:
        """The next frame, None at the end. Raises JournalError if the spool is damaged."""
        parts: list[bytes | memoryview] = []
        expected = 0
        while (record := self._next_record()) is not None:
            if record.kind != Kind.FRAME or (parts and record.arg0 != expected):
                parts.clear()
                if record.kind != Kind.FRAME:
                    continue
            parts.append(record.payload)
            if record.arg0:
                expected = record.arg0 - 1
                continue
            payload = memoryview(parts[0]) if len(parts) == 1 else memoryview(b"".join(parts))
            try:
                number = FrameType(record.path[0])
                if len(record.path) > 1:
                    frame = _decoders[number].decode(record.path[1:])
                else:
                    frame, payload = _decoders[number].decode(payload), memoryview(b"")
            except (*MALFORMED, ValueError, IndexError) as error:
                raise JournalError(f"the spool holds no frame at {record.sequence}: {error}") from None
            return Spooled(Position(record.sequence, record.chain), frame, payload)
        return None

    def _next_record(self) -> Record | None:
        if not self._records:
            run = self._cursor.read()
            if run is None:
                return None
            self._records.extend(record for _, _, record in run.records)
        return self._records.popleft()

    def seek(self, position: Position) -> None:
        """Read on after `position`. Raises JournalError if the spool does not have it."""
        self._records.clear()
        self._cursor.seek(position)

    def seek_head(self) -> None:
        """Nothing of what is in the spool counts any more."""
        self._records.clear()
        self._cursor.acknowledge(self._cursor.seek_head().sequence)

    def release(self, position: Position) -> None:
        """Everything up to `position` is applied and need not be kept."""
        self._cursor.acknowledge(position.sequence)

    @property
    def queued_bytes(self) -> int:
        """About what is still to be applied."""
        return self._cursor.backlog()[1]

    def collect(self) -> None:
        """Remove what is applied, as the next segment would."""
        self._writer.collect()

    def usage(self) -> tuple[int, int]:
        """Bytes in memory and on disk."""
        statistics = self._writer.statistics()
        return statistics.memory_bytes, statistics.disk_bytes

    def statistics(self) -> JournalStatistics:
        return self._writer.statistics()

    def close(self) -> None:
        """What is in it stays for the next process of this boot."""
        self._cursor.close()
        self._writer.close(persist=False)
