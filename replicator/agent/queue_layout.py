"""Where the queues of an agent shall be, and how large they may become: as configured.

Where each of them is now is noted (`queue_places.py`).
"""

import os
from collections.abc import Iterable

import trio

from replicator import events
from replicator.agent.queue_places import Place, QueuePlaces
from replicator.agent.state import AgentIdentity, Mount
from replicator.config import Queue
from replicator.errors import ReplicatorError
from replicator.events import EventRing
from replicator.paths import Home, memory_directory
from replicator.queue.settings import JournalSettings
from replicator.world import World


class QueueLayout:
    """Journals of mounts, and spools of copies."""

    def __init__(self, home: Home, identity: AgentIdentity, config: Queue, ring: EventRing) -> None:
        self._home = home
        self._identity = identity
        self._config = config
        self._ring = ring
        self._places = QueuePlaces(home.places, World().disk)
        self._copied_ahead: set[str] = set()  # queues of which a copy is being made while they are in use

    def journal_settings(self, mount: Mount) -> JournalSettings:
        """Where the journal of a mount is, and how large it may become."""
        return self.settings(self._places.of(mount.id, self.wanted_place(mount)))

    def wanted_place(self, mount: Mount) -> Place:
        queue = self._config
        return Place(
            memory_directory(queue.memory_directory, self._identity.uuid, mount.id),
            os.path.join(queue.disk_directory or self._home.queue, mount.id),
        )

    def settings(self, place: Place) -> JournalSettings:
        queue = self._config
        return JournalSettings(
            place.memory,
            place.disk,
            queue.segment_size,
            queue.memory_size,
            queue.disk_size_max,
            queue.disk_free_min,
        )

    async def settle_journal(self, mount: Mount) -> None:
        await self._settle(mount.id, mount.path, self.wanted_place(mount))

    async def settle_spool(self, uuid: str) -> None:
        name = f"the copy of connection {uuid}"
        await self._settle(uuid, name, self.wanted_spool(uuid), self._former_spool(uuid))

    async def _settle(self, identifier: str, name: str, wanted: Place, first: Place | None = None) -> None:
        """Bring a queue that nobody uses now to where it shall be. If it cannot be there, it stays. `first`:
        where it is if that was not noted.
        """
        if identifier in self._copied_ahead:
            return  # its capture was killed just now: programs shall not wait for that
        try:
            moved = await trio.to_thread.run_sync(self._places.settle, identifier, wanted, first)
        except (OSError, ReplicatorError) as error:
            directory = self._places.of(identifier, first or wanted).disk
            reason = f"{wanted.disk}: {getattr(error, 'strerror', None) or error}"
            self._ring.add(events.QUEUE_NOT_MOVED, name=name, directory=directory, reason=reason)
        else:
            if moved:
                self._ring.add(events.QUEUE_MOVED, name=name, directory=wanted.disk)

    async def copy_ahead(self, mount: Mount) -> None:
        """While it is in use: what remains to be copied later is little. Raises OSError, ReplicatorError."""
        identifier, wanted = mount.id, self.wanted_place(mount)
        self._copied_ahead.add(identifier)
        try:
            await trio.to_thread.run_sync(self._places.prepare, identifier, wanted)
        finally:
            self._copied_ahead.discard(identifier)

    def spool(self, uuid: str) -> Place:
        """Where the spool of a copy is."""
        return self._places.of(uuid, self.wanted_spool(uuid))

    def wanted_spool(self, uuid: str) -> Place:
        queue = self._config
        disk = queue.disk_directory
        return Place(
            memory_directory(queue.memory_directory, self._identity.uuid, f"spool-{uuid}"),
            os.path.join(disk, f"spool-{uuid}") if disk else os.path.join(self._home.target(uuid), "spool"),
        )

    def _former_spool(self, uuid: str) -> Place:
        """Where software that did not note it had the spool."""
        return Place(self.wanted_spool(uuid).memory, os.path.join(self._home.target(uuid), "spool"))

    def forget(self, identifier: str) -> None:
        """A queue that is no more. Blocks."""
        self._places.forget(identifier)

    def keep_only(self, identifiers: Iterable[str]) -> None:
        """All others are no more. Blocks."""
        self._places.keep_only(set(identifiers))
