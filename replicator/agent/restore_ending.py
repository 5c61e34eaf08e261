"""How a restore ends here: protection goes on, or it does not until a person says so.

All steps of a change; each may be repeated after a kill.
"""

import os
import time
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.agent import planning
from replicator.agent.core import Change, Core
from replicator.agent.mounts import Mounts
from replicator.agent.repsets import Repsets
from replicator.agent.state import Connection, Map, Mount, Restore
from replicator.errors import JournalError, ReplicatorError
from replicator.fs import calls
from replicator.queue.cursor import Cursor
from replicator.repset import is_inside
from replicator.restores import Phase, RestoreView
from replicator.sender.arguments import Restored
from replicator.world import World

EVERYTHING = [b""]


def lacking_everything(restore: Restore) -> dict[str, list[bytes]]:
    """By the source's paths of its roots: nothing is known to be equal."""
    return {root.source: EVERYTHING for root in restore.roots}


class Ending:
    """Of the restores of one agent."""

    def __init__(self, core: Core, mounts: Mounts, repsets: Repsets) -> None:
        self._core = core
        self._mounts = mounts
        self._repsets = repsets

    async def save(self, change: Change, restore: Restore, **values: Any) -> None:
        changed = msgspec.structs.replace(restore, **values)
        restores = tuple(changed if r.uuid == restore.uuid else r for r in self._core.state.restores)
        await change.save(restores=restores)

    async def sync(self, restore: Restore) -> None:
        """What was restored is on stable storage. Raises ReplicatorError."""

        def work() -> None:
            for place in restore.places:
                descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    calls.syncfs(descriptor)
                except OSError as error:
                    if restore.over_source:
                        raise ReplicatorError(f"{place} cannot be synced: {error.strerror}") from None
                finally:
                    os.close(descriptor)

        await trio.to_thread.run_sync(work)

    async def forget_receiver(self, restore: Restore) -> None:
        """It forgets the restore when its sender says so; if that did not reach it, here."""
        deadline_s = trio.current_time() + limits.RESTORE_RETRY_S
        while self._core.children.receiver(restore.uuid) is not None:
            if trio.current_time() > deadline_s:
                break
            await trio.sleep(limits.CHILD_POLL_S)
        child = self._core.children.receiver(restore.uuid)
        if child is not None:
            try:
                await child.call("forget")
            except ReplicatorError:
                pass  # it is just ending

    async def complete(
        self, change: Change, restore: Restore, lacking: dict[str, list[bytes]], view: RestoreView
    ) -> str:
        """Everything is there, and the other side knows. Returns what becomes of protection."""
        if restore.request.definition or restore.request.protect:
            await self._keep_definition(change, restore)
        if restore.over_source:
            connection = await self._resume(change, restore, lacking, resume=True)
            resumed = f"connection {connection.id} goes on replicating, without a mirror"
        elif restore.request.protect:
            resumed = await self._protect(change, restore)
        else:
            resumed = "what was restored is not replicated by this"
            if any(self._is_captured(place) for place in restore.places):
                resumed = "it was captured, as what programs write"
        ended = {"phase": Phase.COMPLETE, "finished": time.time(), "resumed": resumed}
        await self._bring_up(restore)  # first: whoever waits for the end starts programs
        view = msgspec.structs.replace(view, **ended)
        await self.save(change, restore, last=view, **ended)
        return resumed

    async def abandon(
        self,
        change: Change,
        restore: Restore,
        phase: Phase,
        reason: str,
        lacking: dict[str, list[bytes]],
    ) -> None:
        """Not everything is there. What was the source is a mixture: it is not replicated by itself."""
        if restore.over_source:
            await self._resume(change, restore, lacking, resume=False)
        await self._bring_up(restore)
        await self.save(change, restore, phase=phase, reason=reason, finished=time.time())

    # --- over its own source ---

    def is_noted(self, restore: Restore) -> bool:
        """Whether it is noted already where the connection goes on."""
        return any(
            c.restored is not None and c.restored.restore == restore.uuid
            for c in self._core.state.connections
        )

    async def _resume(
        self, change: Change, restore: Restore, lacking: dict[str, list[bytes]], *, resume: bool
    ) -> Connection:
        """Note where the connection goes on. Its mounts are still down: nothing is journaled meanwhile."""
        state = self._core.state
        known = next(c for c in state.connections if c.uuid == restore.copy)
        if self.is_noted(restore):
            return known
        heads: dict[str, tuple[int, int]] = {}
        differs: dict[str, list[bytes]] = {}
        for journal in self._core.children.journals(known):
            head = await trio.to_thread.run_sync(self._head, journal.mount)
            found = [
                _below(journal.root, source, path)
                for source, paths in lacking.items()
                if is_inside(source, journal.root)
                for path in paths
            ]
            if head is None or len(found) > limits.RESTORE_LACKING:
                found = EVERYTHING
            if head is not None:
                heads[journal.mount.id] = head
            differs[journal.mount.id] = found
        connection = msgspec.structs.replace(
            known,
            epoch=restore.epoch + 1 if resume else known.epoch,
            restored=Restored(restore.uuid, heads, differs, resume=resume),
        )
        connections = tuple(connection if c.uuid == known.uuid else c for c in state.connections)
        await change.save(connections=connections)
        return connection

    def _head(self, mount: Mount) -> tuple[int, int] | None:
        """Where the journal of a mount that is down ends; None: only its next capture will know."""
        try:
            cursor = Cursor.open(World(), self._core.children.journal_settings(mount), mount.id, None)
        except JournalError:
            return None
        try:
            head = cursor.head()
        finally:
            cursor.close()
        return head.sequence, head.chain

    async def _bring_up(self, restore: Restore) -> None:
        if not restore.over_source:
            return
        children, state = self._core.children, self._core.state
        mounts = [mount for mount in state.mounts if mount.id in restore.mounts]
        for child in [await children.start_capture(mount, patient=True) for mount in mounts]:
            try:
                await child.wait_running()
            except ReplicatorError as error:  # it is tried on, and shown at the mount
                self._core.events.add(events.ADVICE, text=f"restore {restore.id}: {error}")
        for connection in state.connections:
            if connection.uuid == restore.copy:
                await children.start_sender(connection, patient=True)

    # --- on another host ---

    async def _keep_definition(self, change: Change, restore: Restore) -> None:
        """RT-05."""
        if restore.definition.name not in self._repsets.names():
            await self._repsets.make(change, restore.definition.name, restore.definition.rules)

    async def _protect(self, change: Change, restore: Restore) -> str:
        """Capture what was restored, and go on with the copy."""
        for root in restore.roots:
            if not self._is_captured(root.source):
                await self._mounts.make(change, root.source, None, "auto")
        state = self._core.state
        made = next((c for c in state.connections if c.uuid == restore.copy), None)
        if made is not None:
            return f"connection {made.id} goes on replicating, without a mirror"
        generation = self._repsets.find(restore.definition.name).generation
        repset = msgspec.structs.replace(restore.definition, generation=generation)
        number = state.last_connection_id + 1
        connection = Connection(
            uuid=restore.copy,
            id=number,
            repset=repset,
            target_host=restore.host,
            target_port=restore.port,
            maps=tuple(Map(root.source, root.replica) for root in restore.roots),
            created=time.time(),
            epoch=restore.epoch + 1,
            restored=Restored(restore.uuid),
        )
        await change.save(connections=(*state.connections, connection), last_connection_id=number)
        for journal in planning.journals_of(repset, state.mounts):
            await self._mounts.tell_active(journal.mount)
        # From its first moment on changes are journaled; nobody starts programs before.
        await self._core.children.start_sender(connection)
        return f"connection {number} goes on replicating, without a mirror"

    def _is_captured(self, path: str) -> bool:
        return any(is_inside(path, root) for m in self._core.state.mounts for root in (m.mountpoint, m.path))


def _below(root: str, source: str, path: bytes) -> bytes:
    """A path below `source` as one below `root`, which is above it."""
    above = os.fsencode(source[len(root.rstrip("/")) :].strip("/"))
    return b"/".join(part for part in (above, path) if part)
