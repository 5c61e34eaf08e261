"""Small journals in memory, and what a reader makes of them."""

from collections.abc import Iterable

from kit.disk import MemoryDisk, SteppingClock, memory_world
from replicator.ops import Kind, Record
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings, JournalWriter
from replicator.world import World

JOURNAL = "0b4a3e5c-6f0e-4f0e-9a52-52a1f7b0a001"
READER = "7d1e6a52-3d3b-4a3f-8f0a-2b1c9d4e0001"
READERS = tuple(f"7d1e6a52-3d3b-4a3f-8f0a-2b1c9d4e{n:04d}" for n in range(1, 100))


def small(
    segment_bytes: int = 512,
    memory_bytes: int = 2048,
    disk_bytes: int | None = None,
    disk_free_min_bytes: int = 0,
    name: str = "j",
) -> JournalSettings:
    """Settings under which a few records make a segment and a few segments fill the memory tier."""
    return JournalSettings(
        f"/memory/{name}", f"/disk/{name}", segment_bytes, memory_bytes, disk_bytes, disk_free_min_bytes
    )


class Host:
    """A host with one journal: opens writers and cursors on what its disk has kept."""

    def __init__(self, settings: JournalSettings | None = None, disk: MemoryDisk | None = None) -> None:
        self.settings = settings or small()
        self.disk = disk or MemoryDisk()
        self.clock = SteppingClock()
        self.world: World = memory_world(self.disk, self.clock)

    def writer(self) -> JournalWriter:
        return JournalWriter.open(self.world, self.settings, JOURNAL)

    def cursor(self, cursor_id: str | None = READER, create: bool = False) -> Cursor:
        return Cursor.open(self.world, self.settings, JOURNAL, cursor_id, create)

    def kill(self) -> None:
        """All processes end; the host goes on."""
        self.disk.die()
        self.world = memory_world(self.disk, self.clock)

    def lose_power(self) -> None:
        self.disk.lose_power()
        self.clock.reboot()
        self.world = memory_world(self.disk, self.clock)

    def reboot(self) -> None:
        """A clean one: the disk is synced, what is on tmpfs is gone."""
        self.disk.sync()
        self.lose_power()


def journal_record(writer: JournalWriter, record: Record) -> int:
    """Journal what a record says. The sequence that it has there; 0: there was no room."""
    return writer.append(
        record.kind,
        record.path,
        path2=record.path2,
        payload=record.payload,
        flags=record.flags,
        inode=record.inode,
        arg0=record.arg0,
        arg1=record.arg1,
    )


def read_all(cursor: Cursor, max_bytes: int = 4096) -> list[Record]:
    """All records up to the head, with payloads of their own, having checked that runs join without a gap."""
    records = []
    position = None
    while (run := cursor.read(max_bytes)) is not None:
        assert position is None or run.previous == position
        assert run.records
        assert run.records[0][2].sequence == run.previous.sequence + 1
        assert sum(length for _, length, _ in run.records) == len(run.data)
        assert len(run.data) <= max_bytes or len(run.records) == 1
        position = run.last
        assert cursor.position == position
        records += [record._replace(payload=bytes(record.payload)) for _, _, record in run.records]
    assert cursor.backlog() == (0, 0)
    return records


def contents(records: Iterable[Record]) -> list[tuple[int, bytes, bytes]]:
    return [(record.kind, record.path, bytes(record.payload)) for record in records]


def write(path: bytes, size: int, fill: int = 65) -> tuple[int, bytes, bytes]:
    """An operation, as (kind, path, payload)."""
    return Kind.WRITE, path, bytes([fill % 256]) * size


def append(writer: JournalWriter, operation: tuple[int, bytes, bytes]) -> int:
    kind, path, payload = operation
    return writer.append(kind, path, payload=payload)
