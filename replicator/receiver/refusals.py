"""What could not be done, kept until the source has surely heard of it."""

from collections import deque
from collections.abc import Callable

from replicator import limits
from replicator.mirror.pieces import Refused, encode_refused
from replicator.receiver.replica_state import Applied, RefusedBatch


class Refusals:
    """Also over a kill: `save` replaces what is kept for a successor. `changed` is called for each."""

    def __init__(
        self,
        applied: Applied,
        refused: list[RefusedBatch],
        save: Callable[[list[RefusedBatch]], None],
        changed: Callable[[], None],
    ) -> None:
        self.kept: deque[RefusedBatch] = deque(refused)
        self.count = len(refused)  # ever added
        self._applied = applied
        self._save = save
        self._changed = changed

    def add(self, refused: list[Refused], batches: int | None = None) -> None:
        """`batches`: number of the batch they are of; None: of a record.

        The source never has more batches under way than are kept.
        """
        number = self._applied.batches if batches is None else batches
        self.kept.append(RefusedBatch(number, encode_refused(refused), batches or 0))
        self.count += 1
        while (
            len(self.kept) > limits.PIECES_IN_FLIGHT
            and self.kept[0].batches < number - limits.PIECES_IN_FLIGHT
        ):
            self.kept.popleft()
        self._save(list(self.kept))
        self._changed()

    def clear(self) -> None:
        self.kept.clear()
        self._save([])

    def forget_heard(self) -> None:
        """At the end of a mirror: the source has heard of those before the last batch, or it would not have
        ended it.
        """
        self.kept = deque(r for r in self.kept if r.batches >= self._applied.batches)
        self._save(list(self.kept))
