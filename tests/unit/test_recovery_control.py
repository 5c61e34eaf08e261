"""What an agent decides about recoveries, and what it says of them."""

import pytest

from replicator import limits
from replicator.agent.recovery_control import Activity
from replicator.mirror.mirroring import DIFFERENCE, FULL, RECOVERY, MirrorRun
from replicator.sender.recovery_status import recovery_text
from replicator.states import MirrorEvent


def run(kind: str, *events: MirrorEvent, some_paths: bool = False) -> MirrorRun:
    made = MirrorRun("id", kind, False, 0, some_paths=some_paths)
    for event in events:
        made.happen(event)
    return made


@pytest.mark.parametrize(
    ("now", "pending", "automatic", "share", "text"),
    [
        (None, False, True, 1.0, ""),
        (None, False, False, 1.0, ""),
        (None, True, True, 1.0, "Recovery pending, recovery enabled"),
        (None, True, False, 1.0, "Recovery pending"),
        (run(RECOVERY, some_paths=True), False, True, 1.0, "Log recovery running, recovery enabled"),
        (run(RECOVERY), True, True, 0.5, "Full recovery running, recovery enabled"),
        (run(RECOVERY, MirrorEvent.PAUSE, some_paths=True), False, False, 1.0, "Log recovery paused"),
        (run(RECOVERY, MirrorEvent.PAUSE), False, False, 1.0, "Full recovery paused"),
        (
            run(RECOVERY, MirrorEvent.PAUSE, some_paths=True),
            False,
            True,
            0.0,
            "Log recovery paused, recovery enabled",
        ),
        (run(RECOVERY), False, True, 0.0, "Full recovery suspended, recovery enabled"),
        (run(RECOVERY, MirrorEvent.STOP), False, False, 0.0, "Full recovery is being stopped"),
        (run(FULL), False, True, 1.0, "Full mirror running"),
        (run(DIFFERENCE, MirrorEvent.PAUSE), False, False, 1.0, "Difference mirror paused"),
    ],
)
def test_texts(now: MirrorRun | None, pending: bool, automatic: bool, share: float, text: str) -> None:
    assert recovery_text(now, pending=pending, automatic=automatic, share=share) == text


def test_activity() -> None:
    activity = Activity()
    activity.look(0.0, {"a": 1000, "b": 0})
    assert not activity.busy  # nothing to compare with
    activity.look(1.0, {"a": 1010, "b": 10})
    assert not activity.busy
    activity.look(2.0, {"a": 1040, "b": 30})
    assert activity.busy  # 50 of both
    activity.look(2.1, {"a": 1040, "b": 30})
    assert activity.busy  # too short a time to say anything
    activity.look(4.0, {"a": 1040, "b": 30})
    assert activity.busy  # it has only just ended
    activity.look(2.0 + limits.RECOVERY_BUSY_S, {"a": 1040, "b": 30})
    assert not activity.busy
    activity.look(6.0, {"a": (1 << 40) + 5, "b": 30})  # a new row
    assert not activity.busy
    activity.look(7.0, {"a": (1 << 40) + 500, "c": 10_000})  # and a new journal
    assert activity.busy
    activity.look(1000.0, {"a": 1 << 39, "b": 30})  # nobody had looked for long
    activity.look(1001.0, {"a": 1 << 39, "b": 30})
    assert not activity.busy
