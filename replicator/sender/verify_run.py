"""One verification: its options, its counters, what it found, its progress as a value."""

import stat
from dataclasses import dataclass, field

import msgspec

from replicator import limits
from replicator.bounds import Extent
from replicator.mirror.checks import Aspect, Check, Finding, There
from replicator.ops import Identity, shown
from replicator.states import VERIFY, Machine, VerifyEvent
from replicator.status import Problem, RunReport, VerifyDifference, VerifyPhase, VerifyProgress


class VerifyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a verification does (VF-02, VF-03)."""

    checksum: bool = False  # compare content, whatever sizes and mtimes are
    remirror: bool = False  # bring what differs
    newer: bool = False  # of it, only files that are newer on the source

    @property
    def text(self) -> str:
        names = [name for name in ("checksum", "remirror", "newer") if getattr(self, name)]
        return ", ".join(names)


@dataclass
class Difference:
    """One path that differs. `here` None: the source has nothing of that name; `there`: the target."""

    flow: int  # index of its journal
    path: bytes
    identity: Identity
    links: int
    aspects: set[Aspect]
    here: There | None
    there: There | None
    blocks: list[Extent] = field(default_factory=list)
    root: bytes = b""  # of its journal, where a set has several

    @property
    def shown(self) -> str:
        """The path as people read it."""
        return shown(b"/".join(part for part in (self.root, self.path) if part))

    @property
    def bytes(self) -> int:
        """Content out of sync: what differs, or all of a file of which that is not known."""
        if self.blocks:
            return sum(length for _, length in self.blocks)
        if self.aspects & {Aspect.MISSING, Aspect.TYPE, Aspect.SIZE} and self.here is not None:
            return self.here.size
        return 0

    @property
    def is_directory(self) -> bool:
        side = self.here or self.there
        return side is not None and stat.S_ISDIR(side.mode)

    def add(self, other: "Difference") -> None:
        """Another part of the same file differs, too."""
        self.aspects |= other.aspects
        self.blocks += other.blocks
        self.there = other.there or self.there


def here_of(check: Check) -> There:
    a = check.attributes
    return There(a.mode, a.uid, a.gid, a.rdev, check.size, a.mtime_ns, check.links, check.link_text)


def difference_of(flow: int, check: Check, finding: Finding) -> Difference:
    return Difference(
        flow,
        check.path,
        check.identity,
        check.links,
        set(finding.aspects),
        here_of(check),
        finding.there,
        list(finding.blocks),
    )


@dataclass
class VerifyRun:
    """`started_ns`: of the monotonic clock; `started_wall_ns` of the other."""

    run_id: str
    options: VerifyOptions
    started_ns: int
    started_wall_ns: int
    background: bool = False
    scheduled: bool = False
    finished_ns: int | None = None
    finished_wall_ns: int = 0
    files: int = 0
    directories: int = 0
    file_bytes: int = 0
    read_bytes: int = 0
    missing_files: int = 0
    missing_directories: int = 0
    different_files: int = 0
    different_directories: int = 0
    extra: int = 0
    remirrored: int = 0
    remirrored_directories: int = 0  # of them
    left: int = 0
    changing: int = 0
    bytes_out_of_sync: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    differences: list[VerifyDifference] = field(default_factory=list)
    current: str = ""

    def __post_init__(self) -> None:
        self._phase: Machine[VerifyPhase, VerifyEvent] = Machine(VERIFY, VerifyPhase.RUNNING)

    @property
    def phase(self) -> VerifyPhase:
        return self._phase.state

    @property
    def at_work(self) -> bool:
        return self.finished_ns is None

    def happen(self, event: VerifyEvent) -> None:
        self._phase.happen(event)

    def problem(self, path: bytes, reason: str) -> None:
        """One path that could not be compared."""
        self.problem_count += 1
        if len(self.problems) < limits.PROBLEMS_KEPT:
            self.problems.append(Problem(shown(path), reason))

    def found(self, difference: Difference) -> None:
        """Count a path that differs."""
        if difference.aspects == {Aspect.EXTRA}:
            self.extra += 1
        elif Aspect.MISSING in difference.aspects:
            if difference.is_directory:
                self.missing_directories += 1
            else:
                self.missing_files += 1
        elif difference.is_directory:
            self.different_directories += 1
        else:
            self.different_files += 1
        self.bytes_out_of_sync += difference.bytes
        if len(self.differences) < limits.DIFFERENCES_SHOWN:
            aspects = tuple(sorted(difference.aspects))
            self.differences.append(VerifyDifference(difference.shown, aspects, difference.bytes))

    def progress(self, now_ns: int, *, names: bool = False) -> VerifyProgress:
        """`names`: with what differs."""
        end_ns = self.finished_ns if self.finished_ns is not None else now_ns
        elapsed_s = max(end_ns - self.started_ns, 0) / 1e9
        done = self.read_bytes if self.options.checksum else self.file_bytes
        return VerifyProgress(
            run=self.run_id,
            phase=self.phase,
            checksum=self.options.checksum,
            remirror=self.options.remirror,
            newer=self.options.newer,
            background=self.background,
            scheduled=self.scheduled,
            started=self.started_wall_ns / 1e9,
            finished=self.finished_wall_ns / 1e9,
            elapsed_s=elapsed_s,
            files=self.files,
            directories=self.directories,
            bytes=self.file_bytes,
            read_bytes=self.read_bytes,
            missing_files=self.missing_files,
            missing_directories=self.missing_directories,
            different_files=self.different_files,
            different_directories=self.different_directories,
            extra=self.extra,
            remirrored=self.remirrored,
            left=self.left,
            changing=self.changing,
            bytes_out_of_sync=self.bytes_out_of_sync,
            rate_bytes_per_s=done / elapsed_s if elapsed_s else 0.0,
            problem_count=self.problem_count,
            problems=tuple(self.problems) if names else (),
            differences=tuple(self.differences) if names else (),
            current=self.current,
        )

    def report(self) -> RunReport:
        """Of a run that has ended."""
        progress = self.progress(self.finished_ns or self.started_ns)
        result = "different" if progress.difference_count else "equal"
        if self.phase is VerifyPhase.STOPPED:
            result = "stopped"
        elif result == "equal" and (self.problem_count or self.changing):
            result = "equal, not all compared"
        return RunReport(
            run=self.run_id,
            kind="background" if self.background else "verify",
            started=progress.started,
            finished=progress.finished,
            elapsed_s=progress.elapsed_s,
            result=result,
            options=self.options.text,
            files=self.files,
            bytes=self.file_bytes,
            matched_bytes=max(self.file_bytes - self.bytes_out_of_sync, 0),
            skipped=self.left + self.changing,
            different=progress.difference_count,
            bytes_out_of_sync=self.bytes_out_of_sync,
            problem_count=self.problem_count,
            problems=tuple(self.problems[: limits.RUN_PROBLEMS_KEPT]),
            rate_bytes_per_s=progress.rate_bytes_per_s,
        )
