"""The protocol of a session without I/O: bytes in, events out; frames in, buffers out.

`docs/developers/protocol.md` has the bytes. An engine knows no stream, clock or disk. Everything that can
change the state of a session stands in `TRANSITIONS`. What comes from the peer is checked before memory is
spent on it and before anybody acts on it; a violation is a `RemoteProtocolError`, a violation of ours a
`LocalProtocolError`.
"""

import re
import struct
from enum import Enum
from typing import NoReturn

import msgspec
import xxhash

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import LocalProtocolError, RemoteProtocolError
from replicator.net.frames import (
    BULK_TYPES,
    FRAME_TYPE,
    PROTOCOL_VERSION,
    Frame,
    FrameType,
    Greeting,
    Packed,
)
from replicator.net.packing import Unpacker

Buffer = bytes | bytearray | memoryview
Data = Buffer | list[Buffer]
"""Bulk data of a frame; a list travels as if it were joined."""
Event = Frame | tuple[Frame, memoryview]
"""A frame; one with bulk data as (head, data). The data may be kept: no later call changes it."""

PURPOSE = "replicate"

_HEADER = struct.Struct("<IBBHQ")  # bytes after the header, type, zero, bytes of the head, checksum
_FIELDS = struct.Struct("<IBBH")
_SEED = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size

_GREETING = re.compile(rb"REPLICATOR ([1-9][0-9]{0,4}) ([a-z]{1,20}) ([0-9A-Za-z-]{1,64})\n")

_MAX_BYTES = dict.fromkeys(FrameType, limits.CONTROL_FRAME_BYTES) | {
    FrameType.CONNECT: limits.CONNECT_FRAME_BYTES,
    FrameType.PIECES_REFUSED: limits.FRAME_BYTES,
    FrameType.CHECKED: limits.FRAME_BYTES,
    FrameType.DRIFT: limits.CONNECT_FRAME_BYTES,
    **dict.fromkeys(BULK_TYPES, limits.FRAME_BYTES),
    FrameType.PACKED: limits.PACKED_FRAME_BYTES,
}


class Role(Enum):
    SOURCE = "source"  # connects, sends the stream
    TARGET = "target"  # accepts, applies the stream


class State(Enum):
    """Of a session, as one side has seen it so far."""

    SILENT = "silent"  # nothing was said: the source's first line is next
    GREETED = "greeted"  # the source introduces itself
    NAMED = "named"  # the target introduces itself
    INTRODUCED = "introduced"  # the source says which connection this is
    CONNECTING = "connecting"  # the target accepts or refuses
    OPEN = "open"
    SOURCE_LEFT = "source left"  # the source said BYE; what the target had sent may still arrive
    TARGET_LEFT = "target left"
    CLOSED = "closed"


_F = FrameType
_FROM_SOURCE = (
    *(_F.RECORDS, _F.DERIVED, _F.BATCH, _F.MIRROR_BEGIN, _F.MIRROR_END, _F.CHECKS),
    *(_F.DISCONNECT, _F.ORPHAN_TASK, _F.SECURE, _F.PING, _F.PACKED),
)
_FROM_TARGET = (
    *(_F.ACKNOWLEDGE, _F.PIECES_REFUSED, _F.CHECKED, _F.TARGET_STATE),
    *(_F.DRIFT, _F.ORPHANS, _F.PING, _F.PACKED),
)

TRANSITIONS: dict[Role, dict[State, dict[FrameType, State]]] = {
    Role.SOURCE: {
        State.GREETED: {_F.HELLO: State.NAMED, _F.BYE: State.SOURCE_LEFT},
        State.NAMED: {_F.PING: State.NAMED, _F.BYE: State.SOURCE_LEFT},
        State.INTRODUCED: {
            _F.CONNECT: State.CONNECTING,
            _F.PING: State.INTRODUCED,
            _F.BYE: State.SOURCE_LEFT,
        },
        State.CONNECTING: {_F.PING: State.CONNECTING, _F.BYE: State.SOURCE_LEFT},
        State.OPEN: dict.fromkeys(_FROM_SOURCE, State.OPEN) | {_F.BYE: State.SOURCE_LEFT},
        # Sent before the source heard the target's BYE:
        State.TARGET_LEFT: dict.fromkeys((_F.HELLO, _F.CONNECT, *_FROM_SOURCE), State.TARGET_LEFT)
        | {_F.BYE: State.CLOSED},
    },
    Role.TARGET: {
        State.GREETED: {_F.REFUSED: State.CLOSED, _F.BYE: State.TARGET_LEFT},
        State.NAMED: {_F.HELLO: State.INTRODUCED, _F.REFUSED: State.CLOSED, _F.BYE: State.TARGET_LEFT},
        State.INTRODUCED: {
            _F.PING: State.INTRODUCED,
            _F.REFUSED: State.CLOSED,
            _F.BYE: State.TARGET_LEFT,
        },
        State.CONNECTING: {
            _F.PING: State.CONNECTING,
            _F.CONNECTED: State.OPEN,
            _F.REFUSED: State.CLOSED,
            _F.BYE: State.TARGET_LEFT,
        },
        State.OPEN: dict.fromkeys(_FROM_TARGET, State.OPEN) | {_F.BYE: State.TARGET_LEFT},
        # Sent before the target heard the source's BYE:
        State.SOURCE_LEFT: dict.fromkeys((_F.HELLO, _F.CONNECTED, *_FROM_TARGET), State.SOURCE_LEFT)
        | {_F.REFUSED: State.CLOSED, _F.BYE: State.CLOSED},
    },
}
"""(who sends, state, frame type) → state. What is missing is forbidden."""

_encoder = msgspec.msgpack.Encoder()
_decoders = {FRAME_TYPE[frame]: msgspec.msgpack.Decoder(frame) for frame in FRAME_TYPE}


def encode_greeting(connection_uuid: str, purpose: str = PURPOSE, version: int = PROTOCOL_VERSION) -> bytes:
    """The first line of a session."""
    line = f"REPLICATOR {version} {purpose} {connection_uuid}\n".encode()
    if not _GREETING.fullmatch(line):
        raise LocalProtocolError(f"impossible greeting {line!r}")
    return line


def split_greeting(data: Buffer) -> tuple[Greeting, int] | None:
    """The greeting at the beginning of `data` and its length with the newline; None if more bytes are needed.

    Raises `RemoteProtocolError` as soon as `data` cannot become a greeting.
    """
    start = bytes(data[: limits.GREETING_BYTES])
    known = b"REPLICATOR "[: len(start)]
    end = start.find(b"\n") + 1
    if start.startswith(known) and not end and len(start) < limits.GREETING_BYTES:
        return None
    match = _GREETING.fullmatch(start, 0, end)
    if match is None:
        raise RemoteProtocolError(f"the peer is not a replication agent: it began with {start[:40]!r}")
    version, purpose, connection_uuid = match.groups()
    return Greeting(int(version), purpose.decode(), connection_uuid.decode()), end


def encode_frame(frame: Frame, data: Data | None = None) -> list[Buffer]:
    """The buffers of one frame; `data` is not copied. Raises `LocalProtocolError` if it is too large or its
    kind is wrong.
    """
    frame_type = FRAME_TYPE.get(type(frame))
    if frame_type is None or (data is not None) != (frame_type in BULK_TYPES):
        raise LocalProtocolError(
            f"{type(frame).__name__} cannot be sent {'with' if data is not None else 'without'} data"
        )
    body = _encoder.encode(frame)
    buffers: list[Buffer] = [] if data is None else data if isinstance(data, list) else [data]
    length = len(body) + sum(map(len, buffers))
    head_length = 0 if data is None else len(body)
    if length > _MAX_BYTES[frame_type]:
        raise LocalProtocolError(f"a {frame_type.name} frame of {length} bytes is too large")
    fields = _FIELDS.pack(length, frame_type, 0, head_length)
    seed = _SEED.unpack(fields)[0]
    if data is None or frame_type is FrameType.RECORDS:
        check = xxhash.xxh3_64_intdigest(body, seed)
    else:
        digest = xxhash.xxh3_64(body, seed)
        for buffer in buffers:
            digest.update(buffer)
        check = digest.intdigest()
    return [b"".join((fields, _SEED.pack(check), body)), *buffers]


class _Assembly:
    """A row of frames as far as it has arrived: the one that is not complete yet."""

    def __init__(self, *, packed: bool = False) -> None:
        self.packed = packed  # it is what PACKED frames hold
        self.start = bytearray()  # of a greeting or a header that is not complete yet
        # Of a frame that is not complete yet the buffer is allocated once and filled, so that no byte is
        # moved twice.
        self.body: bytearray | None = None
        self.filled = 0
        self.header: tuple[int, FrameType, int, int, int] = (0, FrameType.PING, 0, 0, 0)

    @property
    def in_frame(self) -> bool:
        return self.body is not None or bool(self.start)

    def grow(self) -> None:
        """What has come fills the buffer of the frame under way: room for as much again."""
        body = self.body
        if body is not None and self.filled == len(body) < self.header[0]:
            body.extend(bytes(min(self.header[0] - len(body), len(body))))


class Engine:
    """One side of one session."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.SILENT
        self.failure: RemoteProtocolError | None = None
        """Set when the peer broke the protocol: the next `receive` raises it."""
        self._peer = Role.TARGET if role is Role.SOURCE else Role.SOURCE
        self._outer = _Assembly()
        self._inner = _Assembly(packed=True)
        self._unpacker: Unpacker | None = None
        self._unpacked = 0  # bytes, by this call of `receive`
        self._waiting = b""  # what has arrived behind them
        self._heard_frame = False

    # --- sending

    def greet(self, connection_uuid: str, purpose: str = PURPOSE) -> list[Buffer]:
        """The source's first words."""
        if self.role is not Role.SOURCE or self.state is not State.SILENT:
            raise LocalProtocolError(f"a {self.role.value} cannot greet in state {self.state.value!r}")
        line = encode_greeting(connection_uuid, purpose)
        self.state = State.GREETED
        return [line]

    def send(self, frame: Frame, data: Data | None = None) -> list[Buffer]:
        """The buffers that carry `frame`; write all of them in order, once. `data` belongs to bulk frames and
        is not copied.
        """
        buffers = encode_frame(frame, data)
        state = self._next_state(self.role, FRAME_TYPE[type(frame)])
        if state is None:
            raise LocalProtocolError(f"{type(frame).__name__} is not allowed in state {self.state.value!r}")
        self.state = state
        return buffers

    def packed(self, data: bytes, size: int) -> list[Buffer]:
        """The buffers of a PACKED frame that stands for `size` bytes of frames; `send` has made these."""
        return encode_frame(Packed(size), data)

    def may_send(self, frame: type[Frame]) -> bool:
        return self._next_state(self.role, FRAME_TYPE[frame]) is not None

    # --- receiving

    @property
    def in_frame(self) -> bool:
        """Whether the end of the stream would come in the middle of a frame."""
        return self._outer.in_frame or self._inner.in_frame

    @property
    def has_more(self) -> bool:
        """Something has arrived and was not looked at: `receive(b"")` returns further events of it. A few
        bytes may unpack to very many; so one call unpacks only so much, and the reader takes that first.
        """
        return bool(self._waiting)

    @property
    def missing(self) -> memoryview | None:
        """Where the next bytes of the frame under way belong; None if nothing of a frame's body has arrived.
        Whoever reads straight into it, from its start, calls `received_in_place`, and keeps it no longer.
        """
        outer = self._outer
        outer.grow()
        return None if outer.body is None else memoryview(outer.body)[outer.filled :]

    def received_in_place(self, count: int) -> list[Event]:
        """`count` bytes are in `missing` now. As `receive`."""
        if self.failure is not None:
            raise self.failure
        outer = self._outer
        assert outer.body is not None and 0 < count <= len(outer.body) - outer.filled
        outer.filled += count
        return self.receive(b"")

    def receive(self, data: Buffer) -> list[Event]:
        """Events that `data` completes, in order.

        Raises `RemoteProtocolError`; if valid events stood before the violation, they are returned and the
        next call raises (`failure` is set at once), so that events do not depend on how the stream was cut
        into pieces.
        """
        if self.failure is not None:
            raise self.failure
        events: list[Event] = []
        if self._waiting:
            data, self._waiting = self._waiting + data, b""
        self._unpacked = 0
        try:
            self._parse(memoryview(data), events)
        except RemoteProtocolError as error:
            self.failure = error
            if not events:
                raise
        return events

    def _parse(self, data: memoryview, events: list[Event]) -> None:
        if self.state is State.SILENT and self._peer is Role.SOURCE:
            start = self._outer.start
            before = len(start)
            start += data[: limits.GREETING_BYTES - before]
            found = split_greeting(start)
            if found is None:
                return
            greeting, length = found
            if greeting.version != PROTOCOL_VERSION:
                raise RemoteProtocolError(
                    f"the peer speaks version {greeting.version} of the protocol, "
                    f"this agent version {PROTOCOL_VERSION}"
                )
            start.clear()
            self.state = State.GREETED
            events.append(greeting)
            data = data[length - before :]
        self._assemble(self._outer, data, events)

    def _assemble(self, row: _Assembly, data: memoryview, events: list[Event]) -> None:
        offset, size = 0, len(data)
        while offset < size or (row.body is not None and row.filled == row.header[0]):
            if row.body is None:
                if row.start or size - offset < HEADER_BYTES:
                    missing = HEADER_BYTES - len(row.start)
                    row.start += data[offset : offset + missing]
                    offset = min(offset + missing, size)
                    if len(row.start) < HEADER_BYTES:
                        self._check_early(row)
                        return
                    self._read_header(row, row.start, 0)
                    row.start.clear()
                else:
                    self._read_header(row, data, offset)
                    offset += HEADER_BYTES
                length = row.header[0]
                if size - offset >= length:  # complete in this piece: no copy
                    self._decode(row, data[offset : offset + length], events)
                    offset += length
                    if self._unpacked >= limits.UNPACKED_AT_ONCE_BYTES and not row.packed:
                        self._waiting = bytes(data[offset:])
                        return
                else:
                    # No more than this because a number says so: what is claimed may never come.
                    row.body = bytearray(min(length, max(size - offset, limits.FRAME_FIRST_BYTES)))
                    row.body[: size - offset] = data[offset:]
                    row.filled = size - offset
                    return
            else:
                row.grow()
                count = min(len(row.body) - row.filled, size - offset)
                row.body[row.filled : row.filled + count] = data[offset : offset + count]
                row.filled += count
                offset += count
                if row.filled < row.header[0]:
                    continue
                body, row.body = row.body, None
                self._decode(row, memoryview(body), events)

    def _check_early(self, row: _Assembly) -> None:
        """A peer that is no agent may send a few bytes and wait: do not wait for a whole header with it."""
        if not self._heard_frame and len(row.start) >= 5:
            self._check_fields(row, *struct.unpack_from("<IB", row.start))

    def _check_fields(self, row: _Assembly, length: int, number: int) -> FrameType:
        try:
            frame_type = FrameType(number)
        except ValueError:
            self._fail(f"frame type {number} does not exist")
        if length > _MAX_BYTES[frame_type]:
            self._fail(f"a {frame_type.name} frame of {length} bytes is too large")
        if self._next_state(self._peer, frame_type) is None:
            self._fail(f"{frame_type.name} is not allowed in state {self.state.value!r}")
        if row.packed and frame_type is FrameType.PACKED:
            self._fail("PACKED is not allowed in another one")
        return frame_type

    def _read_header(self, row: _Assembly, buffer: Buffer, offset: int) -> None:
        length, number, zero, head_length, check = _HEADER.unpack_from(buffer, offset)
        frame_type = self._check_fields(row, length, number)
        if zero != 0 or head_length > length or (head_length > 0) != (frame_type in BULK_TYPES):
            self._fail(f"the header of a {frame_type.name} frame makes no sense")
        seed = _SEED.unpack_from(buffer, offset)[0]
        row.header = (length, frame_type, head_length, seed, check)

    def _decode(self, row: _Assembly, body: memoryview, events: list[Event]) -> None:
        _, frame_type, head_length, seed, check = row.header
        checked = body[:head_length] if frame_type is FrameType.RECORDS else body
        if xxhash.xxh3_64_intdigest(checked, seed) != check:
            self._fail(f"a {frame_type.name} frame does not match its checksum")
        bulk = frame_type in BULK_TYPES
        try:
            frame: Frame = _decoders[frame_type].decode(body[:head_length] if bulk else body)
        except MALFORMED as error:
            self._fail(f"a {frame_type.name} frame cannot be decoded: {error}")
        state = self._next_state(self._peer, frame_type)
        if state is None:
            self._fail(f"{frame_type.name} is not allowed in state {self.state.value!r}")
        self.state = state
        self._heard_frame = True
        if isinstance(frame, Packed):
            if self._unpacker is None:
                self._unpacker = Unpacker()
            plain = self._unpacker.unpack(body[head_length:], frame.size)
            self._unpacked += frame.size
            self._assemble(self._inner, memoryview(plain), events)
        else:
            events.append((frame, body[head_length:]) if bulk else frame)

    def _next_state(self, sender: Role, frame_type: FrameType) -> State | None:
        return TRANSITIONS[sender].get(self.state, {}).get(frame_type)

    def _fail(self, reason: str) -> NoReturn:
        if not self._heard_frame:
            reason = f"the peer is not a replication agent: {reason}"
        raise RemoteProtocolError(reason)
