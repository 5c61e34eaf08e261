"""Other targets of the source of a group (one to many): told of the new owner, they refuse the old one.

A source says which they are while it can (`siblings`); its target remembers that. After a promotion each of
them is told (`new-owner`), again and again until it knows. Its copy stands where the former source had
brought it, and says so. By one command of a person the new owner takes it over (`adopt-copy`): it ends as a
copy of the former source, and a difference mirror makes it one of the new owner's.

An agent that is told this is no owner of the copy: so it is believed of those only to whom a person has given
all copies (`dtctl trust restores NAME all`).
"""

import os
from collections.abc import Sequence

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.connections import Connections, ConnectRequest
from replicator.agent.copy_keeper import roots_of
from replicator.agent.core import Core
from replicator.agent.failover.calls import Caller, Calls, Nothing
from replicator.agent.failover.copies_again import CopiesAgain
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.promotion import Promotions
from replicator.agent.failover.return_way import ReturnWay
from replicator.agent.repsets import Repsets
from replicator.agent.state import Connection, Map, load_document, save_document
from replicator.diagnostics import is_nowhere
from replicator.errors import NotPermittedError, ReplicatorError
from replicator.failovers import Monitor, Phase, Promotion, return_of
from replicator.net.frames import Connect
from replicator.receiver.replica_state import StateFile
from replicator.repset import is_inside
from replicator.world import World

ASK, TELL, ADOPT = "siblings", "new-owner", "adopt-copy"


class Sibling(msgspec.Struct, frozen=True, kw_only=True):
    """A connection of the source whose copy is somewhere else."""

    connection: str  # uuid
    repset: str
    host: str
    port: int

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    siblings: tuple[Sibling, ...] = ()


class NewOwner(msgspec.Struct, frozen=True, kw_only=True):
    """About one copy of whoever is asked."""

    connection: str
    promotion: Promotion


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """(path at the former source, directory of the copy)."""

    places: tuple[tuple[str, str], ...] = ()


class Siblings:
    """Of one agent, whatever it is to others."""

    def __init__(
        self,
        core: Core,
        calls: Calls,
        groups: Groups,
        guards: Guards,
        promotions: Promotions,
        connections: Connections,
        repsets: Repsets,
    ) -> None:
        self._core = core
        self._calls = calls
        self._groups = groups
        self._guards = guards
        self._promotions = promotions
        self._connections = connections
        self._repsets = repsets
        self._copies = CopiesAgain(core)
        self._told: set[tuple[str, int]] = set()  # copies, and of which epoch they know
        self._problems: dict[str, str] = {}  # by copy: why it was not told
        calls.register(ASK, Nothing, self._which)
        calls.register(TELL, NewOwner, self._new_owner)
        calls.register(ADOPT, NewOwner, self._adopt)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for monitor in self._groups.all():
                try:
                    await self._look_after(monitor)
                except (ReplicatorError, OSError):
                    pass  # the source is away, or of another version; or this host's disk takes nothing
            await trio.sleep(limits.SIBLINGS_LOOK_S)

    async def _look_after(self, monitor: Monitor) -> None:
        if monitor.phase is Phase.ACTIVE:
            record = self._promotions.record(monitor.uuid)
            for sibling in self.known(monitor):
                if record is not None and (sibling.connection, record.epoch) not in self._told:
                    await self._tell(monitor, sibling, record)
        elif monitor.phase is Phase.WATCHING:
            settings = monitor.settings
            address = Address(settings.source_host, settings.source_port)
            found = await self._calls.ask(address, ASK, monitor.uuid, Nothing(), Known)
            if found != Known(siblings=self.known(monitor)):
                await trio.to_thread.run_sync(self._remember, monitor, found)

    def known(self, monitor: Monitor) -> tuple[Sibling, ...]:
        found = load_document(self._core.home.siblings(monitor.uuid), Known)
        return found.siblings if found is not None else ()

    def _remember(self, monitor: Monitor, found: Known) -> None:
        path = self._core.home.siblings(monitor.uuid)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        save_document(path, found)

    async def _tell(self, monitor: Monitor, sibling: Sibling, record: Promotion) -> None:
        about = NewOwner(connection=sibling.connection, promotion=record)
        try:
            await self._calls.ask(sibling.address, TELL, monitor.uuid, about, Known)
        except ReplicatorError as error:
            if self._problems.get(sibling.connection) != str(error):
                self._problems[sibling.connection] = str(error)
                self._core.events.add(
                    events.SIBLING_NOT_TOLD, repset=sibling.repset, where=sibling.address, reason=str(error)
                )
        else:
            self._told.add((sibling.connection, record.epoch))
            self._core.events.add(
                events.SIBLING_TOLD,
                name=monitor.name,
                where=sibling.address,
                repset=sibling.repset,
                source=monitor.source_name or monitor.settings.source_host,
            )

    # --- by a person, on the new owner ---

    async def adopt(self, key: str, host: str) -> list[int]:
        """Copies of the former source on that host become copies of what this host owns now, by a difference
        mirror. Returns the connections. Raises ReplicatorError.
        """
        monitor = self._groups.find(key)
        record = self._promotions.record(monitor.uuid)
        if monitor.phase is not Phase.ACTIVE or record is None:
            raise ReplicatorError(f"{monitor.name}: this host has not taken over")
        chosen = [s for s in self.known(monitor) if host in (s.host, str(s.address))]
        if not chosen:
            there = ", ".join(str(s.address) for s in self.known(monitor)) or "none"
            raise ReplicatorError(f"{monitor.name}: the source had no copy on {host}; other targets: {there}")
        return [await self._adopt_one(monitor, record, sibling) for sibling in chosen]

    async def _adopt_one(self, monitor: Monitor, record: Promotion, sibling: Sibling) -> int:
        ways = [w for copy in record.copies if (w := self._way(copy.connection, record)) is not None]
        about = NewOwner(connection=sibling.connection, promotion=record)
        adopted = await self._calls.ask(sibling.address, ADOPT, monitor.uuid, about, Adopted)
        maps = [m for source, there in adopted.places if (m := _map(source, there, ways)) is not None]
        if len(maps) != len(adopted.places):
            raise ReplicatorError(f"{sibling.repset}: not all of that copy is owned by this host now")
        owned = next(c for c in self._core.state.connections if c.uuid in {w.copy for w in ways})
        async with self._core.change() as change:
            if owned.repset.name not in self._repsets.names():
                await self._repsets.make(change, owned.repset.name, owned.repset.rules)
            request = ConnectRequest(
                repset=owned.repset.name, target=str(sibling.address), maps=tuple(maps), mirror="difference"
            )
            connection: Connection = await self._connections.make(change, request)
        return connection.id

    def _way(self, connection: str, record: Promotion) -> ReturnWay | None:
        return self._promotions.opening.return_way(connection, record.group)

    # --- on the source ---

    async def _which(self, group: str, about: Nothing, caller: Caller) -> Known:
        guard = self._guards.find(group)
        if caller.peer is not None and caller.peer.uuid != guard.target_uuid:
            raise NotPermittedError(f"{guard.name} is watched by another agent than {caller.name}")
        mounts = set(self._guards.mounts_of(guard))
        return Known(
            siblings=tuple(
                Sibling(connection=c.uuid, repset=c.repset.name, host=c.target_host, port=c.target_port)
                for c in self._core.state.connections
                if c.uuid not in guard.copies
                and c.uuid not in {return_of(copy) for copy in guard.copies}
                and c.target_host
                and not is_nowhere(c.target_host)
                and any(j.mount.id in mounts for j in self._core.children.journals(c))
            )
        )

    # --- on another target of it ---

    async def _new_owner(self, group: str, about: NewOwner, caller: Caller) -> Known:
        await self._check(about, caller)
        child = self._core.children.receiver(about.connection)
        assert child is not None
        await child.call("learn", record=msgspec.to_builtins(about.promotion))
        status = await child.call("status")
        self._core.events.add(
            events.COPY_HAS_NEW_OWNER,
            repset=status["repset"],
            owner=about.promotion.owner_name,
            source=status["source_name"],
        )
        return Known()

    async def _adopt(self, group: str, about: NewOwner, caller: Caller) -> Adopted:
        await self._check(about, caller)
        connect = await self._connect_of(about.connection)
        places = tuple((root.source, root.replica) for root in roots_of(connect))
        await self._copies.discard(about.connection)
        return Adopted(places=places)

    async def _connect_of(self, connection: str) -> Connect:
        directory = self._core.home.target(connection)
        state = await trio.to_thread.run_sync(lambda: StateFile(World(), directory).load())
        if state is None or state.connect is None:
            raise ReplicatorError(f"nothing of connection {connection} has come here yet")
        return state.connect

    async def _check(self, about: NewOwner, caller: Caller) -> None:
        if self._core.children.receiver(about.connection) is None:
            raise ReplicatorError(f"{self._core.identity.name} keeps no copy {about.connection}")
        peer = caller.peer
        if peer is not None and not (peer.restores_all and peer.uuid == about.promotion.owner):
            raise NotPermittedError(
                f"copy {about.connection} belongs to another source: on {self._core.identity.name}, allow it"
                f" with dtctl trust restores {peer.name} all"
            )


def _map(source: str, there: str, ways: Sequence[ReturnWay]) -> Map | None:
    """From where the new owner has what the former source had there."""
    for way in ways:
        for index, below, target in way.maps:
            if is_inside(source, target):
                root = way.journals[index][1]
                rest = [part for part in (below, source[len(target.rstrip("/")) :].strip("/")) if part]
                return Map("/".join([root.rstrip("/"), *rest]), there)
    return None
