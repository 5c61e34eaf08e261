"""A superseded agent follows the new owner: whether, and when. `former_owner.py` carries it out.

Where nothing was written behind the fork point it follows by itself. Where something was, the policy of the
group decides, or a person (`follow`); until then its connections are held and its mounts read-only. What it
wrote is in a bundle either way before any of it is overwritten.
"""

import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.former_owner import FormerOwner, Save, Tails
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.return_way import ReturnWay
from replicator.errors import ReplicatorError
from replicator.failover.rejoin import Action, History, Meeting, Side, Verdict, rejoin
from replicator.failovers import Guard, Promotion


class Following:
    """Of one agent. `save`: keeps bundles."""

    def __init__(self, core: Core, guards: Guards, former: FormerOwner, save: Save) -> None:
        self._core = core
        self._guards = guards
        self._former = former
        self._save = save
        self._wake = trio.Event()
        self._told: dict[str, str] = {}  # by group: why it does not follow
        guards.on_superseded.append(self._superseded)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake = trio.Event()
            waits = False
            for guard in self._guards.all():
                record = guard.superseded
                if record is not None and guard.is_superseded and not self._former.is_prepared(record):
                    waits = True
                    await self._follow(guard, record)
            with trio.move_on_after(limits.FOLLOW_RETRY_S if waits else float("inf")):
                await self._wake.wait()

    async def _superseded(self, guard: Guard, record: Promotion) -> None:
        self._wake.set()

    async def follow(self, key: str) -> Guard:
        """A person decides that the branch of the new owner survives. What is written here is kept in a
        bundle. Raises ReplicatorError.
        """
        guard = self._guards.find(key)
        if guard.superseded is None or not guard.is_superseded:
            raise ReplicatorError(f"{guard.name}: nobody has taken over from this host")
        guard = await self._guards.change(guard.group, follows=guard.superseded.epoch)
        self._wake.set()
        return guard

    def reason(self, group: str) -> str:
        """Why it does not follow yet; "" if it does."""
        return self._told.get(group, "")

    async def _follow(self, guard: Guard, record: Promotion) -> None:
        try:
            if guard.follows != record.epoch:
                tails = await self._former.tails(record)
                verdict = self._verdict(guard, record, tails, (await self._former.ways(record))[0])
                if verdict.action is Action.LEAD:
                    raise ReplicatorError(
                        f"{verdict.reason} what was written here is to survive: a person has to see to that"
                        f" (docs/administrators/fenced-mounts.md), or gives it up with dtctl failover follow"
                        f" {guard.name}"
                    )
                if verdict.action is not Action.FOLLOW:
                    raise ReplicatorError(
                        f"{verdict.reason} (dtctl failover follow {guard.name}: what was written here is kept"
                        " as a bundle, and overwritten)"
                    )
            await self._former.prepare(record, self._save)
        except (ReplicatorError, OSError) as error:
            if self._told.get(guard.group) != str(error):
                self._told[guard.group] = str(error)
                self._core.events.add(events.COPY_FOLLOWS_NOT, owner=record.owner_name, reason=str(error))
        else:
            self._told.pop(guard.group, None)

    def _verdict(self, guard: Guard, record: Promotion, tails: dict[str, Tails], way: ReturnWay) -> Verdict:
        maps = [dirty for tail in tails.values() for dirty in tail.values()]
        changes = None if None in maps else sum(1 for dirty in maps if dirty is not None for _ in dirty)
        identity = self._core.identity.uuid
        mine = Side(group=guard.group, agent=identity, epoch=record.parent_epoch, owns=False, changes=changes)
        theirs = Side(
            group=guard.group,
            agent=record.owner,
            epoch=record.epoch,
            owns=True,
            changes=None,
            promotion=record,
        )
        history = History.LOST if changes is None else History.SAME
        names = {self._core.identity.name: identity, record.owner_name: record.owner}
        return rejoin(
            Meeting(
                mine=mine,
                theirs=theirs,
                history=history,
                policy=way.policy,
                prefer_node=names.get(way.prefer_node, way.prefer_node),
            )
        )
