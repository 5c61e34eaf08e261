"""A copy that stands still for a drill whose agent is gone goes on by itself."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from replicator import limits
from replicator.failover_drills import HOLD
from replicator.receiver.drill_hold import DrillHold

DRILL, RESTORE = f"{HOLD}1", "c0ffee"


class Copy:
    """A replica that stands still, or does not."""

    def __init__(self, restoring: str = "") -> None:
        self.state = SimpleNamespace(restoring=restoring)
        self.ownership = self
        self.fails = 0

    async def release(self, restore: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            self.fails -= 1
            raise OSError(28, "No space left on device")
        if self.state.restoring == restore:
            self.state.restoring = ""


async def test_it_goes_on_when_nobody_keeps_the_drill_up(
    autojump_clock: object, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Copy()
    hold = DrillHold(cast(Any, copy))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold.run)
        await trio.sleep(1000)
        copy.state.restoring = DRILL
        hold.keep()
        for _ in range(10):
            await trio.sleep(limits.DRILL_HOLD_S / 3)
            hold.keep(DRILL)
        assert copy.state.restoring == DRILL
        for _ in range(4):
            await trio.sleep(limits.DRILL_HOLD_S / 3)
            hold.keep(f"{HOLD}2")  # of another drill
        assert copy.state.restoring == "" and "goes on" in capsys.readouterr().err
        copy.state.restoring = DRILL
        copy.fails = 2
        hold.keep()
        await trio.sleep(2.5 * limits.DRILL_HOLD_S)
        assert copy.state.restoring == DRILL and "No space left" in capsys.readouterr().err
        await trio.sleep(limits.DRILL_HOLD_S)
        assert copy.state.restoring == ""
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("hold", "left"), [(DRILL, ""), (RESTORE, RESTORE)])
async def test_one_of_an_earlier_process(autojump_clock: object, hold: str, left: str) -> None:
    """A restore stands still as long as it takes."""
    copy = Copy(hold)
    with trio.move_on_after(2 * limits.DRILL_HOLD_S):
        await DrillHold(cast(Any, copy)).run()
    assert copy.state.restoring == left
