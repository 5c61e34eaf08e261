"""Who may stand at the listening port, and how much of what strangers do is logged."""

import pytest

from replicator import limits
from replicator.agent.door import Door, RefusalLog, neighbourhood


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),  # one host has all of a /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (neighbourhood(one) == neighbourhood(other)) is same


def test_one_address_cannot_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GREETINGS_PER_ADDRESS", 2)
    door = Door()
    assert door.enter("192.0.2.1") and door.enter("192.0.2.1") and not door.enter("192.0.2.1")
    assert door.enter("192.0.2.2")
    door.leave("192.0.2.1")
    assert door.enter("192.0.2.1")
    for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        door.leave(host)
    assert not door._standing


def test_what_strangers_do_is_logged_in_part_and_counted_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REFUSALS_LOGGED", 2)
    monkeypatch.setattr(limits, "REFUSALS_REMEMBERED", 3)
    log = RefusalLog()
    told = [log.note("192.0.2.1", "why", now_s) for now_s in range(100)]
    assert [number for number, refusal in enumerate(told) if refusal is not None] == [0, 1, 60, 61]
    assert sum(1 + refusal.unlogged for refusal in told if refusal is not None) == 62
    assert log.note("192.0.2.2", "why", 0.0) is not None
    for number in range(10):
        log.note(f"192.0.2.{number + 10}", "why", 0.0)
    assert len(log._seen) == 3
