"""Of each of many names of an open directory. The interpreter lock is let go for all of them together."""

from array import array
from collections.abc import Sequence

def states(
    directory: int, names: Sequence[bytes], flags: int, mask: int, words: bytes, columns: bytearray
) -> None:
    """statx(2) of each; `flags` and `mask` are its arguments. `columns` gets these words of the structures: a
    column for each of `words`, with a word for each of `names`. What is not there has zeros. OSError of any
    other failure; ValueError: a name with NUL, or `columns` is of another size.
    """

def names_in(directory: int) -> tuple[list[bytes], list[bytes]]:
    """Names of its directories, and of everything else. OSError."""

def make(
    directory: int,
    names: Sequence[bytes],
    states: bytes | memoryview,
    contents: bytes | bytearray | memoryview,
    flags: int,
) -> tuple[int, int]:
    """Make regular files, opened with `flags`, and symbolic links of these names, with owner, mode and mtime
    of `states` (columns as of `ManyStates.states`); `contents` has their contents, or texts, one behind
    another. Returns how many it has made, and the bytes of these: where one cannot be made it ends, and
    leaves nothing of that one. ValueError: the states are not those of the names.
    """

def contents(
    directory: int,
    names: Sequence[bytes],
    kinds: array[int],
    sizes: array[int],
    flags: int,
    into: bytearray,
) -> bytes:
    """Read regular files, opened with `flags`, and texts of symbolic links (S_IFLNK of `kinds`) into `into`,
    one behind another, so many bytes of each. Returns a byte for each: 1, or 0 if it has not so many, or
    cannot be read; then there may be anything in its place.
    """
