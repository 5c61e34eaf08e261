"""The calls for many names at once, by the part in C and by ctypes: both say what single calls say."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.fs import many_states
from replicator.fs.many_states import names_in, read_states

WAYS = ("in C", "by ctypes")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of them makes the calls."""
    if request.param == "by ctypes":
        monkeypatch.setattr(many_states, "_many", None)
    return str(request.param)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A descriptor of one with some of everything."""
    for number in range(150):  # more than one chunk of calls
        (tmp_path / f"f{number:03}").write_bytes(b"x" * number)
        os.utime(tmp_path / f"f{number:03}", ns=(0, 1_600_000_000_123_456_789 - number * 10**17))
    os.link(tmp_path / "f001", tmp_path / "second")
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below")
    os.mkfifo(tmp_path / "fifo", 0o640)
    (tmp_path / os.fsdecode(b"\xff" * 255)).write_bytes(b"")
    (tmp_path / "...").write_bytes(b"")
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_it_was_built() -> None:
    """Without a compiler the package does without, but tests have one: `setup.py build_ext --inplace`."""
    assert many_states._many is not None


def test_states_are_those_of_stat(way: str, directory: int) -> None:
    names = sorted(map(os.fsencode, os.listdir(directory)))
    found = read_states(directory, names)
    columns = memoryview(found.states()).cast("Q")
    for index, name in enumerate(names):
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        links, mode, size, seconds, ns = columns[index :: len(names)].tolist()
        assert links == state.st_nlink | state.st_uid << 32
        assert mode & 0xFFFFFFFF == state.st_gid and mode >> 32 & 0xFFFF == state.st_mode
        assert size == state.st_size
        assert (seconds - (seconds >> 63 << 64)) * 10**9 + (ns & 0xFFFFFFFF) == state.st_mtime_ns
        assert found.inodes()[index] == state.st_ino
        ctime_ns = state.st_ctime_ns
        assert found.changed_since(ctime_ns)[index] and not found.changed_since(ctime_ns + 1)[index]
    plain = [names[index] for index in found.plain()]
    assert plain == [n for n in names if n not in (b"below", b"link", b"fifo", b"f001", b"second")]
    assert [n for n, there in zip(names, found.directories(), strict=True) if there] == [b"below"]


def test_what_is_not_there_has_zeros(way: str, directory: int) -> None:
    found = read_states(directory, [b"f003", b"gone", b"f003/below", b"f004"])
    assert found.sizes() == [3, 0, 0, 4]
    assert found.words.tolist()[1::4] == found.words.tolist()[2::4] == [0] * (len(found.words) // 4)
    assert list(found.plain()) == [0, 3] and found.mount() is None


def test_some_of_them(way: str, directory: int) -> None:
    names = [b"f%03d" % number for number in range(150)]
    some = read_states(directory, names).chosen([149, 2, 77])
    assert list(some.names) == [b"f149", b"f002", b"f077"]
    assert some.states() == read_states(directory, some.names).states()
    assert some.versions() == read_states(directory, some.names).versions()


def test_of_none(way: str, directory: int) -> None:
    found = read_states(directory, [])
    assert found.states() == b"" and list(found.plain()) == [] and found.mount() is None


def test_a_failure_is_an_oserror(way: str, directory: int) -> None:
    with pytest.raises(OSError) as caught:
        read_states(directory, [b"f001", b"x" * 300])
    assert caught.value.filename == b"x" * 300
    with pytest.raises(OSError):
        read_states(1 << 20, [b"f001"])
    with pytest.raises(OSError):
        names_in(1 << 20)


def test_names_are_those_of_the_directory(way: str, directory: int) -> None:
    expected = sorted(set(map(os.fsencode, os.listdir(directory))) - {b"below"})
    for _ in range(2):
        directories, others = names_in(directory)
        assert directories == [b"below"] and sorted(others) == expected


def test_names_of_a_large_directory(way: str, tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / (f"{number:04}" + "x" * 200)).touch()
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        directories, others = names_in(descriptor)
    finally:
        os.close(descriptor)
    assert directories == [] and sorted(others) == sorted(map(os.fsencode, os.listdir(tmp_path)))


def test_arguments_that_make_no_sense_are_refused(directory: int) -> None:
    many = many_states._many
    assert many is not None
    for names, words, room in (
        ([b"a\0b"], b"\0", 8),
        ([b"a"], b"\0", 16),
        ([b"a"], b"\0\1", 8),
        ([b"a"], bytes([32]), 8),
    ):
        with pytest.raises(ValueError):
            many.states(directory, names, 0, 0, words, bytearray(room))
    with pytest.raises(TypeError):
        many.states(directory, ["a"], 0, 0, b"\0", bytearray(8))  # type: ignore[list-item]


def test_the_kinds_are_of_the_objects_themselves(way: str, directory: int) -> None:
    kinds = read_states(directory, [b"f002", b"link", b"fifo", b"below"]).whole_kinds()
    assert kinds == [stat.S_IFREG, stat.S_IFLNK, 0, 0]
