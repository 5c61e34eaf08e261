"""A queue too small for what happens: only what was lost is looked at, and nothing of it is forgotten."""

import os
import random
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import trio
import trio.testing
from kit import random_changes
from kit.random_changes import RandomChanges
from kit.topology import TICK_S, Connection, Mount, Topology, topology

from replicator import limits
from replicator.mirror import requirements, scan
from replicator.mirror.order import Order
from replicator.mirror.patches import PatchRequest
from replicator.mirror.requirements import require_dirty
from replicator.queue.dirty import Dirty, Scope
from replicator.repset import Filter
from replicator.sender import amending, decider
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim

DIRECTORIES, FILES = 12, 8
TINY = {"memory_bytes": 2 * 64 * 1024, "disk_bytes": 0}


@pytest.fixture(autouse=True)
def never_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue gets full: no sender gives way before (see test_tracking.py)."""
    monkeypatch.setattr(limits, "TRACK_ROOM_AWAY", 0)
    monkeypatch.setattr(limits, "TRACK_ROOM_CONNECTED", 0)


class Looks:
    """What the scanner has looked at, listed the names of, and read the contents of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: set[bytes] = set()
        self.lists: set[bytes] = set()
        self.patched: set[bytes] = set()
        self.bytes = 0
        look, read_names, pread = scan.Source.look, scan.Source.read_names, os.pread
        read_names_of, open_patch = amending.read_names_of, amending.open_patch

        def noted_look(source: scan.Source, path: bytes, choice: scan.Choice) -> object:
            self.paths.add(path)
            return look(source, path, choice)

        def noted_names(
            source: scan.Source, directory: bytes, names: list[bytes], start: int, *more: object
        ) -> object:
            self.paths.update(scan.join(directory, name) for name in names[start:])
            return read_names(source, directory, names, start, *more)  # type: ignore[arg-type]

        def noted_list(source: scan.Source, path: bytes) -> object:
            self.lists.add(path)
            return read_names_of(source, path)

        def noted_patch(source: scan.Source, request: PatchRequest) -> object:
            self.patched.add(request.path)
            return open_patch(source, request)

        def noted_pread(descriptor: int, size: int, offset: int) -> bytes:
            data = pread(descriptor, size, offset)
            self.bytes += len(data)
            return data

        monkeypatch.setattr(scan.Source, "look", noted_look)
        monkeypatch.setattr(scan.Source, "read_names", noted_names)
        monkeypatch.setattr(amending, "read_names_of", noted_list)
        monkeypatch.setattr(amending, "open_patch", noted_patch)
        monkeypatch.setattr(os, "pread", noted_pread)


def fill_queue(data: Mount) -> None:
    """To the last byte: not even a HOLE fits any more."""
    number = 0
    for size in (4096, 1):
        lost = data.lost
        while data.lost == lost:
            data.source.write(b"filler", number % 8 * 4096, bytes([number % 256]) * size)
            number += 1


async def lose_and_recover(connection: Connection, data: Mount, change: Callable[[], object]) -> None:
    connection.running.transmit_stop()
    fill_queue(data)
    lost = data.lost
    change()
    assert data.lost > lost
    connection.running.transmit_start()
    # Only when there is room: `drained` journals the mtimes of all that is there.
    with trio.fail_after(600):
        while data.writer.statistics().segments > 1 or not data.writer.record_losses():
            await trio.sleep(TICK_S)
            data.writer.collect()
    await connection.drained()


def build(data: Mount) -> None:
    source = data.source
    source.create(b"filler")
    for directory in range(DIRECTORIES):
        source.mkdir(b"d%d" % directory)
        for file in range(FILES):
            source.create(b"d%d/f%d" % (directory, file))
            source.write(b"d%d/f%d" % (directory, file), 0, b"%05d" % file * 2000)


def change_some(data: Mount) -> None:
    """In place with the mtime put back, attributes, a new file, a file removed: in four directories."""
    source = data.source
    mtime_ns = os.stat(data.root / "d3/f1").st_mtime_ns
    source.write(b"d3/f1", 4096, b"other")
    source.utime(b"d3/f1", mtime_ns)
    source.chmod(b"d5/f0", 0o600)
    source.create(b"d9/new")
    source.write(b"d9/new", 0, b"new")
    source.rename(b"d9/f1", b"d9/g1")
    source.unlink(b"d10/f2")


async def test_only_what_was_lost_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with topology(31) as net:
        data = net.mount("data", **TINY)
        build(data)
        connection = net.connect([data])
        await connection.drained()
        looks = Looks(monkeypatch)
        sent = connection.status.sent_mirror_bytes
        await lose_and_recover(connection, data, lambda: change_some(data))
        assert looks.patched == {b"filler", b"d3/f1", b"d5/f0"}
        assert looks.paths == {b"d9/new", b"d9/g1"}
        assert looks.lists == {b"d9", b"d10"}
        # Two HOLEs name the filler; then one block, and the two files with new names.
        assert looks.bytes <= 2 * 8 * 4096 + 4096 + 10_000 + 3
        assert connection.status.sent_mirror_bytes - sent < looks.bytes + 4096
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK


async def test_a_killed_capture_has_forgotten_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with topology(32) as net:
        data = net.mount("data", **TINY)
        build(data)
        connection = net.connect([data])
        await connection.drained()
        looks = Looks(monkeypatch)

        def change() -> None:
            change_some(data)
            data.restart_writer()
            data.source.chmod(b"d2/f2", 0o640)

        await lose_and_recover(connection, data, change)
        assert b"d2/f2" in looks.patched
        assert looks.lists == {b"d9", b"d10"}
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK


async def one_run(seed: int, *, faults: bool) -> None:
    """Losses while nothing is sent, while a recovery or the first mirror runs, and between faults."""
    chance = random.Random(seed)
    # Every other tree has files of many blocks, so that there are regions among them.
    random_changes.SIZE_MAX = 400 if seed % 2 else 20_000
    async with topology(100 + seed) as net:
        data = net.mount("data", **TINY)
        data.source.create(b"filler")
        changes = RandomChanges(data.source, chance)
        changes.steps(80)
        connection = net.connect([data])
        if chance.random() < 0.7:  # else the first mirror is still to come
            await connection.drained()
        for _ in range(4):
            connection.running.transmit_stop()
            await trio.sleep(chance.choice((0, 0.001, 0.01)))
            fill_queue(data)
            for _ in range(chance.randrange(1, 4)):
                changes.steps(chance.randrange(1, 12))
                if chance.random() < 0.3:
                    data.restart_writer()
            connection.running.transmit_start()
            for _ in range(chance.randrange(5, 40)):
                changes.steps(chance.choice((0, 1, 1, 3, 10)))
                if chance.random() < 0.1:
                    data.source.write(b"filler", 0, b"f" * 40_000)
                await trio.sleep(chance.choice((0, 0.0002, 0.001, 0.01, 0.3)))
                if faults and chance.random() < 0.08:
                    await fault(net, connection, chance)
            if chance.random() < 0.6:
                await settled(connection, data)
        await settled(connection, data)


async def settled(connection: Connection, data: Mount) -> None:
    with trio.fail_after(600):
        while data.writer.statistics().segments > 1 or not data.writer.record_losses():
            await trio.sleep(TICK_S)
            data.writer.collect()
    await connection.drained()
    connection.assert_equal()
    assert connection.status.target_data_state is TargetDataState.OK


async def fault(net: Topology, connection: Connection, chance: random.Random) -> None:
    which = chance.choice(("cut", "sender", "receiver", "both", "capture"))
    if which == "cut":
        net.network.cut("source", "target")
    if which == "capture":
        connection.mounts[0].restart_writer()
    if which in ("sender", "both"):
        await connection.kill_sender()
        connection.start_sender()
    if which in ("receiver", "both"):
        await connection.kill_receiver()
        connection.start_receiver()
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("faults", [False, True], ids=["calm", "faults"])
@pytest.mark.parametrize("seed", range(12))
async def test_random_changes_with_losses(
    seed: int, faults: bool, small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    await one_run(seed, faults=faults)


async def test_a_recovery_that_begins_before_the_end_of_another_is_heard_of(
    small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    """The target was about to be exact: it must be so after the second as well."""
    await one_run(578, faults=False)


# --- planted mistakes ---


Wrong = Callable[[list[Dirty]], list[Dirty]]


def without(path: bytes) -> Wrong:
    return lambda dirty: [entry for entry in dirty if entry.path != path]


def _no_regions(dirty: list[Dirty]) -> list[Dirty]:
    return [entry._replace(regions=()) for entry in dirty]


def _whole(dirty: list[Dirty]) -> list[Dirty]:
    return [entry._replace(scope=entry.scope | Scope.WHOLE) if entry.regions else entry for entry in dirty]


def _trees(dirty: list[Dirty]) -> list[Dirty]:
    return [
        entry._replace(scope=entry.scope | Scope.TREE) if entry.scope & Scope.NAMES else entry
        for entry in dirty
    ]


@pytest.mark.parametrize(
    "wrong",
    [_no_regions, _whole, _trees, without(b"d5/f0"), without(b"d9"), without(b"d10")],
    ids=[
        "no contents",
        "whole files",
        "whole trees",
        "no attributes",
        "no names",
        "none removed",
    ],
)
async def test_planted_mistakes_are_found(
    wrong: Wrong, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def wrongly(dirty: Iterable[Dirty], rules: Filter, order: Order, *, in_place: bool) -> None:
        require_dirty(wrong(list(dirty)), rules, order, in_place=in_place)

    monkeypatch.setattr(decider, "require_dirty", wrongly)
    with pytest.raises((AssertionError, ExceptionGroup)):
        await test_only_what_was_lost_is_looked_at(monkeypatch, autojump_clock)


def test_random_runs_find_a_planted_mistake(small_limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = requirements._spans
    monkeypatch.setattr(requirements, "_spans", lambda entry: spans(entry)[:1])
    for seed in range(400, 600):  # one in about twenty
        try:
            trio.run(partial(one_run, seed, faults=True), clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            assert group.subgroup(AssertionError) is not None
            return
    raise AssertionError("no run found it")
