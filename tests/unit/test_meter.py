"""The meter as numbers: marks, bytes, ages, forecasts."""

import pytest

from replicator import limits
from replicator.sender.meter import FlowMeter, Meter, Stage, seconds_until_full

MS = 1_000_000
S = 1000 * MS


@pytest.fixture
def flow() -> FlowMeter:
    meter = FlowMeter()
    meter.resume((10, 10, 10, 10, 10), (1000,) * 5, 0)
    return meter


def test_a_record_goes_from_stage_to_stage(flow: FlowMeter) -> None:
    flow.journaled(11, 1100, 1 * S, rang=True)
    flow.read(11, 1 * S - 3 * MS)
    assert [flow.waiting_ns(stage, 2 * S) // MS for stage in Stage] == [0, 1000, 0, 0, 0]
    assert [flow.behind_bytes(stage) for stage in Stage] == [0, 100, 0, 0, 0]
    flow.passed(Stage.SENT, 11, 2 * S)
    flow.passed(Stage.RECEIVED, 11, 2 * S + 20 * MS)
    assert [flow.behind_bytes(stage) for stage in Stage] == [0, 0, 0, 100, 0]
    assert flow.age_ns(Stage.RECEIVED, 5 * S) == 0 and flow.age_ns(Stage.APPLIED, 5 * S) == 4 * S
    flow.passed(Stage.APPLIED, 11, 2 * S + 50 * MS)
    flow.passed(Stage.DURABLE, 11, 6 * S)
    assert [ns // MS for ns in flow.take_worst()] == [3, 1000, 20, 30, 3950]
    assert flow.take_worst() == [0] * 5
    assert [flow.behind_bytes(stage) for stage in Stage] == [0] * 5


def test_only_what_was_seen_to_arrive_tells_how_long_it_took(flow: FlowMeter) -> None:
    flow.journaled(11, 1100, 1 * S)  # somebody looked
    flow.read(11, 0)
    flow.journaled(12, 1200, 2 * S, rang=True)  # and behind what waits already
    flow.read(11, 0)
    assert flow.take_worst()[Stage.JOURNALED] == 0


def test_between_two_marks_bytes_are_in_proportion(flow: FlowMeter) -> None:
    flow.journaled(20, 2000, 1 * S)
    flow.passed(Stage.SENT, 15, 1 * S)
    assert flow.behind_bytes(Stage.SENT) == 500
    assert flow.waiting_ns(Stage.SENT, 3 * S) == 2 * S
    flow.passed(Stage.SENT, 20, 1 * S)
    assert flow.behind_bytes(Stage.SENT) == 0 and flow.behind_bytes(Stage.RECEIVED) == 1000


def test_many_marks_become_fewer_and_never_younger(flow: FlowMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "METER_MARKS", 16)
    for number in range(1000):
        flow.journaled(11 + number, 1000 + number, number * S)
    assert sum(map(len, flow._waiting)) <= 17
    for number in range(0, 1000, 50):
        flow.passed(Stage.SENT, 10 + number, 2000 * S)
        assert flow.waiting_ns(Stage.SENT, 2000 * S) >= (2000 - number) * S
    flow.passed(Stage.SENT, 1010, 2000 * S)
    assert flow.waiting_ns(Stage.SENT, 2000 * S) == 0


def test_what_comes_at_once_is_one_mark(flow: FlowMeter) -> None:
    for number in range(100):
        flow.journaled(11 + number, 1100 + number, number * MS)
    assert len(flow._waiting[Stage.SENT]) == 100 * MS // limits.METER_MARK_NS


def test_the_journal_knows_how_old_it_is(flow: FlowMeter) -> None:
    flow.journaled(20, 2000, 100 * S)
    flow.oldest_unsent(11, 40 * S)
    assert flow.age_ns(Stage.SENT, 100 * S) == 60 * S
    flow.oldest_unsent(11, 40 * S)  # said again
    flow.passed(Stage.SENT, 11, 100 * S)
    assert flow.age_ns(Stage.SENT, 100 * S) == 0
    flow.oldest_unsent(12, 45 * S)
    assert flow.age_ns(Stage.SENT, 100 * S) == 55 * S


def test_what_had_not_arrived_is_sent_again(flow: FlowMeter) -> None:
    for sequence, at in ((11, 1), (12, 2), (13, 3)):
        flow.journaled(sequence, 100 * sequence, at * S)
    flow.passed(Stage.SENT, 13, 4 * S)
    flow.passed(Stage.RECEIVED, 12, 4 * S)
    flow.passed(Stage.APPLIED, 11, 4 * S)
    flow.resume((13, 12, 12, 11, 10), (1300, 1200, 1200, 1100, 1000), 10 * S)
    assert flow.age_ns(Stage.RECEIVED, 10 * S) == 7 * S
    assert flow.age_ns(Stage.APPLIED, 10 * S) == 8 * S
    assert flow.waiting_ns(Stage.SENT, 10 * S) == 7 * S
    assert flow.waiting_ns(Stage.APPLIED, 10 * S) == 6 * S
    assert [flow.behind_bytes(stage) for stage in Stage] == [0, 100, 0, 100, 100]


def test_what_a_former_process_left_is_counted() -> None:
    flow = FlowMeter()
    flow.resume((13, 12, 12, 11, 10), (1300, 1200, 1200, 1200, 1000), 0)
    assert [flow.behind_bytes(stage) for stage in Stage] == [0, 100, 0, 0, 200]
    for stage in list(Stage)[1:]:
        flow.passed(stage, 13, 1 * S)
    assert [flow.behind_bytes(stage) for stage in Stage] == [0] * 5
    assert flow.age_ns(Stage.DURABLE, 2 * S) == 0


def test_the_history_has_the_worst(flow: FlowMeter) -> None:
    meter = Meter(1)
    meter.flows[0].resume((0,) * 5, (0,) * 5, 0)
    for second in range(1, 181):
        meter.flows[0].journaled(second, 1000 * second, second * S)
        if second != 100:  # then it hangs for a second
            meter.flows[0].passed(Stage.SENT, second, second * S + 10 * MS)
        assert meter.tick(second * S + 500 * MS, float(second))
    lag = meter.lag(180 * S + 600 * MS)
    assert len(lag.last_minute) == 60 and lag.last_minute[-1].time == 180.0
    assert [sample.seconds[Stage.SENT] for sample in lag.last_hour] == [0.01, 1.01, 0.01, 0.01]
    assert lag.growth_bytes_per_s == pytest.approx(1000, rel=0.02)
    assert meter.lag(400 * S).last_minute == ()
    assert {stage.stage: stage.seconds for stage in meter.lag(180 * S).stages}["sent"] == 0.01


def test_an_idle_meter_says_so() -> None:
    meter = Meter(2)
    assert not meter.tick(S, 1.0)
    assert meter.lag(S).seconds == 0.0 and meter.lag(S).growth_bytes_per_s == 0.0


@pytest.mark.parametrize(
    ("room", "growth", "expected"),
    [(1000, 10.0, 100.0), (1000, 0.0, None), (1000, -5.0, None), (None, 10.0, None), (-5, 10.0, 0.0)],
)
def test_forecast(room: int | None, growth: float, expected: float | None) -> None:
    assert seconds_until_full(room, growth) == expected
