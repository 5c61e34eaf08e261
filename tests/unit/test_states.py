"""The tables of states: complete, reachable, and what follows from other facts."""

import itertools
from enum import StrEnum

import pytest

from replicator import states
from replicator.states import (
    APPLY,
    DATA,
    MIRROR,
    REPLICATION,
    TRANSMIT,
    ApplyEvent,
    DataEvent,
    ForbiddenStepError,
    Machine,
    MirrorEvent,
    ReplicationEvent,
    TransmitEvent,
    connection_state,
    replication_status,
    shown_data_state,
    shown_target_status,
)
from replicator.status import (
    ConnectionState,
    MirrorStatus,
    ReplicationStatus,
    TargetDataState,
    TargetStatus,
    TransmitMode,
)

# (table, events, states, first states, states that other releases reach or that are derived)
TABLES = {
    "transmit": (TRANSMIT, TransmitEvent, TransmitMode, {TransmitMode.STARTED}, set[TransmitMode]()),
    "mirror": (
        MIRROR,
        MirrorEvent,
        MirrorStatus,
        {MirrorStatus.MIRRORING},
        {MirrorStatus.RESTORING, MirrorStatus.VERIFYING, MirrorStatus.REMOVING_ORPHANS},
    ),
    "data": (
        DATA,
        DataEvent,
        TargetDataState,
        {TargetDataState.MIRROR_REQUIRED},
        set(),
    ),
    "apply": (APPLY, ApplyEvent, TargetStatus, {TargetStatus.OK}, {TargetStatus.NOT_LOADED}),
    "replication": (
        REPLICATION,
        ReplicationEvent,
        ReplicationStatus,
        {ReplicationStatus.READY},
        {ReplicationStatus.REPLICATING, ReplicationStatus.OUT_OF_MEMORY},
    ),
}

# Events that a state cannot meet: whoever adds a state or an event has to decide for each pair.
FORBIDDEN: dict[str, set[tuple[StrEnum, StrEnum]]] = {
    "transmit": {
        (mode, event)
        for mode in (TransmitMode.PAUSED, TransmitMode.STOPPED, TransmitMode.ERROR)
        for event in (TransmitEvent.BEGIN, TransmitEvent.WAIT)
    },
    "mirror": {
        *((s, MirrorEvent.RESUME) for s in (MirrorStatus.MIRRORING, MirrorStatus.WAITING)),
        *(
            (s, MirrorEvent.TAKEN_UP)
            for s in (MirrorStatus.MIRRORING, MirrorStatus.WAITING, MirrorStatus.PAUSED)
        ),
        *(
            (MirrorStatus.STOPPED, e)
            for e in (MirrorEvent.ALL_SENT, MirrorEvent.MORE, MirrorEvent.PAUSE, MirrorEvent.RESUME)
        ),
        *((MirrorStatus.IDLE, e) for e in MirrorEvent if e is not MirrorEvent.TAKEN_UP),
    },
    "data": {
        (TargetDataState.OK, DataEvent.MIRROR_INCOMPLETE),
        (TargetDataState.MIRRORING, DataEvent.USED),
        (TargetDataState.MIRROR_REQUIRED, DataEvent.USED),
    },
    "apply": {
        *((TargetStatus.OK, e) for e in (ApplyEvent.HELD, ApplyEvent.RESUME, ApplyEvent.WORKS)),
        *((TargetStatus.RETRYING, e) for e in (ApplyEvent.HELD, ApplyEvent.RESUME)),
        *((TargetStatus.PAUSE_PENDING, e) for e in (ApplyEvent.PAUSE, ApplyEvent.WORKS)),
        *((TargetStatus.PAUSED, e) for e in (ApplyEvent.PAUSE, ApplyEvent.FAIL, ApplyEvent.WORKS)),
    },
    "replication": set(),
}

every_table = pytest.mark.parametrize("name", TABLES)


@every_table
def test_no_pair_is_forgotten(name: str) -> None:
    table, events, all_states, _, elsewhere = TABLES[name]
    known = set(all_states) - elsewhere
    pairs = set(itertools.product(known, events))
    given = {pair for pair in table if pair[0] in known}
    assert given | FORBIDDEN[name] == pairs
    assert not given & FORBIDDEN[name]


@every_table
def test_every_state_is_reached_and_can_be_left(name: str) -> None:
    table, _, all_states, first, elsewhere = TABLES[name]
    reached = set(first)
    while more := {to for (state, _), to in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(all_states) - elsewhere
    for state in reached - {MirrorStatus.STOPPED}:  # how a run has ended
        assert any(to is not state for (at, _), to in table.items() if at is state)


def test_only_a_complete_mirror_makes_a_copy_good() -> None:
    ways = {pair for pair, to in DATA.items() if to is TargetDataState.OK is not pair[0]}
    assert ways == {(TargetDataState.MIRRORING, DataEvent.MIRROR_COMPLETE)}


def test_a_paused_target_leaves_only_by_resume() -> None:
    ways = {e for (s, e), to in APPLY.items() if s is TargetStatus.PAUSED and to is not s}
    assert ways == {ApplyEvent.RESUME}


def test_a_machine_tells_its_steps() -> None:
    told: list[tuple[object, ...]] = []
    machine = Machine(APPLY, TargetStatus.OK, lambda *step: told.append(step))
    machine.happen(ApplyEvent.FAIL, "full")
    machine.happen(ApplyEvent.FAIL, "full")  # nothing new
    machine.happen(ApplyEvent.FAIL, "read-only")
    machine.happen(ApplyEvent.WORKS)
    assert [(before, after, reason) for before, after, _, reason in told] == [
        ("OK", "Retrying", "full"),
        ("Retrying", "Retrying", "read-only"),
        ("Retrying", "OK", ""),
    ]


def test_a_forbidden_step_is_an_error_here_and_a_note_in_production(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(APPLY, TargetStatus.PAUSED)
    with pytest.raises(ForbiddenStepError, match="Paused"):
        machine.happen(ApplyEvent.WORKS)
    monkeypatch.setattr(states, "forbidden", states._note)
    assert machine.happen(ApplyEvent.WORKS) is TargetStatus.PAUSED
    assert "forbidden step" in capsys.readouterr().err


# --- what follows by itself ---


@pytest.mark.parametrize("transmit", TransmitMode)
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("failed", [False, True])
def test_connection_state(transmit: TransmitMode, connected: bool, failed: bool) -> None:
    state = connection_state(transmit, connected=connected, failed=failed)
    held = connection_state(transmit, connected=connected, failed=failed, held=True)
    assert held is (ConnectionState.PAUSED if state is ConnectionState.STARTED else state)
    if transmit in (TransmitMode.ERROR, TransmitMode.STOPPED, TransmitMode.SCHEDULED):
        assert state == transmit
    elif connected:
        assert state == ("Paused" if transmit is TransmitMode.PAUSED else "Started")
    elif failed:
        assert state is ConnectionState.ERROR
    else:
        assert state is ConnectionState.STOPPED


@pytest.mark.parametrize("base", [s for s in ReplicationStatus if any(s is at for at, _ in REPLICATION)])
@pytest.mark.parametrize(("connected", "queued", "full"), list(itertools.product([False, True], repeat=3)))
def test_replication_status(base: ReplicationStatus, connected: bool, queued: bool, full: bool) -> None:
    status = replication_status(base, connected=connected, queued=queued, out_of_memory=full)
    if base is ReplicationStatus.STOPPED:
        assert status is base
    elif full:
        assert status is ReplicationStatus.OUT_OF_MEMORY
    elif base is ReplicationStatus.PENDING:
        assert status is base
    else:
        assert status == ("Replicating" if connected and queued else "Ready")


@pytest.mark.parametrize("reported", TargetStatus)
def test_target_status(reported: TargetStatus) -> None:
    assert shown_target_status(reported, connected=True) is reported
    assert shown_target_status(reported, connected=False) is TargetStatus.NOT_LOADED


@pytest.mark.parametrize("reported", TargetDataState)
def test_data_state(reported: TargetDataState) -> None:
    assert shown_data_state(reported, mirror_runs=False) is reported
    assert shown_data_state(reported, mirror_runs=True) is TargetDataState.MIRRORING
