"""What a journal could not take, until a HOLE tells of it: folded into a dirty map.

A note of each loss goes into a file beside the memory tier, so that the map outlives a killed writer. The
file is a row of records as in a segment, numbered by the losses of the journal (`Header.lost_ops`), with
chain values that begin with the row of the journal; when long, one HOLE with the map replaces it. The header
says which numbers are pending: a file that does not have them all is worth nothing, and then, as after any
failure here, everything has to be compared.
"""

import contextlib

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind, Position, Record
from replicator.queue import record as records
from replicator.queue.dirty import DirtyMap
from replicator.queue.durable_file import read_whole
from replicator.queue.settings import JournalSettings
from replicator.world import World

FILE_NAME = "losses"
_TEMPORARY = ".temporary"
_NO_MODE = bytes(4)  # of fallocate(2)
_ATTEMPT_BYTES = 8192  # of the map, for which one loss more is waited between two attempts to write it


class Losses:
    """Of one writer. Nothing here raises OSError, nor waits for a disk other than tmpfs (but `save`)."""

    def __init__(self, world: World, settings: JournalSettings, row: int) -> None:
        self._disk = world.disk
        self._path = f"{settings.memory_directory}/{FILE_NAME}"
        self._saved_path = f"{settings.disk_directory}/{FILE_NAME}"
        self._row = row
        # A HOLE has to fit into a segment, with room to spare. What a map takes as bytes is less than what it
        # costs in memory.
        self._limit_bytes = min(limits.LOSSES_BYTES, settings.segment_bytes // 2)
        self._map: DirtyMap | None = DirtyMap(self._limit_bytes)  # None: everything
        self._handle = -1
        self._first = 0  # the first loss the file tells of
        self._end = 0  # of the file
        self._chain = 0  # of its last record
        self._broken = False  # the file cannot be relied upon
        self._saved = False
        self._patience = 0
        self._adopted = False

    # --- losses ---

    def add(self, lost: Record) -> None:
        """This was lost; its sequence is its number among the losses. Call it before the header counts it."""
        if self._map is None:
            return
        self._patience -= 1
        self._map.fold(lost)
        if self._map.is_everything:
            self.forget()
            return
        if not self._broken:
            self._note(lost)

    def forget(self) -> None:
        """Nobody can say what is pending."""
        self._map = None
        self._adopted = False
        self._remove_files()

    def adopt(self, found: DirtyMap) -> None:
        """Somebody else can say what is pending, if it is nothing, too. A successor could not."""
        self._map = DirtyMap(self._limit_bytes)
        self._map.merge(found)
        self._adopted = True

    def clear(self) -> None:
        """A HOLE tells of all of it."""
        self._remove_files()
        self._map = DirtyMap(self._limit_bytes)
        self._broken = self._adopted = False
        self._patience = 0

    def payload(self) -> bytes:
        """For a HOLE; b"" if everything has to be compared."""
        if self._map is None or (self._map.is_empty and not self._adopted):
            return b""
        self._patience = self._map.cost_bytes // _ATTEMPT_BYTES
        return self._map.encode()

    @property
    def may_be_told(self) -> bool:
        """Whether it is time for another attempt to write a HOLE: to encode a large map takes longer than an
        operation should.
        """
        return self._patience <= 0

    # --- the file ---

    def _note(self, lost: Record) -> None:
        if lost.kind == Kind.WRITE:  # the same region, without the data
            lost = lost._replace(kind=Kind.FALLOCATE, arg1=len(lost.payload), payload=_NO_MODE)
        elif lost.kind != Kind.FALLOCATE:
            lost = lost._replace(payload=b"")
        try:
            if self._end > limits.LOSSES_FILE_BYTES:
                assert self._map is not None
                self._replace(lost.sequence, self._map, lost.sequence - self._first + 1)
                return
            if self._handle < 0:
                self._handle = self._disk.open_append(self._path)
                self._first = lost.sequence
                self._end = 0
                self._chain = self._row
            buffers, length, chain = _encode(lost, self._chain)
            self._disk.append(self._handle, buffers, self._end)
            self._end += length
            self._chain = chain
        except OSError:
            self._broken = True
            self._remove_files()

    def _replace(self, number: int, found: DirtyMap, count: int) -> None:
        """Begin the file anew with the map of `count` losses up to this number."""
        self.close()
        self._handle, self._end, self._chain = self._create(self._path, number, found, count)
        self._first = number - count + 1

    def _create(
        self, path: str, number: int, found: DirtyMap, count: int, durable: bool = False
    ) -> tuple[int, int, int]:
        """Write such a file, and replace the former one. Returns its handle, end and last chain value."""
        disk = self._disk
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path + _TEMPORARY)
        hole = Record(Kind.HOLE, 0, number, 0, 0, 0, 0, 0, 0, count, 0, b"", b"", found.encode())
        buffers, length, chain = _encode(hole, self._row)
        handle = disk.open_append(path + _TEMPORARY)
        try:
            disk.append(handle, buffers, 0)
            if durable:
                disk.fsync(handle)
            disk.replace(path + _TEMPORARY, path)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.close(handle)
            raise
        return handle, length, chain

    def close(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                self._disk.close(self._handle)
            self._handle = -1

    def _remove_files(self) -> None:
        """An old file that stays has none of the numbers that will be pending."""
        if self._handle >= 0 or self._saved:
            self.close()
            for path in (self._path, self._saved_path) if self._saved else (self._path,):
                with contextlib.suppress(OSError):
                    self._disk.unlink(path)
            self._saved = False

    # --- from one writer to the next ---

    def restore(self, lost_ops: int, pending_ops: int) -> None:
        """What a former writer of this row has left pending: the last `pending_ops` of `lost_ops`."""
        if not pending_ops:
            return
        self._map = self._find(lost_ops - pending_ops + 1, lost_ops)
        if self._map is None:
            return
        self._saved = True
        try:
            self._replace(lost_ops, self._map, pending_ops)
        except OSError:
            self._broken = True  # what was found stays, and is enough until more is lost

    def _find(self, first: int, last: int) -> DirtyMap | None:
        for path in (self._path, self._saved_path):
            with contextlib.suppress(OSError, JournalError):
                found = self._read(path, first, last)
                if found is not None:
                    return found
        return None

    def _read(self, path: str, first: int, last: int) -> DirtyMap | None:
        """The map that a file has of these losses; None if it has not all of them."""
        data = read_whole(self._disk, path)
        number = records.decode(data)[0].sequence
        found = DirtyMap(self._limit_bytes)
        begins = reached = 0
        try:
            for _, _, lost in records.iterate(data, Position(number - 1, self._row)):
                if not reached:
                    begins = number - lost.arg0 + 1 if lost.kind == Kind.HOLE else number
                found.fold(lost)
                reached = lost.sequence
        except (records.CorruptRecord, records.IncompleteRecord):
            pass  # a torn tail: what it was to tell of is not counted yet
        return found if reached and begins <= first and reached >= last and not found.is_everything else None

    def save(self, lost_ops: int, pending_ops: int) -> None:
        """For a clean stop: keep what is pending on the disk, durable with its directory. Raises OSError."""
        if pending_ops and self._map is not None:
            self._saved = True
            handle, _, _ = self._create(self._saved_path, lost_ops, self._map, pending_ops, durable=True)
            self._disk.close(handle)

    def remove(self) -> None:
        """The file in memory, at the end of a clean stop."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self._path)


def _encode(lost: Record, previous_chain: int) -> tuple[list[bytes | memoryview], int, int]:
    return records.encode(
        lost.kind,
        lost.sequence,
        previous_chain,
        0,
        0,
        0,
        lost.path,
        lost.path2,
        lost.payload,
        lost.flags,
        lost.inode,
        lost.generation,
        lost.arg0,
        lost.arg1,
    )
