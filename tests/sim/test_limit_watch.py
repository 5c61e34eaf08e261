"""The limit of a calendar, as time goes by and clocks are set."""

from dataclasses import replace
from datetime import UTC

import pytest
import trio
import trio.testing
from kit.links import Network
from kit.simulation import MockedClock, simulated_world

from replicator.errors import UsageError
from replicator.limit_calendar import LimitEntry
from replicator.sender.limit_watch import LimitWatch

pytestmark = pytest.mark.sim

# The simulated day, a Tuesday, begins at 22:13:21.
ENTRIES = (
    LimitEntry(label="night", start="22:00", end="06:00", limit="unlimited"),
    LimitEntry(label="backup", days=("tu",), start="23:00", end="23:30", limit="100 kB/s"),
)


async def test_it_is_applied_when_it_changes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    network = Network(1)
    world = replace(simulated_world(1, lambda host, port: network.connect("source", host, port)), zone=UTC)
    applied: list[tuple[str, float]] = []
    began = trio.current_time()
    watch = LimitWatch(
        world, ENTRIES, lambda text: applied.append((text, round((trio.current_time() - began) / 60)))
    )
    nursery.start_soon(watch.run)
    await trio.sleep(10 * 3600)
    assert applied == [("unlimited", 0), ("100 kB/s", 47), ("unlimited", 77), ("", 467)]
    clock = world.clock
    assert isinstance(clock, MockedClock)
    clock.jump_ns = -9 * 3600 * 10**9  # 23:13 again
    await trio.sleep(2)
    assert applied[-1][0] == "100 kB/s"
    watch.set(())
    assert applied[-1][0] == ""
    with pytest.raises(UsageError):
        watch.set((LimitEntry(label="", start="08:00", limit="1"),))
