"""What a binding needs to know of synchronous mounts. See `replicator.capture.synchrony`."""

from typing import Protocol


class Ticket(Protocol):
    """What a reply waits for."""

    def is_met(self) -> bool:
        """In any thread, without a lock."""
        ...


class Synchrony(Protocol):
    """Decides which replies wait. Under the lock."""

    @property
    def is_on(self) -> bool: ...
    @property
    def of_all(self) -> bool: ...
    @property
    def is_strict(self) -> bool: ...
    def want(self, path: bytes | None, *, durable: bool) -> Ticket | None: ...
