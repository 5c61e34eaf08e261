"""Whether a source is alive: countdowns that each answer resets, and what has failed when they reach 0.

A pure machine; the driver brings the time, sends what is due, and tells of answers. Two times are told apart:

- *now* is the driver's clock. It says when the next probe is due.
- *watched* is the time during which the driver really looked. Countdowns run in it. A driver that was paused,
  or whose host was overloaded, has no answers to show for the time it missed, and that proves nothing: a look
  that comes late adds no more than one that comes in time.

Besides, a check has only failed when as many probes as are allowed to be missing were really sent, the last
of them had a while for its answer (`MONITOR_GRACE` of an interval), and one more look found nothing: an
answer that has come and is not read yet is read between two looks. Meanwhile the countdown stands at 0.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.failovers import Check, CheckKind, FailWhen, MonitorSettings, WatchedAddress

HOST_CHECKS = frozenset({CheckKind.AGENT, CheckKind.PING})
"""Tell whether the host lives: one of them that answers is enough. All others ask for a service: each has to
answer.
"""


class Colour(StrEnum):
    """FO-13."""

    GREEN = "green"
    YELLOW = "yellow"  # the countdown has dropped by a part of the whole, and an answer is overdue
    RED = "red"  # failed


class Probe(NamedTuple):
    """One question to be asked. `number` tells those of one check apart."""

    address: str
    check: Check
    number: int


class News(StrEnum):
    SILENT = "silent"  # an address has failed
    ANSWERS = "answers"  # it answers again
    FAILED = "failed"  # as many addresses have failed as the settings say
    ALIVE = "alive"  # no longer


class Change(NamedTuple):
    """What a look has found. `address` "": it is about the whole monitor. `reason`: of the last probe."""

    news: News
    address: str = ""
    reason: str = ""


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    kind: CheckKind
    argument: str
    remaining_s: float
    timeout_s: float
    failed: bool
    reason: str  # why the last probe had no answer; "": it had, or nothing is known yet


class AddressView(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    interface: str
    monitored: bool
    colour: Colour
    remaining_s: float  # FO-12: time to fail
    timeout_s: float  # the whole of it. Both of the check of which least is left
    failed: bool
    reason: str
    checks: tuple[CheckView, ...]


class _Countdown:
    """Of one check of one address. All times but `due_s` are watched times."""

    def __init__(self, check: Check, address: WatchedAddress, watched_s: float, now_s: float) -> None:
        self.check = check
        self._misses = max(1, check.misses or address.misses)
        self._interval_s = address.interval_s
        self.timeout_s = self._interval_s * self._misses
        self.due_s = self._regular_s = now_s
        self.reason = ""
        self.number = 0
        self.has_answered = False  # since it is watched
        self.failed = False
        self._is_over = False  # at the last look
        self._is_fresh = False  # an answer has come since then
        self._reset_s = watched_s
        self._sent: list[tuple[int, float]] = []  # the first `misses` probes since the last answer

    def send(self, watched_s: float, now_s: float) -> int:
        self.number += 1
        # After a pause there is one probe, not one for each that was missed.
        self._regular_s = max(self._regular_s + self._interval_s, now_s + self._interval_s / 2)
        self.due_s = self._regular_s
        if len(self._sent) < self._misses:
            self._sent.append((self.number, watched_s))
            if len(self._sent) == self._misses - 1:  # the next one is the last: its answer is to come in time
                last_s = now_s + self.remaining_s(watched_s) - self._interval_s * limits.MONITOR_GRACE
                self.due_s = min(self.due_s, max(last_s, now_s + self._interval_s / 2))
        return self.number

    def answered(self, watched_s: float) -> None:
        self.has_answered = True
        self.failed = self._is_over = False
        self._reset_s = watched_s
        self._is_fresh = True
        self._sent.clear()
        self.due_s = self._regular_s
        self.reason = ""

    def unable(self, number: int, reason: str) -> None:
        """The probe could not be made, by a fault of this host's own: it counts for nothing."""
        self._sent = [sent for sent in self._sent if sent[0] != number]
        self.reason = reason

    def remaining_s(self, watched_s: float) -> float:
        return max(0.0, self._reset_s + self.timeout_s - watched_s)

    def is_yellow(self, watched_s: float) -> bool:
        """With few misses allowed, a quarter of the countdown passes between two answers that are in time."""
        silent_s = watched_s - self._reset_s
        overdue_s = self._interval_s * (1 + limits.MONITOR_GRACE)
        return silent_s >= self.timeout_s * limits.MONITOR_YELLOW and silent_s > overdue_s

    @property
    def is_nearly_failed(self) -> bool:
        """The countdown is over; one more look decides."""
        return self._is_over and not self.failed

    def look(self, watched_s: float) -> None:
        if self._is_fresh:  # it came since the look before, perhaps just now
            self._is_fresh, self._reset_s = False, watched_s
        before, self._is_over = self._is_over, self._is_over_at(watched_s)
        self.failed = before and self._is_over  # what was there at the look before has been read since

    def _is_over_at(self, watched_s: float) -> bool:
        if self.remaining_s(watched_s) > 0 or len(self._sent) < self._misses:
            return False
        return watched_s - self._sent[-1][1] >= self._interval_s * limits.MONITOR_GRACE


class _Watch:
    """One address. It needs an answer of each group of checks: of those of the host together, and of each of
    the others.
    """

    def __init__(self, settings: WatchedAddress, watched_s: float, now_s: float) -> None:
        self.settings = settings
        self.failed = False
        self.answers = False  # it was heard: not only that it has not failed yet
        checks = settings.checks if settings.monitored else ()
        self.countdowns = [_Countdown(check, settings, watched_s, now_s) for check in checks]
        host = [each for each in self.countdowns if each.check.kind in HOST_CHECKS]
        others = [[each] for each in self.countdowns if each.check.kind not in HOST_CHECKS]
        self._needed = [host, *others] if host else others

    def look(self, watched_s: float) -> Change | None:
        before = self.failed
        for countdown in self.countdowns:
            countdown.look(watched_s)
        self.failed = any(all(each.failed for each in group) for group in self._needed)
        heard = all(any(each.has_answered for each in group) for group in self._needed)
        self.answers = heard and not self.failed
        if self.failed == before:
            return None
        news = News.SILENT if self.failed else News.ANSWERS
        return Change(news, self.settings.address, self.reason)

    @property
    def reason(self) -> str:
        """Of each check that has one, or that nobody answers."""
        found = ((each, each.reason or ("no answer" if each.failed else "")) for each in self.countdowns)
        return "; ".join(f"{name_of(each.check)}: {reason}" for each, reason in found if reason)

    def remaining_s(self, watched_s: float) -> float:
        """Until it fails."""
        parts = (max(each.remaining_s(watched_s) for each in group) for group in self._needed)
        return min(parts, default=math.inf)

    def view(self, watched_s: float) -> AddressView:
        settings = self.settings

        def part(countdown: _Countdown) -> float:
            return countdown.remaining_s(watched_s) / countdown.timeout_s

        first = min((max(group, key=part) for group in self._needed), key=part, default=None)
        yellow = any(all(each.is_yellow(watched_s) for each in group) for group in self._needed)
        return AddressView(
            address=settings.address,
            interface=settings.interface,
            monitored=settings.monitored,
            colour=Colour.RED if self.failed else Colour.YELLOW if yellow else Colour.GREEN,
            remaining_s=first.remaining_s(watched_s) if first is not None else settings.timeout_s,
            timeout_s=first.timeout_s if first is not None else settings.timeout_s,
            failed=self.failed,
            reason=self.reason,
            checks=tuple(
                CheckView(
                    kind=each.check.kind,
                    argument=each.check.argument,
                    remaining_s=each.remaining_s(watched_s),
                    timeout_s=each.timeout_s,
                    failed=each.failed,
                    reason=each.reason,
                )
                for each in self.countdowns
            ),
        )


class SourceMonitor:
    """The machine. `now_s` of a call is never before that of the call before."""

    def __init__(self, settings: MonitorSettings, now_s: float) -> None:
        self.failed = False  # as many addresses have failed as the settings say
        self.is_alive = False  # so many have been heard that it cannot be so; False: not known yet, or failed
        self._settings = settings
        self._watched_s = 0.0
        self._looked_s = now_s
        self._watches = {a.address: _Watch(a, 0.0, now_s) for a in settings.addresses}

    def edit(self, settings: MonitorSettings, now_s: float) -> None:
        """FO-11: addresses whose settings are the same go on; all others begin with a whole countdown."""
        known = self._watches
        self._settings = settings
        self._watches = {}
        for address in settings.addresses:
            same = known.get(address.address)
            if same is None or same.settings != address:
                same = _Watch(address, self._watched_s, now_s)
            self._watches[address.address] = same

    @property
    def pause_s(self) -> float:
        """Until the next look: what has arrived is read within a part of the usual time."""
        nearly = any(each.is_nearly_failed for watch in self._watches.values() for each in watch.countdowns)
        return self.period_s * (limits.MONITOR_GRACE if nearly else 1.0)

    def fails_within(self, seconds: float) -> bool:
        """Whether it counts as failed then, unless an answer comes."""
        watches = [watch for watch in self._watches.values() if watch.settings.monitored]
        soon = [watch.remaining_s(self._watched_s) <= seconds for watch in watches]
        return any(soon) if self._settings.fail_when is FailWhen.ANY else bool(soon) and all(soon)

    @property
    def period_s(self) -> float:
        """Looks are to come so often; whatever time passes without is not watched."""
        shortest_s = min((a.interval_s for a in self._settings.addresses), default=limits.MONITOR_INTERVAL_S)
        return min(shortest_s / limits.MONITOR_LOOKS, limits.MONITOR_LOOK_MAX_S)

    def look(self, now_s: float) -> list[Change]:
        """What is different from the last look: addresses first, then the whole."""
        self._watched_s = self._watched_at(now_s)
        self._looked_s = max(now_s, self._looked_s)
        changes = [change for watch in self._watches.values() if (change := watch.look(self._watched_s))]
        before, self.failed = self.failed, self._has_failed()
        self.is_alive = self._is_alive()
        if self.failed != before:
            failed = [watch for watch in self._watches.values() if watch.failed]
            reason = "; ".join(f"{w.settings.address}: {w.reason}" for w in failed)
            changes.append(Change(News.FAILED if self.failed else News.ALIVE, reason=reason))
        return changes

    def _watched_at(self, now_s: float) -> float:
        elapsed_s = max(0.0, now_s - self._looked_s)
        return self._watched_s + min(elapsed_s, self.period_s * limits.MONITOR_LATE)

    def _has_failed(self) -> bool:
        watched = [watch.failed for watch in self._watches.values() if watch.settings.monitored]
        if self._settings.fail_when is FailWhen.ANY:
            return any(watched)
        return bool(watched) and all(watched)

    def _is_alive(self) -> bool:
        heard = [watch.answers for watch in self._watches.values() if watch.settings.monitored]
        return any(heard) if self._settings.fail_when is FailWhen.ALL else all(heard)

    def answers(self, address: str) -> bool:
        """Whether this one was heard, and has not failed since."""
        return self._watches[address].answers

    # --- probes ---

    def due(self, now_s: float) -> list[Probe]:
        """What is to be sent now; it counts as sent."""
        return [
            Probe(address, each.check, each.send(self._watched_at(now_s), now_s))
            for address, watch in self._watches.items()
            for each in watch.countdowns
            if each.due_s <= now_s
        ]

    def answered(self, probe: Probe) -> None:
        """However late it is: whoever answers lives."""
        if (countdown := self._countdown(probe)) is not None:
            countdown.answered(self._watched_s)

    def silent(self, probe: Probe, reason: str) -> None:
        """Why there is no answer, for people."""
        if (countdown := self._countdown(probe)) is not None:
            countdown.reason = reason

    def unable(self, probe: Probe, reason: str) -> None:
        """This host could not ask: see `_Countdown.unable`."""
        if (countdown := self._countdown(probe)) is not None:
            countdown.unable(probe.number, reason)

    def _countdown(self, probe: Probe) -> _Countdown | None:
        watch = self._watches.get(probe.address)
        found = watch.countdowns if watch is not None else ()
        return next((each for each in found if each.check == probe.check), None)

    # --- looking at it ---

    def views(self) -> Sequence[AddressView]:
        return [watch.view(self._watched_s) for watch in self._watches.values()]


def name_of(check: Check) -> str:
    """As users type it."""
    return f"{check.kind}:{check.argument}" if check.argument else str(check.kind)
