"""A target takes over, both sides write, and the former source becomes a copy of the new one: what both have
changed travels, and nothing else.
"""

import os
import random
from collections.abc import Iterator

import msgspec
import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate
from kit.taking_over import Back, open_reader, opened, tails_of, take_over

from replicator import limits
from replicator.errors import JournalError
from replicator.failovers import Promotion
from replicator.ops import Position, Record
from replicator.queue.cursor import Cursor
from replicator.queue.dirty import DirtyMap
from replicator.sender.arguments import SenderOptions
from replicator.sender.flow import Flow
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim

SEEDS = int(os.environ.get("TAKE_OVER_SEEDS", "2"))
ZEROS = frozenset({"holes"})
"""Not looked at: what has lost its data reads as zeros, be they a hole or not, and contents are compared."""
FULL = SenderOptions(mirror="full")


async def become_cold(simulation: Simulation) -> None:
    with trio.fail_after(600):
        await trio.sleep(limits.ACTIVITY_LOOK_S)
        while simulation.keeper.is_hot:  # noqa: ASYNC110 -- nobody tells
            await trio.sleep(limits.ACTIVITY_LOOK_S)


async def disturbed(back: Back, changes: RandomChanges, chance: random.Random) -> None:
    """While the former source is brought up to date, processes are killed, and programs write on."""
    for _ in range(5):
        await trio.sleep(chance.choice((0, 0.0005, 0.002, 0.01, 0.3)))
        await back.interrupt(chance.random(), 0.2, 0.5, 0.8)
        changes.steps(3)


async def goes_on(back: Back, changes: RandomChanges, ignore: frozenset[str] = frozenset()) -> None:
    await back.drained()
    back.assert_equal(ignore)
    assert back.status.target_data_state is TargetDataState.OK
    changes.steps(20)
    await back.drained()
    back.assert_equal(ignore)


async def lived_through(forward: Simulation, chance: random.Random, how: str) -> RandomChanges:
    """Until the target is to take over: what the source did last may be on its way, or not there yet."""
    here = RandomChanges(forward.source, chance)
    here.steps(60)
    await forward.drained()
    if how == "cold":  # what the source's storage may lose is noted from here on
        await become_cold(forward)
    if how == "left behind":
        assert forward.receiver is not None
        forward.receiver.pause()
    here.steps(chance.choice((0, 10, 40)))
    await trio.sleep(chance.choice((0, 0.001, 0.01, 1)))
    if how in ("power", "cold"):
        await forward.lose_source_power()
    elif how != "alive":
        await forward.kill_sender()
    return here


@pytest.mark.parametrize("how", ["dead", "alive", "left behind", "power", "cold"])
@pytest.mark.parametrize("disturbs", [False, True], ids=["", "disturbed"])
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_both_sides_write(
    how: str, disturbs: bool, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(f"{how} {disturbs} {seed}")
    async with simulate(seed, options=FULL, losing=how in ("power", "cold")) as forward:
        here = await lived_through(forward, chance, how)
        record = await take_over(forward, drain=how != "left behind")
        here.steps(chance.choice((0, 5, 30)))
        await trio.sleep(chance.choice((0, 3)))  # a source that lives finds out
        back = opened(forward, record, seed + 5000)
        there = RandomChanges(back.source, chance)
        there.steps(chance.choice((0, 5, 30)))
        tails = await tails_of(forward, record)
        if how != "power":
            assert None not in tails.values()
        back.prepare(tails, record)
        back.start()
        if disturbs:
            await disturbed(back, there, chance)
        await goes_on(back, there, ZEROS if how in ("power", "cold") else frozenset())


@pytest.mark.parametrize("seed", range(3 * SEEDS))
async def test_a_tail_that_only_the_dirt_has(
    seed: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal was full meanwhile, so what changed was tracked, and the journal has forgotten it."""
    chance = random.Random(f"dirt {seed}")
    async with simulate(seed, options=FULL) as forward:
        here = await lived_through(forward, chance, "dead")
        record = await take_over(forward)
        here.steps(chance.choice((5, 30)))
        sender = forward.start_sender()
        sender.supersede("superseded")
        sender._sessions.leave("the queue is nearly full")
        await trio.sleep(chance.choice((1, 60)))
        here.steps(chance.choice((0, 5)))
        back = opened(forward, record, seed + 5000)
        there = RandomChanges(back.source, chance)
        there.steps(chance.choice((0, 5, 30)))
        fork = Position(*record.copies[0].marks[forward.journal_id])
        records_after = Flow.records_after

        def forgotten(flow: Flow, position: Position) -> Iterator[Record]:
            if position == fork and position != flow.position:
                raise JournalError("no longer in the journal")
            return records_after(flow, position)

        monkeypatch.setattr(Flow, "records_after", forgotten)
        tails = await tails_of(forward, record)
        assert None not in tails.values()
        back.prepare(tails, record)
        back.start()
        await goes_on(back, there)


@pytest.mark.parametrize("sender", [False, True], ids=["", "it tracks"])
@pytest.mark.parametrize("seed", range(4 * SEEDS))
async def test_an_owner_loses_power_before_it_was_ever_connected(
    sender: bool, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Its journal is another one then than that in which it took over."""
    chance = random.Random(f"owner {sender} {seed}")
    async with simulate(seed, options=FULL) as forward:
        here = await lived_through(forward, chance, "dead")
        record = await take_over(forward)
        here.steps(chance.choice((0, 5)))
        back = opened(forward, record, seed + 5000, losing=True)
        back.restored = msgspec.structs.replace(back.restored, waits="not prepared")
        there = RandomChanges(back.source, chance)
        there.steps(chance.choice((0, 5, 30)))
        if sender:
            back.start_sender()
        await trio.sleep(chance.choice((0, 0.001, 1, 60)))
        there.steps(chance.choice((0, 5)))
        tails = await tails_of(forward, record)
        await forward.kill_receiver()  # of the same host
        await back.lose_source_power()
        owner = back.start_sender()
        there.steps(chance.choice((0, 5)))
        await trio.sleep(chance.choice((0, 1)))
        back.prepare(tails, record)
        back.start_receiver()
        owner.transmit_start()
        await goes_on(back, there, ZEROS)


# --- planted mistakes must be found ---


def one_further(forward: Simulation, record: Promotion) -> Promotion:
    """The record, but with the first operation of the tail in the copy."""
    (fork,) = record.copies
    cursor = Cursor.open(forward.source_world, forward.settings, forward.journal_id, None)
    cursor.seek(Position(*fork.marks[forward.journal_id]))
    run = cursor.read(1)
    cursor.close()
    if run is None:
        return record
    fork = msgspec.structs.replace(fork, marks={forward.journal_id: tuple(run.last)})
    return msgspec.structs.replace(record, copies=(fork,))


async def is_found(planted: str, seed: int) -> bool:
    """Whether a run in which this mistake was made ends with trees that differ."""
    chance = random.Random(f"{planted} {seed}")
    async with simulate(seed, options=FULL) as forward:
        here = await lived_through(forward, chance, "dead")
        record = await take_over(forward)
        here.steps(1 if planted == "fork" else 10)
        back = opened(forward, record, seed + 5000, reader_first=planted != "reader")
        there = RandomChanges(back.source, chance)
        there.steps(5)
        if planted == "reader":
            open_reader(back)
        if planted == "fork":
            record = one_further(forward, record)
        tails = await tails_of(forward, record)
        if planted == "tail":
            tails = dict.fromkeys(tails, DirtyMap())
        back.prepare(tails, record)
        back.start()
        await back.drained()
        try:
            back.assert_equal()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("planted", ["tail", "fork", "reader"])
async def test_planted_mistakes_are_found(planted: str, autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(8):
        if await is_found(planted, seed):
            return
    raise AssertionError(f"{planted}: nobody noticed")


async def test_without_them_none_is_found(autojump_clock: trio.testing.MockClock) -> None:
    assert not any([await is_found("", seed) for seed in range(3)])


# --- what is refused ---


async def test_a_source_that_lives_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1, options=FULL) as forward:
        forward.source.create(b"file")
        await forward.drained()
        await take_over(forward)
        await trio.sleep(60)
        assert "restore required: target has taken over" in forward.status.state_reason


async def test_an_owner_does_not_send_to_a_side_that_is_not_prepared(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It would compare nothing, and call equal what is not."""
    async with simulate(1, options=FULL) as forward:
        forward.source.create(b"file")
        await forward.drained()
        record = await take_over(forward)
        forward.source.create(b"tail")
        back = opened(forward, record, 2)
        back.source.create(b"new")
        tails = await tails_of(forward, record)
        back.start()
        await trio.sleep(60)
        assert back.status.target_data_state is not TargetDataState.OK
        await back.kill_sender()
        assert back.receiver is not None
        back.receiver.forget()
        await trio.sleep(1)
        await back.kill_receiver()
        back.prepare(tails, record)
        back.start()
        await back.drained()
        back.assert_equal()


async def test_it_waits_until_it_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1, options=FULL) as forward:
        forward.source.create(b"file")
        await forward.drained()
        record = await take_over(forward)
        back = opened(forward, record, 2)
        back.restored = msgspec.structs.replace(back.restored, waits="not prepared")
        back.source.create(b"new")
        back.start_sender()
        await trio.sleep(60)
        assert back.status.state_reason == "not prepared"
        await back.kill_sender()
        sender = back.start_sender()  # the next process waits as well
        await trio.sleep(60)
        assert back.status.state_reason == "not prepared"
        back.prepare(await tails_of(forward, record), record)
        back.start_receiver()
        sender.transmit_start()
        await back.drained()
        back.assert_equal()


# --- nothing but what was changed travels ---


async def test_bytes_are_bounded_by_the_changes(autojump_clock: trio.testing.MockClock) -> None:
    """4 KiB on either side of a file of 512 KiB, and a directory of 256 KiB renamed on one."""
    async with simulate(1, options=FULL) as forward:
        forward.source.create(b"large")
        forward.source.write(b"large", 0, random.Random(1).randbytes(512 << 10))
        forward.source.mkdir(b"one")
        for number in range(4):
            forward.source.create(b"one/%d" % number)
            forward.source.write(b"one/%d" % number, 0, random.Random(2).randbytes(64 << 10))
        await forward.drained()
        record = await take_over(forward)
        back = opened(forward, record, 2)
        forward.source.write(b"large", 64 << 10, b"here" * 1024)
        back.source.write(b"large", 256 << 10, b"there" * 1024)
        back.source.rename(b"one", b"one, renamed there")
        back.prepare(await tails_of(forward, record), record)
        back.start()
        assert back.sender is not None
        assert await back.sender.wait({back.journal_id: back.writer.position.sequence}, 600)
        status = back.status  # before the source tells mtimes of all files, which no capture does
        await back.drained()
        back.assert_equal()
        assert status.sent_bytes + status.sent_mirror_bytes < 32 << 10, status
