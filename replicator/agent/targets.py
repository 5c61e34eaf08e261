"""Copies that are kept here, whoever sends them."""

from typing import Any

import msgspec

from replicator import events, failover_drills
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.supervisor import Child
from replicator.errors import ReplicatorError


class TargetView(msgspec.Struct, frozen=True, kw_only=True):
    """One receiver: a copy that is kept here."""

    uuid: str
    pid: int | None
    problem: str
    status: Any


_TARGET_EVENTS = {
    "pause": events.TARGET_PAUSED,
    "resume": events.TARGET_RESUMED,
    "use": events.TARGET_USED,
}


class Targets:
    """The receivers of an agent."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def all(self) -> list[TargetView]:
        found = []
        for child in self._core.children.receivers():
            try:
                status = await child.call("status")
            except ReplicatorError:
                status = None
            found.append(TargetView(uuid=child.plan.id, pid=child.pid, problem=child.problem, status=status))
        return found

    async def _release(self, child: Child) -> None:
        """A copy that stands still for a restore that nobody carries out any more goes on."""
        restore = (await child.call("status"))["restoring"]
        if not restore:
            return
        if restore.startswith(failover_drills.HOLD):
            raise ReplicatorError(
                f"a drill reads the copy {child.plan.id}: end that first (dtctl failover drill NAME --end)"
            )
        if self._core.children.sender_of(restore) is not None:
            raise ReplicatorError(
                f"the copy {child.plan.id} is being restored from: stop that on the host that gets it (dtctl"
                " restore stop)"
            )
        await child.call("restore_ends", restore=restore)

    async def act(self, key: str | None, action: str) -> int:
        """`pause`, `resume`, `use` or `forget` receivers of this agent: one by its uuid or its connection
        here, or all.

        Returns how many.
        """
        uuid = key
        if key is not None and self._core.children.receiver(key) is None:
            connection = self._connections.find(key)
            uuid = connection.uuid
            if self._core.children.receiver(uuid) is None:
                raise ReplicatorError(
                    f"connection {connection.id} is applied by another agent: ask that one"
                    f" (on {connection.target_host}: dtctl target {action} {uuid})"
                )
        chosen = [child for child in self._core.children.receivers() if uuid in (None, child.plan.id)]
        for child in chosen:
            if action == "resume":
                await self._release(child)
            await child.call(action)
        if action in _TARGET_EVENTS:
            self._core.events.add(_TARGET_EVENTS[action], count=len(chosen))
        return len(chosen)
