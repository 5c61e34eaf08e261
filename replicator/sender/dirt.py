"""What a target may lack, as the sender of its connection knows it: one dirty map per journal, in one file.

Active from the moment the target stops being an exact copy (or may do so unseen) until a recovery is complete
and durable there. Meanwhile every record that the stream passes, or that is only tracked, is folded: the map
covers all that may differ between the target and the source at `flow.position`, wherever in between the
target is. Folding the same records again, after the stream went back, only adds to it.

The file, home/source/<connection>.dirt, is the whole of it, replaced at once and durable. A journal may
forget what it says (`saved`), and nothing later.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import xxhash

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import JournalError
from replicator.mirror.order import is_below_or_equal, parent_of
from replicator.mirror.requirements import require_dirty
from replicator.ops import NAME_KINDS, TWO_PATH_KINDS, Flag, Kind, Record, shown
from replicator.queue.dirty import Dirty, DirtyMap, Estimate, Scope
from replicator.queue.durable_file import read_if_there, replace_durably
from replicator.sender.flow import Flow
from replicator.sender.root_guard import root_change
from replicator.world import World

_MAGIC = b"RDIRT\0\0\x01"
_CHECKSUM_BYTES = 8
_BEGINS_ANEW = frozenset({Kind.HOLE, Kind.DOUBT})


class _SavedFlow(msgspec.Struct, frozen=True, array_like=True):
    journal_id: str
    sequence: int
    chain: int
    wall_ns: int
    base: int
    map: bytes


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    told: str
    skipped: bool
    since_wall_ns: int
    distrust_wall_ns: int
    root_changed: str
    flows: list[_SavedFlow]


class Dirt:
    """See the module. Only the sender's tasks touch it; between two checkpoints it is consistent."""

    def __init__(self, world: World, path: str, flows: list[Flow]) -> None:
        """Takes up what a predecessor saved, and moves the flows to where that ends."""
        self.active = False
        self.known = True
        """It is all that the target may lack. False: the target was no exact copy when this began."""
        self.gap = False  # something was lost of which nobody knows what it was
        self.told = ""  # by this run (its id) the stream tells the target that it is not exact
        self.outstanding = False  # no recovery has brought it yet; else one has, and it may not be durable
        self.skipped = False  # some of it while replication was stopped: a mirror does not bring it for good
        self.since_wall_ns = 0
        self.distrust_wall_ns = 0
        """Files changed since are not what their size and mtime say; 0: nobody knows since when."""
        self.root_changed = ""  # a root of the set was renamed or deleted among what was tracked
        self._world = world
        self._disk = world.disk
        self._path = path
        self._flows = flows
        self._maps = [DirtyMap(limits.DIRTY_MAP_BYTES) for _ in flows]
        self._saved: list[int] = [0] * len(flows)
        self._base: list[int] = [0] * len(flows)  # sequences at which this began
        self._changed = False  # since it was saved
        self._new = [False] * len(flows)  # nothing was folded yet
        self._all = [flow.filter.everything_below(b"") for flow in flows]
        self._estimates: tuple[float, Estimate] | None = None
        self._removed = False
        self._load()

    # --- the course of things ---

    def begin(self, *, known: bool = True, told: str = "") -> None:
        """The target is an exact copy up to where the flows stand, or was last heard to be, and from here on
        it may not be. `known` False: it is none. `told`: the stream says so, see `tell`.
        """
        now_ns = self._world.clock.wall_ns()
        self.active = self.outstanding = True
        self.known, self.told, self.gap, self.root_changed = known, told, False, ""
        self.skipped = False
        self.since_wall_ns = now_ns
        passed = [flow.passed_wall_ns for flow in self._flows]
        self.distrust_wall_ns = min(passed, default=0)
        self._maps = [DirtyMap(limits.DIRTY_MAP_BYTES) for _ in self._flows]
        self._new = [True] * len(self._flows)
        self._saved = [flow.position.sequence for flow in self._flows]
        self._base = list(self._saved)
        self._touched()

    def begin_restored(
        self, lacking: Mapping[str, Sequence[bytes]], differing: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """The source was restored from the copy: they are equal where the flows stand, but for `lacking` (by
        journal id), and these maps. What was noted before is void.
        """
        self.clear()
        self.begin()
        for flow in self._flows:
            for path in lacking.get(flow.journal_id, ()):
                self._maps[flow.index].include(path, int(Scope.TREE), 0)
            if flow.journal_id in differing:
                self._maps[flow.index].merge(DirtyMap.decode(differing[flow.journal_id]))
        self._touched()

    def fold(self, flow: Flow, record: Record) -> None:
        """The stream passes this record, or would. Cheap, and called for each while this is active."""
        index = flow.index
        if self._new[index]:
            self._first(index, record)
        self._changed = True
        if self._all[index]:
            self._maps[index].fold(record)
        elif _belongs(flow, record):
            self.root_changed = self.root_changed or root_change(flow, record)
            self._maps[index].fold(record)

    def _first(self, index: int, record: Record) -> None:
        """The oldest record of a journal: what happened before it, the target has."""
        self._new[index] = False
        if record.kind not in _BEGINS_ANEW:
            if not self.distrust_wall_ns or record.wall_ns < self.distrust_wall_ns:
                self.distrust_wall_ns = record.wall_ns
            self.since_wall_ns = min(self.since_wall_ns, record.wall_ns)

    def add(self, flow: Flow, path: bytes) -> None:
        """This path, with all below it, is not as it should be."""
        self._maps[flow.index].include(path, int(Scope.TREE), 0)
        self._touched()

    def everything(self) -> None:
        """What was lost is not known: only a comparison can tell."""
        self.gap = True
        self._touched()

    def tell(self, run_id: str) -> None:
        """The stream says now that the target is not exact, until this run is complete."""
        if self.active and self.told != run_id:
            self.told, self.outstanding = run_id, True
            self._touched()

    def brought(self) -> None:
        """A recovery is complete in the stream; kept until it is durable on the target.

        What was skipped meanwhile is still to be brought, and is all that is.
        """
        self.outstanding = self.skipped
        if self.skipped:
            self.known = True
            self._touched()

    def lacks(self) -> None:
        """Records were folded that nobody ships: there is something to bring, be the rest brought or not."""
        self.outstanding = True

    def skip(self) -> None:
        """Records pass that are not shipped."""
        if not self.skipped:
            self.skipped = True
            self._touched()

    def bring(self) -> None:
        """All of it is asked for now."""
        self.skipped = False

    def clear(self) -> None:
        """The target is exact, and durably so; or everything will be compared."""
        if not self.active:
            return
        self.active = self.outstanding = self.gap = self.skipped = self._changed = False
        self.known, self.told, self.root_changed = True, "", ""
        self._maps = [DirtyMap(limits.DIRTY_MAP_BYTES) for _ in self._flows]
        self._estimates = None
        self._unlink()

    # --- what it says ---

    @property
    def sufficient(self) -> bool:
        """Whether bringing what it names makes the target an exact copy, by less than a comparison."""
        return self.known and self.tells

    @property
    def tells(self) -> bool:
        """Whether it names all that was not shipped."""
        return not self.gap and not any(found.is_everything for found in self._maps)

    def require(self, flow: Flow, *, in_place: bool = True) -> None:
        """Ask the order of the flow for all of it."""
        require_dirty(self._maps[flow.index], flow.filter, flow.order, in_place=in_place)

    def encoded(self, flow: Flow) -> bytes:
        """Its map of that journal, up to where the flow stands."""
        return self._maps[flow.index].encode()

    def belongs(self, flow: Flow, record: Record) -> bool:
        """Whether a record can make something of the set dirty."""
        return self._all[flow.index] or _belongs(flow, record)

    def estimate(self) -> Estimate:
        """How much there is to bring, a few seconds old where the map is large."""
        now = self._world.clock.monotonic_ns() / 1e9
        if self._estimates is None or now - self._estimates[0] > limits.DIRT_LOOK_S:
            parts = [found.estimate() for found in self._maps]
            self._estimates = now, Estimate(*(sum(numbers) for numbers in zip(*parts, strict=True)))
        return self._estimates[1]

    def why(self, flow: Flow, path: bytes) -> str:
        """What it says of one path; "" if nothing."""
        if not self.active or not self.outstanding:
            return ""
        if not self.sufficient:
            return "everything has to be compared"
        for entry in self._maps[flow.index]:
            text = _about(entry, path)
            if text:
                return text
        return ""

    # --- the file ---

    def base(self, flow: Flow) -> int:
        """The sequence at which this began: the target has all up to there."""
        return self._base[flow.index]

    def saved(self, flow: Flow) -> int:
        """Up to which record the journal may forget, as far as this goes."""
        return self._saved[flow.index] if self.known and not self.gap else flow.position.sequence

    @property
    def changed(self) -> bool:
        """Whether there is something to save."""
        return self.active and self._changed

    def save(self) -> bool:
        """Make it durable. False: the disk refuses; what the journal has is kept then."""
        if self._removed or not self.active:
            return False
        if not self.known or self.gap:
            self._unlink()  # nothing worth remembering: a successor compares
            self._note_saved()
            return True
        flows = [
            _SavedFlow(flow.journal_id, *flow.position, flow.passed_wall_ns, base, found.encode())
            for flow, found, base in zip(self._flows, self._maps, self._base, strict=True)
        ]
        body = msgspec.msgpack.encode(
            _Saved(
                self.told, self.skipped, self.since_wall_ns, self.distrust_wall_ns, self.root_changed, flows
            )
        )
        checksum = xxhash.xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little")
        try:
            self._replace([_MAGIC, checksum, body])
        except OSError as error:
            print(f"cannot save what the target lacks: {error}", file=sys.stderr, flush=True)
            return False
        self._note_saved()
        return True

    def remove(self) -> None:
        """The connection ends: nothing is remembered any more."""
        self._removed = True
        self.active = False
        self._unlink()

    def _touched(self) -> None:
        """Something that no journal can tell again has changed."""
        self._changed = True
        self._estimates = None
        self.save()

    def _note_saved(self) -> None:
        self._saved = [flow.position.sequence for flow in self._flows]
        self._changed = False

    def _replace(self, parts: list[bytes | memoryview]) -> None:
        self._disk.makedirs(os.path.dirname(self._path))
        replace_durably(self._disk, self._path, parts)

    def _unlink(self) -> None:
        try:
            self._disk.unlink(self._path)
            self._disk.fsync_directory(os.path.dirname(self._path))
        except FileNotFoundError:
            pass
        except OSError as error:
            print(f"cannot remove {self._path}: {error}", file=sys.stderr, flush=True)

    def _load(self) -> None:
        saved = self._read()
        if saved is None or [found.journal_id for found in saved.flows] != [
            f.journal_id for f in self._flows
        ]:
            return
        try:
            self._maps = [DirtyMap.decode(found.map, limits.DIRTY_MAP_BYTES) for found in saved.flows]
        except JournalError as error:
            print(f"{self._path} is damaged: {error}", file=sys.stderr, flush=True)
            return
        self.active = self.outstanding = True
        self.told, self.skipped, self.root_changed = saved.told, saved.skipped, saved.root_changed
        self.since_wall_ns, self.distrust_wall_ns = saved.since_wall_ns, saved.distrust_wall_ns
        self._base = [found.base for found in saved.flows]
        for flow, found in zip(self._flows, saved.flows, strict=True):
            flow.stand_at(found.sequence, found.chain, found.wall_ns)
        self._note_saved()

    def _read(self) -> _Saved | None:
        """None: there is none, or nothing whole."""
        data = read_if_there(self._disk, self._path)
        if data is None:
            return None
        start = len(_MAGIC) + _CHECKSUM_BYTES
        body = data[start:]
        checksum = int.from_bytes(data[len(_MAGIC) : start], "little")
        try:
            if data[: len(_MAGIC)] != _MAGIC or checksum != xxhash.xxh3_64_intdigest(body):
                raise msgspec.DecodeError("its checksum does not fit")
            return msgspec.msgpack.decode(body, type=_Saved)
        except MALFORMED as error:
            print(f"{self._path} is damaged: {error}", file=sys.stderr, flush=True)
            return None


def _belongs(flow: Flow, record: Record) -> bool:
    """Whether a record can make something of the set dirty."""
    if record.kind in _BEGINS_ANEW:
        return True
    rules = flow.filter
    paths = (record.path, record.path2) if record.kind in TWO_PATH_KINDS else (record.path,)
    # A removed or moved name may have been a directory above something of the set.
    deep = record.kind in NAME_KINDS or bool(record.flags & Flag.DIRECTORY)
    return any(rules.includes(path) or (deep and rules.may_contain(path)) for path in paths)


def _about(entry: Dirty, path: bytes) -> str:
    if entry.scope & Scope.TREE:
        return f"all of {shown(entry.path) or '/'} is brought" if is_below_or_equal(path, entry.path) else ""
    if entry.path == path:
        if entry.regions:
            return f"{len(entry.regions)} regions of it are brought"
        return "it is brought" if entry.scope & Scope.WHOLE else "its names or attributes are brought"
    if entry.path == parent_of(path) and entry.scope & (Scope.FILES | Scope.NAMES):
        what = "files" if entry.scope & Scope.FILES else "names"
        return f"the {what} of its directory are brought"
    return ""
