"""The count of what a mirror has to do begins where it can be of use, and ends with the mirror."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from replicator import limits
from replicator.sender.size_count import count_sizes

DIRECTORIES = 1000


class Walk:
    """A tree of a thousand directories with ten files each; `looked` are those that were counted."""

    looked = 0

    def walk_sizes(self, root: bytes) -> Iterator[tuple[int, int]]:
        for _ in range(DIRECTORIES):
            self.looked += 1
            yield 10, 1000


class World:
    clock = SimpleNamespace(monotonic_ns=lambda: int(trio.current_time() * 1e9))

    async def in_thread(self, step: Any) -> Any:
        await trio.sleep(0.001)
        return step()


class Changes:
    async def wait(self) -> None:
        await trio.sleep_forever()


def begun() -> SimpleNamespace:
    return SimpleNamespace(
        total_known=False,
        some_paths=False,
        started_ns=World.clock.monotonic_ns(),
        done_files=0,
        total_files=0,
    )


@pytest.fixture
async def counted(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> tuple[Walk, Any]:
    """What walks, and a run that has just begun."""
    walk, mirrors = Walk(), SimpleNamespace(run=begun())
    flow = SimpleNamespace(filter=SimpleNamespace(roots=[b""]), source=walk)
    arguments: Any = (World(), [flow], mirrors, Changes())
    nursery.start_soon(count_sizes, *arguments)
    return walk, mirrors


async def test_a_mirror_that_lasts_is_counted(counted: tuple[Walk, Any]) -> None:
    walk, mirrors = counted
    await trio.sleep(limits.SIZE_COUNT_DELAY_S - 0.1)
    assert not walk.looked
    await trio.sleep(1)
    assert mirrors.run.total_known and mirrors.run.total_files == 10 * DIRECTORIES


async def test_one_that_is_faster_than_a_count_is_not(counted: tuple[Walk, Any]) -> None:
    walk, mirrors = counted
    for _ in range(9):
        await trio.sleep(1)
        mirrors.run.done_files += 2 * limits.SIZE_COUNT_FILES_PER_S
    assert not walk.looked
    await trio.sleep(20)  # now it has come to what differs
    assert mirrors.run.total_known


async def test_the_count_ends_with_it(counted: tuple[Walk, Any]) -> None:
    walk, mirrors = counted
    run = mirrors.run
    await trio.sleep(limits.SIZE_COUNT_DELAY_S + 0.03)
    mirrors.run = None
    before = walk.looked
    await trio.sleep(10)
    assert 0 < before <= walk.looked <= before + 64 and not run.total_known
