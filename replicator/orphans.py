"""Orphans: what a copy has, the source lacks, and the rules of the set do not exclude.

Settings belong to the target and hold for all connections to it (OR-05). Which orphans go is one pure
function; whether there are too many of them for going on without a person is another.
"""

import os.path
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

import msgspec

from replicator.errors import UsageError

_DAY_NS = 86_400 * 1_000_000_000

PREVIEW, START, FORCE, MIRROR = "preview", "start", "force", "mirror"
MODES = frozenset({PREVIEW, START, FORCE, MIRROR})
"""What a run that lists names is for: to say what would happen; by hand; by hand whatever the limits say; as
part of a mirror.
"""


class OrphanAction(StrEnum):
    """What becomes of orphans."""

    KEEP = "keep"
    DELETE = "delete"
    MOVE = "move"


class OrphanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a target handles orphans, of all connections (OR-02…06)."""

    action: OrphanAction = OrphanAction.KEEP
    directory: str = ""  # where moved ones go; outside of every copy
    older_than_days: float = 0.0  # only what was not modified within so many days
    with_mirrors: bool = True  # False: only when somebody starts it
    log_names: bool = True  # in the receiver's log; counts are always there
    limit_count: int = 1000  # more orphans than this halt for a person; 0: no limit
    limit_percent: float = 10.0  # the same, of all names in the copy; 0: no limit

    @property
    def automatic(self) -> bool:
        """Whether mirrors handle orphans."""
        return self.with_mirrors and self.action is not OrphanAction.KEEP


class OrphanPhase(StrEnum):
    """How far a run is."""

    NONE = ""
    LOOKING = "looking"  # names are compared
    REMOVING = "removing"
    PAUSED = "paused"
    HALTED = "halted"  # a person has to decide
    STOPPED = "stopped"
    COMPLETE = "complete"


class OrphanReport(msgspec.Struct, frozen=True, kw_only=True):
    """One run: the one under way, or the last. Bytes are sizes of files; what is no directory is a file."""

    run: str = ""  # id of the mirror run that listed the names
    phase: OrphanPhase = OrphanPhase.NONE
    mode: str = ""
    action: OrphanAction = OrphanAction.KEEP
    directory: str = ""  # of this run's moves
    seen: int = 0  # names in the copy that were compared
    files: int = 0  # orphans that go
    directories: int = 0
    bytes: int = 0
    kept: int = 0  # orphans that stay: too young, or something in them stays
    done_files: int = 0
    done_directories: int = 0
    done_bytes: int = 0
    changed: int = 0  # stayed because they changed meanwhile
    problems: int = 0  # could not be removed
    reason: str = ""  # of a halt, or the last problem
    started: float = 0.0  # seconds since the epoch
    finished: float = 0.0
    names: tuple[str, ...] = ()  # what goes, of a preview or a halt, directories end with "/"
    names_left_out: int = 0

    @property
    def at_work(self) -> bool:
        return self.phase in (OrphanPhase.LOOKING, OrphanPhase.REMOVING, OrphanPhase.PAUSED)


def described(report: OrphanReport) -> str:
    """One line: what became of the orphans, or would."""
    if report.mode == PREVIEW:
        return (
            f"orphans, preview: {report.files} files ({report.bytes} bytes) and {report.directories}"
            f" directories would go, {report.kept} would stay"
        )
    if report.phase is OrphanPhase.HALTED and not (report.done_files or report.done_directories):
        return f"orphans {report.phase}, all are still there: {report.reason}"
    verb = "moved" if report.action is OrphanAction.MOVE else "deleted"
    text = (
        f"orphans {report.phase}: {verb} {report.done_files} files ({report.done_bytes} bytes) and"
        f" {report.done_directories} directories"
    )
    stayed = report.kept + report.changed + report.problems
    return text + (f", {stayed} stayed" if stayed else "") + (f": {report.reason}" if report.reason else "")


class Orphan(NamedTuple):
    """One orphan. `holds`: of a directory, something is in it that is no orphan."""

    path: bytes
    directory: bool
    bytes: int
    mtime_ns: int
    holds: bool = False


def decide(orphans: Iterable[Orphan], settings: OrphanSettings, now_ns: int) -> Iterator[tuple[Orphan, bool]]:
    """Each orphan, and whether it goes. `orphans`: what is in a directory comes before it.

    A directory goes if all in it goes. Memory: one entry per directory that stays.
    """
    newest_ns = now_ns - int(settings.older_than_days * _DAY_NS) if settings.older_than_days > 0 else None
    staying: set[bytes] = set()
    for orphan in orphans:
        goes = newest_ns is None or orphan.mtime_ns <= newest_ns
        if orphan.directory:
            goes = goes and not orphan.holds and orphan.path not in staying
            staying.discard(orphan.path)
        if not goes:
            staying.add(orphan.path.rpartition(b"/")[0])
        yield orphan, goes


def over_limit(count: int, seen: int, settings: OrphanSettings) -> str:
    """Why a person has to decide about so many orphans among `seen` names; "": nobody has to."""
    if settings.limit_count and count > settings.limit_count:
        return f"{count} orphans are more than the limit of {settings.limit_count}"
    if settings.limit_percent and count * 100 > seen * settings.limit_percent:
        percent = count * 100 / max(seen, 1)
        return f"{percent:.0f} % of the copy are orphans: more than the limit of {settings.limit_percent:g} %"
    return ""


def settings_text(settings: OrphanSettings) -> str:
    """One line about them."""
    if settings.action is OrphanAction.KEEP:
        return "kept"
    text = "deleted" if settings.action is OrphanAction.DELETE else f"moved to {settings.directory}"
    if settings.older_than_days:
        text += f" if not modified for {settings.older_than_days:g} days"
    text += " by mirrors" if settings.with_mirrors else " when somebody starts it"
    limits = [f"{settings.limit_count} names"] if settings.limit_count else []
    limits += [f"{settings.limit_percent:g} % of the copy"] if settings.limit_percent else []
    return text + (f", at most {' and '.join(limits)} without a person" if limits else ", without a limit")


def check(settings: OrphanSettings) -> None:
    """UsageError unless they make sense by themselves."""
    if settings.action is OrphanAction.MOVE and not settings.directory:
        raise UsageError("orphans are to be moved: say where (--directory DIR)")
    directory = settings.directory
    if directory and (not directory.startswith("/") or os.path.normpath(directory) in ("/", "//")):
        raise UsageError(f"the directory {directory!r} is not an absolute path below /")
    if ".." in directory.split("/") or "\0" in directory:
        raise UsageError(f"the directory {directory!r} is not a plain absolute path")
    for name, value, most in (
        ("older_than_days", settings.older_than_days, 36500.0),
        ("limit_count", settings.limit_count, 2**40),
        ("limit_percent", settings.limit_percent, 100.0),
    ):
        if not 0 <= value <= most:
            raise UsageError(f"{name} {value:g}: must be from 0 to {most:g}")
