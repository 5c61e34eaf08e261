"""DK-01…03: while a connection keeps the lock of its copy, nobody but its receiver writes there, or reads."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.leftovers import mounts_below
from kit.patience import until
from kit.protected import Protected, protected
from kit.trees import assert_same_tree

from replicator.fs import target_lock
from replicator.status import TargetLock

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    with protected(tmp_path, connect=False) as pair:
        pair.source.mkdir()
        (pair.source / "file").write_text("first")
        yield pair


def refused(path: Path) -> bool:
    """Whether one cannot write there."""
    try:
        path.write_text("foreign")
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def beneath(pair: Protected) -> dict[str, str]:
    """The files of the copy, whatever lies over it."""
    (descriptor,) = target_lock.open_beneath([pair.copy])
    try:
        return {
            name: Path(f"/proc/self/fd/{descriptor}/{name}").read_text() for name in os.listdir(descriptor)
        }
    finally:
        os.close(descriptor)


def receiver_pid(pair: Protected) -> int:
    def found() -> int | None:
        (target,) = pair.beta.json("target", "list")
        return target["pid"] if target["status"] is not None else None

    return int(until(found))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def lock(pair: Protected) -> TargetLock:
    return target_lock.held([pair.copy])


def test_read_only_until_the_connection_ends(pair: Protected) -> None:
    pair.connect("--lock", "read-only")
    assert pair.status["target_lock"] == "read-only"
    assert_same_tree(pair.source, pair.copy)
    assert refused(pair.copy / "file")
    assert refused(pair.copy / "new")
    assert not refused(pair.copy.parent / "beside")  # DK-03
    assert not refused(pair.source / "new")  # DK-01: the source is as ever
    pair.drained()
    assert (pair.copy / "new").read_text() == "foreign"  # and what it got is on the copy
    assert "read-only" in pair.beta.dtctl("target", "list").out
    pair.alpha.json("disconnect", pair.id)
    until(lambda: lock(pair) is TargetLock.NONE)
    assert not refused(pair.copy / "file")


@pytest.mark.parametrize("kind", ["read-only", "locked"])
def test_it_outlives_kills_of_receiver_and_agent(pair: Protected, kind: str) -> None:
    pair.connect("--lock", kind)
    for number in range(3):
        kill(receiver_pid(pair))
        assert lock(pair) == kind
        assert refused(pair.copy / "foreign")
        (pair.source / "file").write_text(f"receiver {number}")
        pair.drained()
        assert beneath(pair) == {"file": f"receiver {number}"}
    receiver = receiver_pid(pair)
    pair.beta.kill()
    kill(receiver)
    assert lock(pair) == kind
    assert refused(pair.copy / "foreign")
    (pair.source / "file").write_text("nobody there")
    pair.beta.start()
    pair.drained()
    assert beneath(pair) == {"file": "nobody there"}
    assert mounts_below(pair.copy.parent).count(str(pair.copy)) == 1
    assert lock(pair) == kind


def test_locked_shows_nothing_and_a_clean_stop_keeps_it(pair: Protected) -> None:
    pair.connect("--lock", "locked")
    assert os.listdir(pair.copy) == []  # DK-02
    assert (pair.source / "file").read_text() == "first"
    pair.beta.stop()
    assert lock(pair) is TargetLock.LOCKED
    pair.beta.start()
    (pair.source / "file").write_text("second")
    pair.drained()
    assert beneath(pair) == {"file": "second"}
    uuid = pair.status["uuid"]
    pair.alpha.stop()
    pair.beta.json("target", "forget", uuid)  # the source is gone: the copy is to be used
    until(lambda: lock(pair) is TargetLock.NONE)
    assert (pair.copy / "file").read_text() == "second"


def test_stopping_the_mounts_takes_locks_along_and_a_start_makes_them_again(pair: Protected) -> None:
    pair.connect("--lock", "read-only")
    pair.beta.stop()
    stopped = pair.beta.dtd("--stop-mounts")
    assert stopped.code == 0, stopped.err
    assert lock(pair) is TargetLock.NONE
    pair.beta.start()
    until(lambda: lock(pair) is TargetLock.READ_ONLY)
    (pair.source / "file").write_text("second")
    pair.drained()
    assert (pair.copy / "file").read_text() == "second"


def test_what_somebody_mounted_in_the_copy_is_left_alone(pair: Protected) -> None:
    (pair.source / "inside").mkdir()
    pair.connect()
    pair.alpha.json("disconnect", pair.id)
    inside = pair.copy / "inside"
    subprocess.run(["mount", "-t", "tmpfs", "none", str(inside)], check=True, timeout=10)
    try:
        pair.connect("--lock", "read-only")
        assert not refused(inside / "mine")
        assert refused(pair.copy / "file")
        pair.alpha.json("disconnect", pair.id)
        until(lambda: lock(pair) is TargetLock.NONE)
        assert (inside / "mine").read_text() == "foreign"
    finally:
        subprocess.run(["umount", str(inside)], check=True, timeout=10)


def test_what_cannot_be_locked_is_refused_with_a_reason(pair: Protected) -> None:
    """A copy that is captured for a further one; and the reverse."""
    pair.copy.mkdir()
    pair.beta.json("mount", "add", pair.copy)
    target = f"{pair.beta.address}:{pair.copy}"
    answer = pair.alpha.dtctl("protect", pair.source, target, "--lock", "locked")
    assert answer.code == 1
    assert "it is captured here" in answer.err
    pair.beta.json("mount", "remove", pair.copy)
    pair.connect("--lock", "locked")
    answer = pair.beta.dtctl("mount", "add", pair.copy)
    assert answer.code != 0
    assert "is locked" in answer.err
    answer = pair.alpha.dtctl("protect", pair.source, target, "--lock", "some")
    assert answer.code == 2
    assert "read-only" in answer.err
