"""The target tree of a connection: one applier and one placer per journal, over the mapped directories."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Protocol

import msgspec

from replicator.bounds import MALFORMED
from replicator.errors import ReplicatorError
from replicator.fs import target_lock
from replicator.fs.apply import Applier, incoming_name
from replicator.fs.bare_files import BareFiles
from replicator.fs.beneath import Root
from replicator.fs.deleted import Deleted
from replicator.mirror.begun import remove_begun
from replicator.mirror.checks import CheckBatch, Finding
from replicator.mirror.compare import Comparer
from replicator.mirror.links import LinkTable
from replicator.mirror.orphan_table import OrphanTable
from replicator.mirror.orphans import Finder, Orphans
from replicator.mirror.pieces import Batch, Refused
from replicator.mirror.place import Placer
from replicator.net.frames import Connect, JournalInfo
from replicator.ops import Kind, Record
from replicator.orphans import OrphanSettings
from replicator.paths import Home
from replicator.receiver.replica_state import StateFile
from replicator.receiver.unsynced import Unsynced
from replicator.repset import Filter, ReplicationSet, compile_filter, is_inside
from replicator.status import TargetLock
from replicator.world import World

_CONTENT_KINDS = frozenset(
    {Kind.WRITE, Kind.TRUNCATE, Kind.FALLOCATE, Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR}
)
"""Operations that change one file and no name."""

LINKS_PREFIX = "links-"
"""What the names of tables of hard links begin with, one per journal."""

ORPHANS_FILE = "orphans.sqlite"


class Tree(Protocol):
    """What a replica needs of a tree. Journals are meant by their index in `Connect`. All calls block."""

    def intent(self, journal: int, record: Record) -> bytes: ...

    def apply(
        self,
        journal: int,
        record: Record,
        *,
        tolerant: bool,
        by_identity: bool,
        in_doubt: bool,
        intent: bytes,
    ) -> None:
        """Raises ReplicatorError (with `errno` if the operating system said no) or OSError."""
        ...

    def place(self, batch: Batch) -> list[Refused]:
        """Raises OSError if the whole target is ill: call again with the same object."""
        ...

    def missing_above(self, batch: Batch) -> list[bytes]:
        """The topmost directories that placing this would make because something lies below. OSError."""
        ...

    def compare(self, batch: CheckBatch) -> list[Finding]:
        """What of the copy is not as the source has it; nothing is changed. OSError if the whole target is
        ill.
        """
        ...

    @property
    def orphans(self) -> Orphans:
        """What is done about the orphans of this copy."""
        ...

    def remove_orphans(self, settings: OrphanSettings, now: Callable[[], int], wall_ns: int) -> None:
        """One step of it: see `Orphans.step`."""
        ...

    def begin_mirror(self) -> None:
        """What earlier ones left behind means nothing any more: identities are learned anew."""
        ...

    def forget_links(self) -> None:
        """A mirror has ended: nobody keeps what it knows of hard links up to date."""
        ...

    def give_up_transfers(self) -> None:
        """A mirror has ended: nothing more comes for large files of which only a part is here. OSError."""
        ...

    def suspect(self, since_ns: int | None) -> None:
        """Files changed here since then (ctime) may hold anything, whatever they look like."""
        ...

    def clock_ns(self) -> int | None:
        """A ctime that no file here has yet, or only one of this moment; None where that is not known."""
        ...

    def mirror_since(self, since_ns: int | None) -> None:
        """Files made here after that (btime) were brought by the full mirror that runs, or by
        predecessors that it continues. None: it is no such mirror.
        """
        ...

    def offer(self, journal: int, path: bytes, number: int) -> int | None:
        """Lend a file without a name for a transfer from this host. From any thread. ReplicatorError."""
        ...

    def sync(self) -> None:
        """All that was done before the call is on stable storage after it. From any thread. OSError."""
        ...

    def directories(self) -> list[int]:
        """Descriptors of the target directories, in the order in which the maps name them first."""
        ...

    def forget_descriptors(self) -> None:
        """Open everything afresh: a change behind our back must not mislead us for long."""
        ...

    def close(self) -> None: ...


def release(connect: Connect) -> None:
    """Everybody may use its copy again. OSError."""
    target_lock.release([path_map.target for path_map in connect.maps])


def remove_unfinished(connect: Connect) -> None:
    """Its copy is no longer kept here: what is unfinished goes. OSError."""
    for target in dict.fromkeys(path_map.target for path_map in connect.maps):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), Root(target) as root:
            remove_begun(root.descriptor, incoming_name(_tag(connect)))


def _tag(connect: Connect) -> bytes:
    return connect.connection_uuid[:8].encode()


def release_all(home: Home) -> list[str]:
    """Take away the locks of all copies that are kept here; the next start of their receivers makes them
    again. Returns what went wrong.
    """
    errors = []
    for uuid in sorted(os.listdir(home.targets)) if os.path.isdir(home.targets) else ():
        try:
            state = StateFile(World(), home.target(uuid)).load()
            if state is not None and state.connect is not None:
                release(state.connect)
        except (OSError, ReplicatorError) as error:
            errors.append(f"the copy of connection {uuid} may still be locked: {error}")
    return errors


def _rules(connect: Connect, journal: JournalInfo) -> Filter | None:
    """What of that journal is in the set; None if this agent cannot tell."""
    try:
        repset = msgspec.json.decode(connect.set_definition, type=ReplicationSet)
    except MALFORMED:
        return None
    return compile_filter(repset, journal.rules_root or journal.root)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clock_ns(root: Root) -> int:
    """What the file system would stamp now: its clock is not ours, and coarser."""
    descriptor = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root.descriptor)
    try:
        return os.fstat(descriptor).st_ctime_ns
    finally:
        os.close(descriptor)


class ReplicaTree:
    """`Tree` on the operating system. The process must have called `credentials.prepare_process`."""

    def __init__(
        self,
        connect: Connect,
        directory: str,
        *,
        keeps_existing: bool = False,
        keep_deleted: str = "",
        bare: BareFiles | None = None,
    ) -> None:
        """`directory`: where tables of hard links are kept. `keeps_existing`: see `Placer`. `keep_deleted`:
        where deleted files go; "": nowhere. `bare`: see `Placer`. OSError if a mapped directory cannot be
        opened, LockError if it cannot be locked as the connection wants it.
        """
        self._deleted = Deleted(keep_deleted) if keep_deleted else None
        self._roots: dict[bytes, Root] = {}
        self._links: list[LinkTable] = []
        self._appliers: list[Applier] = []
        self._placers: list[Placer] = []
        self._comparers: list[Comparer] = []
        self._unsynced = Unsynced()
        table = OrphanTable(os.path.join(directory, ORPHANS_FILE))
        try:
            targets = list(dict.fromkeys(path_map.target for path_map in connect.maps))
            descriptors = target_lock.open_beneath(targets)
            for target, descriptor in zip(targets, descriptors, strict=True):
                root = self._roots[target] = Root(target, descriptor=descriptor)
                root.keeper = self._deleted
                if is_inside(keep_deleted, root_text := os.fsdecode(target)):
                    raise ReplicatorError(
                        f"target.keep_deleted ({keep_deleted}) lies in the copy {root_text}"
                    )
            target_lock.hold(TargetLock(connect.lock), targets)
            for index, journal in enumerate(connect.journals):
                maps = [(m.source, self._roots[m.target]) for m in connect.maps if m.journal == index]
                source_root = journal.root if connect.remap_links else None
                links = LinkTable(os.path.join(directory, f"{LINKS_PREFIX}{index}.sqlite"))
                self._links.append(links)
                tag = b"%s-%d" % (_tag(connect), index)
                applier = Applier(maps, source_root=source_root, tag=tag)
                self._appliers.append(applier)
                rules = _rules(connect, journal)
                finder = Finder(table, index, applier.maps, rules, applier.incoming)
                self._placers.append(Placer(applier, links, finder, keeps_existing=keeps_existing, bare=bare))
                self._comparers.append(Comparer(applier, rules))
            self._orphans = Orphans(table, [applier.maps for applier in self._appliers], _log)
        except BaseException:
            table.close()
            self.close()
            raise

    def intent(self, journal: int, record: Record) -> bytes:
        return self._appliers[journal].intent(record)

    def apply(
        self,
        journal: int,
        record: Record,
        *,
        tolerant: bool,
        by_identity: bool,
        in_doubt: bool,
        intent: bytes,
    ) -> None:
        applied = False
        try:
            self._appliers[journal].apply(
                record, tolerant=tolerant, by_identity=by_identity, in_doubt=in_doubt, intent=intent
            )
            applied = True
            self._orphans.follow(journal, record)
        finally:
            # A tolerant target may have found another file than the one of that path.
            plain = applied and record.kind in _CONTENT_KINDS and not (tolerant or by_identity)
            self._changed(journal, record.path if plain else None)

    def _changed(self, journal: int, path: bytes | None) -> None:
        """Something has to be synced: the content or attributes of the file at `path`, or (None) anything."""
        unsynced = self._unsynced
        if unsynced.has((journal, path)):  # names that change are "anything", so a path stays the same file
            return
        if path is not None:
            place = self._appliers[journal].maps.place(path)
            descriptor = place.root.opened(place.path)
            if descriptor is not None:
                unsynced.add_file((journal, path), descriptor)
                return
        unsynced.add_anything()

    def place(self, batch: Batch) -> list[Refused]:
        try:
            return self._placers[batch.journal].place(batch)
        finally:
            self._changed(batch.journal, None)

    def missing_above(self, batch: Batch) -> list[bytes]:
        return self._placers[batch.journal].missing_above(batch)

    def compare(self, batch: CheckBatch) -> list[Finding]:
        return self._comparers[batch.journal].compare(batch)

    @property
    def orphans(self) -> Orphans:
        return self._orphans

    def remove_orphans(self, settings: OrphanSettings, now: Callable[[], int], wall_ns: int) -> None:
        self._orphans.step(settings, now, wall_ns)
        self._unsynced.add_anything()

    def begin_mirror(self) -> None:
        self.forget_links()
        for placer in self._placers:
            placer.leave_transfers()

    def forget_links(self) -> None:
        for links in self._links:
            links.clear()

    def give_up_transfers(self) -> None:
        for placer in self._placers:
            placer.give_up_transfers()

    def suspect(self, since_ns: int | None) -> None:
        for placer in self._placers:
            placer.suspect_since_ns = since_ns

    def clock_ns(self) -> int | None:
        try:
            return max(_clock_ns(root) for root in self._roots.values())
        except OSError:  # there are no files without name
            return None

    def mirror_since(self, since_ns: int | None) -> None:
        for placer in self._placers:
            placer.mirror_since_ns = since_ns

    def offer(self, journal: int, path: bytes, number: int) -> int | None:
        return self._placers[journal].offer(path, number) if journal < len(self._placers) else None

    def sync(self) -> None:
        self._unsynced.sync(self._sync_file_systems)

    def _sync_file_systems(self) -> None:
        synced: set[int] = set()
        for root in self._roots.values():
            if root.device not in synced:
                root.sync()
                synced.add(root.device)

    def directories(self) -> list[int]:
        return [root.descriptor for root in self._roots.values()]

    def forget_descriptors(self) -> None:
        for root in self._roots.values():
            root.forget_all()

    def close(self) -> None:
        for placer in self._placers:
            placer.close()
        for links in self._links:
            links.close()
        for comparer in self._comparers:
            comparer.close()
        if hasattr(self, "_orphans"):
            self._orphans.close()
        for root in self._roots.values():
            root.close()
        if self._deleted is not None:
            self._deleted.close()
        self._unsynced.close()
