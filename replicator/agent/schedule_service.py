"""Transmission schedules, as an administrator asks for them. They are kept with the connection, or with the
target that several connections have in common, and carried out by the senders.
"""

from datetime import datetime
from typing import Any

import msgspec

from replicator import events
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.state import Connection
from replicator.agent.transmissions import known_target
from replicator.errors import UsageError
from replicator.status import ScheduleStatus
from replicator.transmission_schedule import (
    StartCriteria,
    StopCriteria,
    TransmissionSchedule,
    Window,
    compiled,
    size_text,
)
from replicator.world import local_zone

NOTHING = TransmissionSchedule()
CLEARABLE = ("start", "stop", "window", "all")


class ScheduleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`start`, `stop`, `window`: set that kind of criteria, all of it; `clear` one kind, or all; `enable`,
    `disable`.
    """

    action: str
    at: str = ""  # of `start`: a local date and time, or "now"
    every: str = ""
    queue_percent: float | None = None
    queue_bytes: str = ""
    after: str = ""  # of `stop`
    sent_bytes: str = ""
    opens: str = ""  # of `window`
    closes: str = ""
    what: str = "all"  # of `clear`


class TargetScheduleRequest(ScheduleRequest, frozen=True, kw_only=True):
    target: str


class ScheduleService:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def show(self, key: str) -> ScheduleStatus:
        connection = self._connections.find(key)
        status = await self._connections.status(connection)
        state = self._core.state
        # What its sender does not say, if it does not run.
        shared = connection.options.schedule == NOTHING and connection.host in state.schedules
        return msgspec.structs.replace(
            status.schedule,
            settings=state.schedule_of(connection),
            target=connection.host if shared else "",
        )

    def show_target(self, host: str) -> ScheduleStatus:
        """What connections to it obey that have no schedule of their own."""
        host = known_target(self._core.state, host)
        settings = self._core.state.schedules.get(host, NOTHING)
        if settings == NOTHING:
            reason = "no schedule is set"
        elif settings.holds:
            reason = "each connection by its own queue: dtctl schedule show CON"
        else:
            reason = "the schedule is disabled"
        return ScheduleStatus(settings=settings, holds=settings.holds, target=host, next_reason=reason)

    async def act(self, key: str, request: ScheduleRequest) -> ScheduleStatus:
        """Change the settings. They hold when this returns."""
        async with self._core.change() as change:
            connection = self._connections.find(key)
            wanted = changed(connection.options.schedule, request)
            options = msgspec.structs.replace(connection.options, schedule=wanted)
            other = msgspec.structs.replace(connection, options=options)
            await change.save(
                connections=tuple(
                    other if c.uuid == connection.uuid else c for c in self._core.state.connections
                )
            )
        self._note(f"connection {connection.id}", wanted)
        await self._tell(other)
        return await self.show(key)

    async def act_on_target(self, request: TargetScheduleRequest) -> ScheduleStatus:
        """The same for a target (TX-03): for all connections to it without a schedule of their own."""
        async with self._core.change() as change:
            state = self._core.state
            host = known_target(state, request.target)
            wanted = changed(state.schedules.get(host, NOTHING), request)
            others = {name: known for name, known in state.schedules.items() if name != host}
            await change.save(schedules=others | ({} if wanted == NOTHING else {host: wanted}))
        self._note(f"target {host}", wanted)
        for connection in self._core.state.connections:
            if connection.host == host:
                await self._tell(connection)
        return self.show_target(host)

    def _note(self, what: str, wanted: TransmissionSchedule) -> None:
        self._core.events.add(events.SCHEDULE_CHANGED, what=what, text=described(wanted))

    async def _tell(self, connection: Connection) -> None:
        wanted = msgspec.to_builtins(self._core.state.schedule_of(connection))
        await self._core.children.tell_sender(connection, "set_schedule", schedule=wanted)


def changed(known: TransmissionSchedule, request: ScheduleRequest) -> TransmissionSchedule:
    """UsageError unless what is asked for makes sense."""
    given = {
        name: getattr(request, name)
        for name in ScheduleRequest.__struct_fields__
        if name not in ("action", "what", "target") and getattr(request, name) not in ("", None)
    }
    values: dict[str, Any] = {}
    if request.action == "start":
        at = given.get("at") or ("now" if request.every else "")
        given["at"] = datetime.now().astimezone().isoformat(" ", "seconds") if at == "now" else at
        values["start"] = _made(StartCriteria, "start", given)
    elif request.action == "stop":
        values["stop"] = _made(StopCriteria, "stop", given)
    elif request.action == "window":
        values["window"] = _made(Window, "window", given)
    elif request.action == "clear":
        if request.what not in CLEARABLE:
            raise UsageError(f"clear {request.what!r}: must be one of {', '.join(CLEARABLE)}")
        kinds = CLEARABLE[:-1] if request.what == "all" else (request.what,)
        empty = TransmissionSchedule()
        values = {kind: getattr(empty, kind) for kind in kinds}
    elif request.action in ("enable", "disable"):
        values["enabled"] = request.action == "enable"
    else:
        raise UsageError(
            f"action {request.action!r}: must be one of start, stop, window, clear, enable, disable"
        )
    wanted = msgspec.structs.replace(known, **values)
    compiled(wanted, local_zone())
    return wanted


def _made(kind: Any, action: str, given: dict[str, Any]) -> Any:
    found = {name: value for name, value in given.items() if value != ""}
    foreign = [name for name in found if name not in kind.__struct_fields__]
    if foreign:
        raise UsageError(f"{foreign[0]}: is none of {action}, which has {', '.join(kind.__struct_fields__)}")
    if not found:
        raise UsageError(f"{action}: say at least one of {', '.join(kind.__struct_fields__)}")
    return kind(**found)


def described(schedule: TransmissionSchedule) -> str:
    """One line, in the words of its user."""
    start, stop, window = schedule.start, schedule.stop, schedule.window
    parts = []
    if start.at:
        parts.append(f"from {start.at}")
    if start.every:
        parts.append(f"every {start.every}")
    if start.queue_percent is not None:
        parts.append(f"when the queue is {start.queue_percent:g} % full")
    if start.queue_bytes:
        parts.append(f"when {size_text(start.queue_bytes)} are queued")
    if stop.after:
        parts.append(f"for at most {stop.after}")
    if stop.sent_bytes:
        parts.append(f"at most {size_text(stop.sent_bytes)} a session")
    if window.opens:
        parts.append(f"between {window.opens} and {window.closes}")
    text = ", ".join(parts) or "none"
    return text if schedule.enabled or not parts else f"{text} (disabled)"
