"""Each kind of record: strict, tolerant, in doubt; exact in one step; never outside."""

import errno
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.recording import Source, make_record
from kit.trees import acl, assert_same_tree, snapshot

from replicator.fs.apply import Applier
from replicator.fs.apply_outcome import ApplyError, CrossDevice, Outcome
from replicator.fs.beneath import Root, UnsafePathError
from replicator.fs.path_maps import OutsideError
from replicator.mirror.links import LinkTable
from replicator.ops import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AttributeMask,
    Attributes,
    Flag,
    Identity,
    Kind,
    Record,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
_FILE = Attributes(7, stat.S_IFREG | 0o640, 1000, 1001)
_DIRECTORY = Attributes(7, stat.S_IFDIR | 0o2750, 1000, 1001)
_SYMLINK = Attributes(7, stat.S_IFLNK | 0o777, 1000, 1001)
_FIFO = Attributes(7, stat.S_IFIFO | 0o622, 1000, 1001)


class Target:
    """A target tree and its applier; paths are short names."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(base)
        self.links = LinkTable()
        self.applier = Applier([(b"", self.root)], links=self.links)

    def close(self) -> None:
        self.root.close()
        self.links.close()

    def strict(self, record: Record, **options: object) -> Outcome:
        return self.applier.apply(record, tolerant=False, **options)  # type: ignore[arg-type]

    def tolerant(self, record: Record, **options: object) -> Outcome:
        return self.applier.apply(record, tolerant=True, **options)  # type: ignore[arg-type]

    def file(self, path: str, content: bytes = b"") -> Path:
        full = self.base / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content)
        return full

    def full_directory(self, path: str) -> Path:
        self.file(path + "/sub/file", b"deep")
        self.file(path + "/file", b"x")
        return self.base / path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    previous = os.umask(0)
    (tmp_path / "target").mkdir()
    opened = Target(tmp_path / "target")
    yield opened
    opened.close()
    os.umask(previous)


def _create(path: bytes, attributes: Attributes = _FILE) -> Record:
    return make_record(Kind.CREATE, path, payload=attributes.encode())


def _mkdir(path: bytes, attributes: Attributes = _DIRECTORY) -> Record:
    return make_record(Kind.MKDIR, path, payload=attributes.encode())


def _symlink(path: bytes, text: bytes) -> Record:
    return make_record(Kind.SYMLINK, path, text, _SYMLINK.encode())


def _rename(path: bytes, path2: bytes, flags: int = 0) -> Record:
    return make_record(Kind.RENAME, path, path2, arg0=flags)


_MAKERS: list[Callable[[bytes], Record]] = [
    _create,
    _mkdir,
    lambda path: _symlink(path, b"text"),
    lambda path: make_record(Kind.MKNOD, path, payload=_FIFO.encode()),
]


def _outlines(base: Path) -> dict[bytes, str]:
    return {path: node.type for path, node in snapshot(base).items() if path}


# --- creating ---


def test_objects_are_made_with_owner_and_mode_in_one_step(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second step: others could see the object half made")

    (target.base / "closed").mkdir(mode=0o700)  # not writable for the owner to be
    for name in ("chown", "chmod", "fchown", "fchmod", "lchown"):
        monkeypatch.setattr(os, name, refuse)
    sgid = Attributes(7, stat.S_IFREG | 0o4751, 1000, 1001)
    plain = Attributes(7, stat.S_IFDIR | 0o751, 1000, 1001)
    target.strict(_create(b"closed/f", sgid))
    target.strict(_mkdir(b"closed/d", plain))
    target.strict(_symlink(b"closed/l", b"text"))
    target.strict(make_record(Kind.MKNOD, b"closed/p", payload=_FIFO.encode()))
    device = Attributes(39, stat.S_IFCHR | 0o600, 1000, 1001, os.makedev(240, 1))
    target.strict(make_record(Kind.MKNOD, b"closed/c", payload=device.encode()))
    nodes = snapshot(target.base)
    assert {nodes[b"closed/" + n].owner for n in (b"f", b"d", b"l", b"p", b"c")} == {(1000, 1001)}
    assert [nodes[b"closed/" + n].mode for n in (b"f", b"d", b"p", b"c")] == [0o4751, 0o751, 0o622, 0o600]
    assert nodes[b"closed/l"].text == b"text"
    assert nodes[b"closed/c"].rdev == os.makedev(240, 1)


def test_a_mask_of_the_process_is_made_good(target: Target) -> None:
    os.umask(0o077)
    target.strict(_create(b"f", _FILE._replace(mode=stat.S_IFREG | 0o666)))
    assert snapshot(target.base)[b"f"].mode == 0o666


def test_inherited_acls_end_as_on_the_source(target: Target, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = Source(tmp_path / "source", target.strict)
    source.mkdir(b"d", 0o2770, (5, 6))
    source.setxattr(b"d", b"system.posix_acl_default", acl(4711, 6, 0o770))
    source.create(b"d/f", 0o640, (1000, 6))
    source.create(b"d/wide", 0o666, (1000, 6))
    source.mkdir(b"d/sub", 0o2700, (1000, 6))
    source.mknod(b"d/fifo", stat.S_IFIFO | 0o604)
    source.symlink(b"d/l", b"x")
    source.settle()
    assert_same_tree(source.root.decode(), target.base)


@pytest.mark.parametrize("maker", _MAKERS)
def test_strict_creation_refuses_what_is_in_the_way(target: Target, maker: Callable[[bytes], Record]) -> None:
    target.file("x", b"content")
    with pytest.raises(ApplyError, match="x: File exists") as caught:
        target.strict(maker(b"x"))
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(ApplyError, match="missing/x"):
        target.strict(maker(b"missing/x"))
    assert (target.base / "x").read_bytes() == b"content"


@pytest.mark.parametrize("maker", _MAKERS)
@pytest.mark.parametrize("way", ["file", "tree", "symlink", "fifo", "nothing"])
def test_tolerant_creation_replaces_what_is_in_the_way(
    target: Target, maker: Callable[[bytes], Record], way: str
) -> None:
    outside = target.base.parent / "outside"
    outside.mkdir()
    if way == "file":
        target.file("x", b"content")
        os.link(target.base / "x", target.base / "other")
    elif way == "tree":
        target.full_directory("x")
    elif way == "symlink":
        (target.base / "x").symlink_to(outside)
    elif way == "fifo":
        os.mkfifo(target.base / "x")
    record = maker(b"x")
    assert target.tolerant(record) in (Outcome.APPLIED, Outcome.ALREADY)
    node = snapshot(target.base)[b"x"]
    wanted = {1: "file", 2: "directory", 3: "symlink", 4: "fifo"}[record.kind]
    assert (node.type, node.owner, node.size, node.links) == (wanted, (1000, 1001), 0, ())
    assert outside.is_dir()
    assert "sub" in os.listdir(target.base / "x") if wanted == "directory" and way == "tree" else True
    assert target.tolerant(maker(b"missing/x")) is Outcome.IGNORED


@pytest.mark.parametrize("maker", _MAKERS)
def test_creation_in_doubt(target: Target, maker: Callable[[bytes], Record]) -> None:
    target.strict(maker(b"x"), in_doubt=True)
    before = snapshot(target.base)
    assert target.strict(maker(b"x"), in_doubt=True) is Outcome.ALREADY
    assert snapshot(target.base) == before
    target.file("full", b"content")
    with pytest.raises(ApplyError):
        target.strict(maker(b"full"), in_doubt=True)


def test_creation_in_doubt_completes_the_attributes(target: Target) -> None:
    target.file("x")
    assert target.strict(_create(b"x"), in_doubt=True) is Outcome.ALREADY
    node = snapshot(target.base)[b"x"]
    assert (node.owner, node.mode) == ((1000, 1001), 0o640)


def test_another_symlink_is_no_proof(target: Target) -> None:
    (target.base / "l").symlink_to("another")
    with pytest.raises(ApplyError):
        target.strict(_symlink(b"l", b"text"), in_doubt=True)


# --- data ---


def test_writes_go_to_the_file_that_has_the_name_now(target: Target) -> None:
    target.strict(_create(b"a"))
    target.strict(make_record(Kind.WRITE, b"a", payload=memoryview(b"first")))
    target.strict(_rename(b"a", b"b"))
    target.strict(_create(b"a"))
    target.strict(make_record(Kind.WRITE, b"a", payload=b"second"))
    target.strict(make_record(Kind.WRITE, b"b", payload=b"F"))
    target.strict(_rename(b"a", b"b", RENAME_EXCHANGE))
    target.strict(make_record(Kind.WRITE, b"a", payload=b"!", arg0=4))
    assert (target.base / "a").read_bytes() == b"Firs!"
    target.strict(make_record(Kind.UNLINK, b"b"))
    with pytest.raises(ApplyError):
        target.strict(make_record(Kind.WRITE, b"b", payload=b"gone"))


def test_writes_after_a_file_was_renamed_over_an_open_one(target: Target) -> None:
    for path in (b"a", b"b", b"c"):
        target.strict(_create(path))
        target.strict(make_record(Kind.WRITE, path, payload=path * 3))
    target.strict(_rename(b"a", b"b"))
    target.strict(make_record(Kind.WRITE, b"b", payload=b"1"))
    target.strict(make_record(Kind.LINK, b"c", b"a"))
    target.strict(make_record(Kind.WRITE, b"a", payload=b"2", arg0=1))
    assert ((target.base / "b").read_bytes(), (target.base / "c").read_bytes()) == (b"1aa", b"c2c")


def test_writes_below_a_renamed_directory(target: Target) -> None:
    target.full_directory("d")
    target.strict(make_record(Kind.WRITE, b"d/sub/file", payload=b"D"))
    target.strict(_rename(b"d", b"e"))
    target.strict(_mkdir(b"d"))
    target.strict(_mkdir(b"d/sub"))
    target.strict(_create(b"d/sub/file"))
    target.strict(make_record(Kind.WRITE, b"d/sub/file", payload=b"new"))
    assert (target.base / "e/sub/file").read_bytes() == b"Deep"
    assert (target.base / "d/sub/file").read_bytes() == b"new"


@pytest.mark.parametrize(
    "record",
    [
        make_record(Kind.WRITE, b"x", payload=b"data"),
        make_record(Kind.TRUNCATE, b"x", arg0=1),
        make_record(Kind.FALLOCATE, b"x", payload=struct.pack("<I", 0), arg1=10),
        make_record(Kind.SETATTR, b"x", payload=_FILE.encode()),
    ],
)
@pytest.mark.parametrize("way", ["nothing", "directory", "symlink", "fifo", "file above"])
def test_data_for_what_is_not_there(target: Target, record: Record, way: str) -> None:
    secret = target.base.parent / "secret"
    secret.write_bytes(b"secret")
    if way == "directory":
        target.full_directory("x")
    elif way == "symlink":
        (target.base / "x").symlink_to(secret)
    elif way == "fifo":
        os.mkfifo(target.base / "x")
    elif way == "file above":
        target.file("y")
        record = record._replace(path=b"y/x")
    before = snapshot(target.base.parent)
    assert target.tolerant(record) is Outcome.IGNORED
    assert snapshot(target.base.parent) == before
    if record.kind != Kind.SETATTR or way in ("nothing", "file above"):
        with pytest.raises(ApplyError) as caught:
            target.strict(record)
        assert os.fsdecode(record.path) in str(caught.value)
    assert snapshot(target.base.parent)[b"secret"] == before[b"secret"]


def test_a_closed_file_is_not_held_open(target: Target) -> None:
    target.strict(_create(b"x"))
    assert target.root.opened(b"x") is not None
    payload = Attributes(int(AttributeMask.MTIME), stat.S_IFREG, mtime_ns=5).encode()
    target.strict(make_record(Kind.SETATTR, b"x", payload=payload, flags=Flag.AFTER_CLOSE))
    assert target.root.opened(b"x") is None
    assert (target.base / "x").stat().st_mtime_ns == 5


def test_one_time_leaves_the_other(target: Target) -> None:
    os.utime(target.file("x"), ns=(111, 222))
    payload = Attributes(int(AttributeMask.MTIME), stat.S_IFREG, mtime_ns=333).encode()
    target.strict(make_record(Kind.SETATTR, b"x", payload=payload))
    state = (target.base / "x").stat()
    assert (state.st_atime_ns, state.st_mtime_ns) == (111, 333)


def test_changing_owner_and_mode_never_gives_more_than_both(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target.file("x")).chmod(0o4750)
    seen: list[tuple[int, int]] = []
    real_chown, real_chmod = os.chown, os.chmod

    def look() -> None:
        state = (target.base / "x").stat()
        seen.append((state.st_uid, stat.S_IMODE(state.st_mode)))

    def chown(*arguments: object, **options: object) -> None:
        real_chown(*arguments, **options)  # type: ignore[arg-type]
        look()

    def chmod(*arguments: object, **options: object) -> None:
        real_chmod(*arguments, **options)  # type: ignore[arg-type]
        look()

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "chmod", chmod)
    payload = Attributes(7, stat.S_IFREG | 0o4705, 1000, 1000).encode()
    target.strict(make_record(Kind.SETATTR, b"x", payload=payload))
    assert seen[-1] == (1000, 0o4705)
    assert all(mode & ~(0o4750 & 0o4705) == 0 for _, mode in seen[:-1])
    assert all(not mode & 0o6000 for _, mode in seen[:-1])


def test_xattrs_of_every_type(target: Target) -> None:
    target.file("f")
    (target.base / "d").mkdir()
    (target.base / "l").symlink_to("nowhere")
    os.mkfifo(target.base / "p")
    for path in (b"f", b"d", b"l", b"p", b""):
        target.strict(make_record(Kind.SETXATTR, path, b"trusted.x", b"value", arg0=os.XATTR_REPLACE))
    assert all(("trusted.x", b"value") in node.xattrs for node in snapshot(target.base).values())
    for path in (b"f", b"d", b"l", b"p", b""):
        remove = make_record(Kind.REMOVEXATTR, path, b"trusted.x")
        assert target.strict(remove) is Outcome.APPLIED
        with pytest.raises(ApplyError):
            target.strict(remove)
        assert target.strict(remove, in_doubt=True) is Outcome.ALREADY
        assert target.tolerant(remove) is Outcome.ALREADY


@pytest.mark.parametrize("followed", [True, False], ids=["table followed", "table did not"])
def test_an_exchange_in_doubt_never_leads_the_table_of_links_astray(target: Target, followed: bool) -> None:
    """The kill came after the exchange, before or after the table knew of it."""
    for name in ("one", "other"):
        target.file(name)
    identities = {b"one": Identity(1, 0), b"other": Identity(2, 0)}
    for path, identity in identities.items():
        target.links.add(identity, path)
    record = make_record(Kind.RENAME, b"one", b"other", arg0=RENAME_EXCHANGE)
    intent = target.applier.intent(record)
    target.tolerant(record)
    if not followed:
        target.links.exchange(b"one", b"other")
    assert target.tolerant(record, in_doubt=True, intent=intent) is Outcome.ALREADY
    assert target.links.find(Identity(1, 0)) in (b"other", None)
    assert target.links.find(Identity(2, 0)) in (b"one", None)


def test_collapsing_a_range_in_doubt_happens_once(target: Target) -> None:
    target.file("x", b"a" * 4096 + b"b" * 4096 + b"c" * 4096)
    record = make_record(Kind.FALLOCATE, b"x", payload=struct.pack("<I", 0x08), arg0=0, arg1=4096)
    intent = target.applier.intent(record)
    try:
        assert target.strict(record) is Outcome.APPLIED
    except ApplyError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this file system cannot collapse ranges")
    assert target.strict(record, in_doubt=True, intent=intent) is Outcome.ALREADY
    assert (target.base / "x").read_bytes() == b"b" * 4096 + b"c" * 4096


@pytest.mark.parametrize("mode", [0x00, 0x01, 0x03, 0x10, 0x11])
def test_allocation_where_the_file_system_has_none(
    target: Target, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    record = make_record(Kind.FALLOCATE, b"x", payload=struct.pack("<I", mode), arg0=2, arg1=100)
    target.file("x", b"content")
    target.strict(record)
    wanted = (target.base / "x").read_bytes()
    target.root.forget_all()
    target.file("x", b"content")
    monkeypatch.setattr("replicator.fs.calls.fallocate", unsupported)
    target.strict(record)
    assert (target.base / "x").read_bytes() == wanted


# --- removing, linking, renaming ---


def test_removing(target: Target) -> None:
    unlink, rmdir = make_record(Kind.UNLINK, b"x"), make_record(Kind.RMDIR, b"x")
    for record in (unlink, rmdir):
        with pytest.raises(ApplyError):
            target.strict(record)
        assert target.strict(record, in_doubt=True) is Outcome.ALREADY
        assert target.tolerant(record) is Outcome.IGNORED
        tree = target.full_directory("x")
        with pytest.raises(ApplyError):
            target.strict(record)
        assert tree.exists()
        assert target.tolerant(record) is Outcome.APPLIED
        assert not tree.exists()
    target.full_directory("x")
    assert target.strict(make_record(Kind.REMOVE_TREE, b"x")) is Outcome.APPLIED
    assert target.strict(make_record(Kind.REMOVE_TREE, b"x")) is Outcome.IGNORED
    assert _outlines(target.base) == {}


def test_linking(target: Target) -> None:
    link = make_record(Kind.LINK, b"a", b"b", inode=5)
    with pytest.raises(ApplyError, match="a -> b"):
        target.strict(link)
    target.file("b", b"stale")
    assert target.tolerant(link) is Outcome.IGNORED
    assert _outlines(target.base) == {}  # a missing source removes what stands at the destination
    target.file("a", b"content")
    target.full_directory("b")
    with pytest.raises(ApplyError):
        target.strict(link)
    with pytest.raises(ApplyError):
        target.strict(link, in_doubt=True)
    assert target.tolerant(link) is Outcome.APPLIED
    assert target.strict(link, in_doubt=True) is Outcome.ALREADY
    assert snapshot(target.base)[b"a"].links == (b"a", b"b")
    assert target.tolerant(link._replace(path2=b"no/b")) is Outcome.IGNORED


def test_linking_registers_only_what_is_known(target: Target) -> None:
    target.file("a")
    target.links.add(Identity(6, 0), b"another")
    target.tolerant(make_record(Kind.LINK, b"a", b"b", inode=5))
    assert target.links.names(Identity(5, 0)) == []
    target.links.add(Identity(5, 0), b"a")
    target.tolerant(make_record(Kind.LINK, b"a", b"c", inode=5))
    assert target.links.names(Identity(5, 0)) == [b"a", b"c"]


def test_strict_renames(target: Target) -> None:
    with pytest.raises(ApplyError, match="a -> b"):
        target.strict(_rename(b"a", b"b"))
    target.file("a", b"a")
    target.file("b", b"b")
    with pytest.raises(ApplyError):
        target.strict(_rename(b"a", b"b", RENAME_NOREPLACE))
    with pytest.raises(ApplyError):
        target.strict(_rename(b"a", b"no/b"))
    record = _rename(b"a", b"b")
    intent = target.applier.intent(record)
    assert target.strict(record, in_doubt=True, intent=intent) is Outcome.APPLIED
    assert target.strict(record, in_doubt=True, intent=intent) is Outcome.ALREADY
    assert target.strict(record, in_doubt=True) is Outcome.ALREADY
    assert (target.base / "b").read_bytes() == b"a"


@pytest.mark.parametrize("tolerant", [False, True])
def test_exchange_in_doubt_needs_the_intent(target: Target, tolerant: bool) -> None:
    target.file("a", b"a")
    target.full_directory("b")
    record = _rename(b"a", b"b", RENAME_EXCHANGE)
    intent = target.applier.intent(record)
    for wanted in (Outcome.APPLIED, Outcome.ALREADY, Outcome.ALREADY):
        got = target.applier.apply(record, tolerant=tolerant, in_doubt=True, intent=intent)
        assert got is wanted
        assert (target.base / "b").read_bytes() == b"a"


def test_tolerant_rename_of_what_is_missing_removes_the_destination(target: Target) -> None:
    target.full_directory("b")
    assert target.tolerant(_rename(b"a", b"b")) is Outcome.APPLIED
    assert _outlines(target.base) == {}
    assert target.tolerant(_rename(b"a", b"b")) is Outcome.IGNORED


def test_tolerant_rename_in_doubt_does_not_remove_what_it_moved(target: Target) -> None:
    target.full_directory("a")
    record = _rename(b"a", b"b")
    intent = target.applier.intent(record)
    target.tolerant(record)
    assert target.tolerant(record, in_doubt=True, intent=intent) is Outcome.ALREADY
    assert (target.base / "b/sub/file").read_bytes() == b"deep"


def test_tolerant_rename_in_doubt_that_never_was_possible(target: Target) -> None:
    target.full_directory("b")
    record = _rename(b"a", b"b")
    intent = target.applier.intent(record)
    target.tolerant(record, in_doubt=True, intent=intent)
    assert _outlines(target.base) == {}


def test_tolerant_rename_to_nowhere_removes_the_moved(target: Target) -> None:
    target.full_directory("a")
    target.file("file")
    assert target.tolerant(_rename(b"a", b"no/b")) is Outcome.IGNORED
    target.full_directory("a")
    assert target.tolerant(_rename(b"a", b"file/b")) is Outcome.IGNORED
    assert _outlines(target.base) == {b"file": "file"}


@pytest.mark.parametrize("source", ["file", "tree"])
@pytest.mark.parametrize("destination", ["file", "tree", "symlink"])
@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
def test_tolerant_rename_replaces_anything(target: Target, source: str, destination: str, flags: int) -> None:
    for name, kind in (("a", source), ("b", destination)):
        if kind == "file":
            target.file(name, b"content of " + name.encode())
        elif kind == "tree":
            target.full_directory(name)
            target.file(f"{name}/only {name}")
        else:
            (target.base / name).symlink_to("a")
    before = {path.replace(b"a", b"b", 1): kind for path, kind in _outlines(target.base / "a").items()}
    assert target.tolerant(_rename(b"a", b"b", flags)) is Outcome.APPLIED
    assert not os.path.lexists(target.base / "a")
    if source == "file":
        assert (target.base / "b").read_bytes() == b"content of a"
    else:
        assert len(_outlines(target.base / "b")) == len(before)
        assert (target.base / "b/only a").exists()


def test_tolerant_rename_between_names_of_one_file(target: Target) -> None:
    target.file("a", b"x")
    os.link(target.base / "a", target.base / "b")
    target.tolerant(_rename(b"a", b"b"))
    assert _outlines(target.base) == {b"b": "file"}


@pytest.mark.parametrize(("present", "left"), [("a", b"b"), ("b", b"a")])
def test_tolerant_exchange_of_one(target: Target, present: str, left: bytes) -> None:
    target.file(present, b"x")
    target.tolerant(_rename(b"a", b"b", RENAME_EXCHANGE))
    assert _outlines(target.base) == {left: "file"}


def test_known_links_follow_names(target: Target) -> None:
    one, two = Identity(1, 0), Identity(2, 0)
    target.full_directory("a")
    target.full_directory("b")
    target.links.add(one, b"a/file")
    target.links.add(two, b"b/file")
    target.tolerant(_rename(b"a", b"b", RENAME_EXCHANGE))
    assert (target.links.names(one), target.links.names(two)) == ([b"b/file"], [b"a/file"])
    target.tolerant(_rename(b"a", b"b"))
    assert (target.links.names(one), target.links.names(two)) == ([], [b"b/file"])
    target.tolerant(make_record(Kind.UNLINK, b"b/file"))
    assert target.links.names(two) == []


def test_by_identity_reaches_known_copies_only(target: Target) -> None:
    target.file("known", b"....")
    target.file("path", b"....")
    target.links.add(Identity(5, 0), b"known")
    write = make_record(Kind.WRITE, b"path", payload=b"data", inode=5)
    assert target.tolerant(write, by_identity=True) is Outcome.APPLIED
    assert target.tolerant(write._replace(inode=6), by_identity=True) is Outcome.IGNORED
    assert (target.base / "known").read_bytes() == b"data"
    assert (target.base / "path").read_bytes() == b"...."


# --- nobody gets out ---


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.DOUBT, Kind.HOLE, Kind.FRAME)])
@pytest.mark.parametrize(
    "path", [b"/etc/x", b"../x", b"a/../../x", b"a//x", b"a/./x", b"a\0x", b"out/x", b"out/sub/x"]
)
def test_hostile_records_touch_nothing(target: Target, kind: Kind, path: bytes) -> None:
    (target.base.parent / "out/sub").mkdir(parents=True)
    (target.base.parent / "out" / "x").write_bytes(b"precious")
    (target.base.parent / "x").write_bytes(b"precious")
    (target.base / "out").symlink_to("../out")
    target.full_directory("a")
    attributes = {Kind.MKDIR: _DIRECTORY, Kind.SYMLINK: _SYMLINK, Kind.MKNOD: _FIFO}.get(kind, _FILE)
    payload = struct.pack("<I", 0) if kind == Kind.FALLOCATE else attributes.encode()
    record = make_record(kind, path, b"user.x", payload, arg1=4)
    variants = [record]
    if kind in (Kind.LINK, Kind.RENAME):
        record = record._replace(path2=b"user.x")
        variants = [record, record._replace(path=b"a/file", path2=path, arg0=0)]
    before = snapshot(target.base.parent)
    for variant in variants:
        for tolerant in (False, True):
            for in_doubt in (False, True):
                try:
                    target.applier.apply(variant, tolerant=tolerant, in_doubt=in_doubt)
                except (ApplyError, UnsafePathError):
                    pass
    after = snapshot(target.base.parent)
    outside = [p for p in before.keys() | after.keys() if not p.startswith(b"target") and p]
    assert {p: after.get(p) for p in outside} == {p: before.get(p) for p in outside}
    assert os.readlink(target.base / "out") == "../out"


def test_paths_outside_of_every_mapping_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Root(tmp_path / "one") as one, Root(tmp_path / "two") as two:
        applier = Applier([(b"a/b", one), (b"a/b/c", two)])
        for path in (b"a", b"x", b"a/bc", b"a/b", b"a/b/c", b""):
            with pytest.raises(OutsideError):
                applier.apply(_create(path), tolerant=True)
        applier.apply(_create(b"a/b/x"), tolerant=False)
        applier.apply(_create(b"a/b/c/y"), tolerant=False)
        # The root of a mapping has attributes, but its name is not the source's to change.
        applier.apply(make_record(Kind.SETXATTR, b"a/b", b"user.x", b"1"), tolerant=False)
        with pytest.raises(OutsideError):
            applier.apply(_rename(b"a/b/c", b"a/b/d"), tolerant=True)
        with pytest.raises(OutsideError):
            applier.apply(make_record(Kind.REMOVE_TREE, b"a/b/c"), tolerant=True)
        applier.apply(_rename(b"a/b/x", b"a/b/c/x"), tolerant=False)
    assert sorted(os.listdir(tmp_path / "two")) == ["x", "y"]
    assert os.getxattr(tmp_path / "one", "user.x") == b"1"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system")
def test_a_rename_between_file_systems_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as other,
        Root(tmp_path / "one") as one,
        Root(other) as two,
    ):
        if one.device == two.device:
            pytest.skip("one file system")
        applier = Applier([(b"one", one), (b"two", two)])
        applier.apply(_create(b"one/x"), tolerant=False)
        for record in (_rename(b"one/x", b"two/x"), make_record(Kind.LINK, b"one/x", b"two/x")):
            with pytest.raises(CrossDevice):
                applier.apply(record, tolerant=False)
        assert os.listdir(tmp_path / "one") == ["x"]
        applier.apply(_rename(b"one/x", b"two/x"), tolerant=True)
        assert os.listdir(tmp_path / "one") == os.listdir(other) == []


def test_symlinks_into_the_source_are_rewritten_if_asked(tmp_path: Path) -> None:
    with Root(tmp_path) as root:
        plain = Applier([(b"sub", root)])
        rewriting = Applier([(b"sub", root)], source_root=b"/data/")
        own = os.fsencode(tmp_path)
        for text, wanted in (
            (b"/data/sub/x", own + b"/x"),
            (b"/data/sub", own),
            (b"/data/other", b"/data/other"),
            (b"/database/sub/x", b"/database/sub/x"),
            (b"../data/sub", b"../data/sub"),
        ):
            assert plain.link_text(text) == text
            assert rewriting.link_text(text) == wanted


def test_what_a_target_has_nothing_to_do_with(target: Target) -> None:
    assert target.strict(make_record(Kind.DOUBT, b"x")) is Outcome.IGNORED
    assert target.strict(make_record(Kind.HOLE, b"")) is Outcome.IGNORED
    with pytest.raises(ApplyError, match="kind 99"):
        target.strict(make_record(99, b"x"))
