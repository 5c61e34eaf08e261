"""The rules that let a mirror run while changes flow (docs/developers/architecture.md, "Ordering").

Pure: no I/O, no clock. One `Order` belongs to one journal of a connection. It is told what enters the ordered
stream, record by record and piece by piece, and answers two questions: may this record be shipped, and what
must the scanner (still, or again) bring. Everything here happens between two checkpoints of the sender's
shipper, so it needs no lock.

Memory: one entry per pending sub-directory or path, the names of directories being read, one per directory
and file that a recovery was asked for, and at most `limits.TOUCHED_FILES` identities.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import Enum, auto

from replicator import limits
from replicator.mirror.patches import Block, Patches, PatchRequest, Range, aligned, counted_bytes
from replicator.ops import NAME_KINDS, RENAME_EXCHANGE, Flag, Identity, Kind, Record

_NEW_FILES = frozenset({Kind.CREATE, Kind.SYMLINK, Kind.MKNOD, Kind.FILE})


class Decision(Enum):
    """What the shipper does with a record of the set."""

    SHIP = auto()
    BY_IDENTITY = auto()  # ship, for a hard-linked copy the target knows; never by path
    SKIP = auto()  # a piece will carry its effect


class Remaining:
    """Names of one directory that the mirror has still to bring; they are brought in sorted order."""

    __slots__ = ("_names", "_next")

    def __init__(self, names: list[bytes]) -> None:
        assert all(names[i] < names[i + 1] for i in range(len(names) - 1)), "sorted, each once"
        self._names = names
        self._next = 0

    def __contains__(self, name: bytes) -> bool:
        index = bisect_left(self._names, name, self._next)
        return index < len(self._names) and self._names[index] == name

    def advance_past(self, name: bytes) -> None:
        index = bisect_left(self._names, name, self._next)
        if index < len(self._names) and self._names[index] == name:
            self._next = index + 1

    def __bool__(self) -> bool:
        return self._next < len(self._names)


def parent_of(path: bytes) -> bytes:
    """The directory of `path`; the root's is the root."""
    return path[: path.rindex(b"/")] if b"/" in path else b""


def is_below_or_equal(path: bytes, ancestor: bytes) -> bool:
    return not ancestor or path == ancestor or path.startswith(ancestor + b"/")


def name_change_touches(record: Record, path: bytes) -> bool:
    """Whether this record changed a name on `path` or above it, so that what was read there may be another
    object.
    """
    if record.kind not in NAME_KINDS:
        return False
    if is_below_or_equal(path, record.path):
        return True
    return record.kind in (Kind.RENAME, Kind.LINK) and is_below_or_equal(path, record.path2)


def name_change_in_directory(record: Record, directory: bytes) -> bool:
    """Whether this record changed the list of names of `directory`, or what `directory` is."""
    if record.kind not in NAME_KINDS:
        return False
    paths = (record.path, record.path2) if record.kind in (Kind.RENAME, Kind.LINK) else (record.path,)
    return any(is_below_or_equal(directory, p) or parent_of(p) == directory for p in paths)


class Order:
    """Pending paths, touched files and the scanner's list of one journal."""

    def __init__(self) -> None:
        self.active = False
        self.scanned_head = 0
        """Highest journal head that a scan saw.

        The mirror ends only after the stream has passed it.
        """
        self._work: list[bytes] = []
        self._in_work: set[bytes] = set()
        self._pending: set[bytes] = set()
        self._remaining: dict[bytes, Remaining] = {}
        self._touched: set[Identity] = set()
        self._distrust_all = False
        self._linked: set[Identity] = set()
        self._brought: set[int] = set()  # inodes, at most `limits.BROUGHT_FILES` of them
        self._incomparable: set[Identity] = set()  # the target has no file of the name to compare blocks with
        self._asked_elsewhere: set[int] = set()  # inodes, at most `limits.ELSEWHERE_ASKED`
        self._nowhere = self._found_elsewhere = 0
        self._compare_none = False  # there were too many of these
        self._names: set[bytes] = set()  # directories whose list of names is not yet in the stream
        self._missed: set[bytes] = set()  # those of them whose names may have been removed unseen
        self._walked: set[bytes] = set()  # those whose sub-directories follow
        self._files_of: set[bytes] = set()  # directories whose files the target may have wrong
        self._names_work: list[bytes] = []
        self._in_names_work: set[bytes] = set()
        self._patches = Patches()
        self._replaced: set[bytes] = set()  # paths where the target may have other objects, with all below
        self.asked_objects = self.asked_bytes = 0  # ever, by `require_regions`
        self.names_unknown = False
        """A file is not repaired that may have names which nobody here knows: only comparing all can tell."""
        self.begun_questions = 0
        """How often it is worth asking whether the target has a part of a large file."""

    # --- the scanner's side ---

    def begin(self, roots: Iterable[bytes]) -> None:
        """A mirror of these paths starts; what an earlier one had left is forgotten."""
        self._patches.end()
        self.__init__()  # type: ignore[misc]
        self.active = True
        for root in roots:
            self.require(root)

    def end(self) -> None:
        """The mirror is over, complete or stopped."""
        self._patches.end()
        self.__init__()  # type: ignore[misc]

    def require(self, path: bytes, *, touched: Identity | None = None) -> None:
        """Bring `path` with all below it, again.

        `touched`: and that file whole, without comparing.
        """
        self.pend(path, touched=touched)
        self.read_later(path)

    def require_replaced(self, path: bytes) -> None:
        """Bring `path` with all below it; what the target has there may be other objects of equal size and
        mtime.
        """
        self._replaced.add(path)
        self.require(path)

    def pend(self, path: bytes, *, touched: Identity | None = None) -> None:
        """The same, but the caller sees to it that `path` is read."""
        if touched is not None:
            self._touch(touched)
            self._linked.discard(touched)
        self._pending.add(path)
        for request in self._patches.comparisons_at_or_below(path):
            self.drop_patch(request)

    def read_later(self, path: bytes) -> None:
        """Put `path` on the scanner's list.

        Every pending path has its own entry there, or a piece under way that ends its pending; an entry for a
        path above it would not do: the path may be gone when that one is read.
        """
        if path not in self._in_work:
            self._in_work.add(path)
            self._work.append(path)

    def require_names(self, directory: bytes, *, orphans: bool = False) -> None:
        """Bring the list of names of one directory that the target has, and the directory's attributes.

        What is gone is removed on the target, what it lacks or has as another type is brought whole. What
        both have is left alone: a name that may stand for another object of the same type than the target's
        is the caller's to `require_replaced`. `orphans`: nothing is known to be gone, so what the source does
        not have is for the target's settings.
        """
        if not orphans:
            self._missed.add(directory)
        self._names.add(directory)
        if directory not in self._in_names_work:
            self._in_names_work.add(directory)
            self._names_work.append(directory)

    def walk_names(self, directory: bytes) -> None:
        """The same for orphans, and for all directories below."""
        self._walked.add(directory)
        self.require_names(directory, orphans=True)

    def stop_walking(self) -> None:
        """No more lists for orphans."""
        for directory in [d for d in self._names_work if d in self._walked and d not in self._missed]:
            self._names_work.remove(directory)
            self._in_names_work.discard(directory)
            self._names.discard(directory)
        self._walked.clear()

    def names_read(self, directory: bytes) -> tuple[bool, bool]:
        """Whether its list, which was just read, is for orphans; whether it goes on below."""
        found = directory not in self._missed, directory in self._walked
        self._missed.discard(directory)
        self._walked.discard(directory)
        return found

    def pending_names(self, directory: bytes, names: Iterable[bytes], count: int) -> set[bytes]:
        """Which of these `count` names are brought anyway; the directory itself is not pending.

        No others, pending as they may be: what has no name any more by an operation that was lost, no record
        removes.
        """
        pending, start = self._pending, directory + b"/" if directory else b""
        if len(pending) < count:
            below = {path[len(start) :] for path in pending if parent_of(path) == directory}
            return below.intersection(names) if below else below
        return {name for name in names if start + name in pending}

    def require_files(self, directory: bytes) -> None:
        """As `require_names`, and bring everything in it that is no directory, without comparing."""
        self._files_of.add(directory)
        self.require_names(directory)

    def brings_files_of(self, directory: bytes) -> bool:
        """Whether all files of a directory whose names are read now are to be brought, too."""
        return directory in self._files_of

    def require_regions(
        self,
        path: bytes,
        identity: Identity,
        regions: Iterable[tuple[int, int]] = (),
        *,
        multilink: bool = True,
    ) -> None:
        """Bring regions (offset, length; up to `patches.TO_END`) of an object that the target has at `path`,
        in place, then its size, attributes and xattrs. Of what is no regular file there are no regions.

        The target's object at `path` must be a copy of `identity`, old but for these regions: a path that may
        be another object since then is the caller's to `require_replaced`. A file that was shortened differs
        from its smallest size on, up to `TO_END`. `multilink`: it may have other names.
        """
        regions = list(regions)
        self.asked_objects += 1
        self.asked_bytes += counted_bytes(aligned(regions))
        former = self._patches.add(path, identity, regions, multilink=multilink)
        if former is not None:
            self._void_patch(former)

    def require_compared(
        self, path: bytes, identity: Identity, number: int, *, multilink: bool, elsewhere: bool = False
    ) -> None:
        """Compare the blocks of a file with those of the target's old copy at `path`, and bring what differs.

        `number`: the target's answers are known by it; never used before. `elsewhere`: the target has what
        may be a copy under another name, and nothing at `path`.
        """
        former = self._patches.compare(path, identity, number, multilink=multilink)
        request = self._patches.comparison(number)
        if elsewhere and request is not None:
            request.elsewhere = request.moved = request.probed = True
        if former is not None:
            self._void_patch(former)

    def require_begun(self, path: bytes, identity: Identity, number: int, *, multilink: bool) -> None:
        """The target may have a part of a file, and is asked; bring what it lacks. `number` as above."""
        self.require_compared(path, identity, number, multilink=multilink)
        request = self._patches.comparison(number)
        if request is not None:
            self._patches.ask_begun(request)

    def goes_on(self, number: int, end: int, *, compare: bool) -> bool:
        """The target has it up to `end`, which is to be compared. False: nobody wants to know any more."""
        request = self._patches.comparison(number)
        if request is None:
            return False
        self._patches.goes_on(request, end, compare=compare)
        return True

    def begun_answered(self, number: int) -> None:
        """The target has answered whether it has a part of a file."""
        request = self._patches.comparison(number)
        if request is not None:
            self._patches.answered(request, 0)

    def asks_begun(self) -> bool:
        """Whether it is worth asking if the target has a part of a large file; the caller does."""
        worth = self.begun_questions > 0
        self.begun_questions -= worth
        return worth

    def differ(self, number: int, blocks: Iterable[Block]) -> PatchRequest | None:
        """The target found these blocks of a comparison different. None: of one that is over, or void."""
        request = self._patches.comparison(number)
        if request is not None:
            self._patches.differ(request, blocks)
        return request

    def digests_answered(self, request: PatchRequest, size: int) -> None:
        """The target has compared digests of so many bytes."""
        self._patches.answered(request, size)

    def digests_lost(self, request: PatchRequest, digests: Range) -> None:
        """The target has not received the digests of this range."""
        if not request.void:
            self._patches.unsent(request, digests)

    def park_patch(
        self, request: PatchRequest, ranges: Iterable[Range] = (), compare: Iterable[Range] = ()
    ) -> None:
        """There is nothing to read of it until the target has answered; these ranges are left then."""
        if not request.void:
            request.give_back(ranges, compare)
            self._patches.park(request)

    def may_claim_many(self) -> bool:
        """Whether nothing is known that makes the size and mtime of whole directories worth less."""
        return not (self._distrust_all or self._replaced or self._files_of)

    def unsure_among(self, inodes: Sequence[int]) -> list[int]:
        """Indices of files for which a comparison by size and mtime could be fooled. From any thread."""
        if not (self._touched or self._patches.any_unsure):
            return []
        touched, unsure = self._touched, self._patches.is_unsure
        found = []
        for index, inode in enumerate(inodes):
            identity = Identity(inode, 0)
            if identity in touched or unsure(identity):
                found.append(index)
        return found

    def may_compare(self, identity: Identity) -> bool:
        """Whether the target may have a file to compare the blocks of this one with."""
        return not (self._compare_none or identity in self._incomparable)

    def may_be_elsewhere(self, identity: Identity) -> bool:
        """Whether it is worth asking if the target has a file, which is to be sent whole, under another
        name.
        """
        return (
            not self._distrust_all
            and len(self._asked_elsewhere) < limits.ELSEWHERE_ASKED
            and self._nowhere < limits.ELSEWHERE_VAIN + self._found_elsewhere
            and identity.inode not in self._asked_elsewhere
        )

    def asks_elsewhere(self, identity: Identity) -> None:
        """That question is in the stream. It is asked once."""
        self._asked_elsewhere.add(identity.inode)

    def never_compare(self, identity: Identity) -> None:
        """It has none: the file is sent whole."""
        if len(self._incomparable) < limits.TOUCHED_FILES:
            self._incomparable.add(identity)
        else:
            self._compare_none = True

    def not_as_claimed(self, identity: Identity) -> None:
        """The target does not have the file as it was claimed."""
        self._brought.discard(identity.inode)

    def require_unnamed(self, identity: Identity) -> None:
        """Bring a file whole that is old under names which nobody here knows."""
        self._touch(identity)
        self._linked.discard(identity)
        self.names_unknown = True

    def operations_lost(self) -> None:
        """The stream lacks operations from here on: what this mirror has brought so far may be old again."""
        self._brought.clear()
        self._linked.clear()

    def next_names(self) -> bytes | None:
        """The next directory whose names are to be read; it stays required until `names_sent`."""
        while self._names_work:
            directory = self._names_work.pop()
            self._in_names_work.discard(directory)
            if not self.is_pending(directory):
                return directory
            self._names.discard(directory)  # its listing does more
            self.names_read(directory)
        return None

    def next_patch(self) -> PatchRequest | None:
        """The next object to patch: `patch_left`, `patch_sent` or `drop_patch` ends it."""
        while (request := self._patches.next()) is not None:
            if self.may_patch(request):
                return request
        return None

    def may_patch(self, request: PatchRequest) -> bool:
        """Whether more of it may enter the stream; if not, somebody brings it whole."""
        if not request.void and self.is_pending(request.path):
            # What stands there on the target may be another object, or be claimed to be the same.
            self.drop_patch(request)
        return not request.void

    def patch_left(
        self, request: PatchRequest, ranges: Iterable[Range], compare: Iterable[Range] = ()
    ) -> None:
        """Reading it was interrupted: these ranges are left."""
        if not request.void and not self._patches.put_back(request, ranges, compare):
            self._void_patch(request)

    def drop_patch(self, request: PatchRequest) -> None:
        """Its path stands for something else now, or is brought whole."""
        if not request.void:
            self._nowhere += request.elsewhere
            self._patches.remove(request)
            self._void_patch(request)

    def _void_patch(self, request: PatchRequest) -> None:
        """The target has something old of it, under whatever name."""
        if request.multilink:
            self.require_unnamed(request.identity)
        else:
            self._touch(request.identity)
            self._linked.discard(request.identity)

    def next_work(self) -> bytes | None:
        """The next path to read, with all below it: the newest first, so that the list stays as deep as the
        tree.
        """
        if not self._work:
            return None
        path = self._work.pop()
        self._in_work.discard(path)
        return path

    def more_work(self, count: int) -> list[bytes]:
        """As many as that of the paths that `next_work` would say next."""
        paths: list[bytes] = []
        while len(paths) < count and (path := self.next_work()) is not None:
            paths.append(path)
        return paths

    def must_send_whole(self, identity: Identity, path: bytes) -> bool:
        """Whether a comparison by size and mtime could be fooled for this file."""
        if self._distrust_all or identity in self._touched or self._patches.is_unsure(identity):
            return True
        return self._was_replaced(path) and not self.was_brought(identity)

    def _was_replaced(self, path: bytes) -> bool:
        replaced = self._replaced
        if self._files_of and parent_of(path) in self._files_of:
            return True
        while replaced and path:
            if path in replaced:
                return True
            path = parent_of(path)
        return b"" in replaced

    def was_brought(self, identity: Identity) -> bool:
        """Whether this mirror has brought the file already.

        Brought again, because it or something above it was renamed, it need not be sent whole a second time.
        False for files beyond the number that is remembered.
        """
        return identity.inode in self._brought

    def link_is_known(self, identity: Identity) -> bool:
        """Whether the stream already brought this hard-linked file under another name, and kept it up to
        date.
        """
        return identity in self._linked

    def everything_read(self) -> bool:
        return not (self._work or self._names or self._patches or self.names_unknown)

    def nothing_pending(self) -> bool:
        return not (self._pending or self._remaining or self._names or self._patches)

    def void(self, identity: Identity) -> None:
        """A file that was on its way does not arrive after all, and with it what was shipped for it
        meanwhile.
        """
        self._linked.discard(identity)
        self._brought.discard(identity.inode)
        self._touch(identity)

    # --- the stream's side ---

    def is_pending(self, path: bytes) -> bool:
        """Whether the mirror has still to bring `path` or something above it."""
        pending = self._pending
        remaining = self._remaining
        if not pending and not remaining:
            return False
        if path in pending or b"" in pending:
            return True
        end = len(path)
        while True:
            cut = path.rfind(b"/", 0, end)
            directory = path[:cut] if cut >= 0 else b""
            names = remaining.get(directory)
            if names is not None and path[cut + 1 : end] in names:
                return True
            if cut < 0:
                return False
            if directory in pending:
                return True
            end = cut

    def patches_path(self, path: bytes) -> bool:
        """Whether regions or attributes of what stands at `path` are still to be brought in place."""
        return self._patches.of_path(path)

    def lists_names_of(self, directory: bytes) -> bool:
        """Whether the list of names of a directory is still to be brought."""
        return directory in self._names

    def ship(self, record: Record) -> Decision:
        """`record` is next in the stream: ship it, and how?

        Changes of names make paths pending again.
        """
        kind = record.kind
        if kind in NAME_KINDS:
            for request in self._patches.touched_by(record):
                self.drop_patch(request)
            if kind == Kind.MKDIR and parent_of(record.path) in self._names:
                # The target may have kept a directory of this name, with what the source removed.
                self.require(record.path)
            if kind == Kind.RENAME:
                self._follow_replaced(record)
                self.require(record.path2)
                if record.arg0 & RENAME_EXCHANGE:
                    self.require(record.path)
            elif kind == Kind.LINK:
                self.require(record.path)
                self.require(record.path2)
            elif kind in _NEW_FILES:  # whatever had this inode number before is gone
                self._linked.discard(record.identity)
                self._brought.discard(record.inode)
            return Decision.SHIP
        if not self.is_pending(record.path):
            return Decision.SHIP
        identity = record.identity
        if record.flags & Flag.MULTILINK and identity in self._linked:
            return Decision.BY_IDENTITY
        if not record.flags & Flag.DIRECTORY:
            self._touch(identity)
            self._linked.discard(identity)  # it had other names once; the copy misses this operation
        return Decision.SKIP

    def _follow_replaced(self, record: Record) -> None:
        """What was moved is as little to be trusted at its new place."""
        moves = [(record.path, record.path2)]
        if record.arg0 & RENAME_EXCHANGE:
            moves.append((record.path2, record.path))
        found = [
            new
            for old, new in moves
            if self._was_replaced(old) or any(is_below_or_equal(path, old) for path in self._replaced)
        ]
        self._replaced.update(found)

    def directory_sent(self, path: bytes, directories: Iterable[bytes], names: list[bytes]) -> None:
        """The listing of `path` entered the stream: its sub-directories (full paths) and `names` (sorted) are
        pending now.
        """
        self._no_longer_pending(path)
        self._pending.update(directories)
        if names:
            self._remaining[path] = Remaining(names)

    def file_sent(
        self,
        path: bytes,
        identity: Identity | None = None,
        *,
        whole: bool = False,
        links: int = 1,
        complete: bool = True,
    ) -> None:
        """What is at `path` entered the stream, or is no longer there.

        `whole`: with its content, so the target's copy is right from here on. `complete` False: the first
        part of a large file, the rest follows.
        """
        self._no_longer_pending(path)
        self._remaining.pop(path, None)  # it was a directory when a scan that was cut off listed it
        if identity is None:
            return
        if whole:
            self._touched.discard(identity)
            self._incomparable.discard(identity)
        if links > 1:
            self._linked.add(identity)
        if complete and len(self._brought) < limits.BROUGHT_FILES:
            self._brought.add(identity.inode)

    def many_claimed(self, directory: bytes, last: bytes) -> None:
        """A claim about files of `directory` entered the stream, the `last` of a part of its list of names.
        Those of that part that it does not speak of are required one by one.
        """
        names = self._remaining.get(directory)
        if names is not None:
            names.advance_past(last)
            if not names:
                del self._remaining[directory]

    def many_linked(self, directory: bytes, names: Sequence[bytes], inodes: Sequence[int]) -> None:
        """Further names of files, in `directory`, entered the stream."""
        self._none_pending(directory, names)
        if len(self._brought) < limits.BROUGHT_FILES:
            self._brought.update(inodes)

    def _none_pending(self, directory: bytes, names: Sequence[bytes]) -> None:
        start = directory + b"/" if directory else b""
        if self._pending:
            self._pending.difference_update([start + name for name in names])
        self.many_claimed(directory, names[-1])

    def many_sent(
        self, directory: bytes, names: Sequence[bytes], inodes: Sequence[int], linked: Sequence[int] = ()
    ) -> int:
        """Files of `directory` entered the stream whole; `linked`: those with several names. How many of them
        for the first time.
        """
        self._none_pending(directory, names)
        self._linked.update([Identity(inode, 0) for inode in linked])
        if self._touched or self._incomparable:
            identities = [Identity(inode, 0) for inode in inodes]
            self._touched.difference_update(identities)
            self._incomparable.difference_update(identities)
        brought = self._brought
        before = len(brought)
        if before + len(inodes) <= limits.BROUGHT_FILES:
            brought.update(inodes)
            return len(brought) - before
        return sum(inode not in brought for inode in inodes)

    def transfer_sent(self, path: bytes, identity: Identity) -> None:
        """The end of a large file entered the stream.

        Its path may have become pending again since its first part; what was not shipped meanwhile keeps it
        touched.
        """
        self._no_longer_pending(path)
        if self._distrust_all or identity in self._touched:
            self._linked.discard(identity)
            self.require(path)
        elif len(self._brought) < limits.BROUGHT_FILES:
            self._brought.add(identity.inode)

    def names_sent(self, directory: bytes) -> None:
        """The list of names of `directory` entered the stream: from here on the target has no others."""
        if directory not in self._in_names_work:  # else it was required again meanwhile
            self._names.discard(directory)

    def patch_sent(self, request: PatchRequest, links: int) -> None:
        """The end of a patch entered the stream. The target knows it by its identity from here on."""
        self._patches.all_sent(request)
        self._found_elsewhere += request.elsewhere
        if links > 1 and request.identity not in self._touched:
            self._linked.add(request.identity)

    def patch_settled(self, identity: Identity) -> None:
        """The target has a patch of this object, or will never have it."""
        self._patches.settled(identity)

    def _no_longer_pending(self, path: bytes) -> None:
        self._pending.discard(path)
        directory = parent_of(path)
        names = self._remaining.get(directory)
        if names is not None:
            # Names before it that are not in the stream yet were required again: pending by themselves.
            names.advance_past(path[len(directory) + 1 if directory else 0 :])
            if not names:
                del self._remaining[directory]

    def _touch(self, identity: Identity) -> None:
        if len(self._touched) < limits.TOUCHED_FILES:
            self._touched.add(identity)
        else:
            self._distrust_all = True
