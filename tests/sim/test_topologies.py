"""One to many, sets over several mounts, sets with exclusions, commands, losses: whole senders and receivers
under virtual time.
"""

import os
import random
import stat
from pathlib import Path

import pytest
import trio
import trio.testing
from kit.patience import LONG_S, until_async
from kit.random_changes import RandomChanges
from kit.topology import SOURCE, Mount, topology
from kit.trees import build_random_tree

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.fs.apply import Applier
from replicator.ops import Kind, Record
from replicator.repset import Rule
from replicator.status import (
    ConnectionState,
    Dimension,
    MirrorStatus,
    ReplicationStatus,
    TargetDataState,
    TransmitMode,
)

pytestmark = pytest.mark.sim


def fill(mount: Mount, seed: int = 1, steps: int = 40) -> RandomChanges:
    changes = RandomChanges(mount.source, random.Random(seed))
    changes.steps(steps)
    return changes


# --- one to many ---


async def test_one_to_many_with_a_dead_target(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(1) as net:
        data = net.mount("data")
        changes = fill(data)
        near, far = net.connect([data], "near"), net.connect([data], "far")
        await near.drained()
        await far.drained()
        await far.kill_receiver()
        for _ in range(10):
            changes.steps(10)
            await near.drained()  # and waits for nobody
            near.assert_equal()
        assert not await far.applied(30)
        assert far.status.state is ConnectionState.ERROR and far.status.queued_ops > 0
        far.start_receiver()
        await far.drained()
        far.assert_equal()
        near.assert_equal()
        for connection in (near, far):
            assert connection.status.target_data_state is TargetDataState.OK
        assert far.status.mirror.kind == "full"  # the first one: what was queued was enough
        await until_async(lambda: data.writer.statistics().segments == 1, LONG_S)  # nobody needs more


async def test_one_to_many_with_a_slow_target(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(2) as net:
        data = net.mount("data")
        near, far = net.connect([data], "near"), net.connect([data], "far")
        net.network.part(SOURCE, "far")
        data.source.create(b"file")
        await near.drained()
        near.assert_equal()
        net.network.heal(SOURCE, "far")
        await far.drained()
        far.assert_equal()


# --- several mounts ---


async def test_order_across_two_mounts(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Two files, one on each mount, written in turn: the target never has them in the wrong order."""
    async with topology(3) as net:
        left, right = net.mount("left"), net.mount("right")
        for mount in (left, right):
            mount.source.create(b"file")
            mount.source.write(b"file", 0, b"%08d" % 0)
        connection = net.connect([left, right])
        await connection.drained()
        seen = set()
        chance = random.Random(3)

        def look() -> None:
            one, other = (int((connection.copy_of(m) / "file").read_bytes()) for m in (left, right))
            assert other <= one <= other + 1
            seen.add((one, other))

        def apply_and_look(applier: Applier, record: Record, **how: bool) -> None:
            apply(applier, record, **how)
            look()

        apply = Applier.apply  # a receiver applies many operations at a time: look after each of them
        monkeypatch.setattr(Applier, "apply", apply_and_look)
        number = 0
        for _ in range(8):
            if chance.random() < 0.5:  # a backlog: many records of both to merge at once
                connection.running.transmit_pause()
            for _ in range(12):
                number += 1
                for mount in (left, right):
                    # Stamps differ, as real ones do.
                    await trio.sleep(chance.choice((0.000001, 0.0003, 0.002)))
                    mount.source.write(b"file", 0, b"%08d" % number)
                    look()
            connection.running.transmit_start()
            if chance.random() < 0.3:
                net.network.cut(SOURCE, "target")
            for _ in range(300):
                await trio.sleep(0.0001)
                look()
        await connection.drained()
        connection.assert_equal()
        look()
        assert len(seen) > 10 and (number, number) in seen


async def test_two_mounts_mirrored_while_they_change(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(4) as net:
        mounts = [net.mount("left"), net.mount("right")]
        changes = [fill(mount, seed) for seed, mount in enumerate(mounts)]
        connection = net.connect(mounts)
        for number in range(30):
            changes[number % 2].steps(3)
            await trio.sleep(0.0005)
            if number == 15:
                await connection.kill_receiver()
                connection.start_receiver()
        await connection.drained()
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK


# --- rules ---


def excluding(mount: Mount, *excluded: str) -> list[Rule]:
    return [Rule(str(mount.root)), *(Rule(f"{mount.root}/{path}", include=False) for path in excluded)]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


async def test_excluded_directories(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(5) as net:
        data = net.mount("data")
        source = data.source
        for directory in (b"in", b"in/cache", b"cache"):
            source.mkdir(directory)
            source.create(directory + b"/file")
        rules = [*excluding(data, "cache", "in/*.tmp"), Rule(f"{data.root}/cache/kept")]
        connection = net.connect([data], rules=rules)
        await connection.drained()
        copy = connection.copy_of(data)
        assert names(copy) == ["cache", "in"] and names(copy / "in") == ["cache", "file"]
        assert names(copy / "cache") == []  # the way to what is included below it
        source.create(b"in/a.tmp")
        source.create(b"cache/more")
        source.mkdir(b"cache/kept")
        source.create(b"cache/kept/file")
        source.rename(b"in/file", b"in/file.tmp")  # out
        source.rename(b"in/a.tmp", b"in/a")  # in
        source.rename(b"in/cache", b"moved")  # within
        await connection.drained()
        assert names(copy) == ["cache", "in", "moved"] and names(copy / "in") == ["a"]
        assert names(copy / "cache") == ["kept"] and names(copy / "cache" / "kept") == ["file"]
        assert connection.status.target_data_state is TargetDataState.OK


async def test_renames_out_of_and_into_the_set(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(6) as net:
        data = net.mount("data")
        source = data.source
        source.mkdir(b"outside")
        source.mkdir(b"outside/tree")
        for number in range(20):
            source.create(b"outside/tree/%d" % number)
            source.write(b"outside/tree/%d" % number, 0, b"content of %d" % number)
        connection = net.connect([data], rules=excluding(data, "outside"))
        await connection.drained()
        copy = connection.copy_of(data)
        assert names(copy) == []
        source.rename(b"outside/tree", b"tree")
        source.write(b"tree/3", 0, b"changed in its new place")
        await connection.drained()
        assert [(copy / "tree" / str(n)).read_bytes() for n in (3, 4)] == [
            b"changed in its new place",
            b"content of 4",
        ]
        assert len(names(copy / "tree")) == 20
        source.rename(b"tree", b"outside/back")
        source.write(b"outside/back/4", 0, b"of no concern")
        await connection.drained()
        assert names(copy) == []
        assert connection.status.target_data_state is TargetDataState.OK


async def test_soft_links_leave_the_set(autojump_clock: trio.testing.MockClock) -> None:
    """LK-04."""
    async with topology(7) as net:
        data = net.mount("data")
        source = data.source
        source.mkdir(b"outside")
        source.symlink(b"moved", b"nowhere")
        source.symlink(b"deleted", b"nowhere")
        connection = net.connect([data], rules=excluding(data, "outside"))
        await connection.drained()
        copy = connection.copy_of(data)
        assert names(copy) == ["deleted", "moved"]
        source.rename(b"moved", b"outside/moved")
        source.unlink(b"deleted")
        source.symlink(b"outside/new", b"nowhere")
        source.rename(b"outside/new", b"came")
        await connection.drained()
        assert names(copy) == ["came"] and os.readlink(copy / "came") == "nowhere"


async def test_hard_links_over_the_border(autojump_clock: trio.testing.MockClock) -> None:
    """LK-10, LK-11, LK-13."""
    async with topology(8) as net:
        data = net.mount("data")
        source = data.source
        source.mkdir(b"outside")
        source.create(b"outside/file")
        source.write(b"outside/file", 0, b"content")
        connection = net.connect([data], rules=excluding(data, "outside"))
        await connection.drained()
        copy = connection.copy_of(data)
        source.link(b"outside/file", b"one")  # LK-10
        await connection.drained()
        source.link(b"outside/file", b"two")
        await connection.drained()
        assert (copy / "one").read_bytes() == b"content"
        assert os.path.samefile(copy / "one", copy / "two")
        source.link(b"outside/file", b"outside/third")
        source.rename(b"outside/third", b"three")  # LK-11
        await connection.drained()
        assert (copy / "three").read_bytes() == b"content"
        source.rename(b"two", b"outside/two")  # LK-13
        source.unlink(b"outside/two")
        source.write(b"one", 0, b"CONTENT")
        await connection.drained()
        assert names(copy) == ["one", "three"]
        assert (copy / "one").read_bytes() == (copy / "three").read_bytes() == b"CONTENT"


@pytest.mark.parametrize("how", ["renamed", "deleted"])
async def test_a_root_that_is_gone(how: str, autojump_clock: trio.testing.MockClock) -> None:
    """RS-15: a person decides."""
    async with topology(9) as net:
        data = net.mount("data")
        source = data.source
        for directory in (b"www", b"other"):
            source.mkdir(directory)
        if how == "renamed":
            source.create(b"www/file")
        connection = net.connect([data], rules=[Rule(f"{data.root}/www")])
        await connection.drained()
        copy = connection.copy_of(data)
        before = names(copy / "www")
        if how == "renamed":
            source.rename(b"www", b"away")
        else:
            source.rmdir(b"www")
        await until_async(lambda: connection.status.state is ConnectionState.ERROR, LONG_S)
        status = connection.status
        assert how in status.state_reason and "dtctl transmit start" in status.state_reason
        await trio.sleep(60)
        assert names(copy) == ["www"] and names(copy / "www") == before
        # Trying again without putting it back changes nothing.
        connection.running.transmit_start()
        await trio.sleep(60)
        assert connection.status.state is ConnectionState.ERROR
        assert names(copy) == ["www"] and names(copy / "www") == before
        if how == "renamed":
            source.rename(b"away", b"www")
        else:
            source.mkdir(b"www")
        source.create(b"www/new")
        connection.running.transmit_start()
        await connection.drained()
        assert names(copy / "www") == [*before, "new"]
        assert connection.status.state is ConnectionState.STARTED
        assert connection.status.target_data_state is TargetDataState.OK


# --- commands ---


async def test_transmission_stops_and_pauses(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(10) as net:
        data = net.mount("data")
        connection = net.connect([data])
        await connection.drained()
        mirrored = connection.status.sent_mirror_bytes
        changes = fill(data, 10, 0)
        for stop, state in (("transmit_pause", "Paused"), ("transmit_stop", "Stopped")):
            getattr(connection.running, stop)()
            before = connection.status.sent_ops
            changes.steps(20)
            assert not await connection.applied(60)
            assert (connection.status.state, connection.status.sent_ops) == (state, before)
            assert connection.status.queued_ops > 0
            connection.running.transmit_start()
            await connection.drained()
            connection.assert_equal()
            assert connection.status.state is ConnectionState.STARTED
        assert connection.status.sent_mirror_bytes == mirrored


async def test_replication_stops(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(11) as net:
        data = net.mount("data")
        connection = net.connect([data])
        changes = fill(data, 11)
        await connection.drained()
        connection.running.replicate_stop()
        data.source.create(b"not sent")
        await trio.sleep(10)
        status = connection.status
        assert status.replication_status is ReplicationStatus.STOPPED
        assert status.target_data_state is TargetDataState.MIRROR_REQUIRED
        assert not (connection.copy_of(data) / "not sent").exists()
        changes.steps(20)
        connection.running.replicate_start()
        data.source.create(b"sent again")
        await until_async((connection.copy_of(data) / "sent again").exists, LONG_S)
        await connection.drained()  # what happened meanwhile was tracked, and is brought
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK


async def test_a_mirror_pauses_and_stops(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(12) as net:
        data = net.mount("data")
        build_random_tree(data.root, 12, 150)
        connection = net.connect([data])
        await until_async(lambda: connection.status.sent_mirror_bytes > 0, LONG_S)
        connection.running.mirror_pause()
        await trio.sleep(1)
        sent = connection.status.sent_mirror_bytes
        assert connection.status.mirror_status is MirrorStatus.PAUSED
        data.source.create(b"meanwhile")
        await trio.sleep(60)
        assert connection.status.sent_mirror_bytes == sent
        connection.running.mirror_resume()
        with pytest.raises(ReplicatorError, match="no mirror is paused"):
            connection.running.mirror_resume()
        await connection.drained()
        connection.assert_equal()
        with pytest.raises(ReplicatorError, match="no mirror is running"):
            connection.running.mirror_pause()


async def test_a_mirror_that_was_stopped_is_required_again(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(13) as net:
        data = net.mount("data")
        build_random_tree(data.root, 13, 150)
        connection = net.connect([data])
        await until_async(lambda: connection.status.sent_mirror_bytes > 0, LONG_S)
        connection.running.mirror_stop()
        assert await connection.applied()
        assert connection.status.mirror.status is MirrorStatus.STOPPED
        assert connection.status.target_data_state is TargetDataState.MIRROR_REQUIRED
        with pytest.raises(ReplicatorError, match="no mirror"):
            connection.running.mirror_stop()
        connection.running.mirror_start("full")
        connection.running.mirror_start("difference")  # in its place
        await connection.drained()
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK


# --- losses ---


async def test_what_did_not_fit_is_brought(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(14) as net:
        data = net.mount("data", memory_bytes=4 * 64 * 1024, disk_bytes=0)
        changes = fill(data, 14)
        connection = net.connect([data])
        await connection.drained()
        connection.running.transmit_stop()
        data.source.create(b"large")
        for number in range(100):
            data.source.write(b"large", number * 8192, bytes([number]) * 8192)
        changes.steps(50)
        assert data.lost > 50
        connection.running.transmit_start()
        assert connection.status.target_data_state is TargetDataState.OK  # old, and a state that was
        await connection.drained()  # without another operation
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK


@pytest.mark.parametrize("happened", [False, True])
async def test_doubt_is_settled(happened: bool, autojump_clock: trio.testing.MockClock) -> None:
    """A capture was killed within an operation, whose record is missing whether it happened or not."""
    async with topology(15) as net:
        data = net.mount("data")
        fill(data, 15)
        data.source.create(b"doubtful")
        data.source.write(b"doubtful", 0, b"content")
        connection = net.connect([data])
        await connection.drained()
        mirrored = connection.status.sent_mirror_bytes
        if happened:
            with open(data.root / "doubtful", "r+b") as file:
                file.write(b"CONTENT")
            os.chmod(data.root / "doubtful", 0o600)
            os.mkdir(data.root / "renamed")
        for path in (b"doubtful", b"renamed", b"never was"):
            data.writer.append(Kind.DOUBT, path)
        data.source.create(b"afterwards")
        await connection.drained()
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK
        copy = connection.copy_of(data) / "doubtful"
        assert stat.S_IMODE(copy.stat().st_mode) == (0o600 if happened else 0o644)
        assert connection.status.sent_mirror_bytes - mirrored < 4096  # not all of it


# --- the story ---


async def test_the_story_tells_what_happened(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(40) as net:
        data = net.mount("data")
        data.source.create(b"a")
        connection = net.connect([data], "backup")
        await connection.drained()
        await connection.kill_receiver()
        await until_async(lambda: connection.status.state is ConnectionState.ERROR, LONG_S)
        await trio.sleep(60)
        connection.start_receiver()
        await until_async(lambda: connection.status.state is ConnectionState.STARTED, LONG_S)
        await connection.drained()
        connection.running.transmit_pause()
        connection.sender.transmit_stop()
        await trio.sleep(1)
        connection.sender.transmit_start()
        await connection.drained()
        told = [
            (e.event, e.after) for e in connection.sender.story.since() if e.dimension is Dimension.CONNECTION
        ]
        assert told == [
            ("sender started", "Stopped"),
            ("connected", "Started"),
            ("connection lost", "Error"),
            ("cannot connect", "Error"),
            ("connected again", "Started"),
            ("transmission paused", "Paused"),
            ("transmission stopped", "Stopped"),
            ("connected again", "Started"),
        ]
        again = next(e for e in connection.sender.story.since() if e.event == "connected again")
        assert again.lasted_s is not None and 60 <= again.lasted_s < 61 + limits.RECONNECT_MAX_S * 1.25
        data_told = [e.after for e in connection.sender.story.since() if e.dimension is Dimension.DATA]
        assert data_told == ["Mirroring", "OK"]
        connection.sender.stop()
        await trio.testing.wait_all_tasks_blocked()
        count = len(connection.sender.story.since())
        connection.start_sender()
        await connection.drained()
        assert connection.sender is not None
        later = connection.sender.story.since()[count:]
        assert [e.event for e in later if e.dimension is Dimension.CONNECTION] == [
            "sender started",
            "connected",
        ]


async def test_pending_until_a_mirror_begins(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(41) as net:
        data = net.mount("data")
        data.source.mkdir(b"root")
        rule = Rule(str(data.root / "root"), True, True)
        connection = net.connect([data], "backup", rules=[rule])
        await connection.drained()
        assert connection.status.replication_status is ReplicationStatus.READY
        data.source.rename(b"root", b"other")
        await until_async(lambda: connection.status.transmit_mode is TransmitMode.ERROR, LONG_S)
        assert connection.status.replication_status is ReplicationStatus.PENDING
        assert connection.status.state is ConnectionState.ERROR
        assert "put it back" in connection.status.state_reason
        connection.running.stop()
        await trio.testing.wait_all_tasks_blocked()
        connection.start_sender()  # it is still so, and says so
        assert connection.status.replication_status is ReplicationStatus.PENDING
        assert "put it back" in connection.status.state_reason


async def test_a_queue_that_is_full_says_so(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TRACK_ROOM_AWAY", 0)  # its sender would give way before
    async with topology(42) as net:
        data = net.mount("data", memory_bytes=4 * 64 * 1024, disk_bytes=0)
        data.source.create(b"file")
        connection = net.connect([data], "backup")
        await connection.drained()
        assert connection.status.mirror.status is MirrorStatus.IDLE
        await connection.kill_receiver()
        for _ in range(100):
            data.source.write(b"file", 0, b"x" * 10_000)
            await trio.sleep(0.1)
        await until_async(lambda: connection.status.replication_status is ReplicationStatus.OUT_OF_MEMORY, 10)
        connection.start_receiver()
        await connection.drained()
        await until_async(lambda: connection.status.replication_status is ReplicationStatus.READY, 10)
        connection.assert_equal()
        told = [
            (e.event, e.after)
            for e in connection.running.story.since()
            if e.dimension is Dimension.REPLICATION
        ]
        assert told[:2] == [("sender started", "Ready"), ("the queue is full", "Out of Memory")]
        assert told[-1][1] == "Ready"
