"""What is kept of drills: one file each, in a directory; the last of each group are kept."""

import os

import msgspec

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.failover_drills import OVER, Drill
from replicator.queue.durable_file import replace_durably
from replicator.world import World

_SUFFIX = ".json"


class DrillFiles:
    """All calls block."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._disk = World().disk

    def save(self, drill: Drill) -> None:
        """Durable when it returns. OSError."""
        self._disk.makedirs(self._directory)
        replace_durably(self._disk, self._path(drill.uuid), [msgspec.json.encode(drill)])

    def all(self) -> list[Drill]:
        """The newest first."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            if name.endswith(_SUFFIX):
                try:
                    with open(os.path.join(self._directory, name), "rb") as file:
                        found.append(msgspec.json.decode(file.read(), type=Drill))
                except (OSError, *MALFORMED):
                    continue  # damaged: only a result is lost
        return sorted(found, key=lambda drill: -drill.began)

    def tidy(self) -> None:
        """Forget the oldest results of each group."""
        kept: dict[str, int] = {}
        for drill in self.all():
            kept[drill.group] = kept.get(drill.group, 0) + 1
            if kept[drill.group] > limits.DRILLS_KEPT and drill.state in OVER:
                self._disk.unlink(self._path(drill.uuid))

    def _path(self, uuid: str) -> str:
        return os.path.join(self._directory, uuid + _SUFFIX)
