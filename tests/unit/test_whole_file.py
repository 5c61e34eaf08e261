"""A file that appears with all it holds: read, encoded, and placed so that a kill leaves all or nothing."""

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.recording import Source, make_record
from kit.trees import acl, assert_same_tree, snapshot

from replicator.fs import apply, apply_creation, calls, unfinished, whole_file
from replicator.fs.apply import Applier
from replicator.fs.apply_outcome import ApplyError, Outcome
from replicator.fs.beneath import Root
from replicator.fs.whole_file import WholeFile, place_whole, read_whole
from replicator.mirror.links import LinkTable
from replicator.ops import Attributes, Kind, Record

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

_LIMIT = 100_000
_XATTRS = {b"user.a": b"1", b"trusted.b": b"", b"system.posix_acl_access": acl(77, 6)}
_FILE = Attributes(23, stat.S_IFREG | 0o4640, 1000, 1001, 0, 0, 5_000_000_001)


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[tuple[Source, Path]]:
    previous = os.umask(0)
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    yield Source(tmp_path / "source"), tmp_path / "target"
    os.umask(previous)


@pytest.fixture(params=["nameless", "hidden", "hidden, no flags"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a target's file system lets a file be built."""
    if request.param != "nameless":
        monkeypatch.setattr(unfinished, "_NAMELESS_FLAGS", os.O_RDWR)  # EISDIR, as where it is not known
    if request.param == "hidden, no flags":

        def refuse(*_: object) -> None:
            raise OSError(errno.EINVAL, "no such flag")

        monkeypatch.setattr(calls, "renameat2", refuse)
    return str(request.param)


def _appeared(source: Source) -> Record:
    """A record of a file with everything a file can have."""
    source.appear(
        b"f", {0: b"head", 40_000: b"x" * 5000, 90_000: b"tail"}, 99_999, _XATTRS, 0o4750, (1000, 1001)
    )
    return source.records[-1]


def _apply(target: Path, record: Record, **options: Any) -> Outcome:
    with Root(target) as root:
        return Applier([(b"", root)]).apply(record, **{"tolerant": False, **options})


# --- the payload ---


@given(
    st.lists(st.tuples(st.integers(0, 10), st.binary(min_size=1, max_size=20)), max_size=5),
    st.dictionaries(st.sampled_from(sorted(_XATTRS)), st.binary(max_size=30)),
    st.integers(0, 2**40),
)
def test_what_is_encoded_is_decoded(
    gaps: list[tuple[int, bytes]], xattrs: dict[bytes, bytes], more: int
) -> None:
    extents, end = [], 0
    for gap, data in gaps:
        extents.append((end + gap, len(data)))
        end += gap + len(data)
    data = b"".join(data for _, data in gaps)
    whole = WholeFile(_FILE, end + more, xattrs, tuple(extents), data)
    assert WholeFile.decode(whole.encode()) == whole


def test_what_no_source_sends_is_refused() -> None:
    good = WholeFile(_FILE, 100, {b"user.a": b"1"}, ((0, 4), (50, 2)), b"abcdef")
    payload = good.encode()
    for size in range(len(payload)):
        with pytest.raises(ValueError, match="a file"):
            WholeFile.decode(payload[:size])
    for bad in (
        good._replace(extents=((0, 4), (3, 2))),  # overlapping
        good._replace(extents=((50, 4), (0, 2))),
        good._replace(extents=((0, 4), (99, 2))),  # beyond the end
        good._replace(extents=((0, 4), (50, 3))),
        good._replace(data=b"abcdefg"),
    ):
        with pytest.raises(ValueError, match="a file"):
            WholeFile.decode(bad.encode())
    assert WholeFile.decode(good._replace(xattrs={b"security.selinux": b"x"}).encode()).xattrs == {}


def test_a_malformed_record_is_an_error_of_that_record(trees: tuple[Source, Path]) -> None:
    with pytest.raises(ApplyError, match="cannot apply FILE f: a file cut short"):
        _apply(trees[1], make_record(Kind.FILE, b"f", payload=b"short"))


# --- reading ---


@pytest.mark.parametrize("excess", [0, 1])
def test_more_than_the_limit_is_not_read(tmp_path: Path, excess: int) -> None:
    with open(tmp_path / "f", "w+b", buffering=0) as file:
        file.write(b"x" * 4096)
        file.truncate(1 << 40)  # holes cost nothing
        os.setxattr(file.fileno(), "user.a", b"1" * 100)
        size = len(read_whole(file.fileno(), _LIMIT).data) + 16 + len(b"user.a") + 100
        if excess:
            with pytest.raises(OSError, match=rf"\[Errno {errno.EFBIG}\]"):
                read_whole(file.fileno(), size - 1)
        else:
            assert read_whole(file.fileno(), size).size == 1 << 40


# --- placing ---


def test_it_appears_exactly(trees: tuple[Source, Path], way: str) -> None:
    source, target = trees
    _apply(target, _appeared(source))
    assert_same_tree(source.root, target, frozenset({"mtime_ns"}))
    state = os.lstat(target / "f")
    assert state.st_mtime_ns == os.lstat(source.at(b"f")).st_mtime_ns
    assert state.st_blocks * 512 < 60_000  # holes stay holes
    assert os.listdir(target) == ["f"]


def test_what_has_its_name_stays_on_a_strict_target(trees: tuple[Source, Path], way: str) -> None:
    source, target = trees
    record = _appeared(source)
    (target / "f").write_bytes(b"foreign")
    with pytest.raises(ApplyError, match="exists"):
        _apply(target, record)
    assert (target / "f").read_bytes() == b"foreign"
    assert os.listdir(target) == ["f"]
    _apply(target, record, tolerant=True)
    assert_same_tree(source.root, target, frozenset({"mtime_ns"}))
    with pytest.raises(ApplyError):
        _apply(target, record._replace(path=b"nowhere/f"))
    assert _apply(target, record._replace(path=b"nowhere/f"), tolerant=True) is Outcome.IGNORED


def test_in_doubt_it_is_recognised_and_left_alone(trees: tuple[Source, Path], way: str) -> None:
    source, target = trees
    record = _appeared(source)
    _apply(target, record)
    before = os.lstat(target / "f")
    assert _apply(target, record, in_doubt=True) is Outcome.ALREADY
    assert os.lstat(target / "f").st_ino == before.st_ino


def test_identities_of_links_follow(trees: tuple[Source, Path]) -> None:
    source, target = trees
    record = _appeared(source)
    with Root(target) as root:
        links = LinkTable()
        try:
            applier = Applier([(b"", root)], links=links)
            (target / "f").write_bytes(b"of another file")
            links.add(record.identity._replace(inode=record.inode + 1), b"f")
            applier.apply(record, tolerant=True)
            assert links.find(record.identity._replace(inode=record.inode + 1)) is None
        finally:
            links.close()


def _kill_at(line: int, work: Callable[[], object]) -> bool:
    """Do it in a process that is killed before the given line of our modules. False: it ended before that."""
    files = {apply.__file__, apply_creation.__file__, whole_file.__file__, unfinished.__file__}
    pid = os.fork()
    if not pid:
        count = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in files:
                return None
            count += event == "line"
            if count > line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(None)
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_kill_anywhere_leaves_all_or_nothing(trees: tuple[Source, Path], way: str) -> None:
    source, target = trees
    record = _appeared(source)
    line = done = hidden = 0
    while _kill_at(line, lambda: _apply(target, record)):
        found = os.listdir(target)
        if "f" in found:
            assert_same_tree(source.root, target, frozenset({"mtime_ns"}))
            done += 1
        hidden += len(found) - ("f" in found)
        _apply(target, record, in_doubt=True)
        assert_same_tree(source.root, target, frozenset({"mtime_ns"}))
        assert os.listdir(target) == ["f"]
        os.unlink(target / "f")
        line += 1
    assert line > 60
    assert 0 < done < line
    assert (hidden > 0) == (way != "nameless")


def test_a_full_target_keeps_nothing(
    trees: tuple[Source, Path], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    whole = WholeFile.decode(_appeared(source).payload)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    descriptor = os.open(target, os.O_RDONLY)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(whole_file, "write_xattrs", full)
            with pytest.raises(OSError, match="full"):
                place_whole(whole, descriptor, b"f", b".hidden")
        assert os.listdir(target) == []
        place_whole(whole, descriptor, b"f", b".hidden")
    finally:
        os.close(descriptor)
    assert list(snapshot(target)) == [b"", b"f"]
