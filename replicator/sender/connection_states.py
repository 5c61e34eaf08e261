"""The states of one connection as its sender knows them. Each step becomes a line of the story.

What is stored is the transmit mode and whether replication runs, which outlive the process, and three facts:
is there a session, why did the last one fail, what did the target say of itself. The rest follows
(`states.py`).
"""

import sys
from collections.abc import Callable

from replicator.sender.sender_state import SenderStateFile
from replicator.sender.story import Story
from replicator.states import (
    COMPLETE,
    OWNED,
    REPLICATION,
    SUPERSEDED,
    TRANSMIT,
    DataEvent,
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
    Dimension,
    MirrorStatus,
    ReplicationStatus,
    TargetDataState,
    TargetStatus,
    TransmitMode,
)

_DATA_EVENTS = {
    TargetDataState.OK: "the copy is complete",
    TargetDataState.MIRRORING: "mirror begins",
    TargetDataState.MIRROR_REQUIRED: "the copy is not complete",
    TargetDataState.RESTORE_REQUIRED: "the copy was taken into use",
}
_TARGET_EVENTS = {
    TargetStatus.OK: "the target applies",
    TargetStatus.NOT_LOADED: "nobody applies",
    TargetStatus.PAUSED: "target paused",
    TargetStatus.PAUSE_PENDING: "target is being paused",
    TargetStatus.RETRYING: "an operation fails",
}


class ConnectionStates:
    """`changed` is called after each step. `mirror_runs`: whether a run is under way."""

    def __init__(
        self,
        memory: SenderStateFile,
        story: Story,
        mirror_runs: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        state = memory.state
        self.reported_data = TargetDataState.MIRROR_REQUIRED  # by the target
        self.target_reason = ""
        self.target_queue_full = False
        self.waits_for: Callable[[], str] = lambda: ""
        """What a scheduled transmission waits for."""
        self._memory = memory
        self._story = story
        self._mirror_runs = mirror_runs
        self._changed = changed
        self._transmit: Machine[TransmitMode, TransmitEvent] = Machine(TRANSMIT, state.transmit)
        replication = ReplicationStatus.READY if state.replicating else ReplicationStatus.STOPPED
        if state.replicating and state.pending:
            replication = ReplicationStatus.PENDING
        self._replication: Machine[ReplicationStatus, ReplicationEvent] = Machine(REPLICATION, replication)
        self._reported_status = TargetStatus.OK
        self._connected = False
        self._was_connected = False  # by this process
        self._failure = state.transmit_reason
        self._failed = bool(state.transmit_reason)
        self._out_of_memory = False
        self._data_known = False
        self._superseded = False
        self._mirror_since_good = False  # reports may skip a short mirror: what it left is no failure
        self._shown: tuple[object, ...] = ()
        self._last_said: tuple[ConnectionState, str] = (ConnectionState.STOPPED, "")
        self._note_all("sender started")

    # --- what is so now ---

    @property
    def transmit(self) -> TransmitMode:
        return self._transmit.state

    @property
    def connection(self) -> ConnectionState:
        return connection_state(
            self.transmit, connected=self._connected, failed=self._failed, held=self.target_queue_full
        )

    @property
    def reason(self) -> str:
        """Why the connection is in its state; "" if there is nothing to explain."""
        state = self.connection
        if state is ConnectionState.ERROR:
            return self._failure
        if self.transmit is TransmitMode.STOPPED:
            return "transmission was stopped"
        if self.transmit is TransmitMode.SCHEDULED:
            return self.waits_for()
        if state is ConnectionState.PAUSED and self.target_queue_full:
            return "the target's queue is full: changes wait here until it has room"
        return ""

    @property
    def target_status(self) -> TargetStatus:
        return shown_target_status(self._reported_status, connected=self._connected)

    @property
    def target_data(self) -> TargetDataState:
        return shown_data_state(
            self.reported_data, mirror_runs=self._mirror_runs(), superseded=self._superseded
        )

    @property
    def replicating(self) -> bool:
        return self._replication.state is not ReplicationStatus.STOPPED

    def replication(self, *, queued: bool) -> ReplicationStatus:
        return replication_status(
            self._replication.state,
            connected=self._connected,
            queued=queued,
            out_of_memory=self._out_of_memory,
        )

    # --- what happens ---

    def transmission(self, event: TransmitEvent, reason: str = "") -> None:
        """By command, or because only a person can go on."""
        mode = self._transmit.happen(event, reason)
        if mode in (TransmitMode.STOPPED, TransmitMode.SCHEDULED):
            self._failed, self._failure = False, ""
        if event is TransmitEvent.FAIL:
            self._failed, self._failure = True, reason
        self._memory.state.transmit = mode
        self._memory.state.transmit_reason = reason
        self._memory.save()
        self._story.note(Dimension.TRANSMIT, mode, event, reason)
        self._tell(event)

    def superseded(self, reason: str) -> None:
        """Another agent owns the copy: it is to be brought home, and not to be written."""
        self._superseded = self._data_known = True
        self.transmission(TransmitEvent.FAIL, reason)
        self.observe()

    def replicate(self, event: ReplicationEvent, reason: str = "") -> None:
        """`FAIL` while a mirror runs is that mirror's business."""
        if event is ReplicationEvent.FAIL and self._mirror_runs():
            return
        before = self._replication.state
        after = self._replication.happen(event, reason)
        state = self._memory.state
        state.replicating = self.replicating
        state.pending = after is ReplicationStatus.PENDING
        if after is not before:
            self._memory.save()
        self._note_replication(event, reason)
        self._tell(event)

    def connected(self) -> None:
        """A session is up."""
        event = "connected again" if self._was_connected else "connected"
        self._connected = self._was_connected = True
        if self._superseded:
            self._superseded = False
            self._story.note(Dimension.DATA, self.target_data, OWNED)
        self._failed, self._failure = False, ""
        self._reported_status, self.target_reason = TargetStatus.OK, ""
        self._tell(event)

    def lost(self, reason: str) -> None:
        """The session ended with an error, or there was none."""
        event = "connection lost" if self._connected else "cannot connect"
        self._failed, self._failure = True, reason
        self._connected = self.target_queue_full = False
        self._tell(event)

    def target_queue(self, *, full: bool) -> None:
        """AD-02: the target asks to wait, or to go on."""
        if full is not self.target_queue_full:
            self.target_queue_full = full
            self._tell("the target's queue is full" if full else "the target's queue has room again")

    def session_over(self) -> None:
        """Whatever ended it."""
        self._connected = self.target_queue_full = False
        self.target_reason = ""
        self._tell("session closed")

    def sender_stops(self) -> None:
        self._failed, self._failure = False, ""
        self._connected = False
        self._tell("sender stopped")

    def target_says(self, status: TargetStatus, data_state: TargetDataState, reason: str) -> None:
        was_good = self.target_data is TargetDataState.OK and not self._mirror_since_good
        if was_good and data_state is TargetDataState.MIRROR_REQUIRED:
            self.replicate(ReplicationEvent.FAIL, reason or "the target lacks something")
        if data_state is TargetDataState.OK and not self._mirror_runs():
            self._mirror_since_good = False
        self._reported_status, self.target_reason = status, reason
        self.reported_data = data_state
        self.observe()

    def changed_by_others(self, what: str) -> None:
        """AD-09: the target has noticed it."""
        self._story.note(Dimension.DATA, self.target_data, DataEvent.DRIFT, what)

    def mirror_moved(self, status: MirrorStatus, event: str, reason: str) -> None:
        self._story.note(Dimension.MIRROR, status, event, reason)
        ended = event == MirrorEvent.END and reason == COMPLETE
        if ended and self._connected and self.reported_data is TargetDataState.MIRROR_REQUIRED:
            # The target has not even heard of the beginning; when it says so, it is complete.
            self.reported_data = TargetDataState.MIRRORING
        self._mirror_since_good = self._mirror_since_good or status is MirrorStatus.MIRRORING
        if status is MirrorStatus.MIRRORING and self._replication.state is ReplicationStatus.PENDING:
            self.replicate(ReplicationEvent.MIRROR_BEGINS)
        self.observe()

    def memory(self, *, exhausted: bool) -> None:
        """Whether the queue can take nothing at the moment."""
        if exhausted is self._out_of_memory:
            return
        self._out_of_memory = exhausted
        self._note_replication("the queue is full" if exhausted else "the queue has room again", "")
        if exhausted:  # and not when it ends: the mirror may have begun, and ended, before that is seen
            self.replicate(ReplicationEvent.FAIL)
        self._changed()

    # --- telling ---

    def observe(self) -> bool:
        """Note what has followed from other facts. Whether anything an administrator may look for is new."""
        shown = (
            self.connection,
            self.reason,
            self.target_status,
            self.target_reason,
            self.target_data,
            self._replication.state,
            self._out_of_memory,
            self._mirror_runs(),
        )
        if shown == self._shown:
            return False
        self._shown = shown
        if self._connected:
            self._data_known = True
        if self._data_known:  # before the first session it is whatever it was
            data = self.target_data
            self._story.note(Dimension.DATA, data, self._data_event(data))
        status = self.target_status
        self._story.note(Dimension.TARGET, status, _TARGET_EVENTS[status], self.target_reason)
        return True

    def _data_event(self, data: TargetDataState) -> str:
        if self._superseded:
            return SUPERSEDED
        if self._story.last(Dimension.DATA) == TargetDataState.RESTORE_REQUIRED:
            return OWNED  # since a former process
        return _DATA_EVENTS[data]

    def _tell(self, event: str) -> None:
        state, reason = self.connection, self.reason
        if (state, reason) != self._last_said:
            self._last_said = state, reason
            print(f"{state.value}{': ' if reason else ''}{reason}", file=sys.stderr, flush=True)
            self._story.note(Dimension.CONNECTION, state, event, reason)
        self._changed()

    def _note_replication(self, event: str, reason: str) -> None:
        # With nothing queued: that there is something to send is no news.
        self._story.note(Dimension.REPLICATION, self.replication(queued=False), event, reason)

    def _note_all(self, event: str) -> None:
        story = self._story
        story.note(Dimension.CONNECTION, self.connection, event, self.reason)
        story.note(Dimension.TRANSMIT, self.transmit, event)
        story.note(Dimension.MIRROR, MirrorStatus.IDLE, event)
        self._note_replication(event, "")
