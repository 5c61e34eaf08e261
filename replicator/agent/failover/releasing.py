"""A person lets go of a group in which this host is the source: whoever watched it is lost for good.

From then on nobody is asked for leases, no fence is left, and what had become a copy of another owner's is
this host's own again, as it is. The epoch stays: an owner that comes back all the same is not superseded by
this, and supersedes this host again where a connection still leads to it. So a host that has become a copy is
rather to take over (`taking_back.py`).
"""

from collections.abc import Sequence

import msgspec

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.former_owner import FormerOwner
from replicator.agent.failover.guards import Guards, boottime_s
from replicator.agent.state import Connection
from replicator.errors import ReplicatorError
from replicator.failovers import Guard, Lapse, return_of


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """`connections`: ids of those that lead to the former target still. `problems`: left to a person."""

    name: str
    group: str
    target: str
    connections: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


class Releasing:
    """Of one agent."""

    def __init__(self, core: Core, guards: Guards, former: FormerOwner, addresses: GroupAddresses) -> None:
        self._core = core
        self._guards = guards
        self._former = former
        self._addresses = addresses

    async def release(self, key: str, *, even_if_two_masters: bool) -> Released:
        """May be done again after a crash: the guard goes last. Raises ReplicatorError that says what it
        means and what else can be done, unless `even_if_two_masters`; and if this host has a lease.
        """
        guard = self._guards.find(key)
        self._check(guard, even_if_two_masters)
        connections = [c for c in self._core.state.connections if c.uuid in guard.copies]
        problems = await self._end_copies(guard, connections)
        await self._guards.dismiss(guard.group)
        for connection in connections:
            await self._core.children.start_sender(connection, patient=True)
        self._core.events.add(events.GUARD_RELEASED, name=guard.name, target=_target(guard))
        try:
            await self._addresses.put_back(guard.group, forced=False, say=lambda text: None)
        except (ReplicatorError, OSError) as error:
            problems.append(f"addresses are not back: {error}")
        return Released(
            name=guard.name,
            group=guard.group,
            target=_target(guard),
            connections=tuple(connection.id for connection in connections),
            problems=tuple(problems),
        )

    def _check(self, guard: Guard, even_if_two_masters: bool) -> None:
        target = _target(guard)
        allowed = self._guards.right_of(guard)
        if guard.lapse is not Lapse.NONE and allowed.holds(boottime_s()) and not guard.by_hand:
            raise ReplicatorError(
                f"{guard.name}: this host has a lease, so {target} or the witness is there: end it with"
                f" dtctl failover remove {guard.name} on {target}"
            )
        if even_if_two_masters:
            return
        if guard.is_held:
            what = f"{target} has taken over, and may be writing still"
        else:
            what = f"{target} may take over as soon as it cannot see this host"
        raise ReplicatorError(
            f"{guard.name}: {what}; this host would not stop for it any more. End it with dtctl failover"
            f" remove {guard.name} on {target}; only if that is lost for good: dtctl failover release"
            f" {guard.name} --even-if-two-masters"
        )

    async def _end_copies(self, guard: Guard, connections: Sequence[Connection]) -> list[str]:
        """What is a copy of another owner's becomes this host's own. Returns problems."""
        away = [away for away in self._core.state.away if away.group == guard.group]
        if not away or guard.superseded is None:
            return []
        for connection in connections:
            child = self._core.children.receiver(return_of(connection.uuid))
            if child is not None:
                await child.call("forget")
        await self._former.end(guard.superseded)
        problems = []
        for mount in self._core.state.mounts:
            if any(mount.id in one.mounts for one in away):
                try:
                    await self._core.children.start_capture(mount)
                except ReplicatorError as error:
                    problems.append(f"{mount.path} is not captured: {error}")
        return problems


def _target(guard: Guard) -> str:
    return guard.target_name or guard.target_host
