"""Find the orphans of a copy, and remove them as its target's settings say.

They are found where a list of names stands in the stream: what the copy has there, the list lacks and the
rules of the set do not exclude. Nothing is touched until the run has ended: then it is known how many they
are, and whether a person has to decide. They are removed in small steps between the operations of the stream.
"""

import datetime
import errno
import os
import stat
from collections.abc import Callable, Collection, Generator, Sequence

import msgspec

from replicator import limits
from replicator.fs import relocate
from replicator.fs.beneath import MISSING, Root
from replicator.fs.path_maps import PathMaps
from replicator.mirror.order import name_change_touches
from replicator.mirror.orphan_table import DONE, GOES, STAYS, OrphanTable, Row, same_inode
from replicator.ops import NAME_KINDS, Record, shown
from replicator.orphans import (
    FORCE,
    MIRROR,
    PREVIEW,
    Orphan,
    OrphanAction,
    OrphanPhase,
    OrphanReport,
    OrphanSettings,
    decide,
    described,
    over_limit,
)
from replicator.repset import Filter, is_inside

_ILL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})
"""Errors that concern all orphans and not one: a person has to look."""

_BATCH = 256
_CHUNK = 4096


class Finder:
    """Of one journal."""

    def __init__(
        self, table: OrphanTable, journal: int, maps: PathMaps, rules: Filter | None, own: bytes
    ) -> None:
        """`rules` None: they are not known, so nothing is an orphan. `own`: how names of unfinished files
        begin.
        """
        self._table = table
        self._journal = journal
        self._maps = maps
        self._rules = rules
        self._own = own

    def look(self, path: bytes, listed: Collection[bytes], after: bytes = b"", until: bytes = b"") -> None:
        """The source has these names in the directory `path`, and no others behind `after`, up to `until`."""
        table = self._table
        if table.report.phase is not OrphanPhase.LOOKING or self._rules is None:
            return
        root, below = self._maps.place(path)
        stack: list[tuple[bytes, bytes]] = []
        seen = 0
        with table.transaction():
            with os.scandir(root.directory(below)) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if name <= after or (until and name > until):
                        continue
                    seen += 1
                    if name not in listed:
                        self._found(root, below, path, entry, stack)
            while stack:
                inner, inner_below = stack.pop()
                with os.scandir(root.directory(inner_below)) as entries:
                    for entry in entries:
                        seen += 1
                        if not self._found(root, inner_below, inner, entry, stack):
                            table.holds(self._journal, inner)
            table.change(seen=table.report.seen + seen)

    def _found(
        self,
        root: Root,
        below: bytes,
        directory: bytes,
        entry: "os.DirEntry[str]",
        stack: list[tuple[bytes, bytes]],
    ) -> bool:
        """Whether it is an orphan; a directory among them is looked into later."""
        name = os.fsencode(entry.name)
        path = _join(directory, name)
        if name.startswith(self._own) or self._maps.is_root(path):
            return False
        state = entry.stat(follow_symlinks=False)
        is_directory = stat.S_ISDIR(state.st_mode)
        assert self._rules is not None
        if is_directory:
            if state.st_dev != root.device or not self._rules.may_contain(path):
                return False
            stack.append((path, _join(below, name)))
        elif not self._rules.includes(path):
            return False
        size = state.st_size if stat.S_ISREG(state.st_mode) else 0
        self._table.add(self._journal, Orphan(path, is_directory, size, state.st_mtime_ns), state.st_ino)
        return True

    def is_the_sources(self, path: bytes) -> None:
        """A piece puts something of the source's there."""
        if self._table:
            self._table.source_has(self._journal, path)

    def are_the_sources(self, directory: bytes, names: Sequence[bytes]) -> None:
        """The same for several in one directory."""
        if self._table:
            start = directory + b"/" if directory else b""
            for name in names:
                self._table.source_has(self._journal, start + name)

    def remove_others(self, path: bytes, forget: Callable[[bytes], None]) -> None:
        """Remove what is at `path`, a name that the source does not have, with all below; but what the rules
        exclude stays.
        """
        root, below = self._maps.place_name(path)
        rules = self._rules
        if rules is None or rules.everything_below(path):
            forget(path)
            root.remove(below)
            return
        stack = [(path, below, False)]
        while stack:
            path, below, emptied = stack.pop()
            try:
                directory, name = root.parent(below)
                is_directory = stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
                if emptied:
                    os.rmdir(name, dir_fd=directory)
                    root.forget_below(below)
                elif not is_directory and rules.includes(path):
                    forget(path)
                    root.remove(below)
                elif is_directory and rules.may_contain(path) and not self._maps.is_root(path):
                    stack.append((path, below, True))
                    for inner in os.listdir(root.directory(below)):
                        child = os.fsencode(inner)
                        stack.append((_join(path, child), _join(below, child), False))
            except OSError as error:
                if not emptied and error.errno not in MISSING:
                    raise


class Orphans:
    """Of one copy: what a receiver does about them. All calls block; one at a time."""

    def __init__(self, table: OrphanTable, journals: list[PathMaps], note: Callable[[str], None]) -> None:
        """`note` takes a line for the log."""
        self._table = table
        self._journals = journals
        self._note = note
        self._store: relocate.Store | None = None
        self._under_way: tuple[Row, Generator[None]] | None = None
        self._halted = ""  # why nothing more can be moved
        self._taken_up = table.report.phase in (OrphanPhase.REMOVING, OrphanPhase.PAUSED)
        """A predecessor was killed: what is not there it may have removed."""

    def close(self) -> None:
        self._give_up()
        if self._store is not None:
            self._store.close()
            self._store = None
        self._table.close()

    @property
    def report(self) -> OrphanReport:
        return self._table.report

    @property
    def removing(self) -> bool:
        return self.report.phase is OrphanPhase.REMOVING

    # --- a run ---

    def begin(self, mode: str, run: str, now_ns: int) -> None:
        """A mirror begins whose lists of names are complete. "": it is about something else."""
        report = self.report
        if not mode:
            if report.phase is OrphanPhase.LOOKING:
                self._finish(OrphanPhase.STOPPED, now_ns, reason="another mirror began")
            return
        if report.run == run and report.phase is OrphanPhase.LOOKING:
            return  # it goes on in another session
        self._give_up()
        with self._table.transaction():
            self._table.clear()
            self._table.save(
                OrphanReport(run=run, phase=OrphanPhase.LOOKING, mode=mode, started=now_ns / 1e9)
            )

    def end(self, run: str, complete: bool, settings: OrphanSettings, now_ns: int) -> None:
        """That mirror has ended: decide. After a kill it may be called again."""
        report = self.report
        if report.run != run or report.phase is not OrphanPhase.LOOKING:
            return
        action = settings.action
        if not complete:
            self._finish(
                OrphanPhase.STOPPED, now_ns, reason="the comparison of names did not come to its end"
            )
            return
        if report.mode == MIRROR and not settings.automatic:
            self._finish(OrphanPhase.STOPPED, now_ns, reason="orphans are not handled by mirrors any more")
            return
        if report.mode != PREVIEW and action is OrphanAction.KEEP:
            self._finish(OrphanPhase.HALTED, now_ns, reason="the target keeps orphans (dtctl target orphans)")
            return
        with self._table.transaction():
            report = self._decide(settings, now_ns)
            reason = over_limit(report.files + report.directories, report.seen, settings)
            phase = OrphanPhase.REMOVING
            if report.mode == PREVIEW:
                phase = OrphanPhase.COMPLETE
            elif reason and report.mode != FORCE:
                phase = OrphanPhase.HALTED
            else:
                reason = ""
            directory = ""
            if action is OrphanAction.MOVE:
                directory = os.path.join(settings.directory, _moment(now_ns))
            self._table.save(
                msgspec.structs.replace(report, action=action, directory=directory, reason=reason)
            )
            if phase is not OrphanPhase.REMOVING:
                self._tell_names()
                self._finish(phase, now_ns, reason=reason)
                return
            self._table.change(phase=phase)
        self._finish_if_done(now_ns)

    def _decide(self, settings: OrphanSettings, now_ns: int) -> OrphanReport:
        """Mark what goes, and count it."""
        files = directories = size = kept = 0
        for journal in self._table.journals():
            for orphan, goes in decide(self._table.found(journal), settings, now_ns):
                self._table.settle(journal, [orphan.path], GOES if goes else STAYS)
                if not goes:
                    kept += 1
                elif orphan.directory:
                    directories += 1
                else:
                    files, size = files + 1, size + orphan.bytes
        return msgspec.structs.replace(
            self.report, files=files, directories=directories, bytes=size, kept=kept
        )

    def _tell_names(self) -> None:
        names: list[str] = []
        size = 0
        for path, directory in self._table.names(GOES, _CHUNK * 16):
            name = shown(path) + ("/" if directory else "")
            size += len(name)
            if size > limits.ORPHANS_TOLD_BYTES:
                break
            names.append(name)
        whole = self.report.files + self.report.directories
        self._table.change(names=tuple(names), names_left_out=whole - len(names))

    def pause(self) -> None:
        if self.removing:
            self._table.change(phase=OrphanPhase.PAUSED)

    def resume(self) -> None:
        if self.report.phase is OrphanPhase.PAUSED:
            self._table.change(phase=OrphanPhase.REMOVING)

    def stop(self, now_ns: int) -> None:
        """What is left stays."""
        if self.report.at_work:
            self._finish(OrphanPhase.STOPPED, now_ns, reason="by request")

    def follow(self, journal: int, record: Record) -> None:
        """The copy changed as this record says."""
        if record.kind in NAME_KINDS and self._table:
            if self._under_way is not None and name_change_touches(record, self._under_way[0].path):
                self._give_up()
            self._table.follow(journal, record)

    # --- removing ---

    def step(self, settings: OrphanSettings, now: Callable[[], int], now_wall_ns: int) -> None:
        """Remove some, for about `limits.ORPHAN_STEP_NS` of the clock `now`."""
        end_ns = now() + limits.ORPHAN_STEP_NS
        with self._table.transaction():
            if self._under_way is None:
                for row in self._table.going(_BATCH):
                    self._act(row, settings)
                    if self._under_way is not None or self._halted or now() >= end_ns:
                        break
            while self._under_way is not None:
                self._go_on(*self._under_way, settings)
                if now() >= end_ns:
                    break
        self._finish_if_done(now_wall_ns)

    def _finish_if_done(self, now_ns: int) -> None:
        if self._halted:
            self._finish(OrphanPhase.HALTED, now_ns, reason=self._halted)
            self._halted = ""
        elif self.removing and self._under_way is None and not self._table.going(1):
            self._finish(OrphanPhase.COMPLETE, now_ns)

    def _act(self, row: Row, settings: OrphanSettings) -> None:
        root, below = self._journals[row.journal].place_name(row.path)
        try:
            directory, name = root.parent(below)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in MISSING:
                self._failed(row, error)
            elif self._taken_up:
                self._done(row, settings)
            else:
                self._changed(row)
            return
        self._taken_up = False
        if not _is(row, state):
            self._changed(row)
            return
        try:
            if self.report.action is OrphanAction.DELETE:
                relocate.remove(root, below)
                self._done(row, settings)
                return
            store = self._store_here()
            if row.moved_to and store.has(row.moved_to, row.size, row.mtime_ns):
                relocate.remove(root, below)  # killed between copy and removal
                self._done(row, settings)
                return
            wanted = _join(os.path.basename(root.path.rstrip(b"/")), below)
            self._under_way = row, store.move(root, below, wanted, lambda new: self._copied(row, new))
        except OSError as error:
            self._failed(row, error)

    def _go_on(self, row: Row, move: Generator[None], settings: OrphanSettings) -> None:
        try:
            next(move)
            return
        except StopIteration:
            self._done(row, settings)
        except relocate.ChangedMeanwhile:
            self._changed(row)
        except OSError as error:
            self._failed(row, error)
        self._under_way = None

    def _copied(self, row: Row, moved_to: bytes) -> None:
        self._table.copied(row, moved_to)
        self._table.commit()

    def _store_here(self) -> relocate.Store:
        """OSError."""
        if self._store is None:
            directory = os.path.realpath(self.report.directory)
            for maps in self._journals:
                for root in maps.roots:
                    if _overlap(os.fsencode(directory), os.path.realpath(root.path)):
                        raise OSError(errno.EROFS, "orphans are to be moved into a copy", directory)
            self._store = relocate.Store(directory)
        return self._store

    def _done(self, row: Row, settings: OrphanSettings) -> None:
        report = self.report
        self._table.settle(row.journal, [row.path], DONE)
        if row.directory:
            self._table.change(done_directories=report.done_directories + 1)
        else:
            self._table.change(done_files=report.done_files + 1, done_bytes=report.done_bytes + row.size)
        if settings.log_names:
            moved = report.action is OrphanAction.MOVE
            what = f"moved to {report.directory}" if moved else "deleted"
            self._note(f"orphan {what}: {shown(row.path)}{'/' if row.directory else ''}")

    def _changed(self, row: Row) -> None:
        self._table.settle(row.journal, [row.path], STAYS)
        self._table.change(changed=self.report.changed + 1)

    def _failed(self, row: Row, error: OSError) -> None:
        reason = f"{shown(row.path)}: {error.strerror or error}"
        if error.errno in _ILL:
            self._halted = reason
            return
        self._table.settle(row.journal, [row.path], STAYS)
        self._table.change(problems=self.report.problems + 1, reason=reason)
        self._note(f"orphan kept: {reason}")

    def _give_up(self) -> None:
        if self._under_way is not None:
            self._under_way[1].close()
            self._under_way = None

    def _finish(self, phase: OrphanPhase, now_ns: int, *, reason: str = "") -> None:
        self._give_up()
        if self._store is not None:
            self._store.close()
            self._store = None
        with self._table.transaction():
            self._table.forget_found()
            self._table.change(phase=phase, finished=now_ns / 1e9, reason=reason or self.report.reason)
        self._note(described(self.report))


def _is(row: Row, state: os.stat_result) -> bool:
    """Whether this is the object that was found, unchanged; a directory changes as it is emptied."""
    if not same_inode(state.st_ino, row.inode) or stat.S_ISDIR(state.st_mode) is not row.directory:
        return False
    if row.directory:
        return True
    size = state.st_size if stat.S_ISREG(state.st_mode) else 0
    return (size, state.st_mtime_ns) == (row.size, row.mtime_ns)


def _moment(wall_ns: int) -> str:
    """A name for the time of a run: UTC, sorted as text."""
    when = datetime.datetime.fromtimestamp(wall_ns / 1e9, tz=datetime.UTC)
    return when.strftime("%Y-%m-%dT%H-%M-%SZ")


def _overlap(one: bytes, other: bytes) -> bool:
    a, b = os.fsdecode(one), os.fsdecode(other)
    return is_inside(a, b) or is_inside(b, a)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
