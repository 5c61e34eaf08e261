"""Saves what a losing branch has, as its tail says (`bundle_format.py`): read beneath its root, not through
the mount. Blocks; for a thread. Memory is bounded: by a directory's subdirectories on the way down, and by a
block.

The branch stands still meanwhile (its mounts are fenced); programs may have it open. What vanishes all the
same is absent. What cannot be read or written ends it: whoever saves stops then, before anything is
overwritten.
"""

import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from msgspec.structs import replace

from replicator import limits
from replicator.failover import bundle_format as form
from replicator.failover.bundle_format import Absent, BundleError, Content, Names, Part, Saved
from replicator.fs.attributes import data_extents, read_xattrs
from replicator.fs.beneath import Root
from replicator.mirror.links import LinkTable
from replicator.mirror.order import is_below_or_equal
from replicator.mirror.scan import join
from replicator.ops import Identity, Kind, Record
from replicator.queue.dirty import Dirty, DirtyMap, Scope
from replicator.repset import Filter

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OPEN_OBJECT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_REMOVING = frozenset({Kind.UNLINK, Kind.RMDIR, Kind.RENAME, Kind.REMOVE_TREE})
_OF_DIRECTORIES = Scope.NAMES | Scope.FILES | Scope.DIRECTORY


class Room:
    """For one bundle: at most `budget_bytes` of it (None: no limit), and of its disk all but
    `limits.BUNDLE_FREE_BYTES`, which are left to others.
    """

    def __init__(self, directory: str, budget_bytes: int | None = None) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._unchecked_bytes = limits.BUNDLE_CHECK_BYTES  # the first look is before anything is written

    def take(self, count: int) -> None:
        """So many bytes are about to be written. BundleError: there is no room for them."""
        if self._budget_bytes is not None:
            self._budget_bytes -= count
            if self._budget_bytes < 0:
                raise no_room(self._directory, "the room that bundles may take")
        self._unchecked_bytes += count
        if self._unchecked_bytes < limits.BUNDLE_CHECK_BYTES:
            return
        self._unchecked_bytes = 0
        state = os.statvfs(self._directory)
        if state.f_bavail * state.f_frsize < limits.BUNDLE_FREE_BYTES + count:
            raise no_room(self._directory)


def no_room(directory: str, where: str = "its disk") -> BundleError:
    return BundleError(
        f"{directory}: the divergence bundle does not fit into {where}; nothing was overwritten. Make room"
        " (dtctl divergence drop ID removes an old bundle) and try again"
    )


class RootSaver:
    """Saves one root. `entries` and `data` are files opened for writing. `rules`: nothing else is saved;
    None: all belongs to the set.
    """

    def __init__(
        self, root: Root, entries: BinaryIO, data: BinaryIO, room: Room, rules: Filter | None = None
    ) -> None:
        self._rules = rules
        self.objects = 0
        self.absent = 0
        self._root = root
        self._entries = entries
        self._data = data
        self._room = room
        self._links = LinkTable()  # of files with several names: what was saved whole, by inode
        self._absent_lately: set[bytes] = set()
        self._above: list[bytes] = []  # directories that are saved and may hold what comes next

    def close(self) -> None:
        self._links.close()

    def save(self, keys: DirtyMap) -> None:
        """What the branch has under all keys of its tail. BundleError, OSError."""
        homeless: list[Dirty] = []  # files with several names, not found under the one that is known
        for entry in self._of_the_set(keys):
            if entry.scope & Scope.LINKED:
                if not self._save_linked(entry, entry.path):
                    homeless.append(entry)
            elif entry.scope & Scope.TREE:
                self._save_tree(entry.path)
            elif entry.scope & _OF_DIRECTORIES:
                self._save_directory(entry.path, entry.scope)
            else:
                self._save_file(entry)
        if homeless:
            self._save_homeless({entry.identity.inode: entry for entry in homeless})

    def save_removed(self, record: Record) -> None:
        """A record of the tail: the name it took away, if nothing has it now."""
        if record.kind not in _REMOVING or not self._belongs(record.path, directory=True):
            return
        descriptor = self._open(record.path)
        if descriptor is None:
            self._note_absent(record.path)
        else:
            os.close(descriptor)

    def _of_the_set(self, keys: DirtyMap) -> Iterator[Dirty]:
        rules = self._rules
        for entry in keys:
            if rules is None or entry.scope & Scope.LINKED:  # whose other names may be in the set
                yield entry
            elif entry.scope & Scope.TREE and not rules.may_contain(entry.path):
                for root in rules.roots:
                    if is_below_or_equal(root, entry.path):
                        yield entry._replace(path=root)
            elif self._belongs(entry.path, directory=bool(entry.scope & (_OF_DIRECTORIES | Scope.TREE))):
                yield entry

    def _belongs(self, path: bytes, *, directory: bool) -> bool:
        rules = self._rules
        return rules is None or (rules.may_contain(path) if directory else rules.includes(path))

    # --- by what a key says ---

    def _save_file(self, entry: Dirty) -> None:
        found = self._object(entry.path)
        if found is None:
            self._note_absent(entry.path)
        elif entry.scope & Scope.WHOLE or stat.S_ISDIR(found.mode):
            self._save_whole(found)
        elif entry.regions and stat.S_ISREG(found.mode):
            self._save_regions(found, entry.regions)
        elif entry.regions:  # something else has that name
            self._save_whole(found)
        else:
            self._put_object(found, Part.ATTRIBUTES)

    def _save_whole(self, found: Saved) -> None:
        if stat.S_ISDIR(found.mode):
            self._save_tree(found.path)
            return
        if found.links > 1:
            known = self._links.find(Identity(found.inode, 0))
            self._links.add(Identity(found.inode, 0), found.path)
            if known is not None:
                self._put_object(found, Part.WHOLE, same_as=known)
                return
        self._put_object(found, Part.WHOLE)
        if stat.S_ISREG(found.mode):
            self._save_content(found, ((0, found.size),))

    def _save_regions(self, found: Saved, wanted: tuple[tuple[int, int], ...]) -> None:
        within = tuple((start, min(end, found.size)) for start, end in wanted if start < found.size)
        known = self._links.find(Identity(found.inode, 0)) if found.links > 1 else None
        if known is not None:
            self._put_object(found, Part.WHOLE, same_as=known)
            return
        self._put_object(found, Part.REGIONS, regions=within)
        self._save_content(found, within)

    def _save_linked(self, entry: Dirty, path: bytes) -> bool:
        """A file with several names, at `path`. False: another file is there, or none."""
        differs = entry.regions or entry.scope & (Scope.WHOLE | Scope.ATTRIBUTES)
        found = self._object(path)
        if found is None or found.inode != entry.identity.inode or stat.S_ISDIR(found.mode):
            return not differs
        if not differs:  # it says of which file a new name is one more
            known = self._links.find(Identity(found.inode, 0))
            self._put_object(found, Part.ATTRIBUTES if known is None else Part.WHOLE, same_as=known)
        else:
            self._save_file(entry._replace(path=path))
        return True

    def _save_homeless(self, wanted: dict[int, Dirty]) -> None:
        """Look for them by inode in the whole tree. One that has no name any more has nothing to save."""
        for path, inode in self._names_below(b""):
            entry = wanted.get(inode)
            if entry is not None and self._save_linked(entry, path):
                del wanted[inode]
                if not wanted:
                    return

    def _save_directory(self, path: bytes, scope: Scope) -> None:
        found = self._object(path)
        if found is None:
            self._note_absent(path)
        elif not stat.S_ISDIR(found.mode):
            self._save_whole(found)
        elif scope & (Scope.NAMES | Scope.FILES):
            self._put_object(found, Part.WHOLE)
            self._save_names(path)
            if scope & Scope.FILES:
                for child in self._children(path):
                    if not stat.S_ISDIR(child.mode):
                        self._save_whole(child)
        else:
            self._put_object(found, Part.ATTRIBUTES)

    def _save_tree(self, top: bytes) -> None:
        found = self._object(top)
        if found is None:
            self._note_absent(top)
            return
        if not stat.S_ISDIR(found.mode):
            self._save_whole(found)
            return
        pending = [top]
        while pending:
            path = pending.pop()
            found = self._object(path)
            if found is None or not stat.S_ISDIR(found.mode):
                continue
            self._put_object(found, Part.WHOLE)
            self._save_names(path)
            for child in self._children(path):
                if stat.S_ISDIR(child.mode):
                    pending.append(child.path)
                else:
                    self._save_whole(child)

    # --- writing ---

    def _put(self, frame: form.Frame) -> None:
        encoded = form.encode(frame)
        self._room.take(len(encoded))
        self._entries.write(encoded)

    def _put_object(
        self,
        found: Saved,
        part: Part,
        *,
        regions: tuple[tuple[int, int], ...] = (),
        same_as: bytes | None = None,
    ) -> None:
        self._put_above(found.path)
        self._put(replace(found, part=part, regions=regions, same_as=same_as))
        self.objects += 1

    def _put_above(self, path: bytes) -> None:
        """The directories above it, for whoever makes them again; those just saved are not saved twice."""
        names = path.split(b"/")
        chain = [b"/".join(names[:count]) for count in range(len(names))] if path else []
        shared = 0
        while shared < min(len(chain), len(self._above)) and chain[shared] == self._above[shared]:
            shared += 1
        for directory in chain[shared:]:
            found = self._object(directory)
            if found is not None and stat.S_ISDIR(found.mode):
                self._put(replace(found, part=Part.ABOVE))
        self._above = [*chain, path]

    def _note_absent(self, path: bytes) -> None:
        if path in self._absent_lately:  # a name that programs make and remove again and again
            return
        if len(self._absent_lately) >= limits.BUNDLE_NAMES:
            self._absent_lately.clear()
        self._absent_lately.add(path)
        self._put(Absent(path))
        self.absent += 1

    def _save_names(self, directory: bytes) -> None:
        descriptor = self._open_directory(directory)
        if descriptor is None:
            return
        try:
            part: list[bytes] = []
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    part.append(os.fsencode(entry.name))
                    if len(part) >= limits.BUNDLE_NAMES:
                        self._put(Names(tuple(part)))
                        part = []
            self._put(Names(tuple(part)))
        finally:
            os.close(descriptor)

    def _save_content(self, found: Saved, wanted: tuple[tuple[int, int], ...]) -> None:
        descriptor = self._open(found.path, _OPEN_FILE)
        if descriptor is None:
            raise BundleError(f"{self._shown(found.path)} vanished while it was saved; try again")
        try:
            blocks: list[tuple[int, int, int]] = []
            for offset, length in _data_in(descriptor, wanted):
                data = os.pread(descriptor, length, offset)
                if not data:
                    continue
                self._room.take(len(data))
                self._data.write(data)
                blocks.append((offset, len(data), form.digest_of(data)))
                if len(blocks) >= limits.BUNDLE_BLOCKS:
                    self._put(Content(tuple(blocks)))
                    blocks = []
            self._put(Content(tuple(blocks)))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise BundleError(
                f"{self._shown(found.path)} cannot be saved: {error.strerror}; nothing was overwritten"
            ) from error
        finally:
            os.close(descriptor)

    # --- reading ---

    def _shown(self, path: bytes) -> str:
        return os.fsdecode(os.path.join(self._root.path, path))

    def _open(self, path: bytes, flags: int = _OPEN_OBJECT) -> int | None:
        """A descriptor of what has this name; None: nothing, or (for files) nothing that can be read."""
        try:
            if not path:
                return os.open(b".", flags, dir_fd=self._root.descriptor)
            directory, name = self._root.parent(path)
            return os.open(name, flags, dir_fd=directory)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def _open_directory(self, path: bytes) -> int | None:
        try:
            return self._root.open_directory(path)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def _object(self, path: bytes) -> Saved | None:
        """What has this name now; None: nothing, or another file system, which is none of ours."""
        descriptor = self._open(path)
        if descriptor is None:
            return None
        try:
            return _described(path, descriptor, self._root.device)
        finally:
            os.close(descriptor)

    def _children(self, directory: bytes) -> Iterator[Saved]:
        """What is in a directory. It stays open meanwhile."""
        descriptor = self._open_directory(directory)
        if descriptor is None:
            return
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    found = self._object(join(directory, os.fsencode(entry.name)))
                    if found is not None and self._belongs(found.path, directory=stat.S_ISDIR(found.mode)):
                        yield found
        finally:
            os.close(descriptor)

    def _names_below(self, top: bytes) -> Iterator[tuple[bytes, int]]:
        pending = [top]
        while pending:
            directory = pending.pop()
            descriptor = self._open_directory(directory)
            if descriptor is None:
                continue
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        path = join(directory, os.fsencode(entry.name))
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(path)
                        elif self._belongs(path, directory=False):
                            yield path, entry.inode()
            finally:
                os.close(descriptor)


def _described(path: bytes, descriptor: int, device: int) -> Saved | None:
    state = os.fstat(descriptor)
    if state.st_dev != device:
        return None
    mode = state.st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Saved(
        path,
        Part.WHOLE,
        mode,
        state.st_uid,
        state.st_gid,
        state.st_mtime_ns,
        state.st_size if stat.S_ISREG(mode) else 0,
        state.st_rdev if is_device else 0,
        os.readlink(b"", dir_fd=descriptor) if stat.S_ISLNK(mode) else b"",
        tuple(sorted(read_xattrs(descriptor).items())),
        inode=state.st_ino,
        links=1 if stat.S_ISDIR(mode) else state.st_nlink,
    )


def _data_in(descriptor: int, wanted: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    """(offset, length) of the data in these regions, in blocks."""
    for start, end in wanted:
        for offset, length in data_extents(descriptor, end, start):
            last = offset + length
            while offset < last:
                count = min(limits.BUNDLE_BLOCK_BYTES, last - offset)
                yield offset, count
                offset += count
