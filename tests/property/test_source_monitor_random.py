"""A source that answers is never taken for failed, however its monitor's host is held up; one that is silent
always is, in time.
"""

from hypothesis import given
from hypothesis import strategies as st

from replicator import limits
from replicator.failover.monitor import Probe, SourceMonitor
from replicator.failovers import Check, CheckKind, MonitorSettings, WatchedAddress

ADDRESS = "10.0.0.5/24"
intervals = st.sampled_from([0.2, 1.0, 5.0, 60.0])
misses = st.integers(1, 6)
# Of a period: how much later than the one before a look comes. Mostly in time, sometimes after a long pause.
steps = st.lists(
    st.one_of(st.floats(0.2, 1.4), st.floats(1.5, 30.0), st.floats(100.0, 1e6)), min_size=50, max_size=400
)


def monitor(interval_s: float, misses: int) -> SourceMonitor:
    address = WatchedAddress(
        address=ADDRESS, checks=(Check(CheckKind.AGENT),), interval_s=interval_s, misses=misses
    )
    return SourceMonitor(MonitorSettings(source_host="alpha", addresses=(address,)), 0.0)


@given(intervals, misses, steps, st.floats(0.0, 0.2))
def test_one_that_answers_never_fails(interval_s: float, misses: int, steps: list[float], rtt: float) -> None:
    """An answer takes part of an interval, and is read after the look when both are due."""
    machine = monitor(interval_s, misses)
    now_s = 0.0
    under_way: list[tuple[float, Probe]] = []  # (when it is there, of what)
    for step in steps:
        now_s += step * machine.period_s
        machine.look(now_s)
        assert not machine.failed
        for at_s, probe in under_way:
            if at_s <= now_s:
                machine.answered(probe)
        under_way = [each for each in under_way if each[0] > now_s]
        under_way += [(now_s + rtt * interval_s, probe) for probe in machine.due(now_s)]


@given(intervals, misses, steps)
def test_one_that_is_silent_fails_in_time(interval_s: float, misses: int, steps: list[float]) -> None:
    """After its countdown, and the grace of the last probe, have been watched."""
    machine = monitor(interval_s, misses)
    now_s = watched_s = 0.0
    whole_s = interval_s * misses
    while watched_s <= whole_s + interval_s * (limits.MONITOR_GRACE + 1.5):
        for step in steps:
            machine.due(now_s)
            now_s += step * machine.period_s
            watched_s += min(step, limits.MONITOR_LATE) * machine.period_s
            machine.look(now_s)
            assert not (machine.failed and watched_s < whole_s * 0.999)
    assert machine.failed
