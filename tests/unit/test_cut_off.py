"""Files that are cut off at the worst moment, while they are read or copied: no error, they just end there.
What cut them off is a change like all others, and comes behind the place at which they were read.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator import limits
from replicator.fs.attributes import data_extents, identity_of
from replicator.fs.copying import copy_on
from replicator.mirror.check_scan import read_content
from replicator.mirror.patches import PatchRequest, Todo
from replicator.mirror.pieces import Finish, Part, Patch, Patched
from replicator.mirror.regions import PatchReader
from replicator.mirror.scan import Transfer

KIB = 1024
SIZE, CUT = 256 * KIB, 10 * KIB


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SIZE)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def cut_when_looked_for_a_hole(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look for data and that for its end."""
    real = os.lseek

    def cuts(descriptor: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and offset >= CUT:
            os.ftruncate(file, CUT)
        return real(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", cuts)


@pytest.mark.usefixtures("cut_when_looked_for_a_hole")
def test_its_data_ends(file: int) -> None:
    assert list(data_extents(file, SIZE, 20 * KIB)) == []
    assert list(data_extents(file, SIZE)) == [(0, CUT)]


def rest_of(transfer: Transfer) -> tuple[list[Part], Finish]:
    parts = []
    while isinstance(entry := transfer.next(20 * KIB), Part):
        parts.append(entry)
    transfer.close()
    return parts, entry


@pytest.mark.usefixtures("cut_when_looked_for_a_hole")
def test_a_transfer_ends(file: int) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, b"x", 20 * KIB)
    parts, end = rest_of(Transfer(b"file", os.dup(file), 1, 0))
    assert end.size == CUT and [part.extents for part in parts] == [()]


def test_a_transfer_ends_between_two_parts(file: int) -> None:
    transfer = Transfer(b"file", os.dup(file), 1, 0)
    first = transfer.next(20 * KIB)
    assert isinstance(first, Part) and first.extents == ((0, 20 * KIB),)
    os.ftruncate(file, 30 * KIB)
    parts, end = rest_of(transfer)
    assert end.size == 30 * KIB and [part.extents for part in parts] == [((20 * KIB, 10 * KIB),)]


def test_holes_are_looked_for_once_in_each_extent(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """tmpfs walks through all that is behind to find one."""
    os.truncate(file, 2 * SIZE)
    os.pwrite(file, b"y" * SIZE, 2 * SIZE)
    real, looks = os.lseek, 0

    def counts(descriptor: int, offset: int, whence: int) -> int:
        nonlocal looks
        looks += whence == os.SEEK_HOLE
        return real(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", counts)
    parts, end = rest_of(Transfer(b"file", os.dup(file), 1, 0))
    assert looks == 2 and end.size == 3 * SIZE
    assert b"".join(bytes(part.data.buffer) for part in parts) == b"x" * SIZE + b"y" * SIZE
    assert parts[-1].extents[0][0] >= 2 * SIZE


@pytest.mark.usefixtures("cut_when_looked_for_a_hole")
def test_regions_end(file: int) -> None:
    request = PatchRequest(b"file", identity_of(os.fstat(file)), [], multilink=False)
    reader = PatchReader(request, os.dup(file))
    reader.take(Todo([(20 * KIB, 40 * KIB), (0, 4 * KIB)], [], [], True))
    read = []
    while not read or not isinstance(read[-1], Patched):
        read.append(reader.next())
    reader.close()
    assert read[-1].size == CUT
    assert [extent for entry in read if isinstance(entry, Patch) for extent in entry.extents] == [
        (0, 4 * KIB)
    ]


@pytest.mark.usefixtures("cut_when_looked_for_a_hole")
def test_a_verification_tells_what_it_could_read(file: int) -> None:
    content = read_content(file, SIZE, 20 * KIB, None, limits.PART_BYTES)
    assert content.extents == () and content.digests == b""


@pytest.fixture
def copying(file: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Cuts the file off before that call of the kernel's copying."""
    real, left = os.copy_file_range, [0]

    def copies(source: int, descriptor: int, count: int, *places: int) -> int:
        left[0] -= 1
        if not left[0]:
            os.ftruncate(file, CUT)
        return real(source, descriptor, min(count, 4 * KIB), *places)

    monkeypatch.setattr(os, "copy_file_range", copies)
    return lambda call: left.__setitem__(0, call)


@pytest.mark.parametrize("call", [1, 2, 3, 10])
def test_a_copy_ends(call: int, file: int, copying: Callable[[int], None], tmp_path: Path) -> None:
    copying(call)
    with open(tmp_path / "copy", "w+b", buffering=0) as copy:
        offset, copied = copy_on(file, copy.fileno(), 0, SIZE, SIZE)
        assert offset == SIZE
        assert copied == max(CUT, (call - 1) * 4 * KIB) == os.fstat(copy.fileno()).st_size
