"""Files made and read many at a time: as one by one, and where one cannot be, nothing of it is left."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.trees import snapshot

from replicator.fs import many_files, many_states
from replicator.fs.many_files import make_many, read_many
from replicator.fs.many_states import read_states

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

NAMES = [b"f%02d" % number for number in range(40)] + [b"link", b"long link", b"\xff" * 255]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for number, name in enumerate(NAMES):
        path = os.fsencode(directory / os.fsdecode(name))
        if b"link" in name:
            os.symlink(b"f01" if name == b"link" else b"\xff" * 4095, path)
        else:
            Path(os.fsdecode(path)).write_bytes(bytes([number]) * number * 111)
            os.chmod(path, (0o600, 0o644, 0o4755, 0o000)[number % 4])
        os.chown(path, number % 3, number % 2, follow_symlinks=False)
        if number % 4 == 2:  # chown has taken it
            os.chmod(path, 0o6755, follow_symlinks=b"link" not in name)
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 - number * 10**17), follow_symlinks=False)
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    umask = os.umask(0)
    (tmp_path / "target").mkdir()
    descriptor = os.open(tmp_path / "target", os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path / "target", descriptor
    os.close(descriptor)
    os.umask(umask)


def read(source: Path) -> tuple[bytes, bytearray, bytes]:
    """States, contents and whether each was read."""
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        states = read_states(descriptor, NAMES)
        kinds = [stat.S_IFLNK if b"link" in name else stat.S_IFREG for name in NAMES]
        return states.states(), *read_many(descriptor, NAMES, kinds, states.sizes())
    finally:
        os.close(descriptor)


def test_what_is_read_and_made_is_the_same(source: Path, target: tuple[Path, int]) -> None:
    states, contents, right = read(source)
    assert right == b"\1" * len(NAMES)
    copy, descriptor = target
    assert make_many(descriptor, NAMES, states, memoryview(contents)) == (len(NAMES), len(contents))
    found, wanted = snapshot(copy), snapshot(source)
    del found[b""], wanted[b""]
    assert found == wanted


def test_without_the_part_in_c(
    source: Path, target: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(source)
    monkeypatch.setattr(many_files, "_many", None)
    assert read(source) == expected
    assert make_many(target[1], NAMES, expected[0], memoryview(expected[1])) == (0, 0)


@pytest.mark.parametrize("in_c", [True, False])
def test_what_is_not_so_long_or_gone_is_not_read(
    in_c: bool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_c:
        monkeypatch.setattr(many_files, "_many", None)
    really = many_states.ManyStates.sizes

    def meanwhile(states: many_states.ManyStates) -> list[int]:
        sizes = really(states)
        (source / "f09").write_bytes(b"shorter")
        (source / "f11").unlink()
        (source / "f12").unlink()
        (source / "f12").symlink_to("f01")
        (source / "link").unlink()
        (source / "link").symlink_to("f0")
        (source / "f13").write_bytes(b"!" * (sizes[13] + 1))  # its state tells that
        return sizes

    monkeypatch.setattr(many_states.ManyStates, "sizes", meanwhile)
    _, contents, right = read(source)
    wrong = {NAMES[index] for index, there in enumerate(right) if not there}
    assert wrong == {b"f09", b"f11", b"f12", b"link"}
    start = sum(number * 111 for number in range(14))
    assert contents[start : start + 14 * 111] == bytes([14]) * 14 * 111, "each has its place"


@pytest.mark.parametrize("there", ["file", "link", "directory"])
@pytest.mark.parametrize("name", [b"f07", b"link"])
def test_it_ends_where_something_has_the_name(
    name: bytes, there: str, source: Path, target: tuple[Path, int]
) -> None:
    states, contents, _ = read(source)
    copy, descriptor = target
    path = copy / os.fsdecode(name)
    if there == "file":
        path.write_text("another")
    elif there == "link":
        path.symlink_to(source / "f03")
    else:
        path.mkdir()
    before, sources = snapshot(copy)[name], snapshot(source)
    index = NAMES.index(name)
    size = sum((source / os.fsdecode(n)).lstat().st_size for n in NAMES[:index])
    assert make_many(descriptor, NAMES, states, memoryview(contents)) == (index, size)
    assert snapshot(copy)[name] == before and len(os.listdir(copy)) == index + 1
    assert snapshot(source) == sources, "nothing is written through a link"


def test_nothing_is_left_of_one_that_cannot_be_completed(source: Path, target: tuple[Path, int]) -> None:
    states, contents, _ = read(source)
    copy, descriptor = target
    words = memoryview(bytearray(states)).cast("Q")
    for index, name in ((5, b"f05"), (40, b"link")):
        for path in copy.iterdir():
            path.unlink()
        broken = memoryview(bytearray(words)).cast("Q")
        broken[4 * len(NAMES) + index] = 10**9  # nanoseconds
        made, _ = make_many(descriptor, NAMES, broken.tobytes(), memoryview(contents))
        assert made == index and len(os.listdir(copy)) == index and name not in os.listdir(os.fsencode(copy))


def test_a_text_with_nul_and_contents_that_are_missing(source: Path, target: tuple[Path, int]) -> None:
    states, contents, _ = read(source)
    copy, descriptor = target
    assert make_many(descriptor, NAMES, states, memoryview(contents)[:200]) == (2, 111)
    for path in copy.iterdir():
        path.unlink()
    link = NAMES.index(b"link")
    place = sum(number * 111 for number in range(link))
    contents[place : place + 3] = b"f\0x"
    assert make_many(descriptor, NAMES, states, memoryview(contents))[0] == link
    with pytest.raises(ValueError):
        make_many(descriptor, NAMES[1:], states, memoryview(contents))
    with pytest.raises(ValueError):
        make_many(descriptor, [b"a\0b"], states[: 5 * 8], memoryview(contents))
