"""Where each queue of an agent is: home/places.json.

The configuration says where queues should be; a queue that is in use, or holds something, is somewhere
already. What is noted here counts, and is changed only when the queue has been moved.
"""

import threading

import msgspec

from replicator.agent.state import load_document, save_document
from replicator.paths import remove_if_empty
from replicator.queue import moving
from replicator.world import Disk


class Place(msgspec.Struct, frozen=True):
    """The directories of one queue."""

    memory: str
    disk: str


class Places(msgspec.Struct, frozen=True):
    """places.json."""

    queues: dict[str, Place] = {}


class QueuePlaces:
    """By the id of a mount, or the uuid of a connection that ends here. Called in threads, as moving takes
    long; by one at a time for each queue. OSErrors and StateErrors are the caller's.
    """

    def __init__(self, path: str, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._lock = threading.Lock()  # of the file
        self._queues = dict((load_document(path, Places) or Places()).queues)

    def of(self, identifier: str, wanted: Place) -> Place:
        """Where a queue is; where it shall be, if it is nowhere yet."""
        return self._queues.get(identifier, wanted)

    def settle(self, identifier: str, wanted: Place, first: Place | None = None) -> bool:
        """Bring a queue that nobody uses to where it shall be. Returns whether it was moved.

        Its memory tier stays as long as it holds anything. `first`: where it is, if it is there and that was
        not noted. OSError: it is where it was.
        """
        known = self._queues.get(identifier)
        if known is None and first is not None and self._disk.exists(first.disk):
            known = first
        if known is None:
            self._note(identifier, wanted)
            return False
        holds_memory = self._disk.exists(f"{known.memory}/header")
        place = Place(known.memory if holds_memory else wanted.memory, wanted.disk)
        if place.disk != known.disk:
            try:
                moving.copy(self._disk, known.disk, place.disk)
            except OSError:
                moving.discard(self._disk, place.disk)
                raise
        if place != known:
            self._note(identifier, place)
        former = moving.finish(self._disk, place.disk)
        if former:
            remove_if_empty(former)
        return place.disk != known.disk

    def prepare(self, identifier: str, wanted: Place) -> None:
        """Copy ahead what `settle` will have to, while the queue is in use."""
        known = self.of(identifier, wanted)
        if known.disk != wanted.disk:
            try:
                moving.copy(self._disk, known.disk, wanted.disk, in_use=True)
            except OSError:
                moving.discard(self._disk, wanted.disk)
                raise

    def forget(self, identifier: str) -> None:
        with self._lock:
            if self._queues.pop(identifier, None) is not None:
                self._save()

    def keep_only(self, identifiers: set[str]) -> None:
        """Forget all others."""
        with self._lock:
            gone = self._queues.keys() - identifiers
            for identifier in gone:
                del self._queues[identifier]
            if gone:
                self._save()

    def _note(self, identifier: str, place: Place) -> None:
        with self._lock:
            self._queues[identifier] = place
            self._save()

    def _save(self) -> None:
        save_document(self._path, Places(dict(self._queues)))
