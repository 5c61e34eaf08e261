"""A spool that is damaged, cannot be read (AD-03), or is full (AD-02): nothing is lost or done twice, and
no mirror is needed, because the source keeps what is not durable here.
"""

import errno
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.disk import Fault, ProcessDied
from kit.target_host import Host, die_at_once, mark, some_work
from kit.trees import assert_same_tree

from replicator.net.frames import MirrorBegin, MirrorEnd, TargetState
from replicator.queue import segment
from replicator.status import TargetDataState

SMALL = {"segment_bytes": 4096, "memory_bytes": 4 * 4096}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path, settings=SMALL)
    some_work(host.source)
    for number in range(60):
        host.source.create(b"f%d" % number)
        host.source.write(b"f%d" % number, 0, bytes([number]) * 500)
        host.source.rename(b"f%d" % number, b"g%d" % number)
    host.source.settle()
    host.record_everything()
    return host


def segments_of(host: Host) -> list[str]:
    """Of the spool, the oldest first, wherever they are."""
    paths = [path for path in host.disk.paths() if path.endswith(segment.SUFFIX)]
    return sorted(paths, key=lambda path: path.rpartition("/")[2])


def flip(host: Host, path: str) -> None:
    data = bytearray(host.disk.contents(path))
    data[len(data) // 2] ^= 0x10
    host.disk.damage(path, bytes(data))


def cut(host: Host, path: str) -> None:
    host.disk.damage(path, host.disk.contents(path)[: len(host.disk.contents(path)) // 2])


def remove(host: Host, path: str) -> None:
    host.disk.unlink(path)


def unreadable(host: Host, path: str) -> None:
    host.disk.fault = lambda number, name, where: (
        Fault(error=errno.EIO) if where == path and name in ("read", "open_read") else None
    )


Damage = Callable[[Host, str], None]
DAMAGES = (flip, cut, remove, unreadable)


async def spooled(host: Host, source: Any, begin: int = 0) -> int:
    """Everything arrives, while nothing is applied. Returns how many there are."""
    end = len(host.journal)
    for number in range(begin, end, 3):
        await source.send(*host.journal.run(number, min(number + 3, end)))
    await source.until(lambda: source.acknowledged.received[0] == end)
    return end


@pytest.mark.parametrize("place", [1, 4, 7], ids=lambda n: f"segment-{n}")
@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_cannot_be_read_comes_again(
    host: Host, damage: Damage, place: int, autojump_clock: Any
) -> None:
    async with host.receiver() as receiver:
        async with host.session(receiver) as (source, _):
            await source.send(MirrorBegin("m", "full"))
            await source.send(MirrorEnd("m", True))
            await source.send(*host.journal.run(0, 2))
            await source.applied(2)
            receiver.pause()
            end = await spooled(host, source, 2)
            assert len(segments_of(host)) > 8
            damage(host, segments_of(host)[place])
            receiver.resume()
            assert "queue is lost" in await source.until_ended()
        async with host.session(receiver) as (source, connected):
            (received,), (applied,) = connected.received, connected.applied
            assert received is not None and received == applied and 2 <= received.sequence < end
            assert received == mark(host.journal.positions[received.sequence])
            assert connected.data_state == TargetDataState.OK  # a state that was
            host.disk.heal()
            await source.send(*host.journal.run(received.sequence, end))
            await source.applied(end)
            assert source.data_states[-1] == TargetDataState.OK
    assert host.applied == [(0, number) for number in range(1, end + 1)]  # each of them once
    assert_same_tree(host.directory / "source", host.target)


@pytest.mark.parametrize("damage", DAMAGES[:3])
async def test_a_successor_finds_the_newest_segment_damaged(
    host: Host, damage: Damage, autojump_clock: Any
) -> None:
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(*host.journal.run(0, 5))
        await source.applied(5)
        receiver.pause()
        end = await spooled(host, source, 5)
    damage(host, segments_of(host)[-1])
    async with host.receiver() as receiver, host.session(receiver) as (source, connected):
        assert connected.received == connected.applied == (mark(host.journal.positions[5]),)
        assert not connected.power_lost
        await source.send(*host.journal.run(5, end))
        await source.applied(end)
    assert host.applied == [(0, number) for number in range(1, end + 1)]
    assert_same_tree(host.directory / "source", host.target)


@pytest.mark.parametrize("idle_s", [0, 10], ids=["at-once", "later"])
async def test_an_operation_in_doubt_when_its_spool_is_lost_too(
    tmp_path: Path, idle_s: int, autojump_clock: Any
) -> None:
    """Killed after each operation in turn, before that is noted: the source sends it again, and it is not
    done twice.
    """
    for number in range(1, 22):
        directory = tmp_path / str(number)
        directory.mkdir()
        host = Host(directory)
        some_work(host.source)
        host.record_everything()
        end = len(host.journal)
        host.after = lambda record, at=number: die_at_once() if record.sequence == at else None
        with pytest.raises(BaseExceptionGroup) as caught:
            async with host.receiver() as receiver, host.session(receiver) as (source, _):
                await source.send(MirrorBegin("m", "full"))
                await source.send(MirrorEnd("m", True))
                await source.send(*host.journal.run(0, end))
                await source.applied(end)
        assert caught.group_contains(ProcessDied)
        host.after = None
        flip(host, segments_of(host)[-1])
        async with host.receiver() as receiver:
            assert receiver.replica.state.data_state is TargetDataState.OK
            async with host.session(receiver) as (source, connected):
                (received,) = connected.received
                begin = received.sequence if received is not None else 0
                assert begin == number - 1
                await trio.sleep(idle_s)
                await source.send(*host.journal.run(begin, end))
                began = trio.current_time()
                await source.applied(end)
                assert trio.current_time() - began < 1, "an operation was tried again and again"
        assert_same_tree(directory / "source", host.target)


async def test_the_end_of_a_mirror_does_not_count_without_what_came_before(
    host: Host, autojump_clock: Any
) -> None:
    """What is on its way when the spool is lost follows on what is lost."""
    async with host.receiver() as receiver:
        async with host.session(receiver) as (source, _):
            await source.send(MirrorBegin("m", "full"))
            await source.until(lambda: source.data_states[-1:] == [TargetDataState.MIRRORING])
            receiver.pause()
            await spooled(host, source)
            remove(host, segments_of(host)[4])
            receiver.resume()
            await receiver._intake.append(MirrorEnd("m", True))  # before anybody noticed
            assert "queue is lost" in await source.until_ended()
            with pytest.raises(Exception, match="queue is lost"):
                await receiver._intake.take(MirrorEnd("m", True))
        async with host.session(receiver) as (source, connected):
            assert (connected.mirroring, connected.mirror_id) == (True, "m")
            assert connected.data_state == TargetDataState.MIRRORING


# --- a full one ---


async def test_the_source_is_told_to_wait_and_to_go_on(host: Host, autojump_clock: Any) -> None:
    """Once each, although a segment is freed and filled again and again meanwhile."""
    host.settings = {"segment_bytes": 4096, "memory_bytes": 8 * 4096, "disk_bytes": 0}
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        receiver.pause()
        for number in range(end):
            if source.events and source.state.queue_full:
                break
            await source.send(*host.journal.run(number, number + 1))
            await trio.sleep(0.01)
        assert 20 < number < end - 20 and receiver.status().spool_full
        await trio.sleep(60)
        assert source.acknowledged.received[0] == number - 1 and not source.ended  # the last one does not fit
        receiver.resume()
        await source.applied(number)
        await source.until(lambda: not source.state.queue_full)
        assert not receiver.status().spool_full
        for sent in range(number, end, 5):
            await source.send(*host.journal.run(sent, min(sent + 5, end)))
            await source.applied(min(sent + 5, end))
        told = [event.queue_full for event in source.events if isinstance(event, TargetState)]
        assert sum(one is not other for one, other in pairwise(told)) == 2
    assert host.applied == [(0, number) for number in range(1, end + 1)]


async def test_a_source_waits_until_a_quarter_is_free(host: Host, autojump_clock: Any) -> None:
    """Otherwise both would pause and resume for each segment."""
    host.settings = {"segment_bytes": 4096, "memory_bytes": 8 * 4096, "disk_bytes": 0}
    end = len(host.journal)
    slow = trio.Event()
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        receiver.pause()
        async with trio.open_nursery() as nursery:

            async def send_on() -> None:
                for number in range(end):
                    await source.send(*host.journal.run(number, number + 1))

            nursery.start_soon(send_on)
            await source.until(lambda: source.events != [] and source.state.queue_full)
            full_bytes = sum(receiver._spool.usage())
            used = []

            def after(_: object) -> None:
                receiver._intake.look_for_room()
                if receiver._intake.full:
                    used.append(sum(receiver._spool.usage()))
                else:
                    slow.set()

            host.after = after
            receiver.resume()
            await slow.wait()
            assert len(used) > 5 and min(used) > full_bytes * 3 // 4 - 4096
            await source.applied(end)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_spool_that_cannot_be_written_is_full(host: Host, number: int, autojump_clock: Any) -> None:
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(*host.journal.run(0, 5))
        await source.applied(5)
        host.disk.fault = lambda _, name, path: (
            Fault(error=number) if name == "append" and path.endswith(segment.SUFFIX) else None
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(source.send, *host.journal.run(5, end)))
            await source.until(lambda: source.state.queue_full)
            await trio.sleep(30)
            assert source.acknowledged.received == (5,) and not source.ended
            host.disk.heal()
            await source.applied(end)
            await source.until(lambda: not source.state.queue_full)
    assert host.applied == [(0, number) for number in range(1, end + 1)]
    assert_same_tree(host.directory / "source", host.target)
