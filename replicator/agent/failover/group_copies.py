"""The copies of a group that are kept here, and what is known of them without asking their source."""

import msgspec
import trio

from replicator.agent.copy_keeper import roots_of
from replicator.agent.core import Core
from replicator.agent.supervisor import Child
from replicator.errors import ReplicatorError
from replicator.failovers import Monitor
from replicator.net.frames import Connect
from replicator.receiver.replica_state import StateFile
from replicator.restores import Root
from replicator.world import World


class GroupCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One copy. `applied`: by journal id, the last operation of the source that is in it."""

    connection: str
    repset: str
    roots: tuple[Root, ...]
    data_state: str = ""
    target_status: str = ""
    connected: bool = False
    restoring: str = ""
    waiting_bytes: int = 0
    applied: dict[str, int] = {}
    applied_until: float | None = None  # when the source did that, seconds since the epoch of clocks
    synchronous: bool = False  # programs on the source wait for it
    problem: str = ""  # why nothing is known of it now


class GroupCopies:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def receiver(self, connection: str) -> Child:
        """ReplicatorError: no copy of it is kept here."""
        child = self._core.children.receiver(connection)
        if child is None:
            raise ReplicatorError(f"{self._core.identity.name} keeps no copy {connection}")
        return child

    async def of(self, monitor: Monitor) -> list[GroupCopy]:
        """Those of the group, whatever state they are in; there may be none (CF-03)."""
        chosen = monitor.settings.copies
        if not chosen and not monitor.source_uuid:
            return []  # whose copies?
        found = []
        for uuid in chosen or [child.plan.id for child in self._core.children.receivers()]:
            copy = await self._look(uuid, "" if chosen else monitor.source_uuid)
            if copy is not None:
                found.append(copy)
        return found

    async def _look(self, uuid: str, source: str) -> GroupCopy | None:
        """None: nothing has come there yet, or it is of another source."""
        directory = self._core.home.target(uuid)
        try:
            state = await trio.to_thread.run_sync(lambda: StateFile(World(), directory).load())
        except ReplicatorError as error:
            return GroupCopy(connection=uuid, repset="", roots=(), problem=str(error)) if not source else None
        if state is None or state.connect is None:
            gone = "nothing of it is kept here"
            return None if source else GroupCopy(connection=uuid, repset="", roots=(), problem=gone)
        if source and state.source_uuid != source:
            return None
        try:
            roots = roots_of(state.connect)
        except ReplicatorError:
            roots = _each_map(state.connect)
        copy = GroupCopy(
            connection=uuid, repset=state.connect.repset, roots=roots, data_state=state.data_state
        )
        try:
            status = await self.receiver(uuid).call("status")
        except ReplicatorError as error:
            return msgspec.structs.replace(copy, problem=str(error))
        return msgspec.structs.replace(
            copy,
            data_state=status["target_data_state"],
            target_status=status["target_status"],
            connected=status["connected"],
            restoring=status["restoring"],
            waiting_bytes=0 if status["received"] == status["applied"] else max(status["queued_bytes"], 1),
            applied=status["applied"],
            applied_until=status.get("applied_until"),
            synchronous=status.get("synchronous", False),
        )


def _each_map(connect: Connect) -> tuple[Root, ...]:
    """Of a copy whose parts were put apart."""
    found: list[Root] = []
    for entry in connect.maps:
        single = msgspec.structs.replace(connect, maps=(entry,))
        found += roots_of(single)
    return tuple(found)
