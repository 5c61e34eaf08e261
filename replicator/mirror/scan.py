"""Read the source tree, piece by piece.

Blocking functions, meant for a thread; no state but descriptors. Everything is read below the root's own
descriptor, that is beneath the capture mount, so that a mirror neither passes through FUSE nor disturbs what
it reads. A path that changes while it is read is the caller's business (`replicator.mirror.order`).
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from replicator import limits
from replicator.fs.attributes import attributes_of, data_end, data_extents, identity_of, read_xattrs
from replicator.fs.bare_files import BareFiles
from replicator.fs.beneath import Root
from replicator.fs.many_states import names_in, read_states
from replicator.mirror import alike, packed
from replicator.mirror.comparison import Claim, Comparison
from replicator.mirror.digests import digest_of_file
from replicator.mirror.local_copy import LocalCopy
from replicator.mirror.order import parent_of
from replicator.mirror.pieces import (
    NO_CONTENT,
    AnyEntry,
    Begun,
    Content,
    File,
    Finish,
    LinkTo,
    Listing,
    Object,
    Part,
    Same,
    Times,
)
from replicator.ops import NO_IDENTITY, Identity
from replicator.repset import Filter

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_FILE = _GONE | {errno.ENXIO}  # a socket
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Found(NamedTuple):
    """What was found under one path.

    `entry` None and no `problem`, not `large`: nothing (it is gone).
    """

    path: bytes
    entry: AnyEntry | None = None
    identity: Identity = NO_IDENTITY
    links: int = 1
    size: int = 0
    whole: bool = False  # the entry carries content
    digested: bool = False  # the entry has a digest of all content
    large: bool = False  # a regular file that needs a transfer of its own
    directory: bool = False  # a directory now, where the listing had none
    problem: str = ""
    inodes: Sequence[int] = ()  # of the files that an `Alike`, `Files` or `Links` speaks of
    linked: Sequence[int] = ()  # of these in `Files`, those with several names


class Directory(NamedTuple):
    """A directory's listing, restricted to the set, and the first of its entries.

    Paths of `directories` are full, `names` are bare; both sorted. `names`: those that `read` does not speak
    of. `times` is there if there are none.
    """

    listing: Listing
    directories: list[bytes]
    names: list[bytes]
    parent_times: Times
    read: "Step"
    times: Times | None


class Step(NamedTuple):
    """What one step found of the names of a directory."""

    found: list[Found]
    names: int  # so many were looked at, from the first on
    later: list[bytes]  # those of them that nothing was found out about; they are to be read one by one
    large: bytes | None  # the path of the last one, a file that needs a transfer of its own


@dataclass(frozen=True)
class Choice:
    """How to bring regular files: the caller's knowledge, asked per file.

    All functions must be safe to call from a thread.
    """

    comparison: Comparison  # what to claim, and let the target check
    exact: bool  # listings remove what the source does not have
    orphans: bool  # listings say all names, see `Listing`
    must_send_whole: Callable[[Identity, bytes], bool]  # (identity, path)
    was_brought: Callable[[Identity], bool]
    may_compare: Callable[[Identity], bool]  # the target may have blocks to compare
    link_is_known: Callable[[Identity], bool]
    links_seen: set[Identity]  # hard-linked files already read under another name; grows with their number
    distrust_ctime_after_ns: int | None = (
        None  # files changed later were being mirrored when a sender died: send whole
    )
    unsure: Callable[[Sequence[int]], Sequence[int]] = lambda inodes: ()  # indices that must be sent whole
    continued: bool = False  # a full mirror has brought some of it before
    claims_many: bool = False  # files that are nothing special are claimed together,
    packs: bool = False  # and are sent together
    elsewhere: bool = False  # a file that the target lacks may be there under another name
    may_be_elsewhere: Callable[[Identity], bool] = lambda identity: False
    step_bytes: int = limits.PART_BYTES  # read in one step about so much,
    step_files: int = limits.STEP_FILES  # of at most so many files; or claim so many times `CLAIMS_PER_FILE`

    def claim(self, path: bytes, identity: Identity, state: os.stat_result) -> Claim | None:
        """What to claim about a regular file; None: nothing, send it whole."""
        comparison = self.comparison
        distrust_ns = self.distrust_ctime_after_ns
        if not self.must_send_whole(identity, path) and (
            distrust_ns is None or state.st_ctime_ns < distrust_ns
        ):
            if comparison.believes_attributes:
                return comparison.claim
            if self.was_brought(identity):
                return Claim.SIZE_AND_TIME
            if self.continued:
                return Claim.BROUGHT
        if (
            self.elsewhere
            and state.st_nlink == 1
            and state.st_size >= limits.ELSEWHERE_MIN_BYTES
            and self.unsure([identity.inode])
            and self.may_be_elsewhere(identity)
            and not (comparison.blocks and self.may_compare(identity))
        ):
            return Claim.ELSEWHERE
        if not (comparison.blocks and state.st_size and self.may_compare(identity)):
            return None
        if comparison.claim is Claim.CONTENT and state.st_size <= self.step_bytes:
            return Claim.CONTENT
        return Claim.NOTHING if state.st_size > limits.COMPARE_MIN_BYTES else None

    def was_read(self, inode: int) -> bool:
        """Whether a file with several names was read under another one."""
        identity = Identity(inode, 0)
        return identity in self.links_seen or self.link_is_known(identity)

    def whole(self, inodes: Sequence[int]) -> Sequence[int]:
        """Indices of files of which nothing is claimed."""
        if self.comparison.claim is not None or self.continued:
            return self.unsure(inodes)
        brought = [i for i, inode in enumerate(inodes) if self.was_brought(Identity(inode, 0))]
        if not brought:
            return range(len(inodes))
        again = set(brought).difference(self.unsure(inodes))
        return [index for index in range(len(inodes)) if index not in again]


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


class Source:
    """The tree below a captured directory's root descriptor, as far as one replication set goes.

    Owns `root_fd`. Of `root`, use what opens for the caller: the source's names change under cached ones.
    """

    def __init__(
        self, root_fd: int, make_filter: Callable[[], Filter], bare: BareFiles | None = None
    ) -> None:
        """`bare`: what need not be asked for extended attributes."""
        self.root = Root(f"/proc/self/fd/{root_fd}")
        os.close(root_fd)
        self.filter = make_filter()  # a filter belongs to one thread; `walk_sizes` runs beside the scanner
        self._size_filter = make_filter()
        self._bare = bare

    def close(self) -> None:
        self.root.close()

    # --- looking ---

    def exists(self, path: bytes) -> bool:
        """Whether there is anything at `path`."""
        try:
            directory_fd = self.root.open_directory(parent_of(path))
        except OSError:
            return False
        try:
            os.stat(path.rpartition(b"/")[2] or b".", dir_fd=directory_fd, follow_symlinks=False)
        except OSError:
            return False
        finally:
            os.close(directory_fd)
        return True

    def file_at(self, path: bytes) -> tuple[Identity, int] | None:
        """The regular file of that name, and how many names it has; None: there is none."""
        try:
            directory_fd = self.root.open_directory(parent_of(path))
        except OSError:
            return None
        try:
            state = os.stat(path.rpartition(b"/")[2] or b".", dir_fd=directory_fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(directory_fd)
        return (identity_of(state), state.st_nlink) if stat.S_ISREG(state.st_mode) else None

    def look(self, path: bytes, choice: Choice) -> Directory | Found:
        """What is at `path` now."""
        directory_fd = -1
        try:
            directory_fd = self.root.open_directory(parent_of(path))
            name = path.rpartition(b"/")[2] or b"."
            state = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if stat.S_ISDIR(state.st_mode):
                if not self.filter.may_contain(path):
                    return Found(path)
                parent_times = Times(parent_of(path), os.fstat(directory_fd).st_mtime_ns)
                return self._list(path, choice, parent_times)
            return self._read(directory_fd, name, path, choice) if self.filter.includes(path) else Found(path)
        except OSError as error:
            return _failed(path, error)
        finally:
            if directory_fd >= 0:
                os.close(directory_fd)

    def read_names(self, directory: bytes, names: list[bytes], start: int, choice: Choice) -> Step:
        """Entries for `names[start:]` of a directory, in order: as many as one step allows, at least one.

        A large file ends the step.
        """
        try:
            directory_fd = self.root.open_directory(directory)
        except OSError as error:
            first = names[start : start + choice.step_files]
            return Step([_failed(join(directory, name), error) for name in first], len(first), [], None)
        try:
            return self._step(directory_fd, directory, names, start, choice)
        finally:
            os.close(directory_fd)

    def _step(
        self, directory_fd: int, directory: bytes, names: list[bytes], start: int, choice: Choice
    ) -> Step:
        if choice.packs and not choice.claims_many:
            return self._packed_step(directory_fd, directory, names, start, choice)
        if not choice.claims_many:
            found = self._read_names(
                directory_fd, directory, names[start : start + choice.step_files], choice
            )
            large = found.pop().path if found and found[-1].large else None
            return Step(found, len(found) + (large is not None), [], large)
        chunk = names[start : start + choice.step_files * limits.CLAIMS_PER_FILE]
        try:
            claimed = alike.claim(
                directory_fd,
                directory,
                chunk,
                Claim.BROUGHT if choice.continued else Claim.SIZE_AND_TIME,
                choice.unsure,
                choice.distrust_ctime_after_ns,
                self._bare,
            )
        except OSError:
            return self._step(directory_fd, directory, names, start, replace(choice, claims_many=False))
        found = self._read_names(directory_fd, directory, claimed.others[: choice.step_files], choice)
        later = claimed.others[len(found) :]
        if found and found[-1].large:
            later.insert(0, found.pop().path.rpartition(b"/")[2])
        if claimed.alike is not None:
            many = Found(directory, claimed.alike, size=claimed.size, inodes=claimed.inodes)
            found.insert(0, many)
        return Step(found, len(chunk), later, None)

    def _packed_step(
        self, directory_fd: int, directory: bytes, names: list[bytes], start: int, choice: Choice
    ) -> Step:
        chunk = names[start : start + choice.step_files]
        size_max = limits.ELSEWHERE_MIN_BYTES - 1 if choice.elsewhere else choice.step_bytes
        try:
            read = packed.pack(
                directory_fd, directory, chunk, choice.whole, choice.step_bytes, size_max, choice.was_read
            )
        except OSError:
            return self._step(directory_fd, directory, names, start, replace(choice, packs=False))
        choice.links_seen.update(Identity(inode, 0) for inode in read.linked)
        found = self._read_names(directory_fd, directory, read.others, choice)
        later = read.others[len(found) :]
        if found and found[-1].large:
            large = found.pop().path
            if read.files is None and read.links is None and not found:
                return Step([], 1, [], large)
            later.insert(0, large.rpartition(b"/")[2])
        if read.links is not None:
            inodes = packed.inodes_of(read.links)
            found.insert(0, Found(directory, read.links, size=read.links_size, inodes=inodes))
        if read.files is not None:
            files = Found(
                directory, read.files, size=read.size, inodes=read.inodes, linked=read.linked, whole=True
            )
            found.insert(0, files)
        return Step(found, read.names, later, None)

    def _read_names(
        self, directory_fd: int, directory: bytes, names: list[bytes], choice: Choice
    ) -> list[Found]:
        """Of each, in order: as many as one step allows, at least one. A large file is the last."""
        results: list[Found] = []
        total = 0
        for name in names:
            path = join(directory, name)
            try:
                found = self._read(directory_fd, name, path, choice)
            except OSError as error:
                found = _failed(path, error)
            results.append(found)
            if found.large:
                break
            if found.whole or found.digested:
                total += found.size
            if total >= choice.step_bytes:
                break
        return results

    def directory_times(self, directory: bytes) -> Times | None:
        """The directory's mtime, once all its entries are sent; None if it is gone."""
        try:
            directory_fd = self.root.open_directory(directory)
        except OSError:
            return None
        try:
            return Times(directory, os.fstat(directory_fd).st_mtime_ns)
        finally:
            os.close(directory_fd)

    def open_transfer(self, path: bytes, number: int, now_ns: int) -> "Transfer | None":
        """Start to read a large file; None if there is no regular file at `path` now. `now_ns`: wall clock.

        OSError: it cannot be read.
        """
        try:
            directory_fd = self.root.open_directory(parent_of(path))
            try:
                descriptor = os.open(path.rpartition(b"/")[2], _OPEN_FILE, dir_fd=directory_fd)
            finally:
                os.close(directory_fd)
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return Transfer(path, descriptor, number, now_ns)

    def ask_begun(self, path: bytes, now_ns: int, distrust_ns: int | None) -> "Found | None":
        """Whether the target has a part of this large file: what to ask it. None: it is not worth it.
        `distrust_ns`: a file with a later ctime may have lost content since. OSError: it cannot be read.
        """
        transfer = self.open_transfer(path, 0, now_ns)
        if transfer is None:
            return None
        try:
            changed_ns = transfer.changed_ns
            if changed_ns is None:
                return None
            if distrust_ns is not None and changed_ns >= distrust_ns:
                changed_ns = 0
            entry = Begun(path, transfer.identity, transfer.links, 0, changed_ns)
            return Found(path, entry, transfer.identity, transfer.links, transfer.size)
        finally:
            transfer.close()

    def walk_sizes(self, root: bytes) -> Iterator[tuple[int, int]]:
        """(files, bytes) of each directory below `root`: an estimate for the progress, never an error."""
        stack = [root]
        while stack:
            directory = stack.pop()
            try:
                directory_fd = self.root.open_directory(directory)
            except NotADirectoryError:
                yield 1, self._size_at(directory)
                continue
            except OSError:
                continue
            try:
                state = os.fstat(directory_fd)
                if state.st_dev != self.root.device:
                    continue  # mounted there: no mirror brings it
                directories, names = _names_in(self._size_filter, directory_fd, directory)
                stack += directories
                size = read_states(directory_fd, names).bytes_of_files()
            except OSError:
                continue  # the mirror itself reports what cannot be read
            finally:
                os.close(directory_fd)
            yield len(names), size

    def _size_at(self, path: bytes) -> int:
        """Of what is no directory."""
        try:
            directory_fd = self.root.open_directory(parent_of(path))
        except OSError:
            return 0
        try:
            return read_states(directory_fd, [path.rpartition(b"/")[2]]).bytes_of_files()
        except OSError:
            return 0
        finally:
            os.close(directory_fd)

    # --- reading ---

    def _list(self, path: bytes, choice: Choice, parent_times: Times) -> Directory | Found:
        directory_fd = self.root.open_directory(path)
        try:
            state = os.fstat(directory_fd)
            if state.st_dev != self.root.device:
                return Found(path, problem="another file system is mounted here: protect it by itself")
            xattrs = read_xattrs(directory_fd, readable=True)
            directories, names = _names_in(self.filter, directory_fd, path)
            directories.sort()
            names.sort()
            read = self._step(directory_fd, path, names, 0, choice)
            times = None
            if read.names == len(names) and not read.later and read.large is None:
                times = Times(path, os.fstat(directory_fd).st_mtime_ns)
        finally:
            os.close(directory_fd)
        cut = len(path) + 1 if path else 0
        sub_names = tuple(d[cut:] for d in directories)
        # An empty root is no reason to empty the target: that has to be asked for by name.
        something = bool(path) or bool(names) or bool(directories)
        exact, orphans = choice.exact and something, choice.orphans and something
        listed = tuple(names) + sub_names if exact or orphans else ()
        listing = Listing(path, attributes_of(state), xattrs, sub_names, exact, listed, orphans)
        return Directory(listing, directories, names[read.names :], parent_times, read, times)

    def _read(self, directory_fd: int, name: bytes, path: bytes, choice: Choice) -> Found:
        state = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        mode = state.st_mode
        identity = identity_of(state)
        links = state.st_nlink
        if links > 1 and not stat.S_ISDIR(mode):
            if choice.was_read(identity.inode):
                return Found(path, LinkTo(path, identity, links), identity, links, state.st_size)
            choice.links_seen.add(identity)
        if stat.S_ISREG(mode):
            return self._read_file(directory_fd, name, path, state, identity, choice)
        if stat.S_ISDIR(mode):
            return Found(path, directory=True)
        text = os.readlink(name, dir_fd=directory_fd) if stat.S_ISLNK(mode) else b""
        xattrs = read_xattrs(f"/proc/self/fd/{directory_fd}/".encode() + name)
        entry = Object(path, identity, links, attributes_of(state), xattrs, text)
        return Found(path, entry, identity, links, 0, whole=True)

    def _read_file(
        self,
        directory_fd: int,
        name: bytes,
        path: bytes,
        state: os.stat_result,
        identity: Identity,
        choice: Choice,
    ) -> Found:
        claim = choice.claim(path, identity, state)
        if claim is None and state.st_size > choice.step_bytes:
            return Found(path, None, identity, state.st_nlink, state.st_size, large=True)
        descriptor = os.open(name, _OPEN_FILE, dir_fd=directory_fd)
        try:
            size = state.st_size
            data = b""
            extents: tuple[tuple[int, int], ...] = ()
            digest = digest_of_file(descriptor, size) if claim is Claim.CONTENT else b""
            if size and claim is None:
                if state.st_blocks * 512 >= size:
                    data = os.pread(descriptor, size, 0)
                    extents = ((0, len(data)),) if data else ()
                else:
                    data, extents = _read_extents(descriptor, size)
            # After the content, so that size and times are not older than what was read. If it grew
            # meanwhile, the write that did it is in the journal behind this place.
            state = os.fstat(descriptor)
            identity, links = identity_of(state), state.st_nlink
            attributes, xattrs = attributes_of(state), read_xattrs(descriptor, readable=True)
            if claim is not None:
                blocks = choice.comparison.blocks and size > limits.COMPARE_MIN_BYTES
                same = Same(path, identity, links, attributes, xattrs, state.st_size, claim, blocks, digest)
                return Found(path, same, identity, links, state.st_size, digested=claim is Claim.CONTENT)
            file = File(path, identity, links, attributes, xattrs, state.st_size, extents, Content(data))
            return Found(path, file, identity, links, state.st_size, whole=True)
        finally:
            os.close(descriptor)


@dataclass
class Transfer:
    """A large file being read, part by part.

    Not thread-safe: one call at a time.
    """

    path: bytes
    descriptor: int
    number: int
    now_ns: int
    offset: int = 0
    started: bool = False
    identity: Identity = field(init=False)
    links: int = field(init=False)
    size: int = field(init=False)
    changed_ns: int | None = field(init=False)  # see `Part`
    copied: int = 0  # bytes that the last step brought, and that are in no part
    _local: LocalCopy | None = None
    _data_end: int = 0  # of the extent that is being read

    def __post_init__(self) -> None:
        state = os.fstat(self.descriptor)
        self.identity = identity_of(state)
        self.links = state.st_nlink
        self.size = state.st_size
        self.changed_ns = None
        if state.st_size >= limits.BEGUN_MIN_BYTES:
            # Quiet: whatever was done to it is in the journal, and the next change has another ctime.
            quiet = state.st_ctime_ns < self.now_ns - limits.FILE_CLOCK_STEP_NS
            self.changed_ns = state.st_ctime_ns if quiet else 0

    def copy_to(self, descriptor: int) -> bool:
        """Put the content there, as long as that works; takes it over. Before the first step. False: it is on
        another file system.
        """
        try:
            self._local = LocalCopy(self.descriptor, descriptor)
        except OSError:
            return False
        return True

    def _copy(self, size: int) -> bool:
        """False: it has to be read."""
        self.copied = 0
        if self._local is not None and self.offset < size:
            try:
                self.offset, self.copied = self._local.go_on(self.offset, size, limits.LOCAL_COPY_BYTES)
                return True
            except OSError:  # what it means for the target, that will say
                self._end_copy()
        return False

    def _end_copy(self) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None

    def next(self, bytes_max: int = limits.PART_BYTES) -> Part | Finish:
        """The next part of the content, or the end.

        OSError if it cannot be read.
        """
        state = os.fstat(self.descriptor)
        first, self.started = not self.started, True
        if self._copy(state.st_size):
            return Part(self.path, self.identity, self.number, first, (), NO_CONTENT, None, first)
        if self.offset < state.st_size:
            start, end = self._extent(state.st_size)
            if start < state.st_size:
                # One extent a part: a part never covers a hole, and the hole stays one.
                data = os.pread(self.descriptor, min(bytes_max, end - start), start)
                self.offset = start + len(data) if data else state.st_size
                extents = ((start, len(data)),) if data else ()
                changed_ns = self.changed_ns if first else None
                return Part(self.path, self.identity, self.number, first, extents, Content(data), changed_ns)
            self.offset = start
        if first:
            return Part(self.path, self.identity, self.number, True, (), NO_CONTENT)
        return Finish(
            self.path,
            self.identity,
            self.number,
            state.st_nlink,
            attributes_of(state),
            read_xattrs(self.descriptor),
            state.st_size,
        )

    def _extent(self, size: int) -> tuple[int, int]:
        """From where to where there is data next; (size, size): only a hole is left.

        What was found to be data counts as that until it was read: a hole that is made in it meanwhile is a
        change of its own. To look for the next hole takes tmpfs as long as what lies before it is large.
        """
        if self.offset < self._data_end:
            return self.offset, min(self._data_end, size)
        try:
            start = os.lseek(self.descriptor, self.offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return size, size
        self._data_end = data_end(self.descriptor, start, size) if start < size else size
        return start, self._data_end

    def close(self) -> None:
        self._end_copy()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _names_in(rules: Filter, directory_fd: int, path: bytes) -> tuple[list[bytes], list[bytes]]:
    """Full paths of the sub-directories, and names of everything else, in the set."""
    below, names = names_in(directory_fd)
    directories = [join(path, name) for name in below]
    if rules.everything_below(path):
        return directories, names
    return (
        [child for child in directories if rules.may_contain(child)],
        [name for name in names if rules.includes(join(path, name))],
    )


def _read_extents(descriptor: int, size: int) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    chunks: list[bytes] = []
    extents: list[tuple[int, int]] = []
    for start, length in data_extents(descriptor, size):
        data = os.pread(descriptor, length, start)
        if data:
            chunks.append(data)
            extents.append((start, len(data)))
    return b"".join(chunks), tuple(extents)


def _failed(path: bytes, error: OSError) -> Found:
    if error.errno in _GONE:
        return Found(path)
    return Found(path, problem=error.strerror or str(error))
