"""What happened to the groups of an agent: one JSON value a line, oldest first, bounded."""

import os

import msgspec
import trio

from replicator import limits
from replicator.bounds import MALFORMED


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `time` in seconds since the epoch."""

    time: float
    group: str  # uuid
    name: str  # of its monitor, at that time
    what: str  # one word
    text: str


class History:
    """The file at `path`. A disk that takes no line loses the line, and stops nothing."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = trio.Lock()

    async def add(self, entry: Entry) -> None:
        async with self._lock:
            await trio.to_thread.run_sync(self._add, entry)

    async def read(self) -> list[Entry]:
        async with self._lock:
            return await trio.to_thread.run_sync(self._read)

    def _add(self, entry: Entry) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            with open(self._path, "ab", opener=_private) as file:
                if file.tell() and not self._ends_whole(file.tell()):
                    line = b"\n" + line  # what a crash left of a line is a line of its own
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
                size_bytes = file.tell()
            if size_bytes > limits.FAILOVER_HISTORY_BYTES:
                self._shorten()
        except OSError:
            pass  # the event log has it, too

    def _ends_whole(self, size_bytes: int) -> bool:
        with open(self._path, "rb") as file:
            file.seek(size_bytes - 1)
            return file.read(1) == b"\n"

    def _shorten(self) -> None:
        """Keep the newer half."""
        with open(self._path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        temporary = self._path + ".new"
        with open(temporary, "wb", opener=_private) as file:
            file.writelines(lines[len(lines) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)

    def _read(self) -> list[Entry]:
        try:
            with open(self._path, "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(msgspec.json.decode(line, type=Entry))
            except MALFORMED:
                pass  # cut off by a crash
        return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
