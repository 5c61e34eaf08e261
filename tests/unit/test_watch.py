"""Which changes of state become events."""

from typing import Any

import msgspec
import pytest

from replicator.agent.watch import connection_changes
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    Lag,
    MirrorProgress,
    MirrorStatus,
    ScheduleStatus,
    TargetDataState,
    TargetStatus,
    TransmitMode,
    VerifyPhase,
    VerifyProgress,
)
from replicator.transmission_schedule import BY_HAND

GOOD = ConnectionStatus(
    id=3,
    uuid="u",
    repset="web",
    target="b:1500",
    state=ConnectionState.STARTED,
    target_data_state=TargetDataState.OK,
    target_status=TargetStatus.OK,
)


def said(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    one, two = (msgspec.structs.replace(GOOD, **changes) for changes in (before, now))
    return [type_.text.format(**fields) for type_, fields in connection_changes(one, two)]


ERROR = {"state": ConnectionState.ERROR, "state_reason": "no route"}
MIRRORING = {"mirror_status": MirrorStatus.MIRRORING, "target_data_state": TargetDataState.MIRRORING}
HELD = {**MIRRORING, "mirror": MirrorProgress(held=True)}
COMPLETE = {"mirror": MirrorProgress(complete=True)}
LATE = {"lag": Lag(level="warning", recovery_point_seconds=75.0)}
VERY_LATE = {"lag": Lag(level="error", recovery_point_seconds=700.0)}
RETRYING = {"target_status": TargetStatus.RETRYING, "target_status_reason": "/copy/f: denied"}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, ERROR, "lost: no route"),
        (ERROR, {}, "connected again"),
        # What the target says of its data may come later than the end of the mirror.
        (MIRRORING, {**COMPLETE, "target_data_state": TargetDataState.MIRRORING}, "mirror completed"),
        (MIRRORING, {}, "before it was complete"),
        (MIRRORING, HELD, "the mirror waits: b:1500 puts nothing in place"),
        (HELD, MIRRORING, "the mirror goes on"),
        ({}, RETRYING, "tries again: /copy/f: denied"),
        (RETRYING, {}, "applies again"),
        ({}, LATE, "75 s of changes have not reached b:1500"),
        (LATE, VERY_LATE, "700 s of changes"),
        (VERY_LATE, {}, "good again"),
        ({}, {"target_queue_full": True}, "the queue of b:1500 is full"),
        ({"target_queue_full": True}, {}, "the queue of b:1500 has room again"),
    ],
)
def test_changes_are_said(before: dict[str, Any], now: dict[str, Any], words: str) -> None:
    (text,) = said(before, now)
    assert words in text and "connection 3" in text


@pytest.mark.parametrize("same", [{}, ERROR, MIRRORING, RETRYING, LATE])
def test_what_stays_is_not_said_again(same: dict[str, Any]) -> None:
    assert said(same, same) == []
    assert said({}, {"state": ConnectionState.PAUSED}) == []


def test_verifications_are_events() -> None:
    running = msgspec.structs.replace(GOOD, verify=VerifyProgress(run="1", phase=VerifyPhase.RUNNING))
    for background, different, ids in (
        (False, 0, [4062]),
        (False, 2, [9097]),
        (True, 0, []),
        (True, 2, [9097]),
    ):
        report = VerifyProgress(
            run="1", phase=VerifyPhase.COMPLETE, background=background, different_files=different
        )
        assert [
            change[0].id
            for change in connection_changes(running, msgspec.structs.replace(GOOD, verify=report))
        ] == ids
    assert not list(
        connection_changes(
            msgspec.structs.replace(GOOD, verify=report), msgspec.structs.replace(GOOD, verify=report)
        )
    )
    # The schedule's are told when they begin, also if they are seen too late; those by hand were told.
    report = VerifyProgress(run="2", phase=VerifyPhase.COMPLETE, scheduled=True, checksum=True)
    begun = list(connection_changes(running, msgspec.structs.replace(GOOD, verify=report)))
    assert [change[0].id for change in begun] == [4058, 4062]
    assert "by schedule (checksum)" in begun[0][0].text.format(**begun[0][1])
    # A verification that ends is no mirror that ends.
    verifying = msgspec.structs.replace(GOOD, mirror_status=MirrorStatus.VERIFYING)
    assert not list(
        connection_changes(verifying, msgspec.structs.replace(GOOD, mirror_status=MirrorStatus.IDLE))
    )


def test_a_session_of_a_schedule_is_told_with_its_reason() -> None:
    scheduled = {"transmit_mode": TransmitMode.SCHEDULED}
    session = {"schedule": ScheduleStatus(session_began=5.0, session_why="every 30 minutes")}
    over = {**scheduled, "schedule": ScheduleStatus(last_end="the window has closed")}
    assert said(scheduled, session) == ["connection 3: transmission started: every 30 minutes"]
    assert said(session, over) == ["connection 3: transmission stopped: the window has closed"]
    by_hand = {"schedule": ScheduleStatus(session_began=5.0, session_why=BY_HAND)}
    assert said(scheduled, by_hand) == []  # who did it was told
