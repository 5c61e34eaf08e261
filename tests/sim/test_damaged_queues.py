"""Queues that are damaged, cannot be read (AD-03) or are full at the target (AD-02), in whole agents: both
sides go on by themselves, and end equal.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from kit.disk import Fault, MemoryDisk
from kit.topology import SEGMENT_BYTES, Connection, Mount, Topology, topology

from replicator.queue import segment
from replicator.sender.flow import Flow
from replicator.sender.mirrors import Mirrors
from replicator.status import ConnectionState, Dimension, TargetDataState, TransmitMode

pytestmark = pytest.mark.sim

SMALL = {"memory_bytes": 2 * SEGMENT_BYTES}


def segments_of(disk: MemoryDisk, *directories: str) -> list[str]:
    """The oldest first."""
    paths = [p for d in directories for p in disk.paths(d + "/") if p.endswith(segment.SUFFIX)]
    return sorted(paths, key=lambda path: path.rpartition("/")[2])


def flip(disk: MemoryDisk, path: str) -> None:
    data = bytearray(disk.contents(path))
    data[len(data) // 2] ^= 0x10
    disk.damage(path, bytes(data))


def remove(disk: MemoryDisk, path: str) -> None:
    disk.unlink(path)


def unreadable(disk: MemoryDisk, path: str) -> None:
    disk.fault = lambda number, name, where: (
        Fault(error=errno.EIO) if where == path and name in ("read", "open_read") else None
    )


Damage = Callable[[MemoryDisk, str], None]
DAMAGES = (flip, remove, unreadable)


def disk_of(world: object) -> MemoryDisk:
    disk = getattr(world, "disk")  # noqa: B009
    assert isinstance(disk, MemoryDisk)
    return disk


async def build(net: Topology) -> tuple[Mount, Connection]:
    data = net.mount("data", **SMALL)
    for number in range(10):
        data.source.create(b"f%d" % number)
        data.source.write(b"f%d" % number, 0, b"old" * 1000)
    data.source.create(b"hidden")
    data.source.write(b"hidden", 0, b"old" * 1000)
    connection = net.connect([data])
    await connection.drained()
    return data, connection


async def backlog(data: Mount, connection: Connection) -> list[str]:
    """Eight segments of changes that the target does not have, one of them with its mtime put back."""
    connection.running.transmit_pause()
    await trio.sleep(1)
    mtime_ns = os.stat(data.root / "hidden").st_mtime_ns
    for number in range(120):
        data.source.write(b"f%d" % (number % 10), number // 10 * 4096, bytes([number]) * 4096)
    data.source.write(b"hidden", 0, b"new" * 1000)
    data.source.utime(b"hidden", mtime_ns)
    data.source.create(b"later")
    await trio.sleep(1000)  # long enough for a sender that is alive to believe what is stored
    found = segments_of(disk_of(data._world), data.settings.memory_directory, data.settings.disk_directory)
    assert len(found) >= 8
    return found


@pytest.mark.parametrize("place", [2, 5])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_journal_is_compared(
    damage: Damage, place: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    since: list[int] = []
    distrust_since = Mirrors.distrust_since

    def noted(mirrors: Mirrors, wall_ns: int, now: bool) -> None:
        assert now
        since.append(wall_ns)
        distrust_since(mirrors, wall_ns, now)

    monkeypatch.setattr(Mirrors, "distrust_since", noted)
    async with topology(51) as net:
        data, connection = await build(net)
        passed_ns = net.world.clock.wall_ns()
        found = await backlog(data, connection)
        damage(disk_of(data._world), found[place])
        connection.running.transmit_resume()
        await connection.drained()
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK
        disk_of(data._world).heal()
        told = [e for e in connection.running.story.since() if e.dimension is Dimension.REPLICATION]
        assert any("the journal" in e.reason and e.after == "Pending" for e in told)
        # What changed since the last operation that was sent must not be believed by its size and mtime.
        assert since and abs(since[0] - passed_ns) < 2_000_000_000
        data.source.create(b"afterwards")
        sent = connection.status.sent_mirror_bytes
        await connection.drained()
        connection.assert_equal()
        assert connection.status.sent_mirror_bytes == sent  # captured and sent as ever


@pytest.mark.parametrize("place", [0, 1, 4])
async def test_an_error_that_passes_costs_nothing(place: int, autojump_clock: trio.testing.MockClock) -> None:
    async with topology(52) as net:
        data, connection = await build(net)
        disk = disk_of(data._world)
        found = await backlog(data, connection)
        sent = connection.status.sent_mirror_bytes
        failures = 0

        def fault(number: int, name: str, where: str) -> Fault | None:
            nonlocal failures
            if where == found[place] and name in ("read", "open_read") and not failures:
                failures += 1
                return Fault(error=errno.EIO)
            return None

        disk.fault = fault
        connection.running.transmit_resume()
        await connection.drained()
        assert failures
        connection.assert_equal()
        assert connection.status.sent_mirror_bytes == sent


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_spool_is_sent_again(damage: Damage, autojump_clock: trio.testing.MockClock) -> None:
    async with topology(53) as net:
        data, connection = await build(net)
        sent = connection.status.sent_mirror_bytes
        assert connection.receiver is not None
        connection.receiver.pause()
        for number in range(120):
            data.source.write(b"f%d" % (number % 10), number // 10 * 4096, bytes([number]) * 4096)
        data.source.rename(b"f1", b"g1")
        await trio.sleep(5)
        disk = disk_of(connection.world)
        found = segments_of(disk, "/memory/spool", str(Path(connection.receiver._directory) / "spool"))
        assert len(found) >= 8
        damage(disk, found[4])
        connection.receiver.resume()
        await connection.drained()
        connection.assert_equal()
        assert connection.status.target_data_state is TargetDataState.OK
        assert connection.status.sent_mirror_bytes == sent  # by the journal alone


async def test_a_full_spool_pauses_and_resumes_the_source(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(55) as net:
        data = net.mount("data")
        data.source.create(b"f")
        connection = net.connect([data], start=False)
        connection.start_receiver(memory_bytes=4 * SEGMENT_BYTES, disk_bytes=0)
        connection.start_sender()
        await connection.drained()
        sent = connection.status.sent_mirror_bytes
        assert connection.receiver is not None
        connection.receiver.pause()
        for number in range(200):  # the first hundred are on their way before anybody notices
            data.source.write(b"f", number * 4096, bytes([number]) * 4096)
            await trio.sleep(30 if number == 100 else 0)
        await trio.sleep(30)
        status = connection.status
        assert (status.state, status.target_queue_full) == (ConnectionState.PAUSED, True)
        assert "queue is full" in status.state_reason and status.transmit_mode is TransmitMode.STARTED
        assert status.queued_bytes > 99 * 4096  # it waits here
        await trio.sleep(300)
        connection.receiver.resume()
        await connection.drained()
        connection.assert_equal()
        status = connection.status
        assert (status.state, status.state_reason, status.target_queue_full) == ("Started", "", False)
        assert (status.target_data_state, status.sent_mirror_bytes) == (TargetDataState.OK, sent)
        told = [e.event for e in connection.running.story.since() if e.dimension is Dimension.CONNECTION]
        assert "the target's queue is full" in told and "the target's queue has room again" in told


async def test_a_planted_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A journal that cannot be read is tried again for ever."""
    session_ended = Flow.session_ended

    def never_damaged(flow: Flow) -> None:
        session_ended(flow)
        flow.damaged_at = None

    monkeypatch.setattr(Flow, "session_ended", never_damaged)
    async with topology(54) as net:
        data, connection = await build(net)
        found = await backlog(data, connection)
        flip(disk_of(data._world), found[3])
        connection.running.transmit_resume()
        assert not await connection.applied(timeout_s=300)
