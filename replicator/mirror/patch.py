"""Change a target tree in place where a recovery knows what is old: one list of names, regions of one file.

The source says what it changed since both sides were equal; everything else is there already. What is not
there as the source thinks is refused, and the source brings it whole. Doing it twice gives the same tree.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.fs import calls
from replicator.fs.apply_data import allocate
from replicator.fs.attributes import (
    data_extents,
    read_xattrs,
    set_attributes,
    set_times,
    write_at,
    write_xattrs,
)
from replicator.fs.beneath import MISSING, Root, check_name
from replicator.fs.path_maps import PathMaps
from replicator.mirror import digests, moved
from replicator.mirror.links import LinkTable
from replicator.mirror.names import type_of_entry
from replicator.mirror.orphans import Finder
from replicator.mirror.patches import Block
from replicator.mirror.pieces import NAME_TYPES, Buffer, Digests, Names, Patch, Patched, Xattrs
from replicator.mirror.transfers import OpenTransfer, OpenTransfers
from replicator.ops import AttributeMask, Attributes, Identity

UNLIKE_NS = 1
"""The mtime of a file whose blocks are known to differ: the time of no other file, and older than any. Until
its end comes, nobody may take it for what the source has.
"""

_ALL_BUT_TIMES = int(~(AttributeMask.MTIME | AttributeMask.ATIME))
_PUNCH = calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE

Dress = Callable[[Root, bytes, int, bytes, Attributes, Mapping[bytes, bytes]], None]
"""Gives attributes and xattrs to a name of an open directory: (root, path, directory, name, ...)."""


class NotAsClaimed(Exception):
    """The target does not have what the piece builds on: it has to be sent whole. Of a directory, `names`; of
    a file that it has an old copy of, with so many `links`, its blocks are compared, or only `blocks` sent.
    `size`: of the files that were claimed to be right, and are not. `begun`: a part of it is here, up to
    there.
    """

    def __init__(
        self,
        reason: str,
        names: tuple[bytes, ...] = (),
        *,
        links: int = 0,
        blocks: tuple[Block, ...] = (),
        size: int = 0,
        begun: int = 0,
    ) -> None:
        super().__init__(reason)
        self.names = names
        self.links = links
        self.blocks = blocks
        self.size = size
        self.begun = begun


class Patcher:
    """Places `Names`, `Patch` and `Patched` of one journal, for its `Placer`.

    `know`: (path, identity, links) is told what is a copy of what.
    """

    def __init__(
        self,
        maps: PathMaps,
        links: LinkTable,
        transfers: OpenTransfers,
        know: Callable[[bytes, Identity, int], None],
        dress: Dress,
        finder: Finder | None,
    ) -> None:
        self._finder = finder
        self._maps = maps
        self._links = links
        self._transfers = transfers
        self._know = know
        self._dress = dress

    # --- names ---

    def place_names(self, entry: Names) -> None:
        if len(entry.types) != len(entry.names) or not set(entry.types) <= set(NAME_TYPES):
            raise ReplicatorError("malformed piece: its types do not describe its names")
        for name in entry.names:
            check_name(name)
        root, path = self._maps.place(entry.path)
        try:
            directory = root.directory(path)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            raise NotAsClaimed("there is no such directory") from None
        asked = dict(zip(entry.names, entry.types, strict=True))
        kept = set(entry.kept)
        others: list[bytes] = []
        with os.scandir(directory) as found:
            for item in found:
                name = os.fsencode(item.name)
                if name <= entry.after or (entry.until and name > entry.until) or name in kept:
                    continue
                if asked.get(name) == type_of_entry(item):
                    del asked[name]
                elif not self._transfers.has_name(name):
                    others.append(name)
        if entry.orphans:
            others.clear()
            if self._finder is not None:
                self._finder.look(entry.path, {*entry.names, *kept}, entry.after, entry.until)
        for name in others:
            source_path = _join(entry.path, name)
            if self._maps.is_root(source_path):
                continue
            self._links.forget(source_path)
            root.remove(_join(path, name))
        dress_directory(root.directory(path), entry.attributes, entry.xattrs)
        lacking = tuple(name for name in asked if not self._maps.is_root(_join(entry.path, name)))
        if lacking:
            raise NotAsClaimed("this target lacks some names of the directory", lacking)

    # --- one object ---

    def place_patch(self, entry: Patch) -> None:
        begun = False
        if entry.rebuild:
            transfer = self._transfers.numbered(entry.rebuild)
            if transfer is None:
                raise NotAsClaimed("this target does not know the file that is built")
            descriptor, state = transfer.descriptor, os.fstat(transfer.descriptor)
            begun = transfer.kept_in is not None
        else:
            descriptor, state = self._file(entry.path, entry.identity)
        for offset, length in entry.holes:
            if min(offset, length) < 0:
                raise ReplicatorError("malformed piece: a hole that is none")
            if offset < state.st_size and length:
                allocate(descriptor, _PUNCH, offset, length)
        fill(descriptor, entry.extents, entry.data.buffer)
        # One that was begun says by its size how far it is.
        if not begun and os.fstat(descriptor).st_size != entry.size:
            os.ftruncate(descriptor, entry.size)
        if state.st_mtime_ns == UNLIKE_NS:
            set_times(descriptor, None, UNLIKE_NS)

    def place_digests(self, entry: Digests, begun: int | None = None) -> None:
        """`begun`: of a part of a file that does not have its name yet. Raises NotAsClaimed with the blocks
        that differ.
        """
        _check_digests(entry)
        if begun is None:
            descriptor, state = self._file(entry.path, entry.identity)
            if state.st_size != entry.size:
                os.ftruncate(descriptor, entry.size)
        else:
            descriptor = begun
        for offset, length in digests.gaps(entry.start, entry.end, entry.extents):
            if offset < entry.size and _has_data(descriptor, offset, offset + length):
                allocate(descriptor, _PUNCH, offset, length)
        blocks = digests.differing(
            descriptor, entry.start, entry.end, entry.block_bytes, entry.extents, entry.digests
        )
        if blocks:
            if begun is None:
                set_times(descriptor, None, UNLIKE_NS)
            raise NotAsClaimed("blocks differ", blocks=tuple(blocks))

    def open_old(self, entry: Digests) -> int:
        """A descriptor of its own of the file as it is here; from now on it looks like no other."""
        descriptor, state = self._file(entry.path, entry.identity)
        if state.st_mtime_ns != UNLIKE_NS:
            set_times(descriptor, None, UNLIKE_NS)
        return os.dup(descriptor)

    def take_from_old(self, entry: Digests, transfer: OpenTransfer) -> None:
        """Blocks that are found anywhere in the old copy. Raises NotAsClaimed with the others."""
        _check_digests(entry)
        old, descriptor, blocks = (
            transfer.old,
            transfer.descriptor,
            len(entry.digests) // digests.DIGEST_BYTES,
        )
        if old is None or len(entry.anchors) != blocks * moved.ANCHOR_BYTES:
            raise ReplicatorError("malformed piece: its anchors do not describe its blocks")
        os.ftruncate(descriptor, entry.size)
        for offset, length in entry.kept:
            if min(offset, length) < 0:
                raise ReplicatorError("malformed piece: it keeps what is nowhere")
            for start, count in old.extents(offset, offset + length):
                old.copy_to(descriptor, start, start, count)
        for offset, length in digests.gaps(entry.start, entry.end, entry.extents):
            if offset < entry.size and _has_data(descriptor, offset, offset + length):
                allocate(descriptor, _PUNCH, offset, length)
        lacking: list[Block] = []
        row: tuple[int, int, int] | None = None  # blocks found one behind another: (place, start, length)
        for index, (start, end) in enumerate(digests.cut(entry.extents, entry.block_bytes)):
            digest = entry.digests[index * digests.DIGEST_BYTES : (index + 1) * digests.DIGEST_BYTES]
            anchor = entry.anchors[index * moved.ANCHOR_BYTES : (index + 1) * moved.ANCHOR_BYTES]
            place = old.find(start, end - start, digest, anchor if end - start >= len(anchor) else b"")
            if place is None:
                lacking.append((start, end - start, b""))
            elif row is not None and (row[0] + row[2], row[1] + row[2]) == (place, start):
                row = (row[0], row[1], row[2] + end - start)
            else:
                if row is not None:
                    old.copy_to(descriptor, *row)
                row = (place, start, end - start)
        if row is not None:
            old.copy_to(descriptor, *row)
        if lacking:
            raise NotAsClaimed("some blocks are nowhere", blocks=tuple(lacking))

    def place_patched(self, entry: Patched) -> None:
        kind = stat.S_IFMT(entry.attributes.mode)
        if kind == stat.S_IFREG:
            descriptor, state = self._file(entry.path, entry.identity)
            if state.st_size != entry.size:
                os.ftruncate(descriptor, entry.size)
            set_attributes(descriptor, entry.attributes)
            write_xattrs(descriptor, entry.xattrs)
            root, path = self._maps.place_name(entry.path)
            root.forget(path)  # kept open for writing, it could not be executed (ETXTBSY)
        elif kind == stat.S_IFDIR:
            root, path = self._maps.place(entry.path)
            try:
                directory = root.directory(path)
            except OSError as error:
                if error.errno not in MISSING:
                    raise
                raise NotAsClaimed("there is no such directory") from None
            dress_directory(directory, entry.attributes, entry.xattrs)
            set_times(directory, None, entry.attributes.mtime_ns)
            return
        else:
            root, path, directory, name, state = self._look(entry.path)
            if stat.S_IFMT(state.st_mode) != kind or self._is_another(entry.path, entry.identity, state):
                raise NotAsClaimed("another object is there")
            self._dress(root, path, directory, name, entry.attributes, entry.xattrs)
        self._know(entry.path, entry.identity, entry.links)

    def _file(self, path: bytes, identity: Identity) -> tuple[int, os.stat_result]:
        """The target's copy of that regular file, open for writing, and its state."""
        root, below, _, _, state = self._look(path)
        if not stat.S_ISREG(state.st_mode) or self._is_another(path, identity, state):
            raise NotAsClaimed("another object is there")
        if self._transfers.get(identity) is not None:
            raise NotAsClaimed("a whole copy of it is under way")
        try:
            return root.file(below), state
        except OSError as error:
            if error.errno == errno.ETXTBSY or error.errno in MISSING:
                raise NotAsClaimed("it cannot be changed in place") from None
            raise

    def _is_another(self, path: bytes, identity: Identity, state: os.stat_result) -> bool:
        """Whether what is at `path` is known not to be the copy of that object."""
        if not self._links:
            return False
        if self._links.holds_another(path, identity):
            return True
        names = self._links.names(identity)
        return bool(names) and path not in names and not any(self._is_at(name, state) for name in names)

    def _is_at(self, path: bytes, state: os.stat_result) -> bool:
        try:
            return os.path.samestat(self._look(path)[4], state)
        except NotAsClaimed:
            return False

    def _look(self, path: bytes) -> tuple[Root, bytes, int, bytes, os.stat_result]:
        root, below = self._maps.place_name(path)
        try:
            directory, name = root.parent(below)
            return root, below, directory, name, os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            raise NotAsClaimed("there is nothing") from None


def _check_digests(entry: Digests) -> None:
    """ReplicatorError unless its parts describe each other."""
    place, block_bytes = entry.start, entry.block_bytes
    well = 0 <= entry.start <= entry.end and entry.size >= 0
    well = well and digests.UNIT_BYTES <= block_bytes <= limits.COMPARE_READ_BYTES
    for offset, length in entry.extents:
        well = well and place <= offset and length > 0
        place = offset + length
    count = digests.count_blocks(entry.extents, block_bytes) if well else -1
    if place > entry.end or count * digests.DIGEST_BYTES != len(entry.digests):
        raise ReplicatorError("malformed piece: its digests do not describe its extents")


def _has_data(descriptor: int, start: int, end: int) -> bool:
    return next(data_extents(descriptor, end, start), None) is not None


def dress_directory(descriptor: int, attributes: Attributes, xattrs: Xattrs) -> None:
    """Attributes of a directory, but for its times, which come when all in it is in place."""
    mask = attributes.mask & _ALL_BUT_TIMES
    set_attributes(descriptor, attributes._replace(mask=mask), current=os.fstat(descriptor))
    write_xattrs(descriptor, xattrs, read_xattrs(descriptor, readable=True))


def fill(descriptor: int, extents: tuple[tuple[int, int], ...], data: Buffer) -> None:
    """Write extents (offset, length) whose content stands in `data`, one after another."""
    if len(extents) == 1:
        if extents[0][1] != len(data):
            raise ReplicatorError("malformed piece: its extents do not describe its data")
        write_at(descriptor, data, extents[0][0])
        return
    if sum(length for _, length in extents) != len(data):
        raise ReplicatorError("malformed piece: its extents do not describe its data")
    view = memoryview(data)
    for offset, length in extents:
        write_at(descriptor, view[:length], offset)
        view = view[length:]


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
