"""Compression between frames and stream: round trips, and what a broken or malicious peer can do."""

import os
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import trio
import zstandard
from kit.links import Link
from kit.simulation import MockedClock

from replicator import limits
from replicator.errors import RemoteProtocolError
from replicator.net.auto_level import AutoLevel
from replicator.net.engine import Engine, Role, State, encode_frame
from replicator.net.frames import Bye, Frame, Mark, MirrorBegin, Packed, PieceBatch, Ping, Records
from replicator.net.packing import Packer, Unpacker, is_compressible
from replicator.net.session import Session
from replicator.net.transmission import Transmission
from replicator.transmission import MAXIMUM

TEXT = b"".join(b"line %d of a text that repeats itself, as texts do\n" % n for n in range(20_000))


def opened(role: Role) -> Engine:
    engine = Engine(role)
    engine.state = State.OPEN
    return engine


async def in_thread(function: Callable[[], bytes]) -> bytes:
    await trio.lowlevel.checkpoint()
    return function()


def open_session(stream: trio.abc.Stream, role: Role) -> Session:
    return Session(stream, opened(role))


def link() -> Link:
    return Link(random.Random(3), split=True)


FRAMES: list[tuple[Frame, bytes | None]] = [
    (PieceBatch(1), TEXT[:900_000]),
    (Records(0, Mark(1, 2), Mark(9, 4)), TEXT[:3000]),
    (MirrorBegin("m", "full"), None),
    (PieceBatch(2), os.urandom(700_000)),
    (Records(0, Mark(9, 4), Mark(12, 4)), b""),
    (PieceBatch(3), TEXT[100:200_000]),
]


@pytest.mark.parametrize("compression", ["off", "auto", *map(str, range(1, MAXIMUM + 1))])
async def test_frames_arrive_as_they_were_sent(compression: str, autojump_clock: Any) -> None:
    near, far = link().streams()
    source, target = open_session(near, Role.SOURCE), open_session(far, Role.TARGET)
    transmission = Transmission(MockedClock(), in_thread)
    transmission.compression = compression
    source.use(transmission, packing=True)
    got: list[object] = []
    saved = 0

    async def receive() -> None:
        async for event in target:
            got.append((event[0], bytes(event[1])) if isinstance(event, tuple) else event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for frame, data in FRAMES:
            saved += await source.send(frame, data)
        await source.close("done")
    assert got == [frame if data is None else (frame, data) for frame, data in FRAMES]
    plain = sum(len(b) for frame, data in [*FRAMES, (Bye("done"), None)] for b in encode_frame(frame, data))
    assert saved == plain - source.sent_bytes
    if compression.isdigit():
        assert saved > 900_000


async def test_any_frame_may_be_at_any_level(autojump_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As automatic compression decides, that leaves out what cannot be compressed."""
    chance = random.Random(8)
    monkeypatch.setattr(AutoLevel, "next_level", lambda self: chance.choice((0, 1, 2)))
    near, far = link().streams()
    source, target = open_session(near, Role.SOURCE), open_session(far, Role.TARGET)
    transmission = Transmission(MockedClock(), in_thread)
    transmission.compression = "auto"
    source.use(transmission, packing=True)
    frames = [(PieceBatch(n), chance.choice((TEXT[:300_000], chance.randbytes(300_000)))) for n in range(12)]

    async def send() -> None:
        for frame, data in frames:
            await source.send(frame, data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for frame, data in frames:
            assert await target.receive() == (frame, data)


def test_a_sample_tells_what_can_be_compressed() -> None:
    noise = os.urandom(300_000)
    assert is_compressible([b"head", TEXT[:300_000]]) and is_compressible([TEXT[:150_000] + noise[:100_000]])
    assert not is_compressible([TEXT[:100], noise]) and not is_compressible([noise[:70_000]])


async def test_the_level_changes_in_the_middle_of_a_session(autojump_clock: Any) -> None:
    near, far = link().streams()
    source, target = open_session(near, Role.SOURCE), open_session(far, Role.TARGET)
    transmission = Transmission(MockedClock(), in_thread)
    source.use(transmission, packing=True)
    sizes: dict[str, int] = {}
    for compression in ("off", "1", "5", "off", "9", "1", "auto", "3"):
        transmission.compression = compression
        before = source.sent_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send, PieceBatch(7), TEXT[:100_000])
            frame, data = await target.receive()
        assert (frame, bytes(data)) == (PieceBatch(7), TEXT[:100_000])
        sizes[compression] = source.sent_bytes - before
    assert sizes["off"] > 100_000 > 5 * sizes["1"]


async def test_nothing_is_packed_for_a_peer_that_does_not_understand(autojump_clock: Any) -> None:
    near, far = link().streams()
    source, target = open_session(near, Role.SOURCE), open_session(far, Role.TARGET)
    transmission = Transmission(MockedClock(), in_thread)
    transmission.compression = "5"
    source.use(transmission, packing=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send, PieceBatch(7), TEXT)
        await target.receive()
    assert source.sent_bytes > len(TEXT) and transmission.level == 0


def test_the_context_streams_across_frames() -> None:
    """The second time the same data costs next to nothing, and is read by the stream alone."""
    packer, unpacker = Packer(), Unpacker()
    noise = os.urandom(100_000)
    first, second = packer.pack([noise], 1), packer.pack([noise], 1)
    assert len(second) < 200 < len(first)
    for packed in (first, second):
        assert unpacker.unpack(memoryview(packed), len(noise)) == noise
    with pytest.raises(RemoteProtocolError):
        Unpacker().unpack(memoryview(second), len(noise))


# --- a peer that is broken, or means harm ---


def bomb(size: int) -> bytes:
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    part = bytes(min(size, limits.MIB))
    data = b"".join(stream.compress(part) for _ in range(size // len(part)))
    return data + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def packed(data: bytes, size: int) -> bytes:
    return b"".join(bytes(b) for b in encode_frame(Packed(size), data))


@pytest.mark.parametrize("size", [1, 1000, limits.PACKED_PLAIN_BYTES])
def test_a_bomb_unpacks_to_no_more_than_it_says(size: int) -> None:
    data = memoryview(bomb(256 * limits.MIB))
    assert len(data) < 100_000
    unpacker = Unpacker()
    tracemalloc.start()
    assert unpacker.unpack(data, size) == bytes(size)
    with pytest.raises(RemoteProtocolError, match="more than it says"):
        unpacker.unpack(memoryview(b"\0" * 10), size)
    assert tracemalloc.get_traced_memory()[1] < 4 * limits.MIB
    tracemalloc.stop()


@pytest.mark.parametrize("size", [0, limits.PACKED_PLAIN_BYTES + 1, 2**60])
def test_a_size_beyond_the_limit_is_refused_before_memory_is_spent(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="too large"):
        opened(Role.TARGET).receive(packed(bomb(1000), size))


def test_a_large_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_content_size=0)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(bytes(1000)) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(RemoteProtocolError, match="too much memory"):
        Unpacker().unpack(memoryview(data), 1000)


def test_less_than_announced_and_garbage_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="less than it says"):
        Unpacker().unpack(memoryview(Packer().pack([b"abc"], 1)), 4)
    with pytest.raises(RemoteProtocolError, match="cannot be unpacked"):
        Unpacker().unpack(memoryview(b"no zstd at all, and long enough to see it"), 100)


def test_packed_frames_do_not_nest_and_state_rules_hold_inside() -> None:
    inner = packed(Packer().pack([bytes(100)], 1), 100)
    with pytest.raises(RemoteProtocolError, match="not allowed in another one"):
        opened(Role.TARGET).receive(packed(Packer().pack([inner], 1), len(inner)))
    wrong = b"".join(bytes(b) for b in encode_frame(Bye("x"))) + b"".join(
        bytes(b) for b in encode_frame(Ping())
    )
    engine = opened(Role.TARGET)
    assert engine.receive(packed(Packer().pack([wrong], 1), len(wrong))) == [Bye("x")]
    with pytest.raises(RemoteProtocolError, match="PING is not allowed"):
        engine.receive(b"")


def test_packed_frames_come_only_in_an_open_session() -> None:
    engine = Engine(Role.TARGET)
    engine.state = State.INTRODUCED
    with pytest.raises(RemoteProtocolError, match="PACKED is not allowed"):
        engine.receive(packed(Packer().pack([bytes(100)], 1), 100))


def test_a_flood_of_small_packed_frames_is_taken_bit_by_bit() -> None:
    """64 KiB of the network could be hundreds of megabytes of frames."""
    packer = Packer()
    record = b"".join(bytes(b) for b in encode_frame(PieceBatch(1), bytes(limits.PACKED_PLAIN_BYTES - 100)))
    record += b"".join(bytes(b) for b in encode_frame(Ping())) * 2
    record = record[: limits.PACKED_PLAIN_BYTES]
    data = b""
    while len(data) < limits.RECEIVE_BYTES:
        data += packed(packer.pack([record], 1), len(record))
    engine = opened(Role.TARGET)
    calls, total = 0, 0
    tracemalloc.start()
    events = engine.receive(data)
    while True:
        calls += 1
        total += sum(len(event[1]) for event in events if isinstance(event, tuple))
        del events
        if not engine.has_more:
            break
        events = engine.receive(b"")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 100 * limits.MIB and calls > 50
    assert peak < 8 * limits.MIB
