"""Whether a superseded agent follows by itself: by what it wrote, and by the policy of its group."""

import uuid
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from replicator.agent.failover.following import Following
from replicator.agent.failover.former_owner import Tails
from replicator.agent.failover.return_way import ReturnWay
from replicator.errors import ReplicatorError
from replicator.failovers import Guard, Policy, Promotion
from replicator.ops import Identity
from replicator.queue.dirty import Dirty, DirtyMap, Scope

ME, OWNER, GROUP, CON = (str(uuid.UUID(int=n)) for n in range(1, 5))
RECORD = Promotion(group=GROUP, epoch=1, parent_epoch=0, owner=OWNER, owner_name="beta", vote="gamma")
GUARD = Guard(group=GROUP, name="web", target_uuid=OWNER, copies=(CON,), superseded=RECORD)


def written() -> DirtyMap:
    found = DirtyMap()
    found.include_entry(b"file", Dirty(b"file", Scope.FILES, Identity(1, 1)))
    return found


class Agent:
    """Its guard, and a former owner as which it acts."""

    def __init__(self, tail: DirtyMap | None, policy: Policy, prefer_node: str = "", vote: str = "") -> None:
        record = msgspec.structs.replace(RECORD, vote=vote)
        self.guard = msgspec.structs.replace(GUARD, superseded=record)
        self.on_superseded: list[object] = []
        self.tail = tail
        self.way = SimpleNamespace(policy=policy, prefer_node=prefer_node)
        self.follows = False
        self.told: list[str] = []
        self.identity = SimpleNamespace(uuid=ME, name="alpha")
        self.events = SimpleNamespace(add=lambda type_, **fields: self.told.append(fields["reason"]))

    def all(self) -> tuple[Guard, ...]:
        return (self.guard,)

    def find(self, key: str) -> Guard:
        return self.guard

    async def change(self, group: str, **fields: Any) -> Guard:
        self.guard = msgspec.structs.replace(self.guard, **fields)
        return self.guard

    def is_prepared(self, record: Promotion) -> bool:
        return self.follows

    async def tails(self, record: Promotion) -> dict[str, Tails]:
        await trio.lowlevel.checkpoint()
        return {CON: {"mount": self.tail}}

    async def ways(self, record: Promotion) -> list[ReturnWay]:
        return [cast(ReturnWay, self.way)]

    async def prepare(self, record: Promotion, save: object) -> None:
        self.follows = True

    def following(self) -> Following:
        me = cast(Any, self)
        return Following(me, me, me, cast(Any, None))


async def settle(agent: Agent) -> Following:
    following = agent.following()
    with trio.move_on_after(20):
        await following.run()
    return following


@pytest.mark.parametrize(
    ("policy", "prefer_node", "vote"),
    [
        (Policy.PREFER_NEWER_EPOCH, "", ""),
        (Policy.PREFER_NODE, OWNER, ""),
        (Policy.PREFER_NODE, "beta", ""),  # as people write it
        (Policy.PREFER_WITNESS_VOTE, "", "gamma"),
    ],
)
async def test_the_policy_lets_the_owner_survive(
    autojump_clock: object, policy: Policy, prefer_node: str, vote: str
) -> None:
    agent = Agent(written(), policy, prefer_node, vote)
    await settle(agent)
    assert agent.follows and agent.told == []


@pytest.mark.parametrize("node", [ME, "alpha"])
async def test_this_branch_is_to_lead(autojump_clock: object, node: str) -> None:
    """Nobody promotes it behind a person's back: it stays fenced, and says once what can be done."""
    agent = Agent(written(), Policy.PREFER_NODE, node)
    following = await settle(agent)
    assert not agent.follows and len(agent.told) == 1
    assert "what was written here is to survive" in agent.told[0] and "fenced-mounts.md" in agent.told[0]
    await following.follow("web")  # the person decides otherwise
    with trio.move_on_after(20):
        await following.run()
    assert agent.follows and following.reason(GROUP) == ""


@pytest.mark.parametrize(
    ("tail", "policy", "prefer_node"),
    [
        (written(), Policy.MANUAL, ""),
        (written(), Policy.DISCARD_ZERO_CHANGES, ""),
        (written(), Policy.PREFER_MOST_CHANGES, ""),
        (written(), Policy.PREFER_WITNESS_VOTE, ""),
        (written(), Policy.PREFER_NODE, "misspelled"),
        (None, Policy.PREFER_NEWER_EPOCH, ""),  # nobody knows what was written
    ],
)
async def test_a_person_is_asked(
    autojump_clock: object, tail: DirtyMap | None, policy: Policy, prefer_node: str
) -> None:
    agent = Agent(tail, policy, prefer_node)
    await settle(agent)
    assert not agent.follows and "dtctl failover follow web" in agent.told[0] and len(agent.told) == 1


async def test_what_wrote_nothing_follows_at_once(autojump_clock: object) -> None:
    agent = Agent(DirtyMap(), Policy.MANUAL)
    following = await settle(agent)
    assert agent.follows
    agent.guard = msgspec.structs.replace(agent.guard, superseded=None)
    with pytest.raises(ReplicatorError, match="nobody has taken over"):
        await following.follow("web")
