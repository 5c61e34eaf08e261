"""The machine that decides whether a source has failed: countdowns, colours, late looks, edits."""

from collections.abc import Callable

import msgspec
import pytest

from replicator import limits
from replicator.failover.monitor import Change, Colour, News, Probe, SourceMonitor
from replicator.failovers import Check, CheckKind, FailWhen, MonitorSettings, WatchedAddress

AGENT, PING, TCP = Check(CheckKind.AGENT), Check(CheckKind.PING), Check(CheckKind.TCP, "80")
ONE, TWO = "10.0.0.5/24", "10.0.0.6/24"


def settings(
    *addresses: str,
    checks: tuple[Check, ...] = (AGENT,),
    interval_s: float = 5.0,
    misses: int = 5,
    **more: object,
) -> MonitorSettings:
    watched = tuple(
        WatchedAddress(address=a, checks=checks, interval_s=interval_s, misses=misses) for a in addresses
    )
    return MonitorSettings(source_host="alpha", addresses=watched, **more)  # type: ignore[arg-type]


class Driver:
    """Looks as often as it should, from second 0 on. `answers`: whether a probe is answered at once."""

    def __init__(self, wanted: MonitorSettings, answers: Callable[[Probe], bool] = lambda _: True) -> None:
        self.machine = SourceMonitor(wanted, 0.0)
        self.answers = answers
        self.now_s = 0.0
        self.sent: list[tuple[float, Probe]] = []
        self.news: list[tuple[float, Change]] = []

    def run(self, until_s: float) -> "Driver":
        while self.now_s < until_s - 1e-9:
            self.step()
            self.now_s = round(self.now_s + self.machine.pause_s, 6)
        self.step()
        return self

    def step(self) -> None:
        for probe in self.machine.due(self.now_s):
            self.sent.append((self.now_s, probe))
            if self.answers(probe):
                self.machine.answered(probe)
        self.news += [(self.now_s, change) for change in self.machine.look(self.now_s)]

    def news_of(self, kind: News) -> list[float]:
        return [at_s for at_s, change in self.news if change.news is kind]


def silent(_: Probe) -> bool:
    return False


@pytest.mark.parametrize("misses", [1, 2, 5])
def test_one_that_answers_does_not_fail(misses: int) -> None:
    driver = Driver(settings(ONE, misses=misses)).run(600.0)
    assert driver.news == [] and not driver.machine.failed
    assert len(driver.sent) == 121
    (view,) = driver.machine.views()
    assert view.colour is Colour.GREEN and view.timeout_s == 5.0 * misses


@pytest.mark.parametrize(("interval_s", "misses"), [(5.0, 5), (1.0, 3), (1.0, 1), (0.2, 2), (60.0, 2)])
def test_one_that_is_silent_fails_when_the_countdown_is_over(interval_s: float, misses: int) -> None:
    """And no sooner than as many probes had their time as may be missing."""
    driver = Driver(settings(ONE, interval_s=interval_s, misses=misses)).run(interval_s * 10)
    driver.answers = silent
    last_s = driver.sent[-1][0]
    driver.run(last_s + interval_s * (misses + 1))
    (failed_s,) = driver.news_of(News.FAILED)
    late = 0.5 if misses == 1 else 0.15  # only one that may miss more is asked once more before the end
    assert interval_s * misses <= failed_s - last_s <= interval_s * (misses + late)
    assert driver.news_of(News.SILENT) == [failed_s]
    missed = [at_s for at_s, _ in driver.sent if last_s < at_s < failed_s]
    assert len(missed) == misses


def test_each_answer_resets_the_countdown() -> None:
    driver = Driver(settings(ONE)).run(100.0)
    driver.answers = silent
    driver.run(120.0)
    assert driver.machine.views()[0].remaining_s == pytest.approx(5.0, abs=0.6)
    driver.answers = lambda _: True
    driver.run(124.0)  # asked for the last time with a quarter of an interval left
    assert driver.machine.views()[0].remaining_s > 24 and driver.news == []


def test_an_answer_between_the_last_two_looks_counts() -> None:
    driver = Driver(settings(ONE, interval_s=1.0, misses=3)).run(10.0)
    driver.answers = silent
    last_s = driver.sent[-1][0]
    while driver.machine.pause_s == driver.machine.period_s:
        driver.run(driver.now_s + 0.01)
    assert driver.now_s - last_s == pytest.approx(3.0, abs=0.11) and driver.news == []
    driver.machine.answered(driver.sent[-1][1])
    driver.run(driver.now_s + 1.0)
    assert driver.news == []


def test_it_says_when_it_will_soon_have_failed() -> None:
    driver = Driver(settings(ONE, TWO, interval_s=1.0, misses=3)).run(10.0)
    driver.answers = lambda probe: probe.address == TWO
    driver.run(13.6)
    assert not driver.machine.fails_within(0.5)  # all of them have to
    driver.answers = silent
    driver.run(driver.now_s + 1.4)
    assert not driver.machine.fails_within(0.5)
    driver.run(driver.now_s + 0.9)
    assert driver.machine.fails_within(0.5) and not driver.machine.failed


def test_a_late_answer_counts() -> None:
    driver = Driver(settings(ONE), silent).run(20.0)
    driver.machine.answered(driver.sent[0][1])
    driver.run(40.0)
    assert driver.news == []


def test_colours() -> None:
    """FO-13: yellow from a quarter of the whole on, red when it has failed, green again when it answers."""
    driver = Driver(settings(ONE)).run(100.0)
    driver.answers = silent
    seen: list[tuple[Colour, float]] = []
    while driver.now_s < 130.0:
        driver.run(driver.now_s + 0.5)
        (view,) = driver.machine.views()
        if not seen or seen[-1][0] is not view.colour:
            seen.append((view.colour, view.remaining_s))
    assert [colour for colour, _ in seen] == [Colour.GREEN, Colour.YELLOW, Colour.RED]
    assert seen[1][1] == pytest.approx(25.0 * 0.75, abs=0.6) and seen[2][1] == 0.0
    driver.answers = lambda _: True
    driver.run(136.0)
    assert driver.machine.views()[0].colour is Colour.GREEN


def test_few_misses_do_not_make_one_that_answers_yellow() -> None:
    driver = Driver(settings(ONE, interval_s=1.0, misses=2))
    for _ in range(300):
        driver.run(driver.now_s + 0.1)
        assert driver.machine.views()[0].colour is Colour.GREEN


@pytest.mark.parametrize("fail_when", FailWhen)
def test_all_addresses_or_any(fail_when: FailWhen) -> None:
    """FO-20."""
    driver = Driver(settings(ONE, TWO, fail_when=fail_when), lambda probe: probe.address == TWO).run(60.0)
    assert len(driver.news_of(News.SILENT)) == 1
    assert driver.machine.failed == (fail_when is FailWhen.ANY)
    driver.answers = silent
    driver.run(120.0)
    assert driver.machine.failed and len(driver.news_of(News.FAILED)) == 1
    (change,) = [change for _, change in driver.news if change.news is News.FAILED]
    assert ONE in change.reason and (TWO in change.reason) == (fail_when is FailWhen.ALL)


def test_addresses_that_are_only_taken_are_not_watched() -> None:
    wanted = settings(ONE, TWO)
    first, second = wanted.addresses
    wanted = msgspec.structs.replace(
        wanted, addresses=(first, msgspec.structs.replace(second, monitored=False))
    )
    driver = Driver(wanted, lambda probe: probe.address == TWO).run(60.0)
    assert driver.machine.failed and all(probe.address == ONE for _, probe in driver.sent)


@pytest.mark.parametrize(
    ("answering", "fails"),
    [
        ({AGENT, PING, TCP}, False),
        ({AGENT, TCP}, False),  # one sign of life of the host is enough
        ({PING, TCP}, False),
        ({AGENT, PING}, True),  # its service does not work
        ({TCP}, True),  # somebody answers at the port, and the host does not live
        (set[Check](), True),
    ],
)
def test_one_sign_of_the_host_is_enough_and_each_service_has_to_answer(
    answering: set[Check], fails: bool
) -> None:
    driver = Driver(settings(ONE, checks=(AGENT, PING, TCP)), lambda probe: probe.check in answering).run(
        60.0
    )
    assert driver.machine.failed == fails
    (view,) = driver.machine.views()
    assert (view.remaining_s == 0) == fails and len(view.checks) == 3


def test_a_check_may_have_a_count_of_its_own() -> None:
    """FO-20."""
    slow = Check(CheckKind.TCP, "80", 12)
    driver = Driver(settings(ONE, checks=(AGENT, slow))).run(100.0)
    driver.answers = lambda probe: probe.check == AGENT
    driver.run(130.0)
    (view,) = driver.machine.views()
    assert not driver.machine.failed and view.timeout_s == 60.0 and view.colour is Colour.YELLOW
    assert [check.timeout_s for check in view.checks] == [25.0, 60.0]
    driver.run(165.0)
    assert driver.machine.failed
    driver.answers = lambda probe: probe.check == slow
    driver.run(195.0)
    assert driver.machine.failed and driver.machine.views()[0].timeout_s == 25.0


def test_it_is_told_when_the_source_answers_again() -> None:
    driver = Driver(settings(ONE), silent).run(60.0)
    driver.answers = lambda _: True
    driver.run(70.0)
    assert [change.news for _, change in driver.news] == [News.SILENT, News.FAILED, News.ANSWERS, News.ALIVE]
    assert not driver.machine.failed


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The host of the monitor was suspended, or overloaded."""
    driver = Driver(settings(ONE)).run(100.0)
    for pause_s in (10.0, 26.0, 3600.0, 1e7):
        driver.now_s += pause_s
        driver.run(driver.now_s + 6.0)
        assert driver.news == [], pause_s
    driver.answers = silent
    for _ in range(200):  # looks that are all too late still see, in the end, that nobody answers
        driver.now_s += 4.0
        driver.step()
    assert driver.machine.failed


def test_after_a_pause_there_is_one_probe_and_not_a_burst() -> None:
    driver = Driver(settings(ONE)).run(10.0)
    driver.now_s += 1000.0
    before = len(driver.sent)
    driver.run(driver.now_s + 1.0)
    assert len(driver.sent) == before + 1


def test_what_this_host_could_not_ask_is_no_miss() -> None:
    driver = Driver(settings(ONE)).run(20.0)
    driver.answers = silent

    def run(until_s: float) -> None:
        while driver.now_s < until_s:
            told = len(driver.sent)
            driver.run(driver.now_s + 0.5)
            for _, probe in driver.sent[told:]:
                driver.machine.unable(probe, "Too many open files")

    run(200.0)
    assert driver.news == []
    assert "agent: Too many open files" in driver.machine.views()[0].reason
    driver.run(260.0)
    assert driver.machine.failed


def test_reasons_are_shown() -> None:
    driver = Driver(settings(ONE, checks=(AGENT, TCP)), silent).run(5.0)
    for _, probe in driver.sent:
        driver.machine.silent(probe, f"reason of {probe.check.kind}")
    (view,) = driver.machine.views()
    assert view.reason == "agent: reason of agent; tcp:80: reason of tcp"
    driver.answers = lambda _: True
    driver.run(11.0)
    assert driver.machine.views()[0].reason == ""


def test_an_edit_keeps_what_is_the_same() -> None:
    """FO-11."""
    driver = Driver(settings(ONE, TWO), silent).run(20.0)
    one, two = settings(ONE, TWO).addresses
    changed = msgspec.structs.replace(two, interval_s=1.0)
    driver.machine.edit(msgspec.structs.replace(settings(), addresses=(one, changed)), driver.now_s)
    first, second = driver.machine.views()
    assert first.remaining_s == pytest.approx(5.0, abs=0.6)
    assert second.remaining_s == 5.0 == second.timeout_s  # begins anew
    driver.run(23.0)
    driver.machine.edit(settings(ONE), driver.now_s)
    driver.run(27.0)
    assert driver.machine.failed and len(driver.machine.views()) == 1


def test_an_edit_to_less_time_does_not_fail_at_once() -> None:
    driver = Driver(settings(ONE)).run(102.0)
    driver.machine.edit(settings(ONE, interval_s=0.5, misses=2), driver.now_s)
    driver.run(130.0)
    assert driver.news == []


def test_answers_to_what_is_no_longer_asked_are_ignored() -> None:
    driver = Driver(settings(ONE), silent).run(20.0)
    probe = driver.sent[0][1]
    driver.machine.edit(settings(TWO), driver.now_s)
    for tell in (
        driver.machine.answered,
        lambda p: driver.machine.silent(p, ""),
        lambda p: driver.machine.unable(p, ""),
    ):
        tell(probe)


def test_looks_are_often_enough_for_the_shortest_interval() -> None:
    assert SourceMonitor(settings(ONE), 0.0).period_s == limits.MONITOR_LOOK_MAX_S
    assert SourceMonitor(settings(ONE, interval_s=0.2), 0.0).period_s == pytest.approx(0.02)
