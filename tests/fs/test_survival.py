"""A capture with the kernel binding is killed: programs notice a pause and nothing else."""

import fcntl
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.mount import CALL_TIMEOUT_S, CaptureMount

from replicator.agent import resumption
from replicator.fs import holder
from replicator.ops import Kind

pytestmark = pytest.mark.fs

# Every kind of change in a directory of its own, until its input ends. Exits with 1 at the first error.
CHANGES = """
import os, random, select, sys
root, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
base = f"{root}/{seed}"
os.mkdir(base)
held = os.open(base + "/held", os.O_RDWR | os.O_CREAT)
os.write(held, b"without name")
os.unlink(base + "/held")
log = os.open(base + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
names, number = [], 0
while not select.select([sys.stdin], [], [], 0)[0]:
    number += 1
    kind, path = chance.randrange(12), f"{base}/{number}"
    if kind < 3 or len(names) < 3:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"%d" % number)
        os.close(fd)
        names.append(path)
    elif kind == 3:
        assert os.write(log, b"%d\\n" % number)
    elif kind == 4:
        index = chance.randrange(len(names))
        os.rename(names[index], path)
        names[index] = path
    elif kind == 5:
        os.unlink(names.pop(chance.randrange(len(names))))
    elif kind == 6:
        os.mkdir(path)
        if number % 2:
            os.rmdir(path)
    elif kind == 7:
        os.link(chance.choice(names), path)
        names.append(path)
    elif kind == 8:
        os.symlink("text", path)
    elif kind == 9:
        assert os.pread(held, 100, 0) == b"without name"
        assert os.pwrite(held, b"without name", 0) == 12
    elif kind == 10:
        os.replace(names.pop(), names[-1])
    else:
        fd = os.open(chance.choice(names), os.O_RDWR)
        os.fsync(fd)
        os.ftruncate(fd, chance.randrange(1, 9))
        os.setxattr(fd, "user.n", b"%d" % number)
        os.close(fd)
print(number)
"""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[CaptureMount]:
    made = CaptureMount(tmp_path, settings={"binding": "kernel"})
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


def holder_of(mount: CaptureMount) -> int:
    """Its process id; 0 while there is none."""
    held = holder.find(os.path.join(mount.settings.memory_directory, "holder"))
    return 0 if held is None else held.pid


def test_programs_notice_nothing_and_nothing_is_lost_or_doubled(mount: CaptureMount, target: Path) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGES, mount.mountpoint, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    chance = random.Random(3)
    try:
        records = []
        for _ in range(8):
            time.sleep(chance.uniform(0.05, 0.3))
            mount.kill()
            mount.start()
            records += mount.records(settle=False)
        for program in programs:
            done, complaint = program.communicate("end", timeout=CALL_TIMEOUT_S)
            assert program.returncode == 0, complaint
            assert int(done) > 50
    finally:
        for program in programs:
            program.kill()
            program.wait(CALL_TIMEOUT_S)
    records += mount.records()
    assert not [record for record in records if record.kind in (Kind.DOUBT, Kind.HOLE)]
    mount.assert_replays(records, target)
    assert mount.layers == 1
    assert mount.stop() == 0
    assert not resumption.is_held(mount.settings.memory_directory)


def test_what_is_open_stays_open(mount: CaptureMount, target: Path) -> None:
    base = mount.mountpoint
    (base / "d").mkdir()
    (base / "old").write_text("mapped content")
    reader = os.open(base / "old", os.O_RDWR)
    mapping = mmap.mmap(reader, 0)
    directory = os.open(base / "d", os.O_RDONLY)
    unnamed = os.open(base, os.O_TMPFILE | os.O_RDWR)
    os.write(unnamed, b"no name yet")
    fcntl.flock(reader, fcntl.LOCK_EX)
    mount.kill()
    mount.start()
    mapping[:6] = b"MAPPED"
    mapping.flush()
    assert os.pread(reader, 100, 0) == b"MAPPED content"
    os.close(os.open("inside", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
    assert os.listdir(directory) == ["inside"]
    os.link(f"/proc/self/fd/{unnamed}", "named", dst_dir_fd=directory, follow_symlinks=True)
    assert (base / "d/named").read_bytes() == b"no name yet"
    os.rename(base / "d", base / "e")
    assert os.listdir(directory) == ["inside", "named"] or sorted(os.listdir(directory)) == [
        "inside",
        "named",
    ]
    mapping.close()
    for descriptor in (reader, directory, unnamed):
        os.close(descriptor)
    mount.assert_replays(mount.records(), target)


def test_a_call_made_meanwhile_waits(mount: CaptureMount) -> None:
    mount.kill()
    answers: list[object] = []
    caller = threading.Thread(target=lambda: answers.append((mount.mountpoint / "f").write_text("x")))
    caller.start()
    caller.join(0.5)
    assert caller.is_alive() and not answers
    mount.start()
    caller.join(CALL_TIMEOUT_S)
    assert answers == [1]


def test_without_a_successor_it_can_be_given_up(mount: CaptureMount) -> None:
    (mount.mountpoint / "f").touch()
    mount.kill()
    assert resumption.is_held(mount.settings.memory_directory)
    resumption.give_up(mount.settings.memory_directory)
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.listdir(mount.mountpoint)
    mount.start()  # takes the place of the dead mount, as the other binding
    assert os.listdir(mount.mountpoint) == ["f"]


def test_a_holder_that_is_killed_is_replaced(mount: CaptureMount) -> None:
    (mount.mountpoint / "f").write_text("x")
    with open(mount.mountpoint / "f") as file:
        for _ in range(2):
            former = holder_of(mount)
            os.kill(former, signal.SIGKILL)
            deadline = time.monotonic() + CALL_TIMEOUT_S
            while holder_of(mount) in (0, former):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        mount.kill()
        mount.start()
        assert file.read() == "x"


def test_a_stop_leaves_nothing_behind(mount: CaptureMount) -> None:
    (mount.mountpoint / "f").touch()
    mount.kill()
    mount.start()
    last = holder_of(mount)
    assert last
    assert mount.stop() == 0
    assert not os.path.exists(f"/proc/{last}")
    assert not os.path.exists(mount.settings.memory_directory)
