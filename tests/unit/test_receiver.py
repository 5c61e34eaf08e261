"""The receiver against a source played by hand: real trees, memory for everything else, virtual time."""

import errno
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from kit.disk import ProcessDied
from kit.recording import make_record
from kit.scripted_source import (
    CONNECTION,
    SOURCE_AGENT,
    RecordedJournal,
    ScriptedSession,
    connect_frame,
)
from kit.target_host import AGENT, Host, TestTree, die_at_once, mark, some_work
from kit.trees import assert_same_tree

from replicator import limits
from replicator.fs.apply_outcome import ApplyError
from replicator.mirror.pieces import (
    Batch,
    Content,
    File,
    Finish,
    Listing,
    Part,
    Same,
    Times,
    decode_refused,
    encode_batch,
)
from replicator.net.frames import (
    Connected,
    Disconnect,
    MirrorBegin,
    MirrorEnd,
    PathMap,
    PieceBatch,
    PiecesRefused,
    RefusedConnection,
)
from replicator.ops import (
    CREATION_MASK,
    AttributeMask,
    Attributes,
    Identity,
    Kind,
    Record,
)
from replicator.receiver.receiver import Receiver
from replicator.status import TargetDataState, TargetStatus


@pytest.fixture(autouse=True)
def umask() -> Any:
    former = os.umask(0)
    yield
    os.umask(former)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_operations_arrive_in_order_and_exactly(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, connected):
        assert connected.received == connected.durable == (None,)
        assert connected.data_state == TargetDataState.MIRROR_REQUIRED
        for number in range(0, end, 3):
            await source.send(*host.journal.run(number, min(number + 3, end)))
        await source.applied(end)
        assert_same_tree(host.directory / "source", host.target)
        assert host.applied == [(0, number) for number in range(1, end + 1)]
        await source.durable(end)
        assert receiver.status().durable == {"j0": end}


async def test_a_single_record_is_applied_at_once(host: Host, autojump_clock: Any) -> None:
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        for number in range(5):
            host.source.create(b"f%d" % number)
            host.record_everything()
            await trio.sleep(10)
            began = trio.current_time()
            await source.send(*host.journal.run(number, number + 1))
            await source.applied(number + 1)
            assert trio.current_time() == began, "nothing may wait for a timer here"


async def test_a_cut_at_any_place_loses_and_repeats_nothing(tmp_path: Path, autojump_clock: Any) -> None:
    chance = random.Random(5)
    for round_number in range(40):
        directory = tmp_path / str(round_number)
        directory.mkdir()
        host = Host(directory)
        some_work(host.source)
        host.record_everything()
        end = len(host.journal)
        async with host.receiver() as receiver:
            sent, sessions = 0, 0
            while sent < end:
                link = host.link(round_number, split=True, latency_s=0.01)
                async with host.session(receiver, link=link) as (source, connected):
                    mark_there = connected.received[0]
                    begin = mark_there.sequence if mark_there is not None else 0
                    assert begin >= sent and mark_there in (None, mark(host.journal.positions[begin]))
                    sent = begin
                    sessions += 1
                    if sessions < 4:
                        link.cut_after(chance.randrange(1, 1500))
                    try:
                        while begin < end:
                            count = chance.randint(1, 4)
                            await source.send(*host.journal.run(begin, min(begin + count, end)))
                            begin = min(begin + count, end)
                        await source.applied(end)
                        sent = end
                    except Exception as error:
                        assert sessions < 4, error
        assert_same_tree(directory / "source", host.target)
        assert host.applied == [(0, number) for number in range(1, end + 1)]


async def test_repetitions_are_dropped_and_overlaps_cut(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        for begin, stop in ((0, 5), (0, 5), (2, 4), (3, 9), (8, 9), (4, 5), (0, end)):
            await source.send(*host.journal.run(begin, stop))
        await source.send(*host.journal.advance(3, 6))
        await source.applied(end)
    assert_same_tree(host.directory / "source", host.target)
    assert host.applied == [(0, number) for number in range(1, end + 1)]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("gap", "do not continue"),
        ("other chain", "do not continue"),
        ("flipped", "prove themselves"),
        ("cut short", "prove themselves"),
        ("wrong end", "records end at"),
        ("journal", "does not exist"),
        ("derived gap", "does not continue"),
        ("derived flipped", "does not prove itself"),
        ("pieces", "outside of a mirror"),
        ("end", "was not begun"),
        ("delete another", "another connection"),
    ],
)
async def test_what_does_not_continue_ends_the_session(
    host: Host, autojump_clock: Any, case: str, reason: str
) -> None:
    some_work(host.source)
    host.record_everything()
    journal = host.journal
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(*journal.run(0, 4))
        await source.applied(4)
        head, data = journal.run(4, 8)
        if case == "gap":
            head, data = journal.run(5, 8)
        elif case == "other chain":
            other = RecordedJournal()
            for _ in range(8):
                other.add(make_record(Kind.UNLINK, b"b"))
            head, data = other.run(4, 8)
        elif case == "flipped":
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        elif case == "cut short":
            data = data[:-8]
        elif case == "wrong end":
            head = msgspec.structs.replace(head, last=mark(journal.positions[7]))
        elif case == "journal":
            head = msgspec.structs.replace(head, journal=1)
        if case == "derived gap":
            await source.send(*journal.advance(5, 6))
        elif case == "derived flipped":
            await source.send(*journal.advance(4, 5, data[:80]))
        elif case == "pieces":
            await source.send_batch(Batch(1, 0, ()))
        elif case == "end":
            await source.send(MirrorEnd("m", True))
        elif case == "delete another":
            await source.send(Disconnect("another"))
        else:
            await source.send(head, data)
        assert reason in await source.until_ended()
        assert host.applied == [(0, number) for number in range(1, 5)]
    async with host.receiver() as receiver, host.session(receiver) as (source, connected):
        assert connected.received == (mark(journal.positions[4]),)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_kill_around_any_operation(tmp_path: Path, autojump_clock: Any, when: str) -> None:
    """The operation in doubt is done exactly once."""
    number = 0
    while True:
        number += 1
        directory = tmp_path / str(number)
        directory.mkdir()
        host = Host(directory)
        some_work(host.source)
        host.record_everything()
        end = len(host.journal)
        if number > end:
            break

        def die(record: Record, at: int = number) -> None:
            if record.sequence == at:
                raise ProcessDied

        if when == "before":
            host.before = die
        else:
            host.after = die
        with pytest.raises(BaseExceptionGroup) as caught:
            async with host.receiver() as receiver, host.session(receiver) as (source, _):
                await source.send(*host.journal.run(0, end // 2))
                await source.send(*host.journal.run(end // 2, end))
                await trio.sleep(100)
        assert caught.group_contains(ProcessDied)
        host.before = host.after = None
        async with host.receiver() as receiver:  # goes on before any source is there
            await trio.sleep(1)
            assert receiver.replica.drained
            async with host.session(receiver) as (source, connected):
                begin = connected.received[0]
                assert begin is not None
                if begin.sequence < end:
                    await source.send(*host.journal.run(begin.sequence, end))
                await source.applied(end)
        assert_same_tree(directory / "source", host.target)


async def test_a_kill_between_spool_and_position(
    host: Host, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor finds in the spool what the stored position does not tell of yet."""
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with host.receiver() as receiver, host.session(receiver) as (source, _):
            await source.send(*host.journal.run(0, 5))
            await source.applied(5)
            monkeypatch.setattr(receiver._received_page, "store", die_at_once)
            await source.send(*host.journal.run(5, 9))
            await trio.sleep(100)
    assert caught.group_contains(ProcessDied)
    async with host.receiver() as receiver, host.session(receiver) as (source, connected):
        assert connected.received == (mark(host.journal.positions[9]),)
        await source.send(*host.journal.run(9, end))
        await source.applied(end)
    assert_same_tree(host.directory / "source", host.target)
    assert host.applied == [(0, number) for number in range(1, end + 1)]


async def test_a_kill_while_spooling(tmp_path: Path, autojump_clock: Any) -> None:
    """Ends at every call of the disk between two frames: what was acknowledged is there, nothing is there
    twice.
    """
    for call in range(1, 30):
        directory = tmp_path / str(call)
        directory.mkdir()
        host = Host(directory)
        for number in range(8):
            host.source.create(b"%d" % number)
        host.source.settle()
        host.record_everything()
        end = len(host.journal)
        acknowledged = 0
        try:
            async with host.receiver() as receiver, host.session(receiver) as (source, _):
                await source.send(*host.journal.run(0, 1))
                await source.applied(1)
                host.disk.die_at(host.disk.calls + call, "before")
                for number in range(1, end):
                    await source.send(*host.journal.run(number, number + 1))
                    with trio.move_on_after(0.1):
                        await source.applied(number + 1)
                acknowledged = source.acknowledged.received[0]
        except BaseExceptionGroup as group:
            assert group.split(ProcessDied)[0] is not None
        host.disk.heal()
        host.disk.die()
        async with host.receiver() as receiver, host.session(receiver) as (source, connected):
            received = connected.received[0]
            assert received is not None and received.sequence >= acknowledged
            await source.send(*host.journal.run(received.sequence, end))
            await source.applied(end)
        assert_same_tree(directory / "source", host.target)


async def test_a_failing_operation_is_retried_and_nothing_overtakes_it(
    host: Host, autojump_clock: Any
) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    full_until = trio.current_time() + 20

    def fail(record: Record) -> None:
        if record.sequence == 5 and trio.current_time() < full_until:
            raise ApplyError(record, "No space left on device", errno.ENOSPC)

    host.before = fail
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(*host.journal.run(0, end))
        await source.until(lambda: source.events != [] and source.state.status == TargetStatus.RETRYING)
        assert "No space left" in source.state.reason and "b" in source.state.reason
        await source.applied(4)
        await source.until(lambda: source.acknowledged.received[0] == end)
        assert host.calls < 10
        await source.applied(end)
        assert trio.current_time() >= full_until
        await source.until(lambda: source.state.status == TargetStatus.OK)
    assert_same_tree(host.directory / "source", host.target)
    assert host.applied == [(0, number) for number in range(1, end + 1)]


async def test_a_strict_target_holds_at_what_is_impossible(host: Host, autojump_clock: Any) -> None:
    host.journal.add(make_record(Kind.UNLINK, b"never/there"))
    host.journal.add(make_record(Kind.WRITE, b"x", arg0=7, payload=b"x"))
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await make_exact(source)
        await source.send(*host.journal.run(0, 2))
        await source.until(lambda: source.events != [] and source.state.status == TargetStatus.RETRYING)
        assert "never/there" in source.state.reason
        await trio.sleep(limits.APPLY_GIVE_UP_S / 2)
        assert source.acknowledged.applied == (0,)
        # One path must not hold up the rest for ever: it is left to the source to bring it again.
        await trio.sleep(limits.APPLY_GIVE_UP_S)
        await source.applied(1)
        await source.until(lambda: any(isinstance(e, PiecesRefused) for e in source.events))
        (refused,) = decode_refused(next(e.refused for e in source.events if isinstance(e, PiecesRefused)))
        assert (refused.path, refused.retry) == (b"never/there", True)
        await source.until(lambda: source.state.data_state == TargetDataState.MIRROR_REQUIRED)


async def test_what_is_in_doubt_after_a_kill_stays_so_while_it_is_retried(
    host: Host, autojump_clock: Any
) -> None:
    host.source.create(b"f")
    host.source.rename(b"f", b"g")
    host.source.settle()
    host.record_everything()
    end = len(host.journal)

    def die(record: Record) -> None:
        if record.sequence == 2:
            raise ProcessDied

    def fail(record: Record) -> None:
        if trio.current_time() < full_until:
            raise ApplyError(record, "No space left on device", errno.ENOSPC)

    host.after = die
    with pytest.raises(BaseExceptionGroup) as caught:
        async with host.receiver() as receiver, host.session(receiver) as (source, _):
            await make_exact(source)
            await source.send(*host.journal.run(0, end))
            await trio.sleep(100)
    assert caught.group_contains(ProcessDied)
    host.after, host.before = None, fail
    full_until = trio.current_time() + 5
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.applied(end)
        assert source.state.data_state == TargetDataState.OK and not source.refused
    assert_same_tree(host.directory / "source", host.target)


async def test_a_foreign_object_in_the_way_is_replaced_but_its_directory_kept(
    host: Host, autojump_clock: Any
) -> None:
    """Names nobody replicates may stand in a target that was not empty; the source knows nothing of them."""
    Path(host.target, "taken").mkdir(parents=True)
    Path(host.target, "taken", "foreign").write_text("x")
    Path(host.target, "kept").mkdir()
    Path(host.target, "kept", "foreign").write_text("x")
    host.source.mkdir(b"kept")
    host.source.create(b"taken")
    host.source.write(b"taken", 0, b"ours")
    host.source.rmdir(b"kept")
    host.record_everything()
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send(MirrorEnd("m", True))
        await source.send(*host.journal.run(0, len(host.journal)))
        await source.applied(len(host.journal))
    assert Path(host.target, "taken").read_text() == "ours"
    assert Path(host.target, "kept", "foreign").read_text() == "x"


async def test_pause_and_resume(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(*host.journal.run(0, 3))
        await source.applied(3)
        receiver.pause()
        await source.until(lambda: source.state.status == TargetStatus.PAUSED)
        await source.send(*host.journal.run(3, end))
        await source.until(lambda: source.acknowledged.received[0] == end)
        await trio.sleep(30)
        assert source.acknowledged.applied == (3,)
        assert receiver.status().queued_bytes > 0
        receiver.resume()
        await source.applied(end)
        await source.until(lambda: source.state.status == TargetStatus.OK)
    assert_same_tree(host.directory / "source", host.target)


async def test_pause_in_the_middle_of_a_frame(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):

        def pause(record: Record) -> None:
            if record.sequence == 4:
                receiver.pause()

        host.after = pause
        await source.send(*host.journal.run(0, end))
        await source.until(lambda: source.events != [] and source.state.status == TargetStatus.PAUSED)
        assert host.applied[-1] == (0, 4)
        await source.applied(4)
        receiver.resume()
        await source.applied(end)
    assert_same_tree(host.directory / "source", host.target)


async def test_a_full_spool_holds_the_source_and_loses_nothing(host: Host, autojump_clock: Any) -> None:
    host.settings = {"segment_bytes": 65536, "memory_bytes": 4 * 65536, "disk_bytes": 0}
    host.source.create(b"f")
    for number in range(120):
        host.source.write(b"f", number * 8192, bytes([number]) * 8192)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver:
        link = host.link(window_bytes=65536)
        async with host.session(receiver, link=link) as (source, _):
            receiver.pause()

            async def send_all() -> None:
                for number in range(end):
                    await source.send(*host.journal.run(number, number + 1))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all)
                await trio.sleep(60)
                received = source.acknowledged.received[0]
                assert 10 < received < end and receiver.status().spool_full
                assert not source.ended, "a full spool is no reason to end a session"
                receiver.resume()
                await source.applied(end)
            assert not receiver.status().spool_full
    async with host.receiver() as receiver, host.session(receiver) as (source, connected):
        # The segments of long ago are gone, and nothing depends on them.
        assert connected.received == connected.applied == (mark(host.journal.positions[end]),)
    assert host.applied == [(0, number) for number in range(1, end + 1)]
    assert (host.target / "f").read_bytes() == (host.directory / "source" / "f").read_bytes()


async def test_a_full_spool_has_room_for_the_next_session(host: Host, autojump_clock: Any) -> None:
    """What waited for room goes with its session, and nothing is left whose end would tell of room."""
    host.source.create(b"f")
    host.source.write(b"f", 0, bytes(10_000))
    host.record_everything()
    end = len(host.journal)
    disk = host.disk
    async with host.receiver() as receiver:
        async with host.session(receiver) as (source, _):
            await source.send(*host.journal.run(0, 1))
            await source.applied(1)
            disk.volatile_capacity = disk.capacity = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.send, *host.journal.run(1, end))
                await source.until(lambda: source.state.queue_full)
                nursery.cancel_scope.cancel()
        await trio.sleep(10)
        disk.volatile_capacity = disk.capacity = None
        async with host.session(receiver) as (source, _):
            assert not receiver.status().spool_full  # or it would send nothing
            await source.send(*host.journal.run(1, end))
            await source.applied(end)
            assert not source.state.queue_full
    assert (host.target / "f").read_bytes() == bytes(10_000)


async def test_a_frame_larger_than_a_record(
    host: Host, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECORD_PAYLOAD_BYTES", 5000)
    host.source.create(b"f")
    for number in range(20):
        host.source.write(b"f", number * 1000, bytes([number]) * 1000)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(*host.journal.run(0, end))
        await source.applied(end)
    assert (host.target / "f").read_bytes() == (host.directory / "source" / "f").read_bytes()


# --- power loss, clean stop ---


async def make_exact(source: ScriptedSession) -> None:
    """An empty mirror: afterwards the target counts as a copy."""
    await source.send(MirrorBegin("m", "full"))
    await source.send(MirrorEnd("m", True))
    await source.until(lambda: source.events != [] and source.state.data_state == TargetDataState.OK)


async def test_the_durable_mark_follows_a_sync_of_the_copy(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    ill = OSError(errno.EIO, "Input/output error")
    durable: list[int] = []
    async with host.receiver() as receiver, host.session(receiver) as (source, _):

        def fail_twice() -> None:
            durable.append(receiver.status().durable.get("j0", 0))
            if len(durable) < 3:
                raise ill

        host.before_sync = fail_twice
        began_s = trio.current_time()
        await source.send(*host.journal.run(0, end))
        await source.applied(end)
        assert receiver.status().durable == {}
        await source.durable(end)
        assert durable == [0, 0, 0]
        assert host.synced_to == end
        assert trio.current_time() - began_s >= limits.SYNC_DELAY_S
        # Much at once does not wait for more.
        host.source.write(b"b", 0, b"x" * 1000)
        host.record_everything()
        more = len(host.journal)
        receiver.replica.durability._unsynced_bytes = limits.SYNC_BYTES
        began_s = trio.current_time()
        await source.send(*host.journal.run(end, more))
        await source.durable(more)
        assert trio.current_time() - began_s < limits.SYNC_DELAY_S


@pytest.mark.parametrize("clean", [True, False])
async def test_power_loss(host: Host, autojump_clock: Any, clean: bool) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    receiver = Receiver(host.world(), host.arguments(), partial(TestTree, host=host))
    async with trio.open_nursery() as nursery:
        await nursery.start(receiver.run)
        async with host.session(receiver) as (source, _):
            await make_exact(source)
            await source.send(*host.journal.run(0, 9))
            await source.durable(9)
            await source.send(*host.journal.run(9, end))
            await source.applied(end)
            assert source.acknowledged.durable == (9,)
            if clean:
                receiver.stop()
                await source.until_ended()
            else:
                nursery.cancel_scope.cancel()
    host.disk.lose_power()
    host.clock.reboot()
    async with host.receiver() as receiver, host.session(receiver) as (source, connected):
        expected = (mark(host.journal.positions[end if clean else 9]),)
        assert connected.received == connected.applied == connected.durable == expected
        assert connected.data_state == (TargetDataState.OK if clean else TargetDataState.MIRROR_REQUIRED)
        assert not connected.mirroring
        assert connected.power_lost == (not clean)
        if clean:  # it goes on without a mirror, and is in doubt about nothing
            host.source.create(b"more")
            host.source.settle()
            host.record_everything()
            more = len(host.journal)
            await source.send(*host.journal.run(end, more))
            await source.applied(more)
            assert_same_tree(host.directory / "source", host.target)


async def test_a_clean_stop_is_forgotten_as_soon_as_something_is_applied(
    host: Host, autojump_clock: Any
) -> None:
    some_work(host.source)
    host.record_everything()
    receiver = Receiver(host.world(), host.arguments(), partial(TestTree, host=host))
    async with trio.open_nursery() as nursery:
        await nursery.start(receiver.run)
        async with host.session(receiver) as (source, _):
            await make_exact(source)
            await source.send(*host.journal.run(0, 3))
            await source.applied(3)
            receiver.stop()
    host.before = die_at_once  # the power goes with the first operation
    with pytest.raises(BaseExceptionGroup) as caught:
        async with host.receiver() as receiver, host.session(receiver) as (source, _):
            await source.send(*host.journal.run(3, 4))
            await trio.sleep(100)
    assert caught.group_contains(ProcessDied)
    host.before = None
    host.disk.lose_power()
    host.clock.reboot()
    async with host.receiver() as receiver, host.session(receiver) as (_, connected):
        assert connected.data_state == TargetDataState.MIRROR_REQUIRED


async def lose_power_in_a_mirror(host: Host, *, complete: bool) -> None:
    """Two files are brought, the first durably; then the power goes."""
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send_batch(Batch(1, 0, (file_piece(b"old", b"durable", 1),)))
        await source.batches(1)
        await receiver.replica.durability.make_durable()
        host.before_sync = _no_sync
        await source.send_batch(Batch(2, 0, (file_piece(b"new", b"in memory", 2),)))
        await source.batches(2)
        if complete:
            await source.send(MirrorEnd("m", True))
            await source.until(lambda: TargetDataState.OK in source.data_states)
    host.before_sync = None
    host.disk.lose_power()
    host.clock.reboot()


def _no_sync() -> None:
    raise OSError(errno.EIO, "the power goes before this sync is done")


@pytest.mark.parametrize("complete", [True, False])
async def test_what_was_not_durable_is_not_believed_after_power_loss(
    host: Host, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    # The files' times are the kernel's, so the clock has to be; between the two files lies a step of it.
    monkeypatch.setattr(host.clock, "wall_ns", time.time_ns)
    monkeypatch.setattr(limits, "FILE_CLOCK_STEP_NS", -20_000_000)
    host.before_place = lambda batch: time.sleep(0.05)
    await lose_power_in_a_mirror(host, complete=complete)
    (host.target / "new").write_bytes(bytes(9))  # size and time were kept by the file system, data were not
    os.utime(host.target / "new", ns=(10**18, 10**18))
    claims = (same_piece(b"old", b"durable", 1), same_piece(b"new", b"in memory", 2))
    for begun_before in (False, True):
        async with host.receiver() as receiver, host.session(receiver) as (source, connected):
            assert connected.power_lost == (not begun_before)
            assert connected.data_state == ("Mirroring" if begun_before else "Mirror Required")
            if not begun_before:
                await source.send(MirrorBegin("again", "recovery"))
            number = 11 if begun_before else 10
            await source.send_batch(Batch(number, 0, claims))
            await source.batches(number)
            assert [refused.path for refused in source.refused] == [b"new"] * (1 + begun_before)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send_batch(Batch(12, 0, (file_piece(b"new", b"in memory", 2),)))
        await source.send(MirrorEnd("again", True))
        await source.until(lambda: TargetDataState.OK in source.data_states)
        await source.send(MirrorBegin("later", "difference"))
        refusals = len(source.refused)
        await source.send_batch(Batch(13, 0, claims))
        await source.batches(13)
        assert len(source.refused) == refusals  # complete: all is believed again


async def test_a_mirror_that_was_stopped_is_not_begun_by_power_loss(host: Host, autojump_clock: Any) -> None:
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send(MirrorEnd("m", False))
        await source.until(lambda: source.events != [] and source.state.data_state == "Mirror Required")
        await receiver.replica.durability.make_durable()
    host.disk.lose_power()
    host.clock.reboot()
    async with host.receiver() as receiver, host.session(receiver) as (_, connected):
        assert (connected.data_state, connected.power_lost) == ("Mirror Required", False)


async def test_power_loss_takes_the_tables_of_hard_links(host: Host, autojump_clock: Any) -> None:
    """They are not synced: what is left of one may not even open."""
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await make_exact(source)
    table = f"/home/target/{CONNECTION}/links-0.sqlite"
    for name in (table, table + "-wal"):
        handle = host.disk.open_append(name)
        host.disk.fsync(handle)
        host.disk.close(handle)
    host.disk.fsync_directory(os.path.dirname(table))
    async with host.receiver():
        assert host.disk.exists(table)  # after a kill they are as they were
    host.disk.lose_power()
    host.clock.reboot()
    async with host.receiver():
        assert not host.disk.exists(table) and not host.disk.exists(table + "-wal")


# --- mirrors ---


def same_piece(path: bytes, data: bytes, inode: int) -> Same:
    attributes = Attributes(int(CREATION_MASK | AttributeMask.MTIME), 0o100640, 1, 2, mtime_ns=10**18)
    return Same(path, Identity(inode, 0), 1, attributes, {}, len(data))


def directory_attributes() -> Attributes:
    return Attributes(int(CREATION_MASK), 0o40755, 0, 0)


def file_piece(path: bytes, data: bytes, inode: int) -> File:
    attributes = Attributes(int(CREATION_MASK | AttributeMask.MTIME), 0o100640, 1, 2, mtime_ns=10**18)
    return File(path, Identity(inode, 0), 1, attributes, {}, len(data), ((0, len(data)),), Content(data))


async def test_a_mirror_makes_a_target_ok(host: Host, autojump_clock: Any) -> None:
    async with host.receiver() as receiver:
        async with host.session(receiver) as (source, _):
            await source.send(MirrorBegin("m", "full"))
            await source.until(lambda: source.events != [] and source.state.data_state == "Mirroring")
            host.journal.add(make_record(Kind.WRITE, b"x/later", payload=b"ignored"))
            await source.send(*host.journal.run(0, 1))  # tolerant: nothing is there yet
            entries = (
                Listing(b"", directory_attributes(), {}, (b"x",)),
                file_piece(b"x/f", b"content", 5),
                Times(b"x", 10**18),
            )
            await source.send_batch(Batch(1001, 0, entries))
            await source.batches(1001)
            assert (host.target / "x/f").read_bytes() == b"content"
        async with host.session(receiver) as (source, connected):
            assert connected.mirroring and connected.mirror_id == "m" and connected.stream_batches == 1001
            assert connected.data_state == TargetDataState.MIRRORING
            await source.send(MirrorEnd("m", True))
            await source.until(lambda: source.events != [] and source.state.data_state == "OK")
        async with host.session(receiver) as (source, connected):
            assert not connected.mirroring and connected.data_state == TargetDataState.OK
            await source.send(MirrorBegin("n", "difference"))
            await source.send(MirrorEnd("n", False))
            await source.until(lambda: source.events != [] and source.state.data_state == "Mirror Required")


async def test_a_repeated_batch_is_dropped(host: Host, autojump_clock: Any) -> None:
    placed: list[int] = []
    host.before_place = lambda batch: placed.append(batch.number)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        for number in (5, 5, 4, 6, 6):
            await source.send_batch(Batch(number, 0, (file_piece(b"f", b"%d" % number, 1),)))
        await source.batches(6)
    assert placed == [5, 6]


async def test_refused_pieces_are_told_before_their_batch_is_acknowledged_and_again_later(
    host: Host, autojump_clock: Any
) -> None:
    unknown = Part(b"big", Identity(9, 9), 77, False, ((0, 3),), Content(b"abc"))
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send_batch(Batch(1, 0, (unknown,)))
        await source.batches(1)
        assert [(r.path, r.retry) for r in source.refused] == [(b"big", True)]
    async with host.receiver() as receiver:  # also a new process tells a source that may not have heard it
        async with host.session(receiver) as (source, connected):
            assert connected.stream_batches == 1
            await source.batches(1)
            assert [r.path for r in source.refused] == [b"big"]
            await source.send(MirrorEnd("m", False))
            await source.send(MirrorBegin("n", "full"))
            await source.send_batch(Batch(1, 0, ()))
            await source.batches(1)
        async with host.session(receiver) as (source, connected):
            await source.batches(1)
            assert source.refused == []


async def test_what_fails_while_tolerant_is_brought_again(host: Host, autojump_clock: Any) -> None:
    host.source.create(b"f")
    host.source.create(b"g")
    host.record_everything()

    def fail(record: Record) -> None:
        if record.path == b"f":
            raise ApplyError(record, "Operation not permitted", errno.EPERM)

    host.before = fail
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send(*host.journal.run(0, 2))
        await source.applied(2)
        await source.until(lambda: bool(source.refused))
        assert [(r.journal, r.path, r.retry) for r in source.refused] == [(0, b"f", True)]
        assert os.listdir(host.target) == ["g"]


async def test_a_tolerant_target_waits_for_space_too(host: Host, autojump_clock: Any) -> None:
    host.source.create(b"f")
    host.record_everything()
    full_until = trio.current_time() + 10

    def fail(record: Record) -> None:
        if trio.current_time() < full_until:
            raise ApplyError(record, "No space left on device", errno.ENOSPC)

    host.before = fail
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send(*host.journal.run(0, 1))
        await source.applied(1)
        assert trio.current_time() >= full_until and not source.refused
        assert os.listdir(host.target) == ["f"]


async def test_batches_of_an_earlier_mirror_are_not_taken_for_this_ones(
    host: Host, autojump_clock: Any
) -> None:
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send_batch(Batch(7, 0, ()))
        await source.batches(7)
        await source.send(MirrorEnd("m", False))
        receiver.pause()
        await source.until(lambda: source.state.status == TargetStatus.PAUSED)
        await source.send(MirrorBegin("n", "full"))
        await source.send_batch(Batch(1, 0, ()))
        await source.until(lambda: source.acknowledged.batches_received == 1)
        assert source.acknowledged.batches_applied == 0
        receiver.resume()
        await source.batches(1)


async def test_a_batch_waits_for_space(host: Host, autojump_clock: Any) -> None:
    full_until = trio.current_time() + 10

    def fail(batch: Batch) -> None:
        if trio.current_time() < full_until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    host.before_place = fail
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send_batch(Batch(1, 0, (file_piece(b"f", b"x", 1),)))
        await source.until(lambda: source.events != [] and source.state.status == TargetStatus.RETRYING)
        await source.batches(1)
        assert trio.current_time() >= full_until and not source.refused
        assert (host.target / "f").read_bytes() == b"x"


async def test_a_malformed_piece_harms_nothing(host: Host, autojump_clock: Any) -> None:
    bad = file_piece(b"bad\0name", b"x", 1)
    async with host.receiver() as receiver, host.session(receiver) as (source, _):
        await source.send(MirrorBegin("m", "full"))
        await source.send_batch(Batch(1, 0, (bad, Finish(b"x", Identity(1, 1), 5, 1, bad.attributes, {}, 5))))
        await source.batches(1)
        assert {r.path for r in source.refused} == {b"bad\0name", b"x"}


def _records(*records: Record) -> Any:
    journal = RecordedJournal()
    for record in records:
        journal.add(record)
    return journal.run(0, len(journal))


_GOOD = make_record(Kind.UNLINK, b"a/b")
_HOSTILE = {
    "offset": _records(_GOOD, make_record(Kind.WRITE, b"f", arg0=2**63, payload=b"x")),
    "end": _records(_GOOD, make_record(Kind.WRITE, b"f", arg0=2**63 - 1, payload=b"x")),
    "size": _records(_GOOD, make_record(Kind.TRUNCATE, b"f", arg0=2**64 - 1)),
    "attributes": _records(_GOOD, make_record(Kind.SETATTR, b"f", payload=b"short")),
    "mode": _records(_GOOD, make_record(Kind.FALLOCATE, b"f", arg1=1, payload=b"")),
    "above": _records(_GOOD, make_record(Kind.UNLINK, b"../f")),
    "second path": _records(_GOOD, make_record(Kind.RENAME, b"f", path2=b"/etc/f")),
    "root": _records(_GOOD, make_record(Kind.RMDIR, b"")),
    "kind": _records(_GOOD, make_record(Kind.FRAME, b"f")),
    "xattr": _records(_GOOD, make_record(Kind.SETXATTR, b"f", path2=b"user.\0")),
    "pieces": (PieceBatch(1), b"".join(encode_batch(Batch(1, 0, (Times(b"", 2**63),))))),
}


@pytest.mark.parametrize("case", _HOSTILE)
async def test_hostile_input_ends_the_session_and_nothing_of_it_is_kept(
    host: Host, case: str, autojump_clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, data = _HOSTILE[case]
    async with host.receiver() as receiver:
        async with host.session(receiver) as (source, _):
            await source.send(MirrorBegin("m", "full"))
            await source.send(frame, data)
            await source.until_ended()
        assert receiver.status().received == {}
        assert not receiver.status().queued_bytes
        async with host.session(receiver):  # the next one finds it at work
            pass
    assert host.applied == []
    assert "protocol error" in capsys.readouterr().err


# --- connections ---


async def test_positions_of_the_source_are_taken_over_and_may_jump(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    async with host.receiver() as receiver:
        async with host.session(receiver) as (source, _):
            await source.send(*host.journal.advance(0, 0))
            await source.send(*host.journal.advance(0, 3))
            await source.applied(3)
        async with host.session(receiver) as (source, connected):
            assert connected.received == (mark(host.journal.positions[3]),)
    assert host.applied == []


async def test_another_configuration_takes_effect_in_the_order_of_the_stream(
    host: Host, autojump_clock: Any
) -> None:
    host.source.create(b"f")
    host.source.create(b"g")
    host.record_everything()
    other = RecordedJournal("j1")
    other.add(make_record(Kind.CREATE, b"h", payload=host.source.records[0].payload))
    second = connect_frame(str(host.directory / "second"), ("j1", "j0"))
    async with host.receiver() as receiver:
        receiver.pause()
        async with host.session(receiver) as (source, _):
            await source.send(*host.journal.run(0, 1))
            await source.until(lambda: source.acknowledged.received == (1,))
        async with host.session(receiver, second) as (source, connected):
            assert connected.received == (None, mark(host.journal.positions[1]))
            await source.send(*host.journal.run(1, 2, 1))
            await source.send(*other.run(0, 1, 0))
            receiver.resume()
            await source.applied(2, 1)
            await source.applied(1, 0)
            assert source.acknowledged.applied == (1, 2)
    assert os.listdir(host.target) == ["f"]
    assert os.listdir(host.directory / "second") == ["h"]
    assert os.listdir(host.directory / "second-1") == ["g"]
    async with host.receiver() as receiver, host.session(receiver, second) as (_, connected):
        assert connected.applied == (mark(other.positions[1]), mark(host.journal.positions[2]))


async def test_a_newer_session_replaces_the_older_one(host: Host, autojump_clock: Any) -> None:
    async with (
        host.receiver() as receiver,
        host.session(receiver) as (old, _),
        host.session(receiver) as (new, _),
    ):
        assert "replaced" in await old.until_ended()
        host.source.create(b"f")
        host.record_everything()
        await new.send(*host.journal.run(0, 1))
        await new.applied(1)


async def test_a_silent_source_is_given_up_and_applying_goes_on(host: Host, autojump_clock: Any) -> None:
    some_work(host.source)
    host.record_everything()
    end = len(host.journal)
    async with host.receiver() as receiver:
        link = host.link()
        async with host.session(receiver, link=link) as (source, _):
            receiver.pause()
            await source.send(*host.journal.run(0, end))
            await source.until(lambda: source.acknowledged.received == (end,))
            link.stall()
            await trio.sleep(limits.PEER_SILENCE_S * 2)
            assert not receiver.status().connected
            receiver.resume()
            await trio.sleep(1)
            assert receiver.status().applied == {"j0": end}


async def test_a_source_that_says_nothing_is_dropped(host: Host, autojump_clock: Any) -> None:
    async with host.receiver() as receiver:
        near, far = host.link().streams()
        receiver.adopt(far)
        await trio.sleep(limits.CONNECT_TIMEOUT_S + 2)
        async with host.session(receiver):
            pass
        await trio.aclose_forcefully(near)


async def test_disconnect_forgets_everything_but_the_copy(host: Host, autojump_clock: Any) -> None:
    host.source.create(b"f")
    host.record_everything()
    receiver = Receiver(host.world(), host.arguments(), partial(TestTree, host=host))
    async with trio.open_nursery() as nursery:
        await nursery.start(receiver.run)
        async with host.session(receiver) as (source, _):
            await source.send(*host.journal.run(0, 1))
            await source.applied(1)
            await source.send(Disconnect(CONNECTION))
            assert "deleted" in await source.until_ended()
    assert receiver.forgotten
    assert host.disk.paths() == []
    assert os.listdir(host.target) == ["f"]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("relative", "not an absolute path"),
        ("dots", "not an absolute path"),
        ("root", "must not be /"),
        ("link to root", "must not be /"),
        ("proc", "no storage"),
        ("file", "is not a directory"),
        ("below file", "is not a directory"),
        ("twice", "two maps lead to one place"),
        ("nested", "two maps lead to one place"),
        ("taken", "already written by another connection"),
        ("inside taken", "already written by another connection"),
        ("around taken", "already written by another connection"),
        ("own source", "overlap"),
        ("inside source", "overlap"),
        ("around source", "overlap"),
        ("in the home", "keeps its own files in /home"),
        ("at the memory", "keeps its own files in /memory"),
        ("no map", "maps no path"),
        ("foreign journal", "does not exist"),
    ],
)
async def test_impossible_targets_are_refused(
    host: Host, autojump_clock: Any, case: str, reason: str
) -> None:
    base = host.directory
    (base / "file").touch()
    (base / "link").symlink_to("/")
    (base / "alias").symlink_to(base)
    target = {
        "relative": "copy",
        "dots": f"{base}/x/../y",
        "root": "//",
        "link to root": f"{base}/link",
        "proc": "/proc/copy",
        "file": f"{base}/file",
        "below file": f"{base}/file/x",
        "taken": f"{base}/alias/other/copy",
        "inside taken": f"{base}/other/copy/deeper",
        "around taken": f"{base}/other",
        "own source": f"{base}/source",
        "inside source": f"{base}/alias/source/x",
        "around source": f"{base}",
        "in the home": "/home/target",
        "at the memory": "/memory",
    }.get(case, f"{base}/good")
    connect = connect_frame(target)
    connect = msgspec.structs.replace(
        connect, journals=(msgspec.structs.replace(connect.journals[0], root=os.fsencode(base / "source")),)
    )
    bad_maps: dict[str, tuple[PathMap, ...]] = {
        "twice": (PathMap(0, b"a", target.encode()), PathMap(0, b"b", target.encode())),
        "nested": (PathMap(0, b"a", target.encode()), PathMap(0, b"b", target.encode() + b"/b")),
        "no map": (),
        "foreign journal": (PathMap(1, b"", target.encode()),),
    }
    if case in bad_maps:
        connect = msgspec.structs.replace(connect, maps=bad_maps[case])
    same_host = "source" in case
    async with host.receiver() as receiver:
        answer = await host.ask(
            receiver,
            connect,
            others=() if same_host else (f"{base}/other/copy",),
            agent_uuid=AGENT if same_host else SOURCE_AGENT,
        )
        assert isinstance(answer, RefusedConnection)
        assert reason in answer.reason and not answer.retry and "\n" not in answer.reason
        assert not (base / "good").exists() and not (base / "other").exists(), "nothing half-made"


async def test_a_nested_map_in_its_natural_place_is_fine(host: Host, autojump_clock: Any) -> None:
    target = os.fsencode(host.target)
    maps = (PathMap(0, b"", target), PathMap(0, b"a/b", target + b"/a/b"))
    async with host.receiver() as receiver:
        answer = await host.ask(receiver, connect_frame("", maps=maps))
        assert isinstance(answer, Connected)


async def test_a_target_that_has_disappeared_is_not_made_again(host: Host, autojump_clock: Any) -> None:
    async with host.receiver() as receiver:
        assert isinstance(await host.ask(receiver, connect_frame(str(host.target))), Connected)
        host.target.rmdir()
        answer = await host.ask(receiver, connect_frame(str(host.target)))
        assert isinstance(answer, RefusedConnection)
        assert "disappeared" in answer.reason and answer.retry


async def test_another_connection_is_refused(host: Host, autojump_clock: Any) -> None:
    async with host.receiver() as receiver:
        near, far = host.link().streams()
        receiver.adopt(far)
        source = ScriptedSession(near)
        async with trio.open_nursery() as nursery:
            await source.session.greet("another")
            nursery.start_soon(source.listen)
            assert "not the connection" in await source.until_ended()
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(near)
