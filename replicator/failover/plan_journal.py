"""The notes of a plan in a file: one line each, `checksum JSON`, durable when `append` returns.

Only the last line can be torn (a crash while it was being written): what it announced was not begun, so it is
left out. A line in the middle that does not fit is damage, and said: who took which address may be unknown.
"""

import msgspec
import xxhash

from replicator.bounds import MALFORMED
from replicator.errors import JournalError
from replicator.failover.plan import Note, Opened
from replicator.queue.durable_file import replace_durably
from replicator.world import Disk

_CHECKSUM_CHARS = 16
_DECODER: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)


class PlanJournal:
    """Of one plan. `notes`: all so far. Blocks. Raises JournalError if damaged, OSError."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.path = path
        self.notes: list[Note] = []
        self._disk = disk
        self._bytes = 0  # of whole notes
        # Whether all of the file is known to be on stable storage. What was read may be in the page cache
        # only, and after an fsync that failed the kernel takes it for written: the file is written anew.
        self._is_durable = False
        if disk.exists(path):
            self._load()

    def append(self, *notes: Note) -> None:
        """Durable, or raises OSError: then they count as not noted, and nothing may be built on them."""
        line = b"".join(map(_encode, notes))
        if self._is_durable:
            self._is_durable = False
            self._append(line)
        else:
            self._disk.makedirs(self.path.rpartition("/")[0])
            replace_durably(self._disk, self.path, [*map(_encode, self.notes), line])
        self._is_durable = True
        self._bytes += len(line)
        self.notes.extend(notes)

    def _append(self, line: bytes) -> None:
        handle = self._disk.open_append(self.path)
        try:
            self._disk.append(handle, [line], self._bytes)
            self._disk.fsync(handle)
        finally:
            self._disk.close(handle)

    def remove(self) -> None:
        """What is reported elsewhere. The plan is over."""
        if self._disk.exists(self.path):
            self._disk.unlink(self.path)
            self._disk.fsync_directory(self.path.rpartition("/")[0])
        self.notes, self._bytes, self._is_durable = [], 0, False

    def _load(self) -> None:
        handle = self._disk.open_read(self.path)
        try:
            data = self._disk.read(handle, self._disk.size(self.path), 0)
        finally:
            self._disk.close(handle)
        while self._bytes < len(data):
            end = data.find(b"\n", self._bytes)
            note = _decode(data[self._bytes : end]) if end >= 0 else None
            if note is None:
                break
            self.notes.append(note)
            self._bytes = end + 1
        rest = data[self._bytes :]
        if _has_whole_line(rest):
            raise JournalError(
                f"{self.path} is damaged: look whether addresses are where they should be, then remove it"
            )
        if self.notes and not isinstance(self.notes[0], Opened):
            raise JournalError(f"{self.path} does not begin with a plan")


def _encode(note: Note) -> bytes:
    text = msgspec.json.encode(note)
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _decode(line: bytes) -> Note | None:
    """None: no whole note."""
    checksum, text = line[:_CHECKSUM_CHARS], line[_CHECKSUM_CHARS + 1 :]
    if xxhash.xxh3_64_hexdigest(text).encode() != checksum:
        return None
    try:
        return _DECODER.decode(text)
    except MALFORMED:  # of other software: its checksum is right
        raise JournalError(f"a note that this software does not know: {text[:80]!r}") from None


def _has_whole_line(rest: bytes) -> bool:
    """Whether something intact follows what does not fit: then it was not the last write that was torn."""
    return any(_decode(line) is not None for line in rest.split(b"\n")[1:] if line)
