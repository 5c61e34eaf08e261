"""Many small files in one piece: exact on the target, and whatever is special left out."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kit.trees import acl, assert_same_tree, snapshot

from replicator.fs.apply import Applier
from replicator.fs.beneath import Root
from replicator.mirror import packed
from replicator.mirror.links import LinkTable
from replicator.mirror.pieces import Batch, Content, Files, Links, Refused, decode_batch, encode_batch
from replicator.mirror.place import Placer
from replicator.ops import Identity

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

NAMES = [b"f%02d" % number for number in range(30)]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    directory = tmp_path / "source" / "d"
    directory.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        path = directory / os.fsdecode(name)
        path.write_bytes(bytes([number]) * number * 111)
        os.chown(path, number % 3, number % 2)
        os.chmod(path, (0o600, 0o644, 0o4755, 0o000)[number % 4])
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 - number * 10**17))
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    yield directory, descriptor
    os.close(descriptor)


@pytest.fixture
def placer(tmp_path: Path) -> Iterator[tuple[Path, Placer, LinkTable]]:
    umask = os.umask(0)
    (tmp_path / "target").mkdir()
    root, links = Root(tmp_path / "target"), LinkTable()
    placer = Placer(Applier([(b"", root)]), links)
    yield tmp_path / "target", placer, links
    placer.close()
    root.close()
    links.close()
    os.umask(umask)


def pack(descriptor: int, bytes_max: int = 1 << 20) -> packed.Packed:
    return packed.pack(
        descriptor, b"d", NAMES, lambda inodes: range(len(inodes)), bytes_max, bytes_max, lambda inode: False
    )


def place(placer: Placer, entry: Files | Links) -> list[Refused]:
    return placer.place(decode_batch(b"".join(encode_batch(Batch(1, 0, (entry,))))))


@pytest.mark.parametrize("there", ["nothing", "old files", "directories", "an ACL", "a group"])
def test_it_arrives_exactly(
    there: str, source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    directory, descriptor = source
    target, places, _ = placer
    copy = target / "d"
    if there != "nothing":
        copy.mkdir()
    if there == "old files":
        (copy / "f03").write_text("a longer text than the new one has, by far")
        (copy / "f04").symlink_to("f03")
    elif there == "directories":
        (copy / "f03" / "below").mkdir(parents=True)
    elif there == "an ACL":
        os.setxattr(copy, "system.posix_acl_default", acl(1234, 7))
    elif there == "a group":
        os.chown(copy, 5, 6)
        os.chmod(copy, 0o2775)
    read = pack(descriptor)
    assert read.files is not None and read.files.names == tuple(NAMES) and read.others == []
    for _ in range(2):  # the same again, as after a kill
        assert place(places, read.files) == []
        found, wanted = snapshot(copy), snapshot(directory)
        del found[b""], wanted[b""]
        assert found == wanted


def test_what_is_special_is_left_out(source: tuple[Path, int]) -> None:
    directory, descriptor = source
    os.setxattr(directory / "f02", "user.a", b"b")
    (directory / "f03").unlink()
    (directory / "f04").unlink()
    os.mkfifo(directory / "f04")
    os.truncate(directory / "f06", 1 << 16)  # a hole
    read = pack(descriptor)
    special = {b"f02", b"f03", b"f04", b"f06"}
    assert read.files is not None and set(read.files.names) == set(NAMES) - special
    assert set(read.others) == special and read.names == len(NAMES)
    assert len(read.inodes) == len(read.files.names) and read.size == len(read.files.data)


def test_only_so_much_at_a_time(source: tuple[Path, int]) -> None:
    _, descriptor = source
    read = pack(descriptor, 5000)
    assert read.files is not None and read.names == len(read.files.names) < len(NAMES)
    assert 5000 <= read.size < 10_000


def test_what_changes_while_it_is_read_is_left_out(
    source: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, descriptor = source
    really = packed.read_many

    def meanwhile(descriptor: int, *arguments: Any) -> tuple[bytearray, bytes]:
        (directory / "f12").write_bytes(b"shorter")
        found = really(descriptor, *arguments)
        size = (directory / "f09").stat().st_size
        (directory / "f09").write_bytes(b"!" * size)
        os.replace(directory / "f11", directory / "f10")
        return found

    monkeypatch.setattr(packed, "read_many", meanwhile)
    read = pack(descriptor)
    assert set(read.others) == {b"f09", b"f10", b"f11", b"f12"}
    assert read.files is not None
    contents = [(directory / os.fsdecode(name)).read_bytes() for name in read.files.names]
    assert bytes(read.files.data.buffer) == b"".join(contents)


def test_a_name_that_was_a_link_is_one_no_more(
    source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    _, descriptor = source
    target, places, links = placer
    (target / "d").mkdir()
    (target / "other").write_text("old")
    os.link(target / "other", target / "d" / "f07")
    for path in (b"other", b"d/f07"):
        links.add(Identity(99, 0), path)
    read = pack(descriptor)
    assert read.files is not None and place(places, read.files) == []
    assert (target / "other").read_text() == "old"
    assert links.names(Identity(99, 0)) == [b"other"]


def test_a_name_that_is_known_and_gone_is_one_of_another_file_no_more(
    source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    """Removed by others: nothing is in the way, and the next name of that file must not be made of it."""
    _, descriptor = source
    target, places, links = placer
    (target / "d").mkdir()
    links.add(Identity(99, 0), b"d/f07")
    read = pack(descriptor)
    assert read.files is not None and place(places, read.files) == []
    assert links.names(Identity(99, 0)) == []
    (refused,) = place(places, Links(b"d", (b"new",), (99).to_bytes(8, "little")))
    assert refused.path == b"d/new" and not (target / "d" / "new").exists()


def test_one_that_cannot_be_made_is_refused_alone(
    source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, descriptor = source
    target, places, _ = placer
    read = pack(descriptor)
    assert read.files is not None
    long = b"x" * 300  # no batch of a source can have it: it stands for any name that the file system refuses
    entry = msgspec.structs.replace(read.files, names=(*read.files.names[:-1], long))
    (refused,) = places.place(Batch(1, 0, (entry,)))
    assert refused.path == b"d/" + long and not refused.retry
    assert (target / "d" / "f28").stat().st_size == (directory / "f28").stat().st_size


def test_symbolic_links_arrive_exactly(
    source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    directory, descriptor = source
    target, places, _ = placer
    for number, text in enumerate([b"f09", b"/absolute/text", b"\xff" * 200, b"x" * 4000]):
        name = directory / os.fsdecode(NAMES[number])
        name.unlink()
        os.symlink(text, os.fsencode(name))
        os.chown(name, number, 0, follow_symlinks=False)
        os.utime(name, ns=(0, -1_500_000_000 * number), follow_symlinks=False)
    (target / "d").mkdir()
    (target / "d" / "f02").write_text("something else has the name")
    read = pack(descriptor)
    assert read.files is not None and read.files.names == tuple(NAMES) and read.linked == []
    assert read.size == sum((directory / os.fsdecode(name)).stat().st_size for name in NAMES[4:])
    for _ in range(2):
        assert place(places, read.files) == []
        assert_same_tree(directory, target / "d", frozenset({"directory mtime_ns", "mode"}))


def _with_further_names(directory: Path) -> None:
    """One of each kind in the directory itself, one outside of it."""
    for first, second in (("f01", "f11"), ("f02", "f12")):
        (directory / second).unlink()
        os.link(directory / first, directory / second)
    (directory / "f03").unlink()
    (directory / "f13").unlink()
    (directory / "f03").symlink_to("f01")
    os.link(directory / "f03", directory / "f13", follow_symlinks=False)


def _inode(directory: Path, name: str) -> int:
    return (directory / name).lstat().st_ino


@pytest.mark.parametrize("there", ["nothing", "old files", "old links", "another group"])
def test_files_with_several_names(
    there: str, source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    directory, descriptor = source
    target, places, links = placer
    _with_further_names(directory)
    copy = target / "d"
    copy.mkdir()
    if there == "old files":
        for name in ("f01", "f12", "f13"):
            (copy / name).write_text("old")
    elif there == "old links":  # known, as names of these files, and old
        for name in ("f01", "f11"):
            (copy / name).write_text("old")
            links.add(Identity(_inode(directory, "f01"), 0), b"d/" + name.encode())
    elif there == "another group":  # a file that nobody knows, with names of both
        (copy / "f02").write_text("old")
        os.link(copy / "f02", copy / "f11")
    read = pack(descriptor)
    assert read.files is not None and read.links is not None and read.others == []
    assert read.links.names == (b"f11", b"f12", b"f13")
    assert list(read.linked) == [_inode(directory, name) for name in ("f01", "f02", "f03")]
    assert read.links_size == sum((directory / name).stat().st_size for name in ("f01", "f02"))
    for _ in range(2):  # the same again, as after a kill
        assert place(places, read.files) == [] and place(places, read.links) == []
        assert_same_tree(directory, copy, frozenset({"directory mtime_ns", "mode"}))
        for first, second in (("f01", "f11"), ("f02", "f12"), ("f03", "f13")):
            assert _inode(copy, first) == _inode(copy, second)
            names = links.names(Identity(_inode(directory, first), 0))
            assert names == [b"d/" + first.encode(), b"d/" + second.encode()]


def test_a_further_name_of_what_was_read_elsewhere(source: tuple[Path, int]) -> None:
    directory, descriptor = source
    os.link(directory / "f05", directory.parent / "other")
    inode = _inode(directory, "f05")
    read = packed.pack(
        descriptor, b"d", NAMES, lambda inodes: range(len(inodes)), 1 << 20, 1 << 20, lambda i: i == inode
    )
    assert read.files is not None and b"f05" not in read.files.names and read.others == []
    assert read.links is not None and read.links.names == (b"f05",)
    assert packed.inodes_of(read.links) == [inode]


def test_a_file_sent_again_keeps_its_other_names(
    source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    directory, descriptor = source
    target, places, links = placer
    os.link(directory / "f05", directory.parent / "other")
    (target / "d").mkdir()
    (target / "other").write_text("old")
    links.add(Identity(_inode(directory, "f05"), 0), b"other")
    read = pack(descriptor)
    assert read.files is not None and place(places, read.files) == []
    assert _inode(target, "other") == _inode(target / "d", "f05")


def test_a_name_of_a_file_that_is_not_known_is_refused_alone(
    source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    directory, descriptor = source
    target, places, _ = placer
    _with_further_names(directory)
    read = pack(descriptor)
    assert read.files is not None and read.links is not None
    assert place(places, read.files) == []
    stranger = Links(b"d", (b"f11", b"stranger"), read.links.inodes[:8] + (1 << 40).to_bytes(8, "little"))
    (refused,) = place(places, stranger)
    assert refused.path == b"d/stranger" and refused.retry and refused.identity == Identity(1 << 40, 0)
    assert (target / "d" / "f11").exists()
    (refused,) = place(places, msgspec.structs.replace(stranger, inodes=stranger.inodes[:-1]))
    assert "malformed" in refused.reason and not refused.retry


@pytest.mark.parametrize("damage", ["names", "states", "data", "type", "above", "inodes"])
def test_malformed_pieces(
    damage: str, source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]
) -> None:
    _, descriptor = source
    target, places, _ = placer
    entry = pack(descriptor).files
    assert entry is not None
    states = bytearray(entry.states)
    changes: dict[str, dict[str, object]] = {
        "names": {"names": entry.names[1:]},
        "states": {"states": entry.states[:-8]},
        "data": {"data": Content(bytes(entry.data.buffer)[:-1])},
        "type": {"states": bytes(states[: 8 * 30]) + b"\0" * 8 + bytes(states[8 * 31 :])},
        "inodes": {"inodes": bytes(8 * 29)},
        "above": {"names": (b"../x", *entry.names[1:])},
    }
    (refused,) = place(places, msgspec.structs.replace(entry, **changes[damage]))
    assert not refused.retry and "malformed" in refused.reason
    assert os.listdir(target) == []


def test_trees_are_equal_in_the_end(source: tuple[Path, int], placer: tuple[Path, Placer, LinkTable]) -> None:
    directory, descriptor = source
    target, places, _ = placer
    entry = pack(descriptor).files
    assert entry is not None and place(places, entry) == []
    assert_same_tree(directory, target / "d", frozenset({"directory mtime_ns", "mode"}))
