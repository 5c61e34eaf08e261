"""Verifications, and reports of runs, as an administrator asks for them. The senders do it."""

import time
from typing import Any

import msgspec

from replicator import events
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.state import Connection
from replicator.errors import ReplicatorError, UsageError
from replicator.schedules import Schedule, parse_every, parse_start
from replicator.status import RunReport, VerifyProgress


class VerifyView(msgspec.Struct, frozen=True, kw_only=True):
    """`run`: id of the verification that was started, which the report of its end has; "" if none was."""

    run: str
    report: VerifyProgress


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`start` a verification, `stop`, `pause`, `resume` it; `schedule` it, or `unschedule`; or walk through
    the set all the time: `background`.
    """

    action: str
    checksum: bool = False
    remirror: bool = False
    newer: bool = False
    at: str = "now"  # of `schedule`: "now", or a local date and time
    every: str = ""  # the same: "30 minutes", "12 hours", "1 day"; "": once
    bytes_per_s: int = 0  # of `background`: so much is read of each side; 0 ends it

    @property
    def options(self) -> dict[str, bool]:
        return {"checksum": self.checksum, "remirror": self.remirror, "newer": self.newer}


_EVENTS = {
    "pause": events.VERIFY_PAUSED,
    "resume": events.VERIFY_RESUMED,
    "stop": events.VERIFY_STOPPED,
}


class VerifyService:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def report(self, key: str) -> VerifyProgress:
        """Of the verification under way, or of the last, with what differs."""
        return await self._report(self._connections.find(key))

    async def _report(self, connection: Connection) -> VerifyProgress:
        return msgspec.convert(await self._ask(connection, "verify_progress"), VerifyProgress)

    async def act(self, key: str, request: VerifyRequest) -> VerifyView:
        """Do what is asked for (VF-01, VF-04)."""
        connection, run, action = self._connections.find_copied(key), "", request.action
        if action == "start":
            run = str(await self._ask(connection, "verify_start", **request.options))
            wanted = msgspec.convert(request.options, VerifyProgress).options_text
            self._core.events.add(events.VERIFY_STARTED, id=connection.id, how="by request", text=wanted)
        elif action in _EVENTS:
            await self._ask(connection, "verify_act", action=action)
            self._core.events.add(_EVENTS[action], id=connection.id)
        elif action in ("schedule", "unschedule"):
            schedule = _schedule(request) if action == "schedule" else None
            value = msgspec.to_builtins(schedule) if schedule is not None else None
            await self._ask(connection, "verify_schedule", schedule=value, options=request.options)
        elif action == "background":
            options = {**request.options, "checksum": True}
            await self._ask(connection, "verify_background", bytes_per_s=request.bytes_per_s, options=options)
        else:
            known = ", ".join(["start", *_EVENTS, "schedule", "unschedule", "background"])
            raise UsageError(f"action {action!r}: must be one of {known}")
        return VerifyView(run=run, report=await self._report(connection))

    async def runs(self, key: str, kind: str, count: int) -> list[RunReport]:
        """How the newest runs ended, oldest first. `kind` "": all kinds."""
        connection = self._connections.find(key)
        found = await self._ask(connection, "runs", kinds=[kind] if kind else [], count=count)
        return msgspec.convert(found, list[RunReport])

    async def _ask(self, connection: Connection, call: str, **values: object) -> Any:
        child = self._core.children.sender(connection)
        if child is None:
            raise ReplicatorError(f"connection {connection.id} does not run")
        return await child.call(call, **values)


def _schedule(request: VerifyRequest) -> Schedule:
    """UsageError."""
    every_s = parse_every(request.every) if request.every else 0.0
    return Schedule(first=parse_start(request.at, time.time()), every_s=every_s)
