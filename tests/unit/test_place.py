"""Pieces on a target tree: exact, never half a file, links by identity, claims checked."""

import errno
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from kit.recording import make_record
from kit.trees import acl, assert_same_tree, build_random_tree, snapshot

from replicator.fs.apply import Applier
from replicator.fs.apply_outcome import Outcome
from replicator.fs.attributes import attributes_of, data_extents, read_xattrs
from replicator.fs.beneath import Root
from replicator.mirror.comparison import Claim
from replicator.mirror.digests import digest_blocks, digest_of_file, digest_units
from replicator.mirror.links import LinkTable
from replicator.mirror.patch import UNLIKE_NS
from replicator.mirror.pieces import (
    Abandon,
    AnyEntry,
    Batch,
    Begun,
    Content,
    Digests,
    File,
    Finish,
    LinkTo,
    Listing,
    Names,
    Object,
    Part,
    Patch,
    Patched,
    Refused,
    Same,
    Times,
    decode_batch,
    encode_batch,
)
from replicator.mirror.place import Placer
from replicator.ops import Attributes, Flag, Identity, Kind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
_MTIME_NS = 1_600_000_000_123_456_789
_FILE = Attributes(23, stat.S_IFREG | 0o4640, 1000, 1001, 0, 0, _MTIME_NS)
_DIRECTORY = Attributes(23, stat.S_IFDIR | 0o2750, 1000, 1001, 0, 0, _MTIME_NS)
_SYMLINK = Attributes(23, stat.S_IFLNK | 0o777, 1000, 1001, 0, 0, _MTIME_NS)
_FIFO = Attributes(23, stat.S_IFIFO | 0o622, 1000, 1001, 0, 0, _MTIME_NS)
_ID = Identity(5, 0)


class Target:
    """A target tree with all that places pieces on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(base)
        self.links = LinkTable()
        self.applier = Applier([(b"", self.root)])
        self.placer = Placer(self.applier, self.links)

    def close(self) -> None:
        self.placer.close()
        self.root.close()
        self.links.close()

    def restart(self) -> None:
        """As after a kill: nothing is known but what lies in the tree."""
        self.close()
        self.root = Root(self.base)
        self.links = LinkTable()
        self.applier = Applier([(b"", self.root)])
        self.placer = Placer(self.applier, self.links)

    def place(self, *entries: AnyEntry) -> list[Refused]:
        return self.placer.place(decode_batch(b"".join(encode_batch(Batch(1, 3, entries)))))

    def placed(self, *entries: AnyEntry) -> None:
        assert self.place(*entries) == []

    def read(self, path: str) -> bytes:
        return (self.base / path).read_bytes()

    def names(self) -> list[str]:
        return sorted(os.fsdecode(path) for path in snapshot(self.base) if path)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    (tmp_path / "target").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    opened = Target(tmp_path / "target")
    yield opened
    opened.close()
    assert len(os.listdir("/proc/self/fd")) == before


def _file(path: bytes, data: bytes = b"content", identity: Identity = _ID, links: int = 1) -> File:
    extents = ((0, len(data)),) if data else ()
    return File(path, identity, links, _FILE, {b"user.a": b"1"}, len(data), extents, Content(data))


def _same(path: bytes, size: int = 7, identity: Identity = _ID, links: int = 1) -> Same:
    return Same(path, identity, links, _FILE, {b"user.a": b"1"}, size)


def _entries_of(base: Path) -> list[AnyEntry]:
    """Pieces of a whole tree, as a scanner makes them."""
    entries: list[AnyEntry] = []
    times: list[AnyEntry] = []
    seen: set[int] = set()
    pending = [b""]
    while pending:
        path = pending.pop()
        full = os.fsencode(base) + (b"/" + path if path else b"")
        state = os.lstat(full)
        attributes, xattrs = attributes_of(state), read_xattrs(full)
        identity = Identity(state.st_ino, 0)
        if stat.S_ISDIR(state.st_mode):
            names = sorted(os.listdir(full))
            folders = tuple(n for n in names if stat.S_ISDIR(os.lstat(full + b"/" + n).st_mode))
            entries.append(Listing(path, attributes, xattrs, folders, True, tuple(names)))
            times.append(Times(path, state.st_mtime_ns))
            pending += [path + b"/" + name if path else name for name in names]
        elif state.st_ino in seen:
            entries.append(LinkTo(path, identity, state.st_nlink))
        elif stat.S_ISREG(state.st_mode):
            seen.add(state.st_ino)
            with open(full, "rb") as file:
                extents = tuple(data_extents(file.fileno(), state.st_size))
                data = b"".join(os.pread(file.fileno(), length, offset) for offset, length in extents)
            links, size = state.st_nlink, state.st_size
            entries.append(File(path, identity, links, attributes, xattrs, size, extents, Content(data)))
        else:
            seen.add(state.st_ino)
            text = os.readlink(full) if stat.S_ISLNK(state.st_mode) else b""
            entries.append(Object(path, identity, state.st_nlink, attributes, xattrs, text))
    return entries + times


@pytest.mark.parametrize("seed", range(6))
def test_a_random_tree_arrives_exactly_on_any_target(target: Target, tmp_path: Path, seed: int) -> None:
    (tmp_path / "source").mkdir()
    build_random_tree(tmp_path / "source", seed)
    if seed % 2:
        build_random_tree(target.base, seed + 100 * (seed % 3))
    entries = _entries_of(tmp_path / "source")
    target.placed(*entries)
    assert_same_tree(tmp_path / "source", target.base)
    target.placed(*entries)  # what a receiver does again after a kill
    assert_same_tree(tmp_path / "source", target.base)


# --- files ---


def test_a_file_is_never_half_seen(target: Target) -> None:
    target.placed(_file(b"x", b"old"))
    os.link(target.base / "x", target.base / "link")
    with open(target.base / "x", "rb") as reader:
        target.placed(_file(b"x", b"new content"))
        assert reader.read() == b"old"
    assert target.read("link") == b"old"
    assert target.read("x") == b"new content"
    assert target.names() == ["link", "x"]
    assert snapshot(target.base)[b"x"].mode == 0o4640


@pytest.mark.parametrize("way", ["tree", "symlink", "fifo", "symlink above", "file above", "nothing above"])
def test_a_file_replaces_what_is_in_the_way(target: Target, way: str) -> None:
    outside = target.base.parent / "outside"
    outside.mkdir()
    if way == "tree":
        (target.base / "d/x/y").mkdir(parents=True)
    elif way == "symlink above":
        (target.base / "d").symlink_to(outside)
    elif way == "file above":
        (target.base / "d").write_bytes(b"")
    elif way != "nothing above":
        (target.base / "d").mkdir()
        (target.base / "d/x").symlink_to(outside) if way == "symlink" else os.mkfifo(target.base / "d/x")
    target.placed(_file(b"d/x"))
    assert target.names() == ["d", "d/x"]
    assert target.read("d/x") == b"content"
    assert os.listdir(outside) == []


def test_holes_stay_holes(target: Target) -> None:
    size = 1 << 20
    entry = File(b"x", _ID, 1, _FILE, {}, size, ((65536, 4096), (262144, 3)), Content(b"a" * 4096 + b"end"))
    target.placed(entry)
    content = target.read("x")
    assert len(content) == size
    assert content[65536:69632] == b"a" * 4096 and content[262144:262147] == b"end"
    assert (target.base / "x").stat().st_blocks * 512 < 65536


def test_writes_reach_the_new_file_and_not_the_replaced_one(target: Target) -> None:
    target.placed(_file(b"x", b"old"))
    write = make_record(Kind.WRITE, b"x", payload=b"W")
    target.applier.apply(write, tolerant=True)
    target.placed(_file(b"x", b"new"))
    target.applier.apply(write, tolerant=True)
    assert target.read("x") == b"Wew"


def test_no_inherited_acl_stays(target: Target) -> None:
    default = {b"system.posix_acl_default": acl(4711, 7, 0o777)}
    target.placed(
        Listing(b"d", _DIRECTORY, default, (b"sub",)),
        _file(b"d/f"),
        Object(b"d/p", Identity(6, 0), 1, _FIFO, {}),
        Listing(b"d/sub", _DIRECTORY, {}),
        Part(b"d/large", Identity(7, 0), 1, True, ((0, 1),), Content(b"x")),
        Finish(b"d/large", Identity(7, 0), 1, 1, _FILE, {}, 1),
    )
    nodes = snapshot(target.base)
    assert nodes[b"d"].xattrs == (("system.posix_acl_default", default[b"system.posix_acl_default"]),)
    assert nodes[b"d/f"].xattrs == (("user.a", b"1"),)
    assert nodes[b"d/p"].xattrs == nodes[b"d/sub"].xattrs == nodes[b"d/large"].xattrs == ()
    assert (nodes[b"d/f"].mode, nodes[b"d/p"].mode, nodes[b"d/large"].mode) == (0o4640, 0o622, 0o4640)


# --- directories and other objects ---


def test_an_exact_listing_removes_the_others(target: Target) -> None:
    for name in ("keep", "remove", "sub"):
        (target.base / "d" / name).mkdir(parents=True)
        (target.base / "d" / name / "x").write_bytes(b"")
    target.placed(Listing(b"d", _DIRECTORY, {}, (b"sub", b"new"), False))
    assert os.listdir(target.base / "d/remove") == ["x"]
    target.links.add(_ID, b"d/remove/x")
    target.placed(Listing(b"d", _DIRECTORY, {}, (b"sub", b"new"), True, (b"keep", b"sub", b"new")))
    assert target.names() == ["d", "d/keep", "d/keep/x", "d/new", "d/sub", "d/sub/x"]
    assert target.links.names(_ID) == []


def test_times_come_last_and_stay(target: Target) -> None:
    target.placed(Listing(b"d", _DIRECTORY, {}, (b"sub",)), _file(b"d/x"), Times(b"d", 77), Times(b"gone", 5))
    target.placed(Listing(b"d/sub", _DIRECTORY, {}))
    assert (target.base / "d").stat().st_mtime_ns == 77


def test_attributes_of_the_root(target: Target) -> None:
    target.placed(Listing(b"", _DIRECTORY, {b"user.r": b"1"}), Times(b"", 77))
    node = snapshot(target.base)[b""]
    assert (node.mode, node.owner, node.mtime_ns) == (0o2750, (1000, 1001), 77)
    assert node.xattrs == (("user.r", b"1"),)


def test_an_equal_object_is_left_alone_and_another_replaced(target: Target) -> None:
    link = Object(b"l", _ID, 1, _SYMLINK, {}, b"text")
    target.placed(link)
    inode = os.lstat(target.base / "l").st_ino
    target.placed(link)
    assert os.lstat(target.base / "l").st_ino == inode
    target.placed(Object(b"l", _ID, 1, _SYMLINK, {}, b"other"))
    assert os.readlink(target.base / "l") == "other"
    target.placed(Object(b"l", _ID, 1, _FIFO, {}))
    node = snapshot(target.base)[b"l"]
    assert (node.type, node.mode, node.owner, node.mtime_ns) == ("fifo", 0o622, (1000, 1001), _MTIME_NS)


# --- transfers ---


def _parts(path: bytes, number: int = 1, identity: Identity = _ID) -> list[AnyEntry]:
    return [
        Part(path, identity, number, True, ((0, 4),), Content(b"aaaa")),
        Part(path, identity, number, False, ((8, 4),), Content(b"cccc")),
        Finish(path, identity, number, 1, _FILE, {b"user.a": b"1"}, 16),
    ]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_large_file_arrives_in_parts(
    target: Target, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        real = os.open

        def refuse(path: object, flags: int, *rest: object, **options: object) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no")
            return real(path, flags, *rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuse)
    first, second, finish = _parts(b"x")
    target.placed(_file(b"x", b"old"))
    target.placed(first)
    target.placed(Listing(b"", _DIRECTORY, {}, (), True, (b"x",)))
    target.placed(second)
    assert target.read("x") == b"old"
    target.placed(finish)
    assert target.read("x") == b"aaaa\0\0\0\0cccc\0\0\0\0"
    node = snapshot(target.base)[b"x"]
    assert (node.mode, node.owner, node.mtime_ns) == (0o4640, (1000, 1001), _MTIME_NS)
    assert target.names() == ["x"]
    target.placed(*_parts(b"new/y", 2, Identity(6, 0)))
    assert target.read("new/y") == target.read("x")


def test_records_change_the_copy_being_built(target: Target) -> None:
    first, second, finish = _parts(b"x")
    target.placed(_file(b"x", b"old"), first)
    write = make_record(Kind.WRITE, b"x", payload=b"W", arg0=1, inode=5)
    assert target.applier.apply(write, tolerant=True) is Outcome.APPLIED
    assert target.applier.apply(write._replace(arg0=2), tolerant=True, by_identity=True) is Outcome.APPLIED
    target.placed(second)
    target.applier.apply(make_record(Kind.TRUNCATE, b"x", arg0=10, inode=5), tolerant=True)
    assert target.read("x") == b"old"
    target.placed(finish)
    assert target.read("x") == b"aWWa\0\0\0\0cc\0\0\0\0\0\0"
    target.applier.apply(write, tolerant=True)
    assert target.read("x")[:2] == b"aW"


def test_unknown_and_abandoned_transfers(target: Target) -> None:
    first, second, finish = _parts(b"x")
    (refusal,) = target.place(second)
    assert refusal == Refused(3, b"x", _ID, refusal.reason, True)
    assert target.place(second, finish) == []  # told once
    target.placed(first, Abandon(b"x", 1))
    assert target.names() == []
    target.placed(*_parts(b"x"))
    assert target.names() == ["x"]


def test_a_transfer_started_again_leaves_nothing_behind(target: Target) -> None:
    first, second, finish = _parts(b"x", 1)
    again = _parts(b"x", 2)
    target.placed(first, second, *again)
    assert [r.retry for r in target.place(finish)] == [True]
    assert target.names() == ["x"]


# --- large files that are kept over a kill ---

_PAGES = [b"a" * 4096, b"b" * 4096, b"c" * 4096]
_CHANGED_NS = 1_700_000_000_000_000_001


def _begin(target: Target, changed_ns: int = _CHANGED_NS, path: bytes = b"d/x") -> None:
    """Two pages of three, and a bit of the last one."""
    first = Part(path, _ID, 1, True, ((0, 8192),), Content(_PAGES[0] + _PAGES[1]), changed_ns)
    target.placed(Listing(b"d", _DIRECTORY, {}), first)
    target.placed(Part(path, _ID, 1, False, ((8192, 5),), Content(b"ccccc")))


def _ask(target: Target, changed_ns: int = _CHANGED_NS, number: int = 7, path: bytes = b"d/x") -> Refused:
    (answer,) = target.place(Begun(path, _ID, 1, number, changed_ns))
    assert answer.retry and answer.number == number
    return answer


def _finish_begun(target: Target, data: bytes = _PAGES[2], number: int = 7, path: bytes = b"d/x") -> None:
    target.placed(Patch(path, _ID, 1, 12288, ((8192, len(data)),), (), Content(data), number))
    target.placed(Patched(path, _ID, 1, _FILE, {b"user.a": b"1"}, 12288, number))


@pytest.mark.parametrize("way", ["kill", "begins anew", "cut"])
def test_a_large_file_goes_on_where_it_was(target: Target, way: str) -> None:
    _begin(target)
    root_ns = (target.base).stat().st_mtime_ns
    if way == "kill":
        target.restart()
    elif way == "begins anew":
        target.placer.leave_transfers()
    answer = _ask(target)
    assert (answer.begun, answer.links) == (8192, 0)
    if way == "kill":  # what is placed again gives the same
        target.restart()
        assert _ask(target) == answer
    write = make_record(Kind.WRITE, b"d/x", payload=b"W", arg0=1, inode=5)
    assert target.applier.apply(write, tolerant=True) is Outcome.APPLIED
    _finish_begun(target)
    content = b"".join(_PAGES)
    assert target.read("d/x") == content[:1] + b"W" + content[2:]
    node = snapshot(target.base)[b"d/x"]
    assert (node.mode, node.owner, node.mtime_ns) == (0o4640, (1000, 1001), _MTIME_NS)
    assert target.names() == ["d", "d/x"]
    assert target.base.stat().st_mtime_ns == root_ns


def test_a_large_file_gets_nothing_of_the_directory_in_which_it_was_begun(target: Target) -> None:
    os.setxattr(target.base, "system.posix_acl_default", acl(4711, 7, 0o777))
    _begin(target)
    target.restart()
    _ask(target)
    _finish_begun(target)
    assert read_xattrs(os.fsencode(target.base / "d" / "x")) == {b"user.a": b"1"}
    assert snapshot(target.base)[b"d/x"].mode == 0o4640


def test_a_large_file_says_by_its_size_how_far_it_is(target: Target) -> None:
    """Until its end comes, whatever size the source has."""
    _begin(target)
    target.restart()
    assert _ask(target).begun == 8192
    target.placed(
        Patch(b"d/x", _ID, 1, 1 << 30, ((8192, 4096),), ((4096 * 10, 4096),), Content(_PAGES[2]), 7)
    )
    target.restart()
    assert (_ask(target).begun, _ask(target).links) == (12288, 0)


@pytest.mark.parametrize("how", ["ctime", "not quiet", "was not quiet", "power"])
def test_one_that_may_have_changed_is_compared(target: Target, how: str) -> None:
    _begin(target, 0 if how == "was not quiet" else _CHANGED_NS)
    target.restart()
    if how == "power":
        target.placer.suspect_since_ns = time.time_ns() - 10**9
    answer = _ask(
        target, {"ctime": _CHANGED_NS + 1, "not quiet": 0, "was not quiet": 0}.get(how, _CHANGED_NS)
    )
    assert (answer.begun, answer.links) == (8192, 1)
    changed = target.base / "content"
    changed.write_bytes(_PAGES[0] + b"B" * 4096)
    with open(changed, "rb") as file:
        claimed, _ = digest_blocks(file.fileno(), [(0, 8192)], 4096)
    changed.unlink()
    (refusal,) = target.place(Digests(b"d/x", _ID, 7, 12288, 0, 8192, 4096, ((0, 8192),), claimed))
    assert [block[:2] for block in refusal.blocks] == [(4096, 4096)]
    target.placed(Patch(b"d/x", _ID, 1, 12288, ((4096, 4096),), (), Content(b"B" * 4096), 7))
    target.restart()  # what was mended is not proved
    assert _ask(target, _CHANGED_NS + 1).links == 1
    _finish_begun(target)
    assert target.read("d/x") == _PAGES[0] + b"B" * 4096 + _PAGES[2]


def test_nothing_of_another_file_is_gone_on_with(target: Target) -> None:
    assert _ask(target).begun == 0
    _begin(target)
    target.restart()
    (answer,) = target.place(Begun(b"d/x", Identity(55, 0), 1, 7, _CHANGED_NS))
    assert answer.begun == 0
    target.placed(*_parts(b"small", 3, Identity(6, 0)))  # whose parts are not worth keeping
    assert _ask(target).begun == 8192


def test_what_was_begun_is_no_name_of_the_copy(target: Target) -> None:
    _begin(target)
    target.restart()
    target.placed(Listing(b"", _DIRECTORY, {}, (b"d",), True, (b"d",)))
    target.placed(Names(b"", _DIRECTORY, {}, b"", b"", (b"d",), b"d"))
    assert _ask(target).begun == 8192
    target.placed(Abandon(b"d/x", 7))
    assert target.names() == ["d"]


def test_nothing_is_left_when_a_mirror_has_ended(target: Target) -> None:
    _begin(target)
    _begin(target, _CHANGED_NS + 1, b"d/y")
    target.restart()
    before_ns = target.base.stat().st_mtime_ns
    target.placer.give_up_transfers()
    assert target.names() == ["d"] and target.base.stat().st_mtime_ns == before_ns


def test_a_part_of_a_file_may_not_be_what_has_its_name(target: Target) -> None:
    """Whoever can write into the copy has put something in its place."""
    _begin(target)
    (name,) = [name for name in target.names() if name.startswith(".")]
    target.restart()
    (target.base / name).unlink()
    (target.base / name).symlink_to("/etc/hostname")
    assert _ask(target).begun == 0


# --- claims ---


@pytest.mark.parametrize("way", ["nothing", "size", "time", "directory", "symlink"])
def test_a_false_claim_is_refused(target: Target, way: str) -> None:
    if way in ("size", "time"):
        target.placed(_file(b"x", b"content" if way == "time" else b"other size"))
        if way == "time":
            os.utime(target.base / "x", ns=(0, _MTIME_NS + 1))
    elif way == "directory":
        (target.base / "x").mkdir()
    elif way == "symlink":
        (target.base / "x").symlink_to("y")
        target.placed(_file(b"y"))
    before = snapshot(target.base)
    (refusal,) = target.place(_same(b"x"))
    assert (refusal.path, refusal.identity, refusal.retry, refusal.journal) == (b"x", _ID, True, 3)
    assert snapshot(target.base) == before


def test_a_true_claim_mends_the_attributes_only(target: Target) -> None:
    target.placed(_file(b"x"))
    wanted = snapshot(target.base)[b"x"]
    inode = (target.base / "x").stat().st_ino
    os.chown(target.base / "x", 1, 1)
    os.chmod(target.base / "x", 0o600)
    os.setxattr(target.base / "x", "user.other", b"")
    os.removexattr(target.base / "x", "user.a")
    target.placed(_same(b"x"))
    assert snapshot(target.base)[b"x"] == wanted
    assert (target.base / "x").stat().st_ino == inode


def test_a_continued_mirror_has_brought_what_was_made_since_it_began(target: Target) -> None:
    """An old file whose ctime is new, as that of a renamed one, may hold anything."""
    claim = msgspec.structs.replace(_same(b"x"), claim=Claim.BROUGHT)
    target.placed(_file(b"x"))
    assert target.place(claim)[0].reason == "this mirror has not brought it"  # it is not a full one
    target.placer.mirror_since_ns = (target.base / "x").stat().st_ctime_ns
    time.sleep(0.02)  # longer than a step of the file system's clock
    (target.base / "x").rename(target.base / "aside")
    (target.base / "aside").rename(target.base / "x")
    assert (target.base / "x").stat().st_ctime_ns > target.placer.mirror_since_ns
    assert target.place(claim)[0].reason == "this mirror has not brought it"
    target.placed(_file(b"x"))
    target.placed(claim)


def test_a_claim_never_shares_with_strangers(target: Target) -> None:
    target.placed(_file(b"x"))
    os.link(target.base / "x", target.base / "stranger")
    target.placed(_same(b"x"))
    target.applier.apply(make_record(Kind.WRITE, b"x", payload=b"W"), tolerant=True)
    assert (target.read("x"), target.read("stranger")) == (b"Wontent", b"content")
    assert snapshot(target.base)[b"x"].mode == 0o4640


def test_a_copy_of_its_own_keeps_holes(target: Target) -> None:
    target.placed(File(b"x", _ID, 1, _FILE, {}, 1 << 20, ((65536, 4096),), Content(b"a" * 4096)))
    os.link(target.base / "x", target.base / "stranger")
    target.placed(Same(b"x", _ID, 1, _FILE, {}, 1 << 20))
    nodes = snapshot(target.base)
    assert nodes[b"x"] == nodes[b"stranger"]
    assert nodes[b"x"].links == ()


# --- hard links ---


def test_names_of_one_file_are_one_file(target: Target) -> None:
    target.placed(_file(b"a", links=3), LinkTo(b"d/b", _ID, 3))
    target.applier.apply(make_record(Kind.RENAME, b"a", b"c"), tolerant=True)
    (target.base / "e").write_bytes(b"in the way")
    (target.base / "f/g").mkdir(parents=True)
    target.placed(LinkTo(b"e", _ID, 3), LinkTo(b"f", _ID, 3), LinkTo(b"e", _ID, 3))
    assert snapshot(target.base)[b"c"].links == (b"c", b"d/b", b"e", b"f")


def test_a_directory_of_another_name_keeps_its_time(target: Target) -> None:
    """Nothing would bring it: its piece, or the record of it, came before."""
    target.placed(_file(b"a", links=2), LinkTo(b"d/b", _ID, 2))
    os.utime(target.base / "d", ns=(1, 2))
    target.placed(_file(b"a", b"new content", links=2))
    nodes = snapshot(target.base)
    assert nodes[b"a"].links == (b"a", b"d/b") and nodes[b"d"].mtime_ns == 2


def test_a_link_to_the_unknown_is_refused(target: Target) -> None:
    assert [r.retry for r in target.place(LinkTo(b"b", _ID, 2))] == [True]
    target.placed(_file(b"a", links=2))
    (target.base / "a").unlink()  # behind our back
    target.root.forget_all()
    assert [r.retry for r in target.place(LinkTo(b"b", _ID, 2))] == [True]


@pytest.mark.parametrize("by", ["file", "parts"])
def test_new_content_reaches_every_known_name(target: Target, by: str) -> None:
    target.placed(_file(b"a", links=2), LinkTo(b"b", _ID, 2))
    if by == "file":
        target.placed(_file(b"a", b"new content", links=2))
    else:
        *parts, _ = _parts(b"a")
        target.placed(*parts, Finish(b"a", _ID, 1, 2, _FILE, {}, 16))
    nodes = snapshot(target.base)
    assert nodes[b"a"] == nodes[b"b"]
    assert nodes[b"a"].links == (b"a", b"b")
    assert target.names() == ["a", "b"]


def test_claims_of_linked_files(target: Target) -> None:
    """The target has links a+x where the source has a+b and, apart, x."""
    target.placed(_file(b"a"))
    os.link(target.base / "a", target.base / "x")
    target.placed(_same(b"a", links=2), _same(b"x", identity=Identity(6, 0)), LinkTo(b"b", _ID, 2))
    nodes = snapshot(target.base)
    assert nodes[b"a"].links == nodes[b"b"].links == (b"a", b"b")
    assert nodes[b"x"].links == ()
    inode = (target.base / "a").stat().st_ino
    target.placed(_same(b"a", links=2), _same(b"b", links=2))
    assert (target.base / "a").stat().st_ino == (target.base / "b").stat().st_ino == inode


def test_a_claim_does_not_part_names_whose_removal_is_still_to_come(target: Target) -> None:
    """The source had removed `b` when it counted the links of `a`, but wrote through it before."""
    target.placed(_file(b"a", links=2), LinkTo(b"b", _ID, 2))
    target.placed(_same(b"a", links=1))
    write = make_record(Kind.WRITE, b"b", payload=b"X", flags=Flag.MULTILINK, inode=_ID.inode)
    target.applier.apply(write, tolerant=True)
    target.applier.apply(make_record(Kind.UNLINK, b"b", inode=_ID.inode), tolerant=True)
    assert target.read("a") == b"Xontent" and target.names() == ["a"]
    os.link(target.base / "a", target.base / "foreign")
    assert target.place(_same(b"a", links=1))[0].reason  # the write above changed its time
    os.utime(target.base / "a", ns=(_FILE.mtime_ns, _FILE.mtime_ns))
    target.placed(_same(b"a", links=1))
    assert (target.base / "a").stat().st_nlink == 1


def test_a_claim_joins_the_copy_that_is_known(target: Target) -> None:
    target.placed(_file(b"a", links=2), _file(b"b", identity=Identity(6, 0)))
    target.placed(_same(b"b", links=2))
    assert snapshot(target.base)[b"a"].links == (b"a", b"b")


def test_linked_objects(target: Target) -> None:
    target.placed(
        Object(b"l", _ID, 2, _SYMLINK, {}, b"text"),
        Object(b"m", _ID, 2, _SYMLINK, {}, b"text"),
        LinkTo(b"n", _ID, 2),
    )
    assert snapshot(target.base)[b"l"].links == (b"l", b"m", b"n")


# --- what goes wrong ---


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a//b", b"a\0", b"d/" + b"n" * 256, b""])
def test_impossible_paths_are_problems(target: Target, path: bytes) -> None:
    before = snapshot(target.base.parent)
    (refusal,) = target.place(_file(path))
    assert not refusal.retry and refusal.reason
    after = snapshot(target.base.parent)
    after.pop(b"target/d", None)
    assert {p: n._replace(mtime_ns=0) for p, n in after.items()} == {
        p: n._replace(mtime_ns=0) for p, n in before.items()
    }


def test_one_bad_piece_is_not_the_end(target: Target) -> None:
    refused = target.place(
        _file(b"a"),
        Listing(b"d", _DIRECTORY, {}, (b"../x",)),
        File(b"malformed", _ID, 1, _FILE, {}, 5, ((0, 5),), Content(b"1234")),
        Object(b"odd", _ID, 1, _FILE, {}),
        _file(b"b"),
    )
    assert [(r.path, r.retry) for r in refused] == [(b"d", False), (b"malformed", False), (b"odd", False)]
    assert target.names() == ["a", "b"]


def test_a_full_target_goes_on_where_it_stopped(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(1, 0, (_same(b"gone"), *_parts(b"x"), _file(b"y"), _file(b"z")))
    real = os.pwrite
    room = [1, 0, 1, 0, 9, 9, 9]

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if room.pop(0) == 0:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            target.placer.place(batch)
    assert [r.path for r in target.placer.place(batch)] == [b"gone"]
    assert target.names() == ["x", "y", "z"]
    assert target.read("x") == b"aaaa\0\0\0\0cccc\0\0\0\0"


def test_what_a_kill_left_is_cleaned_by_the_same_batch(target: Target) -> None:
    target.placed(_file(b"x", b"old"))
    (target.base / os.fsdecode(target.placer._incoming)).write_bytes(b"half")
    target.placed(_file(b"x", b"new"))
    assert target.names() == ["x"]
    assert target.read("x") == b"new"


# --- in place ---

_BLOCK = 4096


def _patch(
    path: bytes,
    size: int,
    *extents: tuple[int, bytes],
    holes: tuple[tuple[int, int], ...] = (),
    identity: Identity = _ID,
    links: int = 1,
) -> Patch:
    ranges = tuple((offset, len(data)) for offset, data in extents)
    return Patch(path, identity, links, size, ranges, holes, Content(b"".join(data for _, data in extents)))


def _patched(path: bytes, size: int, *, identity: Identity = _ID, links: int = 1) -> Patched:
    return Patched(path, identity, links, _FILE, {b"user.a": b"1"}, size)


def test_a_patch_changes_a_file_in_place_under_all_its_names(target: Target) -> None:
    target.placed(_file(b"x", b"a" * 3 * _BLOCK))
    os.link(target.base / "x", target.base / "link")
    inode = (target.base / "x").stat().st_ino
    pieces = (
        _patch(
            b"x", 2 * _BLOCK + 5, (10, b"new"), (2 * _BLOCK + 1, b"end"), holes=((_BLOCK, _BLOCK),), links=2
        ),
        _patched(b"x", 2 * _BLOCK + 5, links=2),
    )
    for _ in range(2):  # what a receiver does again after a kill
        target.placed(*pieces)
        content = target.read("link")
        assert content[:_BLOCK] == b"a" * 10 + b"new" + b"a" * (_BLOCK - 13)
        assert content[_BLOCK:] == bytes(_BLOCK) + b"aenda"
        state = (target.base / "x").stat()
        assert (state.st_ino, state.st_mtime_ns, state.st_mode) == (inode, _MTIME_NS, _FILE.mode)
    with open(target.base / "x", "rb") as file:
        assert list(data_extents(file.fileno(), 3 * _BLOCK)) == [(0, _BLOCK), (2 * _BLOCK, 5)]
    target.placed(LinkTo(b"y", _ID, 3))
    assert (target.base / "y").stat().st_ino == inode


def test_every_part_of_a_patch_says_the_size(target: Target) -> None:
    """What was cut off must be gone before an operation lengthens the file again."""
    target.placed(_file(b"x", b"old" * 100))
    target.placed(_patch(b"x", 3, (0, b"new")))
    target.applier.apply(make_record(Kind.TRUNCATE, b"x", arg0=6), tolerant=True)
    target.placed(_patched(b"x", 6))
    assert target.read("x") == b"new\0\0\0"


@pytest.mark.parametrize("there", ["nothing", "directory", "symlink", "fifo", "another", "no parent"])
def test_a_patch_of_what_is_not_there_is_refused(target: Target, there: str) -> None:
    outside = target.base.parent / "outside"
    outside.write_bytes(b"outside")
    path = b"d/x" if there == "no parent" else b"x"
    if there == "directory":
        (target.base / "x").mkdir()
    elif there == "symlink":
        (target.base / "x").symlink_to(outside)
    elif there == "fifo":
        os.mkfifo(target.base / "x")
    elif there == "another":
        target.placed(_file(b"x", b"other", Identity(9, 0), 2))
    for piece in (_patch(path, 3, (0, b"new")), _patched(path, 3)):
        (refused,) = target.place(piece)
        assert (refused.path, refused.identity, refused.retry) == (path, _ID, True)
    assert outside.read_bytes() == b"outside"
    if there == "another":
        assert target.read("x") == b"other"


def test_a_patch_of_a_file_known_elsewhere_is_refused(target: Target) -> None:
    target.placed(_file(b"known", b"copy", _ID, 2), _file(b"x", b"other", Identity(9, 0)))
    (refused,) = target.place(_patch(b"x", 3, (0, b"new")))
    assert refused.retry and target.read("x") == b"other"
    os.unlink(target.base / "x")
    os.link(target.base / "known", target.base / "x")
    target.placed(_patch(b"x", 4, (0, b"C")))
    assert target.read("known") == b"Copy"


def test_a_running_program_is_not_patched(target: Target) -> None:
    (target.base / "x").write_bytes(Path("/bin/sleep").read_bytes())
    (target.base / "x").chmod(0o755)
    with subprocess.Popen([target.base / "x", "60"]) as process:
        try:
            (refused,) = target.place(_patch(b"x", 3, (0, b"new")))
        finally:
            process.kill()
    assert refused.retry


@pytest.mark.parametrize(
    "entry",
    [
        Patch(b"x", _ID, 1, 3, ((0, 5),), (), Content(b"abc")),
        Names(b"", _DIRECTORY, {}, b"", b"", (b"x",), b""),
        Names(b"", _DIRECTORY, {}, b"", b"", (b"x",), b"?"),
        Names(b"", _DIRECTORY, {}, b"", b"", (b"../x",), b"f"),
    ],
)
def test_malformed_changes_in_place_are_refused_for_good(target: Target, entry: AnyEntry) -> None:
    target.placed(_file(b"x", b"old"))
    (refused,) = target.place(entry)
    assert not refused.retry
    assert target.read("x") == b"old"


@pytest.mark.parametrize(
    "entry",
    [
        _patch(b"x", 3, (0, b"new"), holes=((-1, 5),)),
        _patch(b"x", 2**63, (0, b"new")),
        _patch(b"x", 3, (2**63, b"new")),
        _patch(b"x" * 4096, 3, (0, b"new")),
        Names(b"", _DIRECTORY._replace(uid=2**32), {}, b"", b"", (b"x",), b"f"),
        Names(b"", _DIRECTORY._replace(mode=-1), {}, b"", b"", (b"x",), b"f"),
        Names(b"", _DIRECTORY, {}, b"", b"", (b"x" * 256,), b"f"),
    ],
)
def test_what_no_file_can_have_is_not_decoded(target: Target, entry: AnyEntry) -> None:
    with pytest.raises(msgspec.ValidationError):
        target.place(entry)


@pytest.mark.parametrize(
    ("make", "mode"), [("fifo", _FIFO), ("directory", _DIRECTORY), ("symlink", _SYMLINK)]
)
def test_attributes_of_other_objects(target: Target, make: str, mode: Attributes) -> None:
    way = target.base / "x"
    {"fifo": lambda: os.mkfifo(way), "directory": way.mkdir, "symlink": lambda: way.symlink_to("nowhere")}[
        make
    ]()
    inode = way.lstat().st_ino
    target.placed(Patched(b"x", _ID, 1, mode, {b"trusted.a": b"1"}, 0))
    node = snapshot(target.base)[b"x"]
    assert (node.type, node.owner, node.mtime_ns) == (make, (1000, 1001), _MTIME_NS)
    assert node.xattrs == (("trusted.a", b"1"),) and way.lstat().st_ino == inode
    wrong = _DIRECTORY if make == "fifo" else _FIFO
    (refused,) = target.place(Patched(b"x", _ID, 1, wrong, {}, 0))
    assert refused.retry


def test_a_list_of_names_removes_keeps_and_asks(target: Target) -> None:
    for name in ("both", "gone", "kept", "type"):
        (target.base / "d" / name).mkdir(parents=True)
        (target.base / "d" / name / "below").write_bytes(b"")
    target.links.add(_ID, b"d/gone/below")
    entry = Names(
        b"d", _DIRECTORY, {}, b"", b"", (b"both", b"lacking", b"type"), b"dff", (b"kept", b"not there")
    )
    for _ in range(2):
        (refused,) = target.place(entry)
        assert (refused.path, refused.retry, refused.names) == (b"d", True, (b"lacking", b"type"))
        assert target.names() == ["d", "d/both", "d/both/below", "d/kept", "d/kept/below"]
    assert target.links.names(_ID) == []
    assert snapshot(target.base)[b"d"].mode == 0o2750
    (refused,) = target.place(Names(b"nowhere", _DIRECTORY, {}, b"", b"", (), b""))
    assert (refused.path, refused.retry, refused.names) == (b"nowhere", True, ())


def test_a_part_of_a_list_concerns_its_range_only(target: Target) -> None:
    for name in "abcde":
        (target.base / name).write_bytes(b"")
    target.placed(Names(b"", _DIRECTORY, {}, b"a", b"d", (b"c",), b"f"))
    assert target.names() == ["a", "c", "e"]
    target.placed(Names(b"", _DIRECTORY, {}, b"c", b"", (), b""))
    assert target.names() == ["a", "c"]


# --- compared ---


def _claimed(
    path: bytes, size: int, claim: Claim, *, blocks: bool = True, links: int = 1, digest: bytes = b""
) -> Same:
    return Same(path, _ID, links, _FILE, {}, size, claim, blocks, digest)


def _digests(path: bytes, source: Path, *, number: int = 7, end: int | None = None) -> Digests:
    size = source.stat().st_size
    with open(source, "rb") as file:
        extents = tuple(data_extents(file.fileno(), size))
        found, _ = digest_blocks(file.fileno(), extents, 2 * _BLOCK)
    return Digests(path, _ID, number, size, 0, size if end is None else end, 2 * _BLOCK, extents, found)


def _refusal_of(target: Target, entry: AnyEntry) -> Refused:
    (refusal,) = target.place(entry)
    return refusal


@pytest.mark.parametrize(
    ("age_ns", "size", "claim", "holds"),
    [
        (0, 4, Claim.SIZE_AND_TIME, True),
        (0, 5, Claim.SIZE_AND_TIME, False),
        (1, 4, Claim.SIZE_AND_TIME, False),
        (1, 4, Claim.NOT_OLDER, False),  # the source's is newer by a nanosecond
        (0, 4, Claim.NOT_OLDER, True),
        (5, 7, Claim.NOTHING, True),
    ],
)
def test_what_a_claim_says(target: Target, age_ns: int, size: int, claim: Claim, holds: bool) -> None:
    target.placed(_file(b"x", b"1234"))
    os.utime(target.base / "x", ns=(0, _MTIME_NS - age_ns))
    refused = target.place(_claimed(b"x", size, claim))
    assert [(r.links, r.retry, r.size) for r in refused] == ([] if holds else [(1, True, size)])
    refused = target.place(_claimed(b"x", size, claim, blocks=False))
    assert [r.links for r in refused] == ([] if holds else [0])
    (gone,) = target.place(_claimed(b"gone", size, claim))
    assert gone.retry and not gone.links  # there is nothing to compare blocks with


def test_what_is_newer_on_the_target_is_left_and_told(target: Target) -> None:
    target.placed(_file(b"x", b"1234"))
    os.utime(target.base / "x", ns=(0, _MTIME_NS + 1))
    for blocks in (False, True):
        refusal = _refusal_of(target, _claimed(b"x", 4, Claim.NOT_OLDER, blocks=blocks))
        assert not refusal.retry and "left as it is" in refusal.reason
    assert (target.base / "x").stat().st_mtime_ns == _MTIME_NS + 1


def test_content_is_what_its_digest_says(target: Target, tmp_path: Path) -> None:
    target.placed(_file(b"x", b"1234"))
    (tmp_path / "source").write_bytes(b"1244")
    with open(tmp_path / "source", "rb") as file:
        digest = digest_of_file(file.fileno(), 4)
    claim = _claimed(b"x", 4, Claim.CONTENT, digest=digest)
    assert _refusal_of(target, claim).links == 1  # although size and time are right
    (target.base / "x").write_bytes(b"1244")
    target.placed(claim)
    assert (target.base / "x").stat().st_mtime_ns == _MTIME_NS


def test_blocks_that_differ_are_told_with_their_units(target: Target, tmp_path: Path) -> None:
    content = bytearray(os.urandom(6 * _BLOCK))
    target.placed(_file(b"x", bytes(content)), _claimed(b"x", len(content), Claim.NOTHING))
    there = bytes(content)
    content[5 * _BLOCK] ^= 1
    (tmp_path / "source").write_bytes(content)
    claim = _digests(b"x", tmp_path / "source")
    for _ in range(2):  # what a receiver does again after a kill
        refusal = _refusal_of(target, claim)
        units = digest_units(memoryview(there[4 * _BLOCK :]))
        assert (refusal.number, refusal.blocks) == (7, ((4 * _BLOCK, 2 * _BLOCK, units),))
        # Until its end nobody takes it for what the source has, nor for newer.
        assert (target.base / "x").stat().st_mtime_ns == UNLIKE_NS
    target.placed(_patch(b"x", 6 * _BLOCK, (5 * _BLOCK, bytes(content[5 * _BLOCK :]))))
    assert (target.base / "x").stat().st_mtime_ns == UNLIKE_NS
    target.placed(claim, _patched(b"x", 6 * _BLOCK))
    assert target.read("x") == content and (target.base / "x").stat().st_mtime_ns == _MTIME_NS


def test_a_comparison_sets_size_and_holes_at_once(target: Target, tmp_path: Path) -> None:
    target.placed(_file(b"x", b"a" * 8 * _BLOCK), _claimed(b"x", 6 * _BLOCK, Claim.NOTHING))
    with open(tmp_path / "source", "wb") as file:
        file.truncate(6 * _BLOCK)
        os.pwrite(file.fileno(), b"a" * _BLOCK, 2 * _BLOCK)
    target.placed(_digests(b"x", tmp_path / "source"))
    with open(target.base / "x", "rb") as file:
        assert list(data_extents(file.fileno(), 8 * _BLOCK)) == [(2 * _BLOCK, _BLOCK)]
    assert (target.base / "x").stat().st_size == 6 * _BLOCK


def test_a_file_that_is_compared_is_parted_from_names_that_the_source_does_not_know(
    target: Target, tmp_path: Path
) -> None:
    target.placed(_file(b"x", b"a" * _BLOCK))
    os.link(target.base / "x", target.base / "other")
    target.placed(_claimed(b"x", _BLOCK, Claim.NOTHING))
    assert (target.base / "x").stat().st_ino != (target.base / "other").stat().st_ino
    target.placed(_claimed(b"x", _BLOCK, Claim.NOTHING, links=2), LinkTo(b"other", _ID, 2))
    assert (target.base / "x").stat().st_ino == (target.base / "other").stat().st_ino


def test_what_cannot_be_compared_is_to_be_sent_whole(target: Target, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"a" * _BLOCK)
    claim = _digests(b"x", tmp_path / "source")
    refusal = _refusal_of(target, claim)
    assert (refusal.number, refusal.blocks, refusal.retry) == (7, (), True)
    (target.base / "x").mkdir()
    assert not _refusal_of(target, claim).blocks
    refusal = _refusal_of(target, _claimed(b"x", _BLOCK, Claim.NOTHING))
    assert refusal.retry and not refusal.links


@pytest.mark.parametrize(
    "changes",
    [
        {"digests": b"1234567"},
        {"extents": ((0, 2**62),)},
        {"extents": ((_BLOCK, _BLOCK), (0, _BLOCK)), "digests": bytes(16)},
        {"extents": ((0, 4 * _BLOCK),), "digests": bytes(16)},
        {"extents": ((0, 0),), "digests": b""},
        {"block_bytes": 0},
    ],
)
def test_malformed_digests_are_refused(target: Target, tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "source").write_bytes(b"a" * _BLOCK)
    target.placed(_file(b"x", b"a" * _BLOCK))
    claim = msgspec.structs.replace(_digests(b"x", tmp_path / "source"), **changes)
    refusal = _refusal_of(target, claim)
    assert "malformed" in refusal.reason and not refusal.retry
    assert target.read("x") == b"a" * _BLOCK
