"""How much a replication set holds at the moment (RS-22): counted when somebody asks, through the mounts as
any program would, with rests. A mirror counts by itself, beside its work (`sender/size_count.py`).
"""

import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice

import msgspec
import trio

from replicator import limits
from replicator.mirror.scan import Source
from replicator.repset import ReplicationSet, compile_filter, is_inside, rule_anchor

_DIRECTORIES = 64  # at a time


class SetSize(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate: what changes meanwhile may be in it or not. `bytes`: sizes of files, holes included."""

    name: str
    files: int  # all that is no directory
    bytes: int
    counted: float  # when, in seconds since the epoch
    elapsed_s: float


async def size_of(repset: ReplicationSet) -> SetSize:
    """What is not there, or cannot be read, counts as nothing."""
    began_s = trio.current_time()
    files = size = 0
    for place in await trio.to_thread.run_sync(directories_of, repset):
        source = await trio.to_thread.run_sync(_opened, repset, place)
        if source is None:
            continue
        try:
            walk = chain.from_iterable(map(source.walk_sizes, source.filter.roots))
            while True:
                before_s = trio.current_time()
                chunk = await trio.to_thread.run_sync(partial(_some, walk))
                if not chunk:
                    break
                files += sum(count for count, _ in chunk)
                size += sum(count for _, count in chunk)
                await trio.sleep((trio.current_time() - before_s) * limits.SIZE_ASKED_RESTS)
        finally:
            source.close()
    return SetSize(
        name=repset.name,
        files=files,
        bytes=size,
        counted=time.time(),
        elapsed_s=trio.current_time() - began_s,
    )


def _some(walk: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(islice(walk, _DIRECTORIES))


def directories_of(repset: ReplicationSet) -> list[str]:
    """Where its rules begin, none inside another one. Blocks."""
    anchors = {rule_anchor(rule) for rule in repset.rules if rule.include}
    found = {path if os.path.isdir(path) else os.path.dirname(path) for path in anchors}
    return sorted(path for path in found if not any(p != path and is_inside(path, p) for p in found))


def _opened(repset: ReplicationSet, place: str) -> Source | None:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    return Source(descriptor, partial(compile_filter, repset, os.fsencode(place)))
