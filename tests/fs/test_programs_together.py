"""What programs on one mount see of each other: locks, shared mappings, events, direct I/O."""

import ctypes
import fcntl
import itertools
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.mount import CALL_TIMEOUT_S, CaptureMount

pytestmark = pytest.mark.fs

PAGE = mmap.PAGESIZE


@pytest.fixture(params=["kernel", "pyfuse3"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CaptureMount]:
    made = CaptureMount(tmp_path, settings={"binding": request.param})
    try:
        yield made.start().attach()
    finally:
        made.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    os.chmod(path, 0o755)
    return path


class Program:
    """Python code in a process of its own, with `path` as argument. It talks by lines."""

    def __init__(self, code: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, timeout_s: float = CALL_TIMEOUT_S) -> str | None:
        """Its next line, None if there is none within that time."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            return None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(CALL_TIMEOUT_S)

    def finish(self) -> None:
        _, complaint = self.process.communicate(timeout=CALL_TIMEOUT_S)
        assert self.process.returncode == 0, complaint


@contextmanager
def program(code: str, path: Path) -> Iterator[Program]:
    started = Program(code, path)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


# --- locks ---

# struct flock: type, whence, start, length, process (0: of an open file description)
_LOCK = """
import fcntl, os, struct, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
def flock(wait, exclusive=True):
    fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
def posix(wait, exclusive=True):
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    fcntl.lockf(descriptor, kind | (0 if wait else fcntl.LOCK_NB), 10, 5)
def description(wait, exclusive=True):
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, 5, 10, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)
"""
KINDS_OF_LOCK = ("flock", "posix", "description")
HOLD = _LOCK + "{0}(False)\nprint('held')\ninput()\n"
TRY = (
    _LOCK + "try: {0}(False)\nexcept (BlockingIOError, PermissionError): print('busy')\nelse: print('free')\n"
)
AWAIT = _LOCK + "print('waiting')\n{0}(True)\nprint('held')\n"
SHARE = _LOCK + "{0}(False, exclusive=False)\nprint('shared')\ninput()\n"


def attempt(kind: str, path: Path) -> str | None:
    with program(TRY.format(kind), path) as other:
        return other.said()


@pytest.mark.parametrize("kind", KINDS_OF_LOCK)
def test_a_lock_excludes_and_ends_with_its_holder(mount: CaptureMount, kind: str) -> None:
    path = mount.mountpoint / "f"
    with program(HOLD.format(kind), path) as holder:
        assert holder.said() == "held"
        assert attempt(kind, path) == "busy"
        holder.tell()
        holder.finish()
    assert attempt(kind, path) == "free"


@pytest.mark.parametrize("kind", KINDS_OF_LOCK)
def test_who_waits_for_a_lock_gets_it_at_the_death_of_its_holder(mount: CaptureMount, kind: str) -> None:
    path = mount.mountpoint / "f"
    with program(HOLD.format(kind), path) as holder:
        assert holder.said() == "held"
        with program(AWAIT.format(kind), path) as waiter:
            assert waiter.said() == "waiting"
            assert waiter.said(timeout_s=0.3) is None
            holder.kill()
            assert waiter.said() == "held"
            waiter.finish()


@pytest.mark.parametrize("kind", KINDS_OF_LOCK)
def test_a_shared_lock_is_shared(mount: CaptureMount, kind: str) -> None:
    path = mount.mountpoint / "f"
    with program(SHARE.format(kind), path) as one, program(SHARE.format(kind), path) as other:
        assert one.said() == other.said() == "shared"
        assert attempt(kind, path) == "busy"


@pytest.mark.parametrize("kind", ["posix", "description"])
def test_locks_of_ranges_that_do_not_meet(mount: CaptureMount, kind: str) -> None:
    path = mount.mountpoint / "f"
    path.touch()
    with program(HOLD.format(kind), path) as holder, open(path, "r+") as file:
        assert holder.said() == "held"
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)  # it holds bytes 5 to 14
        with pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 6, 0)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 15)


def test_who_holds_a_lock_can_be_asked(mount: CaptureMount) -> None:
    path = mount.mountpoint / "f"
    path.touch()
    with program(HOLD.format("posix"), path) as holder, open(path, "r+") as file:
        assert holder.said() == "held"
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, start, length, process = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
        assert (kind, start, length, process) == (fcntl.F_WRLCK, 5, 10, holder.process.pid)


# --- mappings ---

STORES = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(descriptor, 0)
print("mapped")
while line := sys.stdin.readline().strip():
    if line == "sync":
        mapping.flush()
    else:
        place, text = line.split()
        mapping[int(place) : int(place) + len(text)] = text.encode()
    print("done")
"""


def test_a_shared_mapping_is_seen_by_another_process(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(bytes(3 * PAGE))
    with program(STORES, path) as other, open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        assert other.said() == "mapped"
        other.tell("5000 stored")
        assert other.said() == "done"
        assert mapping[5000:5006] == b"stored"  # by memory
        assert os.pread(file.fileno(), 6, 5000) == b"stored"  # by read
        mapping[0:4] = b"here"
        os.pwrite(file.fileno(), b"written", 2 * PAGE)
        assert mapping[2 * PAGE : 2 * PAGE + 7] == b"written"
        other.tell("sync")
        assert other.said() == "done"
        other.tell()
        other.finish()
    expected = path.read_bytes()
    assert (expected[:4], expected[5000:5006]) == (b"here", b"stored")
    mount.assert_replays(mount.records(), target)


def test_what_is_stored_outlives_who_stored_it(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(bytes(PAGE))
    with program(STORES, path) as other:
        assert other.said() == "mapped"
        other.tell("10 stored")
        assert other.said() == "done"
        other.kill()
    assert path.read_bytes()[10:16] == b"stored"
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
    mount.assert_replays(mount.records(), target)
    assert (target / "f").read_bytes()[10:16] == b"stored"


# --- direct I/O ---


@contextmanager
def direct(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_direct_io_from_any_buffer(mount: CaptureMount, target: Path) -> None:
    """Many file systems want everything aligned. On a mount nothing has to be, and what is there is right."""
    misplaced, starts, lengths = (0, 1, 513), (0, 512, 4096, 777), (512, 8192, 1_000_000, 333)
    for number, (by, start, length) in enumerate(itertools.product(misplaced, starts, lengths)):
        path, data = mount.mountpoint / str(number), os.urandom(length)
        with mmap.mmap(-1, 1 << 20) as memory, direct(path) as descriptor:
            with memoryview(memory)[by : by + length] as view:
                view[:] = data
                assert os.pwritev(descriptor, [view], start) == length
                view[:] = bytes(length)
                assert os.preadv(descriptor, [view], start) == length, (by, start, length)
                assert view == data
            assert os.fstat(descriptor).st_size == start + length
        assert path.read_bytes() == bytes(start) + data, (by, start, length)
    mount.assert_replays(mount.records(), target)


def test_direct_and_cached_io_agree(mount: CaptureMount, target: Path) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(b"cached" * 2000)
    with direct(path) as descriptor, open(path, "r+b", buffering=0) as file, mmap.mmap(-1, PAGE) as memory:
        assert file.read(6) == b"cached"
        memory[:] = b"d" * PAGE
        assert os.pwritev(descriptor, [memory], PAGE) == PAGE
        assert os.pread(file.fileno(), PAGE, PAGE) == b"d" * PAGE  # no older one out of the cache
        with mmap.mmap(file.fileno(), 0) as mapping:
            mapping[0:6] = b"stored"
            assert os.preadv(descriptor, [memory], 0) == PAGE
            assert memory[:12] == b"storedcached"
    mount.assert_replays(mount.records(), target)


# --- events ---

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
EVENTS = {  # sys/inotify.h
    0x002: "modify",
    0x004: "attributes",
    0x008: "closed after writing",
    0x040: "moved from",
    0x080: "moved to",
    0x100: "create",
    0x200: "delete",
}


@contextmanager
def watching(directory: Path) -> Iterator[Callable[[], list[str]]]:
    """Gives a function that returns what happened since its last call, once it is quiet."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    assert _libc.inotify_add_watch(descriptor, os.fsencode(directory), sum(EVENTS)) >= 0

    def happened() -> list[str]:
        found = []
        while select.select([descriptor], [], [], 0.2)[0]:
            data = os.read(descriptor, 65536)
            while data:
                _, mask, _, length = _EVENT.unpack_from(data)
                name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
                found.append(f"{EVENTS[mask & 0xFFF]} {name}".strip())
                data = data[_EVENT.size + length :]
        return found

    try:
        yield happened
    finally:
        os.close(descriptor)


def by_another(directory: Path, code: str) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import os\n{code}"], cwd=directory, check=True, timeout=CALL_TIMEOUT_S
    )


def test_inotify_tells_what_others_do(mount: CaptureMount) -> None:
    base = mount.mountpoint
    with watching(base) as happened:
        by_another(base, "open('f', 'w').write('x')")
        assert happened() == ["create f", "modify f", "closed after writing f"]
        by_another(base, "os.chmod('f', 0o600)")
        assert happened() == ["attributes f"]
        by_another(base, "os.rename('f', 'g')")
        assert happened() == ["moved from f", "moved to g"]
        by_another(base, "os.mkdir('d'); os.rename('g', 'd/g')")
        assert happened() == ["create d", "moved from g"]
        by_another(base, "os.truncate('d/g', 0); os.symlink('d', 's'); os.unlink('s')")
        assert happened() == ["create s", "delete s"]


def test_a_watch_of_a_file_hears_of_it_whatever_its_name(mount: CaptureMount) -> None:
    path = mount.mountpoint / "f"
    path.write_text("x")
    with watching(path) as happened:
        by_another(mount.mountpoint, "os.rename('f', 'g'); open('g', 'a').write('more')")
        assert happened() == ["modify", "closed after writing"]


def test_a_watch_outlives_the_capture(tmp_path: Path) -> None:
    made = CaptureMount(tmp_path, settings={"binding": "kernel"})
    try:
        made.start().attach()
        (made.mountpoint / "d").mkdir()
        with watching(made.mountpoint / "d") as happened:
            made.kill()
            made.start()
            by_another(made.mountpoint, "open('d/f', 'w').close()")
            assert happened() == ["create f", "closed after writing f"]
    finally:
        made.close()
