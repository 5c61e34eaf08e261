"""Which parts of existing files a recovery has still to bring in place: requests, and what voids them.

Pure, part of an `Order`. A request speaks of one object under one path. It is void as soon as the path may
stand for something else, or the path is brought whole anyway; what the target lacks of the object is then for
whoever brings it whole.

Memory: one entry per request, bounded by whoever makes them (a dirty map).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replicator.ops import NAME_KINDS, RENAME_EXCHANGE, TWO_PATH_KINDS, Flag, Identity, Kind, Record

TO_END = 2**63 - 1
"""As the length of a region: up to the end of the file, wherever that is."""

ALIGN_BYTES = 4096
"""Regions are widened to whole blocks: only these can become holes."""

Range = tuple[int, int]  # first byte, and the one after the last; TO_END is the end of the file


@dataclass(eq=False)
class PatchRequest:
    """Bring these ranges of the object at `path`, then its size, attributes and xattrs.

    `multilink`: it may have other names on the target, which nobody here knows.
    """

    path: bytes
    identity: Identity
    ranges: list[Range]
    multilink: bool
    void: bool = False  # nothing of it may follow
    measured: bool = False  # somebody has seen the file, and how long its ranges are


class Patches:
    """Requests by path, in the order they came, and the objects that are not known to be repaired yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, PatchRequest] = {}
        self._open: dict[bytes, PatchRequest] = {}  # being read
        self._unsure: Counter[Identity] = Counter()  # from the request until the target has it

    def __bool__(self) -> bool:
        return bool(self._waiting or self._open)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def add(
        self, path: bytes, identity: Identity, regions: Iterable[tuple[int, int]], *, multilink: bool
    ) -> PatchRequest | None:
        """`regions`: (offset, length). Returns a former request of another object at `path`: it is void."""
        ranges = aligned(regions)
        known = self._waiting.get(path)
        if known is not None and known.identity == identity:
            known.ranges = merged(known.ranges + ranges)
            known.multilink = known.multilink or multilink
            return None
        if known is not None:
            self.remove(known)
        self._waiting[path] = PatchRequest(path, identity, ranges, multilink)
        self._unsure[identity] += 1
        return known

    def of_path(self, path: bytes) -> bool:
        """Whether there is a request for `path` that is not all in the stream yet."""
        return path in self._waiting or path in self._open

    def next(self) -> PatchRequest | None:
        """The next one to read: `remove` or `all_sent` ends it."""
        if not self._waiting:
            return None
        path = next(iter(self._waiting))
        request = self._open[path] = self._waiting.pop(path)
        return request

    def put_back(self, request: PatchRequest, ranges: list[Range]) -> bool:
        """It was opened, and these ranges of it are left to read. False: another object is waited for there,
        so it is void.
        """
        self._finish(request)
        later = self._waiting.get(request.path)
        if later is request:
            later.ranges = merged(later.ranges + ranges)
        elif later is None:
            request.ranges = ranges
            self._waiting[request.path] = request
        elif later.identity == request.identity:
            later.ranges = merged(later.ranges + ranges)
            later.multilink = later.multilink or request.multilink
            self.settled(request.identity)
        else:
            self.remove(request)
            return False
        return True

    def all_sent(self, request: PatchRequest) -> None:
        """Its end is in the stream; `settled` when the target has it."""
        self._finish(request)

    def settled(self, identity: Identity) -> None:
        """One request of this object is done with."""
        self._unsure[identity] -= 1
        if self._unsure[identity] <= 0:
            del self._unsure[identity]

    def remove(self, request: PatchRequest) -> None:
        """It is void."""
        if not request.void:
            request.void = True
            if self._waiting.get(request.path) is request:
                del self._waiting[request.path]
            self._finish(request)
            self.settled(request.identity)

    def _finish(self, request: PatchRequest) -> None:
        if self._open.get(request.path) is request:
            del self._open[request.path]

    def end(self) -> None:
        """Nobody wants any of them any more."""
        for requests in (self._waiting, self._open):
            for request in requests.values():
                request.void = True

    def is_unsure(self, identity: Identity) -> bool:
        """Whether the target may lack something of it, so that its size and mtime prove nothing."""
        return identity in self._unsure

    def touched_by(self, record: Record) -> list[PatchRequest]:
        """Requests whose path may stand for something else after this record."""
        if not self or record.kind not in NAME_KINDS:
            return []
        paths = [record.path, record.path2] if record.kind in TWO_PATH_KINDS else [record.path]
        found: list[PatchRequest] = []
        for path in paths:
            found += self._at(path)
        renamed = record.kind == Kind.RENAME
        if (
            renamed and (record.flags & Flag.DIRECTORY or record.arg0 & RENAME_EXCHANGE)
        ) or record.kind == Kind.REMOVE_TREE:
            # Otherwise nothing can be below: what is made is new, what is removed or replaced is empty.
            for path in paths:
                found += self._below(path)
        return found

    def _at(self, path: bytes) -> Iterator[PatchRequest]:
        for requests in (self._waiting, self._open):
            request = requests.get(path)
            if request is not None:
                yield request

    def _below(self, path: bytes) -> list[PatchRequest]:
        start = path + b"/"
        return [r for rs in (self._waiting, self._open) for p, r in rs.items() if p.startswith(start)]


def aligned(regions: Iterable[tuple[int, int]]) -> list[Range]:
    """Ranges of whole blocks that hold these (offset, length)."""
    ranges: list[Range] = []
    for offset, length in regions:
        if length > 0:
            end = offset + length
            last = TO_END if end >= TO_END - ALIGN_BYTES else -(-end // ALIGN_BYTES) * ALIGN_BYTES
            ranges.append((offset // ALIGN_BYTES * ALIGN_BYTES, last))
    return merged(ranges)


def merged(ranges: list[Range]) -> list[Range]:
    """Sorted, none touching another."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def counted_bytes(ranges: list[Range]) -> int:
    """Bytes of the ranges whose end is known."""
    return sum(end - start for start, end in ranges if end < TO_END)
