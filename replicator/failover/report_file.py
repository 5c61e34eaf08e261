"""What became of the procedures of a group: the last ones, replaced as a whole."""

import msgspec

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.failover_reports import Report
from replicator.queue.durable_file import replace_durably
from replicator.world import Disk


class ReportFile:
    """Blocks. OSError."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path

    def read(self) -> list[Report]:
        """Oldest first. One that this software does not understand is left out: it is history."""
        if not self._disk.exists(self._path):
            return []
        handle = self._disk.open_read(self._path)
        try:
            data = self._disk.read(handle, self._disk.size(self._path), 0)
        finally:
            self._disk.close(handle)
        found = []
        for line in data.splitlines():
            try:
                found.append(msgspec.json.decode(line, type=Report))
            except MALFORMED:
                continue
        return found

    def add(self, report: Report) -> None:
        """Once, however often it is added."""
        kept = [r for r in self.read() if r.uuid != report.uuid][-(limits.FAILOVER_REPORTS - 1) :]
        self._disk.makedirs(self._path.rpartition("/")[0])
        replace_durably(
            self._disk, self._path, [msgspec.json.encode(report) + b"\n" for report in [*kept, report]]
        )
