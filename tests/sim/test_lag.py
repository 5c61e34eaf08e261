"""The meter under virtual time: a delay shows up at the stage where it is, and at no other."""

from typing import Any

import pytest
import trio
import trio.testing
from kit.simulation import MockedClock, Simulation, simulate

from replicator import limits
from replicator.net.frames import Records
from replicator.net.session import Session
from replicator.receiver.durability import Durability
from replicator.receiver.replica import Replica

pytestmark = pytest.mark.sim

DELAY_S = 0.25


class LateClock(MockedClock):
    """Stamps of a capture that comes to journal an operation only so long after it has stamped it."""

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() - int(DELAY_S * 1e9)


def late_journal(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.writer, "_clock", LateClock())


def late_sender(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Session.send

    async def late(self: Session, frame: Any, data: Any = None) -> None:
        if isinstance(frame, Records):
            await trio.sleep(DELAY_S)
        await send(self, frame, data)

    monkeypatch.setattr(Session, "send", late)


def late_network(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, link = simulation.network._links[-1]
    link._pipes[0].latency_s = DELAY_S  # from source to target


def late_apply(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    delay(Replica, "_apply", monkeypatch)


def late_sync(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    delay(Durability, "make_durable", monkeypatch)


def delay(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(owner, name)

    async def late(*arguments: Any, **options: Any) -> Any:
        await trio.sleep(DELAY_S)
        return await original(*arguments, **options)

    monkeypatch.setattr(owner, name, late)


LATE = {
    "journaled": late_journal,
    "sent": late_sender,
    "received": late_network,
    "applied": late_apply,
    "durable": late_sync,
}


@pytest.fixture
def synced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SYNC_DELAY_S", 0)
    monkeypatch.setattr(limits, "SYNC_INTERVAL_S", 0)


def shown(simulation: Simulation) -> dict[str, float]:
    return {stage.stage: stage.seconds for stage in simulation.status.lag.stages}


@pytest.mark.parametrize("where", LATE)
async def test_a_delay_is_seen_where_it_is(
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    synced_at_once: None,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with simulate(3) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        await trio.sleep(10)
        assert max(shown(simulation).values()) == 0.0
        LATE[where](simulation, monkeypatch)
        worst = dict.fromkeys(LATE, 0.0)
        for number in range(20):
            simulation.source.write(b"file", number, b"x")
            await trio.sleep(0.37)
            worst = {stage: max(worst[stage], seconds) for stage, seconds in shown(simulation).items()}
        for stage, seconds in worst.items():
            if stage == where:
                # An acknowledgement may wait for the next one, for limits.ACKNOWLEDGE_INTERVAL_S.
                assert seconds == pytest.approx(DELAY_S, abs=0.01), worst
            else:
                assert seconds < 0.02, worst
        await trio.sleep(5)
        assert max(shown(simulation).values()) == 0.0
        assert simulation.sender is not None
        history = simulation.sender.lag()
        index = list(LATE).index(where)
        assert max(s.seconds[index] for s in history.last_minute) == pytest.approx(worst[where], abs=0.01)
        assert max(s.seconds[index] for s in history.last_hour) == pytest.approx(worst[where], abs=0.01)


async def test_clocks_of_the_hosts_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, synced_at_once: None, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(4) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()

        class Wrong(MockedClock):
            def wall_ns(self) -> int:
                return super().wall_ns() + 3600 * 10**9

        object.__setattr__(simulation.target_world, "clock", Wrong())
        late_apply(simulation, monkeypatch)
        simulation.source.write(b"file", 0, b"x")
        await trio.sleep(0.4)
        assert shown(simulation)["applied"] == pytest.approx(DELAY_S, abs=0.01)
        assert sum(shown(simulation).values()) < DELAY_S + 0.05


async def test_what_waits_is_as_old_as_it_is(
    synced_at_once: None, autojump_clock: trio.testing.MockClock
) -> None:
    """A stopped transmission, and a sender that was not even there: the journal knows the age."""
    async with simulate(5) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        sender = simulation.sender
        assert sender is not None
        await trio.sleep(5)  # what was before is durable
        sender.transmit_stop()
        simulation.source.write(b"file", 0, b"x" * 1000)
        await trio.sleep(30)
        lag = simulation.status.lag
        assert 29 < lag.recovery_point_seconds <= 30.1 and 29 < lag.seconds <= 30.1
        assert lag.recovery_point_bytes > 1000 and lag.stages[1].bytes == lag.bytes == lag.held_bytes
        await simulation.kill_sender()
        await trio.sleep(30)
        simulation.source.write(b"file", 0, b"x" * 1000)
        sender = simulation.start_sender()
        await trio.sleep(1)
        assert 60 < simulation.status.lag.recovery_point_seconds < 62
        assert 60 < simulation.status.lag_seconds < 62
        sender.transmit_start()
        await simulation.drained()
        lag = simulation.status.lag
        assert (lag.seconds, lag.bytes, lag.recovery_point_seconds) == (0, 0, 0)


async def test_a_queue_that_grows_is_foreseen(
    synced_at_once: None, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(6) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        assert simulation.sender is not None
        await trio.sleep(100)  # it has fallen asleep
        simulation.sender.transmit_pause()
        for _ in range(40):
            simulation.source.write(b"file", 0, b"x" * 10_000)
            await trio.sleep(0.5)
        lag = simulation.status.lag
        assert lag.growth_bytes_per_s == pytest.approx(20_200, rel=0.03)
        assert lag.held_bytes > 400_000
        simulation.sender.transmit_resume()
        await simulation.drained()
        await trio.sleep(1)
        assert simulation.status.lag.growth_bytes_per_s < 0
        assert simulation.status.lag.held_bytes == 0


async def test_why_a_path_is_not_there_yet(
    synced_at_once: None, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(7) as simulation:
        simulation.source.mkdir(b"d")
        simulation.source.create(b"d/file")
        simulation.source.create(b"other")
        await simulation.drained()
        await trio.sleep(5)
        sender, receiver = simulation.sender, simulation.receiver
        assert sender is not None and receiver is not None

        async def told(path: str) -> list[tuple[str, str, str]]:
            answer = await sender.why(simulation.journal_id, path)
            return [(o.operation, o.stage, o.waits_for) for o in answer["operations"]]

        assert await told("d/file") == []
        receiver.pause()
        simulation.source.write(b"d/file", 0, b"x")
        await trio.sleep(1)
        sender.transmit_pause()
        simulation.source.rename(b"d", b"e")
        simulation.source.write(b"other", 0, b"x")
        await trio.sleep(0.1)
        assert await told("d/file") == [
            ("write", "received", "the target is paused"),
            ("rename", "journaled", "transmission is paused"),
        ]
        receiver.resume()
        sender.transmit_resume()
        await simulation.drained()
        await trio.sleep(5)
        assert all(stage == "durable" for _, stage, _ in await told("e/file"))
