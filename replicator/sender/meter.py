"""The meter of a connection: how long operations take from one stage to the next, and what waits there.

    captured → journaled → sent → received → applied → durable

Everything is told by positions: the meter notes when the head of a journal was where, and hears up to which
sequence the stream was sent and the target has acknowledged. Only clocks of the source are read, so that an
offset between hosts does not matter; times of the last three stages include the way of an acknowledgement.
A *mark* stands for the operations up to its sequence and moves from queue to queue, one per stage: the oldest
mark of a queue tells how long something has been waiting there, each mark that leaves how long it took.
Pure: whoever calls says what time it is (monotonic ns). No checkpoints.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from replicator import limits
from replicator.status import Lag, LagSample, StageLag

_SECOND_NS = 1_000_000_000
_MINUTE_NS = 60 * _SECOND_NS


class Stage(IntEnum):
    """Named by what it ends with; it begins with the end of the one before."""

    JOURNALED = 0
    SENT = 1
    RECEIVED = 2
    APPLIED = 3
    DURABLE = 4


@dataclass
class _Mark:
    sequence: int
    bytes: int  # of the journal's records up to there, ever
    journaled_ns: int
    at_ns: int  # since when it has been in its queue


@dataclass
class FlowMeter:
    """The stages of one journal."""

    head: int = 0
    worst_ns: list[int] = field(
        default_factory=lambda: [0] * len(Stage)
    )  # of what passed, since `take_worst`
    _waiting: list[deque[_Mark]] = field(default_factory=lambda: [deque() for _ in Stage])
    _bytes: list[int] = field(default_factory=lambda: [0] * len(Stage))  # of the records that passed
    _base: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * len(Stage))  # (sequence, bytes)
    _reached: list[int] = field(default_factory=lambda: [0] * len(Stage))
    _fresh: tuple[int, int] | None = None  # (sequence of a record, when it was seen to be journaled)

    # --- what is told ---

    def resume(self, reached: Sequence[int], bytes_: Sequence[int], now_ns: int) -> None:
        """A session begins: `reached` and `bytes_` by stage, from JOURNALED on. What was sent and had not
        arrived is to be sent again.
        """
        marks = sorted((m for queue in self._waiting for m in queue), key=lambda m: m.sequence)
        applying = {id(m) for m in self._waiting[Stage.APPLIED]}
        self._waiting = [deque() for _ in Stage]
        self._reached, self._bytes = list(reached), list(bytes_)
        self._base = list(zip(reached, bytes_, strict=True))
        self._fresh = None
        for mark in marks:
            stage = next((s for s in list(Stage)[1:] if mark.sequence > reached[s]), None)
            if stage is None:
                continue
            if stage is Stage.SENT:
                mark.at_ns = mark.journaled_ns
            elif stage is not Stage.APPLIED or id(mark) not in applying:
                mark.at_ns = now_ns
            self._waiting[stage].append(mark)
        head, unsent = reached[Stage.JOURNALED], self._waiting[Stage.SENT]
        if head > reached[Stage.SENT] and (not unsent or unsent[-1].sequence < head):
            unsent.append(_Mark(head, bytes_[Stage.JOURNALED], now_ns, now_ns))

    def journaled(self, sequence: int, bytes_: int, now_ns: int, *, rang: bool = False) -> None:
        """The head of the journal is here now. `rang`: it has just come."""
        before = self._reached[Stage.JOURNALED]
        if sequence <= before:
            return
        unsent = self._waiting[Stage.SENT]
        if rang and not unsent and self._reached[Stage.SENT] == before:
            self._fresh = (before + 1, now_ns)
        self.head = self._reached[Stage.JOURNALED] = sequence
        self._bytes[Stage.JOURNALED] = bytes_
        if unsent and now_ns - unsent[-1].journaled_ns < limits.METER_MARK_NS:
            unsent[-1].sequence, unsent[-1].bytes = sequence, bytes_
            return
        unsent.append(_Mark(sequence, bytes_, now_ns, now_ns))
        if len(unsent) > limits.METER_MARKS:
            self._thin_out()

    def oldest_unsent(self, sequence: int, stamp_ns: int) -> None:
        """The journal says of which operation the stream waits, and when it was captured."""
        unsent = self._waiting[Stage.SENT]
        if unsent and (unsent[0].journaled_ns <= stamp_ns or unsent[0].sequence < sequence):
            return
        if sequence > self._reached[Stage.SENT]:
            unsent.appendleft(_Mark(sequence, self._bytes[Stage.SENT], stamp_ns, stamp_ns))

    def read(self, sequence: int, stamp_ns: int) -> None:
        """This record was read: if it was seen to arrive in the journal, the time since its stamp was spent
        before.
        """
        fresh, self._fresh = self._fresh, None
        if fresh is not None and fresh[0] == sequence:
            lag_ns = max(fresh[1] - stamp_ns, 0)
            self.worst_ns[Stage.JOURNALED] = max(self.worst_ns[Stage.JOURNALED], lag_ns)

    def passed(self, stage: Stage, sequence: int, now_ns: int) -> None:
        """Everything up to `sequence` has reached the end of this stage."""
        if sequence <= self._reached[stage]:
            return
        self._reached[stage] = sequence
        queue, base = self._waiting[stage], self._base[stage]
        following = self._waiting[stage + 1] if stage < Stage.DURABLE else None
        while queue and queue[0].sequence <= sequence:
            mark = queue.popleft()
            self.worst_ns[stage] = max(self.worst_ns[stage], now_ns - mark.at_ns)
            base = (mark.sequence, mark.bytes)
            if following is not None:
                mark.at_ns = now_ns
                following.append(mark)
        self._base[stage] = base
        if sequence >= self._reached[stage - 1]:  # nothing waits here: as exact as the stage before
            self._bytes[stage] = self._bytes[stage - 1]
            self._base[stage] = (sequence, self._bytes[stage])
        elif queue and queue[0].sequence > base[0]:  # between two marks: in proportion
            share = (sequence - base[0]) / (queue[0].sequence - base[0])
            self._bytes[stage] = base[1] + int(share * max(queue[0].bytes - base[1], 0))
        else:
            self._bytes[stage] = max(base[1], self._bytes[stage])

    def _thin_out(self) -> None:
        """Two marks become one, for the time of the older: what is shown is rather too long than too
        short.
        """
        marks = list(self._waiting[Stage.SENT])
        for older, newer in zip(marks[::2], marks[1::2], strict=False):
            newer.at_ns, newer.journaled_ns = older.at_ns, older.journaled_ns
        self._waiting[Stage.SENT] = deque(marks[1::2] + (marks[-1:] if len(marks) % 2 else []))

    # --- what is shown ---

    def waiting_ns(self, stage: Stage, now_ns: int) -> int:
        """How long the oldest of what waits for the end of this stage has been in it."""
        queue = self._waiting[stage]
        return max(now_ns - queue[0].at_ns, 0) if queue else 0

    def age_ns(self, stage: Stage, now_ns: int) -> int:
        """How long ago the oldest operation was journaled that has not passed this stage."""
        oldest = [queue[0].journaled_ns for queue in self._waiting[: stage + 1] if queue]
        return max(now_ns - min(oldest), 0) if oldest else 0

    def behind_bytes(self, stage: Stage) -> int:
        """Bytes of records in this stage."""
        if stage is Stage.JOURNALED:
            return 0
        return max(self._bytes[stage - 1] - self._bytes[stage], 0)

    def take_worst(self) -> list[int]:
        worst, self.worst_ns = self.worst_ns, [0] * len(Stage)
        return worst


class Meter:
    """All journals of a connection, and what was shown of them: a minute by the second, an hour by the
    minute.
    """

    def __init__(self, journals: int) -> None:
        self.flows = [FlowMeter() for _ in range(journals)]
        self._second = [0] * len(Stage)  # worst of the second before, ns
        self._second_ns = 0
        self._seconds: deque[tuple[int, LagSample]] = deque(maxlen=60)
        self._minutes: deque[tuple[int, LagSample]] = deque(maxlen=60)

    def tick(self, now_ns: int, wall_s: float) -> bool:
        """Note a sample. Call about once a second, as long as it returns True: there was something."""
        worst = [max(values) for values in zip(*(f.take_worst() for f in self.flows), strict=True)]
        shown = [max(worst[stage], self._waiting_ns(stage, now_ns)) for stage in Stage]
        self._second, self._second_ns = shown, now_ns
        sample = LagSample(
            time=wall_s,
            seconds=tuple(ns / _SECOND_NS for ns in shown),
            behind_bytes=self._behind(Stage.APPLIED),
            held_bytes=self._behind(Stage.DURABLE),
        )
        self._seconds.append((now_ns, sample))
        minute = now_ns // _MINUTE_NS
        if self._minutes and self._minutes[-1][0] == minute:
            sample = _worse(self._minutes.pop()[1], sample)
        self._minutes.append((minute, sample))
        return any(shown) or sample.held_bytes > 0

    def lag(self, now_ns: int) -> Lag:
        """What is shown now. The agent adds what it knows of the queue's room."""
        recent = self._second if now_ns - self._second_ns <= 2 * _SECOND_NS else [0] * len(Stage)
        stages = []
        for stage in Stage:
            passed_ns = max((f.worst_ns[stage] for f in self.flows), default=0)
            worst_ns = max(recent[stage], passed_ns, self._waiting_ns(stage, now_ns))
            behind = sum(f.behind_bytes(stage) for f in self.flows)
            stages.append(StageLag(stage.name.lower(), worst_ns / _SECOND_NS, behind))
        seconds = [(at, s) for at, s in self._seconds if now_ns - at <= _MINUTE_NS]
        minute = now_ns // _MINUTE_NS
        return Lag(
            stages=tuple(stages),
            seconds=max((f.age_ns(Stage.APPLIED, now_ns) for f in self.flows), default=0) / _SECOND_NS,
            bytes=self._behind(Stage.APPLIED),
            recovery_point_seconds=max((f.age_ns(Stage.RECEIVED, now_ns) for f in self.flows), default=0)
            / _SECOND_NS,
            recovery_point_bytes=self._behind(Stage.RECEIVED),
            held_bytes=self._behind(Stage.DURABLE),
            growth_bytes_per_s=self._growth(seconds, now_ns),
            last_minute=tuple(s for _, s in seconds),
            last_hour=tuple(s for at, s in self._minutes if minute - at < 60),
        )

    def _waiting_ns(self, stage: Stage, now_ns: int) -> int:
        return max((f.waiting_ns(stage, now_ns) for f in self.flows), default=0)

    def _behind(self, stage: Stage) -> int:
        """Bytes that have not passed this stage."""
        return sum(f.behind_bytes(s) for f in self.flows for s in Stage if s <= stage)

    def _growth(self, seconds: list[tuple[int, LagSample]], now_ns: int) -> float:
        """Bytes per second by which the queue has grown lately; negative: it drains."""
        if not seconds or now_ns - seconds[0][0] < limits.FORECAST_MIN_S * _SECOND_NS:
            return 0.0
        first_ns, first = seconds[0]
        return (self._behind(Stage.DURABLE) - first.held_bytes) * _SECOND_NS / (now_ns - first_ns)


def seconds_until_full(room_bytes: int | None, growth_bytes_per_s: float) -> float | None:
    """When a queue with so much room is full at this rate. None: never (or it has no limit)."""
    if room_bytes is None or growth_bytes_per_s <= 0:
        return None
    return max(room_bytes, 0) / growth_bytes_per_s


def _worse(one: LagSample, other: LagSample) -> LagSample:
    return LagSample(
        time=one.time,
        seconds=tuple(map(max, one.seconds, other.seconds)),
        behind_bytes=max(one.behind_bytes, other.behind_bytes),
        held_bytes=max(one.held_bytes, other.held_bytes),
    )
