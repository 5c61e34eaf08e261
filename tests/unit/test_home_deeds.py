"""What a home keeps that watches the owner from now on: with fakes."""

from types import SimpleNamespace
from typing import Any, cast

from replicator.agent.failover.home_deeds import HomeDeeds
from replicator.failover.witness import Ballot, Entry, voted
from replicator.failovers import Guard, Monitor, MonitorSettings, Promotion

HOME, OWNER = "home", "owner"
MISSED = Promotion(group="g", epoch=9, parent_epoch=8, owner=OWNER, owner_name="owner")


class Agent:
    """Groups and promotion records of it; scripts, which it has none of."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.run_for_other = None

    def get(self, group: str) -> None:
        return None

    async def add(self, monitor: Monitor) -> None:
        self.done.append(monitor)

    async def keep(self, record: Promotion) -> None:
        self.done.append(record)


async def test_a_witness_that_missed_the_owner_learns_of_it_by_the_next_vote() -> None:
    agent = Agent()
    some = cast(Any, agent)
    deeds = HomeDeeds(cast(Any, SimpleNamespace()), *([some] * 7)).deeds()
    guard = Guard(group="g", target_host="10.0.0.2", target_port=1500, superseded=MISSED)
    await deeds.adopt(Monitor(uuid="g", name="web", settings=MonitorSettings(source_host="home")), guard)
    record, monitor = agent.done  # in this order: who can vote has it
    assert record == MISSED and (monitor.epoch, monitor.source_uuid) == (9, OWNER)

    entry = Entry(group="g", agents=(HOME, OWNER), epoch=8, owner=HOME)
    ballot = Ballot(
        agent=HOME, candidate=HOME, owner=OWNER, parent_epoch=9, epoch=10, attempt="1", armed=True
    )
    _, refused = voted(entry, "g", ballot, 0.0, 0.0, {})
    assert not refused.given and "another owner" in refused.reason
    ballot = Ballot(
        agent=HOME,
        candidate=HOME,
        owner=OWNER,
        parent_epoch=9,
        epoch=10,
        attempt="1",
        armed=True,
        promotion=record,
    )
    learnt, given = voted(entry, "g", ballot, 0.0, 0.0, {})
    assert given.given, given
    assert (learnt.epoch, learnt.owner) == (9, OWNER)
