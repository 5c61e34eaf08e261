"""A capture is killed and another takes its place: nobody gets at the storage below in between.

With the pyfuse3 binding, programs see ENOTCONN as long as the dead mount is alone; what they are told is done
after that is in the journal. With the other they notice nothing: `test_survival.py`.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.mount import CALL_TIMEOUT_S, CaptureMount

from replicator.errors import UsageError
from replicator.fs import mounts
from replicator.ops import Kind, Record

pytestmark = pytest.mark.fs

APPENDS_PER_FILE = 20

# A mount goes beneath another since Linux 6.5. With a flag that no kernel knows a capture does as it must on
# an older one: it covers the dead mount.
COVERING = (
    "-c",
    "import sys; from replicator.fs import mounts; mounts._MOVE_MOUNT_BENEATH = 1 << 30;"
    " from replicator.capture.process import main; sys.exit(main())",
)

# Appends numbers, each in an open of its own, and prints those that were taken; it goes on with another file
# after an error, since that of an operation in doubt cannot be compared.
WRITER = """
import os, signal, sys
root, per_file = sys.argv[1], int(sys.argv[2])
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
done, number = [], 0
while going:
    try:
        fd = os.open(f"{root}/{number // per_file}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(fd, b"%d\\n" % number)
            done.append(number)
        finally:
            os.close(fd)
        number += 1
    except OSError:
        number += per_file - number % per_file
print(*done)
"""


@contextmanager
def writing(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, directory, str(APPENDS_PER_FILE)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(CALL_TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()


def stop(writer: "subprocess.Popen[str]") -> list[int]:
    writer.send_signal(signal.SIGTERM)
    return [int(word) for word in writer.communicate(timeout=CALL_TIMEOUT_S)[0].split()]


def appended(records: Iterable[Record]) -> set[int]:
    return {int(record.payload) for record in records if record.kind == Kind.WRITE}


@contextmanager
def capture(base: Path, program: tuple[str, ...] | None = None) -> Iterator[CaptureMount]:
    settings = {"binding": "pyfuse3"}
    made = CaptureMount(base, settings=settings, program=program or ("-m", "replicator.capture.process"))
    try:
        yield made.start().attach()
    finally:
        made.close()


@pytest.mark.parametrize(
    ("program", "kills", "layers"), [(None, 10, 1), (COVERING, 4, 5)], ids=["beneath", "covering"]
)
def test_nothing_is_written_beside_the_journal(
    tmp_path: Path, target: Path, program: tuple[str, ...] | None, kills: int, layers: int
) -> None:
    with capture(tmp_path, program) as mount:
        with writing(mount.mountpoint) as writer:
            for _ in range(kills):
                time.sleep(0.1)
                mount.kill()
                mount.start()
            time.sleep(0.1)
            done = stop(writer)
        assert mount.layers == layers
        records = mount.records()
        assert len(done) > 100
        unrecorded = sorted(set(done) - appended(records))
        assert not unrecorded, f"{len(unrecorded)} of {len(done)} appends: {unrecorded[:10]}"
        doubts = [record.path for record in records if record.kind == Kind.DOUBT]
        assert len(doubts) <= kills
        mount.assert_replays([r for r in records if r.kind != Kind.DOUBT], target, doubts)
        assert mount.stop() == 0
        assert mount.layers == 0


def test_what_lies_below_the_mount_of_a_whole_file_system_is_found(tmp_path: Path) -> None:
    """The mountpoint is the root of a file system: not the directory that this is mounted on."""
    source = tmp_path / "src"
    source.mkdir()
    (source / "hidden").touch()
    subprocess.run(["mount", "-t", "tmpfs", "none", source], check=True, timeout=10)
    try:
        with capture(tmp_path) as mount:
            (source / "f").write_text("x")
            mount.kill()
            mount.start()
            assert os.listdir(source) == ["f"]
            (source / "g").write_text("y")
            assert mount.stop() == 0
        assert sorted(os.listdir(source)) == ["f", "g"]
    finally:
        subprocess.run(["umount", "-l", source], check=True, timeout=10)
    assert os.listdir(source) == ["hidden"]


def test_a_dead_mount_beside_its_directory_is_replaced(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, beside=True, settings={"binding": "pyfuse3"})
    try:
        mount.start()
        (mount.mountpoint / "f").write_text("x")
        mount.kill()
        mount.start()
        assert mount.layers == 1
        assert (mount.mountpoint / "f").read_text() == "x"
        assert mount.stop() == 0
        assert os.listdir(mount.mountpoint) == []
    finally:
        mount.close()


def test_a_dead_mount_of_another_agent_is_replaced(tmp_path: Path) -> None:
    with capture(tmp_path) as mount:
        (mount.mountpoint / "f").write_text("x")
        mount.kill()
        place = str(mount.mountpoint)
        other = CaptureMount(tmp_path / "other", settings={"path": place, "mountpoint": place})
        try:
            other.start()
            assert mount.layers == 1
            assert (mount.mountpoint / "f").read_text() == "x"
            assert other.stop() == 0
            assert mount.layers == 0
        finally:
            other.close()


def test_a_capture_that_cannot_start_leaves_the_dead_mount(tmp_path: Path) -> None:
    """Else programs would go on beside a journal that knows nothing of it."""
    with capture(tmp_path) as mount:
        twin = CaptureMount(tmp_path, settings={"disk_directory": str(mount.source / "queue")})
        mount.kill()
        assert twin.spawn().wait(CALL_TIMEOUT_S) == 2
        with pytest.raises(OSError, match=rf"\[Errno {errno.ENOTCONN}\]"):
            os.listdir(mount.mountpoint)
        assert mounts.clear_stale(str(mount.mountpoint))
        assert os.listdir(mount.mountpoint) == []


def test_several_dead_mounts_are_cleared_at_once(tmp_path: Path) -> None:
    with capture(tmp_path, COVERING) as mount:
        (mount.mountpoint / "f").write_text("x")
        for _ in range(2):
            mount.kill()
            mount.start()
        with pytest.raises(UsageError, match="by another process"):
            mounts.clear_stale(str(mount.mountpoint))
        mount.kill()
        assert mount.layers == 3
        assert mounts.clear_stale(str(mount.mountpoint))
        assert mount.layers == 0
        assert (mount.source / "f").read_text() == "x"
        assert not mounts.clear_stale(str(mount.mountpoint))


def test_unmounting_by_hand_takes_dead_mounts_along(tmp_path: Path) -> None:
    with capture(tmp_path, COVERING) as mount:
        (mount.mountpoint / "f").write_text("x")
        mount.kill()
        mount.start()
        subprocess.run(["umount", mount.mountpoint], check=True, timeout=10)
        assert mount.process is not None
        assert mount.process.wait(CALL_TIMEOUT_S) == 0
        assert mount.layers == 0
        assert (mount.source / "f").read_text() == "x"


def test_a_successor_tells_once_what_was_pending(tmp_path: Path) -> None:
    with capture(tmp_path) as mount:
        (mount.mountpoint / "d").mkdir()
        descriptor = os.open(mount.mountpoint / "d/f", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"x")
        mount.records(settle=False)
        mount.kill()
        with pytest.raises(OSError, match=rf"\[Errno {errno.ENOTCONN}\]"):
            os.close(descriptor)
        mount.start()
        told = [(Kind(r.kind), r.path) for r in mount.records(settle=False)]
        assert sorted(told) == [(Kind.SETATTR, b""), (Kind.SETATTR, b"d"), (Kind.SETATTR, b"d/f")]
        mount.kill()
        mount.start()
        assert mount.records() == []
