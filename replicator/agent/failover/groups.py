"""The groups of this agent as its target: what is remembered of them (`State.monitors`), and their history.

Every part of failover changes a group here, so that a change is durable before anybody believes in it. Such a
change waits for no other change of the agent's state (`Core.change`), which may hang on what has failed.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from replicator import limits
from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover.history import Entry, History
from replicator.errors import ReplicatorError, UsageError
from replicator.failover.phases import GROUP, GroupEvent
from replicator.failover.terms import terms_of
from replicator.failovers import Monitor, Phase
from replicator.states import step as next_state


class Groups:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._history = History(core.home.failover_history)
        self._changing = trio.Lock()
        self.changed = trio.Event()  # something of one is different; then replaced

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
        async with self._changing:
            if any(monitor.name == other.name for other in self.all()):
                raise UsageError(f"monitor {monitor.name!r} exists: choose another --name")
            if len(self.all()) >= limits.MONITORS:
                raise UsageError(f"an agent has at most {limits.MONITORS} monitors")
            await self._save((*self.all(), monitor))

    async def change(
        self, uuid: str, *, check: Callable[[Monitor], None] | None = None, **fields: Any
    ) -> Monitor:
        """Replace fields of one, durably. `check` may refuse, of what it is by then. Raises NotFoundError: it
        was removed.
        """
        async with self._changing:
            before = self.find(uuid)
            if check is not None:
                check(before)
            monitor = msgspec.structs.replace(before, **fields)
            if terms_of(monitor.settings) != terms_of(before.settings):
                monitor = msgspec.structs.replace(monitor, terms=before.terms + 1)
            await self._save(tuple(monitor if m.uuid == uuid else m for m in self.all()))
        return monitor

    async def set_phase(self, uuid: str, phase: Phase) -> Monitor:
        """The table of steps is in `failover/phases.py`; who calls this has asked it."""
        return await self.change(uuid, phase=phase, since=time.time())

    async def step(self, uuid: str, event: GroupEvent) -> Monitor:
        """What the table says of this event in the present phase. Raises ReplicatorError: it cannot be."""
        async with self._changing:
            monitor = self.find(uuid)
            if (monitor.phase, event) not in GROUP:
                raise ReplicatorError(f"monitor {monitor.name} is {monitor.phase}: {event} cannot be now")
            phase = next_state(GROUP, monitor.phase, event)
            if phase is not monitor.phase:
                monitor = msgspec.structs.replace(monitor, phase=phase, since=time.time())
                await self._save(tuple(monitor if m.uuid == uuid else m for m in self.all()))
        return monitor

    async def remove(self, uuid: str) -> Monitor:
        """Its history stays."""
        async with self._changing:
            monitor = self.find(uuid)
            await self._save(tuple(m for m in self.all() if m.uuid != uuid))
        return monitor

    async def _save(self, monitors: tuple[Monitor, ...]) -> None:
        await self._core.save(monitors=monitors)
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    # --- what happened ---

    async def note(self, monitor: Monitor, what: str, text: str) -> None:
        """`what`: one word, for programs; `text`: for people."""
        await self._history.add(
            Entry(time=time.time(), group=monitor.uuid, name=monitor.name, what=what, text=text)
        )

    async def history(self, key: str = "") -> list[Entry]:
        """Oldest first; of one group, by its name or uuid, also if it was removed. Raises NotFoundError."""
        found = await self._history.read()
        of_it = [entry for entry in found if not key or key in (entry.group, entry.name)]
        if key and not of_it:
            self.find(key)
        return of_it
