"""The groups of this agent as its target: what is remembered of them (`State.monitors`), and their history.

Every part of failover changes a group here, so that a change is durable before anybody believes in it.
"""

import time
from typing import Any

import msgspec

from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover.history import Entry, History
from replicator.errors import UsageError
from replicator.failovers import Monitor, Phase


class Groups:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._history = History(core.home.failover_history)

    def all(self) -> tuple[Monitor, ...]:
        return self._core.state.monitors

    def get(self, uuid: str) -> Monitor | None:
        return next((monitor for monitor in self.all() if monitor.uuid == uuid), None)

    def find(self, key: str) -> Monitor:
        """By its name or uuid. Raises NotFoundError."""
        for monitor in self.all():
            if key in (monitor.name, monitor.uuid):
                return monitor
        known = ", ".join(monitor.name for monitor in self.all()) or "none"
        raise NotFoundError(f"no monitor {key!r}; monitors: {known}")

    async def add(self, monitor: Monitor) -> None:
        async with self._core.change() as change:
            if any(monitor.name == other.name for other in self.all()):
                raise UsageError(f"monitor {monitor.name!r} exists: choose another --name")
            await change.save(monitors=(*self.all(), monitor))

    async def change(self, uuid: str, **fields: Any) -> Monitor:
        """Replace fields of one, durably. Raises NotFoundError: it was removed."""
        async with self._core.change() as change:
            monitor = msgspec.structs.replace(self.find(uuid), **fields)
            await change.save(monitors=tuple(monitor if m.uuid == uuid else m for m in self.all()))
        return monitor

    async def set_phase(self, uuid: str, phase: Phase) -> Monitor:
        """The table of steps is in `failover/phases.py`; who calls this has asked it."""
        return await self.change(uuid, phase=phase, since=time.time())

    async def remove(self, uuid: str) -> Monitor:
        """Its history stays."""
        async with self._core.change() as change:
            monitor = self.find(uuid)
            await change.save(monitors=tuple(m for m in self.all() if m.uuid != uuid))
        return monitor

    # --- what happened ---

    async def note(self, monitor: Monitor, what: str, text: str) -> None:
        """`what`: one word, for programs; `text`: for people."""
        await self._history.add(
            Entry(time=time.time(), group=monitor.uuid, name=monitor.name, what=what, text=text)
        )

    async def history(self, key: str = "") -> list[Entry]:
        """Oldest first; of one group, by its name or uuid, also if it was removed."""
        found = await self._history.read()
        return [entry for entry in found if not key or key in (entry.group, entry.name)]
