"""Many small files of one directory in one piece: read and written with as few steps for each as it takes.

Only files that are nothing special: regular, without holes, or symbolic links; without extended attributes.
So are further names of files that were read already. Whatever else a directory holds goes its own way.
"""

import itertools
import stat
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from replicator.fs.many_files import read_many
from replicator.fs.many_states import STATE_WORDS, WORD_BYTES, read_states, with_xattrs
from replicator.mirror.pieces import Content, Files, Links

_KINDS = frozenset({stat.S_IFREG, stat.S_IFLNK})


class Packed(NamedTuple):
    """`files`, `links` None: there are no such."""

    files: Files | None
    links: Links | None
    names: int  # so many of the names were looked at, from the first on
    others: list[bytes]  # of these, what is in neither
    inodes: Sequence[int]  # of what is in `files`
    linked: Sequence[int]  # of these, those of files with several names
    size: int  # of regular files in `files`
    links_size: int


def pack(
    descriptor: int,
    directory: bytes,
    names: Sequence[bytes],
    wanted: Callable[[Sequence[int]], Sequence[int]],
    bytes_max: int,
    size_max: int,
    was_read: Callable[[int], bool],
) -> Packed:
    """Those of `names` of the open directory that together have about `bytes_max` bytes, and none more than
    `size_max`. `wanted`: indices of inodes that are to be sent whole. `was_read`: whether a file with several
    names, by its inode, was read under another one. OSError.
    """
    states = read_states(descriptor, names)
    sizes, kinds, counts = states.sizes(), states.whole_kinds(), states.links()
    total = looked = 0
    for size in sizes:
        looked += 1
        total += size
        if total >= bytes_max:
            break
    inodes = states.inodes()
    some = set(wanted(inodes))
    again: list[int] = []  # further names
    met: set[int] = set()
    kept: list[int] = []
    for index in range(looked):
        if counts[index] > 1 and kinds[index]:
            inode = inodes[index]
            if inode in met or was_read(inode):
                again.append(index)
                continue
        if index in some and kinds[index] and sizes[index] <= size_max:
            kept.append(index)
            if counts[index] > 1:
                met.add(inodes[index])
    if kept:
        special = set(with_xattrs(descriptor, [names[index] for index in kept]))
        kept = [index for place, index in enumerate(kept) if place not in special]
    before = states.chosen(kept)
    content, right = read_many(
        descriptor, before.names, [kinds[index] for index in kept], [sizes[index] for index in kept]
    )
    # After the contents: attributes must not be older than these. What changed meanwhile is read by itself.
    after = read_states(descriptor, before.names)
    if 0 in right or before.words.tobytes() != after.words.tobytes():
        versions = zip(right, before.versions(), after.versions(), strict=True)
        whole = [place for place, (there, a, b) in enumerate(versions) if there and a == b]
        content = _parts(content, before.sizes(), whole)
        after = after.chosen(whole)
        kept = [kept[place] for place in whole]
    packed = {*kept, *again}
    others = [names[index] for index in range(looked) if index not in packed]
    links = None
    if again:
        theirs = array("Q", [inodes[index] for index in again])
        links = Links(directory, tuple(names[index] for index in again), theirs.tobytes())
    links_size = sum(sizes[index] for index in again if kinds[index] == stat.S_IFREG)
    if not kept:
        return Packed(None, links, looked, others, (), (), 0, links_size)
    found = after.inodes()
    linked = [inode for inode, count in zip(found, after.links(), strict=True) if count > 1]
    entry = Files(
        directory,
        tuple(after.names),
        after.states(),
        Content(content),
        found.tobytes() if linked else b"",
    )
    size = sum(sizes[index] for index in kept if kinds[index] == stat.S_IFREG)
    return Packed(entry, links, looked, others, found, linked, size, links_size)


def _parts(content: bytearray, sizes: list[int], places: list[int]) -> bytearray:
    """Those of these places only."""
    ends = list(itertools.accumulate(sizes))
    return bytearray().join([content[ends[place] - sizes[place] : ends[place]] for place in places])


class PackedFile(NamedTuple):
    """One of them, on the target."""

    name: bytes
    is_link: bool  # symbolic
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    offset: int  # of its content
    end: int
    inode: int  # 0: it has one name
    links: int


class Several(NamedTuple):
    """A file with several names, on the target."""

    name: bytes
    inode: int
    links: int


def kinds_of(entry: Files) -> set[int] | None:
    """S_IFREG, S_IFLNK, whichever are in it; None: it is malformed."""
    count = len(entry.names)
    if len(entry.states) != count * STATE_WORDS * WORD_BYTES:
        return None
    if entry.inodes and len(inodes_of(entry)) != count:
        return None
    words = memoryview(entry.states).cast("Q")
    kinds = {mode >> 32 & 0o170000 for mode in set(words[count : 2 * count])}
    right = kinds <= _KINDS and sum(words[2 * count : 3 * count]) == len(entry.data)
    return kinds if right else None


def unpack(entry: Files, first: int = 0, offset: int = 0) -> list[PackedFile]:
    """From the one of index `first` on, whose content begins at `offset`. It is not malformed."""
    words = memoryview(entry.states).cast("Q")
    count = len(entry.names)
    inodes = inodes_of(entry) if entry.inodes else [0] * count
    columns = [words[start : start + count].tolist() for start in range(0, STATE_WORDS * count, count)]
    files: list[PackedFile] = []
    rows = zip(entry.names, *columns, inodes, strict=True)
    for name, owner, mode, size, second, ns, inode in itertools.islice(rows, first, None):
        is_link = mode >> 32 & 0o170000 == stat.S_IFLNK
        mtime_ns = (second - (1 << 64) if second >> 63 else second) * 10**9 + (ns & 0xFFFFFFFF)
        end = offset + size
        links = owner & 0xFFFFFFFF
        files.append(
            PackedFile(
                name,
                is_link,
                mode >> 32 & 0o7777,
                owner >> 32,
                mode & 0xFFFFFFFF,
                mtime_ns,
                offset,
                end,
                inode if links > 1 else 0,
                links,
            )
        )
        offset = end
    return files


def several(entry: Files, count: int) -> list[Several]:
    """Those of its first `count` that have several names."""
    if not entry.inodes:
        return []
    owners = memoryview(entry.states).cast("Q")[:count].tolist()
    rows = zip(entry.names, inodes_of(entry), owners, strict=False)
    return [Several(*row[:2], row[2] & 0xFFFFFFFF) for row in rows if row[2] & 0xFFFFFFFF > 1]


def inodes_of(entry: Files | Links) -> list[int]:
    """Of each of its names; another number of them: it is malformed."""
    return memoryview(entry.inodes).cast("Q").tolist() if len(entry.inodes) % WORD_BYTES == 0 else []
