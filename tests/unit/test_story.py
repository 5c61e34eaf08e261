"""The story of a connection: bounded, kept over restarts, and durations that do not jump."""

import errno
from collections.abc import Callable

import pytest
from kit.disk import MemoryDisk
from kit.stories import check_story

from replicator.sender.story import Story
from replicator.status import Dimension, StoryEntry
from replicator.world import World

PATH = "/home/source/u.story"
C, T = Dimension.CONNECTION, Dimension.TRANSMIT


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0
        self.jump_s = 0.0

    def monotonic_ns(self) -> int:
        return int(self.s * 1e9)

    def wall_ns(self) -> int:
        return int((self.s + self.jump_s) * 1e9)

    def boot_id(self) -> str:
        return "boot"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def open_story(clock: Clock, disk: MemoryDisk) -> Callable[..., Story]:
    return lambda **options: Story(World(disk=disk, clock=clock), PATH, **options)


def test_it_tells_what_happened_and_how_long_it_lasted(
    open_story: Callable[..., Story], clock: Clock
) -> None:
    story = open_story()
    story.note(C, "Started", "connected")
    story.note(C, "Started", "connected")  # no news
    story.note(T, "Started", "sender started")
    clock.s += 60
    clock.jump_s = -3600
    story.note(C, "Error", "connection lost", "no route")
    clock.s += 1
    story.note(C, "Error", "cannot connect", "refused")
    clock.s += 1
    story.note(C, "Started", "connected again")
    first, _, lost, again, back = story.since()
    assert (first.before, first.lasted_s) == ("", None)
    assert (lost.before, lost.after, lost.reason, lost.lasted_s) == ("Started", "Error", "no route", 60)
    assert (again.before, again.after, again.reason) == ("Error", "Error", "refused")
    assert back.lasted_s == 2  # since it was lost, whatever the reason
    assert [e.sequence for e in story.since(3)] == [4, 5]
    assert [e.sequence for e in story.since(0, 2)] == [4, 5]


def test_it_goes_on_after_a_restart(open_story: Callable[..., Story], clock: Clock) -> None:
    open_story().note(C, "Started", "connected")
    clock.s += 5
    story = open_story()
    story.note(C, "Stopped", "sender started")
    one, two = story.since()
    assert (two.sequence, two.before, two.lasted_s) == (2, "Started", 5)
    assert open_story().since() == [one, two]


def test_it_is_bounded_in_memory_and_on_disk(open_story: Callable[..., Story], disk: MemoryDisk) -> None:
    story = open_story(kept=10)
    sizes = []
    for number in range(100):
        story.note(C, "Started" if number % 2 else "Error", "x")
        sizes.append(disk.size(PATH))
    assert [e.sequence for e in story.since()] == list(range(91, 101))
    assert open_story(kept=10).since() == story.since()
    assert max(sizes) < 21 * 200


def test_a_torn_end_is_left_out(open_story: Callable[..., Story], disk: MemoryDisk) -> None:
    story = open_story()
    for state in ("Started", "Error", "Started"):
        story.note(C, state, "x")
    for cut in range(1, 60):
        disk.truncate(PATH, disk.size(PATH) - 1)
        again = open_story()
        kept = [e.sequence for e in again.since()]
        assert kept in ([1, 2], [1, 2, 3]), cut
    again.note(C, "Stopped", "y")
    assert [e.after for e in open_story().since()] == ["Started", "Error", "Stopped"]


def test_a_full_disk_is_no_error(
    open_story: Callable[..., Story], disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = open_story()
    story.note(C, "Started", "x")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "append", full)
        story.note(C, "Error", "x")
        story.note(C, "Started", "x")
    assert len(story.since()) == 3
    story.note(C, "Error", "x")
    assert open_story().since() == story.since()


def test_a_removed_connection_leaves_nothing(open_story: Callable[..., Story], disk: MemoryDisk) -> None:
    story = open_story()
    story.note(C, "Started", "x")
    story.remove()
    story.note(C, "Error", "x")
    assert not disk.exists(PATH)


def entry(sequence: int, dimension: Dimension, before: str, after: str, event: str) -> StoryEntry:
    return StoryEntry(sequence, 0.0, dimension, before, after, event, "", None)


M, D = Dimension.MIRROR, Dimension.DATA


@pytest.mark.parametrize(
    "bad",
    [
        [entry(1, D, "", "Mirror Required", "x"), entry(2, D, "Mirror Required", "OK", "x")],
        [entry(1, C, "", "Started", "x"), entry(3, C, "Started", "Error", "x")],
        [entry(1, C, "", "Started", "x"), entry(2, C, "Error", "Started", "x")],
        [entry(1, T, "", "Stopped", "x"), entry(2, C, "Error", "Started", "connected")],
        [entry(1, T, "", "Started", "x"), entry(2, T, "Started", "Paused", "transmission stopped")],
        [entry(1, M, "", "Idle", "x"), entry(2, M, "Idle", "Waiting", "mirror paused")],
    ],
)  # fmt: skip
def test_the_checker_sees_what_may_not_be(bad: list[StoryEntry]) -> None:
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check_story(bad)
