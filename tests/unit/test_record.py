import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator import limits
from replicator.ops import START, Kind, Position, Record
from replicator.queue.record import (
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    CorruptRecord,
    IncompleteRecord,
    check,
    decode,
    encode,
    iterate,
    record_length,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
paths = st.binary(max_size=300)


def row(count: int, previous: Position = START, size: int = 20) -> tuple[bytes, list[Position]]:
    """Bytes of some records and the position after each."""
    data = b""
    positions = []
    sequence, chain = previous
    for number in range(count):
        sequence += 1
        path, payload = b"p%d" % number, bytes([number]) * size
        buffers, _, chain = encode(Kind.WRITE, sequence, chain, 7, 1, 2, path, payload=payload)
        data += b"".join(buffers)
        positions.append(Position(sequence, chain))
    return data, positions


@given(
    kind=st.sampled_from(list(Kind)),
    sequence=st.integers(1, 2**64 - 1),
    previous_chain=u64,
    boot=u32,
    monotonic_ns=u64,
    wall_ns=u64,
    path=paths,
    path2=paths,
    payload=st.binary(max_size=2000),
    flags=st.integers(0, 255),
    inode=u64,
    generation=u32,
    arg0=u64,
    arg1=u64,
    offset=st.integers(0, 20),
)
def test_decode_gives_back_what_was_encoded(
    kind: Kind,
    sequence: int,
    previous_chain: int,
    boot: int,
    monotonic_ns: int,
    wall_ns: int,
    path: bytes,
    path2: bytes,
    payload: bytes,
    flags: int,
    inode: int,
    generation: int,
    arg0: int,
    arg1: int,
    offset: int,
) -> None:
    buffers, length, chain = encode(
        kind,
        sequence,
        previous_chain,
        boot,
        monotonic_ns,
        wall_ns,
        path,
        path2,
        payload,
        flags,
        inode,
        generation,
        arg0,
        arg1,
    )
    data = bytes(offset) + b"".join(buffers) + b"behind"
    assert len(b"".join(buffers)) == length
    assert length % 8 == 0
    record, found_length = decode(data, offset)
    assert found_length == length == record_length(data, offset)
    assert record._replace(payload=bytes(record.payload)) == Record(
        kind,
        flags,
        sequence,
        chain,
        boot,
        monotonic_ns,
        wall_ns,
        inode,
        generation,
        arg0,
        arg1,
        path,
        path2,
        payload,
    )
    assert check(data, offset, length, previous_chain) == chain


def test_a_payload_is_neither_copied_to_encode_nor_to_decode() -> None:
    payload = memoryview(bytearray(4096))
    buffers, _, _ = encode(Kind.WRITE, 1, 0, 1, 1, 1, b"a", payload=payload)
    assert any(buffer is payload for buffer in buffers)
    data = bytearray(b"".join(buffers))
    record, _ = decode(data)
    data[HEADER_BYTES + 1] = 0xFF
    assert record.payload[0] == 0xFF


def test_the_largest_record() -> None:
    longest = bytes(limits.PATH_BYTES)
    payload = bytes(limits.RECORD_PAYLOAD_BYTES)
    buffers, length, _ = encode(Kind.WRITE, 1, 0, 1, 1, 1, longest, longest, payload)
    assert length == RECORD_BYTES_MAX
    data = b"".join(buffers)
    assert decode(data)[1] == length
    for path, path2, data in (
        (longest + b"x", b"", b""),
        (b"", longest + b"x", b""),
        (b"", b"", payload + b"x"),
    ):
        with pytest.raises(ValueError, match="too long"):
            encode(Kind.WRITE, 1, 0, 1, 1, 1, path, path2, data)


def test_the_format_stays() -> None:
    """Later versions read what earlier ones wrote: this must never need another expectation."""
    buffers, length, chain = encode(
        Kind.RENAME, 5, 0x1122334455667788, 9, 10, 11, b"old", b"new!", b"data", 3, 12, 13, 14, 15
    )
    assert length == 96
    assert chain == 0xDE4D05BC80F7956
    assert b"".join(buffers).hex() == (
        "6000000008030300050000000000000056790fc85bd0e40d0a000000000000000b00000000000000"
        "0c000000000000000d000000090000000e000000000000000f000000000000000400000004000000"
        "6f6c646e657721646174610000000000"
    )


def test_every_flipped_bit_is_noticed() -> None:
    data, _ = row(1)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises((CorruptRecord, IncompleteRecord)):
                list(iterate(damaged, START))


def test_every_cut_is_incomplete() -> None:
    data, _ = row(1)
    for size in range(1, len(data)):
        with pytest.raises(IncompleteRecord):
            decode(data[:size])
        with pytest.raises(IncompleteRecord):
            list(iterate(data[:size], START))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"\xff\xff\xff\x7f"),  # length
        (0, b"\x00\x00\x00\x00"),
        (4, b"\x00"),  # kind: unwritten space
        (4, b"\xfe"),  # kind: unknown
        (6, b"\xff\xff"),  # path length
        (8, bytes(8)),  # sequence 0
        (72, b"\xff\xff"),  # second path length
        (74, b"\x01"),  # reserved
        (76, b"\xff\xff\xff\xff"),  # payload length: must not be allocated
    ],
)
def test_impossible_headers(place: int, value: bytes) -> None:
    data, _ = row(1)
    damaged = data[:place] + value + data[place + len(value) :]
    with pytest.raises(CorruptRecord):
        decode(damaged)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_record_or_an_error(data: bytes) -> None:
    try:
        record, length = decode(data)
    except (CorruptRecord, IncompleteRecord):
        return
    assert length <= len(data)
    assert len(record.path) + len(record.path2) + len(record.payload) <= length


def test_unwritten_space_is_no_record() -> None:
    with pytest.raises(CorruptRecord):
        decode(bytes(4096))


def test_iterate_yields_what_it_has_verified() -> None:
    data, positions = row(5)
    found = list(iterate(data, START))
    assert [record.sequence for _, _, record in found] == [1, 2, 3, 4, 5]
    assert [Position(record.sequence, record.chain) for _, _, record in found] == positions
    assert [offset for offset, _, _ in found] == [n * len(data) // 5 for n in range(5)]
    assert list(iterate(b"", START)) == []
    # From the middle, with the right proof, and with a wrong one.
    middle = found[2][0]
    assert len(list(iterate(data[middle:], positions[1]))) == 3
    for previous in (positions[0], positions[2], Position(2, 99)):
        with pytest.raises(CorruptRecord):
            list(iterate(data[middle:], previous))


def test_iterate_stops_at_records_that_are_left_out_repeated_or_exchanged() -> None:
    data, _ = row(4)
    length = len(data) // 4
    parts = [data[n * length : (n + 1) * length] for n in range(4)]
    for order in ([0, 2, 3], [0, 1, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3]):
        found = []
        with pytest.raises(CorruptRecord):
            for _, _, record in iterate(b"".join(parts[n] for n in order), START):
                found.append(record.sequence)
        assert found == list(range(1, len(found) + 1))


def test_records_of_another_history_do_not_fit() -> None:
    """Same sequence numbers, other contents before: the chain tells them apart."""
    data, _ = row(3)
    other, _ = row(3, size=21)
    with pytest.raises(CorruptRecord):
        list(iterate(data[: len(data) // 3] + other[len(other) // 3 :], START))


def test_random_walks_through_a_row() -> None:
    data, _ = row(40, size=33)
    generator = random.Random(1)
    for _ in range(50):
        cut = generator.randrange(len(data) + 1)
        sequences = []
        try:
            for _, _, record in iterate(data[:cut], START):
                sequences.append(record.sequence)
        except IncompleteRecord:
            pass
        assert sequences == list(range(1, cut * 40 // len(data) + 1))
