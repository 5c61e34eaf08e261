"""A queue too small for what happens: only what was lost is looked at, and nothing of it is forgotten."""

import os
import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.topology import TICK_S, Connection, Mount, topology

from replicator.agent import shipper
from replicator.mirror import scan
from replicator.mirror.requirements import Requirement, requirements
from replicator.queue.dirty import DirtyMap
from replicator.repset import Filter
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim

DIRECTORIES, FILES = 12, 8
TINY = {"memory_bytes": 2 * 64 * 1024, "disk_bytes": 0}


class Looks:
    """What the scanner has looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: set[bytes] = set()
        look, read_names = scan.Source.look, scan.Source.read_names

        def noted_look(source: scan.Source, path: bytes, choice: scan.Choice) -> object:
            self.paths.add(path)
            return look(source, path, choice)

        def noted_names(
            source: scan.Source, directory: bytes, names: list[bytes], start: int, *more: object
        ) -> object:
            self.paths.update(scan.join(directory, name) for name in names[start:])
            return read_names(source, directory, names, start, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(scan.Source, "look", noted_look)
        monkeypatch.setattr(scan.Source, "read_names", noted_names)


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
    connection.assert_equal()
    assert connection.status.target_data_state is TargetDataState.OK


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
        looked = {path for path in looks.paths if path.split(b"/")[0] not in (b"d9", b"d10")}
        assert looked == {b"filler", b"d3/f1", b"d5/f0"}
        assert len(looks.paths) < 4 + 2 * (FILES + 2)
        # Two HOLEs name the filler; three other files were changed or have a new name.
        assert connection.status.sent_mirror_bytes - sent < 2 * 8 * 4096 + 3 * 10_000


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
        assert b"d2/f2" in looks.paths
        assert b"d1" not in looks.paths


@pytest.mark.parametrize("seed", range(12))
async def test_random_changes_with_losses(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    async with topology(100 + seed) as net:
        data = net.mount("data", **TINY)
        data.source.create(b"filler")
        chance = random.Random(seed)
        changes = RandomChanges(data.source, chance)
        changes.steps(80)
        connection = net.connect([data])
        await connection.drained()
        for _ in range(4):
            data.lost = 0

            def change() -> None:
                for _ in range(chance.randrange(1, 4)):
                    changes.steps(chance.randrange(1, 12))
                    if chance.random() < 0.3:
                        data.restart_writer()
                data.source.write(b"filler", 0, b"f" * 40_000)

            await lose_and_recover(connection, data, change)


# --- planted mistakes ---


def without(wrong: Callable[[Requirement], bool]) -> Callable[[DirtyMap, Filter], list[Requirement]]:
    return lambda dirty, rules: [needed for needed in requirements(dirty, rules) if not wrong(needed)]


def _untouched(dirty: DirtyMap, rules: Filter) -> list[Requirement]:
    return [Requirement(needed.path) for needed in requirements(dirty, rules)]


@pytest.mark.parametrize(
    "wrong",
    [
        _untouched,
        without(lambda needed: needed.path == b"d5/f0"),
        without(lambda needed: needed.path == b"d9"),
        without(lambda needed: needed.path == b"d10"),
        lambda dirty, rules: [Requirement(root) for root in rules.roots],
    ],
    ids=["trusts size and time", "no attributes", "no new names", "no removed names", "everything"],
)
async def test_planted_mistakes_are_found(
    wrong: Callable[[DirtyMap, Filter], list[Requirement]],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setattr(shipper, "requirements", wrong)
    with pytest.raises((AssertionError, ExceptionGroup)):
        await test_only_what_was_lost_is_looked_at(monkeypatch, autojump_clock)
