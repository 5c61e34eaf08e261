"""How much a mirror has to do: files and bytes of the set, counted beside it.

Never before it (MR: size calculation must not delay the start).
"""

import itertools
from collections.abc import Iterator
from functools import partial

import trio

from replicator import limits
from replicator.mirror.mirroring import MirrorRun
from replicator.sender.changes import Changes
from replicator.sender.flow import Flow
from replicator.sender.mirrors import Mirrors
from replicator.world import World

_DIRECTORIES = 64  # at a time


async def count_sizes(world: World, flows: list[Flow], mirrors: Mirrors, changes: Changes) -> None:
    """For each run that brings a whole set, until cancelled."""
    while True:
        run = mirrors.run
        if run is None or run.total_known or run.some_paths:
            await changes.wait()
            continue
        await trio.sleep(limits.SIZE_COUNT_DELAY_S)  # a short mirror is over before the count would be
        if run is not mirrors.run or _outruns_a_count(run, world):
            continue
        files = size = 0
        for flow in flows:
            for root in flow.filter.roots:
                walk = flow.source.walk_sizes(root)
                while run is mirrors.run:
                    before_s = trio.current_time()
                    chunk = await world.in_thread(partial(_some, walk))
                    if not chunk:
                        break
                    files += sum(c[0] for c in chunk)
                    size += sum(c[1] for c in chunk)
                    # It takes from what it counts for: where nothing differs, as long as the mirror itself.
                    await trio.sleep((trio.current_time() - before_s) * limits.SIZE_COUNT_RESTS)
        if run is mirrors.run:
            run.total_files, run.total_bytes, run.total_known = files, size, True


def _outruns_a_count(run: MirrorRun, world: World) -> bool:
    """Where nearly nothing differs, a mirror does little more than a count."""
    elapsed_s = (world.clock.monotonic_ns() - run.started_ns) / 1e9
    return run.done_files > elapsed_s * limits.SIZE_COUNT_FILES_PER_S


def _some(walk: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(itertools.islice(walk, _DIRECTORIES))
