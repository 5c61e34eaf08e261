"""What is in the stream of a mirror run and not applied, as far as the target has said: its beginning, and
batches of pieces.
"""

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.mirror.patches import PatchRequest
from replicator.mirror.pieces import (
    NO_CONTENT,
    Abandon,
    Alike,
    Begun,
    Digests,
    Files,
    Links,
    Listing,
    Names,
    Patch,
    Patched,
    Times,
)
from replicator.mirror.scan import Found
from replicator.sender.flow import Flow
from replicator.sender.pace import Pace


class Work(NamedTuple):
    """What counts as done of a mirror."""

    files: int
    bytes: int


NO_WORK = Work(0, 0)


class _Batch(NamedTuple):
    number: int
    bytes: int
    flow: Flow
    found: list[Found]
    patch: PatchRequest | None
    work: Work


class SentPieces:
    """`last_number`: of the last batch; numbers never start again."""

    def __init__(self, flows: list[Flow], pace: Pace, last_number: int) -> None:
        self.announced = ""
        """Id of the run whose beginning is in the stream."""
        self._flows = flows
        self._pace = pace
        self._last_number = last_number
        self._settled = last_number
        self._batches: deque[_Batch] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    def next_number(self) -> int:
        """Of the batch that is about to be sent."""
        self._last_number += 1
        return self._last_number

    def add(
        self,
        number: int,
        weight_bytes: int,
        flow: Flow,
        found: list[Found],
        patch: PatchRequest | None,
        work: Work,
    ) -> None:
        """A batch enters the stream. `weight_bytes`: what counts as being on the way. `patch`: what it is a
        part of. `work`: what is done with it.
        """
        # Contents are not kept: what is lost on the way is read again.
        kept = [f if f.entry is None else _without_data(f) for f in found]
        self._batches.append(_Batch(number, weight_bytes, flow, kept, patch, work))
        self._pace.sent(number, weight_bytes, self._bytes)
        self._bytes += weight_bytes

    def acknowledged(self, number: int) -> None:
        """The target has applied the batches up to this one."""
        self._pace.arrived(number)
        self._settled = max(self._settled, number)
        while self._batches and self._batches[0].number <= number:
            batch = self._batches.popleft()
            self._bytes -= batch.bytes
            for found in batch.found:
                if isinstance(found.entry, Patched):
                    batch.flow.order.patch_settled(found.identity)
                elif isinstance(found.entry, Digests):
                    assert batch.patch is not None
                    batch.flow.order.digests_answered(batch.patch, found.entry.end - found.entry.start)
                elif isinstance(found.entry, Begun):
                    batch.flow.order.begun_answered(found.entry.number)

    def is_settled(self, number: int) -> bool:
        """Whether what the target refuses of that batch is known, or no matter: refusals are told before the
        batch is acknowledged, and what a former run had left to bring its successor brings. 0: no batch.
        """
        return 0 < number <= self._settled

    def inodes_of(self, flow: Flow, directory: bytes, names: Collection[bytes]) -> dict[bytes, int]:
        """Inodes of files of that directory that were claimed together, by name; of those on the way only."""
        wanted = set(names)
        for batch in self._batches:
            for found in batch.found if batch.flow is flow else ():
                entry = found.entry
                if (
                    isinstance(entry, Alike)
                    and found.path == directory
                    and not wanted.isdisjoint(entry.names)
                ):
                    both = zip(entry.names, found.inodes, strict=True)
                    return {name: inode for name, inode in both if name in wanted}
        return {}

    def forget_after(self, number: int) -> None:
        """The target has not received the batches after this one: what they held is brought again."""
        while self._batches and self._batches[-1].number > number:
            batch = self._batches.pop()
            self._bytes -= batch.bytes
            for found in batch.found:
                batch.flow.lost(found, batch.patch)

    def clear(self) -> None:
        """The run is over, or begins anew."""
        self._settled = self._last_number
        self._batches.clear()
        self._bytes = 0

    @property
    def coming(self) -> Work:
        """What counts as done, and is not on the target yet."""
        return Work(sum(b.work.files for b in self._batches), sum(b.work.bytes for b in self._batches))

    # --- with what waits for its place in the stream ---

    @property
    def queued(self) -> int:
        """Pieces that are read and not applied."""
        return len(self._batches) + sum(len(flow.pieces) for flow in self._flows)

    @property
    def queued_bytes(self) -> int:
        return self._bytes + sum(p.bytes for flow in self._flows for p in flow.pieces)

    def may_send(self) -> bool:
        """Whether the scanner may read on: mirror data in flight and in the queue is bounded, so replication
        goes first.
        """
        return self.queued < limits.PIECES_IN_FLIGHT and self.queued_bytes < self._pace.window_bytes


def _without_data(found: Found) -> Found:
    entry = found.entry
    if isinstance(entry, Times | Listing | Abandon | Patched | Begun):
        return found
    if isinstance(entry, Names):
        return found._replace(entry=msgspec.structs.replace(entry, names=(), types=b"", kept=()))
    if isinstance(entry, Digests):
        return found._replace(entry=msgspec.structs.replace(entry, extents=(), digests=b""))
    if isinstance(entry, Patch):
        return found._replace(entry=msgspec.structs.replace(entry, data=NO_CONTENT))
    if isinstance(entry, Links):
        return found._replace(entry=msgspec.structs.replace(entry, inodes=b""))
    if isinstance(entry, Files):
        return found._replace(entry=msgspec.structs.replace(entry, states=b"", data=NO_CONTENT, inodes=b""))
    if isinstance(entry, Alike):
        return found._replace(entry=msgspec.structs.replace(entry, states=b""))
    return Found(found.path, None, found.identity, found.links, found.size)
