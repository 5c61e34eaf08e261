"""A capture with the kernel binding is killed: programs notice a pause and nothing else."""

import fcntl
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from kit.mount import CALL_TIMEOUT_S, MOUNT_ID, CaptureMount, replace_by_kill, replace_in_order
from kit.patience import until, until_async

from replicator import limits
from replicator.agent.launcher import Launch, Launcher
from replicator.agent.supervisor import Child, ChildError, Plan, Supervisor
from replicator.capture import held_mount, resumption
from replicator.capture.arguments import CaptureSettings
from replicator.errors import ReplicatorError
from replicator.events import EventRing
from replicator.fs import holder
from replicator.ops import Kind
from replicator.paths import Home

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
    kind, path = chance.randrange(13), f"{base}/{number}"
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
    elif kind == 11:
        fd = os.open(base, os.O_TMPFILE | os.O_RDWR, 0o644)
        os.write(fd, b"%d" % number)
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
        assert os.fstat(fd).st_nlink == 1
        os.close(fd)
        names.append(path)
    else:
        fd = os.open(chance.choice(names), os.O_RDWR)
        os.fsync(fd)
        os.ftruncate(fd, chance.randrange(1, 9))
        os.setxattr(fd, "user.n", b"%d" % number)
        os.close(fd)
print(number)
"""


def holder_of(mount: CaptureMount) -> int:
    """Its process id; 0 while there is none."""
    held = holder.find(os.path.join(mount.settings.memory_directory, "holder"))
    return 0 if held is None else held.pid


@contextmanager
def changing(mount: CaptureMount) -> Iterator[None]:
    """Two programs make every kind of change meanwhile, and see no error."""
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
    try:
        yield
        for program in programs:
            done, complaint = program.communicate("end", timeout=CALL_TIMEOUT_S)
            assert program.returncode == 0, complaint
            assert int(done) > 50
    finally:
        for program in programs:
            program.kill()
            program.wait(CALL_TIMEOUT_S)


@pytest.mark.parametrize("replace", [replace_by_kill, replace_in_order])
def test_programs_notice_nothing_and_nothing_is_lost_or_doubled(
    mount: CaptureMount, target: Path, replace: Callable[[CaptureMount], None]
) -> None:
    chance = random.Random(3)
    records = []
    with changing(mount):
        for _ in range(8):
            time.sleep(chance.uniform(0.05, 0.3))
            replace(mount)
            records += mount.records(settle=False)
    records += mount.records()
    assert not [record for record in records if record.kind in (Kind.DOUBT, Kind.HOLE)]
    mount.assert_replays(records, target)
    assert mount.layers == 1
    assert mount.stop() == 0
    assert not held_mount.is_held(mount.settings.memory_directory)
    assert not os.path.exists(mount.settings.memory_directory)


# A capture that kills itself once, the first time that a file without name gets one, at the point named.
KILLED = """
import os, signal, sys
from replicator.capture.process import main
from replicator.fs.intent import Intent
from replicator.fs.nodes import NodeTable
from replicator.fs.recorder import Recorder
from replicator.queue.journal import JournalWriter
point, marker = {point!r}, {marker!r}
function, when = point.split()
owner = {{"link": os, "append": JournalWriter, "clear_flight": JournalWriter, "unpin": NodeTable,
         "done": Intent}}[function]
real, linked = getattr(owner, function), []
real_link = os.link
def link(*arguments, **options):
    linked.append(None)
    return real_link(*arguments, **options)
def kill(*arguments, **options):
    if linked or function == "link":
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
if not os.path.exists(marker):
    open(marker, "x").close()
    os.link = link
    setattr(owner, function, kill)
sys.exit(main())
"""


LINKING = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o640)
size = int(sys.argv[2])
os.write(descriptor, b"x" * size)
os.link(f"/proc/self/fd/{descriptor}", sys.argv[1] + "/f", src_dir_fd=descriptor, follow_symlinks=True)
os.pwrite(descriptor, b"more", size)
os.close(descriptor)
os.link(sys.argv[1] + "/f", sys.argv[1] + "/g")
"""


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "point",
    [
        *("link before", "link after", "append before", "append after", "clear_flight after"),
        *("unpin before", "unpin after", "done after"),
    ],
)
def test_a_file_that_was_getting_its_first_name(
    tmp_path: Path, target: Path, point: str, large: bool
) -> None:
    program = KILLED.format(point=point, marker=str(tmp_path / "marker"))
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=("-c", program))
    try:
        mount.start().attach()
        capture = mount.process
        assert capture is not None
        size = 5 << 20 if large else 5000
        with subprocess.Popen(
            [sys.executable, "-c", LINKING, mount.mountpoint, str(size)], stderr=subprocess.PIPE, text=True
        ) as linking:
            assert capture.wait(CALL_TIMEOUT_S) == -signal.SIGKILL
            mount.start()
            complaint = linking.communicate(timeout=CALL_TIMEOUT_S)[1]
            assert linking.returncode == 0, complaint
        assert (mount.mountpoint / "g").read_bytes() == b"x" * size + b"more"
        records = mount.records()
        kinds = [Kind(record.kind) for record in records if record.kind != Kind.SETATTR]
        assert kinds == [Kind.DOUBT if large else Kind.FILE, Kind.WRITE, Kind.LINK]
        if not large:
            mount.assert_replays(records, target)
        assert mount.stop() == 0
    finally:
        mount.close()


@pytest.mark.parametrize("replace", [replace_by_kill, replace_in_order])
def test_what_is_open_stays_open(
    mount: CaptureMount, target: Path, replace: Callable[[CaptureMount], None]
) -> None:
    base = mount.mountpoint
    (base / "d").mkdir()
    (base / "old").write_text("mapped content")
    reader = os.open(base / "old", os.O_RDWR)
    mapping = mmap.mmap(reader, 0)
    directory = os.open(base / "d", os.O_RDONLY)
    unnamed = os.open(base, os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
    os.write(unnamed, b"never a name")
    fcntl.flock(reader, fcntl.LOCK_EX)
    replace(mount)
    mapping[:6] = b"MAPPED"
    mapping.flush()
    assert os.pread(reader, 100, 0) == b"MAPPED content"
    os.close(os.open("inside", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
    assert os.listdir(directory) == ["inside"]
    assert os.pread(unnamed, 100, 0) == b"never a name"
    os.rename(base / "d", base / "e")
    assert os.listdir(directory) == ["inside"]
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
    assert held_mount.is_held(mount.settings.memory_directory)
    held_mount.give_up(mount.settings.memory_directory)
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.listdir(mount.mountpoint)
    mount.start()  # takes the place of the dead mount, as the other binding
    assert os.listdir(mount.mountpoint) == ["f"]


SHORT_OF_PATIENCE = """
import sys
from replicator import limits
limits.HOLDER_GIVE_UP_S = 1.0
from replicator.capture.process import main
sys.exit(main())
"""


def test_where_no_agent_runs_calls_fail_in_the_end(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=("-c", SHORT_OF_PATIENCE))
    try:
        mount.start().attach()
        (mount.mountpoint / "f").touch()
        time.sleep(1.2)  # as long as the capture runs nobody gives up
        held = holder_of(mount)
        assert held
        mount.kill()
        began = time.monotonic()
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.stat(mount.mountpoint / "g")
        assert 0.9 < time.monotonic() - began < CALL_TIMEOUT_S
        while holder_of(mount):  # its descriptors are closed before it has ended
            assert time.monotonic() - began < CALL_TIMEOUT_S
            time.sleep(0.01)
        mount.start()
        assert os.listdir(mount.mountpoint) == ["f"]
        mount.kill()
        mount.start()  # in time
        time.sleep(1.2)
        assert os.listdir(mount.mountpoint) == ["f"]
        assert mount.layers == 1
        assert mount.stop() == 0
    finally:
        mount.close()


def test_an_agent_that_can_start_no_successor_lets_calls_fail_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CAPTURE_GIVE_UP_S", 1.0)
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})
    reasons: list[str] = []
    mendable = ["the disk is full"]

    def arguments() -> CaptureSettings:
        if mendable and child_started.is_set():
            raise OSError(28, mendable[0])
        return mount.settings

    async def give_up(reason: str) -> None:
        assert held_mount.give_up(mount.settings.memory_directory)
        reasons.append(reason)
        mendable.clear()

    child_started = threading.Event()

    async def main() -> None:
        home = Home(mount.settings.home)
        home.create()
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(home, EventRing(time.time_ns, lambda event: None), Launcher(), nursery)
            child = await supervisor.start(Plan("capture", MOUNT_ID, arguments, give_up=give_up))
            child_started.set()
            (mount.mountpoint / "f").touch()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(OSError, match=r"not connected|abort"):
                await trio.to_thread.run_sync(os.stat, mount.mountpoint / "g")
            assert 0.9 < time.monotonic() - began < CALL_TIMEOUT_S
            await child.wait_running()
            assert await trio.to_thread.run_sync(os.listdir, mount.mountpoint) == ["f"]
            await supervisor.stop("capture", MOUNT_ID)

    try:
        trio.run(main)
        assert reasons == ["the disk is full"]
        assert mount.layers == 0
    finally:
        mount.close()


def test_a_capture_that_served_is_replaced_at_once_however_often_it_is_killed(tmp_path: Path) -> None:
    """Programs wait meanwhile. Only one that serves not even for a moment is started less and less often."""
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})
    ring = EventRing(time.time_ns, lambda event: None)

    async def main() -> None:
        home = Home(mount.settings.home)
        home.create()
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(home, ring, Launcher(), nursery)
            child = await supervisor.start(Plan("capture", MOUNT_ID, lambda: mount.settings))
            for _ in range(6):
                await trio.sleep(2 * limits.CAPTURE_STABLE_S)
                former = child.pid
                assert former is not None
                os.kill(former, signal.SIGKILL)
                await until_async(lambda former=former: child.pid not in (None, former))
            await supervisor.stop("capture", MOUNT_ID)

    try:
        trio.run(main)
    finally:
        mount.close()
    told = [event.text for event in ring.since() if "ended unexpectedly" in event.text]
    assert len(told) == 6
    assert all("next start in 0.0 s" in text for text in told), told


def test_a_capture_that_is_killed_while_its_agent_talks_to_it_is_replaced_at_once(tmp_path: Path) -> None:
    """Its holder has the connection open, and never answers."""
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})
    greeted: list[int] = []

    async def greet(child: Child) -> None:
        pid = int((await child.call("status"))["pid"])
        greeted.append(pid)
        if len(greeted) == 2:
            os.kill(pid, signal.SIGKILL)
        await child.call("status")

    async def main() -> None:
        home = Home(mount.settings.home)
        home.create()
        async with trio.open_nursery() as nursery:
            ring = EventRing(time.time_ns, lambda event: None)
            supervisor = Supervisor(home, ring, Launcher(), nursery)
            child = await supervisor.start(
                Plan("capture", MOUNT_ID, lambda: mount.settings, greet=greet), patient=False
            )
            await trio.sleep(2 * limits.CAPTURE_STABLE_S)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            await until_async(lambda: len(greeted) >= 3, limits.CONTROL_TIMEOUT_S / 2)
            await supervisor.stop("capture", MOUNT_ID)

    try:
        trio.run(main)
    finally:
        mount.close()


# A capture that waits for a file before it answers the kernel's first request; or that is killed there, once.
UNAGREED = """
import os, signal, sys, time
from replicator.capture.process import main
from replicator.fs.kernel_session import Session
what, file = {what!r}, {file!r}
real = Session._begin
def begin(*arguments):
    if what == "kill" and not os.path.exists(file):
        open(file, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists(file):
        time.sleep(0.01)
    real(*arguments)
Session._begin = begin
sys.exit(main())
"""


def test_it_serves_when_the_kernel_has_been_answered(tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = ("-c", UNAGREED.format(what="wait", file=str(go)))
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"}, program=program)
    states: list[str] = []
    try:
        mount.spawn()
        while not os.path.exists(mount.socket):
            time.sleep(0.01)
        asking = threading.Thread(target=lambda: states.append(mount.call("status")["state"]))
        asking.start()
        asking.join(0.5)
        assert mount.layers == 1 and not states
        go.touch()
        asking.join(CALL_TIMEOUT_S)
        assert states == ["serving"]
        mount.kill()  # from here on that is survived
        mount.start()
        assert os.listdir(mount.mountpoint) == []
        assert mount.layers == 1
        assert mount.stop() == 0
    finally:
        mount.close()


def test_killed_before_that_it_has_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = UNAGREED.format(what="kill", file=str(tmp_path / "killed"))
    command = property(lambda launch: [sys.executable, "-c", code, "--arguments", launch.arguments_file])
    monkeypatch.setattr(Launch, "command", command)
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})

    async def main() -> None:
        home = Home(mount.settings.home)
        home.create()
        async with trio.open_nursery() as nursery:
            ring = EventRing(time.time_ns, lambda event: None)
            supervisor = Supervisor(home, ring, Launcher(), nursery)
            plan = Plan("capture", MOUNT_ID, lambda: mount.settings)
            with pytest.raises(ChildError, match="cannot be started"):
                await supervisor.start(plan)
            child = await supervisor.start(plan)
            assert await trio.to_thread.run_sync(os.listdir, mount.mountpoint) == []
            former = child.pid
            assert former is not None
            os.kill(former, signal.SIGKILL)
            await until_async(lambda former=former: child.pid not in (None, former))
            assert await trio.to_thread.run_sync(os.listdir, mount.mountpoint) == []
            await supervisor.stop("capture", MOUNT_ID)

    try:
        trio.run(main)
        assert mount.layers == 0
    finally:
        mount.close()


def test_a_holder_that_is_killed_is_replaced(mount: CaptureMount) -> None:
    (mount.mountpoint / "f").write_text("x")
    with open(mount.mountpoint / "f") as file:
        for _ in range(2):
            former = holder_of(mount)
            os.kill(former, signal.SIGKILL)
            until(lambda former=former: holder_of(mount) not in (0, former))
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


def test_who_cannot_take_over_is_refused(mount: CaptureMount) -> None:
    (mount.mountpoint / "f").touch()
    with pytest.raises(ReplicatorError, match="cannot be reloaded: the new software"):
        mount.call("leave", format=resumption.FORMAT + 1)
    assert mount.process is not None and mount.process.poll() is None
    assert os.listdir(mount.mountpoint) == ["f"]


def test_the_other_binding_cannot_be_reloaded(tmp_path: Path) -> None:
    other = CaptureMount(tmp_path, settings={"binding": "pyfuse3"})
    try:
        other.start()
        with pytest.raises(ReplicatorError, match="pyfuse3 binding cannot hand a mount on"):
            other.call("leave", format=resumption.FORMAT)
        (other.mountpoint / "f").touch()
        assert other.stop() == 0
    finally:
        other.close()


def test_more_descriptors_than_a_process_may_have_at_first(mount: CaptureMount) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [f"d{number}" for number in range(400)]
    for name in names:
        (mount.mountpoint / name).mkdir()
        (mount.mountpoint / name / "f").touch()
    mount.kill()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # of the successor, too
    try:
        mount.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "cannot be taken over" not in mount.log()
    for name in names:
        assert os.listdir(mount.mountpoint / name) == ["f"]
    assert mount.layers == 1
