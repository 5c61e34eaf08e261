"""How often a sender looks into its journals."""

from typing import cast

import pytest
import trio
import trio.testing

from replicator import limits
from replicator.queue.merge import Merge
from replicator.sender.shipper import _Bell


class Writer:
    """What a `Merge` waits for: a journal that gets something new every `pause_s`."""

    def __init__(self, pause_s: float, bytes_: int = 0) -> None:
        self._pause_s = pause_s
        self.unread_bytes = bytes_
        self._next_s = trio.current_time() + pause_s

    async def wait(self) -> None:
        """Until there is something new; it is read then."""
        await trio.sleep_until(self._next_s)
        while self._next_s <= trio.current_time():
            self._next_s += self._pause_s


async def times_woken(writer: Writer, seconds: float) -> list[float]:
    """When a shipper that always reads all at once is woken, from the first time on."""
    woken: list[float] = []

    def wake() -> None:
        woken.append(trio.current_time())
        bell.arm()

    bell = _Bell(cast(Merge, writer), wake, lambda: False)
    bell.arm()
    with trio.move_on_after(seconds):
        await bell.run()
    return [moment - woken[0] for moment in woken]


def test_many_changes_are_shipped_together_and_a_lone_one_at_once() -> None:
    async def main() -> None:
        busy = await times_woken(Writer(0.0001), 1)
        assert 0.8 / limits.SHIP_PAUSE_S < len(busy) <= 1 / limits.SHIP_PAUSE_S + 1
        large = await times_woken(Writer(0.0001, limits.SHIP_PAUSE_BYTES), 1)
        assert len(large) > 9_000
        lone = await times_woken(Writer(2 * limits.SHIP_PAUSE_S), 1)
        assert [round(moment / limits.SHIP_PAUSE_S, 3) for moment in lone[:20]] == list(range(0, 40, 2))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("urgent", [False, True])
def test_only_who_is_waited_for_gives_its_pause_up(urgent: bool) -> None:
    async def main() -> None:
        woken: list[float] = []
        looks = 0
        rung = False

        def is_urgent() -> bool:
            nonlocal looks
            looks += 1
            assert looks < 100, "it looks without a pause"
            return urgent and rung

        bell = _Bell(cast(Merge, Writer(0.0001)), lambda: woken.append(trio.current_time()), is_urgent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.run)
            bell.arm()
            while not woken:  # noqa: ASYNC110
                await trio.sleep(0.0001)
            bell.arm()
            await trio.testing.wait_all_tasks_blocked()
            rung = True
            bell.hurry()
            await trio.sleep(2 * limits.SHIP_PAUSE_S)
            nursery.cancel_scope.cancel()
        assert (woken[1] - woken[0] < limits.SHIP_PAUSE_S / 2) is urgent

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
