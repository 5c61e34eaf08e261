"""How a writer of a journal waits for what its readers bring to their targets: both sides of that.

A writer that wants to know says up to which record, and rings the reader's urgent bell. A reader stores how
far its target is, looks whether more than it had said before was wanted, and rings the writer then. Each side
has a fence between its store and its look, so one of them sees the other's. A writer that wants nothing costs
its readers one look for each acknowledgement.
"""

from uuid import UUID

from replicator.queue.doorbell import answers_path, urgent_path
from replicator.queue.header import Header
from replicator.synchrony import Readiness
from replicator.world import Bell, World


class Answers:
    """The writer's side."""

    def __init__(self, world: World, memory_directory: str, header: Header) -> None:
        self.bell_path = answers_path(memory_directory)
        self._world = world
        self._memory_directory = memory_directory
        self._header = header

    def find(self, reader: UUID) -> int | None:
        """Its slot; None: it has none (yet, or any more)."""
        return self._header.find_slot(reader)

    def want(self, slot: int, reader: UUID, sequence: int, *, durable: bool) -> None:
        """Hear of it as soon as the target of `reader` has all up to there: look at `has` after this."""
        if sequence > self._header.wanted(slot, durable=durable):
            self._header.set_wanted(slot, sequence, durable=durable)
        self._header.fence()
        self._world.doorbells.ring(urgent_path(self._memory_directory, reader))

    def has(self, slot: int, sequence: int, *, durable: bool) -> bool:
        header = self._header
        reached = header.secured_sequence(slot) if durable else header.received_sequence(slot)
        return reached >= sequence

    def has_ever(self, slot: int) -> bool:
        """Whether its target has ever been synchronous: this outlives both hosts' processes and boots."""
        return self._header.secured_sequence(slot) > 0

    def note(self, slot: int, *, synchronous: bool) -> None:
        """Remember, for the next process of this boot, whether this reader is waited for."""
        self._header.set_sync_state(slot, 1 if synchronous else 2)

    def noted(self, slot: int) -> bool | None:
        """The same, of a former process; None: nothing was decided in this boot."""
        state = self._header.sync_state(slot)
        return state == 1 if state else None

    def readiness(self, slot: int) -> Readiness:
        try:
            return Readiness(self._header.readiness(slot))
        except ValueError:
            return Readiness.AWAY


class Teller:
    """The reader's side, of one cursor with a slot. Of a mount that is asynchronous nothing is wanted."""

    def __init__(self, world: World, memory_directory: str, header: Header, slot: int, reader: UUID) -> None:
        self._world = world
        self._header = header
        self._slot = slot
        self._urgent_path = urgent_path(memory_directory, reader)
        self._answers_path = answers_path(memory_directory)

    def wanted(self, *, durable: bool) -> int:
        return self._header.wanted(self._slot, durable=durable)

    def is_ready(self, readiness: Readiness) -> None:
        self._header.set_readiness(self._slot, readiness)

    def has(self, secured: int, received: int) -> None:
        """The target has so much on stable storage, and in its memory. Less than before is ignored."""
        header, slot = self._header, self._slot
        before, received_before = header.secured_sequence(slot), header.received_sequence(slot)
        received = max(received, secured)
        if secured > before:
            header.set_secured(slot, secured)
        if received > received_before:
            header.set_received(slot, received)
        if secured <= before and received <= received_before:
            return
        header.fence()
        if header.wanted(slot, durable=True) > before or header.wanted(slot, durable=False) > received_before:
            self._world.doorbells.ring(self._answers_path)

    def listen(self) -> Bell:
        """The bell that is rung when something is wanted."""
        return self._world.doorbells.listen(self._urgent_path)

    def remove(self) -> None:
        self._world.doorbells.remove(self._urgent_path)
