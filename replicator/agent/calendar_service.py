"""Calendars of bandwidth limits, as an administrator asks for them: of a connection, or of a target. Senders
carry them out.
"""

import time

import msgspec

from replicator import events
from replicator.agent.connections import Connections
from replicator.agent.core import Core, NotFoundError
from replicator.agent.state import Connection
from replicator.agent.transmissions import known_target
from replicator.errors import UsageError
from replicator.limit_calendar import LimitEntry, check, in_force, labels, parse_days
from replicator.transmission import TransmissionSettings, parse_limit
from replicator.world import local_zone


class CalendarRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`add` an entry, or replace the one with its label; `remove` one; `clear` all."""

    action: str
    label: str = ""
    days: str = ""  # "mo,tu", "Saturday"; "": every day
    start: str = ""
    end: str = ""
    limit: str = ""


class TargetCalendarRequest(CalendarRequest, frozen=True, kw_only=True):
    target: str


class CalendarView(msgspec.Struct, frozen=True, kw_only=True):
    """`label` of the entry that holds now, "" if the full-time limit does; `until`: when that may change.
    `limiting` False: nothing of it acts, TX-04.
    """

    entries: tuple[LimitEntry, ...]
    label: str
    until: float | None
    zone: str
    limiting: bool


class CalendarService:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def show(self, key: str) -> CalendarView:
        options = self._connections.find(key).options
        return _view(options.limit_calendar, options.transmission)

    def show_target(self, host: str) -> CalendarView:
        state = self._core.state
        host = known_target(state, host)
        return _view(state.calendar_of(host), state.transmission_of(host))

    async def act(self, key: str, request: CalendarRequest) -> CalendarView:
        """It holds when this returns."""
        async with self._core.change() as change:
            connection = self._connections.find(key)
            entries = changed(connection.options.limit_calendar, request)
            options = msgspec.structs.replace(connection.options, limit_calendar=entries)
            other = msgspec.structs.replace(connection, options=options)
            known = self._core.state.connections
            await change.save(connections=tuple(other if c.uuid == other.uuid else c for c in known))
        self._note(f"connection {other.id}", entries)
        await self._tell(other)
        return _view(entries, options.transmission)

    async def act_on_target(self, request: TargetCalendarRequest) -> CalendarView:
        """The same for the limit that all connections to a target share."""
        async with self._core.change() as change:
            state = self._core.state
            host = known_target(state, request.target)
            entries = changed(state.calendar_of(host), request)
            others = {name: known for name, known in state.limit_calendars.items() if name != host}
            await change.save(limit_calendars=others | ({host: entries} if entries else {}))
        self._note(f"target {host}", entries)
        for connection in self._core.state.connections:
            if connection.host == host:
                await self._tell(connection)
        return _view(entries, self._core.state.transmission_of(host))

    def _note(self, what: str, entries: tuple[LimitEntry, ...]) -> None:
        text = ", ".join(labels(entries)) or "none"
        self._core.events.add(events.CALENDAR_CHANGED, what=what, labels=text)

    async def _tell(self, connection: Connection) -> None:
        own = msgspec.to_builtins(connection.options.limit_calendar)
        target = msgspec.to_builtins(self._core.state.calendar_of(connection.host))
        await self._core.children.tell_sender(connection, "set_limit_calendar", entries=own, target=target)


def _view(entries: tuple[LimitEntry, ...], settings: TransmissionSettings) -> CalendarView:
    zone = local_zone()
    entry, until = in_force(entries, time.time(), zone)
    label = entry.label if entry is not None else ""
    return CalendarView(entries=entries, label=label, until=until, zone=str(zone), limiting=settings.limiting)


def changed(entries: tuple[LimitEntry, ...], request: CalendarRequest) -> tuple[LimitEntry, ...]:
    """UsageError unless what is asked for makes sense."""
    label = request.label.strip()
    others = tuple(entry for entry in entries if entry.label != label)
    if request.action == "clear":
        return ()
    if request.action == "remove":
        if len(others) == len(entries):
            known = ", ".join(labels(entries)) or "none"
            raise NotFoundError(f"no entry {label!r} in the calendar; entries: {known}")
        return others
    if request.action != "add":
        raise UsageError(f"action {request.action!r}: must be one of add, remove, clear")
    if not request.limit.strip():
        raise UsageError("an entry needs a limit: '1 MB/s', '10 % of T1', or unlimited")
    parse_limit(request.limit)
    days, limit = parse_days(request.days), " ".join(request.limit.split())
    entry = LimitEntry(label=label, start=request.start, end=request.end, days=days, limit=limit)
    check((*others, entry))
    return (*others, entry)
