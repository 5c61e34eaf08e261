"""A real capture process and its mount: what pass-through file systems get wrong, one by one.

After most tests the records are replayed on a second tree, which must then equal the storage below.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import machine
from kit.mount import CALL_TIMEOUT_S, CaptureMount, shown
from kit.trees import acl, assert_same_tree

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.ops import Kind

pytestmark = pytest.mark.fs

HIGH_UID = 4_000_000_000


@pytest.fixture(params=["kernel", "pyfuse3"])
def binding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def as_user(uid: int, gid: int, directory: Path, function: Callable[[], None]) -> None:
    """Run a function in a child process as somebody else, standing in `directory`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0


def below(made: CaptureMount) -> Path:
    """The storage below the mount. The descriptor lives as long as the test process."""
    return Path(f"/proc/self/fd/{made.call_for_descriptor('root')}")


# --- the traps ---


def test_a_shared_mapping_of_a_file_open_for_append(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    appender = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(appender, b"a" * 8192)
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 8192) as mapping:
        mapping[0:4] = b"head"
        mapping[5000:5004] = b"tail"
        mapping.flush()
    os.write(appender, b"end")
    os.close(appender)
    os.close(descriptor)
    expected = bytearray(b"a" * 8192 + b"end")
    expected[0:4], expected[5000:5004] = b"head", b"tail"
    assert (below(mount) / "f").read_bytes() == expected
    mount.assert_replays(mount.records(), target)


def test_direct_io(mount: CaptureMount, target: Path) -> None:
    descriptor = os.open(mount.mountpoint / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as aligned:
        aligned[:] = os.urandom(8192)
        assert os.pwrite(descriptor, aligned, 4096) == 8192
        wanted = bytes(aligned)
        assert os.preadv(descriptor, [aligned], 4096) == 8192
        assert bytes(aligned) == wanted
    os.close(descriptor)
    mount.assert_replays(mount.records(), target)


def test_a_write_of_many_pages_arrives_whole(mount: CaptureMount, target: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 7)
    (mount.mountpoint / "f").write_bytes(data)
    assert (mount.mountpoint / "f").read_bytes() == data
    mount.assert_replays(mount.records(), target)


def test_hard_links_through_unlink_and_rename(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    (base / "a").write_text("1")
    os.link(base / "a", base / "b")
    os.link(base / "b", base / "c")
    os.unlink(base / "a")
    with open(base / "b", "a") as file:
        os.rename(base / "b", base / "d")
        file.write("2")
    assert (base / "c").read_text() == "12"
    assert (base / "c").stat().st_nlink == 2
    mount.assert_replays(mount.records(), target)


def test_directories_renamed_with_files_open_below(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    (base / "a/b").mkdir(parents=True)
    with open(base / "a/b/f", "wb", buffering=0) as file:
        file.write(b"1")
        os.rename(base / "a", base / "z")
        file.write(b"2")
        (base / "y").mkdir()
        os.rename(base / "z/b", base / "y/b")
        file.write(b"3")
    assert (base / "y/b/f").read_bytes() == b"123"
    mount.assert_replays(mount.records(), target)


def test_unlinked_but_open_files(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"kept")
        mount.records()
        os.unlink(path)
        file.write(b" more")
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 6)
        file.seek(0)
        assert file.read() == b"kept m"
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert [line for line in shown(mount.records()) if not line.endswith("mtime")] == ["UNLINK f"]


def test_odd_names(mount: CaptureMount, target: Path) -> None:
    base = os.fsencode(mount.mountpoint)
    for name in (b"\xff\xfe", b"new\nline", b" ", b"-rf", b"\x01", b"n" * 255, "ünï".encode(), b"a\\134b"):
        with open(base + b"/" + name, "wb") as file:
            file.write(name)
        assert name in os.listdir(base)
    mount.assert_replays(mount.records(), target)


def test_new_files_belong_to_their_makers(mount: CaptureMount, target: Path) -> None:
    os.chmod(mount.mountpoint, 0o777)
    (mount.mountpoint / "group").mkdir()
    os.chown(mount.mountpoint / "group", -1, 77)
    os.chmod(mount.mountpoint / "group", 0o2777)

    def work() -> None:
        os.umask(0o027)
        with open("f", "w") as file:
            file.write("mine")
        os.mkdir("d")
        os.symlink("f", "s")
        os.mkfifo("p")
        os.mkdir("group/sub")
        os.close(os.open("group/f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.chmod("f", 0o600)
        os.rename("f", "d/f")

    as_user(HIGH_UID, HIGH_UID - 1, mount.mountpoint, work)
    storage = below(mount)
    for name, mode in (("d/f", 0o600), ("d", 0o750), ("p", 0o640)):
        state = (storage / name).lstat()
        assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (HIGH_UID, HIGH_UID - 1, mode)
    assert (storage / "group/f").stat().st_gid == 77
    assert (storage / "group/sub").stat().st_mode & stat.S_ISGID
    os.chmod(target, 0o777)
    mount.assert_replays(mount.records(), target)


def test_permissions_are_checked_by_the_kernel(mount: CaptureMount) -> None:
    (mount.mountpoint / "secret").write_text("x")
    os.chmod(mount.mountpoint / "secret", 0o600)

    def work() -> None:
        for attempt in (
            lambda: open("secret"),
            lambda: os.mkdir("d"),
            lambda: os.unlink("secret"),
            lambda: os.chmod("secret", 0o666),
        ):
            with pytest.raises(PermissionError):
                attempt()

    os.chmod(mount.mountpoint, 0o755)
    as_user(1000, 1000, mount.mountpoint, work)


def test_a_default_acl_overrules_the_umask(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    (base / "d").mkdir(mode=0o777)
    os.chmod(base / "d", 0o777)
    os.setxattr(base / "d", "system.posix_acl_default", acl(1234, 6, 0o664))

    def work() -> None:
        os.umask(0o077)
        os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir("d/sub", 0o777)

    os.chmod(base, 0o755)
    as_user(1000, 1000, base, work)
    assert (base / "d/f").stat().st_mode & 0o777 == 0o664
    assert "system.posix_acl_default" in os.listxattr(base / "d/sub")
    os.chmod(target, 0o755)
    mount.assert_replays(mount.records(), target)


def test_an_acl_opens_a_file_to_its_user(mount: CaptureMount) -> None:
    path = mount.mountpoint / "f"
    path.write_text("x")
    os.chmod(path, 0o600)
    os.chmod(mount.mountpoint, 0o755)
    os.setxattr(path, "system.posix_acl_access", acl(1234, 4, 0o640))
    as_user(1234, 1234, mount.mountpoint, lambda: open("f").close())


@pytest.mark.parametrize("make", [os.mknod, os.mkfifo, os.mkdir])
@pytest.mark.parametrize("mode", [0o6755, 0o2775, 0o2745, 0o4644, 0o755])
def test_a_change_of_owner_that_names_none_takes_suid(
    mount: CaptureMount, target: Path, mode: int, make: Callable[[Path], None]
) -> None:
    beside = mount.source.parent / "beside"
    for path in (mount.mountpoint / "f", beside):
        make(path)
        os.chmod(path, mode)
        os.chown(path, -1, -1)
    assert (mount.mountpoint / "f").stat().st_mode == beside.stat().st_mode
    mount.assert_replays(mount.records(), target)


@pytest.mark.parametrize("change", ["write", "truncate", "open", "chown"])
def test_suid_goes_with_a_users_change(mount: CaptureMount, target: Path, change: str) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(b"program")
    os.chown(path, 1000, 1000)
    os.chmod(path, 0o6755)
    os.chmod(mount.mountpoint, 0o755)

    def work() -> None:
        if change == "write":
            descriptor = os.open("f", os.O_WRONLY)
            os.write(descriptor, b"x")
        elif change == "truncate":
            os.truncate("f", 3)
        elif change == "open":
            os.open("f", os.O_WRONLY | os.O_TRUNC)
        else:
            os.chown("f", -1, 1000)

    as_user(1000, 1000, mount.mountpoint, work)
    assert stat.S_IMODE((below(mount) / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    os.chmod(target, 0o755)
    mount.assert_replays(mount.records(), target)


def test_a_capability_goes_with_a_write(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(b"program")
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, "security.capability", value)
    assert os.getxattr(path, "security.capability") == value
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENODATA}\]"):
        os.getxattr(below(mount) / "f", "security.capability")
    mount.assert_replays(mount.records(), target)


def test_truncation_by_open(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(b"long content")
    path.write_bytes(b"short")
    assert path.read_bytes() == b"short"
    records = mount.records()
    assert "TRUNCATE f 0" in shown(records)
    mount.assert_replays(records, target)


def test_special_files_and_symlinks(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    os.mkfifo(base / "p")
    os.mknod(base / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(base / "sock", stat.S_IFSOCK | 0o600)
    os.symlink("x" * 4095, base / "long")
    os.symlink(b"\xff", os.fsencode(base / "odd"))
    os.utime(base / "odd", ns=(1, -2_000_000_001), follow_symlinks=False)
    os.setxattr(base / "odd", "trusted.a", b"\0", follow_symlinks=False)
    (base / "null").write_text("goes to the device")  # opened by the kernel, not by us
    assert os.readlink(base / "long") == "x" * 4095
    mount.assert_replays(mount.records(), target)


def test_rename_flags(mount: CaptureMount, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def renameat2(old: str, new: str, flags: int) -> int:
        base = os.fsencode(mount.mountpoint)
        result = libc.renameat2(-100, base + b"/" + old.encode(), -100, base + b"/" + new.encode(), flags)
        return ctypes.get_errno() if result else 0

    (mount.mountpoint / "a").write_text("a")
    (mount.mountpoint / "d").mkdir()
    (mount.mountpoint / "d/x").write_text("x")
    assert renameat2("a", "d", 1) == errno.EEXIST
    assert renameat2("a", "d", 2) == 0
    assert (mount.mountpoint / "a/x").read_text() == "x"
    assert renameat2("d", "b", 1) == 0
    assert renameat2("b", "c", 4) == errno.EINVAL
    mount.assert_replays(mount.records(), target)


def test_synchronous_writes_and_syncs(mount: CaptureMount, target: Path) -> None:
    descriptor = os.open(mount.mountpoint / "f", os.O_CREAT | os.O_WRONLY | os.O_DSYNC)
    os.write(descriptor, b"durable")
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)
    directory = os.open(mount.mountpoint, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert os.statvfs(mount.mountpoint).f_blocks > 0
    mount.assert_replays(mount.records(), target)


def test_locks_work_between_programs(mount: CaptureMount) -> None:
    with open(mount.mountpoint / "f", "w") as one, open(mount.mountpoint / "f", "w") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_many_files_with_few_descriptors(made: CaptureMount) -> None:
    for number in range(500):
        directory = made.source / str(number)
        directory.mkdir()
        for name in range(100):
            os.close(os.open(directory / str(name), os.O_CREAT | os.O_WRONLY))
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = made.spawn()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    made.wait()
    made.attach()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == old
    for number in range(500):
        with os.scandir(made.mountpoint / str(number)) as entries:
            assert sum(entry.stat().st_size == 0 for entry in entries) == 100
    assert made.call("status")["nodes"] > 50_000
    assert len(os.listdir(f"/proc/{process.pid}/fd")) < 200
    for number in range(0, 500, 25):
        path = made.mountpoint / str(number) / "99"
        path.write_text("x")
        os.rename(path, made.mountpoint / str(499 - number) / "moved")
    assert (below(made) / "499/moved").read_text() == "x"


def test_a_sync_does_not_hold_up_others(mount: CaptureMount) -> None:
    """A file system that takes long to sync: 64 MiB of dirty pages, and small requests meanwhile."""
    stop = threading.Event()
    worst = 0.0

    def look() -> None:
        nonlocal worst
        number = 0
        while not stop.is_set():
            number += 1
            start = time.monotonic()
            (mount.mountpoint / f"none{number}").exists()
            worst = max(worst, time.monotonic() - start)

    with open(mount.mountpoint / "big", "wb") as file:
        file.write(bytes(64 * 1024 * 1024))
        file.flush()
        looker = threading.Thread(target=look)
        looker.start()
        start = time.monotonic()
        os.fsync(file.fileno())
        took = time.monotonic() - start
        stop.set()
        looker.join()
    if took > 0.2:  # a disk fast enough proves nothing
        assert worst < took / 2


# --- mounting, stopping, dying ---


def test_beside_and_over_itself_serve_the_same(tmp_path: Path) -> None:
    made = CaptureMount(tmp_path, beside=True)
    try:
        (made.source / "there").write_text("before")
        made.start()
        assert (made.mountpoint / "there").read_text() == "before"
        (made.mountpoint / "new").write_text("x")
        assert (made.source / "new").read_text() == "x"
        assert made.stop() == 0
        assert not made.is_mounted
        assert os.listdir(made.mountpoint) == []
    finally:
        made.close()


def test_a_stop_while_busy_is_refused_and_forced(made: CaptureMount) -> None:
    made.start()
    descriptor = os.open(made.mountpoint / "f", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(ReplicatorError, match="is busy"):
        made.stop()
    os.write(descriptor, b"still works")
    assert made.stop(force=True) == 0
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENOTCONN}\]"):
        os.close(descriptor)
    assert not made.is_mounted
    assert (made.source / "f").read_text() == "still works"


def test_a_stop_does_not_wait_for_other_mount_namespaces(made: CaptureMount) -> None:
    if not machine.has_mount_namespaces():
        pytest.skip("another one cannot be made here")
    made.start()
    (made.mountpoint / "f").write_text("x")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"there\n"
            before_s = time.monotonic()
            assert made.stop() == 0
            assert time.monotonic() - before_s < limits.DETACHED_SERVE_S + 10
            assert not made.is_mounted
            assert other.poll() is None
        finally:
            other.kill()


def test_unmounting_by_hand_ends_it_cleanly(mount: CaptureMount) -> None:
    (mount.mountpoint / "f").write_text("x")
    subprocess.run(["umount", mount.mountpoint], check=True, timeout=10)
    assert mount.process is not None
    assert mount.process.wait(CALL_TIMEOUT_S) == 0
    assert (mount.source / "f").read_text() == "x"


def test_terminating_is_ignored_and_interrupting_stops(made: CaptureMount) -> None:
    made.start()
    assert made.process is not None
    made.process.send_signal(signal.SIGTERM)
    made.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert made.call("status")["state"] == "serving"
    made.process.send_signal(signal.SIGINT)
    assert made.process.wait(CALL_TIMEOUT_S) == 0
    assert not made.is_mounted


@pytest.mark.parametrize("binding", ["pyfuse3"])  # the other: test_survival.py
def test_a_killed_capture_is_followed_by_the_next(mount: CaptureMount, target: Path) -> None:
    (mount.mountpoint / "f").write_text("before")
    sequence = mount.call("settle")["sequence"]
    mount.kill()
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENOTCONN}\]"):
        os.listdir(mount.mountpoint)
    mount.start()
    assert "took the place of the mount" in mount.log()
    assert (mount.mountpoint / "f").read_text() == "before"
    (mount.mountpoint / "g").write_text("after")
    assert mount.call("settle")["sequence"] > sequence
    mount.assert_replays([r for r in mount.records() if r.kind != Kind.DOUBT], target)
    assert mount.layers == 1


@pytest.mark.parametrize("binding", ["pyfuse3"])
def test_kills_under_load_lose_nothing(mount: CaptureMount, target: Path) -> None:
    """What a program was told is done is in the records or named by a DOUBT."""
    records = []
    for round_number in range(3):
        done = 0
        killer = threading.Timer(0.3 + 0.1 * round_number, lambda: mount.process and mount.process.kill())
        killer.start()
        try:
            while True:
                (mount.mountpoint / f"{round_number}-{done}").write_text("x" * done)
                done += 1
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
        killer.join()
        assert mount.process is not None
        mount.process.wait(CALL_TIMEOUT_S)
        mount.start()
        assert done > 10
    records = mount.records()
    doubtful = {r.path for r in records if r.kind == Kind.DOUBT}
    for record in records:
        assert record.kind != Kind.HOLE
    mount.assert_replays([r for r in records if r.kind != Kind.DOUBT], target, doubtful)


def test_a_second_capture_of_the_same_directory_is_refused(made: CaptureMount, tmp_path: Path) -> None:
    made.start()
    twin = CaptureMount(tmp_path)
    process = twin.spawn()
    assert process.wait(CALL_TIMEOUT_S) == 2
    assert "captured already" in twin.log()
    assert made.call("status")["state"] == "serving"


def test_a_directory_with_the_queue_inside_is_refused(tmp_path: Path) -> None:
    made = CaptureMount(tmp_path, settings={"disk_directory": str(tmp_path / "src/queue")})
    try:
        assert made.spawn().wait(CALL_TIMEOUT_S) == 2
        assert "own directory" in made.log()
        assert "Traceback" not in made.log()
    finally:
        made.close()


def test_only_active_prefixes_are_journaled(mount: CaptureMount) -> None:
    for name in ("in", "out"):
        (mount.mountpoint / name).mkdir()
    mount.records()
    mount.call("set_active", prefixes=[b"in"])
    (mount.mountpoint / "in/f").write_text("x")
    (mount.mountpoint / "out/f").write_text("x")
    assert {record.path for record in mount.records()} == {b"in/f", b"in"}
    mount.call("set_active", prefixes=[])
    (mount.mountpoint / "in/g").write_text("x")
    assert mount.records() == []


def test_a_capture_stays_small(mount: CaptureMount) -> None:
    assert mount.process is not None
    with open(f"/proc/{mount.process.pid}/maps") as file:
        maps = file.read()
    for module in ("zstandard", "_curses"):
        assert module not in maps
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, replicator.capture.process; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ).stdout.split()
    assert not {"typer", "rich", "starlette", "hypercorn", "zstandard"} & set(imported)


def test_programs_side_by_side(mount: CaptureMount, target: Path) -> None:
    """Four processes, each in its own directory and in a common one."""
    script = (
        "import os, sys\n"
        "me, base = sys.argv[1], sys.argv[2]\n"
        "os.makedirs(f'{base}/{me}')\n"
        "for n in range(150):\n"
        "    with open(f'{base}/{me}/{n}', 'wb') as file:\n"
        "        file.write(os.urandom(n * 37))\n"
        "    os.rename(f'{base}/{me}/{n}', f'{base}/common/{me}-{n}')\n"
        "    if n % 3 == 0:\n"
        "        os.link(f'{base}/common/{me}-{n}', f'{base}/{me}/{n}')\n"
        "    if n % 5 == 0:\n"
        "        os.truncate(f'{base}/common/{me}-{n}', n)\n"
        "    if n % 7 == 0:\n"
        "        os.unlink(f'{base}/common/{me}-{n}')\n"
    )
    (mount.mountpoint / "common").mkdir()
    programs = [
        subprocess.Popen([sys.executable, "-c", script, str(number), mount.mountpoint]) for number in range(4)
    ]
    for program in programs:
        assert program.wait(60) == 0
    mount.assert_replays(mount.records(), target)
    assert_same_tree(mount.mountpoint, target, ignore=frozenset({"links"}))
