"""Drift: what others have changed in a copy, until its source has brought it again (AD-09).

Kept by the target, as dirty maps in terms of the source's paths, so that neither side can forget it: each
report has a number, is told again in every session, and is gone when a mirror that knew of it is complete.
What is renamed here meanwhile is reported under its new name as well: the source may have passed that
operation before it heard of the report.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.mirror.order import is_below_or_equal
from replicator.ops import NAME_KINDS, RENAME_EXCHANGE, Flag, Kind, Record
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap, Scope
from replicator.queue.durable_file import read_if_there, replace_durably
from replicator.world import World

_MOVING = frozenset({Kind.RENAME, Kind.LINK})
_MULTILINK = int(Flag.MULTILINK)  # enumerations are slow where it counts


class _StoredReport(msgspec.Struct, frozen=True, array_like=True):
    number: int
    journal_id: str
    dirty: bytes
    repaired: bool
    tail: bool = False


_Stored = tuple[str, list[_StoredReport]]
"""The file: of which boot, and the reports."""


@dataclass
class Report:
    """What a source is told at once, of one journal. `dirty` None: anything may have changed. `tail`: by its
    former source, which is the target now.
    """

    number: int
    journal_id: str
    dirty: DirtyMap | None
    tail: bool = False

    @property
    def encoded(self) -> bytes:
        """b"": anything."""
        return b"" if self.dirty is None else self.dirty.encode()


class Drift:
    """Of one copy. `reports` is what is not repaired; `changes` and `last_path` are for people."""

    def __init__(self, world: World, directory: str) -> None:
        """`directory`: home/target/<connection>. OSError."""
        self.reports: list[Report] = []
        self.changes = 0
        self.last_path = b""
        self.since_ns = 0  # none of what is reported was changed before
        self.watched = False  # somebody calls `looked`
        self.told = 0
        """Number of the last report that a source may be told: what comes after it is gathered."""
        self._recent: list[tuple[str, Record]] | None = []  # since `looked`; None: too many
        self._world = world
        self._path = os.path.join(directory, "drift")
        self._number = 0
        self._unsettled: list[Report] = []  # repaired, and not on stable storage yet
        self.damaged = not self._load()
        self.tell()
        """What was known is lost: whoever knows the journals reports that anything may have changed."""

    @property
    def pending(self) -> bool:
        return bool(self.reports)

    def add(self, journal_id: str, dirty: DirtyMap | None) -> bool:
        """Something was changed since the last `looked`. `dirty`: in terms of the source's paths, not to be
        used afterwards. Returns whether anything may have been changed.
        """
        if self._recent is None:
            dirty = None
        for journal, record in self._recent or ():  # it may have been changed before that
            if dirty is not None and journal == journal_id:
                followed = _followed([dirty], record)
                if followed is not None:
                    dirty.merge(followed)
                else:
                    dirty = None
        self._report(journal_id, dirty)
        self._save()
        return dirty is None

    def add_tails(self, tails: Mapping[str, DirtyMap | None]) -> None:
        """By journal id: what the host of the copy wrote while it was the source, and the source never had.
        OSError: it could not be noted.
        """
        for journal_id, dirty in tails.items():
            if dirty is None or not dirty.is_empty:
                self._report(journal_id, dirty, tail=True)
        self.tell()
        self._replace_file()

    @property
    def has_tail(self) -> bool:
        return any(report.tail for report in self.reports)

    def lacks(self, journal_id: str, path: bytes) -> None:
        """The copy has lost a directory of that name, and is about to be given an empty one: a list of names
        could not tell any more that all of it is lacking. OSError: it could not be noted.
        """
        dirty = DirtyMap(limits.DRIFT_BYTES)
        dirty.include(path, int(Scope.TREE), 0)
        self._report(journal_id, dirty, tail=True)
        self.tell()
        self._replace_file()

    def looked(self) -> None:
        """All that was changed up to now was added."""
        self._recent = []

    def tell(self) -> None:
        """What was gathered is for the source to know."""
        self.told = self._number

    def _report(self, journal_id: str, dirty: DirtyMap | None, *, tail: bool = False) -> None:
        known = [report for report in self.reports if report.journal_id == journal_id]
        same = [report for report in known if report.tail is tail or report.dirty is None or dirty is None]
        if any(report.dirty is None for report in same):
            dirty = None
        tail = tail or (dirty is None and any(report.tail for report in same))
        for report in same:
            if dirty is None or len(same) >= limits.DRIFT_REPORTS or report.number > self.told:
                self.reports.remove(report)
                if dirty is not None and report.dirty is not None:
                    dirty.merge(report.dirty)
        self._number = max(self._number + 1, self._world.clock.wall_ns() // 1000)
        self.reports.append(Report(self._number, journal_id, dirty, tail))

    def repaired(self, number: int) -> None:
        """A mirror is complete that knew of all reports up to this number."""
        self._unsettled += [report for report in self.reports if report.number <= number]
        if len(self._unsettled) and self.reports and self.reports[0].number <= number:
            self.reports = [report for report in self.reports if report.number > number]
            self._save()

    def mark(self) -> int:
        """For `settle`: how much is repaired, if not durably, at this moment."""
        return len(self._unsettled)

    def settle(self, mark: int) -> None:
        """The copy was made durable since that `mark`. Until then, power loss brings back what others had
        changed.
        """
        if mark:
            del self._unsettled[:mark]
            self._save()

    def follow(self, journal_id: str, record: Record) -> bool:
        """This operation, which `moves`, was applied here. Returns whether anything may be wrong by that."""
        if self.watched:
            if self._recent is not None and len(self._recent) < limits.DRIFT_RECENT:
                self._recent.append((journal_id, record._replace(payload=b"")))
            else:
                self._recent = None
        anything = found = False
        for tail in (False, True):
            reports = [r for r in self.reports if r.journal_id == journal_id and r.tail is tail]
            dirty = _followed([r.dirty for r in reports if r.dirty is not None], record)
            if dirty is None or not dirty.is_empty:
                self._report(journal_id, dirty, tail=tail)
                anything, found = anything or dirty is None, True
        if found:
            self._save()
            self.tell()
        return anything

    # --- over restarts ---

    def _save(self) -> None:
        """Replace the file, durably: what others change is rare."""
        try:
            self._replace_file()
        except OSError as error:  # what is in memory holds; only over a kill is it forgotten
            print(f"changes of others in the copy cannot be noted: {error}", file=sys.stderr, flush=True)

    def _replace_file(self) -> None:
        kept = [_stored(report, True) for report in self._unsettled]
        kept += [_stored(report, False) for report in self.reports]
        data = msgspec.msgpack.encode((self._world.clock.boot_id(), kept))
        replace_durably(self._world.disk, self._path, [data])

    def _load(self) -> bool:
        data = read_if_there(self._world.disk, self._path)
        if data is None:
            return True
        try:
            boot_id, stored = msgspec.msgpack.decode(data, type=_Stored)
            same_boot = boot_id == self._world.clock.boot_id()
            self._number = max((each.number for each in stored), default=0)
            for each in stored:
                number = each.number
                dirty = DirtyMap.decode(each.dirty, limits.DRIFT_BYTES) if each.dirty else None
                if not same_boot:  # what was repaired may be so no longer, so the source hears of it anew
                    number = self._number = max(self._number + 1, self._world.clock.wall_ns() // 1000)
                reports = self._unsettled if each.repaired and same_boot else self.reports
                reports.append(Report(number, each.journal_id, dirty, each.tail))
        except (*MALFORMED, CorruptDirtyMap):
            self.reports.clear()
            self._unsettled.clear()
            return False
        return True


def _stored(report: Report, repaired: bool) -> _StoredReport:
    return _StoredReport(report.number, report.journal_id, report.encoded, repaired, report.tail)


def one_for_each_journal(reports: Sequence[Report]) -> list[Report]:
    """The same, with those of one journal merged."""
    found: dict[str, Report] = {}
    for report in reports:
        merged = found.setdefault(report.journal_id, Report(0, report.journal_id, DirtyMap()))
        if report.dirty is None or merged.dirty is None:
            merged.dirty = None
        else:
            merged.dirty.merge(report.dirty)
    return list(found.values())


def moves(record: Record) -> bool:
    """Whether an operation carries what others have changed to another name: by giving it that name, or
    because it was meant for a file that has further names, and did not reach it.
    """
    return record.kind in _MOVING or bool(record.flags & _MULTILINK and record.kind not in NAME_KINDS)


def _followed(known: Iterable[DirtyMap], record: Record) -> DirtyMap | None:
    """What these say of a name, said of the name that it has got. None: of names that nobody here knows."""
    moved = [(record.path, record.path2)]
    if record.kind == Kind.RENAME and record.arg0 & RENAME_EXCHANGE:
        moved.append((record.path2, record.path))
    found = DirtyMap(limits.DRIFT_BYTES)
    for dirty in known:
        for entry in dirty:
            for old, new in moved:
                below = is_below_or_equal(entry.path, old)
                if not below and not (entry.scope & Scope.TREE and is_below_or_equal(old, entry.path)):
                    continue
                if record.kind not in _MOVING:
                    return None
                if below:  # of what differs in place it is not known what lies there otherwise
                    scope = entry.scope | Scope.WHOLE if entry.regions else entry.scope
                    found.include(new + entry.path[len(old) :], scope, 0)
                else:
                    found.include(new, Scope.TREE, 0)
    return found
