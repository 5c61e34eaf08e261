"""Damaged files: a valid prefix, then an error or a HOLE; never a wrong record, never another exception."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.journals import Host, append, contents, read_all, small, write

from replicator.errors import JournalError
from replicator.ops import Kind, Position
from replicator.queue import segment
from replicator.queue.cursor import Cursor

Operation = tuple[int, bytes, bytes]


def filled(
    count: int = 8, size: int = 40, memory_bytes: int = 1100
) -> tuple[Host, list[Operation], list[Position]]:
    """A host with segments in both tiers, of a journal whose writer was killed; every position of it."""
    host = Host(settings=small(memory_bytes=memory_bytes))
    writer = host.writer()
    host.cursor(create=True).close()
    operations = [write(b"path/%d" % number, size, number) for number in range(count)]
    positions = []
    for operation in operations:
        assert append(writer, operation)
        positions.append(writer.position)
    host.kill()
    return host, operations, positions


def segments_of(host: Host) -> list[str]:
    return [path for path in host.disk.paths() if path.endswith(segment.SUFFIX)]


def check_never_wrong(host: Host, operations: list[Operation], positions: list[Position]) -> bool:
    """Read everything that can still be read. Returns whether the damage was noticed."""
    # First with the old head in the shared page: the writer has not come back yet.
    noticed = read_prefix(host, operations)
    writer = host.writer()
    if writer.recovery.damaged:
        records = read_all(host.cursor())
        assert [record.kind for record in records] == [Kind.HOLE]
        for position in positions:
            cursor = host.cursor(None)
            with pytest.raises(JournalError):
                cursor.seek(position)
            cursor.close()
        assert any("damaged-" in path for path in host.disk.paths())
    else:
        noticed |= read_prefix(host, operations)
    assert append(writer, write(b"on", 10))
    return noticed or writer.recovery.damaged


def read_prefix(host: Host, operations: list[Operation]) -> bool:
    found = []
    cursor: Cursor | None = None
    try:
        cursor = host.cursor()
        while (run := cursor.read(200)) is not None:
            found += contents(record for _, _, record in run.records)
    except JournalError:
        noticed = True
    else:
        noticed = False
        assert len(found) == len(operations)
    if cursor is not None:
        cursor.close()
    assert found == operations[: len(found)]
    return noticed


def test_a_flipped_bit_anywhere() -> None:
    host, _, _ = filled()
    files = {path: host.disk.contents(path) for path in segments_of(host)}
    assert len(files) >= 3
    assert {path.split("/")[1] for path in files} == {"memory", "disk"}
    for path, data in files.items():
        for place in range(len(data)):
            host, operations, positions = filled()
            damaged = bytearray(data)
            damaged[place] ^= 1 << (place * 5 + 3) % 8
            host.disk.damage(path, bytes(damaged))
            assert check_never_wrong(host, operations, positions), (path, place)


def test_a_segment_cut_anywhere() -> None:
    host, _, _ = filled()
    files = {path: host.disk.contents(path) for path in segments_of(host)}
    for path, data in files.items():
        for size in range(len(data)):
            host, operations, positions = filled()
            host.disk.damage(path, data[:size])
            assert check_never_wrong(host, operations, positions), (path, size)


def test_a_segment_that_is_missing() -> None:
    host, _, _ = filled()
    for path in segments_of(host):
        host, operations, positions = filled()
        host.disk.unlink(path)
        assert check_never_wrong(host, operations, positions), path


@pytest.mark.parametrize("records_before", [1, 2, 3, 4, 6], ids=lambda n: f"after-{n}")
def test_a_torn_tail_of_every_length(records_before: int) -> None:
    """Killed in the middle of an append, also of one that begins a segment: cut at every byte."""

    def torn(size: int | None) -> int:
        host = Host()
        writer = host.writer()
        host.cursor(create=True).close()
        operations = [write(b"path/%d" % number, 50, number) for number in range(records_before + 1)]
        for operation in operations[:-1]:
            append(writer, operation)
        pages = {path: bytes(page) for path, page in host.disk.pages.items()}
        before = {path: len(host.disk.contents(path)) for path in segments_of(host)}
        append(writer, operations[-1])
        host.kill()
        for path, page in pages.items():
            host.disk.pages[path][:] = page
        last = segments_of(host)[-1]
        data = host.disk.contents(last)
        start = before.get(last, 0)
        if size is None:
            return len(data) - start
        host.disk.damage(last, data[: start + size])
        writer = host.writer()
        assert not writer.recovery.damaged
        whole = start + size == len(data)
        assert writer.recovery.torn_bytes == (0 if whole else size)
        expected = operations if whole else operations[:-1]
        assert writer.position.sequence == len(expected)
        if not whole:
            assert (last in before) == (last in host.disk.paths())
            assert last not in before or len(host.disk.contents(last)) == start
        if not whole and size:
            (kept,) = (path for path in host.disk.paths() if path.endswith(segment.DAMAGED_SUFFIX))
            assert host.disk.contents(kept) == data[start : start + size]
        assert append(writer, operations[-1])
        assert contents(read_all(host.cursor())) == [*expected, operations[-1]]
        return 0

    length = torn(None)
    for size in range(length + 1):
        torn(size)


def flip(data: bytes, place: int, _: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def zero(data: bytes, place: int, size: int) -> bytes:
    return data[:place] + bytes(len(data[place : place + size])) + data[place + size :]


def drop(data: bytes, place: int, size: int) -> bytes:
    return data[:place] + data[place + size :]


def repeat(data: bytes, place: int, size: int) -> bytes:
    return data[: place + size] + data[place:]


def garbage(data: bytes, place: int, size: int) -> bytes:
    return data[:place] + bytes((place * 7 + n * 13) % 256 for n in range(size)) + data[place + size :]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([flip, zero, drop, repeat, garbage]),
    file=st.integers(0, 3),
    where=st.floats(0, 0.999),
    size=st.sampled_from([1, 8, 13, 80, 512]),
)
def test_damage_of_any_kind(
    kind: Callable[[bytes, int, int], bytes], file: int, where: float, size: int
) -> None:
    host, operations, positions = filled(count=12)
    paths = segments_of(host)
    path = paths[file % len(paths)]
    data = host.disk.contents(path)
    changed = kind(data, int(where * len(data)), size)
    host.disk.damage(path, changed)
    if not check_never_wrong(host, operations, positions):
        assert changed[: len(data)] == data  # only behind its end was it different


def test_swapped_records_are_noticed() -> None:
    """Two equal stretches that change places: every checksum of a record by itself would still be right."""
    host, operations, positions = filled(memory_bytes=4096)
    path = segments_of(host)[0]
    data = host.disk.contents(path)
    length = (len(data) - segment.HEADER_BYTES) // 3
    first, second, third = (
        data[segment.HEADER_BYTES + n * length : segment.HEADER_BYTES + (n + 1) * length] for n in range(3)
    )
    host.disk.damage(path, data[: segment.HEADER_BYTES] + second + first + third)
    assert check_never_wrong(host, operations, positions)


def test_an_older_segment_in_place_of_a_newer() -> None:
    host, operations, positions = filled(memory_bytes=4096)
    paths = segments_of(host)
    host.disk.damage(paths[1], host.disk.contents(paths[0]))
    assert check_never_wrong(host, operations, positions)


def test_a_half_written_saved_header_is_none() -> None:
    host, operations, _ = filled()
    path = "/disk/j/header.saved"
    data = host.disk.contents(path)
    for size in (0, 1, 100, len(data) - 1):
        host.disk.damage(path, data[:size])
        writer = host.writer()
        assert contents(read_all(host.cursor())) == operations
        writer.close(persist=False)
