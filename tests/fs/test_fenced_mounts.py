"""Fences on real mounts: each way of changing something, in each mode of a fence, with both bindings; kills
and reloads of captures meanwhile. What the gate decides in detail: `tests/unit/test_fence.py`.
"""

import errno
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import fence_worker
from kit.fence_worker import CHANGES, LOOKS
from kit.mount import CALL_TIMEOUT_S, CaptureMount, replace_by_kill, replace_in_order
from kit.patience import until
from kit.trees import snapshot

from replicator.fences import FOREVER_NS, FenceMode
from replicator.fs.fence import FencePage, boottime_ns
from replicator.mount_options import DEFAULTS, MountOptions

pytestmark = pytest.mark.fs

KERNEL = ("kernel", DEFAULTS)
SERVED = [
    pytest.param(KERNEL, id="kernel"),
    pytest.param(("kernel", MountOptions(writes="direct", reads="passthrough")), id="direct"),
    pytest.param(("pyfuse3", DEFAULTS), id="pyfuse3"),
]
UNKNOWN = {"kernel": set[str](), "pyfuse3": {"allocate", "nameless"}}
WAITS_S = 0.3


class Fenced:
    """A mount with a fence, which is open."""

    def __init__(self, base: Path, binding: str, options: MountOptions) -> None:
        self.page = FencePage(str(base / "fence"))
        self.page.set(FenceMode.SUSPEND, FOREVER_NS)
        settings = {"binding": binding, "options": options, "fence": str(base / "fence")}
        self.mount = CaptureMount(base, settings=settings)
        unknown = UNKNOWN[binding]
        self.changes = [name for name in CHANGES if name not in unknown]

    def close(self) -> None:
        self.page.set(FenceMode.NONE, FOREVER_NS)  # nothing has to wait for ever
        self.mount.close()
        self.page.close()

    def below(self) -> dict[bytes, object]:
        """What is really there."""
        descriptor = self.mount.call_for_descriptor("root")
        try:
            return dict(snapshot(f"/proc/self/fd/{descriptor}/."))
        finally:
            os.close(descriptor)


@contextmanager
def serving(base: Path, binding: str, options: MountOptions) -> Iterator[Fenced]:
    made = Fenced(base, binding, options)
    try:
        made.mount.start().attach()
        yield made
    finally:
        made.close()


@pytest.fixture(params=SERVED)
def fenced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fenced]:
    with serving(tmp_path, *request.param) as made:
        yield made


@pytest.fixture(params=[SERVED[0], SERVED[2]])
def by_binding(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fenced]:
    with serving(tmp_path, *request.param) as made:
        yield made


class Worker:
    """See `fence_worker`."""

    def __init__(self, directory: Path, how: str, names: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, fence_worker.__file__, directory, how, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self.results: dict[str, int] = {}

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def ended(self) -> dict[str, int]:
        """How each of its operations did."""
        out, _ = self._process.communicate("go\n", timeout=CALL_TIMEOUT_S)
        return dict(map(json.loads, out.splitlines()))

    def has_said_anything(self) -> bool:
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        try:
            return os.read(self._process.stdout.fileno(), 1) != b""
        except BlockingIOError:
            return False
        finally:
            os.set_blocking(self._process.stdout.fileno(), True)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=CALL_TIMEOUT_S)


@contextmanager
def working(directory: Path, how: str, names: list[str]) -> Iterator[Worker]:
    worker = Worker(directory, how, names)
    try:
        yield worker
    finally:
        worker.end()


@pytest.mark.parametrize(
    ("mode", "number"), [(FenceMode.READ_ONLY, errno.EROFS), (FenceMode.IO_ERROR, errno.EIO)]
)
def test_refused(fenced: Fenced, mode: FenceMode, number: int) -> None:
    mount = fenced.mount
    with working(mount.mountpoint, "apart", [*fenced.changes, *LOOKS]) as worker:
        mount.records()
        before = fenced.below()
        fenced.page.set(mode, boottime_ns())
        found = worker.ended()
        refused = {name: found[name] for name in fenced.changes}
        # The kernel takes it, and tells of it when it is synced; older ones as an error of the disk.
        assert refused.pop("mapping") in (number, errno.EIO)
        assert refused == dict.fromkeys(refused, number)
        looks = {name: found[name] for name in LOOKS}
        if mode is FenceMode.IO_ERROR:
            assert looks["open"] == looks["open for writing"] == looks["list"] == looks["sync"] == errno.EIO
        else:
            assert looks.pop("open for writing") == errno.EROFS
            assert looks == dict.fromkeys(looks, 0)
        assert fenced.below() == before
        assert mount.records() == []


def test_waits_and_goes_on(fenced: Fenced, target: Path) -> None:
    mount = fenced.mount
    (mount.mountpoint / "looked at").write_bytes(b"content")
    with (
        working(mount.mountpoint, "together", fenced.changes) as worker,
        working(mount.mountpoint, "apart", list(LOOKS)) as looking,
    ):
        records = mount.records()
        before = fenced.below()
        fenced.page.set(FenceMode.FROZEN, boottime_ns())
        worker.go()
        time.sleep(WAITS_S)
        assert looking.ended() == dict.fromkeys(LOOKS, 0)
        assert (mount.mountpoint / "looked at").read_bytes() == b"content"
        assert not worker.has_said_anything()
        assert fenced.below() == before
        assert mount.records() == []
        fenced.page.set(FenceMode.SUSPEND, FOREVER_NS)
        assert worker.ended() == dict.fromkeys(fenced.changes, 0)
    assert fenced.below() != before
    mount.assert_replays([*records, *mount.records()], target)


def test_waits_and_is_refused(fenced: Fenced) -> None:
    """Another agent owns the group by now."""
    mount = fenced.mount
    with working(mount.mountpoint, "together", fenced.changes) as worker:
        mount.records()
        before = fenced.below()
        fenced.page.set(FenceMode.SUSPEND, boottime_ns())
        worker.go()
        time.sleep(WAITS_S)
        assert not worker.has_said_anything()
        fenced.page.set(FenceMode.READ_ONLY, 0)
        found = worker.ended()
        assert found.pop("mapping") in (errno.EROFS, errno.EIO)
        assert found == dict.fromkeys(found, errno.EROFS)
    assert fenced.below() == before
    assert mount.records() == []


@pytest.mark.parametrize(
    ("replace", "superseded"),
    [(replace_by_kill, False), (replace_in_order, True)],
    ids=["killed, then renewed", "reloaded, then superseded"],
)
def test_a_successor_obeys_the_same_fence(
    tmp_path: Path, target: Path, replace: Callable[[CaptureMount], None], superseded: bool
) -> None:
    fenced = Fenced(tmp_path, *KERNEL)
    mount = fenced.mount
    try:
        mount.start().attach()
        with working(mount.mountpoint, "together", fenced.changes) as worker:
            records = mount.records()
            before = fenced.below()
            fenced.page.set(FenceMode.SUSPEND, boottime_ns())
            worker.go()
            time.sleep(WAITS_S)
            for _ in range(2):
                replace(mount)
                time.sleep(WAITS_S)
                assert fenced.below() == before
                assert not worker.has_said_anything()
            if superseded:
                fenced.page.set(FenceMode.READ_ONLY, 0)
                found = worker.ended()
                assert found.pop("mapping") in (errno.EROFS, errno.EIO)
                assert found == dict.fromkeys(found, errno.EROFS)
                assert fenced.below() == before
            else:
                fenced.page.set(FenceMode.SUSPEND, FOREVER_NS)
                assert worker.ended() == dict.fromkeys(fenced.changes, 0)
                mount.assert_replays([*records, *mount.records()], target)
    finally:
        fenced.close()


def test_a_lease_that_lapses_by_itself(by_binding: Fenced) -> None:
    """Nobody has to say anything: time passes."""
    file = by_binding.mount.mountpoint / "file"
    file.write_bytes(b"first")
    by_binding.page.set(FenceMode.READ_ONLY, boottime_ns() + 300_000_000)
    file.write_bytes(b"second")
    time.sleep(0.35)
    with pytest.raises(OSError, match="Read-only file system"):
        file.write_bytes(b"third")
    assert file.read_bytes() == b"second"


def test_a_fence_comes_and_goes(by_binding: Fenced) -> None:
    file = by_binding.mount.mountpoint / "file"
    by_binding.page.set(FenceMode.READ_ONLY, 0)
    with pytest.raises(OSError, match="Read-only file system"):
        file.write_bytes(b"refused")
    by_binding.mount.call("set_fence", page="")
    file.write_bytes(b"taken")
    by_binding.mount.call("set_fence", page=by_binding.mount.settings.fence)
    with pytest.raises(OSError, match="Read-only file system"):
        file.write_bytes(b"refused")
    # What waits goes on when there is no fence any more.
    by_binding.page.set(FenceMode.SUSPEND, 0)
    with working_writer(file, b"waits") as process:
        time.sleep(WAITS_S)
        assert process.poll() is None
        by_binding.mount.call("set_fence", page="")
        assert process.wait(CALL_TIMEOUT_S) == 0
    assert file.read_bytes() == b"waits"


@contextmanager
def working_writer(file: Path, content: bytes) -> Iterator["subprocess.Popen[bytes]"]:
    program = f"import sys; open({str(file)!r}, 'wb').write({content!r})"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield process
    finally:
        process.kill()
        process.wait(CALL_TIMEOUT_S)


def test_a_mount_whose_page_is_missing_is_closed(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel", "fence": str(tmp_path / "nothing")})
    try:
        mount.start().attach()
        with pytest.raises(OSError, match="Read-only file system"):
            (mount.mountpoint / "file").write_bytes(b"x")
        assert "fence cannot be read" in mount.log()
    finally:
        mount.close()


def test_programs_see_what_is_there_and_not_what_was_refused(by_binding: Fenced) -> None:
    """A page of a mapping that was stored into while the fence was open, and came back when it was closed."""
    file = by_binding.mount.mountpoint / "file"
    file.write_bytes(b"a" * 8192)
    descriptor = os.open(file, os.O_RDWR)
    try:
        with mmap.mmap(descriptor, 8192) as mapping:
            mapping[:5] = b"store"
            by_binding.page.set(FenceMode.READ_ONLY, 0)
            with pytest.raises(OSError, match=r"Read-only file system|Input/output error"):
                mapping.flush()
            until(lambda: file.read_bytes()[:5] == b"aaaaa")  # it is forgotten by another thread
    finally:
        os.close(descriptor)


def test_a_forced_unmount_ends_what_waits(by_binding: Fenced) -> None:
    by_binding.page.set(FenceMode.SUSPEND, 0)
    with working_writer(by_binding.mount.mountpoint / "file", b"x") as process:
        time.sleep(WAITS_S)
        assert by_binding.mount.stop(force=True) == 0
        assert process.wait(CALL_TIMEOUT_S) != 0
    assert by_binding.mount.layers == 0
