"""Where a restore writes, and what it is refused for (guarantee 8). Pure."""

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from replicator.addresses import normalise_path
from replicator.errors import UsageError
from replicator.orphans import OrphanAction, OrphanSettings
from replicator.orphans import check as check_orphans
from replicator.repset import (
    ReplicationSet,
    Rule,
    compile_filter,
    escape,
    is_inside,
    overlapping,
    rule_anchor,
)
from replicator.restores import CopyView, Danger, Existing, RestoreRequest, Root
from replicator.status import TargetDataState


def check_request(request: RestoreRequest) -> None:
    """Raises UsageError if its options contradict one another."""
    if request.to and request.maps:
        raise UsageError("--to and --map exclude each other: give one of them")
    if request.protect and (request.paths or request.to or request.maps):
        raise UsageError(
            "--protect goes on with the whole set at its original paths: leave paths and places out"
        )
    if request.protect and request.existing is not Existing.OVERWRITE:
        raise UsageError("--protect needs a source that equals the copy: it goes with overwriting only")
    removes = request.orphans not in (None, OrphanAction.KEEP)
    if removes and request.existing is Existing.MISSING:
        raise UsageError("--only-missing leaves everything as it is that is there: drop --orphans")
    if request.orphans is OrphanAction.MOVE and not request.orphans_directory:
        raise UsageError("--orphans move: name a directory with --orphans-directory")
    if request.orphans_directory and request.orphans is not OrphanAction.MOVE:
        raise UsageError("--orphans-directory says where moved ones go: add --orphans move")
    if not removes and (request.orphans_older_than_days or request.orphans_over_limit):
        raise UsageError(
            "--orphans-older-than and --orphans-over-limit say which ones go: add --orphans delete or move"
        )
    check_orphans(orphan_settings(request))


def orphan_settings(request: RestoreRequest) -> OrphanSettings:
    """What becomes of names that the copy does not have; limits are those of the host."""
    return OrphanSettings(
        action=request.orphans or OrphanAction.KEEP,
        directory=request.orphans_directory,
        older_than_days=request.orphans_older_than_days,
    )


def restricted(repset: ReplicationSet, paths: Sequence[str], roots: Sequence[Root]) -> ReplicationSet:
    """The part of a set at and below these paths. Raises UsageError if one of them is not in it."""
    if not paths:
        return repset
    for path in paths:
        root = next((r for r in roots if is_inside(path, r.source)), None)
        relative = os.fsencode(path[len(root.source) :].strip("/")) if root is not None else b""
        if root is None or not compile_filter(repset, os.fsencode(root.source)).may_contain(relative):
            begins = ", ".join(r.source for r in roots)
            raise UsageError(f"{path} is not in the copy of {repset.name!r}, which begins at {begins}")
    wanted = [Rule(escape(path)) for path in paths]
    kept = [
        rule
        for rule in repset.rules
        if rule.path not in {w.path for w in wanted}
        and (not rule.include or any(is_inside(rule_anchor(rule), path) for path in paths))
    ]
    return msgspec.structs.replace(repset, rules=tuple(sorted([*wanted, *kept])))


class Job(NamedTuple):
    """What goes where. `repset` is the part that is meant; `places`: a directory here for each of `roots`."""

    repset: ReplicationSet
    roots: tuple[Root, ...]
    places: tuple[str, ...]

    @property
    def is_at_home(self) -> bool:
        """Whether everything goes where it was."""
        return all(root.source == place for root, place in zip(self.roots, self.places, strict=True))


def job_of(request: RestoreRequest, copy: CopyView) -> Job:
    """Raises UsageError."""
    paths = tuple(dict.fromkeys(normalise_path(path, "path") for path in request.paths))
    repset = restricted(copy.repset, paths, copy.roots)
    for entry in request.maps:
        if not any(is_inside(root.source, normalise_path(entry.source, "--map")) for root in copy.roots):
            begins = ", ".join(root.source for root in copy.roots)
            raise UsageError(
                f"--map {entry.source}: the copy begins at {begins}: map that, or a directory above it"
                " (parts of it are restored with --path)"
            )
    roots = tuple(
        root for root in copy.roots if not paths or any(is_inside(path, root.source) for path in paths)
    )
    if not roots:
        raise UsageError(f"the copy of {copy.repset.name!r} has nothing")
    return Job(repset, roots, tuple(_place(request, root, len(roots)) for root in roots))


def _place(request: RestoreRequest, root: Root, count: int) -> str:
    if request.to:
        to = normalise_path(request.to, "--to")
        return to if count == 1 else f"{to.rstrip('/')}/{root.source.lstrip('/')}"
    above = [entry for entry in request.maps if is_inside(root.source, entry.source)]
    if above:
        entry = max(above, key=lambda entry: len(entry.source))
        below = root.source[len(entry.source.rstrip("/")) :].strip("/")
        to = normalise_path(entry.replica, "map target").rstrip("/")
        return f"{to}/{below}" if below else to
    if request.maps:
        raise UsageError(f"no map says where {root.source} goes: add --map {root.source}=/path")
    return root.source


def check_orphans_directory(directory: str, places: Sequence[str], taken: Sequence[tuple[str, str]]) -> None:
    """Raises UsageError if moved orphans would come into what is restored, or into one of `taken` (path,
    what it is). All are real paths.
    """
    for path, what in [*((place, f"{place}, which is restored,") for place in places), *taken]:
        if overlapping(directory, path):
            raise UsageError(f"--orphans-directory {directory} and {what} overlap: choose another directory")


class Facts(NamedTuple):
    """What is known before a restore begins, besides the copy itself."""

    connection: int | None  # that replicates from here to the copy
    replicates: bool  # it does so now
    queued_ops: int  # of it, made here and not in the copy
    occupied: str  # a place that has something in it and is not the former source; "": none
    newer: str  # a file here that is newer than in the copy and would be overwritten; "": none known
    replaces_source: bool  # the copy goes on from what was restored: what is queued anywhere is void


def refusal(copy: CopyView, facts: Facts, even_if: Collection[Danger]) -> str:
    """Why it must not begin, what would be lost, and what to do: one line; "": it may begin."""
    for danger, text in dangers(copy, facts):
        if danger not in even_if:
            return f"{text}, or repeat with --even-if {danger}"
    return ""


def dangers(copy: CopyView, facts: Facts) -> list[tuple[Danger, str]]:
    """All that a person has to know of, the gravest first."""
    found: list[tuple[Danger, str]] = []
    if facts.connection is not None and facts.replicates and facts.replaces_source:
        found.append(
            (
                Danger.REPLICATING,
                f"connection {facts.connection} still replicates to this copy: what was changed here and is"
                f" not in it yet ({facts.queued_ops} operations) would be lost; stop it first (dtctl transmit"
                f" stop {facts.connection})",
            )
        )
    elif copy.connected and not facts.replicates:
        found.append(
            (
                Danger.REPLICATING,
                f"its source {copy.source_name} is alive and replicates to this copy, which would stand still"
                + (", and would not be its copy any more" if facts.replaces_source else " meanwhile")
                + "; stop it there first (dtctl transmit stop)",
            )
        )
    usable = (TargetDataState.OK, TargetDataState.RESTORE_REQUIRED)
    if copy.data_state not in usable:
        found.append(
            (
                Danger.INCOMPLETE,
                f"the copy is no state that its source was in ({copy.data_state}): a mixture would be"
                " restored; let its mirror end first",
            )
        )
    if copy.waiting_bytes and copy.paused and facts.replaces_source:
        found.append(
            (
                Danger.WAITING,
                f"the copy's queue holds {copy.waiting_bytes} bytes of changes that it has not applied: they"
                " would be void; apply them first (dtctl target resume, there)",
            )
        )
    if facts.occupied:
        found.append(
            (
                Danger.NOT_EMPTY,
                f"{facts.occupied} is not empty and not the former source: what differs there would be"
                " overwritten; choose another directory (--to), or look with --dry-run",
            )
        )
    if facts.queued_ops and facts.replaces_source and not facts.replicates:
        found.append(
            (
                Danger.NEWER,
                f"{facts.queued_ops} operations that were made here are not in the copy, and would be"
                " lost; look with --dry-run",
            )
        )
    if facts.newer:
        found.append(
            (
                Danger.NEWER,
                f"{facts.newer} is newer than in the copy and would be overwritten; keep such files with"
                " --newer, or look with --dry-run",
            )
        )
    return found
