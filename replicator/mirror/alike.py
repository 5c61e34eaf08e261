"""Claims about many files of one directory at once, and how a target checks them.

A mirror of what is there already says the same of nearly every file: it is as on the source. Said file by
file, most of the time goes into saying it. So files that are nothing special (regular, one name, no extended
attributes, nothing that makes their size and mtime worth less) are claimed together, as columns of bytes that
both sides get from the kernel as they are. Whatever else a directory holds goes its own way.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from replicator.fs.bare_files import BareFiles
from replicator.fs.many_states import (
    STATE_WORDS,
    WORD_BYTES,
    ManyStates,
    differing,
    read_states,
    with_xattrs,
)
from replicator.mirror.comparison import Claim
from replicator.mirror.pieces import Alike

_NO_NAMES = frozenset({b"", b".", b".."})


class Claimed(NamedTuple):
    """`alike` None: there are no such files. `others`: names of the rest, in their order."""

    alike: Alike | None
    others: list[bytes]
    inodes: Sequence[int]  # of the files claimed
    size: int  # of all of them together


def claim(
    descriptor: int,
    directory: bytes,
    names: Sequence[bytes],
    how: Claim,
    unsure: Callable[[Sequence[int]], Sequence[int]],
    distrust_ctime_after_ns: int | None,
    bare: BareFiles | None = None,
) -> Claimed:
    """What to claim about `names` of the open directory, and `how`. `unsure`: indices of inodes whose size
    and mtime prove nothing. `bare`: what need not be asked for extended attributes. OSError.
    """
    states = read_states(descriptor, names)
    kept = states.plain()
    if distrust_ctime_after_ns is not None:
        changed = states.changed_since(distrust_ctime_after_ns)
        kept = [index for index in kept if not changed[index]]
    chosen = states.chosen(kept)
    dropped = {*_with_xattrs(descriptor, chosen, bare), *unsure(chosen.inodes())}
    if dropped:
        kept = [kept[index] for index in range(len(kept)) if index not in dropped]
        chosen = states.chosen(kept)
    if not kept:
        return Claimed(None, list(names), [], 0)
    others: list[bytes] = []
    if len(kept) < len(names):
        claimed = set(kept)
        others = [name for index, name in enumerate(names) if index not in claimed]
    entry = Alike(directory, tuple(chosen.names), chosen.states(), how)
    return Claimed(entry, others, chosen.inodes(), sum(chosen.sizes()))


def is_well_formed(entry: Alike) -> bool:
    """Whether it has a state for each name, and its names are names."""
    return (
        entry.claim in (Claim.SIZE_AND_TIME, Claim.BROUGHT)
        and len(entry.states) == len(entry.names) * STATE_WORDS * WORD_BYTES
        and are_names(entry.names)
    )


def are_names(names: Sequence[bytes]) -> bool:
    """Whether these are names of one directory, at least one."""
    text = b"/".join(names)
    return (
        bool(names)
        and _NO_NAMES.isdisjoint(names)
        and text.count(b"/") == len(names) - 1
        and b"\0" not in text
    )


def unlike(
    descriptor: int,
    entry: Alike,
    suspect_since_ns: int | None,
    mirror_since_ns: int | None,
    bare: BareFiles | None = None,
) -> list[int]:
    """Indices of names that are not as claimed in the open directory. `suspect_since_ns`: files with such a
    ctime, or a later one, may hold anything; files made after `mirror_since_ns` were brought by this
    mirror. `bare` as of `claim`. OSError.
    """
    if entry.claim is Claim.BROUGHT and mirror_since_ns is None:
        return list(range(len(entry.names)))
    states = read_states(descriptor, entry.names)
    found = {*differing(entry.states, states.states()), *_with_xattrs(descriptor, states, bare)}
    if suspect_since_ns is not None:
        found.update(index for index, late in enumerate(states.changed_since(suspect_since_ns)) if late)
    if entry.claim is Claim.BROUGHT and mirror_since_ns is not None:
        found.update(i for i, late in enumerate(states.made_after(mirror_since_ns)) if not late)
    return sorted(found)


def _with_xattrs(descriptor: int, states: ManyStates, bare: BareFiles | None) -> list[int]:
    return with_xattrs(descriptor, states.names) if bare is None else bare.with_xattrs(descriptor, states)


def without(entry: Alike, names: set[bytes]) -> tuple[Alike | None, list[int]]:
    """The claim about the others, and their indices."""
    kept = [index for index, name in enumerate(entry.names) if name not in names]
    if not kept:
        return None, []
    words = memoryview(entry.states).cast("Q")
    count = len(entry.names)
    columns = [words[start : start + count].tolist() for start in range(0, len(words), count)]
    states = b"".join(column[index].to_bytes(WORD_BYTES, "little") for column in columns for index in kept)
    return Alike(entry.path, tuple(entry.names[index] for index in kept), states, entry.claim), kept
