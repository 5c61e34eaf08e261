"""How the runs of a connection ended, kept over restarts in `home/source/<connection>.runs`: the newest
`limits.RUNS_KEPT` of mirrors, and as many of verifications and of walks in the background.
"""

import os
import sys
from collections.abc import Iterable

import msgspec

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.mirror.mirroring import MirrorRun
from replicator.orphans import MIRROR, PREVIEW, OrphanReport, described
from replicator.queue.durable_file import read_if_there, replace_durably
from replicator.status import RunReport
from replicator.world import World

VERIFY, BACKGROUND, ORPHANS = "verify", "background", "orphans"
_OWN = (VERIFY, BACKGROUND)

_decoder = msgspec.json.Decoder(list[RunReport])


class RunReports:
    """Of one sender."""

    def __init__(self, world: World, path: str, kept: int = limits.RUNS_KEPT) -> None:
        """A file that cannot be read is one without reports: they are for people."""
        self._world = world
        self._path = path
        self._kept = kept
        self._removed = False
        self._reports: list[RunReport] = self._load()

    def add(self, report: RunReport) -> None:
        """A run has ended. Durable when this returns; never raises OSError."""
        known = [r for r in self._reports if (r.run, r.kind) != (report.run, report.kind)]
        others = [r for r in known if _group(r) != _group(report)]
        same = [r for r in known if _group(r) == _group(report)]
        kept = [*others, *[*same, report][-self._kept :]]
        self._reports = sorted(kept, key=lambda r: r.finished)
        if self._removed:
            return
        try:
            self._world.disk.makedirs(os.path.dirname(self._path))
            replace_durably(self._world.disk, self._path, [msgspec.json.encode(self._reports)])
        except OSError as error:
            print(f"reports of runs are kept in memory only: {error}", file=sys.stderr, flush=True)

    def mirror_ended(self, run: MirrorRun) -> None:
        """A mirror, a recovery, or a search for orphans."""
        clock = self._world.clock
        now_ns, wall_s = clock.monotonic_ns(), clock.wall_ns() / 1e9
        progress = run.progress(now_ns)
        options = [name for name in ("newer", "checksum") if getattr(run, name)]
        self.add(
            RunReport(
                run=run.run_id,
                kind=ORPHANS if run.looks_for_orphans else run.kind,
                started=wall_s - progress.elapsed_s,
                finished=wall_s,
                elapsed_s=progress.elapsed_s,
                result="stopped" if run.stopped else "complete" if run.complete else "incomplete",
                options=", ".join(options),
                files=run.done_files,
                bytes=run.done_bytes,
                matched_bytes=run.skipped_bytes,
                sent_bytes=run.sent_bytes,
                skipped=run.problem_count,
                problem_count=run.problem_count,
                problems=tuple(run.problems[: limits.RUN_PROBLEMS_KEPT]),
                rate_bytes_per_s=progress.rate_bytes_per_s,
            )
        )

    def orphans_ended(self, orphans: OrphanReport) -> None:
        """What a target found of them went, or stays: of a search, instead of how the search ended.

        A mirror that found none is worth no line, nor one that a target tells of once more.
        """
        if orphans.mode == MIRROR and not (orphans.files or orphans.directories or orphans.kept):
            return
        known = next((r for r in self._reports if (r.run, r.kind) == (orphans.run, ORPHANS)), None)
        if known is not None and known.text == described(orphans):
            return
        elapsed_s = max(orphans.finished - orphans.started, 0.0)
        self.add(
            RunReport(
                run=orphans.run,
                kind=ORPHANS,
                started=orphans.started,
                finished=orphans.finished,
                elapsed_s=elapsed_s,
                result=orphans.phase,
                options=orphans.mode if orphans.mode == PREVIEW else orphans.action,
                files=orphans.done_files,
                bytes=orphans.done_bytes,
                skipped=orphans.kept + orphans.changed,
                problem_count=orphans.problems,
                text=described(orphans),
            )
        )

    def newest(self, kinds: Iterable[str] = (), count: int | None = None) -> list[RunReport]:
        """Oldest first; of these kinds (none: all), the newest `count`."""
        wanted = frozenset(kinds)
        found = [r for r in self._reports if not wanted or r.kind in wanted]
        return found if count is None else found[max(len(found) - count, 0) :]

    def remove(self) -> None:
        self._removed = True
        try:
            self._world.disk.unlink(self._path)
        except OSError:
            pass  # there is none

    def _load(self) -> list[RunReport]:
        try:
            data = read_if_there(self._world.disk, self._path)
            return _decoder.decode(data) if data is not None else []
        except (OSError, *MALFORMED) as error:
            print(f"{self._path}: cannot be read: {error}", file=sys.stderr, flush=True)
            return []


def _group(report: RunReport) -> str:
    """What must not push others out."""
    return report.kind if report.kind in _OWN else ""
