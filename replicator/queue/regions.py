"""Regions of a file: sorted, disjoint intervals [start, end) in bytes, rounded out to blocks.

They are kept flat, as an array of their boundaries (start, end, start, end, …): 16 bytes an interval, and a
boundary's parity says whether a place is inside.
"""

from array import array
from bisect import bisect_left, bisect_right

BLOCK_BYTES = 4096
END = 1 << 63
"""The end of a region that reaches to the end of its file, however long that is by then."""

type_code = "Q"


def rounded(offset: int, length: int) -> tuple[int, int]:
    """The blocks that [offset, offset + length) touches, as (start, end)."""
    start = min(offset, END - BLOCK_BYTES) & -BLOCK_BYTES
    return start, min((offset + length + BLOCK_BYTES - 1) & -BLOCK_BYTES, END)


def add(bounds: "array[int]", start: int, end: int) -> None:
    """Add [start, end) to what is there. Both are multiples of a block."""
    if start >= end:
        return
    first = bisect_left(bounds, start)
    last = bisect_right(bounds, end)
    if first == last and first & 1:
        return  # inside an interval
    if last == len(bounds) and first == last - 1 and first & 1:
        bounds[first] = end  # the last interval becomes longer: a file that is appended to
        return
    new = []
    if not first & 1:
        new.append(start)
    if not last & 1:
        new.append(end)
    bounds[first:last] = array(type_code, new)


def thinned(bounds: "array[int]", intervals: int) -> "array[int]":
    """The same with at most `intervals` intervals (at least 1): those with the smallest gaps between them are
    joined.
    """
    surplus = len(bounds) // 2 - intervals
    if surplus <= 0:
        return bounds
    gaps = [start - end for end, start in zip(bounds[1:-1:2], bounds[2::2], strict=True)]
    widest = sorted(gaps)[surplus - 1]  # of those to be joined; of equal ones the first
    equal = surplus - sum(gap < widest for gap in gaps)
    kept = array(type_code, bounds[:1])
    for index, gap in enumerate(gaps):
        if gap == widest and equal:
            equal -= 1
        elif gap >= widest:
            kept.append(bounds[2 * index + 1])
            kept.append(bounds[2 * index + 2])
    kept.append(bounds[-1])
    return kept


def total_bytes(bounds: "array[int]") -> int:
    """Bytes in all of them; an interval that reaches to the end of the file counts nothing."""
    ends = bounds[1::2]
    return sum(end - start for start, end in zip(bounds[::2], ends, strict=True) if end != END)


def is_valid(bounds: "array[int]") -> bool:
    """Whether these boundaries could have come from `add`."""
    return len(bounds) % 2 == 0 and all(
        before < after and not after % BLOCK_BYTES and after <= END
        for before, after in zip([-1, *bounds[:-1]], bounds, strict=True)
    )
