"""Whole connections that compress and are limited: the copy is the same, and what is told of it is true."""

from typing import Any

import pytest
import trio
from kit.simulation import Simulation, simulate

from replicator.net.session import Session
from replicator.sender.arguments import SenderOptions
from replicator.status import ConnectionState, ConnectionStatus
from replicator.transmission import TransmissionOrders, TransmissionSettings

pytestmark = pytest.mark.sim

TEXT = b"".join(b"%d: a line of a text that repeats itself\n" % n for n in range(40_000))


def options(**more: Any) -> SenderOptions:
    return SenderOptions(mirror="full", transmission=TransmissionOrders(**more))


def write(simulation: Simulation, path: bytes, data: bytes) -> None:
    simulation.source.create(path)
    for offset in range(0, len(data), 100_000):
        simulation.source.write(path, offset, data[offset : offset + 100_000])


def check(status: ConnectionStatus) -> None:
    sent, packed = status.sent_bytes, status.sent_compressed_bytes
    assert sent == status.sent_mirror_bytes + status.sent_replication_bytes
    mirrored, replicated = status.sent_compressed_mirror_bytes, status.sent_compressed_replication_bytes
    assert packed == mirrored + replicated
    assert 0 <= mirrored <= status.sent_mirror_bytes and 0 <= replicated <= status.sent_replication_bytes


@pytest.mark.parametrize("compression", ["off", "3", "auto"])
async def test_mirror_and_replication_with_compression(compression: str, autojump_clock: Any) -> None:
    async with simulate(11, options=options(compression=compression), start=False) as simulation:
        write(simulation, b"before", TEXT)
        simulation.start_receiver()
        sender = simulation.start_sender()
        await simulation.drained()
        for number in range(20):
            write(simulation, b"after%d" % number, TEXT[: 5000 * number])
        await simulation.drained()
        simulation.assert_equal()
        status = sender.status()
        check(status)
        went = sum(link.sent_bytes[0] for link in simulation.network._between("source", "target"))
        assert status.sent_bytes > 1.5 * len(TEXT)
        if compression == "off":
            assert status.sent_compressed_bytes == status.sent_bytes < went
        if compression == "3":
            assert status.transmission.level == 3 and status.transmission.ratio > 5
            assert status.sent_compressed_bytes < status.sent_bytes / 5
            assert status.sent_compressed_bytes < went < status.sent_compressed_bytes + 200_000
            # Cut off and connected again: another context, and the target understands it.
            simulation.network.cut("source", "target")
            write(simulation, b"later", TEXT)
            await simulation.drained()
            simulation.assert_equal()
            check(sender.status())


async def test_a_level_holds_at_once_and_without_a_reconnect(autojump_clock: Any) -> None:
    async with simulate(12, options=options()) as simulation:
        assert simulation.sender is not None
        sender = simulation.sender
        await simulation.drained()
        connected_since = sender.status().connected_since
        for number, compression in enumerate(("off", "1", "9", "off", "4")):
            sender.set_transmission({"compression": compression})
            before = sender.status()
            write(simulation, b"file%d" % number, TEXT[:100_000])
            await simulation.drained()
            status = sender.status()
            sent = status.sent_bytes - before.sent_bytes
            packed = status.sent_compressed_bytes - before.sent_compressed_bytes
            assert (packed == sent) if compression == "off" else (packed < sent / 4)
            check(status)
        assert sender.status().connected_since == connected_since
        simulation.assert_equal()


async def test_limits_hold_at_once_are_kept_and_a_calendar_goes_before_them(autojump_clock: Any) -> None:
    own = TransmissionSettings(bandwidth="100 kB/s")
    async with simulate(13, options=options(own=own)) as simulation:
        assert simulation.sender is not None
        sender = simulation.sender
        await simulation.drained()

        async def seconds(size: int) -> float:
            began = trio.current_time()
            write(simulation, b"file%d" % (1000 * trio.current_time()), TEXT[:size])
            await simulation.drained()
            return trio.current_time() - began

        assert sender.status().transmission.limit_bytes_per_s == 100_000
        assert 9 < await seconds(1_000_000) < 12
        control = sender._transmission
        control.set_bandwidth("200 kB/s")
        assert 4 < await seconds(1_000_000) < 7
        control.set_bandwidth("unlimited")
        assert await seconds(1_000_000) < 3
        control.set_bandwidth("")
        assert sender.status().transmission.limit == "100 kB/s"
        assert 9 < await seconds(1_000_000) < 12
        off = TransmissionSettings(bandwidth="100 kB/s", limiting=False)  # TX-04
        sender.set_transmission({"own": {"bandwidth": "100 kB/s", "limiting": False}})
        assert off.bandwidth and sender.status().transmission.limit_bytes_per_s is None
        assert await seconds(1_000_000) < 3
        sender.set_transmission({"target": {"bandwidth": "50 kB/s"}, "target_page": "/home/run/limit-x"})
        assert sender.status().transmission.limit == "50 kB/s"
        assert 9 < await seconds(500_000) < 12
        simulation.assert_equal()


async def test_a_slow_limit_breaks_no_session(autojump_clock: Any) -> None:
    own = TransmissionSettings(bandwidth="1 kB/s")
    async with simulate(14, options=options(own=own)) as simulation:
        assert simulation.sender is not None
        sender = simulation.sender
        await simulation.drained()
        connected_since = sender.status().connected_since
        write(simulation, b"file", TEXT[:100_000])
        await simulation.drained()
        assert sender.status().connected_since == connected_since
        simulation.assert_equal()


async def test_an_older_target_is_sent_everything_as_it_is(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.receiver.acceptance.PACKED_FEATURE", "something else")
    async with simulate(15, options=options(compression="3")) as simulation:
        assert simulation.sender is not None
        write(simulation, b"file", TEXT)
        await simulation.drained()
        status = simulation.sender.status()
        assert status.transmission.peer_understands is False and status.transmission.level == 0
        assert status.sent_compressed_bytes == status.sent_bytes
        simulation.assert_equal()


async def test_keys_that_were_used_enough_are_no_loss_of_the_connection(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session follows by itself, also where a lost one waits for a person (AD-12)."""
    monkeypatch.setattr(Session, "keys_are_used", property(lambda session: session.sent_bytes > 500_000))
    async with simulate(16, options=SenderOptions(mirror="full", reconnect=False)) as simulation:
        assert simulation.sender is not None
        await simulation.drained()
        before = simulation.sender.status().connected_since
        write(simulation, b"file", TEXT[:1_200_000])
        await simulation.drained()
        simulation.assert_equal()
        status = simulation.sender.status()
        assert status.connected_since != before and status.state is ConnectionState.STARTED
        events = [entry.event for entry in simulation.sender.story.since()]
        assert "connected again" in events and "connection lost" not in events


async def test_a_ratio_lets_changes_go_first_and_ends_the_mirror_all_the_same(autojump_clock: Any) -> None:
    """RP-05, with a program that writes all the time; it may be set while the mirror runs."""
    settings = SenderOptions(mirror="full", replication_ratio=20)
    async with simulate(5, options=settings, start=False) as simulation:
        for number in range(200):
            write(simulation, b"before%d" % number, TEXT[:20_000])
        simulation.start_receiver()
        sender = simulation.start_sender()
        held = 0
        simulation.source.create(b"log")
        for number in range(400):
            simulation.source.write(b"log", number * 1000, bytes(1000))
            held += sender.mirrors.mix.holds
            await trio.sleep(0.001)
        assert held, "no step ever had to wait for changes"
        assert sender.mirrors.mix.ratio == 20
        sender.configure(remirror="log", reconnect=True, replication_ratio=0)
        assert not sender.mirrors.mix.holds
        await simulation.drained()
        simulation.assert_equal()
