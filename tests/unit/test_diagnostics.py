"""What follows from what a connection to nowhere has measured."""

import pytest

from replicator.addresses import parse_destination
from replicator.diagnostics import HOURS_KEPT, MINUTES_KEPT, Amount, Measured, is_nowhere, report

T0 = 1_796_083_200.0  # a full hour


def test_rates_and_queues() -> None:
    measured = Measured(since=T0)
    for minute in range(48 * 60):  # 1 MB a minute, and ten times that from 30:20 to 31:20
        measured.count(T0 + 60 * minute, 10_000_000 if 30 * 60 + 20 <= minute < 31 * 60 + 20 else 1_000_000)
    measured.count(T0 + 60 * (30 * 60 + 40), 50_000_000)
    found = report(measured, T0 + 48 * 3600)
    assert found.average_bytes_per_s == pytest.approx((48 * 60 + 9 * 60 + 50) * 10**6 / (48 * 3600))
    assert found.peak_minute_bytes_per_s == 60_000_000 / 60 and found.peak_minute == T0 + 60 * (30 * 60 + 40)
    assert found.queue_hour_bytes == 650_000_000 and found.peak_hour == T0 + 60 * (30 * 60 + 20)
    assert found.peak_hour_bytes_per_s == 650_000_000 / 3600
    assert found.queue_day_bytes == (24 * 60 + 9 * 60 + 50) * 10**6
    assert found.extrapolated == ()
    carries = {link.link: link.carries for link in found.links}
    assert carries["256 kbit/s"] == "average" and carries["T1"] == "peak hour"
    assert carries["10 Mbit Ethernet"] == "peak minute"


def test_an_idle_hour_between_two_is_no_part_of_a_day_of_load() -> None:
    measured = Measured(since=T0)
    for hour in (0, 23, 24, 60):
        measured.count(T0 + hour * 3600, 1000)
    assert report(measured, T0 + 61 * 3600).queue_day_bytes == 2000


def test_what_was_not_observed_for_so_long_is_the_average() -> None:
    measured = Measured(since=T0)
    measured.count(T0 + 10, 6_000)
    found = report(measured, T0 + 60)
    assert found.extrapolated == ("hour", "day")
    assert (found.queue_hour_bytes, found.queue_day_bytes) == (360_000, 8_640_000)
    assert found.peak_hour_bytes_per_s == found.peak_minute_bytes_per_s == 100


def test_time_of_a_mirror() -> None:
    measured = Measured(since=T0, mirror=Amount(bytes=1_250_000, sampled_bytes=1000, compressed_bytes=400))
    ethernet = {"10 Mbit Ethernet": 10_000_000}
    (link,) = report(measured, T0 + 9, ethernet).links
    assert link.mirror_s is None and link.mirror_compressed_s is None
    measured.mirror_complete = True
    (link,) = report(measured, T0 + 9, ethernet).links
    assert link.mirror_s == 1.0 and link.mirror_compressed_s == pytest.approx(0.4)


def test_bounded() -> None:
    measured = Measured(since=T0)
    for minute in range(0, 40 * 24 * 60, 5):
        measured.count(T0 + 60 * minute, 1)
    assert len(measured.minutes) <= MINUTES_KEPT and len(measured.hours) <= HOURS_KEPT
    assert max(measured.hours) - min(measured.hours) <= HOURS_KEPT


def test_its_name() -> None:
    assert is_nowhere("diagnostics") and not is_nowhere("diagnostics.example.org")
    destination = parse_destination("Diagnostics")
    assert destination.address is not None and is_nowhere(destination.address.host)
