"""What many names of one directory look like: statx(2) and listxattr(2) of each, into one buffer.

A stat_result for each file costs more than the system call. Here what is asked of them is asked of a column:
the same word of the kernel's structures of all, one behind another, as raw bytes. So comparing a thousand
files is one comparison of bytes.

`_many.c` makes the calls. Where it could not be built, ctypes does, which takes half as long again.
"""

import ctypes
import errno
import os
import stat
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import compress, count, repeat
from typing import NamedTuple

from replicator.fs.attributes import read_xattrs

try:
    from replicator.fs import _many
except ImportError:  # there was no compiler
    _many = None  # type: ignore[assignment]

AVAILABLE = sys.byteorder == "little"
"""Columns travel as they lie in memory."""

WORD_BYTES = 8
STATE_WORDS = 5

_STATX_WORDS = 32
_STATX_BYTES = _STATX_WORDS * WORD_BYTES
_FLAGS = 0x100 | 0x800  # AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT
_MOUNT_ID_UNIQUE = 0x4000  # STATX_MNT_ID_UNIQUE; since Linux 6.8, ignored before
_MASK = 0xFFF | _MOUNT_ID_UNIQUE  # STATX_BASIC_STATS, STATX_BTIME
# Words of struct statx (linux/stat.h).
_MASK_AND_BLOCK = 0
_LINKS_AND_UID = 2
_GID_AND_MODE = 3
_INODE = 4
_SIZE = 5
_BLOCKS = 6
_BTIME_S = 10
_BTIME_NS = 11
_CTIME_S = 12
_CTIME_NS = 13
_MTIME_S = 14
_MTIME_NS = 15
_DEVICE = 17
_MOUNT = 18
# The columns that are kept, in this order: first those that are compared, then those that tell of changes.
_KEPT = bytes(
    [
        *(_LINKS_AND_UID, _GID_AND_MODE, _SIZE, _MTIME_S, _MTIME_NS),
        *(_INODE, _CTIME_S, _CTIME_NS, _DEVICE, _MOUNT),
        *(_MASK_AND_BLOCK, _BLOCKS, _BTIME_S, _BTIME_NS),
    ]
)
_CHANGES = range(STATE_WORDS, STATE_WORDS + 5)
_PLACES = {word: place for place, word in enumerate(_KEPT)}

_LISTXATTRAT = 465  # the same number on every architecture; since Linux 6.13
_AT_SYMLINK_NOFOLLOW = 0x100


class _Calls:
    """The two calls, of one way to make them. They have no types: to convert arguments would take as long as
    the calls. A number is an int, a name bytes, an address a `c_void_p`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.statx = library.statx
        self.syscall = library.syscall


_LETTING_GO = _Calls(ctypes.CDLL(None, use_errno=True))
_HOLDING = _Calls(ctypes.PyDLL(None))
_HELD = 64  # calls
_HELD_NS = 1_000_000


class _Lock:
    """Whether the interpreter lock is held during the next calls.

    To let it go costs more than a call whose answer is in memory, many times more if another thread wants it.
    So it is held for a few calls at a time as long as these are quick: not while a disk is waited for.
    """

    def __init__(self) -> None:
        self._quick = True

    def chunks(self, names: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes], _Calls]]:
        """A part of the names, the index of its first, and how to ask for it; until there are none left."""
        for start in range(0, len(names), _HELD):
            before_ns = time.perf_counter_ns()
            yield start, names[start : start + _HELD], _HOLDING if self._quick else _LETTING_GO
            self._quick = time.perf_counter_ns() - before_ns < _HELD_NS


_lock = _Lock()


class _Buffer:
    """Room for `_HELD` structures statx, and where each of them lies."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(_HELD * _STATX_BYTES)
        first = ctypes.addressof(self.memory)
        self.places = [ctypes.c_void_p(first + index * _STATX_BYTES) for index in range(_HELD)]


_spare: list[_Buffer] = []
"""Those that no thread uses at this moment."""


class Mount(NamedTuple):
    """One mount of one boot, however often its number is used again; `device` as of stat_result."""

    number: int
    device: int


class ManyStates(NamedTuple):
    """Of `names`, in their order; what is not there has zeros."""

    names: Sequence[bytes]
    words: memoryview  # columns of words, in the order of `_KEPT`

    def states(self) -> bytes:
        """Links, owner, mode, size and mtime: `STATE_WORDS` columns, one behind another."""
        return self.words[: STATE_WORDS * len(self.names)].tobytes()

    def plain(self) -> Sequence[int]:
        """Indices of regular files with one name."""
        modes, links = self._column(_GID_AND_MODE).tolist(), self._column(_LINKS_AND_UID).tolist()
        # There are few modes, owners and groups in a directory: each is looked at once.
        regular = {mode for mode in set(modes) if mode >> 32 & 0o170000 == stat.S_IFREG}
        single = {link for link in set(links) if link & 0xFFFFFFFF == 1}
        if regular.issuperset(modes) and single.issuperset(links):
            return range(len(modes))
        both = enumerate(zip(modes, links, strict=True))
        return [index for index, (mode, link) in both if mode in regular and link in single]

    def directories(self) -> list[bool]:
        """Which are directories."""
        modes = self._column(_GID_AND_MODE).tolist()
        return [mode >> 32 & 0o170000 == stat.S_IFDIR for mode in modes]

    def whole_kinds(self) -> list[int]:
        """Of each S_IFREG or S_IFLNK; 0 for anything else, and for files with holes, by the space they
        take.
        """
        columns = (_GID_AND_MODE, _SIZE, _BLOCKS)
        found = []
        for mode, size, blocks in zip(*(self._column(word).tolist() for word in columns), strict=True):
            kind = mode >> 32 & 0o170000
            found.append(
                kind if kind == stat.S_IFLNK or (kind == stat.S_IFREG and blocks * 512 >= size) else 0
            )
        return found

    def links(self) -> list[int]:
        """How many names each has."""
        return [word & 0xFFFFFFFF for word in self._column(_LINKS_AND_UID).tolist()]

    def versions(self) -> list[tuple[int, ...]]:
        """Inode, size and ctime of each: what changes with every change."""
        columns = (_INODE, _SIZE, _CTIME_S, _CTIME_NS)
        return list(zip(*(self._column(word).tolist() for word in columns), strict=True))

    def inodes(self) -> "array[int]":
        return array("Q", self._column(_INODE).tobytes())

    def sizes(self) -> list[int]:
        return self._column(_SIZE).tolist()

    def bytes_of_files(self) -> int:
        """Of the regular ones, together."""
        modes = self._column(_GID_AND_MODE).tolist()
        sizes = self.sizes()
        if any(mode >> 32 & 0o170000 != stat.S_IFREG for mode in set(modes)):
            both = zip(modes, sizes, strict=True)
            return sum(size for mode, size in both if mode >> 32 & 0o170000 == stat.S_IFREG)
        return sum(sizes)

    def mount(self) -> Mount | None:
        """Where all of them are; None: in several, or one is not there, or the kernel does not say."""
        masks, devices, mounts = (self._column(word).tobytes() for word in (_MASK_AND_BLOCK, _DEVICE, _MOUNT))
        if not all(_is_constant(column) for column in (masks, devices, mounts)):
            return None
        mask, device, number = (
            int.from_bytes(column[:WORD_BYTES], "little") for column in (masks, devices, mounts)
        )
        if not mask & _MOUNT_ID_UNIQUE:
            return None
        return Mount(number, os.makedev(device & 0xFFFFFFFF, device >> 32))

    def changes(self) -> memoryview:
        """Columns: inode, ctime, device and mount of each, of which one changes with every change."""
        count = len(self.names)
        return self.words[_CHANGES.start * count : _CHANGES.stop * count]

    def _column(self, word: int) -> memoryview:
        start = _PLACES[word] * len(self.names)
        return self.words[start : start + len(self.names)]

    def any_changed_since(self, since_ns: int) -> bool:
        """Whether one has a ctime of such a second, or a later one; or one before 1970."""
        return max(self._column(_CTIME_S).tolist(), default=0) >= since_ns // 10**9

    def changed_since(self, since_ns: int) -> list[bool]:
        """Which have such a ctime, or a later one."""
        return [time_ns >= since_ns for time_ns in self._times_ns(_CTIME_S, _CTIME_NS)]

    def made_after(self, ns: int) -> list[bool]:
        """Which were made later, whatever was done to them since; none where nobody keeps that time."""
        return [time_ns > ns for time_ns in self._times_ns(_BTIME_S, _BTIME_NS)]

    def _times_ns(self, seconds: int, rest: int) -> list[int]:
        columns = (self._column(word).tolist() for word in (seconds, rest))
        return [_signed(s) * 10**9 + (ns & 0xFFFFFFFF) for s, ns in zip(*columns, strict=True)]

    def chosen(self, indices: Sequence[int]) -> "ManyStates":
        """Only these of the names."""
        if len(indices) == len(self.names):
            return self
        kept = array("Q")
        for word in _KEPT:
            column = self._column(word).tolist()
            kept.extend([column[index] for index in indices])
        return ManyStates([self.names[index] for index in indices], memoryview(kept))


def names_in(directory: int) -> tuple[list[bytes], list[bytes]]:
    """Names of the directories in an open one, and of everything else, in no order. OSError."""
    if _many is not None:
        return _many.names_in(directory)
    directories: list[bytes] = []
    others: list[bytes] = []
    with os.scandir(b"/proc/self/fd/%d" % directory) as entries:  # names as they are, not as text
        for entry in entries:
            (directories if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
    return directories, others


def read_states(directory: int, names: Sequence[bytes]) -> ManyStates:
    """Of names of an open directory; links are not followed. OSError if the directory cannot be read."""
    columns = bytearray(len(_KEPT) * len(names) * WORD_BYTES)
    read = _read_by_ctypes if _many is None else _many.states
    read(directory, names, _FLAGS, _MASK, _KEPT, columns)
    return ManyStates(names, memoryview(columns).cast("Q"))


def _read_by_ctypes(
    directory: int, names: Sequence[bytes], flags: int, mask: int, words: bytes, columns: bytearray
) -> None:
    """What `_many.states` does."""
    read: list[bytes] = []
    buffer = _spare.pop() if _spare else _Buffer()
    for _, some, calls in _lock.chunks(names):
        # One expression: the interpreter would take as long as the kernel.
        failed = map(calls.statx, repeat(directory), some, repeat(flags), repeat(mask), buffer.places)
        for index in list(compress(count(), failed)):
            ctypes.memset(buffer.places[index], 0, _STATX_BYTES)
            if _LETTING_GO.statx(directory, some[index], flags, mask, buffer.places[index]):
                number = ctypes.get_errno()
                if number not in (errno.ENOENT, errno.ENOTDIR):
                    raise OSError(number, os.strerror(number), some[index])
        read.append(memoryview(buffer.memory)[: len(some) * _STATX_BYTES].tobytes())
    _spare.append(buffer)
    structures = memoryview(b"".join(read)).cast("Q")
    columns[:] = b"".join([structures[word::_STATX_WORDS].tobytes() for word in words])


def with_xattrs(directory: int, names: Sequence[bytes]) -> list[int]:
    """Indices of those that have replicated extended attributes; what is not there has none."""
    found: list[int] = []
    for start, some, calls in _lock.chunks(names):
        called = repeat(_LISTXATTRAT), repeat(directory), some, repeat(_AT_SYMLINK_NOFOLLOW)
        sizes = map(calls.syscall, *called, repeat(None), repeat(0))
        found += compress(count(start), sizes)
    return [index for index in found if _has_xattrs(directory, names[index])]


def _has_xattrs(directory: int, name: bytes) -> bool:
    size = _LETTING_GO.syscall(_LISTXATTRAT, directory, name, _AT_SYMLINK_NOFOLLOW, None, 0)
    if size < 0 and ctypes.get_errno() in (errno.EOPNOTSUPP, errno.ENOENT):
        return False
    try:
        return bool(read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name)))
    except FileNotFoundError:
        return False


def _is_constant(column: bytes) -> bool:
    """Whether all words are the same; False of none."""
    return bool(column) and column == column[:WORD_BYTES] * (len(column) // WORD_BYTES)


def differing(one: bytes, other: bytes) -> list[int]:
    """Indices of what is not equal in two results of `states`, of equally many names."""
    if one == other:
        return []
    mine, theirs = memoryview(one).cast("Q"), memoryview(other).cast("Q")
    count = len(mine) // STATE_WORDS
    found: set[int] = set()
    for start in range(0, len(mine), count):
        here, there = mine[start : start + count], theirs[start : start + count]
        if here != there:
            found.update(
                index
                for index, (a, b) in enumerate(zip(here.tolist(), there.tolist(), strict=True))
                if a != b
            )
    return sorted(found)


def sizes_of(states: bytes) -> list[int]:
    """The sizes in a result of `states`."""
    words = memoryview(states).cast("Q")
    count = len(words) // STATE_WORDS
    return words[2 * count : 3 * count].tolist()


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
