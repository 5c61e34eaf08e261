"""The shared header of a journal: what its writer and its readers, in other processes, tell one another.

A file of a few pages in the memory directory, mapped by all. Each word has one owner: the writer has the
head, the counters and the flight slot; a reader has its own cursor slot. Slots are given and taken under the
lock of the mapping. Words are aligned and stored whole. FORMAT.md has the layout.
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

import xxhash

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Position
from replicator.world import World

FILE_NAME = "header"
SAVED_NAME = "header.saved"

_PAGE_BYTES = 4096
_FLIGHT = 2 * _PAGE_BYTES
_FLIGHT_PATHS = _FLIGHT + 8
HEADER_BYTES = 5 * _PAGE_BYTES
assert _FLIGHT_PATHS + 2 * limits.PATH_BYTES <= HEADER_BYTES

_MAGIC = 0x0000_0001_4452_4A52  # "RJRD", format version 1
_UUID = slice(16, 32)
_BOOT = slice(32, 80)
# Words, by index of 8 bytes
_W_MAGIC = 0
_W_FULL_AT = 1
_W_ROW = 10
_W_STATE = 11
_W_LOST = 12
_W_PENDING = 13
_W_BUSY = 14
_W_VERSION = 15
_W_SLEEPING = 40
_W_SLOT_WORDS = 48
_W_UNCOVERED = 49
_W_UNCOVERED_STAMP = 50
_W_WANTED = 128  # by slot; and 64 words on
# Bytes
_HEADS = (128, 192)
_IN_USE = 256
_READINESS, _SYNC_STATE = 448, 512
_SLEEPING = _W_SLEEPING * 8
_SLOTS = _PAGE_BYTES
_SLOT_BYTES = 64
assert limits.CURSOR_SLOTS <= 64
# Words, after its uuid
_SLOT_READ, _SLOT_DURABLE, _SLOT_DURABLE_BYTES, _SLOT_COVERED, _SLOT_SECURED, _SLOT_RECEIVED = range(2, 8)

_SLOT_AREAS = (
    slice(_IN_USE, _IN_USE + 64),
    slice(_W_SLOT_WORDS * 8, _W_SLOT_WORDS * 8 + 8),
    slice(_SLOTS, _SLOTS + 64 * _SLOT_BYTES),
)

_HEAD = struct.Struct("<QQQQ")
_CHECKSUM = struct.Struct("<Q")


class State(IntEnum):
    OPEN = 1  # the segments of both tiers belong to it
    CLOSED = 2  # stopped cleanly: all segments are on disk, and so is this page


class Head(NamedTuple):
    """The end of a journal, as published."""

    segment: int
    offset: int
    sequence: int
    chain: int
    bytes: int  # of all records ever appended

    @property
    def position(self) -> Position:
        return Position(self.sequence, self.chain)


class Flight(NamedTuple):
    """The operation that was being performed when its process ended."""

    kind: int
    path: bytes
    path2: bytes


def identify(name: str) -> UUID:
    """The UUID of a journal or cursor name: the name itself if it is one."""
    try:
        return UUID(name)
    except ValueError:
        return uuid5(NAMESPACE_OID, name)


def short_boot_id(boot_id: str) -> int:
    """The 32 bits of a boot id that records carry; never 0."""
    return xxhash.xxh32_intdigest(boot_id.encode()) or 1


def slots_of(page: bytes | memoryview) -> bytes:
    return b"".join(bytes(page[area]) for area in _SLOT_AREAS)


def _split_slots(slots: bytes) -> Iterator[bytes]:
    start = 0
    for area in _SLOT_AREAS:
        end = start + area.stop - area.start
        yield slots[start:end]
        start = end


class Header:
    """Typed access to the shared header. Cheap: every property is one or a few loads from mapped memory."""

    def __init__(self, world: World, memory_directory: str, create: bool = False) -> None:
        """Raises FileNotFoundError, ValueError (wrong size).

        A new one is all zero: `prepare` or `restore` it.
        """
        self._memory = world.shared_memory(f"{memory_directory}/{FILE_NAME}", HEADER_BYTES, create)
        self._bytes = self._memory.buffer
        self._words = self._bytes.cast("Q")
        self._version = self._words[_W_VERSION]
        self._fence = threading.Lock()

    def close(self) -> None:
        self._words.release()
        self._memory.close()

    def claim(self) -> bool:
        """Be the journal's only writer. False: another process is."""
        return self._memory.claim()

    def lock(self) -> AbstractContextManager[None]:
        """Needed to give or take slots and to save the page."""
        return self._memory.lock()

    def remove(self) -> None:
        """Take the page's name away (a clean stop)."""
        self._memory.remove()

    def fence(self) -> None:
        """Order all stores before all later loads: a locked instruction, about 50 ns.

        For store-then-look protocols.
        """
        self._fence.acquire(False)
        self._fence.release()

    # --- whole page ---

    def prepare(self, journal: UUID, boot_id: str, row: int, head: Head, slots: bytes, lost_ops: int) -> None:
        """Make it the fresh page of a new row, invalid until `make_valid`: half a header is none.

        `slots` are the reader slots of a former page (b"" for none); they then start at `head`.
        """
        self._words[_W_MAGIC] = 0
        self._bytes[8:] = bytes(HEADER_BYTES - 8)
        self._bytes[_UUID] = journal.bytes
        self._set_boot_id(boot_id)
        self._words[_W_ROW] = row
        self._words[_W_STATE] = State.OPEN
        self._words[_W_LOST] = lost_ops
        self._version = 0
        self.publish(head)
        if slots:
            for offset, part in zip(_SLOT_AREAS, _split_slots(slots), strict=True):
                self._bytes[offset] = part
            for index in self.readers():
                self.set_read(index, head.sequence)
                self.set_durable(index, head.sequence, head.bytes)

    def restore(self, saved: bytes, boot_id: str) -> None:
        """Take over a page that a clean stop had saved, invalid until `make_valid`."""
        self._words[_W_MAGIC] = 0
        self._bytes[8:] = saved[8:HEADER_BYTES]
        self._set_boot_id(boot_id)
        self._words[_W_BUSY] = 0
        self._words[_W_UNCOVERED] = 0
        self._version = self._words[_W_VERSION]
        for index in range(limits.CURSOR_SLOTS):
            self._bytes[_SLEEPING + index] = 0
            self.set_readiness(index, 0)
            self.set_sync_state(index, 0)
            self.set_wanted(index, 0, durable=True)
            self.set_wanted(index, 0, durable=False)

    def make_valid(self) -> None:
        self._words[_W_MAGIC] = _MAGIC

    @property
    def slots(self) -> bytes:
        """All reader slots, for `prepare`."""
        return slots_of(self._bytes)

    def _set_boot_id(self, boot_id: str) -> None:
        self._bytes[_BOOT] = boot_id.encode("ascii").ljust(48, b"\0")

    @property
    def valid(self) -> bool:
        return self._words[_W_MAGIC] == _MAGIC

    @property
    def journal(self) -> UUID:
        return UUID(bytes=bytes(self._bytes[_UUID]))

    @property
    def boot_id(self) -> str:
        return bytes(self._bytes[_BOOT]).rstrip(b"\0").decode("ascii", "replace")

    @property
    def row(self) -> int:
        """How often this journal has begun anew; the upper bits of its sequence numbers."""
        return self._words[_W_ROW]

    @property
    def state(self) -> int:
        return self._words[_W_STATE]

    @state.setter
    def state(self, state: State) -> None:
        self._words[_W_STATE] = state

    def image(self, state: State) -> bytes:
        """The page as `save` keeps it: valid, in `state`, with a checksum.

        Taken by a reader while the writer appends, the head in it may be torn; only in state CLOSED is it
        ever used.
        """
        words = memoryview(bytearray(self._bytes)).cast("Q")
        words[_W_MAGIC] = _MAGIC
        words[_W_STATE] = state
        data = words.tobytes()
        return data + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(data))

    # --- head ---

    def publish(self, head: Head) -> None:
        self.publish_head(head.segment, head.offset, head.sequence, head.chain, head.bytes)

    def publish_head(self, segment: int, offset: int, sequence: int, chain: int, total: int) -> None:
        """Two copies, and a version that says which one counts: a killed writer leaves the old one."""
        version = self._version + 1
        _HEAD.pack_into(self._bytes, _HEADS[version & 1], segment << 32 | offset, sequence, chain, total)
        self._version = version
        self._words[_W_VERSION] = version

    def head(self) -> Head:
        while True:
            version = self._words[_W_VERSION]
            place, sequence, chain, total = _HEAD.unpack_from(self._bytes, _HEADS[version & 1])
            if self._words[_W_VERSION] == version:
                # The writer only ever touches the other copy while `version` is current: this one is whole.
                return Head(place >> 32, place & 0xFFFF_FFFF, sequence, chain, total)

    # --- counters of the writer ---

    @property
    def lost_ops(self) -> int:
        """Operations this journal could not take, ever."""
        return self._words[_W_LOST]

    @lost_ops.setter
    def lost_ops(self, count: int) -> None:
        self._words[_W_LOST] = count

    @property
    def pending_ops(self) -> int:
        """Lost operations that no HOLE record tells of yet."""
        return self._words[_W_PENDING]

    @pending_ops.setter
    def pending_ops(self, count: int) -> None:
        self._words[_W_PENDING] = count

    @property
    def full_at_bytes(self) -> int:
        """The journal is full when all records ever are so many bytes, as things stood when its writer began
        or removed its last segment. 0: not known.
        """
        return self._words[_W_FULL_AT]

    @full_at_bytes.setter
    def full_at_bytes(self, total: int) -> None:
        self._words[_W_FULL_AT] = total

    @property
    def busy_stamp(self) -> int:
        """0 between appends. Otherwise an append is under way whose stamp is not lower than this."""
        return self._words[_W_BUSY]

    @busy_stamp.setter
    def busy_stamp(self, monotonic_ns: int) -> None:
        self._words[_W_BUSY] = monotonic_ns

    @property
    def uncovered(self) -> int:
        """The first record readers do not get yet: the activity log does not tell of it durably. 0: none."""
        return self._words[_W_UNCOVERED]

    @uncovered.setter
    def uncovered(self, sequence: int) -> None:
        self._words[_W_UNCOVERED] = sequence

    @property
    def uncovered_stamp(self) -> int:
        """That one's stamp is not lower than this. Look at `uncovered` first."""
        return self._words[_W_UNCOVERED_STAMP]

    @uncovered_stamp.setter
    def uncovered_stamp(self, monotonic_ns: int) -> None:
        self._words[_W_UNCOVERED_STAMP] = monotonic_ns

    # --- flight slot ---

    def set_flight(self, kind: int, path: bytes, path2: bytes) -> None:
        words, data = self._words, self._bytes
        words[_FLIGHT // 8] = 0
        middle = _FLIGHT_PATHS + len(path)
        data[_FLIGHT_PATHS:middle] = path
        if path2:
            data[middle : middle + len(path2)] = path2
        words[_FLIGHT // 8] = len(path2) << 32 | len(path) << 16 | kind

    def clear_flight(self) -> None:
        self._words[_FLIGHT // 8] = 0

    @property
    def flight(self) -> Flight | None:
        word = self._words[_FLIGHT // 8]
        kind, path_bytes, path2_bytes = word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32
        if not kind or path_bytes > limits.PATH_BYTES or path2_bytes > limits.PATH_BYTES:
            return None
        middle = _FLIGHT_PATHS + path_bytes
        return Flight(
            kind, bytes(self._bytes[_FLIGHT_PATHS:middle]), bytes(self._bytes[middle : middle + path2_bytes])
        )

    # --- cursor slots ---

    @property
    def has_readers(self) -> bool:
        # Slots are given from 0 up, so the words that can hold a reader are few, nearly always one.
        words = self._words
        if words[_IN_USE // 8]:
            return True
        return words[_W_SLOT_WORDS] > 1 and any(
            words[_IN_USE // 8 + n] for n in range(1, words[_W_SLOT_WORDS])
        )

    @property
    def has_sleepers(self) -> bool:
        words = self._words
        if words[_W_SLEEPING]:
            return True
        return words[_W_SLOT_WORDS] > 1 and any(
            words[_W_SLEEPING + n] for n in range(1, words[_W_SLOT_WORDS])
        )

    def readers(self) -> Iterator[int]:
        """Indexes of the slots in use."""
        for index, used in enumerate(bytes(self._bytes[_IN_USE : _IN_USE + limits.CURSOR_SLOTS])):
            if used:
                yield index

    def find_slot(self, cursor: UUID) -> int | None:
        return next((index for index in self.readers() if self.slot_uuid(index) == cursor), None)

    def take_slot(self, cursor: UUID, sequence: int, total: int) -> int:
        """Give `cursor` a slot; call it under the lock. JournalError: all are taken."""
        used = bytes(self._bytes[_IN_USE : _IN_USE + limits.CURSOR_SLOTS])
        index = used.find(0)
        if index < 0:
            raise JournalError(
                f"journal has {limits.CURSOR_SLOTS} readers already; remove a connection first"
            )
        start = _SLOTS + index * _SLOT_BYTES
        self._bytes[start : start + 16] = cursor.bytes
        self.set_read(index, sequence)
        self.set_durable(index, sequence, total)
        self.set_covered(index, 0)
        self.set_secured(index, 0)
        self.set_received(index, 0)
        self.set_readiness(index, 0)
        self.set_sync_state(index, 0)
        self.set_wanted(index, 0, durable=True)
        self.set_wanted(index, 0, durable=False)
        self._bytes[_SLEEPING + index] = 0
        self._words[_W_SLOT_WORDS] = max(self._words[_W_SLOT_WORDS], index // 8 + 1)
        self._bytes[_IN_USE + index] = 1
        return index

    def give_slot(self, index: int) -> None:
        """Take a slot back; call it under the lock."""
        self._bytes[_IN_USE + index] = 0
        self._bytes[_SLEEPING + index] = 0

    def slot_uuid(self, index: int) -> UUID:
        start = _SLOTS + index * _SLOT_BYTES
        return UUID(bytes=bytes(self._bytes[start : start + 16]))

    def set_sleeping(self, index: int, sleeping: bool) -> None:
        self._bytes[_SLEEPING + index] = sleeping

    def sleeping(self, index: int) -> bool:
        return bool(self._bytes[_SLEEPING + index])

    def set_read(self, index: int, sequence: int) -> None:
        self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_READ] = sequence

    def read_sequence(self, index: int) -> int:
        return self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_READ]

    def set_durable(self, index: int, sequence: int, total: int) -> None:
        base = (_SLOTS + index * _SLOT_BYTES) // 8
        self._words[base + _SLOT_DURABLE_BYTES] = total
        self._words[base + _SLOT_DURABLE] = sequence

    def durable_sequence(self, index: int) -> int:
        return self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_DURABLE]

    def durable_bytes(self, index: int) -> int:
        return self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_DURABLE_BYTES]

    def set_covered(self, index: int, sequence: int) -> None:
        self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_COVERED] = sequence

    def covered_sequence(self, index: int) -> int:
        """Once this reader is beyond that, what it has differs from what a loss of power leaves of the source
        by no more than the activity log tells. 0: nobody knows.
        """
        return self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_COVERED]

    # What a synchronous mount and its readers tell each other (see `queue/answers.py`)

    def set_secured(self, index: int, sequence: int) -> None:
        self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_SECURED] = sequence

    def secured_sequence(self, index: int) -> int:
        """This reader's target has everything up to there on stable storage, applied. 0: never said so."""
        return self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_SECURED]

    def set_received(self, index: int, sequence: int) -> None:
        self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_RECEIVED] = sequence

    def received_sequence(self, index: int) -> int:
        """The same, in its memory at least."""
        return self._words[(_SLOTS + index * _SLOT_BYTES) // 8 + _SLOT_RECEIVED]

    def set_readiness(self, index: int, readiness: int) -> None:
        self._bytes[_READINESS + index] = readiness

    def readiness(self, index: int) -> int:
        """A `synchrony.Readiness`."""
        return self._bytes[_READINESS + index]

    def set_sync_state(self, index: int, state: int) -> None:
        self._bytes[_SYNC_STATE + index] = state

    def sync_state(self, index: int) -> int:
        """What this boot's writer has decided: 1 it waits for this reader, 2 it does not. 0: nothing yet."""
        return self._bytes[_SYNC_STATE + index]

    def set_wanted(self, index: int, sequence: int, *, durable: bool) -> None:
        self._words[_W_WANTED + index + (0 if durable else 64)] = sequence

    def wanted(self, index: int, *, durable: bool) -> int:
        """The last record that somebody waits for until this reader's target has it. 0: none."""
        return self._words[_W_WANTED + index + (0 if durable else 64)]

    def forget_coverage(self) -> None:
        for index in self.readers():
            self.set_covered(index, 0)


class SavedHeader(NamedTuple):
    """A header page read back from the disk tier."""

    data: bytes
    journal: UUID
    row: int
    state: int
    head: Head


def save(world: World, disk_directory: str, image: bytes) -> None:
    """Make a header image durable in the disk tier, replacing the former one at once. Raises OSError."""
    disk = world.disk
    temporary = f"{disk_directory}/{SAVED_NAME}.temporary"
    handle = disk.open_append(temporary)
    try:
        disk.append(handle, [image], 0)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.replace(temporary, f"{disk_directory}/{SAVED_NAME}")
    disk.fsync_directory(disk_directory)


def load(world: World, disk_directory: str) -> SavedHeader | None:
    """Read what `save` wrote; None: nothing whole is there."""
    disk = world.disk
    try:
        handle = disk.open_read(f"{disk_directory}/{SAVED_NAME}")
    except FileNotFoundError:
        return None
    try:
        data = disk.read(handle, HEADER_BYTES + _CHECKSUM.size, 0)
    finally:
        disk.close(handle)
    if len(data) != HEADER_BYTES + _CHECKSUM.size:
        return None
    page = data[:HEADER_BYTES]
    if _CHECKSUM.unpack_from(data, HEADER_BYTES)[0] != xxhash.xxh3_64_intdigest(page):
        return None
    words = memoryview(page).cast("Q")
    if words[_W_MAGIC] != _MAGIC:
        return None
    place, sequence, chain, total = _HEAD.unpack_from(page, _HEADS[words[_W_VERSION] & 1])
    return SavedHeader(
        data=page,
        journal=UUID(bytes=page[_UUID]),
        row=words[_W_ROW],
        state=words[_W_STATE],
        head=Head(place >> 32, place & 0xFFFF_FFFF, sequence, chain, total),
    )
