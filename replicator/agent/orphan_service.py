"""Orphans, as an administrator asks about them: settings of the copies here, and runs of connections."""

import os
from typing import Any

import msgspec
import trio

from replicator import events
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.state import Connection
from replicator.agent.wrong_values import in_words
from replicator.errors import ReplicatorError, UsageError
from replicator.orphans import FORCE, PREVIEW, START, OrphanReport, OrphanSettings, check, settings_text
from replicator.receiver.replica_paths import RefusedTarget, check_target
from replicator.repset import overlapping


class OrphansView(msgspec.Struct, frozen=True, kw_only=True):
    """`run`: id of the run that was started, which the report of its end has; "" if none was."""

    run: str
    report: OrphanReport


_EVENTS = {"pause": events.ORPHANS_PAUSED, "resume": events.ORPHANS_RESUMED}


class OrphanService:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    # --- settings of this host as a target ---

    def settings(self) -> OrphanSettings:
        return self._core.state.orphans

    async def set(self, changes: dict[str, Any]) -> OrphanSettings:
        """Change these of them (OR-05). It holds when this returns."""
        async with self._core.change() as change:
            try:
                known = msgspec.to_builtins(self._core.state.orphans)
                wanted = msgspec.convert({**known, **changes}, OrphanSettings)
            except msgspec.ValidationError as error:
                raise UsageError(in_words(error, OrphanSettings)) from None
            check(wanted)
            if wanted.directory:
                copies = await self._copies()
                await trio.to_thread.run_sync(self._check_directory, wanted.directory, copies)
            await change.save(orphans=wanted)
        self._core.events.add(events.ORPHAN_SETTINGS, text=settings_text(wanted))
        for child in self._core.children.receivers():
            try:
                await child.call("set_orphans", settings=msgspec.to_builtins(wanted))
            except ReplicatorError:
                pass  # its successor has it in its arguments
        return wanted

    async def _copies(self) -> list[str]:
        """Directories of the copies here. One whose receiver does not answer looks itself before it moves
        anything.
        """
        found: list[str] = []
        for child in self._core.children.receivers():
            try:
                found += (await child.call("status"))["targets"]
            except ReplicatorError:
                pass
        return found

    def _check_directory(self, directory: str, copies: list[str]) -> None:
        """OR-03: outside of every copy; nor where the changes would be captured. Blocks. UsageError."""
        try:
            real = check_target(directory)
        except RefusedTarget as error:
            raise UsageError(f"orphans cannot be moved there: {error}") from None
        taken = [(copy, f"the copy in {copy}") for copy in copies]
        for mount in self._core.state.mounts:
            taken += [(place, f"{place}, which is captured,") for place in (mount.path, mount.mountpoint)]
        taken.append((self._core.home.path, f"the agent's own {self._core.home.path}"))
        for place, what in taken:
            if overlapping(real, os.path.realpath(place)):
                raise UsageError(f"{directory} and {what} overlap: choose another directory")

    # --- runs ---

    async def report(self, key: str) -> OrphanReport:
        """What the target told last, with names."""
        return msgspec.convert(await self._ask(self._connections.find(key), "orphans"), OrphanReport)

    async def act(self, key: str, action: str, *, dry_run: bool, over_limit: bool) -> OrphansView:
        """`start`, `stop`, `pause`, `resume`. `dry_run`: only say what would happen. `over_limit`: a person
        has seen how many they are.
        """
        connection = self._connections.find_copied(key)
        run = ""
        if action == "start":
            mode = PREVIEW if dry_run else FORCE if over_limit else START
            run = str(await self._ask(connection, "orphans_start", mode=mode))
            self._core.events.add(events.ORPHANS_STARTED, id=connection.id, mode=mode)
        else:
            await self._ask(connection, "orphans_act", action=action)
            if action in _EVENTS:  # the target says when it has stopped
                self._core.events.add(_EVENTS[action], id=connection.id)
        return OrphansView(run=run, report=await self.report(key))

    async def _ask(self, connection: Connection, call: str, **values: object) -> Any:
        child = self._core.children.sender(connection)
        if child is None:
            raise ReplicatorError(f"connection {connection.id} does not run")
        return await child.call(call, **values)
