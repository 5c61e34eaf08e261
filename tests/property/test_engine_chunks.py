"""Events do not depend on how the network cuts the stream, and random bytes never do harm."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import RemoteProtocolError
from replicator.net.engine import Engine, Role, State
from replicator.net.frames import (
    Bye,
    Derived,
    Disconnect,
    Frame,
    Mark,
    MirrorBegin,
    MirrorEnd,
    PieceBatch,
    Ping,
    Records,
)
from replicator.net.packing import Packer

numbers = st.integers(0, 2**64 - 1)
marks = st.builds(Mark, numbers, numbers)
bulk = st.tuples(
    st.one_of(
        st.builds(Records, st.integers(0, 9), marks, marks, st.booleans()),
        st.builds(Derived, st.integers(0, 9), marks, marks, st.booleans()),
        st.just(PieceBatch()),
    ),
    st.binary(max_size=300),
)
ids = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64)
control = st.tuples(
    st.one_of(
        st.builds(MirrorBegin, ids, ids),
        st.builds(MirrorEnd, ids, st.booleans()),
        st.builds(Disconnect, ids),
        st.just(Ping()),
    ),
    st.none(),
)
frames_sent = st.lists(st.one_of(bulk, control), max_size=12)


def opened(role: Role) -> Engine:
    engine = Engine(role)
    engine.state = State.OPEN
    return engine


def run(engine: Engine, chunks: list[bytes]) -> tuple[list[object], str]:
    """Events, and the text of the error that ended them."""
    events: list[object] = []
    try:
        for chunk in [*chunks, b""]:
            found = engine.receive(chunk)
            while engine.has_more:
                found += engine.receive(b"")
            for event in found:
                events.append((event[0], bytes(event[1])) if isinstance(event, tuple) else event)
    except RemoteProtocolError as error:
        return events, str(error)
    return events, ""


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def encode(frames: list[tuple[Frame, bytes | None]]) -> bytes:
    source = opened(Role.SOURCE)
    return b"".join(bytes(buffer) for frame, data in frames for buffer in source.send(frame, data))


@given(frames_sent, st.lists(st.integers(0, 10_000), max_size=30))
def test_chunking_changes_nothing(frames: list[tuple[Frame, bytes | None]], cuts: list[int]) -> None:
    stream = encode(frames)
    expected = [frame if data is None else (frame, data) for frame, data in frames]
    assert run(opened(Role.TARGET), [stream]) == (expected, "")
    assert run(opened(Role.TARGET), cut(stream, cuts)) == (expected, "")


@given(
    st.lists(frames_sent, min_size=1, max_size=4),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_packing_changes_nothing(
    groups: list[list[tuple[Frame, bytes | None]]], parts: list[int], levels: list[int], cuts: list[int]
) -> None:
    """Whole frames as they are, and between them others, packed in whatever parts."""
    packer, engine = Packer(), opened(Role.SOURCE)
    stream, expected = b"", []
    for number, frames in enumerate(groups):
        expected += [frame if data is None else (frame, data) for frame, data in frames]
        plain = encode(frames)
        for part in cut(plain, parts) if number % 2 == 0 else []:
            packed = packer.pack([part], levels[number % len(levels)])
            stream += b"".join(bytes(b) for b in engine.packed(packed, len(part)))
        stream += plain if number % 2 else b""
    assert run(opened(Role.TARGET), cut(stream, cuts)) == (expected, "")


@given(
    frames_sent,
    st.lists(st.integers(0, 10_000), max_size=10),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=40),
)
def test_chunking_changes_nothing_about_damage(
    frames: list[tuple[Frame, bytes | None]], cuts: list[int], place: int, junk: bytes
) -> None:
    stream = encode([*frames, (Bye("end"), None)])
    place %= len(stream)
    damaged = stream[:place] + junk + stream[place + len(junk) :]
    whole = run(opened(Role.TARGET), [damaged])
    assert run(opened(Role.TARGET), cut(damaged, cuts)) == whole


@given(st.sampled_from(Role), st.sampled_from(State), st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes_are_refused_or_waited_for(role: Role, state: State, chunks: list[bytes]) -> None:
    engine = Engine(role)
    engine.state = state
    events, _ = run(engine, chunks)
    assert all(isinstance(event, Frame) for event in events) and len(events) <= 1
