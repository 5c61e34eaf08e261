"""What `Passthrough` does to the storage below and what it records of it, called as by a binding."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest
from kit.mount import Bench, replay, shown
from kit.trees import acl, assert_same_tree

from replicator import limits
from replicator.fs.credentials import ROOT, Caller
from replicator.fs.passthrough import Passthrough
from replicator.fs.pyfuse3_binding import Binding
from replicator.ops import RENAME_EXCHANGE, RENAME_NOREPLACE, AttributeMask, Attributes, Flag, Kind

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, trusted xattrs")

USER = Caller(1000, 1001)
HIGH = Caller(4_000_000_000, 3_000_000_000)
_MTIME_LATE = Flag.AFTER_CLOSE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def bench(root: Path) -> Iterator[Bench]:
    old_umask = os.umask(0)
    made = Bench(root)
    yield made
    made.close()
    os.umask(old_umask)


def make_file(bench: Bench, path: str, data: bytes = b"", mode: int = 0o644, caller: Caller = ROOT) -> int:
    """Create, write, close; returns the node id. Its records are dropped."""
    parent, _, name = path.rpartition("/")
    handle, entry = bench.fs.create(bench.id(parent), name.encode(), mode, os.O_WRONLY, caller)
    if data:
        bench.fs.write(handle, 0, data)
    bench.fs.release(handle)
    bench.settled()
    return entry.node_id


def make_directory(bench: Bench, path: str) -> int:
    parent, _, name = path.rpartition("/")
    entry = bench.fs.mkdir(bench.id(parent), name.encode(), 0o755, ROOT)
    bench.settled()
    return entry.node_id


# --- one record per operation ---


def test_each_operation_leaves_its_record(bench: Bench) -> None:
    fs = bench.fs
    directory = fs.mkdir(1, b"d", 0o750, ROOT).node_id
    handle, entry = fs.create(directory, b"f", 0o640, os.O_RDWR, ROOT)
    fs.write(handle, 3, b"abc")
    fs.symlink(1, b"s", b"d/f", ROOT)
    fs.mknod(1, b"p", stat.S_IFIFO | 0o600, 0, ROOT)
    fs.mknod(1, b"m", stat.S_IFREG | 0o600, 0, ROOT)
    fs.link(entry.node_id, 1, b"l")
    fs.rename(1, b"l", directory, b"l2")
    fs.setattr(entry.node_id, size=2)
    fs.setattr(entry.node_id, mode=0o600)
    fs.setxattr(entry.node_id, b"user.x", b"1", ROOT)
    fs.removexattr(entry.node_id, b"user.x")
    fs.unlink(1, b"m")
    empty = fs.mkdir(1, b"e", 0o755, ROOT).node_id
    fs.rmdir(1, b"e")
    fs.forget([(empty, 1)])
    assert shown(bench.records()) == [
        "MKDIR d",
        "CREATE d/f",
        "WRITE d/f 3@3",
        "SYMLINK s d/f",
        "MKNOD p",
        "CREATE m",
        "LINK d/f l",
        "RENAME l d/l2",
        "TRUNCATE d/f 2",
        "SETATTR d/f mode",
        "SETXATTR d/f user.x",
        "REMOVEXATTR d/f user.x",
        "UNLINK m",
        "MKDIR e",
        "RMDIR e",
    ]


def test_failed_operations_leave_none(bench: Bench, root: Path) -> None:
    make_file(bench, "f", b"x")
    make_directory(bench, "d")
    make_file(bench, "d/g")
    file = bench.id("f")
    attempts = [
        (errno.EEXIST, lambda: bench.fs.mkdir(1, b"f", 0o755, ROOT)),
        (errno.EEXIST, lambda: bench.fs.create(1, b"f", 0o644, os.O_WRONLY | os.O_EXCL, ROOT)),
        (errno.EEXIST, lambda: bench.fs.symlink(1, b"f", b"x", ROOT)),
        (errno.EEXIST, lambda: bench.fs.mknod(1, b"f", stat.S_IFIFO | 0o600, 0, ROOT)),
        (errno.EEXIST, lambda: bench.fs.link(file, 1, b"d")),
        (errno.ENOENT, lambda: bench.fs.unlink(1, b"none")),
        (errno.ENOTEMPTY, lambda: bench.fs.rmdir(1, b"d")),
        (errno.EISDIR, lambda: bench.fs.unlink(1, b"d")),
        (errno.ENOENT, lambda: bench.fs.rename(1, b"none", 1, b"x")),
        (errno.EISDIR, lambda: bench.fs.rename(1, b"f", 1, b"d")),
        (errno.EEXIST, lambda: bench.fs.rename(1, b"f", 1, b"d", RENAME_NOREPLACE)),
        (errno.EINVAL, lambda: bench.fs.rename(1, b"f", 1, b"x", 4)),
        (errno.ENODATA, lambda: bench.fs.removexattr(file, b"user.none")),
        (errno.EINVAL, lambda: bench.fs.setattr(file, size=-1)),
        (errno.ENAMETOOLONG, lambda: bench.fs.mkdir(1, b"n" * 256, 0o755, ROOT)),
        (errno.ESTALE, lambda: bench.fs.getattr(987_654_321)),
    ]
    for number, attempt in attempts:
        with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
            attempt()
    assert bench.settled() == []
    assert (root / "f").read_bytes() == b"x"
    assert sorted(os.listdir(root)) == ["d", "f"]
    assert bench.fs.lookup(1, b"d").state.st_ino == (root / "d").stat().st_ino  # the pins were taken back


def test_a_write_records_only_what_was_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, _ = bench.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
    bench.records()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:2], offset))
    assert bench.fs.write(handle, 0, b"abcdef") == 2
    (record,) = bench.records()
    assert record.payload == b"ab"


def test_records_carry_the_state_after_the_operation(bench: Bench, root: Path) -> None:
    bench.fs.mknod(1, b"p", stat.S_IFIFO | 0o640, 0, ROOT)
    (record,) = bench.records()
    state = os.lstat(root / "p")
    attributes = Attributes.decode(record.payload)
    assert attributes.mode == state.st_mode
    assert attributes.mtime_ns == state.st_mtime_ns
    assert record.inode == state.st_ino


# --- owners ---


@needs_root
@pytest.mark.parametrize("caller", [USER, HIGH, ROOT])
def test_new_objects_belong_to_the_caller(bench: Bench, root: Path, caller: Caller) -> None:
    fs = bench.fs
    fs.mkdir(1, b"d", 0o755, caller)
    handle, _ = fs.create(1, b"f", 0o444, os.O_RDWR, caller)
    assert fs.write(handle, 0, b"x") == 1  # the mode is for those who come later
    fs.symlink(1, b"s", b"t", caller)
    fs.mknod(1, b"c", stat.S_IFCHR | 0o600, os.makedev(1, 3), caller)
    for record in bench.records():
        if record.kind != Kind.WRITE:
            attributes = Attributes.decode(record.payload)
            assert (attributes.uid, attributes.gid) == (caller.uid, caller.gid)
            state = os.lstat(root / os.fsdecode(record.path))
            assert (state.st_uid, state.st_gid, state.st_mode) == (*caller[:2], attributes.mode)
    with open("/proc/thread-self/status") as file:  # and the thread is itself again
        status = file.read()
    assert "Uid:\t0\t0\t0\t0" in status
    assert "Gid:\t0\t0\t0\t0" in status


@needs_root
def test_a_set_group_id_directory_passes_on_its_group(bench: Bench, root: Path) -> None:
    directory = make_directory(bench, "d")
    bench.fs.setattr(directory, gid=77)
    bench.fs.setattr(directory, mode=0o2775)
    bench.fs.mkdir(directory, b"sub", 0o755, USER)
    bench.fs.mknod(directory, b"f", stat.S_IFREG | 0o644, 0, USER)
    assert (root / "d/sub").stat().st_gid == (root / "d/f").stat().st_gid == 77
    assert (root / "d/sub").stat().st_mode & stat.S_ISGID


@needs_root
def test_a_default_acl_takes_the_umasks_place(bench: Bench, root: Path) -> None:
    directory = make_directory(bench, "d")
    bench.fs.setxattr(directory, b"system.posix_acl_default", acl(1234, 6, 0o664), ROOT)
    masked = Caller(1000, 1000, umask=0o077)
    bench.fs.mknod(directory, b"f", stat.S_IFREG | 0o666, 0, masked)
    bench.fs.mknod(1, b"plain", stat.S_IFREG | 0o666, 0, masked)
    assert (root / "d/f").stat().st_mode & 0o777 == 0o664
    assert (root / "plain").stat().st_mode & 0o777 == 0o600
    assert "system.posix_acl_access" in os.listxattr(root / "d/f")


@needs_root
def test_chown_records_that_suid_went(bench: Bench) -> None:
    node = make_file(bench, "f", mode=0o755)
    bench.fs.setattr(node, mode=0o6755)
    bench.records()
    bench.fs.setattr(node, uid=5)
    (record,) = bench.records()
    attributes = Attributes.decode(record.payload)
    assert (attributes.uid, attributes.mode & 0o7777) == (5, 0o755)
    assert attributes.mask & AttributeMask.MODE


@needs_root
def test_truncation_by_open_takes_suid_from_a_users_program(bench: Bench, root: Path) -> None:
    node = make_file(bench, "f", b"#!", mode=0o755)
    bench.fs.setattr(node, mode=0o6755)
    bench.records()
    bench.fs.release(bench.fs.open(node, os.O_WRONLY | os.O_TRUNC, USER))
    assert (root / "f").stat().st_mode & 0o7777 == 0o755
    assert shown(bench.records())[:2] == ["TRUNCATE f 0", "SETATTR f mode"]


@needs_root
def test_an_acl_that_changes_the_mode_says_so(bench: Bench, root: Path) -> None:
    node = make_file(bench, "f", mode=0o600)
    bench.fs.setxattr(node, b"system.posix_acl_access", acl(1234, 7, 0o670), ROOT)
    xattr, mode = bench.records()
    assert (xattr.kind, mode.kind) == (Kind.SETXATTR, Kind.SETATTR)
    assert Attributes.decode(mode.payload).mode == (root / "f").stat().st_mode


@needs_root
def test_an_acl_from_outside_the_group_takes_sgid(bench: Bench, root: Path) -> None:
    node = make_file(bench, "f", mode=0o755)
    bench.fs.setattr(node, uid=USER.uid, gid=77)
    for caller, kept in ((Caller(USER.uid, 77), True), (USER, False)):
        bench.fs.setattr(node, mode=0o2755)
        bench.fs.setxattr(node, b"system.posix_acl_access", acl(1234, 5, 0o755), caller)
        assert bool((root / "f").stat().st_mode & stat.S_ISGID) is kept


# --- opening ---


def test_append_direct_and_sync_do_not_reach_the_backing_file(bench: Bench) -> None:
    node = make_file(bench, "f", b"0123456789")
    handle = bench.fs.open(node, os.O_RDWR | os.O_APPEND | os.O_DIRECT | os.O_SYNC, ROOT)
    assert not fcntl.fcntl(handle, fcntl.F_GETFL) & (os.O_APPEND | os.O_DIRECT | os.O_DSYNC)
    assert bench.fs.is_synchronous(handle)
    bench.fs.write(handle, 2, b"x")  # the kernel says where: never at the end
    assert bench.fs.read(handle, 0, 100) == b"01x3456789"
    bench.fs.release(handle)


def test_truncation_by_open_is_recorded(bench: Bench) -> None:
    node = make_file(bench, "f", b"0123456789")
    handle = bench.fs.open(node, os.O_WRONLY | os.O_TRUNC, ROOT)
    assert shown(bench.records()) == ["TRUNCATE f 0"]
    bench.fs.release(handle)


def test_create_of_what_appeared_below_opens_it(bench: Bench, root: Path) -> None:
    (root / "f").write_bytes(b"here")
    handle, _ = bench.fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
    assert bench.fs.read(handle, 0, 10) == b"here"
    assert shown(bench.records()) == []
    bench.fs.release(handle)


# --- names that change under open files ---


def test_writes_follow_a_file_through_renames(bench: Bench) -> None:
    make_directory(bench, "a")
    make_directory(bench, "a/b")
    handle, _ = bench.fs.create(bench.id("a/b"), b"f", 0o644, os.O_WRONLY, ROOT)
    bench.fs.rename(bench.id("a/b"), b"f", bench.id("a/b"), b"g")
    bench.fs.rename(1, b"a", 1, b"z")
    bench.records()
    bench.fs.write(handle, 0, b"1")
    bench.fs.rename(bench.id("z"), b"b", 1, b"y")
    bench.fs.write(handle, 1, b"2")
    assert shown(bench.records()) == ["WRITE z/b/g 1@0", "RENAME z/b y", "WRITE y/g 1@1"]
    bench.fs.release(handle)


def test_exchange_swaps_both_names(bench: Bench) -> None:
    make_directory(bench, "a")
    make_file(bench, "a/f")
    make_directory(bench, "b")
    handle = bench.fs.open(bench.id("a/f"), os.O_WRONLY, ROOT)
    bench.fs.rename(1, b"a", 1, b"b", RENAME_EXCHANGE)
    bench.fs.write(handle, 0, b"x")
    rename, write = bench.records()
    assert (rename.arg0, rename.flags) == (RENAME_EXCHANGE, Flag.DIRECTORY)
    assert shown([write]) == ["WRITE b/f 1@0"]
    bench.fs.release(handle)


def test_hard_links_are_told_apart_from_their_file(bench: Bench) -> None:
    node = make_file(bench, "a", b"x")
    bench.fs.link(node, 1, b"b")
    bench.fs.link(node, 1, b"c")
    bench.records()
    handle = bench.fs.open(node, os.O_WRONLY, ROOT)
    bench.fs.unlink(1, b"a")
    bench.fs.write(handle, 0, b"1")
    unlink, write = bench.records()
    assert unlink.flags == write.flags == Flag.MULTILINK
    assert write.path in (b"b", b"c")
    bench.fs.unlink(1, b"b")
    bench.fs.write(handle, 0, b"2")
    write = bench.records()[-1]
    assert (write.path, write.flags) == (b"c", Flag.NONE)
    bench.fs.release(handle)


def test_renaming_a_link_onto_its_own_file_does_nothing(bench: Bench, root: Path) -> None:
    node = make_file(bench, "a")
    bench.fs.link(node, 1, b"b")
    bench.settled()
    bench.fs.rename(1, b"a", 1, b"b")
    assert bench.settled() == []
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert {name for _, name in bench.fs.nodes.names(bench.fs.nodes.get(node))} == {b"a", b"b"}


def test_a_name_nobody_looked_up_is_found(bench: Bench, root: Path) -> None:
    (root / "x/y").mkdir(parents=True)
    (root / "a").write_bytes(b"0")
    os.link(root / "a", root / "x/y/hidden")
    node = bench.id("a")
    handle = bench.fs.open(node, os.O_WRONLY, ROOT)
    bench.fs.unlink(1, b"a")
    bench.fs.write(handle, 0, b"1")
    assert shown(bench.records()) == ["UNLINK a", "WRITE x/y/hidden 1@0"]
    bench.fs.release(handle)


def test_a_name_too_far_away_puts_everything_in_doubt(
    bench: Bench, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NAME_SEARCH_ENTRIES", 3)
    (root / "a").write_bytes(b"0")
    for number in range(5):
        (root / f"d{number}").mkdir()
    (root / "d4/deep").mkdir()
    os.link(root / "a", root / "d4/deep/hidden")
    handle = bench.fs.open(bench.id("a"), os.O_WRONLY, ROOT)
    bench.fs.unlink(1, b"a")
    bench.settled()
    bench.fs.write(handle, 0, b"1")
    assert bench.records() == []
    bench.fs.release(handle)
    assert shown(bench.records()) == ["DOUBT "]


def test_a_file_whose_other_name_is_outside_is_nobodys_business(
    bench: Bench, root: Path, tmp_path: Path
) -> None:
    (root / "a").write_bytes(b"0")
    os.link(root / "a", tmp_path / "outside")
    handle = bench.fs.open(bench.id("a"), os.O_WRONLY, ROOT)
    bench.fs.unlink(1, b"a")
    bench.settled()
    bench.fs.write(handle, 0, b"1")
    bench.fs.release(handle)
    assert bench.settled() == []


def test_unlinked_but_open_files_work_and_ship_nothing(bench: Bench) -> None:
    node = make_file(bench, "f", b"abc")
    handle = bench.fs.open(node, os.O_RDWR, ROOT)
    bench.fs.unlink(1, b"f")
    bench.settled()
    bench.fs.write(handle, 3, b"def")
    bench.fs.setattr(node, mode=0o600)
    bench.fs.setattr(node, size=5, handle_id=handle)
    bench.fs.setxattr(node, b"user.x", b"1", ROOT)
    assert bench.fs.getxattr(node, b"user.x") == b"1"
    assert bench.fs.getattr(node).st_size == 5
    again = bench.fs.open(node, os.O_RDONLY, ROOT)  # through /proc/self/fd
    assert bench.fs.read(again, 0, 9) == b"abcde"
    bench.fs.release(handle)
    bench.fs.release(again)
    assert bench.settled() == []
    bench.fs.forget([(node, 10)])
    with pytest.raises(OSError, match="Stale"):
        bench.fs.getattr(node)


def test_a_replaced_file_lives_on_for_those_who_have_it_open(bench: Bench) -> None:
    node = make_file(bench, "old", b"old")
    make_file(bench, "new", b"new")
    handle = bench.fs.open(node, os.O_RDWR, ROOT)
    bench.fs.rename(1, b"new", 1, b"old")
    bench.settled()
    bench.fs.write(handle, 0, b"OLD")
    assert bench.settled() == []
    assert bench.fs.read(handle, 0, 9) == b"OLD"
    bench.fs.release(handle)


def test_an_inode_number_is_not_reused_while_the_kernel_knows_it(bench: Bench, root: Path) -> None:
    node = make_file(bench, "f")
    bench.fs.unlink(1, b"f")
    for number in range(50):
        assert bench.fs.mknod(1, b"g%d" % number, stat.S_IFREG | 0o600, 0, ROOT).node_id != node
    assert stat.S_ISREG(bench.fs.getattr(node).st_mode)


# --- xattrs ---


@needs_root
def test_xattrs_of_symlinks(bench: Bench, root: Path) -> None:
    node = bench.fs.symlink(1, b"s", b"nowhere", ROOT).node_id
    bench.records()
    bench.fs.setxattr(node, b"trusted.x", b"1", ROOT)
    assert bench.fs.listxattr(node) == [b"trusted.x"]
    assert bench.fs.getxattr(node, b"trusted.x") == b"1"
    bench.fs.setattr(node, uid=7, mtime_ns=5)
    assert os.lstat(root / "s").st_uid == 7
    assert os.lstat(root / "s").st_mtime_ns == 5
    with pytest.raises(OSError, match="not supported"):
        bench.fs.setattr(node, mode=0o777)
    assert shown(bench.records()) == ["SETXATTR s trusted.x", "SETATTR s mode,uid,gid,mtime"]


@needs_root
def test_foreign_namespaces_stay_here(bench: Bench, root: Path) -> None:
    node = make_file(bench, "f")
    bench.fs.setxattr(node, b"security.other", b"1", ROOT)
    assert os.getxattr(root / "f", "security.other") == b"1"
    assert bench.records() == []


@needs_root
def test_the_answer_about_capabilities_is_remembered_until_it_changes(bench: Bench, root: Path) -> None:
    assert bench.fs.lacks_capability(make_file(bench, "new"))
    (root / "f").touch()
    node = bench.id("f")
    assert not bench.fs.lacks_capability(node)
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENODATA}\]"):
        bench.fs.getxattr(node, b"security.capability")
    assert bench.fs.lacks_capability(node)
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    bench.fs.setxattr(node, b"security.capability", value, ROOT)
    assert not bench.fs.lacks_capability(node)
    assert bench.fs.getxattr(node, b"security.capability") == value


# --- late mtimes ---


def test_the_mtime_follows_the_release_of_a_written_file(bench: Bench, root: Path) -> None:
    handle, _ = bench.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
    bench.settled()
    bench.fs.write(handle, 0, b"x")
    bench.fs.release(handle)
    _, mtime = bench.records()
    assert mtime.flags == _MTIME_LATE
    assert Attributes.decode(mtime.payload).mtime_ns == (root / "f").stat().st_mtime_ns
    bench.fs.release(bench.fs.open(bench.id("f"), os.O_RDWR, ROOT))  # nothing written, nothing to say
    assert bench.settled() == []


def test_the_mtime_of_what_is_quiet_follows(bench: Bench) -> None:
    make_directory(bench, "d")
    handle, _ = bench.fs.create(bench.id("d"), b"f", 0o644, os.O_WRONLY, ROOT)
    bench.fs.write(handle, 0, b"x")
    bench.clock.advance(limits.QUIET_MTIME_S / 2)
    bench.fs.write(handle, 1, b"x")
    bench.records()
    bench.clock.advance(limits.QUIET_MTIME_S / 2)
    bench.fs.tick()
    assert shown(bench.records()) == ["SETATTR d mtime"]
    bench.clock.advance(limits.QUIET_MTIME_S / 2)
    bench.fs.tick()
    assert shown(bench.records()) == ["SETATTR d/f mtime"]
    bench.clock.advance(10)
    bench.fs.tick()
    assert bench.records() == []
    bench.fs.release(handle)


def test_asked_for_times_need_no_late_ones(bench: Bench) -> None:
    handle, entry = bench.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
    bench.fs.write(handle, 0, b"x")
    bench.fs.setattr(entry.node_id, atime_ns=1, mtime_ns=2)
    bench.settled()
    bench.fs.release(handle)
    assert bench.records() == []


def test_waiting_mtimes_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PENDING_MTIMES", 3)
    for number in range(10):
        parent = bench.fs.mkdir(1, b"d%d" % number, 0o755, ROOT).node_id
        bench.fs.mkdir(parent, b"s", 0o755, ROOT)
    assert bench.fs.pending_mtimes == 3


def test_what_is_pending_is_noted_at_once(root: Path, tmp_path: Path) -> None:
    killed = Bench(root, notes=str(tmp_path / "notes"))
    killed.fs.mkdir(killed.fs.mkdir(1, b"d", 0o755, ROOT).node_id, b"sub", 0o755, ROOT)
    successor = Bench(root, notes=str(tmp_path / "notes"))
    successor.fs.recover([])
    assert shown(successor.records()) == ["SETATTR  mtime", "SETATTR d mtime"]
    killed.close()
    successor.close()


def test_a_successor_tells_what_was_pending(root: Path, tmp_path: Path) -> None:
    notes = str(tmp_path / "notes")
    killed = Bench(root, notes=notes)
    parent = killed.fs.mkdir(1, b"d", 0o755, ROOT).node_id
    killed.fs.mkdir(parent, b"moving", 0o755, ROOT)
    handle, _ = killed.fs.create(killed.id("d/moving"), b"f", 0o644, os.O_WRONLY, ROOT)
    killed.fs.write(handle, 0, b"x")
    killed.fs.rename(1, b"d", 1, b"e")
    killed.fs.tick()  # notes the new paths
    with open(notes, "ab") as file:
        file.write(b"torn")
    successor = Bench(root, notes=notes)
    successor.fs.recover([b"e/moving/in flight"])
    records = successor.records()
    assert {record.path for record in records} == {b"", b"e", b"e/moving", b"e/moving/f"}
    for record in records:
        state = (root / os.fsdecode(record.path)).stat()
        assert Attributes.decode(record.payload).mtime_ns == state.st_mtime_ns
        assert record.inode == state.st_ino
    successor.fs.tick()
    successor.close()
    assert not os.path.exists(notes)  # all is told
    killed.close()


def test_what_moved_is_told_at_its_new_place(root: Path, tmp_path: Path) -> None:
    """The notes of a killed predecessor know of renames that no tick has come to."""
    killed = Bench(root, notes=str(tmp_path / "notes"))
    parent = killed.fs.mkdir(1, b"d", 0o755, ROOT).node_id
    for name in (b"f", b"one"):
        handle, _ = killed.fs.create(parent, name, 0o644, os.O_WRONLY, ROOT)
        killed.fs.write(handle, 0, b"x")
    killed.fs.rename(parent, b"f", parent, b"g")
    killed.fs.mkdir(1, b"other", 0o755, ROOT)
    killed.fs.rename(1, b"d", 1, b"other", RENAME_EXCHANGE)
    successor = Bench(root, notes=str(tmp_path / "notes"))
    successor.fs.recover([])
    assert {record.path for record in successor.records()} == {b"", b"other", b"other/g", b"other/one"}
    killed.close()
    successor.close()


def leave_a_note(root: Path, notes: Path) -> None:
    """A predecessor notes "f", and goes on to remove that: the note stays until a tick."""
    killed = Bench(root, notes=str(notes))
    handle, _ = killed.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
    killed.fs.write(handle, 0, b"x")
    killed.fs.unlink(1, b"f")
    killed.close()


def test_a_name_in_doubt_is_told_after_it_is_journaled(root: Path, tmp_path: Path) -> None:
    """It was made, but there is no record yet: a target does not have it."""
    leave_a_note(root, tmp_path / "notes")
    (root / "f").touch()  # done by the predecessor, and not journaled
    successor = Bench(root, notes=str(tmp_path / "notes"))
    successor.fs.recover([b"f"], [b"f"])
    assert shown(successor.records()) == ["SETATTR  mtime"]
    with successor.fs.redo((root / "f").stat().st_ino, False):
        successor.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
    told = shown(successor.records())
    assert (told[0], told[-1]) == ("CREATE f", "SETATTR f mtime")
    successor.close()


def test_what_is_below_a_directory_in_doubt_is_told_where_it_went(root: Path, tmp_path: Path) -> None:
    killed = Bench(root, notes=str(tmp_path / "notes"))
    parent = killed.fs.mkdir(1, b"d", 0o755, ROOT).node_id
    handle, _ = killed.fs.create(parent, b"f", 0o644, os.O_WRONLY, ROOT)
    killed.fs.write(handle, 0, b"x")
    os.rename(root / "d", root / "e")  # done by the predecessor, and not journaled
    successor = Bench(root, notes=str(tmp_path / "notes"))
    successor.fs.recover([b"d", b"e"], [b"d", b"e"])
    assert shown(successor.records()) == ["SETATTR  mtime"]
    with successor.fs.redo((root / "e").stat().st_ino, False):
        successor.fs.rename(1, b"d", 1, b"e")
    assert shown(successor.records()) == ["RENAME d e", "SETATTR e mtime", "SETATTR e/f mtime"]
    killed.close()
    successor.close()


# --- which paths ---


def test_only_active_paths_are_recorded(root: Path) -> None:
    bench = Bench(root, active=(b"a/b",))
    for path in ("a", "a/b", "a/bb", "c"):
        parent, _, name = path.rpartition("/")
        bench.fs.mkdir(bench.id(parent), name.encode(), 0o755, ROOT)
    bench.fs.mkdir(bench.id("a/b"), b"in", 0o755, ROOT)
    bench.fs.rename(bench.id("a/b"), b"in", bench.id("c"), b"out")
    bench.fs.rename(bench.id("c"), b"out", bench.id("a/b"), b"back")
    bench.fs.rename(bench.id("a"), b"bb", bench.id("c"), b"bb")
    bench.fs.rename(1, b"a", 1, b"moved")  # takes the root of the set along
    assert shown(bench.settled()) == [
        "MKDIR a/b",
        "MKDIR a/b/in",
        "RENAME a/b/in c/out",
        "RENAME c/out a/b/back",
        "RENAME a moved",
    ]
    bench.close()


def test_a_hard_linked_file_is_recorded_under_its_active_name(root: Path) -> None:
    bench = Bench(root, active=(b"in",))
    bench.fs.mkdir(1, b"in", 0o755, ROOT)
    handle, entry = bench.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
    bench.fs.link(entry.node_id, bench.id("in"), b"f")
    bench.settled()
    bench.fs.write(handle, 0, b"x")
    assert shown(bench.records()) == ["WRITE in/f 1@0"]
    bench.close()


def test_nothing_is_journaled_without_a_reader(bench: Bench) -> None:
    bench.journal.has_readers = False
    bench.fs.mkdir(1, b"d", 0o755, ROOT)
    assert bench.settled() == []


def test_paths_too_long_are_counted(bench: Bench) -> None:
    parent = 1
    for _ in range(20):
        parent = bench.fs.mkdir(parent, b"n" * 250, 0o755, ROOT).node_id
    assert bench.recorder.skipped_ops == 4
    assert len(bench.recorder.skipped_path) == 20 * 251 - 1
    lengths = [len(record.path) for record in bench.settled()]
    assert lengths
    assert max(lengths) <= limits.PATH_BYTES


def test_moves_from_and_to_paths_too_long_put_the_other_name_in_doubt(bench: Bench) -> None:
    deep = 1
    for _ in range(17):
        deep = bench.fs.mkdir(deep, b"n" * 250, 0o755, ROOT).node_id
    make_file(bench, "f")
    bench.fs.rename(1, b"f", deep, b"f")
    bench.fs.link(bench.fs.lookup(deep, b"f").node_id, 1, b"l")
    bench.fs.rename(deep, b"f", 1, b"g")
    with pytest.raises(OSError, match="No such file"):
        bench.fs.rename(deep, b"none", 1, b"g")
    bench.fs.unlink(1, b"g")
    kept = [line for line in shown(bench.settled()) if "mtime" not in line]
    assert kept == ["DOUBT f", "DOUBT l", "DOUBT g", "UNLINK g"]


# --- directories ---


def test_reading_a_directory_survives_changes_and_hard_links(bench: Bench, root: Path) -> None:
    for number in range(20):
        (root / f"f{number}").touch()
    for number in range(20):
        os.link(root / "f0", root / f"l{number}")
    handle = bench.fs.opendir(1)
    entries = bench.fs.readdir(handle, 0)
    first = [next(entries) for _ in range(15)]
    for entry in first[:10]:
        bench.fs.unlink(1, entry.name)
    rest = list(bench.fs.readdir(handle, first[-1].position))
    names = [entry.name for entry in first + rest]
    assert len(names) == len(set(names)) == 40
    assert sum(1 for _ in bench.fs.readdir(handle, 0)) == 30  # rewound: as it is now
    bench.fs.releasedir(handle)


def test_few_descriptors_reach_many_directories(root: Path) -> None:
    for number in range(100):
        (root / f"d{number}/sub").mkdir(parents=True)
        (root / f"d{number}/sub/f").write_text(str(number))
    bench = Bench(root, descriptors_max=8)
    nodes = [bench.id(f"d{number}/sub/f") for number in range(100)]
    before = len(os.listdir("/proc/self/fd"))
    for number, node in enumerate(nodes):
        handle = bench.fs.open(node, os.O_RDWR, ROOT)
        assert bench.fs.read(handle, 0, 9) == str(number).encode()
        bench.fs.release(handle)
        bench.fs.rename(
            bench.id(f"d{number}/sub"), b"f", bench.id(f"d{(number + 50) % 100}"), b"g%d" % number
        )
    assert bench.fs.nodes.open_directories <= 8
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    bench.close()


def test_running_out_of_descriptors_costs_only_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"x")
    bench = Bench(root)
    node = bench.id("d/f")
    real = os.open
    refusals = [True]

    def scarce(*args: object, **kwargs: object) -> int:
        if refusals:
            refusals.pop()
            raise OSError(errno.EMFILE, "none left")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", scarce)
    handle = bench.fs.open(node, os.O_RDONLY, ROOT)
    assert bench.fs.read(handle, 0, 1) == b"x"
    bench.close()


def test_what_changed_below_is_stale_not_wrong(bench: Bench, root: Path) -> None:
    node = make_file(bench, "f", b"mine")
    (root / "other").write_bytes(b"other")
    os.rename(root / "other", root / "f")
    for attempt in (
        lambda: bench.fs.getattr(node),
        lambda: bench.fs.open(node, os.O_RDONLY, ROOT),
        lambda: bench.fs.setattr(node, mode=0),
    ):
        with pytest.raises(OSError, match="Stale"):
            attempt()
    assert bench.fs.lookup(1, b"f").node_id != node


def test_nothing_is_kept_of_what_the_kernel_forgot(bench: Bench, root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        (root / f"d{number}").mkdir()
        (root / f"d{number}/f").touch()
        os.link(root / f"d{number}/f", root / f"l{number}")
    counts: dict[int, int] = {}
    for number in range(20):
        for path in (f"d{number}/f", f"l{number}"):
            parent = 1
            for name in path.split("/"):
                parent = bench.fs.lookup(parent, name.encode()).node_id
                counts[parent] = counts.get(parent, 0) + 1
    assert len(bench.fs.nodes) == 41
    bench.fs.forget(sorted(counts.items()))
    bench.settled()
    assert len(bench.fs.nodes) == 1
    assert len(os.listdir("/proc/self/fd")) == before


# --- all together ---


@needs_root
def test_records_replayed_in_order_give_an_equal_tree(bench: Bench, root: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    os.chmod(target, root.stat().st_mode & 0o7777)
    fs = bench.fs
    directory = fs.mkdir(1, b"\xff\n '\"", 0o2751, HIGH).node_id
    fs.setxattr(directory, b"system.posix_acl_default", acl(55, 6), ROOT)
    handle, entry = fs.create(directory, b"f", 0o666, os.O_RDWR, USER)
    fs.write(handle, 100_000, b"tail")
    fs.link(entry.node_id, 1, b"l")
    fs.setattr(entry.node_id, mode=0o4755, uid=3, atime_ns=1, mtime_ns=2)
    fs.setxattr(entry.node_id, b"user.x", bytes(range(256)), ROOT)
    fs.setxattr(entry.node_id, b"system.posix_acl_access", acl(77, 4, 0o750), ROOT)
    fs.write(handle, 5, b"more")
    fs.symlink(directory, b"s", b"../\xfe", USER)
    fs.mknod(1, b"p", stat.S_IFIFO | 0o606, 0, HIGH)
    fs.mknod(1, b"sock", stat.S_IFSOCK | 0o606, 0, HIGH)
    fs.mknod(1, b"null", stat.S_IFCHR | 0o606, os.makedev(1, 3), ROOT)
    fs.rename(1, b"l", directory, b"s")
    fs.setattr(entry.node_id, size=50_000)
    fs.rename(1, b"\xff\n '\"", 1, b"moved")
    fs.release(handle)
    replay(bench.settled(), target)
    assert_same_tree(root, target)


# --- the binding's guard ---


class Broken(Passthrough):
    """Has a bug in every operation used here."""

    def __init__(self) -> None:
        pass

    def getattr(self, node_id: int) -> os.stat_result:
        raise ZeroDivisionError

    def fsync(self, handle_id: int, datasync: bool) -> None:
        raise OSError(errno.ENOSPC, "full")

    def readlink(self, node_id: int) -> bytes:
        raise KeyError(node_id)


async def test_whatever_a_handler_raises_becomes_an_errno(caplog: pytest.LogCaptureFixture) -> None:
    binding = Binding(Broken())
    for number, attempt in (
        (errno.EIO, lambda: binding.getattr(1, None)),
        (errno.ENOSPC, lambda: binding.fsync(1, True)),
        (errno.EIO, lambda: binding.readlink(1, None)),
    ):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await attempt()
        assert caught.value.errno == number
    assert "ZeroDivisionError" in caplog.text
