"""One run of a mirror: its options, its counters, its progress as a value."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from replicator import limits
from replicator.mirror.comparison import comparison_of
from replicator.mirror.estimate import Estimate, work_of
from replicator.mirror.order import Order
from replicator.ops import shown
from replicator.states import MIRROR, Machine, MirrorEvent
from replicator.status import MirrorProgress, MirrorStatus, Problem

FULL = "full"
DIFFERENCE = "difference"
RECOVERY = "recovery"  # of some paths only: what a loss or a move into the set left to bring
FORCED = "forced"  # full, over a copy that was taken into use: a person has chosen the source
RESTORED = "restored"  # the source was restored from the copy: from here on it is the copy of that again
OVERRULING = frozenset({FORCED, RESTORED})  # by these a copy that was taken into use is written again
KINDS = frozenset({FULL, DIFFERENCE})
LOG = "log"  # of what is known to have changed
OFF = "off"
CHECKSUM = "checksum"  # as what brings what a target lacks: a difference mirror that compares blocks


_RATE_WINDOW_NS = 2_000_000_000


@dataclass
class MirrorRun:
    """Options and counters of one run.

    Times are monotonic ns of the World's clock.
    """

    run_id: str
    kind: str
    exact: bool
    started_ns: int
    newer: bool = False  # options, see `mirror/comparison.py`
    checksum: bool = False
    checksum_all: bool = False
    distrust_ctime_after_ns: int | None = None
    continued: bool = False  # a full mirror of a process that died: what that brought counts as brought
    total_files: int = 0
    total_bytes: int = 0
    total_known: bool = False
    done_files: int = 0
    done_bytes: int = 0
    sent_bytes: int = 0
    skipped_bytes: int = 0  # that the target had, or was believed to have
    compared_bytes: int = 0  # read and compared by digests
    current: str = ""
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    some_paths: bool = False  # not of the whole set
    partial: bool = False  # of some paths of a copy that was not complete before: it will not be afterwards
    by_itself: bool = False  # it began without being asked for
    restored: bool = False  # the first one after the source was restored from the copy
    orphans: str = (
        ""  # what it means for orphans: see `replicator.orphans.MODES`; "": it is about single paths
    )
    orphans_stopped: bool = False  # by request, before all names were compared
    lists_names: bool = False  # it says all names, because the target wants to know its orphans
    drift: int = 0  # number of the last report of changes by others that it brings right
    complete: bool = False  # it has ended, with everything brought
    finished_ns: int | None = None
    _tries: Counter[bytes] = field(default_factory=Counter)  # of what was refused
    _rate_mark: tuple[int, int] = (0, 0)
    _rate: float = 0.0
    moved: Callable[[MirrorStatus, MirrorStatus, MirrorEvent, str], None] | None = None

    def __post_init__(self) -> None:
        self._status: Machine[MirrorStatus, MirrorEvent] = Machine(MIRROR, MirrorStatus.MIRRORING, self.moved)
        self._estimate = Estimate(self.started_ns)
        difference = self.kind not in (FULL, FORCED)
        self.comparison = comparison_of(
            difference=difference,
            newer=difference and self.newer,
            checksum=difference and self.checksum,
            checksum_all=self.checksum_all,
        )

    @property
    def status(self) -> MirrorStatus:
        return self._status.state

    def happen(self, event: MirrorEvent, reason: str = "") -> None:
        self._status.happen(event, reason)

    @property
    def paused(self) -> bool:
        return self.status is MirrorStatus.PAUSED

    @property
    def stopped(self) -> bool:
        """By request, before it was complete."""
        return self.status is MirrorStatus.STOPPED

    @property
    def kind_told(self) -> str:
        """What the target is told that it is."""
        return RESTORED if self.restored else self.kind

    @property
    def orphan_mode(self) -> str:
        """What the target is to do with names that are not listed. If they may have been removed on the
        source they are no orphans, but removed at once.
        """
        return self.orphans if self.lists_names and not self.exact else ""

    @property
    def looks_for_orphans(self) -> bool:
        """It is about nothing else."""
        return self.some_paths and bool(self.orphans)

    def expect(self, files: int, size: int) -> None:
        """So much more work, of a run whose work is known beforehand; otherwise everything is counted."""
        if not self.some_paths:
            return
        self.total_known = True
        self.total_files += files
        self.total_bytes += size

    @contextmanager
    def expecting(self, order: Order) -> Iterator[None]:
        """What `order` is asked for within the block is more work."""
        files, size = order.asked_objects, order.asked_bytes
        yield
        self.expect(order.asked_objects - files, order.asked_bytes - size)

    def found_whole(self, size: int, files: int = 1) -> None:
        """Something is brought whole that nobody counted."""
        if self.some_paths and self.total_known:
            self.expect(files, size)

    def patched(self, hole_bytes: int, sent_bytes: int) -> None:
        """A part of a file was brought in place."""
        self.done_bytes += hole_bytes + sent_bytes
        self.sent_bytes += sent_bytes

    def compared(self, size: int, data_bytes: int) -> None:
        """Digests of so much of a file are on their way; what the target finds different `differed`."""
        self.done_bytes += size
        self.skipped_bytes += data_bytes
        self.compared_bytes += data_bytes

    def differed(self, size: int) -> None:
        """So much of what was compared is to be brought."""
        self.done_bytes -= size
        self.skipped_bytes -= size

    def matched(self, size: int) -> None:
        """So much of that was equal after all."""
        self.done_bytes += size
        self.skipped_bytes += size

    def not_as_claimed(self, size: int, files: int = 1) -> None:
        """Files that were claimed to be right are not: they come again."""
        self.done_files -= files
        self.done_bytes -= size
        self.skipped_bytes -= size

    def bring_everything(self) -> None:
        """It began with some paths, and brings the whole set now: what was expected says nothing any more."""
        if self.some_paths:
            self.some_paths = self.total_known = False
            self.total_files = self.total_bytes = 0

    def other_pace(self, now_ns: int) -> None:
        """From now on it works faster or slower, or after a pause."""
        self._estimate.begin_anew(now_ns, work_of(self.done_files, self.done_bytes))

    def problem(self, path: bytes, reason: str) -> None:
        """One path that could not be brought: shown, counted, and not the end of the run."""
        self.problem_count += 1
        if len(self.problems) < limits.PROBLEMS_KEPT:
            self.problems.append(Problem(shown(path), reason))

    def try_again(self, path: bytes) -> bool:
        """Whether a path that was refused is worth another try."""
        self._tries[path] += 1
        return self._tries[path] <= limits.REFUSED_TRIES

    def progress(self, now_ns: int, *, coming_files: int = 0, coming_bytes: int = 0) -> MirrorProgress:
        """`coming_files`, `coming_bytes`: of what is done, so much is not on the target yet."""
        end_ns = self.finished_ns if self.finished_ns is not None else now_ns
        elapsed_s = max(end_ns - self.started_ns, 0) / 1e9
        percent: float | None = None
        applied_percent: float | None = None
        applied_files = max(self.done_files - coming_files, 0)
        applied_bytes = max(self.done_bytes - coming_bytes, 0)
        remaining_s: float | None = None
        if self.total_known and self.finished_ns is None and not self.paused:
            remaining_s = self._estimate.remaining_s(
                now_ns,
                work_of(self.done_files, self.done_bytes),
                work_of(self.total_files, self.total_bytes),
            )
        if self.finished_ns is not None and not self.stopped:
            percent = applied_percent = 100.0
        elif self.total_known:
            whole = self.total_bytes + self.total_files
            percent = min(100.0 * (self.done_bytes + self.done_files) / whole, 100.0) if whole else 100.0
            there = applied_bytes + applied_files
            applied_percent = min(100.0 * there / whole, percent) if whole else 100.0
        return MirrorProgress(
            kind=self.kind,
            status=self.status,
            complete=self.complete,
            percent=percent,
            total_files=self.total_files,
            total_bytes=self.total_bytes,
            total_known=self.total_known,
            done_files=self.done_files,
            done_bytes=self.done_bytes,
            sent_bytes=self.sent_bytes,
            skipped_bytes=self.skipped_bytes,
            compared_bytes=self.compared_bytes,
            newer=self.newer,
            checksum=self.checksum,
            remaining_bytes=max(self.total_bytes - self.done_bytes, 0) if self.total_known else 0,
            rate_bytes_per_s=self._current_rate(end_ns, elapsed_s),
            elapsed_s=elapsed_s,
            remaining_s=remaining_s,
            problem_count=self.problem_count,
            problems=tuple(self.problems),
            current=self.current,
            applied_percent=applied_percent,
            applied_files=applied_files,
            applied_bytes=applied_bytes,
        )

    def _current_rate(self, now_ns: int, elapsed_s: float) -> float:
        if self.finished_ns is not None:
            return self.done_bytes / elapsed_s if elapsed_s else 0.0
        mark_ns, mark_bytes = self._rate_mark
        if now_ns - mark_ns >= _RATE_WINDOW_NS:
            if mark_ns:
                self._rate = (self.done_bytes - mark_bytes) * 1e9 / (now_ns - mark_ns)
            self._rate_mark = (now_ns, self.done_bytes)
        return self._rate or (self.done_bytes / elapsed_s if elapsed_s else 0.0)
