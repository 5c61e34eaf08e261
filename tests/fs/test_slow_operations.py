"""What waits for a disk holds up nobody, and ends well if its program does not wait for it."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kit.mount import CALL_TIMEOUT_S, CaptureMount
from kit.patience import until

pytestmark = pytest.mark.fs

DELAY_S = 1.5

# A capture on a slow disk: syncs take long, and so does each read, as nothing is ever in memory. Threads wait
# for both: the kernel's ring for syncs knows no slow ones.
SLOW_DISK = f"""
import os, sys, time
def slow(real):
    def call(*arguments):
        time.sleep({DELAY_S})
        return real(*arguments)
    return call
def never_cached(*arguments):
    raise BlockingIOError
os.fsync, os.pread, os.preadv = slow(os.fsync), slow(os.pread), never_cached
from replicator.fs import syncs
def no_ring(entries):
    raise OSError(38, "planted")
syncs.SyncRing = no_ring
from replicator.capture.process import main
sys.exit(main())
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[CaptureMount]:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=("-c", SLOW_DISK))
    (mount.source / "cold").write_bytes(b"x" * 8192)
    try:
        yield mount.start().attach()
    finally:
        mount.close()


PROGRAMS = {
    "sync": "fd = os.open('hot', os.O_RDWR | os.O_CREAT); os.write(fd, b'y'); begin(); os.fsync(fd)",
    "read": "fd = os.open('cold', os.O_RDONLY); begin(); assert os.pread(fd, 9999, 0) == b'x' * 8192",
}


@contextmanager
def waiting(mount: CaptureMount, what: str, preparation: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A program whose request waits for the disk in the block."""
    program = (
        "import os, signal, sys, time\n"
        f"{preparation}\n"
        "def begin(): print('begins', flush=True)\n"
        f"{PROGRAMS[what]}\n"
        "print('done', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=mount.mountpoint, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=CALL_TIMEOUT_S)


def use(mount: CaptureMount) -> None:
    """Every kind of change, at once."""
    started = time.monotonic()
    for number in range(50):
        path = mount.mountpoint / f"f{number}"
        path.write_bytes(b"y")
        path.rename(mount.mountpoint / "g")
        assert "g" in os.listdir(mount.mountpoint)
        os.unlink(mount.mountpoint / "g")
    assert time.monotonic() - started < DELAY_S / 2


@pytest.mark.parametrize("what", PROGRAMS)
def test_others_do_not_wait(slow: CaptureMount, what: str) -> None:
    with waiting(slow, what) as process:
        use(slow)
        assert process.poll() is None
        assert process.communicate(timeout=CALL_TIMEOUT_S)[0] == "done\n"
        assert process.returncode == 0


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_that_is_killed_meanwhile_ends(slow: CaptureMount, what: str) -> None:
    """The kernel tells of it (INTERRUPT), and is told once that nothing here can be interrupted."""
    for _ in range(2):
        with waiting(slow, what) as process:
            process.send_signal(signal.SIGKILL)
            use(slow)
            assert process.wait(CALL_TIMEOUT_S) == -signal.SIGKILL
    use(slow)


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_signal_that_is_handled_fails_no_request(slow: CaptureMount, what: str) -> None:
    with waiting(slow, what, "signal.signal(signal.SIGUSR1, lambda *_: print('heard'))") as process:
        for _ in range(3):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
        said = process.communicate(timeout=CALL_TIMEOUT_S)[0].split()
        assert process.returncode == 0
        assert said[-1] == "done" and set(said[:-1]) == {"heard"}


def test_a_program_killed_while_no_capture_answers_ends(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})
    try:
        mount.start().attach()
        (mount.mountpoint / "f").touch()
        mount.kill()
        with subprocess.Popen(["ls", mount.mountpoint / "absent"], stderr=subprocess.DEVNULL) as process:
            time.sleep(0.3)
            assert process.poll() is None
            process.kill()
            process.wait(CALL_TIMEOUT_S)
        mount.start()
        (mount.mountpoint / "g").touch()
        assert sorted(os.listdir(mount.mountpoint)) == ["f", "g"]
    finally:
        mount.close()


# --- locks ---

WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
LOCKS = {
    "flock": "fcntl.flock(fd, fcntl.LOCK_EX)",
    "posix": "fcntl.lockf(fd, fcntl.LOCK_EX)",
    "open file description": f"fcntl.fcntl(fd, {fcntl.F_OFD_SETLKW}, {WHOLE_FILE!r})",
}


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("end", ["close", "kill"])
def test_who_waits_for_a_lock_gets_it_in_the_end(mount: CaptureMount, lock: str, end: str) -> None:
    """And holds up nobody meanwhile."""
    (mount.mountpoint / "f").touch()
    program = (
        "import fcntl, os\n"
        "fd = os.open('f', os.O_RDWR)\n"
        f"{LOCKS[lock]}\n"
        "print('locked', flush=True)\n"
        "input()\n"
        "os.close(fd)\n"
    )
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=mount.mountpoint,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said: dict[int, str] = {}

        def listen(number: int) -> None:
            output = holders[number].stdout
            assert output is not None
            said[number] = output.readline()

        listeners = [threading.Thread(target=listen, args=(number,)) for number in range(2)]
        for listener in listeners:
            listener.start()
        until(lambda: said)
        time.sleep(0.3)
        use(mount)
        ((first, text),) = said.items()
        assert text == "locked\n"
        if end == "close":
            holders[first].communicate("end\n", timeout=CALL_TIMEOUT_S)
        else:
            holders[first].kill()
        for listener in listeners:
            listener.join(CALL_TIMEOUT_S)
        assert said[1 - first] == "locked\n"
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate(timeout=CALL_TIMEOUT_S)


# --- a disk that stands still, and the kernel's ring ---

FIFREEZE, FITHAW = 0xC004_5877, 0xC004_5878  # include/uapi/linux/fs.h


@pytest.fixture
def still(tmp_path: Path) -> Iterator[tuple[CaptureMount, int]]:
    """A capture on a file system of its own, and a descriptor of that, to freeze it."""
    image, base = tmp_path / "image", tmp_path / "disk"
    base.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", "-F", image], ["mount", "-o", "loop", image, base]):
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        if made.returncode:
            pytest.skip(f"no loop device here: {made.stderr.strip()}")
    mount = CaptureMount(base, settings={"binding": "kernel", "memory_directory": str(tmp_path / "memory")})
    descriptor = os.open(base, os.O_RDONLY)
    try:
        yield mount.start().attach(), descriptor
    finally:
        with suppress(OSError):
            fcntl.ioctl(descriptor, FITHAW, 0)
        os.close(descriptor)
        mount.close()
        subprocess.run(["umount", "-l", base], check=False)


def test_a_sync_of_a_disk_that_stands_still_holds_up_nobody(still: tuple[CaptureMount, int]) -> None:
    mount, disk = still
    directory = mount.mountpoint
    for number in range(50):
        (directory / f"f{number}").write_bytes(b"y")
    file = os.open(directory / "f0", os.O_RDWR)
    os.write(file, b"content")
    syncs = [threading.Thread(target=os.fsync, args=(file,)) for _ in range(3)]
    try:
        fcntl.ioctl(disk, FIFREEZE, 0)
        for sync in syncs:
            sync.start()
        time.sleep(0.2)
        for number in range(50):
            assert (directory / f"f{number}").stat().st_size
            assert not (directory / f"g{number}").exists()
        fcntl.ioctl(disk, FITHAW, 0)
    finally:
        for sync in syncs:
            sync.join(CALL_TIMEOUT_S)
        os.close(file)
    assert not any(sync.is_alive() for sync in syncs)
