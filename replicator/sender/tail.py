"""The tail of a source that was superseded: what it did behind the fork point, where its copy was promoted.

The copy has none of it, so the two may differ wherever it says, and nowhere else. It is read from the
journal. Where that does not go back so far any more (it was full, and what changes was tracked), the dirt has
it; where a loss of power took it, the row that follows says what may be different on either side since.

The map knows old names as well (`either`): here it is the source that lacks what they refer to. To know that
the name of a directory is gone is not enough, for a piece below it makes that directory anew.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import trio

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind, Position, Record
from replicator.queue import dirty_codec
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap
from replicator.sender.continuation import goes_on_at
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.tracking import row_at

_BREATH_RECORDS = 1000


class Tail(msgspec.Struct, frozen=True):
    """Of one connection. `journals`: by id, encoded dirty maps; None: it may be anything.

    `since_ns`: what was changed before, on this host's clock, is on its storage whatever has happened to it.
    """

    journals: dict[str, bytes | None]
    since_ns: int


async def tail_of_all(
    flows: Sequence[Flow], dirt: Dirt, forks: Mapping[str, tuple[int, int]], since_ns: int
) -> Tail:
    """`forks`: by journal id, sequence and chain of the last record that is in the copy; none: it was not
    exact there. `since_ns`: see `Tail`.
    """
    found: dict[str, bytes | None] = {}
    for flow in flows:
        known = forks.get(flow.journal_id)
        tail = await tail_of(flow, dirt, Position(*known) if known is not None else None)
        found[flow.journal_id] = None if tail is None else tail.encode()
    return Tail(found, since_ns)


async def tail_of(flow: Flow, dirt: Dirt, fork: Position | None) -> DirtyMap | None:
    """As a dirty map in terms of the source's paths; None: nobody knows, it may be anything.

    `fork`: position of the last record that is in the copy, which was exact there; None: it was not. No
    session uses the flow meanwhile, and nothing is changed in what it captures.
    """
    if fork is None:
        return None
    for known, position in _beginnings(flow, dirt, fork):
        try:
            return await _folded(flow, dirt, known, position)
        except JournalError:
            continue
    return None


def _beginnings(flow: Flow, dirt: Dirt, fork: Position) -> Iterator[tuple[DirtyMap, Position]]:
    """What is known up to where the journal is to be read on; the narrowest first."""
    row = row_at(flow.cursor.head())
    start, covered = flow.cursor.row_start(), flow.cursor.covered

    def read_on_at(position: Position) -> Position | None:
        if row_at(position) == row:
            return position
        return goes_on_at(position.sequence, start, covered, exact=True)

    position = read_on_at(fork)
    if position is not None:
        yield DirtyMap(either=True), position
    if dirt.active and dirt.sufficient and dirt.base(flow) <= fork.sequence:
        position = read_on_at(flow.position)
        if position is not None:
            yield DirtyMap.decode(dirt.encoded(flow), limits.DIRTY_MAP_BYTES), position


async def _folded(flow: Flow, dirt: Dirt, found: DirtyMap, position: Position) -> DirtyMap:
    """With all that follows. JournalError."""
    for count, record in enumerate(flow.records_after(position)):
        if dirt.belongs(flow, record):
            _fold(found, record)
        if count % _BREATH_RECORDS == 0:
            await trio.lowlevel.checkpoint()
    return found


def _fold(found: DirtyMap, record: Record) -> None:
    if (
        record.kind == Kind.HOLE and record.arg1 and len(record.payload)
    ):  # of a power loss: it knows old names
        try:
            for item in dirty_codec.items(record.payload):
                found.include(*item)
            return
        except CorruptDirtyMap:
            pass
    found.fold(record)
