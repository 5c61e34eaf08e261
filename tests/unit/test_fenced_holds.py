"""Replies that wait for targets, while a fence is closed."""

import errno

import pytest

from replicator.fences import FOREVER_NS, WAITING, FenceMode
from replicator.fs.fence import Fence
from replicator.fs.holds import Holds
from replicator.fs.kernel_binding import Failure, Header, Held, Reply

HEADER = (40, 20, 1, 1, 0, 0, 0, 0, 0)


class Ticket:
    """`met`: its targets have it, or were given up."""

    def __init__(self) -> None:
        self.met = False

    def is_met(self) -> bool:
        return self.met


class Bench:
    def __init__(self) -> None:
        self.given: list[Reply] = []
        self.holds = Holds(self._reply, lambda: None)

    def _reply(self, header: Header, reply: Reply) -> None:
        self.given.append(reply)


@pytest.mark.parametrize("mode", [m for m in FenceMode if m is not FenceMode.NONE])
@pytest.mark.parametrize("met_before", [False, True])
def test_nothing_is_promised(mode: FenceMode, met_before: bool) -> None:
    bench, ticket = Bench(), Ticket()
    bench.holds.fence = Fence.fixed(mode)
    ticket.met = met_before
    bench.holds.hold(HEADER, Held(b"done", ticket))
    ticket.met = True
    bench.holds.tend()
    if mode in WAITING:
        assert bench.given == []
        bench.holds.fence = Fence.fixed(mode, FOREVER_NS)
        bench.holds.tend()
        assert bench.given == [b"done"]
    else:
        (failure,) = bench.given
        assert isinstance(failure, Failure)
        assert failure.number == (errno.EROFS if mode is FenceMode.READ_ONLY else errno.EIO)


def test_without_fence_and_with_an_open_one() -> None:
    for fence in (None, Fence.fixed(FenceMode.SUSPEND, FOREVER_NS), Fence.fixed(FenceMode.NONE)):
        bench, ticket = Bench(), Ticket()
        bench.holds.fence = fence
        bench.holds.hold(HEADER, Held(b"done", ticket))
        bench.holds.tend()
        assert bench.given == []
        ticket.met = True
        bench.holds.tend()
        assert bench.given == [b"done"]
