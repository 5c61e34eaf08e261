"""The protocol engine: two engines back to back, and what it does with a peer that breaks the rules."""

import struct

import msgspec
import pytest

from replicator import limits
from replicator.errors import LocalProtocolError, RemoteProtocolError
from replicator.net import engine as engine_module
from replicator.net.engine import TRANSITIONS, Engine, Event, Role, State, encode_greeting, split_greeting
from replicator.net.frames import (
    FRAME_TYPE,
    Acknowledge,
    Bye,
    Checked,
    Checks,
    Connect,
    Connected,
    Derived,
    Disconnect,
    Drift,
    Frame,
    FrameType,
    Greeting,
    Hello,
    JournalInfo,
    Mark,
    MirrorBegin,
    MirrorEnd,
    Orphans,
    OrphanTask,
    Packed,
    PathMap,
    PieceBatch,
    PiecesRefused,
    Ping,
    Records,
    RefusedConnection,
    Secure,
    TargetState,
)

UUID = "9f0c6c0e-6f43-4b1b-9d0e-000000000001"
HELLO = Hello(1, "agent", "name", ("feature",))
CONNECT = Connect(
    UUID, "home", 3, "{}", (JournalInfo("j1", b"/srv"),), (PathMap(0, b"", b"/copy"), PathMap(0, b"a", b"/b"))
)
CONNECTED = Connected((Mark(1, 2),), (None,), (None,), "OK", False, 0, "", 77)
FROM_SOURCE: list[tuple[Frame, bytes | None]] = [
    (Records(0, Mark(1, 2), Mark(9, 2**64 - 1)), b"r" * 40),
    (Derived(0, Mark(9, 2**64 - 1), Mark(12, 4), by_identity=True), b"d" * 40),
    (Derived(0, Mark(12, 4), Mark(13, 5)), b""),
    (MirrorBegin("m", "full"), None),
    (PieceBatch(), b"p" * 50),
    (MirrorEnd("m", True), None),
    (Ping(), None),
    (Disconnect(UUID), None),
    (OrphanTask("pause"), None),
    (Secure((7, 0)), None),
    (Checks(7), b"c" * 30),
]
FROM_TARGET: list[tuple[Frame, bytes | None]] = [
    (Acknowledge((9,), (8,), (7,), 2, 1), None),
    (PiecesRefused(b"x" * 30), None),
    (TargetState("OK", "Mirroring", "", 5), None),
    (Drift(7, 0, b"d" * 30, 2, b"path", True), None),
    (Orphans(True, b"r" * 30, 0, ("a", "b/")), None),
    (Checked(9, b"f" * 20, False), None),
    (Ping(), None),
]


def joined(buffers: list[engine_module.Buffer]) -> bytes:
    return b"".join(buffers)


def plain(events: list[Event]) -> list[object]:
    """Events with bytes for views, to compare."""
    return [(event[0], bytes(event[1])) if isinstance(event, tuple) else event for event in events]


def expected(frames: list[tuple[Frame, bytes | None]]) -> list[object]:
    return [frame if data is None else (frame, data) for frame, data in frames]


def open_pair() -> tuple[Engine, Engine]:
    source, target = Engine(Role.SOURCE), Engine(Role.TARGET)
    assert target.receive(joined(source.greet(UUID))) == [Greeting(1, "replicate", UUID)]
    for sender, receiver, frame in (
        (source, target, HELLO),
        (target, source, HELLO),
        (source, target, CONNECT),
        (target, source, CONNECTED),
    ):
        assert receiver.receive(joined(sender.send(frame))) == [frame]
    return source, target


def source_bytes() -> bytes:
    """All that a source says in one session with every kind of frame."""
    source = Engine(Role.SOURCE)
    stream = joined(source.greet(UUID)) + joined(source.send(HELLO))
    source.receive(joined(engine_at(Role.TARGET, State.NAMED).send(HELLO)))
    stream += joined(source.send(CONNECT))
    source.receive(joined(engine_at(Role.TARGET, State.CONNECTING).send(CONNECTED)))
    for frame, data in FROM_SOURCE:
        stream += joined(source.send(frame, data))
    return stream + joined(source.send(Bye("done")))


def engine_at(role: Role, state: State) -> Engine:
    engine = Engine(role)
    engine.state = state
    return engine


class Listener:
    """A target engine that answers as it must, so that a whole recorded stream can be fed to it."""

    def __init__(self) -> None:
        self.engine = Engine(Role.TARGET)
        self.events: list[object] = []

    def feed(self, data: bytes) -> None:
        # The target's answers happen between the source's frames: give it one byte at a time.
        for index in range(len(data)):
            for event in self.engine.receive(data[index : index + 1]):
                self.events += plain([event])
                if isinstance(event, Hello):
                    self.engine.send(HELLO)
                elif isinstance(event, Connect):
                    self.engine.send(CONNECTED)


def test_every_frame_arrives_as_it_was_sent() -> None:
    source, target = open_pair()
    for sender, receiver, frames in ((source, target, FROM_SOURCE), (target, source, FROM_TARGET)):
        stream = b"".join(joined(sender.send(frame, data)) for frame, data in frames)
        assert plain(receiver.receive(stream)) == expected(frames)
    assert {type(frame) for frame, _ in FROM_SOURCE + FROM_TARGET} | {
        Packed,  # no event: test_packing.py has it
        Hello,
        Connect,
        Connected,
        Bye,
        RefusedConnection,
    } == set(FRAME_TYPE), "a frame is missing from this test"


def test_bulk_data_is_neither_copied_nor_overwritten() -> None:
    source, target = open_pair()
    data = bytearray(b"z" * 5000)
    buffers = source.send(PieceBatch(), data)
    assert buffers[1] is data
    first = target.receive(joined(buffers))[0]
    stream = joined(source.send(PieceBatch(), b"y" * 5000))
    for index in range(0, len(stream), 999):
        target.receive(stream[index : index + 999])
    assert isinstance(first, tuple) and first[1] == data


def test_a_session_byte_by_byte() -> None:
    listener = Listener()
    listener.feed(source_bytes())
    assert listener.events == [
        Greeting(1, "replicate", UUID),
        HELLO,
        CONNECT,
        *expected(FROM_SOURCE),
        Bye("done"),
    ]
    assert listener.engine.state is State.SOURCE_LEFT
    assert not listener.engine.in_frame


def test_a_truncated_session_is_only_incomplete() -> None:
    stream = source_bytes()
    whole = Listener()
    whole.feed(stream)
    part = Listener()
    for index in range(len(stream)):
        part.feed(stream[index : index + 1])
        assert part.events == whole.events[: len(part.events)]
    assert part.events == whole.events


def records_area(stream: bytes) -> range:
    """Records prove themselves by their chain: the engine does not check those bytes."""
    start = stream.index(b"r" * 40)
    return range(start, start + 40)


def test_every_flipped_bit_is_noticed() -> None:
    stream = source_bytes()
    whole = Listener()
    whole.feed(stream)
    unchecked = records_area(stream)
    greeting_bytes = stream.index(b"\n") + 1
    for position in range(len(stream)):
        if position in unchecked:
            continue
        for bit in range(8):
            damaged = bytearray(stream)
            damaged[position] ^= 1 << bit
            listener = Listener()
            try:
                listener.feed(bytes(damaged))
            except RemoteProtocolError:
                continue
            if (
                position < greeting_bytes
            ):  # another name or purpose: refused by whoever dispatches the connection
                assert listener.events[0] != whole.events[0]
                continue
            # A longer length: the rest of the stream is waited for, nothing wrong was believed.
            assert listener.engine.in_frame
            assert listener.events == whole.events[: len(listener.events)]


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x16\x03\x01",
        b"REPLICATION 1 replicate x\n",
        b"REPLICATOR 1 replicate ../../etc\n",
        b"REPLICATOR -1 replicate x\n",
        b"REPLICATOR 1 replicate x\r\n",
        b"REPLICATOR 1 replicate " + b"x" * 200,
        b"\n",
        b"\0" * 200,
    ],
)
def test_a_stranger_is_recognised_by_the_target(first: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not a replication agent"):
        Engine(Role.TARGET).receive(first)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-x\r\n",
        b"220 mail ESMTP\r\n",
        b"\0" * 16,
        b"\x15\x03\x01\0\x02",
    ],
)
def test_a_stranger_is_recognised_by_the_source(answer: bytes) -> None:
    source = Engine(Role.SOURCE)
    source.greet(UUID)
    source.send(HELLO)
    with pytest.raises(RemoteProtocolError, match="not a replication agent"):
        source.receive(answer)


def test_another_version_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="version 2 of the protocol, this agent version 1"):
        Engine(Role.TARGET).receive(b"REPLICATOR 2 replicate abc\n")


def test_a_greeting_comes_in_pieces_and_leaves_the_rest_alone() -> None:
    line = encode_greeting(UUID)
    assert len(line) <= limits.GREETING_BYTES
    for count in range(len(line)):
        assert split_greeting(line[:count]) is None
    assert split_greeting(line + b"more") == (Greeting(1, "replicate", UUID), len(line))


def test_impossible_greetings_are_ours() -> None:
    for bad in ("", "a b", "a\n", "ü", "x" * 100):
        with pytest.raises(LocalProtocolError):
            encode_greeting(bad)


def test_no_memory_is_spent_on_a_length_that_is_too_large() -> None:
    for frame_type, maximum in (
        (FrameType.PING, limits.CONTROL_FRAME_BYTES),
        (FrameType.RECORDS, limits.FRAME_BYTES),
        (FrameType.BATCH, limits.FRAME_BYTES),
    ):
        _, target = open_pair()
        with pytest.raises(RemoteProtocolError, match="too large"):
            target.receive(struct.pack("<IBBHQ", maximum + 1, frame_type, 0, 1, 0))
        assert target.missing is None


def test_too_large_frames_are_ours_too() -> None:
    source, _ = open_pair()
    with pytest.raises(LocalProtocolError, match="too large"):
        source.send(PieceBatch(), bytes(limits.FRAME_BYTES))
    with pytest.raises(LocalProtocolError, match="too large"):
        source.send(Bye("x" * limits.CONTROL_FRAME_BYTES))


def test_data_belongs_to_bulk_frames_only() -> None:
    source, _ = open_pair()
    with pytest.raises(LocalProtocolError):
        source.send(Ping(), b"data")
    with pytest.raises(LocalProtocolError):
        source.send(PieceBatch())
    with pytest.raises(LocalProtocolError):
        source.send(Greeting(1, "replicate", UUID))


def test_values_out_of_range_are_refused() -> None:
    for body in (
        [5, [0, 0], [1, 1], False, "more"],  # further members come from newer versions: ignored
        [-1, [0, 0], [1, 1]],
        [0, [0, -1], [1, 1]],
        [0, [0, 0], [1, 1], 5],
        [0, None, [1, 1]],
        {},
    ):
        _, target = open_pair()
        head = msgspec.msgpack.encode(body)
        fields = struct.pack("<IBBH", len(head), FrameType.DERIVED, 0, len(head))
        check = engine_module.xxhash.xxh3_64_intdigest(head, int.from_bytes(fields, "little"))
        stream = fields + struct.pack("<Q", check) + head
        if body and isinstance(body, list) and body[0] == 5:
            assert plain(target.receive(stream)) == [(Derived(5, Mark(0, 0), Mark(1, 1)), b"")]
        else:
            with pytest.raises(RemoteProtocolError, match="cannot be decoded"):
                target.receive(stream)


def test_valid_events_before_a_violation_are_not_lost() -> None:
    source, target = open_pair()
    stream = joined(source.send(MirrorBegin("m", "full"))) + b"\xff" * 16
    assert target.receive(stream) == [MirrorBegin("m", "full")]
    assert target.failure is not None
    with pytest.raises(RemoteProtocolError, match="frame type 255"):
        target.receive(b"")


def test_states_allow_what_the_table_says_and_nothing_else() -> None:
    samples = {
        FRAME_TYPE[type(frame)]: (frame, data)
        for frame, data in [
            *FROM_SOURCE,
            *FROM_TARGET,
            (HELLO, None),
            (CONNECT, None),
            (CONNECTED, None),
            (Bye(""), None),
            (RefusedConnection("no", False), None),
        ]
    }
    assert set(samples) == set(FrameType) - {FrameType.PACKED}  # no event: test_packing.py has it
    for role, peer in ((Role.SOURCE, Role.TARGET), (Role.TARGET, Role.SOURCE)):
        for state in State:
            for frame_type, (frame, data) in samples.items():
                sender, receiver = engine_at(role, state), engine_at(peer, state)
                allowed = TRANSITIONS[role].get(state, {}).get(frame_type)
                assert sender.may_send(type(frame)) == (allowed is not None)
                if allowed is not None:
                    stream = joined(sender.send(frame, data))
                    assert sender.state is allowed
                    assert plain(receiver.receive(stream)) == expected([(frame, data)])
                    assert receiver.state is allowed
                    continue
                with pytest.raises(LocalProtocolError):
                    sender.send(frame, data)
                if state is not State.SILENT:
                    stream = joined(engine_module.encode_frame(frame, data))
                    with pytest.raises(RemoteProtocolError):
                        receiver.receive(stream)


def test_only_a_source_greets_and_only_once() -> None:
    with pytest.raises(LocalProtocolError):
        Engine(Role.TARGET).greet(UUID)
    source = Engine(Role.SOURCE)
    source.greet(UUID)
    with pytest.raises(LocalProtocolError):
        source.greet(UUID)


def test_crossing_farewells_close_both_sides() -> None:
    source, target = open_pair()
    one, other = joined(source.send(Bye("a"))), joined(target.send(Acknowledge((1,), (1,), (1,), 0, 0)))
    other += joined(target.send(Bye("b")))
    assert source.receive(other) == [Acknowledge((1,), (1,), (1,), 0, 0), Bye("b")]
    assert target.receive(one) == [Bye("a")]
    assert source.state is target.state is State.CLOSED
