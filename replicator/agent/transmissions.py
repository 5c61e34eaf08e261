"""Compression and bandwidth of connections, and of targets with all connections to them.

What is said of a target (its host, as connections name it) holds for all of its connections, also for later
ones (CP-03, TX-03). A connection may have a compression of its own; a limit of its own acts beside that of
its target, which all of them share.
"""

import msgspec

from replicator import events, transmission
from replicator.agent.connections import Connections
from replicator.agent.core import Core, NotFoundError
from replicator.agent.state import Connection, State
from replicator.errors import UsageError
from replicator.limit_calendar import labels
from replicator.status import ConnectionStatus
from replicator.transmission import TransmissionSettings, TransmissionStatus


class TransmissionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    compression: str | None = None  # "": as the target's
    bandwidth: str | None = None  # "": no limit
    limiting: bool | None = None


class TargetRequest(TransmissionRequest, frozen=True, kw_only=True):
    target: str


class ConnectionTransmission(msgspec.Struct, frozen=True, kw_only=True):
    """Of one connection: what was said of it, and how it is now."""

    id: int
    repset: str
    target: str  # host
    settings: TransmissionSettings
    calendar: tuple[str, ...]  # labels of its entries; they go before the limit of `settings`
    now: TransmissionStatus


class TransmissionView(msgspec.Struct, frozen=True, kw_only=True):
    """All of this source."""

    targets: dict[str, TransmissionSettings]
    calendars: dict[str, tuple[str, ...]]  # of targets: labels
    connections: tuple[ConnectionTransmission, ...]
    zstd_levels: tuple[int, ...]  # of the levels from 1 on
    links_bit_per_s: dict[str, int]


class Transmissions:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def view(self) -> TransmissionView:
        now = {status.uuid: status.transmission for status in await self._connections.all()}
        state = self._core.state
        return TransmissionView(
            targets=state.transmissions,
            calendars={host: labels(entries) for host, entries in state.limit_calendars.items()},
            connections=tuple(
                ConnectionTransmission(
                    id=connection.id,
                    repset=connection.repset.name,
                    target=connection.host,
                    settings=connection.options.transmission,
                    calendar=labels(connection.options.limit_calendar),
                    now=now.get(connection.uuid, TransmissionStatus()),
                )
                for connection in state.connections
            ),
            zstd_levels=transmission.ZSTD_LEVELS,
            links_bit_per_s=transmission.LINKS_BIT_PER_S,
        )

    async def set(self, key: str, request: TransmissionRequest) -> ConnectionStatus:
        """Of one connection. It holds when this returns."""
        async with self._core.change() as change:
            connection = self._connections.find(key)
            settings = changed(connection.options.transmission, request)
            options = msgspec.structs.replace(connection.options, transmission=settings)
            new = msgspec.structs.replace(connection, options=options)
            connections = (new if c.uuid == new.uuid else c for c in self._core.state.connections)
            await change.save(connections=tuple(connections))
        self._note(f"connection {new.id}", settings)
        await self._tell(new)
        return await self._connections.status(new)

    async def set_target(self, host: str, request: TransmissionRequest) -> TransmissionView:
        """Of a target, for all connections to it."""
        async with self._core.change() as change:
            state = self._core.state
            host = known_target(state, host)
            settings = changed(state.transmission_of(host), request)
            others = {name: known for name, known in state.transmissions.items() if name != host}
            said = {} if settings == TransmissionSettings() else {host: settings}
            await change.save(transmissions=others | said)
        self._note(f"target {host}", settings)
        for connection in self._core.state.connections:
            if connection.host == host:
                await self._tell(connection)
        return await self.view()

    def _note(self, what: str, settings: TransmissionSettings) -> None:
        limit = settings.bandwidth or transmission.UNLIMITED
        if not settings.limiting:
            limit += " (limiting is off)"
        compression = settings.compression or "not set"
        self._core.events.add(events.TRANSMISSION_SET, what=what, compression=compression, limit=limit)

    async def _tell(self, connection: Connection) -> None:
        orders = self._core.children.arguments.transmission_orders(connection)
        await self._core.children.tell_sender(
            connection, "set_transmission", orders=msgspec.to_builtins(orders)
        )


def known_target(state: State, text: str) -> str:
    """A target as settings name it, of what a person calls it. Raises NotFoundError if there is none."""
    host = text.strip().lower()
    said = {*state.transmissions, *state.schedules, *state.limit_calendars}
    known = {connection.host for connection in state.connections} | said
    if host not in known:
        hosts = ", ".join(sorted(known)) or "none"
        raise NotFoundError(f"no connection to a target {host!r}; targets: {hosts}")
    return host


def changed(settings: TransmissionSettings, request: TransmissionRequest) -> TransmissionSettings:
    """Raises UsageError if what is asked for makes no sense."""
    if request.compression is None and request.bandwidth is None and request.limiting is None:
        raise UsageError("nothing to change: say compression, bandwidth or limiting")
    settings = transmission.changed(settings, request.compression, request.bandwidth)
    if request.limiting is not None:
        settings = msgspec.structs.replace(settings, limiting=request.limiting)
    return settings
