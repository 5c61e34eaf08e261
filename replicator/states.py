"""The states of a connection: tables of what may follow what, and functions for what follows by itself.

Each dimension that has a memory of its own is a table (state, event) → state; a `Machine` holds the present
one. What can be told from other facts is not stored: `connection_state`, `replication_status`,
`shown_target_status` and `shown_data_state` derive it. Nothing else in the agent decides what a state is.
Names and meanings: features CS-01…CS-07.
"""

import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from replicator.status import (
    ConnectionState,
    MirrorStatus,
    ReplicationStatus,
    TargetDataState,
    TargetStatus,
    TransmitMode,
    VerifyPhase,
)

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class TransmitEvent(StrEnum):
    """What moves the transmit mode (CS-05)."""

    START = "transmission started"
    STOP = "transmission stopped"
    PAUSE = "transmission paused"
    RESUME = "transmission resumed"
    BEGIN = "a scheduled session begins"
    WAIT = "waits for its schedule"
    FAIL = "needs a person"  # trying again by itself cannot help


class MirrorEvent(StrEnum):
    """What moves one run of a mirror (CS-06)."""

    ALL_SENT = "everything is sent"
    MORE = "more to bring"
    PAUSE = "mirror paused"
    RESUME = "mirror resumed"
    STOP = "mirror stopped"
    END = "mirror ended"
    TAKEN_UP = "its end has to be said again"


COMPLETE = "complete"
"""How a mirror ended that brought everything; what a story gives as the reason of its end."""


class DataEvent(StrEnum):
    """What moves a target's data state (CS-02). It is kept on the target."""

    MIRROR_BEGINS = "mirror begins"
    MIRROR_COMPLETE = "mirror complete"
    MIRROR_INCOMPLETE = "mirror ended before it was complete"
    LOSS = "an operation is missing"
    OTHER_PLACE = "other journals or places"
    POWER_LOST = "the target may have lost what it had"
    USED = "the copy was taken into use"
    FORCED = "the source was chosen to survive"
    DRIFT = "others have changed the copy"
    PROMOTED = "the copy was promoted"


SUPERSEDED = "another agent owns the copy"
"""Of a data state, as its source knows it: that of the copy stays what it is."""

OWNED = "the copy is this source's again"


class ApplyEvent(StrEnum):
    """What moves a target's status (CS-03). It is kept on the target."""

    PAUSE = "target paused"
    HELD = "the operation under way is finished"
    RESUME = "target resumed"
    FAIL = "an operation fails"
    WORKS = "it works again"


class VerifyEvent(StrEnum):
    """What moves one verification."""

    PAUSE = "verification paused"
    RESUME = "verification resumed"
    STOP = "verification stopped"
    REPAIR = "what differs is brought"
    COMPARE = "what differed is brought"
    END = "everything is compared"


class ReplicationEvent(StrEnum):
    """What moves replication as such (CS-07), whatever there is to send."""

    START = "replication started"
    STOP = "replication stopped"
    FAIL = "only a mirror can repair it"
    MIRROR_BEGINS = "mirror begins"


Table = Mapping[tuple[S, E], S]


def _transmit() -> Table[TransmitMode, TransmitEvent]:
    """Every command is accepted in every mode: who asks twice gets what he asked for. A schedule is not."""
    after = {
        TransmitEvent.START: TransmitMode.STARTED,
        TransmitEvent.STOP: TransmitMode.STOPPED,
        TransmitEvent.PAUSE: TransmitMode.PAUSED,
        TransmitEvent.RESUME: TransmitMode.STARTED,
        TransmitEvent.FAIL: TransmitMode.ERROR,
        TransmitEvent.BEGIN: TransmitMode.STARTED,
        TransmitEvent.WAIT: TransmitMode.SCHEDULED,
    }
    # What a person has stopped or paused, or has to look at, no schedule starts.
    by_schedule = (TransmitEvent.BEGIN, TransmitEvent.WAIT)
    flowing = (TransmitMode.STARTED, TransmitMode.SCHEDULED)
    return {
        (mode, event): to
        for mode in TransmitMode
        for event, to in after.items()
        if event not in by_schedule or mode in flowing
    }


TRANSMIT: Table[TransmitMode, TransmitEvent] = _transmit()

_M, _ME = MirrorStatus, MirrorEvent
MIRROR: Table[MirrorStatus, MirrorEvent] = {
    # A run begins as Mirroring; between runs a connection is Idle.
    (_M.MIRRORING, _ME.ALL_SENT): _M.WAITING,
    (_M.MIRRORING, _ME.MORE): _M.MIRRORING,
    (_M.MIRRORING, _ME.PAUSE): _M.PAUSED,
    (_M.MIRRORING, _ME.STOP): _M.STOPPED,
    (_M.MIRRORING, _ME.END): _M.IDLE,
    (_M.WAITING, _ME.ALL_SENT): _M.WAITING,
    (_M.WAITING, _ME.MORE): _M.MIRRORING,
    (_M.WAITING, _ME.PAUSE): _M.PAUSED,
    (_M.WAITING, _ME.STOP): _M.STOPPED,
    (_M.WAITING, _ME.END): _M.IDLE,
    # What was read before goes on its way, and may be the last.
    (_M.PAUSED, _ME.ALL_SENT): _M.PAUSED,
    (_M.PAUSED, _ME.MORE): _M.PAUSED,
    (_M.PAUSED, _ME.PAUSE): _M.PAUSED,
    (_M.PAUSED, _ME.RESUME): _M.MIRRORING,
    (_M.PAUSED, _ME.STOP): _M.STOPPED,
    (_M.PAUSED, _ME.END): _M.IDLE,
    # Until its end is in the stream; the result of the run then stays Stopped.
    (_M.STOPPED, _ME.STOP): _M.STOPPED,
    (_M.STOPPED, _ME.END): _M.STOPPED,
    # The target has not heard of the end: the session broke off just then.
    (_M.IDLE, _ME.TAKEN_UP): _M.WAITING,
    (_M.STOPPED, _ME.TAKEN_UP): _M.STOPPED,
}
"""Of one run. A stopped one is not paused or resumed any more; one that has ended is only taken up again."""

_D, _DE = TargetDataState, DataEvent
DATA: Table[TargetDataState, DataEvent] = {
    (_D.OK, _DE.MIRROR_BEGINS): _D.MIRRORING,
    (_D.OK, _DE.MIRROR_COMPLETE): _D.OK,  # applied again: a kill came before that was noted
    (_D.OK, _DE.LOSS): _D.MIRROR_REQUIRED,
    (_D.OK, _DE.OTHER_PLACE): _D.MIRROR_REQUIRED,
    (_D.OK, _DE.POWER_LOST): _D.MIRROR_REQUIRED,
    (_D.OK, _DE.DRIFT): _D.MIRROR_REQUIRED,
    (_D.MIRRORING, _DE.MIRROR_BEGINS): _D.MIRRORING,
    (_D.MIRRORING, _DE.MIRROR_COMPLETE): _D.OK,
    (_D.MIRRORING, _DE.MIRROR_INCOMPLETE): _D.MIRROR_REQUIRED,
    (_D.MIRRORING, _DE.LOSS): _D.MIRRORING,  # the mirror brings it
    (_D.MIRRORING, _DE.OTHER_PLACE): _D.MIRROR_REQUIRED,
    (_D.MIRRORING, _DE.POWER_LOST): _D.MIRROR_REQUIRED,
    (_D.MIRRORING, _DE.DRIFT): _D.MIRRORING,  # the mirror brings it
    (_D.MIRROR_REQUIRED, _DE.MIRROR_BEGINS): _D.MIRRORING,
    # Of a mirror that began before the places became others: it was not of all that is there now.
    (_D.MIRROR_REQUIRED, _DE.MIRROR_COMPLETE): _D.MIRROR_REQUIRED,
    (_D.MIRROR_REQUIRED, _DE.MIRROR_INCOMPLETE): _D.MIRROR_REQUIRED,
    (_D.MIRROR_REQUIRED, _DE.LOSS): _D.MIRROR_REQUIRED,
    (_D.MIRROR_REQUIRED, _DE.OTHER_PLACE): _D.MIRROR_REQUIRED,
    (_D.MIRROR_REQUIRED, _DE.POWER_LOST): _D.MIRROR_REQUIRED,
    (_D.OK, _DE.USED): _D.RESTORE_REQUIRED,
    **{(state, _DE.PROMOTED): _D.RESTORE_REQUIRED for state in _D},  # whatever it was, it counts now
    # What was on its way when the copy was taken into use says nothing of what is there now.
    **{(_D.RESTORE_REQUIRED, event): _D.RESTORE_REQUIRED for event in _DE if event is not _DE.FORCED},
    **{(state, _DE.FORCED): _D.MIRRORING for state in _D},
    (_D.MIRROR_REQUIRED, _DE.DRIFT): _D.MIRROR_REQUIRED,
}
"""A copy becomes OK by a complete mirror, and by nothing else. One that was taken into use stays so until a
person has chosen the source.
"""

_V, _VE = VerifyPhase, VerifyEvent
VERIFY: Table[VerifyPhase, VerifyEvent] = {
    (_V.RUNNING, _VE.PAUSE): _V.PAUSED,
    (_V.RUNNING, _VE.STOP): _V.STOPPED,
    (_V.RUNNING, _VE.REPAIR): _V.REPAIRING,
    (_V.RUNNING, _VE.END): _V.COMPLETE,
    (_V.PAUSED, _VE.RESUME): _V.RUNNING,
    (_V.PAUSED, _VE.STOP): _V.STOPPED,
    (_V.REPAIRING, _VE.STOP): _V.STOPPED,
    (_V.REPAIRING, _VE.COMPARE): _V.RUNNING,
    (_V.REPAIRING, _VE.END): _V.COMPLETE,
}
"""Of one verification. What it brings is a run of a mirror, which has states of its own."""

_T, _AE = TargetStatus, ApplyEvent
APPLY: Table[TargetStatus, ApplyEvent] = {
    (_T.OK, _AE.PAUSE): _T.PAUSE_PENDING,
    (_T.OK, _AE.FAIL): _T.RETRYING,
    (_T.RETRYING, _AE.PAUSE): _T.PAUSE_PENDING,
    (_T.RETRYING, _AE.FAIL): _T.RETRYING,
    (_T.RETRYING, _AE.WORKS): _T.OK,
    (_T.PAUSE_PENDING, _AE.HELD): _T.PAUSED,
    (_T.PAUSE_PENDING, _AE.RESUME): _T.OK,
    (_T.PAUSE_PENDING, _AE.FAIL): _T.PAUSE_PENDING,
    (_T.PAUSED, _AE.HELD): _T.PAUSED,
    (_T.PAUSED, _AE.RESUME): _T.OK,
}
"""PT-01: nothing fails and nothing works while paused, because nothing is tried."""

_R, _RE = ReplicationStatus, ReplicationEvent
REPLICATION: Table[ReplicationStatus, ReplicationEvent] = {
    (_R.READY, _RE.START): _R.READY,
    (_R.READY, _RE.STOP): _R.STOPPED,
    (_R.READY, _RE.FAIL): _R.PENDING,
    (_R.READY, _RE.MIRROR_BEGINS): _R.READY,
    (_R.PENDING, _RE.START): _R.PENDING,
    (_R.PENDING, _RE.STOP): _R.STOPPED,
    (_R.PENDING, _RE.FAIL): _R.PENDING,
    (_R.PENDING, _RE.MIRROR_BEGINS): _R.READY,
    (_R.STOPPED, _RE.START): _R.READY,
    (_R.STOPPED, _RE.STOP): _R.STOPPED,
    (_R.STOPPED, _RE.FAIL): _R.STOPPED,
    (_R.STOPPED, _RE.MIRROR_BEGINS): _R.STOPPED,
}
"""Ready stands for Replicating as well, which is Ready with something to send (`replication_status`)."""


class ForbiddenStepError(Exception):
    """An event came in a state that does not know it: a bug."""


def _note(text: str) -> None:
    print(f"forbidden step: {text}", file=sys.stderr, flush=True)


forbidden: Callable[[str], None] = _note
"""What becomes of a forbidden step. In production it is logged and the state stays; tests raise."""


def step(table: Table[S, E], state: S, event: E) -> S:
    """The state that follows; a forbidden step leads nowhere."""
    after = table.get((state, event))
    if after is None:
        forbidden(f"{type(event).__name__} {event!r} in {type(state).__name__} {state!r}")
        return state
    return after


class Machine(Generic[S, E]):
    """The present state of one dimension. `moved(before, after, event, reason)` hears of each step that
    leads elsewhere, or to the same state for another reason.
    """

    def __init__(
        self, table: Table[S, E], state: S, moved: Callable[[S, S, E, str], None] | None = None
    ) -> None:
        self.state = state
        self.reason = ""
        self._table = table
        self._moved = moved

    def happen(self, event: E, reason: str = "") -> S:
        """Take the step that this event means here. Returns the state it leads to."""
        before = self.state
        if (before, event) not in self._table:
            return step(self._table, before, event)
        after = self._table[before, event]
        changed = after is not before or reason != self.reason
        self.state, self.reason = after, reason
        if changed and self._moved is not None:
            self._moved(before, after, event, reason)
        return after


# --- what follows by itself ---


def connection_state(
    transmit: TransmitMode, *, connected: bool, failed: bool, held: bool = False
) -> ConnectionState:
    """CS-01. `failed`: the last attempt, or the last session, ended with an error. `held`: the target's queue
    is full, and it has asked to wait (AD-02).
    """
    if transmit is TransmitMode.ERROR:
        return ConnectionState.ERROR
    if transmit is TransmitMode.STOPPED:
        return ConnectionState.STOPPED
    if transmit is TransmitMode.SCHEDULED:
        return ConnectionState.SCHEDULED
    if connected:
        waits = held or transmit is TransmitMode.PAUSED
        return ConnectionState.PAUSED if waits else ConnectionState.STARTED
    if failed:
        return ConnectionState.ERROR
    return ConnectionState.STOPPED


def replication_status(
    replication: ReplicationStatus, *, connected: bool, queued: bool, out_of_memory: bool
) -> ReplicationStatus:
    """CS-07. `replication`: of the table; `out_of_memory`: the queue can take nothing at the moment."""
    if replication is ReplicationStatus.STOPPED:
        return replication
    if out_of_memory:
        return ReplicationStatus.OUT_OF_MEMORY
    if replication is ReplicationStatus.PENDING:
        return replication
    return ReplicationStatus.REPLICATING if queued and connected else ReplicationStatus.READY


def shown_target_status(reported: TargetStatus, *, connected: bool) -> TargetStatus:
    """CS-03 as a source knows it: what the target said last, while somebody is there to say it."""
    return reported if connected else TargetStatus.NOT_LOADED


def shown_data_state(
    reported: TargetDataState, *, mirror_runs: bool, superseded: bool = False
) -> TargetDataState:
    """CS-02 as a source knows it: a mirror that is to run counts before the target has heard of it; a copy
    that another agent owns is to be brought home, whatever its state.
    """
    if superseded:
        return TargetDataState.RESTORE_REQUIRED
    return TargetDataState.MIRRORING if mirror_runs else reported
