"""Claims about many files at once: each attribute that differs is found, whatever is special is left out."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from replicator import limits
from replicator.fs.bare_files import BareFiles
from replicator.mirror import alike
from replicator.mirror.comparison import Claim
from replicator.mirror.pieces import Alike

NAMES = [b"f%02d" % number for number in range(20)]


# Version 2; (tag, permissions, id) of owner, a user, group, mask, others: acl(5), linux/posix_acl_xattr.h.
ACCESS_LIST = struct.pack(
    "<I" + "HHI" * 5,
    2,
    *(1, 6, 2**32 - 1),
    *(2, 4, 12),
    *(4, 4, 2**32 - 1),
    *(16, 4, 2**32 - 1),
    *(32, 0, 2**32 - 1),
)


def make(directory: Path) -> int:
    """Twenty files; a descriptor of the directory."""
    directory.mkdir()
    for number, name in enumerate(NAMES):
        path = directory / os.fsdecode(name)
        path.write_bytes(b"x" * number * 100)
        os.chmod(path, 0o640 + number % 8)
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 - number * 10**17))  # some before 1970
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def claim(descriptor: int, *, unsure: tuple[int, ...] = (), distrust_ns: int | None = None) -> alike.Claimed:
    def find(inodes: object) -> list[int]:
        return [index for index, inode in enumerate(inodes) if inode in unsure]  # type: ignore[arg-type]

    return alike.claim(descriptor, b"d", NAMES, Claim.SIZE_AND_TIME, find, distrust_ns)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, int, int]:
    """A directory and its copy."""
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    yield tmp_path / "other", one, other
    os.close(one)
    os.close(other)


def test_what_is_equal_is_found_to_be(two: tuple[Path, int, int]) -> None:
    _, one, other = two
    claimed = claim(one)
    assert claimed.alike is not None and claimed.alike.names == tuple(NAMES) and claimed.others == []
    assert claimed.size == sum(number * 100 for number in range(20))
    assert alike.is_well_formed(claimed.alike)
    assert alike.unlike(other, claimed.alike, None, None) == []


def grow(path: Path) -> None:
    state = path.stat()
    path.write_bytes(path.read_bytes() + b"y")
    os.utime(path, ns=(0, state.st_mtime_ns))


def later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replaced_by_link(path: Path) -> None:
    state = path.stat()
    path.unlink()
    path.symlink_to("x" * state.st_size)
    os.utime(path, ns=(0, state.st_mtime_ns), follow_symlinks=False)


CHANGES: dict[str, Callable[[Path], None]] = {
    "size": grow,
    "mtime": later,
    "mode": lambda path: os.chmod(path, 0o755),
    "uid": lambda path: os.chown(path, 12, -1),
    "gid": lambda path: os.chown(path, -1, 12),
    "a second name": lambda path: os.link(path, path.with_name("second")),
    "an extended attribute": lambda path: os.setxattr(path, "user.a", b"b"),
    "long names of attributes": lambda path: os.setxattr(path, "user." + "a" * 200, b"b"),
    "an access list": lambda path: os.setxattr(path, "system.posix_acl_access", ACCESS_LIST),
    "gone": lambda path: path.unlink(),
    "another type": replaced_by_link,
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_difference_is_found(what: str, two: tuple[Path, int, int]) -> None:
    directory, one, other = two
    claimed = claim(one).alike
    assert claimed is not None
    try:
        CHANGES[what](directory / "f07")
    except PermissionError:
        pytest.skip("only root changes owners")
    assert alike.unlike(other, claimed, None, None) == [7]


@pytest.mark.parametrize("what", CHANGES)
def test_each_difference_is_found_where_attributes_are_remembered(
    what: str, two: tuple[Path, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILE_CLOCK_STEP_NS", -2 * 10**9)  # all files count as quiet
    directory, one, other = two
    bare = BareFiles(str(tmp_path / "bare-files"), "boot")
    claimed = alike.claim(one, b"d", NAMES, Claim.SIZE_AND_TIME, lambda inodes: (), None, bare).alike
    assert claimed is not None and alike.unlike(other, claimed, None, None, bare) == []
    try:
        CHANGES[what](directory / "f07")
    except PermissionError:
        pytest.skip("only root changes owners")
    assert alike.unlike(other, claimed, None, None, bare) == [7]
    if what in SPECIAL:
        special = alike.claim(other, b"d", NAMES, Claim.SIZE_AND_TIME, lambda inodes: (), None, bare)
        assert special.others == [b"f07"]


SPECIAL = [
    *("a second name", "gone", "another type"),
    *("an extended attribute", "long names of attributes", "an access list"),
]


@pytest.mark.parametrize("what", SPECIAL)
def test_what_is_special_is_not_claimed(what: str, two: tuple[Path, int, int]) -> None:
    directory, _, other = two
    CHANGES[what](directory / "f07")
    claimed = claim(other)
    assert claimed.alike is not None and b"f07" not in claimed.alike.names and claimed.others == [b"f07"]
    assert len(claimed.inodes) == len(claimed.alike.names) == 19
    assert alike.is_well_formed(claimed.alike)


def test_a_label_of_a_security_module_is_nothing_special(two: tuple[Path, int, int]) -> None:
    directory, _, other = two
    try:
        os.setxattr(directory / "f07", "security.label", b"of this host")
    except OSError:
        pytest.skip("only root sets it, and not on every file system")
    assert claim(other).others == []


def test_what_may_have_changed_is_not_claimed(two: tuple[Path, int, int]) -> None:
    directory, _, other = two
    unsure = (directory / "f03").stat().st_ino
    assert claim(other, unsure=(unsure,)).others == [b"f03"]
    assert claim(other, distrust_ns=(directory / "f00").stat().st_ctime_ns).alike is None


def test_after_power_loss_nothing_written_since_is_believed(two: tuple[Path, int, int]) -> None:
    directory, one, other = two
    claimed = claim(one).alike
    assert claimed is not None
    os.chmod(directory / "f05", (directory / "f05").stat().st_mode & 0o777)
    since_ns = (directory / "f05").stat().st_ctime_ns
    assert 5 in alike.unlike(other, claimed, since_ns, None)


def test_only_what_this_mirror_brought_counts_as_brought(two: tuple[Path, int, int]) -> None:
    directory, one, other = two
    claimed = msgspec.structs.replace(claim(one).alike, claim=Claim.BROUGHT)
    assert alike.unlike(other, claimed, None, None) == list(range(20))
    latest_ns = max((directory / os.fsdecode(name)).stat().st_ctime_ns for name in NAMES)
    assert alike.unlike(other, claimed, None, latest_ns) == list(range(20))
    assert alike.unlike(other, claimed, None, latest_ns - 10**10) == []
    for name in NAMES:  # old files whose ctime is new
        path = directory / os.fsdecode(name)
        path.rename(directory / "aside")
        (directory / "aside").rename(path)
    assert alike.unlike(other, claimed, None, latest_ns) == list(range(20))


def test_a_part_of_a_claim(two: tuple[Path, int, int]) -> None:
    _, one, other = two
    claimed = claim(one).alike
    assert claimed is not None
    chance = random.Random(1)
    for _ in range(20):
        dropped = set(chance.sample(NAMES, chance.randrange(20)))
        left, kept = alike.without(claimed, dropped)
        assert left is not None and set(left.names) == set(NAMES) - dropped
        assert [NAMES[index] for index in kept] == list(left.names)
        assert alike.unlike(other, left, None, None) == []
    assert alike.without(claimed, set(NAMES)) == (None, [])


@pytest.mark.parametrize(
    ("names", "count"),
    [((), 0), ((b"a",), 2), ((b"a/b",), 1), ((b"..",), 1), ((b"a\0",), 1), ((b"a", b""), 2), ((b"a",), 0)],
)
def test_malformed_claims(names: tuple[bytes, ...], count: int) -> None:
    assert not alike.is_well_formed(Alike(b"d", names, bytes(40 * count)))
