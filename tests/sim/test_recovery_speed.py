"""Speed, pause and switch of recoveries, and what replication notices of them: a real sender and receiver,
virtual time, and a network that is as slow as it is said to be.
"""

import os
from typing import Any

import pytest
import trio
import trio.testing
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.receiver.replica import Replica
from replicator.sender.arguments import SenderOptions
from replicator.sender.in_flight import InFlight
from replicator.status import MirrorStatus, TargetDataState

pytestmark = pytest.mark.sim

MIB = 1 << 20
NO_MIRROR = SenderOptions(mirror=None)
Autojump = trio.testing.MockClock


def fill(simulation: Simulation, files: int, size: int = MIB) -> None:
    """Files that no record speaks of: a mirror has to bring them."""
    for number in range(files):
        (simulation.source_root / f"file-{number}").write_bytes(os.urandom(1000) * (size // 1000))


async def started(simulation: Simulation) -> None:
    while simulation.status.state != "Started":  # noqa: ASYNC110  # nothing tells
        await trio.sleep(0.1)


async def slow_pair(simulation: Simulation, bytes_per_s: float, latency_s: float = 0.001) -> None:
    """Connected by such a link, everything applied."""
    simulation.network.bytes_per_s = bytes_per_s
    simulation.network.latency_s, simulation.network.split = latency_s, False
    simulation.start_receiver()
    simulation.start_sender()
    await started(simulation)


# --- speed ---


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
async def test_a_share_is_that_part_of_the_speed(share: float, autojump_clock: Autojump) -> None:
    took: dict[float, float] = {}
    for part in (1.0, share):
        options = SenderOptions(mirror=None, recovery_share=part)
        async with simulate(1, options=options, start=False) as simulation:
            fill(simulation, 40)
            await slow_pair(simulation, 5e6)
            assert simulation.sender is not None
            began = trio.current_time()
            simulation.sender.mirror_start("full")
            await simulation.drained()
            simulation.assert_equal()
            took[part] = trio.current_time() - began
    assert took[1.0] / took[share] == pytest.approx(share, rel=0.15)


async def test_a_change_of_speed_holds_at_once_and_none_suspends(autojump_clock: Autojump) -> None:
    async with simulate(2, options=NO_MIRROR, start=False) as simulation:
        fill(simulation, 60)
        await slow_pair(simulation, 5e6)
        sender = simulation.sender
        assert sender is not None

        async def brought_in(seconds: float) -> int:
            before = simulation.status.sent_mirror_bytes
            await trio.sleep(seconds)
            return simulation.status.sent_mirror_bytes - before

        sender.mirror_start("full")
        assert await brought_in(2.0) == pytest.approx(10e6, rel=0.3)
        sender.set_recovery(share=0.0)
        assert simulation.status.recovery.text == "Full mirror suspended"
        await trio.sleep(0.5)  # what was read before goes its way
        assert await brought_in(600.0) == 0
        assert simulation.status.mirror.remaining_s is None
        sender.set_recovery(share=0.25)
        assert await brought_in(4.0) == pytest.approx(5e6, rel=0.3)
        sender.set_recovery(share=1.0)
        assert await brought_in(2.0) == pytest.approx(10e6, rel=0.3)
        await simulation.drained()
        simulation.assert_equal()


async def test_a_sender_that_starts_later_knows_its_share(autojump_clock: Autojump) -> None:
    options = SenderOptions(mirror="full", recovery_share=0.0)
    async with simulate(3, options=options, start=False) as simulation:
        fill(simulation, 2)
        await slow_pair(simulation, 5e6)
        await trio.sleep(60)
        assert simulation.status.sent_mirror_bytes == 0
        assert simulation.sender is not None and simulation.sender.recovering()


# --- replication goes first ---


async def worst_lag_s(simulation: Simulation) -> float:
    """Of a change every 50 ms while a mirror runs for at least 10 s: until it is on the target."""
    sender = simulation.sender
    assert sender is not None
    sender.mirror_start("full")
    worst = 0.0
    for number in range(200):
        simulation.source.write(b"database", number % 8 * 4096, b"%4096d" % number)
        await trio.sleep(0.05)
        worst = max(worst, simulation.status.lag_seconds)
    assert simulation.status.mirror_status is MirrorStatus.MIRRORING
    return worst


@pytest.mark.parametrize(("rate", "files", "size"), [(1e6, 60, MIB), (1e6, 4, 20 * MIB), (1e6, 3000, 10_000)])
async def test_replication_does_not_starve(
    rate: float, files: int, size: int, autojump_clock: Autojump
) -> None:
    """Beside large files, a very large one, many small ones: at full speed, on a slow network."""
    async with simulate(4, options=NO_MIRROR, start=False) as simulation:
        simulation.source.create(b"database")
        fill(simulation, files, size)
        await slow_pair(simulation, rate)
        assert await worst_lag_s(simulation) < 2 * limits.RECOVERY_DELAY_NS / 1e9


async def test_it_would_without_the_window(monkeypatch: pytest.MonkeyPatch, autojump_clock: Autojump) -> None:
    monkeypatch.setattr(InFlight, "arrived", lambda *_: None)
    monkeypatch.setattr(limits, "RECOVERY_WINDOW_FIRST_BYTES", limits.PIECE_BYTES_IN_FLIGHT)
    async with simulate(4, options=NO_MIRROR, start=False) as simulation:
        simulation.source.create(b"database")
        fill(simulation, 60)
        await slow_pair(simulation, 1e6)
        assert await worst_lag_s(simulation) > 5


# --- the switch, and pauses ---


async def lose_something(simulation: Simulation) -> None:
    """The journal is lost while nobody reads it, as by a power cut: everything is compared."""
    await simulation.drained()
    await simulation.lose_source_power()
    (simulation.source_root / "file-0").write_bytes(b"changed")
    simulation.start_sender()
    await started(simulation)


@pytest.mark.parametrize("by", ["resume", "switch"])
async def test_a_recovery_waits_for_a_person(by: str, autojump_clock: Autojump) -> None:
    options = SenderOptions(mirror="full", automatic_recovery=False)
    async with simulate(5, options=options, start=False) as simulation:
        fill(simulation, 5)
        await slow_pair(simulation, 5e6)
        await lose_something(simulation)  # its first mirror was asked for, and ran by itself
        sender = simulation.sender
        assert sender is not None
        await trio.sleep(60)
        assert simulation.status.recovery.text == "Full recovery paused"
        assert simulation.status.target_data_state is TargetDataState.MIRRORING
        assert (simulation.target_root / "file-0").stat().st_size > 7
        simulation.source.create(b"file-new")  # changes still flow
        await trio.sleep(1)
        if by == "resume":
            sender.mirror_resume()
            # A session that breaks off does not hold back what a person has started.
            simulation.network.cut("source", "target")
            await trio.sleep(5)
        else:
            sender.set_recovery(automatic=True)
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.recovery.text == ""


async def test_a_recovery_begins_by_itself_unless_told_otherwise(autojump_clock: Autojump) -> None:
    async with simulate(6, options=SenderOptions(mirror="full"), start=False) as simulation:
        fill(simulation, 40)
        await slow_pair(simulation, 5e6)
        await lose_something(simulation)
        sender = simulation.sender
        assert sender is not None
        assert simulation.status.recovery.text == "Full recovery running, recovery enabled"
        sender.set_recovery(automatic=False)
        assert simulation.status.recovery.text == "Full recovery paused"
        sender.set_recovery(automatic=True)
        await simulation.drained()
        simulation.assert_equal()


async def test_what_was_tracked_waits_for_a_person(autojump_clock: Autojump) -> None:
    options = SenderOptions(mirror="full", automatic_recovery=False)
    async with simulate(10, options=options, start=False) as simulation:
        fill(simulation, 3)
        await slow_pair(simulation, 5e6)
        await simulation.drained()
        sender = simulation.sender
        assert sender is not None
        sender.replicate_stop()
        simulation.source.create(b"file-new")
        await trio.sleep(5)
        sender.replicate_start()
        await trio.sleep(60)
        assert simulation.status.recovery.text == "Log recovery paused"
        assert not (simulation.target_root / "file-new").exists()
        sender.mirror_resume()
        await simulation.drained()
        simulation.assert_equal()


async def test_a_mirror_that_was_asked_for_is_not_held(autojump_clock: Autojump) -> None:
    options = SenderOptions(mirror="full", automatic_recovery=False)
    async with simulate(7, options=options, start=False) as simulation:
        fill(simulation, 40)
        await slow_pair(simulation, 5e6)
        assert simulation.sender is not None
        simulation.sender.set_recovery(automatic=False)
        assert simulation.status.recovery.text == "Full mirror running"
        await simulation.drained()


async def test_a_pause_outlives_the_sender(autojump_clock: Autojump) -> None:
    async with simulate(8, options=SenderOptions(mirror="full"), start=False) as simulation:
        fill(simulation, 40)
        await slow_pair(simulation, 5e6)
        await trio.sleep(1)
        assert simulation.sender is not None
        simulation.sender.mirror_pause()
        await simulation.kill_sender()
        simulation.start_sender()
        await trio.sleep(60)
        assert simulation.status.recovery.text == "Full mirror paused"
        sent = simulation.status.sent_mirror_bytes
        simulation.sender.mirror_resume()
        await simulation.drained()
        assert simulation.status.sent_mirror_bytes > sent
        simulation.assert_equal()


# --- how far it is ---


async def test_percent_bytes_and_end(autojump_clock: Autojump) -> None:
    async with simulate(9, options=SenderOptions(mirror="full"), start=False) as simulation:
        fill(simulation, 100)
        await slow_pair(simulation, 5e6)
        began = trio.current_time()
        estimates: list[tuple[float, float]] = []
        while simulation.status.mirror_status is MirrorStatus.MIRRORING:
            progress = simulation.status.mirror
            if progress.remaining_s is not None:
                assert progress.percent is not None
                left = progress.total_bytes - progress.done_bytes
                assert progress.remaining_bytes == left
                estimates.append((trio.current_time(), progress.remaining_s))
            await trio.sleep(1)
        ended = trio.current_time()
        assert ended - began > 15 and len(estimates) > 10
        for at, remaining_s in estimates:
            assert remaining_s == pytest.approx(ended - at, abs=0.15 * (ended - began))


# --- a target that does not keep up ---


async def test_a_mirror_that_its_target_holds_up_says_so(
    autojump_clock: Autojump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MR-09: it waits, and goes on by itself."""
    place, works = Replica._place, trio.Event()

    async def slowly(*arguments: Any) -> None:
        await works.wait()
        await place(*arguments)

    monkeypatch.setattr(Replica, "_place", slowly)
    monkeypatch.setattr(Replica, "place_now", lambda *_: False)
    async with simulate(7, options=NO_MIRROR, start=False) as simulation:
        fill(simulation, 60)
        await slow_pair(simulation, 50e6)
        assert simulation.sender is not None
        simulation.sender.mirror_start("full")
        await trio.sleep(2)
        assert not simulation.status.mirror.held
        await trio.sleep(limits.MIRROR_HELD_NS / 1e9)
        assert simulation.status.state == "Started" and simulation.status.mirror.held
        works.set()
        await simulation.drained()
        assert not simulation.status.mirror.held
        simulation.assert_equal()


async def test_what_is_sent_and_what_is_applied_are_told_apart(autojump_clock: Autojump) -> None:
    """MR-10: all is sent, and the target writes nothing."""
    async with simulate(8, options=NO_MIRROR) as simulation:
        for number in range(20):
            simulation.source.create(b"%d" % number)
            simulation.source.write(b"%d" % number, 0, b"some content")
        simulation.source.settle()
        await simulation.drained()
        sender, receiver = simulation.sender, simulation.receiver
        assert sender is not None and receiver is not None
        receiver.pause()
        await trio.sleep(1)
        sender.mirror_start("full")
        await trio.sleep(10)
        status = simulation.status
        assert status.mirror_status is MirrorStatus.WAITING
        assert status.mirror.percent == 100.0 and status.mirror.done_files >= 20
        assert (status.mirror.applied_percent, status.mirror.applied_files) == (0.0, 0)
        receiver.resume()
        await simulation.drained()
        mirror = simulation.status.mirror
        assert mirror.applied_percent == 100.0
        assert (mirror.applied_files, mirror.applied_bytes) == (mirror.done_files, mirror.done_bytes)
