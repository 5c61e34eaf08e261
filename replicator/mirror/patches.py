"""Which parts of existing files a recovery has still to bring in place: requests, and what voids them.

Pure, part of an `Order`. A request speaks of one object under one path. It is void as soon as the path may
stand for something else, or the path is brought whole anyway; what the target lacks of the object is then for
whoever brings it whole.

Memory: one entry per request, bounded by whoever makes them (a dirty map).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from replicator import limits
from replicator.bounds import Size
from replicator.ops import NAME_KINDS, RENAME_EXCHANGE, TWO_PATH_KINDS, Flag, Identity, Kind, Record

TO_END = 2**63 - 1
"""As the length of a region: up to the end of the file, wherever that is."""

ALIGN_BYTES = 4096
"""Regions are widened to whole blocks: only these can become holes."""

Range = tuple[int, int]  # first byte, and the one after the last; TO_END is the end of the file

Block = tuple[Size, Size, bytes]
"""(offset, length, digests of its units on the target; b"": none)"""


class Todo(NamedTuple):
    """A step of a request: `ranges` and `blocks` to bring, `compare` to send digests of. `ends`: its end may
    follow, for nothing is unanswered.
    """

    ranges: list[Range]
    compare: list[Range]
    blocks: list[Block]
    ends: bool

    @property
    def left(self) -> list[Range]:
        """What is to be brought, if nothing of it was."""
        return merged([*self.ranges, *((offset, offset + length) for offset, length, _ in self.blocks)])


@dataclass(eq=False)
class PatchRequest:
    """Bring these ranges of the object at `path`, then its size, attributes and xattrs.

    `multilink`: it may have other names on the target, which nobody here knows. With a `number` it is a
    *comparison*: the target has a copy of the object that may differ anywhere in `compare`. Digests of these
    ranges are sent, and `blocks` are what the target found different. Its end, with the mtime, is sent when
    the target has answered all, and has all that differed: until then nothing of the file may look right.
    """

    path: bytes
    identity: Identity
    ranges: list[Range]
    multilink: bool
    void: bool = False  # nothing of it may follow
    measured: bool = False  # somebody has seen the file, and how long its ranges are
    number: int = 0
    compare: list[Range] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    unanswered: int = 0  # digests that were read, and that the target has not answered
    parked: bool = False  # waits for answers
    probed: bool = False  # the beginning was compared before all else,
    probing: bool = False  # and is not answered yet: nothing else is read
    suspected: bool = False  # most blocks differ: whoever reads them looks whether anything in them does not
    moved: bool = False  # what differs is looked for at other places of the target's copy
    elsewhere: bool = False  # the target has a copy that may be this one, under another name
    rebuilt: bool = False  # the target was told to build another file of it
    begun: bool = False  # that one is what is there of a transfer that broke off
    answered_bytes: int = 0  # in a row, of which
    differing_bytes: int = 0  # so many differ

    def take(self) -> Todo:
        """All that is to be read now; whoever takes it sends it, or gives it back."""
        if self.probing:
            return Todo([], [], [], ends=False)
        todo = Todo(self.ranges, self.compare, self.blocks, ends=not (self.compare or self.unanswered))
        self.ranges, self.compare, self.blocks = [], [], []
        return todo

    def give_back(self, ranges: Iterable[Range], compare: Iterable[Range] = ()) -> None:
        """These are left to read."""
        self.ranges = merged([*self.ranges, *ranges])
        self.compare = merged([*self.compare, *compare])


class Patches:
    """Requests by path, in the order they came, and the objects that are not known to be repaired yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, PatchRequest] = {}
        self._open: dict[bytes, PatchRequest] = {}  # being read
        self._unsure: Counter[Identity] = Counter()  # from the request until the target has it
        self._comparisons: dict[int, PatchRequest] = {}  # by number

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
        known = self._open.get(path)
        if known is not None and known.number and known.identity == identity:
            # The end of another one would say that the file is right before it is.
            known.give_back(ranges)
            self._unpark(known)
            return None
        if known is None or not known.number:
            known = self._waiting.get(path)
        if known is not None and known.identity == identity:
            known.give_back(ranges)
            known.multilink = known.multilink or multilink
            return None
        if known is not None:
            self.remove(known)
        self._waiting[path] = PatchRequest(path, identity, ranges, multilink)
        self._unsure[identity] += 1
        return known

    def compare(
        self, path: bytes, identity: Identity, number: int, *, multilink: bool
    ) -> PatchRequest | None:
        """The target has a copy of the object that may differ anywhere. Returns as `add`."""
        for known in self._at(path):
            if known.number and known.identity == identity:
                return None  # heard twice: whatever makes it void has removed it
        former = self.add(path, identity, (), multilink=multilink)
        request = self._waiting[path]
        request.number, request.compare = number, [(0, TO_END)]
        self._comparisons[number] = request
        return former

    def ask_begun(self, request: PatchRequest) -> None:
        """The target is asked whether it has a part of the file: nothing is read until it has answered."""
        request.ranges, request.compare = [(0, TO_END)], []
        request.begun = request.rebuilt = request.probed = request.probing = True
        request.unanswered = 1

    def goes_on(self, request: PatchRequest, end: int, *, compare: bool) -> None:
        """It has it up to `end`."""
        request.ranges = [(end, TO_END)]
        request.compare = [(0, end)] if compare else []

    def comparison(self, number: int) -> PatchRequest | None:
        """The comparison that has this number, if it is not void and not at its end."""
        return self._comparisons.get(number)

    def differ(self, request: PatchRequest, blocks: Iterable[Block]) -> None:
        """The target found these blocks different."""
        for block in blocks:
            request.differing_bytes += block[1]
            place = [(block[0], block[0] + block[1])]
            if request.moved and block[2]:  # asked before it was known that something moved
                request.give_back((), place)
            elif request.moved:
                request.give_back(place)
            else:
                request.blocks.append(block)
        if not request.probing:
            self._unpark(request)

    def answered(self, request: PatchRequest, size: int) -> None:
        """The target has compared digests of so many bytes of it; what differed is known before."""
        request.unanswered -= 1
        request.probing = False
        request.answered_bytes += size
        self._look_for_moved(request)
        if not request.unanswered or request.compare:
            self._unpark(request)

    def _look_for_moved(self, request: PatchRequest) -> None:
        """Where most differs, look for it at other places, as long as that finds something."""
        if request.begun:
            return
        most = request.differing_bytes * 2 > request.answered_bytes
        if not most:
            request.answered_bytes = request.differing_bytes = 0
        elif not request.moved:
            if request.answered_bytes >= limits.MOVED_PROBE_BYTES:
                request.suspected = True
                request.answered_bytes = request.differing_bytes = 0
        elif request.answered_bytes >= limits.MOVED_GIVE_UP_BYTES:
            request.ranges, request.compare = merged([*request.ranges, *request.compare]), []

    def unsent(self, request: PatchRequest, digests: Range) -> None:
        """The target has not received these digests."""
        request.unanswered -= 1
        request.probed = request.probing = False
        request.give_back((), [digests])
        self._unpark(request)

    def park(self, request: PatchRequest) -> None:
        """There is nothing to read of it until the target answers."""
        request.parked = True
        left = request.ranges or request.compare or request.blocks
        if not request.unanswered or (left and not request.probing):
            self._unpark(request)

    def _unpark(self, request: PatchRequest) -> None:
        if request.parked and not request.void:
            request.parked = False
            self.put_back(request, ())

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

    def put_back(self, request: PatchRequest, ranges: Iterable[Range], compare: Iterable[Range] = ()) -> bool:
        """It was opened, and these ranges of it are left to read. False: another object is waited for there,
        so it is void.
        """
        self._finish(request)
        request.parked = False
        request.give_back(ranges, compare)
        later = self._waiting.get(request.path)
        if later is None:
            self._waiting[request.path] = request
        elif later is request:
            pass
        elif later.identity == request.identity:
            kept, other = (later, request) if later.number else (request, later)
            kept.give_back(other.ranges, other.compare)
            kept.multilink = kept.multilink or other.multilink
            self._waiting[request.path] = kept
            self._merge(other)
        else:
            self.remove(request)
            return False
        return True

    def all_sent(self, request: PatchRequest) -> None:
        """Its end is in the stream; `settled` when the target has it."""
        self._finish(request)
        self._comparisons.pop(request.number, None)

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
            self._comparisons.pop(request.number, None)
            self.settled(request.identity)

    def _merge(self, request: PatchRequest) -> None:
        """Another one does what it was to do."""
        request.void = True
        self.settled(request.identity)

    def _finish(self, request: PatchRequest) -> None:
        if self._open.get(request.path) is request:
            del self._open[request.path]

    def end(self) -> None:
        """Nobody wants any of them any more."""
        for requests in (self._waiting, self._open):
            for request in requests.values():
                request.void = True

    def comparisons_at_or_below(self, path: bytes) -> list[PatchRequest]:
        """Comparisons of what is at `path`, or below it."""
        start = path + b"/" if path else b""
        return [r for r in self._comparisons.values() if r.path == path or r.path.startswith(start)]

    @property
    def any_unsure(self) -> bool:
        return bool(self._unsure)

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
