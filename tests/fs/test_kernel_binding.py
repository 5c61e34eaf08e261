"""What only the kernel binding serves, on a real mount: ranges of files, files without name, exact replies.

After most tests the records are replayed on a second tree, which must then equal the storage below.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import random
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.mount import CaptureMount, shown
from kit.patience import until

from replicator import limits
from replicator.fs import calls
from replicator.ops import Kind

pytestmark = pytest.mark.fs

KIB = 1024
MIB = 1024 * KIB


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def give_name(descriptor: int, directory: Path, name: str) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, for which os.link needs a directory's descriptor."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as parent:
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=parent, follow_symlinks=True)


def extents(descriptor: int) -> list[tuple[int, int]]:
    """(start, end) of the data of a file."""
    found = []
    end, size = 0, os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def assert_same_holes(mount: CaptureMount, target: Path, name: str) -> None:
    with opened(mount.mountpoint / name, os.O_RDONLY) as one, opened(target / name, os.O_RDONLY) as other:
        assert extents(one) == extents(other)


# --- ranges ---

# What is allocated and was never written counts as data only while it is cached (ext4), as a hole otherwise.
PREALLOCATED = frozenset({"holes"})


def test_allocating_beyond_the_end(mount: CaptureMount, target: Path) -> None:
    with opened(mount.mountpoint / "f") as descriptor:
        os.write(descriptor, b"head")
        calls.fallocate(descriptor, 0, 0, 1 * MIB)
        assert os.fstat(descriptor).st_size == 1 * MIB
        calls.fallocate(descriptor, calls.FALLOC_KEEP_SIZE, 1 * MIB, 1 * MIB)
        assert os.fstat(descriptor).st_size == 1 * MIB
        assert os.fstat(descriptor).st_blocks * 512 >= 2 * MIB
    records = mount.records()
    assert shown(records)[1:4] == ["WRITE f 4@0", "FALLOCATE f", "FALLOCATE f"]
    mount.assert_replays(records, target, ignore=PREALLOCATED)


@pytest.mark.parametrize("mode", [calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE, calls.FALLOC_ZERO_RANGE])
def test_punching_and_zeroing(mount: CaptureMount, target: Path, mode: int) -> None:
    data = bytearray(os.urandom(256 * KIB))
    with opened(mount.mountpoint / "f") as descriptor:
        os.write(descriptor, data)
        os.pread(descriptor, len(data), 0)  # what the kernel has cached must go, too
        calls.fallocate(descriptor, mode, 64 * KIB, 64 * KIB)
        calls.fallocate(descriptor, mode, 200 * KIB + 5, 7)
        data[64 * KIB : 128 * KIB] = bytes(64 * KIB)
        data[200 * KIB + 5 : 200 * KIB + 12] = bytes(7)
        assert os.pread(descriptor, len(data), 0) == data
    punched = bool(mode & calls.FALLOC_PUNCH_HOLE)
    mount.assert_replays(mount.records(), target, ignore=frozenset() if punched else PREALLOCATED)
    if punched:
        assert_same_holes(mount, target, "f")


def test_zeroing_beyond_the_end_keeps_or_grows(mount: CaptureMount, target: Path) -> None:
    with opened(mount.mountpoint / "f") as descriptor:
        os.write(descriptor, b"x" * 8192)
        calls.fallocate(descriptor, calls.FALLOC_ZERO_RANGE | calls.FALLOC_KEEP_SIZE, 4096, 100_000)
        assert os.fstat(descriptor).st_size == 8192
        calls.fallocate(descriptor, calls.FALLOC_ZERO_RANGE, 8000, 100_000)
        assert os.fstat(descriptor).st_size == 108_000
    mount.assert_replays(mount.records(), target, ignore=PREALLOCATED)


@pytest.mark.parametrize("mode", [calls.FALLOC_COLLAPSE_RANGE, calls.FALLOC_INSERT_RANGE])
def test_moving_the_rest_of_a_file_is_refused(mount: CaptureMount, mode: int) -> None:
    with opened(mount.mountpoint / "f") as descriptor:
        os.write(descriptor, bytes(64 * KIB))
        with pytest.raises(OSError, match=rf"\[Errno {errno.EOPNOTSUPP}\]"):
            calls.fallocate(descriptor, mode, 4096, 4096)
    assert Kind.FALLOCATE not in {record.kind for record in mount.records()}


def test_holes_are_found(mount: CaptureMount) -> None:
    with opened(mount.mountpoint / "f") as descriptor:
        os.pwrite(descriptor, b"x" * 4096, 1 * MIB)
        os.ftruncate(descriptor, 2 * MIB)
        assert extents(descriptor) == [(1 * MIB, 1 * MIB + 4096)]
        with pytest.raises(OSError, match=rf"\[Errno {errno.ENXIO}\]"):
            os.lseek(descriptor, 2 * MIB, os.SEEK_DATA)


def test_copying_a_range_with_its_holes(mount: CaptureMount, target: Path) -> None:
    with opened(mount.mountpoint / "a") as source, opened(mount.mountpoint / "b") as copy:
        os.pwrite(source, os.urandom(100_000), 3)
        os.pwrite(source, os.urandom(50_000), 2 * MIB)
        os.ftruncate(source, 3 * MIB)
        os.write(copy, b"z" * 5000)
        mount.records()
        done = 0
        while done < 3 * MIB:
            count = os.copy_file_range(source, copy, 3 * MIB - done, done, 1000 + done)
            assert count > 0
            done += count
        expected = b"z" * 1000 + os.pread(source, 3 * MIB, 0)
        assert os.pread(copy, 4 * MIB, 0) == expected
    (target / "a").write_bytes((mount.mountpoint / "a").read_bytes())
    (target / "b").write_bytes(b"z" * 5000)
    records = mount.records()
    assert {record.path for record in records if record.kind == Kind.WRITE} == {b"b"}
    for record in records:
        assert len(record.payload) <= 1 * MIB
    replayed = [record for record in records if record.path == b"b"]
    mount.assert_replays([*replayed], target, [b"a", b""])


def test_copying_into_a_file_open_for_writing_only(mount: CaptureMount, target: Path) -> None:
    with opened(mount.mountpoint / "a") as source:
        os.write(source, b"content")
        with opened(mount.mountpoint / "b", os.O_WRONLY | os.O_CREAT) as copy:
            assert os.copy_file_range(source, copy, 100, 2, 0) == 5
            assert os.copy_file_range(source, copy, 100, 7, 0) == 0
    assert (mount.mountpoint / "b").read_bytes() == b"ntent"
    mount.assert_replays(mount.records(), target)


def test_copying_from_and_to_other_file_systems(tmp_path: Path, target: Path) -> None:
    """Between two mounts of ours, too: the kernel reads here and writes there, or the program does."""
    plain = tmp_path / "plain"
    plain.mkdir()
    mounts = [CaptureMount(tmp_path / name, settings={"binding": "kernel"}) for name in ("one", "two")]
    content = os.urandom(300_000)
    try:
        one, two = [mount.start().attach().mountpoint for mount in mounts]
        (plain / "f").write_bytes(content)
        for source, copy in ((plain, one), (one, two), (two, plain)):
            with opened(source / "f", os.O_RDONLY) as reading, opened(copy / "g") as writing:
                done = 0
                while done < len(content):
                    try:
                        count = os.copy_file_range(reading, writing, len(content) - done)
                    except OSError as error:
                        assert error.errno in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL)
                        count = os.sendfile(writing, reading, None, len(content) - done)
                    assert count > 0
                    done += count
            subprocess.run(["cp", source / "f", copy / "f"], check=True)
            assert (copy / "g").read_bytes() == (copy / "f").read_bytes() == content
        mounts[1].assert_replays(mounts[1].records(), target)
    finally:
        for mount in mounts:
            mount.close()


def test_a_file_of_more_than_4_gib(mount: CaptureMount, target: Path) -> None:
    place = (5 << 30) + 12345
    with opened(mount.mountpoint / "f") as descriptor:
        os.pwrite(descriptor, b"far", place)
        assert os.pread(descriptor, 10, place - 1) == b"\0far"
        assert os.fstat(descriptor).st_size == place + 3
        calls.fallocate(descriptor, calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE, place + 1, 1)
        assert os.pread(descriptor, 10, place) == b"f\0r"
        with mmap.mmap(descriptor, 0) as mapping:
            mapping[place] = 0x46
    records = mount.records()
    mount.assert_replays(records, target)
    with opened(target / "f", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 3, place) == b"F\0r"


# --- files without name ---


def test_a_file_without_name_begins_to_exist_with_its_link(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    (base / "d").mkdir()
    descriptor = os.open(base / "d", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"before")
    os.pwrite(descriptor, b"far", 300_000)
    os.ftruncate(descriptor, 400_000)
    os.setxattr(descriptor, "user.a", b"1")
    os.utime(descriptor, ns=(1, 2))
    os.fchown(descriptor, 5, 6)
    assert os.fstat(descriptor).st_nlink == 0
    assert shown(mount.records()) == ["MKDIR d", "SETATTR  mtime"]
    give_name(descriptor, base, "f")
    assert os.fstat(descriptor).st_nlink == 1
    os.pwrite(descriptor, b"after!", 0)
    os.link(base / "f", base / "d/g")
    give_name(descriptor, base, "h")
    os.close(descriptor)
    assert (base / "f").stat().st_nlink == 3
    records = mount.records()
    assert shown(records)[:4] == ["FILE f", "WRITE f 6@0", "LINK f d/g", "LINK f h"]
    (target / "d").mkdir(0o755)
    mount.assert_replays(records, target)
    assert_same_holes(mount, target, "f")
    assert mount.call("status")["nodes"] < 10


def test_what_is_mapped_in_a_file_without_name_comes_along(mount: CaptureMount, target: Path) -> None:
    with opened(mount.mountpoint, os.O_TMPFILE | os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 3 * mmap.PAGESIZE)
        with mmap.mmap(descriptor, 0) as mapping:
            mapping[:5] = b"early"
            give_name(descriptor, mount.mountpoint, "f")
            mapping[mmap.PAGESIZE : mmap.PAGESIZE + 4] = b"late"
            mapping.flush()
    mount.assert_replays(mount.records(), target)


@pytest.mark.parametrize("excess", [0, 1])
def test_a_large_file_without_name_is_left_to_a_mirror(
    mount: CaptureMount, target: Path, excess: int
) -> None:
    """It then gets its name on a target when it is complete, as every file that a mirror brings."""
    with opened(mount.mountpoint, os.O_TMPFILE | os.O_WRONLY) as descriptor:
        os.write(descriptor, os.urandom(limits.UNNAMED_BYTES - mmap.PAGESIZE))
        if excess:
            os.write(descriptor, bytes(mmap.PAGESIZE))
        give_name(descriptor, mount.mountpoint, "f")
        os.pwrite(descriptor, b"after", 0)
    records = mount.records()
    assert [Kind(record.kind) for record in records[:2]] == [Kind.DOUBT if excess else Kind.FILE, Kind.WRITE]
    if not excess:
        mount.assert_replays(records, target)


def test_a_name_that_is_taken_is_refused(mount: CaptureMount, target: Path) -> None:
    (mount.mountpoint / "f").write_text("there")
    with opened(mount.mountpoint, os.O_TMPFILE | os.O_RDWR) as descriptor:
        os.write(descriptor, b"new")
        with pytest.raises(FileExistsError):
            give_name(descriptor, mount.mountpoint, "f")
        give_name(descriptor, mount.mountpoint, "g")
    os.rename(mount.mountpoint / "g", mount.mountpoint / "f")  # how programs replace a file
    records = mount.records()
    assert [text for text in shown(records) if "mtime" not in text and "WRITE" not in text] == [
        "CREATE f",
        "FILE g",
        "RENAME g f",
    ]
    mount.assert_replays(records, target)


def test_a_name_that_is_not_replicated(tmp_path: Path) -> None:
    """The file begins to exist for a target with the first name there."""
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, active=[b"in"])
    try:
        mount.start().attach()
        (mount.mountpoint / "in").mkdir()
        (mount.mountpoint / "out").mkdir()
        mount.records()
        with opened(mount.mountpoint / "in", os.O_TMPFILE | os.O_RDWR) as descriptor:
            os.write(descriptor, b"content")
            give_name(descriptor, mount.mountpoint / "out", "f")
            assert mount.records() == []
            give_name(descriptor, mount.mountpoint / "in", "g")
        # A sender brings what is linked into its set.
        assert shown(mount.records())[0] == "LINK out/f in/g"
        with opened(mount.mountpoint / "out", os.O_TMPFILE | os.O_RDWR) as descriptor:
            give_name(descriptor, mount.mountpoint / "in", "h")
        assert shown(mount.records())[0] == "FILE in/h"
    finally:
        mount.close()


def test_a_users_file_without_name(mount: CaptureMount, target: Path) -> None:
    os.chmod(mount.mountpoint, 0o777)
    program = """if True:
        import os
        os.setgroups([]); os.setgid(1000); os.setuid(1000); os.umask(0o027)
        descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666)
        os.write(descriptor, b"content")
        os.link(f"/proc/self/fd/{descriptor}", "f", src_dir_fd=os.open(".", 0), follow_symlinks=True)
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=mount.mountpoint)
    state = (mount.mountpoint / "f").stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (1000, 1000, 0o640)
    mount.assert_replays(mount.records(), target)


def test_a_file_without_name_that_may_never_have_one(mount: CaptureMount) -> None:
    flags = os.O_TMPFILE | os.O_RDWR | os.O_EXCL
    with opened(mount.mountpoint, flags) as descriptor, pytest.raises(FileNotFoundError):
        give_name(descriptor, mount.mountpoint, "f")
    assert mount.records() == []


# --- what is told ---


def test_the_time_of_birth(mount: CaptureMount) -> None:
    before = time.time()
    with opened(mount.mountpoint / "f") as descriptor:
        birth_mask = 0x800
        state = calls.statx(descriptor, b"", calls.AT_EMPTY_PATH, 0x7FF | birth_mask)
        mask, inode = struct.unpack_from("<I", state)[0], calls.statx_inode(state)
        seconds, nanoseconds = struct.unpack_from("<qI", state, 80)
        assert inode == os.fstat(descriptor).st_ino
    if mask & birth_mask:  # as the storage below knows it
        assert before - 1 <= seconds + nanoseconds / 1e9 <= time.time() + 1
    by_name = subprocess.run(
        ["stat", "-c", "%i %s %a", mount.mountpoint / "f"], capture_output=True, text=True, check=True
    )
    assert by_name.stdout == f"{inode} 0 644\n"


def test_reading_ioctls_are_passed_on_and_others_are_not(mount: CaptureMount) -> None:
    get_flags, set_flags = 0x8008_6601, 0x4008_6602
    with opened(mount.mountpoint / "f") as descriptor:
        below = mount.call_for_descriptor("root")
        with opened(Path(f"/proc/self/fd/{below}/f"), os.O_RDONLY) as real:
            try:
                expected = fcntl.ioctl(real, get_flags, bytes(8))
            except OSError as error:
                pytest.skip(f"the storage below has no flags: {error}")
        os.close(below)
        assert fcntl.ioctl(descriptor, get_flags, bytes(8)) == expected
        with pytest.raises(OSError, match=rf"\[Errno ({errno.ENOTTY}|{errno.EOPNOTSUPP})\]"):
            fcntl.ioctl(descriptor, set_flags, struct.pack("<Q", 0x40))


def test_a_directory_shows_all_its_names_once(mount: CaptureMount) -> None:
    base = mount.mountpoint
    names = {f"name-{number:04}-{'x' * (number % 200)}" for number in range(3000)}
    for name in names:
        (base / name).touch()
    assert set(os.listdir(base)) == names
    listed = subprocess.run(["ls", "-f", base], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == sorted([*names, ".", ".."])
    # Removed while it is read: nothing else is left out.
    with os.scandir(base) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(base) == []


# --- permissions ---


def test_a_users_change_takes_suid_away_at_once(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    os.chmod(base, 0o777)
    program = """if True:
        import os
        from replicator.fs import calls
        os.setgroups([]); os.setgid(1000); os.setuid(1000)
        for name in "write", "truncate", "open", "allocate", "copy":
            descriptor = os.open(name, os.O_RDWR | (os.O_TRUNC if name == "open" else 0))
            if name == "write": os.write(descriptor, b"x")
            elif name == "truncate": os.ftruncate(descriptor, 1)
            elif name == "allocate": calls.fallocate(descriptor, 0, 0, 100)
            elif name == "copy": os.copy_file_range(descriptor, descriptor, 2, 0, 100)
            os.close(descriptor)
    """
    for name in ("write", "truncate", "open", "allocate", "copy"):
        (base / name).write_bytes(b"content")
        os.chmod(base / name, 0o6777)
        assert (base / name).stat().st_mode & 0o7777 == 0o6777
    root = str(Path(calls.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=base, env=environment)
    for name in ("write", "truncate", "open", "allocate", "copy"):
        assert os.access(base / name, os.X_OK)
        assert stat.S_IMODE((base / name).stat().st_mode) == 0o777, name
    mount.assert_replays(mount.records(), target, ignore=PREALLOCATED)


def test_roots_change_leaves_suid(mount: CaptureMount) -> None:
    path = mount.mountpoint / "f"
    path.touch()
    os.chmod(path, 0o4755)
    with opened(path) as descriptor:
        os.write(descriptor, b"x")
        calls.fallocate(descriptor, 0, 0, 100)
    assert path.stat().st_mode & 0o7777 == 0o4755


# --- locks ---


def test_locks_exclude_other_processes(mount: CaptureMount) -> None:
    path = mount.mountpoint / "f"
    program = """if True:
        import fcntl, os, sys
        descriptor = os.open(sys.argv[1], os.O_RDWR)
        for lock in (fcntl.flock, fcntl.lockf):
            try: lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: print("busy", end=" ")
            else: print("free", end=" ")
    """

    def attempt() -> str:
        found = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=20
        )
        return found.stdout

    with opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 0)
        assert attempt() == "busy busy "
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
        assert attempt() == "free free "


# --- concurrency and cost ---

SLOW_DISK = """
import os, sys, time
from replicator.fs import syncs
def no_ring(entries):
    raise OSError(38, "planted")
syncs.SyncRing = no_ring
real = os.fsync
def slow(descriptor):
    time.sleep(1.5)
    real(descriptor)
os.fsync = slow
from replicator.capture.process import main
sys.exit(main())
"""


def test_a_slow_sync_holds_up_nobody(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=("-c", SLOW_DISK))
    try:
        mount.start().attach()
        with opened(mount.mountpoint / "a") as descriptor:
            os.write(descriptor, b"x")
            syncing = threading.Thread(target=os.fsync, args=(descriptor,))
            started = time.monotonic()
            syncing.start()
            time.sleep(0.1)
            for number in range(50):
                (mount.mountpoint / f"f{number}").write_bytes(b"y")
            assert syncing.is_alive(), f"the others waited: {time.monotonic() - started:.2f} s"
            syncing.join()
            assert time.monotonic() - started >= 1.5
    finally:
        mount.close()


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_mount_costs_nothing(mount: CaptureMount) -> None:
    assert mount.process is not None
    with opened(mount.mountpoint / "f") as descriptor:
        for number in range(2000):
            os.pwrite(descriptor, b"x", number)
    time.sleep(0.2)
    before = processor_s(mount.process.pid)
    time.sleep(2.0)
    assert processor_s(mount.process.pid) - before <= 0.05


def test_a_mount_used_now_and_then_does_not_spin(mount: CaptureMount) -> None:
    assert mount.process is not None
    with opened(mount.mountpoint / "f") as descriptor:
        before = processor_s(mount.process.pid)
        for number in range(200):
            os.pwrite(descriptor, b"x", number)
            time.sleep(0.005)
        assert processor_s(mount.process.pid) - before <= 0.25


def keeps_awake(pid: int) -> bool:
    found = False
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found |= os.readlink(link) == "/dev/cpu_dma_latency"
    return found


@pytest.mark.skipif(
    not os.access("/dev/cpu_dma_latency", os.W_OK) or (os.cpu_count() or 1) > limits.AWAKE_PROCESSORS,
    reason="processors are not kept awake here",
)
def test_idle_processors_are_kept_awake_while_a_mount_is_busy_only(mount: CaptureMount) -> None:
    assert mount.process is not None
    pid = mount.process.pid
    assert not keeps_awake(pid)
    seen = False
    deadline = time.monotonic() + 20
    with opened(mount.mountpoint / "f") as descriptor:
        while not seen and time.monotonic() < deadline:
            for number in range(4 * limits.AWAKE_REQUESTS):
                os.pwrite(descriptor, b"x", number)
            seen = keeps_awake(pid)
    assert seen
    until(lambda: not keeps_awake(pid))


# --- memory ---

FEW_NODES = """
import sys
from replicator import limits
limits.NODES = 300
from replicator.capture.process import main
sys.exit(main())
"""


def test_more_objects_than_may_be_remembered(tmp_path: Path, target: Path) -> None:
    """A walk makes the kernel give objects back; what is open or changing stays what it is."""
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=("-c", FEW_NODES))
    try:
        for number in range(40):
            (mount.source / f"d{number}").mkdir()
            for other in range(50):
                (mount.source / f"d{number}/f{other}").touch()
        mount.start()
        base = mount.mountpoint
        with opened(base / "d3/f7") as descriptor:
            os.write(descriptor, b"kept")
            for _ in range(3):
                found = subprocess.run(["find", base, "-size", "0"], capture_output=True, check=True)
                assert len(found.stdout.splitlines()) >= 2000 - 1
            deadline = time.monotonic() + 20
            while mount.call("status")["nodes"] > 400:
                assert time.monotonic() < deadline, mount.call("status")
                (base / "absent").exists()
                time.sleep(0.05)
            os.write(descriptor, b" open")
        assert (base / "d3/f7").read_bytes() == b"kept open"
        (base / "d39/f49").write_bytes(b"x")
        os.rename(base / "d39", base / "d3/below")
        assert (base / "d3/below/f49").read_bytes() == b"x"
    finally:
        mount.close()


# --- large reads ---


def test_large_reads_of_any_place_and_size(mount: CaptureMount) -> None:
    data = os.urandom(3 * MIB + 777)
    path = mount.mountpoint / "f"
    path.write_bytes(data)
    generator = random.Random(1)
    with opened(path, os.O_RDONLY) as descriptor:
        for _ in range(60):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            start, count = generator.randrange(len(data) + 10), generator.randrange(2 * MIB)
            assert os.pread(descriptor, count, start) == data[start : start + count]


def test_a_read_that_cannot_be_moved_is_copied(tmp_path: Path) -> None:
    program = """
import os, sys
real, calls = os.splice, []
def failing(source, target, count, **place):
    calls.append(count)
    if len(calls) % 3 == 0:
        raise OSError(5, "planted")
    return real(source, target, count, **place)
os.splice = failing
from replicator.capture.process import main
sys.exit(main())
"""
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=("-c", program))
    try:
        data = os.urandom(2 * MIB)
        (mount.source / "f").write_bytes(data)
        mount.start()
        assert (mount.mountpoint / "f").read_bytes() == data
    finally:
        mount.close()
