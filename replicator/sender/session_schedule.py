"""When one connection transmits: carries out what `transmission_schedule.py` decides, once a second (TX-02).

How far it is, `home/source/<connection>.schedule` keeps over restarts of everything. A session of the
schedule is not one of the network: it may lose its connection and make another. Between two of them there is
none.
"""

import os
import sys
from collections.abc import Callable

import msgspec
import trio

from replicator import limits
from replicator.local_time import shown
from replicator.queue.durable_file import read_if_there, replace, replace_durably
from replicator.schedule_outlook import outlook, waits_for
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.flow import Flow
from replicator.sender.known_copy import KnownCopy
from replicator.sender.shipments import Totals
from replicator.states import TransmitEvent
from replicator.status import ScheduleStatus, TransmitMode
from replicator.transmission_schedule import (
    Criteria,
    Facts,
    Progress,
    Session,
    Step,
    TransmissionSchedule,
    compiled,
    first_due,
    session_step,
)
from replicator.world import World


class ScheduleState(msgspec.Struct):
    """What is remembered."""

    schedule: TransmissionSchedule = TransmissionSchedule()  # that `progress` is of
    progress: Progress = Progress()
    seen: float = 0.0  # when this was noted
    last_end: str = ""  # why the last session ended


class SessionSchedule:
    """`attach` gives it what is assembled later. While it lets a connection transmit, its mode is Started."""

    def __init__(
        self,
        world: World,
        path: str,
        schedule: TransmissionSchedule,
        flows: list[Flow],
        copy: KnownCopy,
        states: ConnectionStates,
        totals: Totals,
    ) -> None:
        self._world = world
        self._path = path
        self._flows = flows
        self._copy = copy
        self._states = states
        self._totals = totals
        self._removed = False
        self._connected: Callable[[], bool] = lambda: False
        self._interrupt: Callable[[], None] = lambda: None
        self._works: Callable[[], bool] = lambda: False
        self._given_up: Callable[[], bool] = lambda: False
        self._pieces: Callable[[], int] = lambda: 0
        self._ring: Callable[[], None] = lambda: None
        self._criteria: Criteria | None = None  # of settings that hold
        self._decided_ns = world.clock.monotonic_ns()
        self._decided_bytes = self._sent
        self._heads = [0] * len(flows)
        self._linger_until = 0.0
        self._state = self._load()
        states.waits_for = self._waits_for
        # Since then, by the clock on the wall: nobody has counted meanwhile.
        self._missed_s = max(self._now() - self._state.seen, 0.0) if self._state.seen else 0.0
        self._take(schedule)

    def attach(
        self,
        *,
        connected: Callable[[], bool],
        interrupt: Callable[[], None],
        works: Callable[[], bool],
        given_up: Callable[[], bool],
        pieces: Callable[[], int],
        ring: Callable[[], None],
    ) -> None:
        """`connected`: by the network. `interrupt` ends that, or the attempt. `works`: a mirror or a
        verification is not complete. `given_up`: the queue could not hold more. `pieces`: of a mirror, on
        their way. `ring`: the shipper is to look again.
        """
        self._connected, self._interrupt, self._works = connected, interrupt, works
        self._given_up, self._pieces, self._ring = given_up, pieces, ring
        self.look()

    # --- what an administrator asks for ---

    def set(self, schedule: TransmissionSchedule) -> None:
        """UsageError."""
        self._take(schedule)
        self.look()

    def _take(self, schedule: TransmissionSchedule) -> None:
        criteria = compiled(schedule, self._world.zone)
        state, now = self._state, self._now()
        known = state.schedule
        self._criteria = criteria if schedule.holds else None
        if schedule == known:
            return
        progress = state.progress if schedule.holds else Progress()
        if (schedule.start, schedule.holds) != (known.start, known.holds):
            progress = msgspec.structs.replace(progress, due=first_due(criteria, now))
        state.schedule, state.progress = schedule, progress
        self._save()

    def by_hand(self) -> None:
        """TX-01: a person starts transmission: a session is due now."""
        if self._criteria is not None:
            if self._state.progress.session is None:
                self._state.progress = msgspec.structs.replace(self._state.progress, by_hand=True)
            self.look()

    # --- what the sessions of the network ask ---

    @property
    def wants_network(self) -> bool:
        """Whether to connect. A pause between two sessions of the schedule is no reason to."""
        mode = self._states.transmit
        if mode is TransmitMode.PAUSED:
            return self._criteria is None or self._state.progress.session is not None
        return mode is TransmitMode.STARTED

    @property
    def _sent(self) -> int:
        """Bytes on the line, without what each frame has around its data."""
        return self._totals.sent_bytes - self._totals.saved_bytes

    @property
    def may_send(self) -> bool:
        """Whether the session's bytes are not used up: looked at before each frame, so a metered link carries
        little more.
        """
        criteria, session = self._criteria, self._state.progress.session
        if criteria is None or criteria.sent_bytes is None or session is None:
            return True
        return session.sent_bytes + self._sent - self._decided_bytes < criteria.sent_bytes

    # --- once a second ---

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(limits.SCHEDULE_LOOK_S)
            self.look()

    def look(self) -> None:
        """Decide, and carry it out."""
        mode = self._states.transmit
        if self._criteria is None:
            if mode is TransmitMode.SCHEDULED:
                self._move(TransmitEvent.BEGIN, "transmission is not scheduled any more")
            return
        if mode in (TransmitMode.STOPPED, TransmitMode.ERROR):
            if self._state.progress.session is not None:
                self._state.progress = msgspec.structs.replace(self._state.progress, session=None)
                self._save()
            return
        if mode is TransmitMode.PAUSED:
            return
        decision = session_step(self._criteria, self._state.progress, self._facts())
        before, self._state.progress = self._state.progress, decision.progress
        if decision.step is Step.BEGIN:
            self._save()
            if mode is not TransmitMode.STARTED:
                self._move(TransmitEvent.BEGIN, decision.why)
        elif decision.step is Step.END:
            self._state.last_end = decision.why
            self._end(decision.why)
        elif decision.progress.session is None and mode is TransmitMode.STARTED:
            self._end("")
        elif decision.progress.due != before.due:
            self._save()
        elif decision.progress.session is not None and self._is_counted(self._criteria):
            self._save(durably=False)
        self._linger()

    @staticmethod
    def _is_counted(criteria: Criteria) -> bool:
        return criteria.after_s is not None or criteria.sent_bytes is not None

    def _facts(self) -> Facts:
        now_ns, sent = self._world.clock.monotonic_ns(), self._sent
        elapsed_s = (now_ns - self._decided_ns) / 1e9 + self._missed_s
        new_bytes = sent - self._decided_bytes
        self._decided_ns, self._decided_bytes, self._missed_s = now_ns, sent, 0.0
        queued = held = room = 0
        percent = 0.0
        for flow in self._flows:
            queued += flow.cursor.backlog()[1]
            held, room = flow.cursor.held()[1], flow.cursor.room_bytes() or 0
            if room or flow.cursor.losing:
                percent = max(percent, 100.0 * held / max(held + room, 1))
        given_up = self._given_up()
        return Facts(self._now(), elapsed_s, new_bytes, queued, percent, given_up, self._is_empty())

    def _is_empty(self) -> bool:
        """Whether all that was queued at the last look is sent: programs that write on are not waited for."""
        heads, self._heads = self._heads, [flow.cursor.head().sequence for flow in self._flows]
        if not self._connected() or self._works():
            return False
        return all(flow.position.sequence >= head for flow, head in zip(self._flows, heads, strict=True))

    def _end(self, why: str) -> None:
        self._save()
        self._linger_until = trio.current_time() + limits.SCHEDULE_LINGER_S
        self._move(TransmitEvent.WAIT, why)
        if not self._connected():
            self._interrupt()  # an attempt

    def _linger(self) -> None:
        """The connection is closed once what was sent is safe on the target: else it is sent again."""
        if self._states.transmit is not TransmitMode.SCHEDULED or not self._connected():
            return
        safe = not self._pieces() and all(
            durable >= flow.position.sequence
            for flow, durable in zip(self._flows, self._copy.durable, strict=True)
        )
        if safe or trio.current_time() >= self._linger_until:
            self._interrupt()

    def _move(self, event: TransmitEvent, reason: str) -> None:
        self._states.transmission(event, reason)
        self._ring()

    # --- telling ---

    def _waits_for(self) -> str:
        if self._criteria is None:
            return ""
        return waits_for(self._criteria, self._state.progress, self._now())

    def status(self) -> ScheduleStatus:
        state, now = self._state, self._now()
        session = state.progress.session
        known = ScheduleStatus(
            settings=state.schedule,
            holds=self._criteria is not None,
            session_began=session.began if session is not None else None,
            session_why=session.why if session is not None else "",
            session_bytes=self._bytes_of(session) if session is not None else 0,
            session_seconds=session.seconds if session is not None else 0.0,
            last_end=state.last_end,
            zone=str(self._world.zone),
        )
        mode = self._states.transmit
        if self._criteria is None:
            reason = (
                "transmission is not scheduled" if state.schedule.is_empty else "the schedule is disabled"
            )
            return msgspec.structs.replace(known, next_reason=reason)
        if mode in (TransmitMode.STOPPED, TransmitMode.PAUSED, TransmitMode.ERROR):
            reason = (
                f"transmission is {mode.value.lower()}: nothing is started before `dtctl transmit resume`"
            )
            return msgspec.structs.replace(known, next_reason=reason)
        found = outlook(self._criteria, state.progress, now)
        at = f" at {shown(found.at, now, self._world.zone)}" if found.at is not None else ""
        text = f"{found.action}{at}: {found.reason}" if found.action else f"nothing: {found.reason}"
        return msgspec.structs.replace(
            known, next_action=found.action, next_time=found.at, next_reason=found.reason, next=text
        )

    def _bytes_of(self, session: Session) -> int:
        return session.sent_bytes + self._sent - self._decided_bytes

    def _now(self) -> float:
        return self._world.clock.wall_ns() / 1e9

    # --- the file ---

    def _load(self) -> ScheduleState:
        data = read_if_there(self._world.disk, self._path)
        if data is None:
            return ScheduleState()
        try:
            return msgspec.json.decode(data, type=ScheduleState)
        except msgspec.DecodeError as error:
            print(f"{self._path}: damaged, the schedule begins anew: {error}", file=sys.stderr, flush=True)
            return ScheduleState()

    def _save(self, *, durably: bool = True) -> None:
        """Not durably: it outlives this process, and maybe not a loss of power."""
        if self._removed:
            return
        disk = self._world.disk
        self._state.seen = self._now()
        disk.makedirs(os.path.dirname(self._path))
        write = replace_durably if durably else replace
        write(disk, self._path, [msgspec.json.encode(self._state)])

    def remove(self) -> None:
        """The connection is gone for good."""
        self._removed = True
        try:
            self._world.disk.unlink(self._path)
        except OSError:
            pass  # there is none
