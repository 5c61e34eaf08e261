"""Transmission by schedule, in whole: what waits outside of a session, what is sent in one, and what outlives
kills.
"""

from datetime import UTC

import msgspec
import pytest
import trio
import trio.testing
from kit.simulation import Simulation, simulate

from replicator.sender.arguments import SenderOptions
from replicator.status import ConnectionState, Dimension, TransmitMode
from replicator.transmission_schedule import StartCriteria, StopCriteria, TransmissionSchedule, Window

pytestmark = pytest.mark.sim

# The simulated day begins at 22:13:21 UTC.
NIGHT = Window(opens="23:00", closes="01:00")


def tell(simulation: Simulation, schedule: TransmissionSchedule) -> None:
    """As the agent does: also to the next process."""
    object.__setattr__(simulation.source_world, "zone", UTC)
    simulation.options = msgspec.structs.replace(simulation.options, schedule=schedule)
    assert simulation.sender is not None
    simulation.sender.set_schedule(msgspec.to_builtins(schedule))


def names(simulation: Simulation) -> set[str]:
    return {path.name for path in simulation.target_root.iterdir()}


async def test_outside_of_the_window_nothing_leaves_and_there_it_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with simulate(1, options=SenderOptions(mirror="full")) as simulation:
        simulation.source.create(b"before")
        await simulation.drained()
        tell(
            simulation,
            TransmissionSchedule(start=StartCriteria(at="2023-11-14 22:30", every="1 hour"), window=NIGHT),
        )
        await trio.sleep(20)
        simulation.source.create(b"file")
        await trio.sleep(1800)
        status = simulation.status
        assert (status.state, status.transmit_mode) == (ConnectionState.SCHEDULED, TransmitMode.SCHEDULED)
        assert status.connected_since is None and names(simulation) == {"before"}
        assert "waits until 23:00" in status.state_reason and "window" in status.state_reason
        assert status.schedule.next_action == "start"
        sender = simulation.sender
        assert sender is not None
        why = await sender.why(simulation.journal_id, "file")
        assert {o.waits_for for o in why["operations"]} == {status.state_reason}
        await trio.sleep(1200)  # 23:05
        assert names(simulation) == {"before", "file"}
        status = simulation.status
        assert status.transmit_mode is TransmitMode.SCHEDULED and status.connected_since is None
        assert status.schedule.last_end == "the queue is empty" and status.queued_ops == 0
        story = [e for e in sender.story.since() if e.dimension is Dimension.TRANSMIT]
        assert [e.after for e in story][-3:] == ["Scheduled", "Started", "Scheduled"]


async def test_by_hand_and_disabled(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(2) as simulation:
        await simulation.drained()
        sender = simulation.sender
        assert sender is not None
        only_window = TransmissionSchedule(window=Window(opens="22:00", closes="23:30"))
        tell(simulation, only_window)
        simulation.source.create(b"one")
        await trio.sleep(60)
        assert names(simulation) == set() and "alone starts nothing" in simulation.status.state_reason
        sender.transmit_start()  # TX-01
        await trio.sleep(60)
        assert names(simulation) == {"one"} and simulation.status.transmit_mode is TransmitMode.SCHEDULED
        sender.transmit_stop()
        simulation.source.create(b"two")
        await trio.sleep(60)
        assert simulation.status.transmit_mode is TransmitMode.STOPPED
        sender.transmit_resume()
        await trio.sleep(60)
        assert names(simulation) == {"one"} and simulation.status.transmit_mode is TransmitMode.SCHEDULED
        sender.transmit_pause()
        await trio.sleep(60)
        assert simulation.status.connected_since is None  # a pause is no reason to connect
        sender.transmit_resume()
        tell(simulation, msgspec.structs.replace(only_window, enabled=False))
        await simulation.drained()
        assert names(simulation) == {"one", "two"} and simulation.status.state is ConnectionState.STARTED
        tell(simulation, only_window)
        simulation.source.create(b"three")
        await trio.sleep(30)
        assert names(simulation) == {"one", "two"}
        tell(simulation, TransmissionSchedule())
        await simulation.drained()
        simulation.assert_equal()


async def test_a_session_of_so_many_bytes(autojump_clock: trio.testing.MockClock) -> None:
    """TX-11: a metered link carries little more than the limit."""
    async with simulate(3) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        tell(
            simulation,
            TransmissionSchedule(
                start=StartCriteria(queue_bytes="1 MB"), stop=StopCriteria(sent_bytes="1 MB")
            ),
        )
        await trio.sleep(30)
        sender = simulation.sender
        assert sender is not None
        before = sender.totals.sent_bytes
        sender.transmit_pause()
        for number in range(25):
            simulation.source.write(b"file", number * 65536, bytes(65536))
        sender.transmit_resume()
        await trio.sleep(30)
        sent = sender.totals.sent_bytes - before
        assert 10**6 <= sent <= 10**6 + 300_000, sent
        assert simulation.status.transmit_mode is TransmitMode.SCHEDULED
        assert 300_000 < simulation.status.queued_bytes < 10**6
        assert "when 1 MB are queued" in simulation.status.state_reason
        tell(simulation, TransmissionSchedule())
        await simulation.drained()
        simulation.assert_equal()


async def test_a_session_outlives_a_kill_of_its_sender(autojump_clock: trio.testing.MockClock) -> None:
    """Its time goes on; its target is away, so it cannot end before."""
    async with simulate(7) as simulation:
        await simulation.drained()
        start, stop = StartCriteria(at="2023-11-14 22:20"), StopCriteria(after="10 minutes")
        tell(simulation, TransmissionSchedule(start=start, stop=stop))
        await simulation.kill_receiver()
        simulation.source.create(b"file")
        await trio.sleep(600)  # 22:23
        session = simulation.status.schedule
        assert session.session_began is not None and simulation.status.state is ConnectionState.ERROR
        await simulation.kill_sender()
        await trio.sleep(120)
        simulation.start_sender()
        await trio.sleep(60)
        later = simulation.status.schedule
        assert later.session_began == session.session_began
        assert later.session_seconds == pytest.approx(session.session_seconds + 180, abs=3)
        await trio.sleep(300)  # 22:31
        later = simulation.status.schedule
        assert later.session_began is None and later.last_end == "its time is up"
        assert simulation.status.state is ConnectionState.SCHEDULED
        simulation.start_receiver()
        await trio.sleep(600)
        assert names(simulation) == set()


async def test_a_mirror_obeys_the_schedule(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(4) as simulation:
        for number in range(20):
            simulation.source.create(b"f%d" % number)
        await simulation.drained()
        tell(simulation, TransmissionSchedule(start=StartCriteria(at="2023-11-14 23:00")))
        sender = simulation.sender
        assert sender is not None
        await trio.sleep(30)
        (simulation.target_root / "f3").unlink()
        sender.mirror_start("full")
        await trio.sleep(1200)
        assert "f3" not in names(simulation)
        simulation.source_world.delays_s[:] = [2.0]  # it takes longer than a look
        await trio.sleep(1800)  # past 23:00
        assert "f3" in names(simulation) and simulation.status.mirror.complete
        assert simulation.status.transmit_mode is TransmitMode.SCHEDULED


async def test_what_was_missed_while_nothing_ran_is_made_up_for_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with simulate(5) as simulation:
        await simulation.drained()
        tell(simulation, TransmissionSchedule(start=StartCriteria(at="2023-11-14 23:00", every="1 hour")))
        await trio.sleep(30)
        simulation.source.create(b"file")
        await simulation.kill_sender()
        await trio.sleep(4 * 3600)
        sender = simulation.start_sender()
        await trio.sleep(60)
        assert names(simulation) == {"file"}
        began = [e for e in sender.story.since() if e.event == "a scheduled session begins"]
        assert len(began) == 1
        assert simulation.status.schedule.next_time is not None
        assert simulation.status.schedule.next_time % 3600 == 0


async def test_a_queue_that_fills_between_sessions_is_tracked(autojump_clock: trio.testing.MockClock) -> None:
    """And counts as full for a start criterion."""
    from kit.topology import topology

    async with topology(6) as net:
        data = net.mount("data", memory_bytes=8 * 64 * 1024, disk_bytes=0)
        data.source.create(b"file")
        connection = net.connect([data])
        await connection.drained()
        object.__setattr__(connection.world, "zone", UTC)
        schedule = TransmissionSchedule(start=StartCriteria(queue_percent=100))
        connection.running.set_schedule(msgspec.to_builtins(schedule))
        await trio.sleep(30)
        assert connection.status.transmit_mode is TransmitMode.SCHEDULED
        for number in range(200):
            data.source.write(b"file", number * 4096, bytes(4096))
            await trio.sleep(0.1)
        with trio.fail_after(600):
            while connection.status.schedule.last_end != "the queue is empty":  # noqa: ASYNC110
                await trio.sleep(1)
        assert data.lost == 0
        await trio.sleep(60)
        # The last mtime is told when the file has been quiet for a while: in a session to come.
        connection.assert_equal(frozenset({"mtime_ns"}))
