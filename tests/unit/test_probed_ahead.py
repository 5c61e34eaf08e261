"""Addresses of a source that will soon count as failed are asked for ahead."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
from kit.disk import MemoryDisk

from replicator import limits
from replicator.agent.failover.addresses import GroupAddresses
from replicator.failover import addresses
from replicator.failover.addresses import ConflictError, Host, Place, Wanted
from replicator.failovers import Monitor, MonitorSettings, WatchedAddress

GROUP = Monitor(
    uuid="group",
    name="web",
    settings=MonitorSettings(source_host="alpha", addresses=(WatchedAddress(address="10.0.0.5/24"),)),
)
PROBE_S = 0.2


class Network:
    """`taken`: somebody answers for the address. `asked`: when it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = False
        self.asked: list[float] = []
        self.host = Host((), ())
        self.own = GroupAddresses(MemoryDisk(), "/book", lambda *_, **__: None)
        for name in ("look", "places", "probe"):
            monkeypatch.setattr(addresses, name, getattr(self, name))
        monkeypatch.setattr(self.own, "_refuse_own", self.nothing)

    async def nothing(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def look(self) -> Host:
        await trio.lowlevel.checkpoint()
        return self.host

    async def places(self, items: Sequence[Wanted], host: Host) -> list[Place]:
        await trio.lowlevel.checkpoint()
        return [Place(item.address, cast(Any, "eth0")) for item in items]

    async def probe(self, found: Sequence[Place], host: Host) -> None:
        self.asked.append(trio.current_time())
        await trio.sleep(PROBE_S)
        if self.taken:
            raise ConflictError("it is in use")

    async def step(self) -> float:
        """As the step of a failover asks. Returns how long that took."""
        began_s = trio.current_time()
        await self.own.probe(GROUP, forced=False, say=lambda text: None)
        return trio.current_time() - began_s


async def test_what_was_asked_ahead_is_not_waited_for(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch)
    await network.own.probe_ahead(GROUP)
    await network.own.probe_ahead(GROUP)
    assert await network.step() == 0 and len(network.asked) == 1
    assert await network.step() == pytest.approx(PROBE_S)  # once, and not for the next failover


async def test_what_is_asked_just_now_is_joined(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.own.probe_ahead, GROUP)
        await trio.sleep(PROBE_S / 2)
        assert await network.step() == pytest.approx(PROBE_S / 2)
    assert len(network.asked) == 1


async def test_what_was_asked_long_ago_is_asked_again(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch)
    await network.own.probe_ahead(GROUP)
    await trio.sleep(limits.ADDRESS_AHEAD_S)
    network.taken = True
    with pytest.raises(ConflictError):
        await network.step()


async def test_a_source_that_still_answered_is_asked_again(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch)
    network.taken = True
    await network.own.probe_ahead(GROUP)
    network.taken = False
    assert await network.step() == pytest.approx(PROBE_S)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ConflictError("no interface")])
async def test_nothing_comes_of_an_error(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    network = Network(monkeypatch)

    async def look() -> Host:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(addresses, "look", look)
    await network.own.probe_ahead(GROUP)
    monkeypatch.setattr(addresses, "look", network.look)
    assert await network.step() == pytest.approx(PROBE_S)
