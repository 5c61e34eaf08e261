"""Divergence bundles of an agent: what losing branches had, kept until a person drops it.

Where both sides of a group wrote after a fork, one branch goes. Before anything of it is overwritten, what it
has under the keys of its tail is saved here (beyond 4.3: `keep-bundle` is always on). `bundle_format.py` has
the bytes on disk, `bundle_save.py` the reading, `bundle_export.py` and `bundle_compare.py` what a bundle is
for. All of it blocks; for a thread.
"""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO, NamedTuple

import msgspec

from replicator.bounds import MALFORMED
from replicator.errors import ExitCode, JournalError
from replicator.failover.bundle_format import MANIFEST, VERSION, BundleError, Manifest, RootManifest
from replicator.failover.bundle_save import Room, RootSaver, no_room
from replicator.fs.beneath import Root
from replicator.queue.cursor import Run
from replicator.queue.dirty import DirtyMap
from replicator.repset import Filter

_PART = ".part"
_ID_DIGITS = 10
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class NoBundleError(BundleError):
    """There is no bundle of that name."""

    exit_code = ExitCode.USAGE


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """Whose branch loses, and to whom. Epochs as in `failovers.Promotion`."""

    group: str
    group_name: str = ""
    agent: str  # uuid
    agent_name: str = ""
    host: str = ""
    epoch: int  # of the losing branch
    winner_epoch: int
    winner: str = ""  # name of the agent that owns the group now
    reason: str = ""


class Tail(NamedTuple):
    """What the losing branch did in one journal after the fork. `root` is open beneath its mount; it stays
    the caller's. `records`: what the journal still has of it, in order; reading may raise JournalError.
    """

    journal: str
    root: Root
    keys: DirtyMap
    fork: tuple[int, int] | None = None
    head: tuple[int, int] | None = None
    records: Iterable[Run] = ()
    rules: Filter | None = None  # of the set; None: all of the root is


class Bundles:
    """`directory`: home/divergence, made when the first bundle is. `limit_bytes`: what all of them may take
    together; None: as much as the disk has.
    """

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        self.directory = directory
        self._limit_bytes = limit_bytes

    # --- looking ---

    def all(self) -> list[Manifest]:
        """The oldest first. A bundle whose manifest cannot be read is shown as far as it is known."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        found = [self._manifest(name) for name in names if not name.endswith(_PART)]
        return sorted(found, key=lambda manifest: (manifest.time, manifest.id))

    def find(self, key: str) -> Manifest:
        """By its id, or how that begins. NoBundleError."""
        fitting = [manifest for manifest in self.all() if key and manifest.id.startswith(key)]
        if len(fitting) != 1:
            count = len(fitting)
            what = f"{count} divergence bundles begin with" if count else "there is no divergence bundle"
            raise NoBundleError(f"{what} {key!r}; dtctl divergence list shows all of them")
        return fitting[0]

    def path(self, manifest: Manifest) -> str:
        return os.path.join(self.directory, manifest.id)

    def _manifest(self, name: str) -> Manifest:
        path = os.path.join(self.directory, name, MANIFEST)
        try:
            with open(path, "rb") as file:
                manifest = msgspec.json.decode(file.read(), type=Manifest)
        except (OSError, *MALFORMED) as error:
            return Manifest(id=name, group="", reason=f"its manifest cannot be read: {error}")
        if manifest.version > VERSION or manifest.id != name:
            return Manifest(id=name, group=manifest.group, reason="made by a newer release, or renamed")
        return manifest

    # --- changing ---

    def save(self, branch: Branch, tails: Sequence[Tail]) -> Manifest | None:
        """Keep what the branch has under all keys of its tails; None if there are none: nothing is lost then.

        Repeated for the same branch and tails it returns what it made before. On return the bundle is
        durable. BundleError: it could not be made, and nothing of it is left.
        """
        if all(tail.keys.is_empty for tail in tails):
            return None
        identifier = _identifier(branch, tails)
        place = os.path.join(self.directory, identifier)
        if os.path.exists(os.path.join(place, MANIFEST)):
            return self._manifest(identifier)
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self.sweep()
            os.mkdir(place + _PART, 0o700)
            room = Room(self.directory, self._budget_bytes())
            roots = tuple(_save_root(place + _PART, number, tail, room) for number, tail in enumerate(tails))
            manifest = _manifest_of(identifier, branch, roots)
            with _made(place + _PART, MANIFEST) as file:
                file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            _sync_directory(place + _PART)
            os.rename(place + _PART, place)
            _sync_directory(self.directory)
        except BundleError:
            self.sweep()
            raise
        except OSError as error:
            self.sweep()
            if error.errno in _NO_SPACE:
                raise no_room(self.directory) from error
            where = error.filename or self.directory
            raise BundleError(
                f"the divergence bundle cannot be made: {where}: {error.strerror}; nothing was overwritten"
            ) from error
        return manifest

    def drop(self, key: str) -> Manifest:
        """Remove it for good. A kill meanwhile leaves nothing that looks like a bundle."""
        manifest = self.find(key)
        try:
            os.rename(self.path(manifest), self.path(manifest) + _PART)
            _sync_directory(self.directory)
        except OSError as error:
            raise BundleError(f"bundle {manifest.id} cannot be removed: {error.strerror}") from error
        self.sweep()
        return manifest

    def sweep(self) -> None:
        """Remove what was begun and not completed: by a process that was killed."""
        for name in os.listdir(self.directory):
            if name.endswith(_PART):
                shutil.rmtree(os.path.join(self.directory, name), ignore_errors=True)

    def _budget_bytes(self) -> int | None:
        if self._limit_bytes is None:
            return None
        return max(self._limit_bytes - sum(manifest.bytes for manifest in self.all()), 0)


def _save_root(place: str, number: int, tail: Tail, room: Room) -> RootManifest:
    with ExitStack() as stack:
        entries, data = (stack.enter_context(_made(place, f"{number}.{n}")) for n in ("entries", "data"))
        with _made(place, f"{number}.keys") as keys:
            encoded = tail.keys.encode()
            room.take(len(encoded))
            keys.write(encoded)
        saver = RootSaver(tail.root, entries, data, room, tail.rules)
        stack.callback(saver.close)
        saver.save(tail.keys)
        with _made(place, f"{number}.records") as kept:
            records = 0
            for run in _readable(tail.records):
                room.take(len(run.data))
                kept.write(run.data)
                records += len(run.records)
                for _, _, record in run.records:
                    saver.save_removed(record)
            records_bytes = kept.tell()
        return RootManifest(
            journal=tail.journal,
            path=os.fsdecode(tail.root.path),
            fork=tail.fork,
            head=tail.head,
            objects=saver.objects,
            absent=saver.absent,
            records=records,
            entries_bytes=entries.tell(),
            data_bytes=data.tell(),
            records_bytes=records_bytes,
        )


def _readable(runs: Iterable[Run]) -> Iterator[Run]:
    """Of a journal that may have lost some of it: as far as it goes. The keys say all that is needed."""
    try:
        yield from runs
    except JournalError:
        return


def _manifest_of(identifier: str, branch: Branch, roots: tuple[RootManifest, ...]) -> Manifest:
    return Manifest(
        id=identifier,
        group=branch.group,
        group_name=branch.group_name,
        agent=branch.agent,
        agent_name=branch.agent_name,
        host=branch.host,
        epoch=branch.epoch,
        winner_epoch=branch.winner_epoch,
        winner=branch.winner,
        time=time.time(),
        reason=branch.reason,
        roots=roots,
    )


def _identifier(branch: Branch, tails: Sequence[Tail]) -> str:
    """The same for the same tails of the same branch, so that whoever was killed after saving does not save
    twice.
    """
    ends = [(tail.journal, tail.fork, tail.head, tail.keys.encode()) for tail in tails]
    known = (branch.group, branch.agent, branch.epoch, branch.winner_epoch, ends)
    return hashlib.sha256(msgspec.msgpack.encode(known)).hexdigest()[:_ID_DIGITS]


class _made:
    """A new file of a bundle: durable when the block ends without an error."""

    def __init__(self, place: str, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(os.path.join(place, name), flags, 0o600), "wb", 1 << 20)

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            try:
                self._file.close()
            except OSError:
                if kind is None:
                    raise


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
