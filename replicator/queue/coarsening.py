"""How a dirty map becomes coarser: what is cheapest to have forgotten goes first.

1. Regions of one file are joined across the smallest gaps: a little more of that file is compared.
2. Files become whole, those with the fewest dirty bytes first; files with many wait until the end.
3. Some files of a directory become all of its files.
4. Directories become trees, the deepest first, and of equally deep ones those with the most entries.

Each step only ever covers more. They end as soon as the map is small enough; what is left of the last step is
the root, as a tree: everything.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from replicator import limits
from replicator.queue import regions
from replicator.queue.dirty_entry import CHILDREN_BYTES, NODE_BYTES, Node

if TYPE_CHECKING:
    from replicator.queue.dirty_tree import DirtyTree


def coarsen(dirty: "DirtyTree", target_bytes: int) -> None:
    """Make `dirty` cost at most `target_bytes`, or make it everything."""
    for _ in _steps(dirty, target_bytes):
        if dirty.cost_bytes <= target_bytes:
            return


def _steps(dirty: "DirtyTree", target_bytes: int) -> Iterator[None]:
    """Yields after each small step."""
    yield from _join_regions(dirty)
    if len(dirty.links) * (NODE_BYTES + CHILDREN_BYTES) > target_bytes:
        dirty.make_everything()  # nothing but everything covers files that may have any name
        yield
    for large_too in (False, True):
        yield from _whole_files(dirty, large_too)
        yield from _all_files(dirty, large_too)
    yield from _trees(dirty)
    dirty.make_everything()
    yield


def _nodes(dirty: "DirtyTree") -> Iterator[Node]:
    stack = [dirty.root]
    while stack:
        node = stack.pop()
        yield node
        if node.children:
            stack += node.children.values()
    for node, _ in dirty.links.values():
        yield node


def _join_regions(dirty: "DirtyTree") -> Iterator[None]:
    intervals = limits.DIRTY_REGIONS // 4
    while intervals >= 1:
        for node in [n for n in _nodes(dirty) if n.bounds is not None and len(n.bounds) > 2 * intervals]:
            dirty.thin(node, intervals)
            yield
        intervals //= 4


def _dirty_bytes(node: Node) -> int:
    return 0 if node.bounds is None else regions.total_bytes(node.bounds)


def _is_large(node: Node) -> bool:
    """Whether much of the file is certainly not dirty: then comparing it whole is no small matter."""
    bounds = node.bounds
    return bounds is not None and bounds[-1 if bounds[-1] != regions.END else -2] >= limits.DIRTY_LARGE_BYTES


def _whole_files(dirty: "DirtyTree", large_too: bool) -> Iterator[None]:
    files = [n for n in _nodes(dirty) if n.bounds is not None and (large_too or not _is_large(n))]
    files.sort(key=_dirty_bytes)
    for node in files:
        dirty.make_whole(node)
        yield


def _all_files(dirty: "DirtyTree", large_too: bool) -> Iterator[None]:
    found = []
    for node in _nodes(dirty):
        files = [child for child in (node.children or {}).values() if child.is_file]
        if len(files) > 1 and (large_too or not any(map(_is_large, files))):
            found.append((len(files), node))
    found.sort(key=lambda pair: pair[0], reverse=True)
    for _, node in found:
        dirty.make_files(node)
        yield


def _trees(dirty: "DirtyTree") -> Iterator[None]:
    levels = [[dirty.root]]
    while levels[-1]:
        levels.append([c for n in levels[-1] for c in (n.children or {}).values() if c.children])
    for level in reversed(levels[1:]):
        for node in sorted(level, key=dirty.weigh, reverse=True):
            dirty.make_tree(node)
            yield
