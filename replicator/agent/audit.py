"""Who uses the agent, and what for, as events: let in, refused, changed.

What is the same again and again is said once in a while, so that nobody floods the log, and drives out what
they did there.
"""

from collections import OrderedDict
from collections.abc import Callable

from replicator import events, limits
from replicator.access import Access, Caller
from replicator.events import EventRing


class Sparing:
    """Whether something is to be said again. Bounded: beyond, what was said longest ago is forgotten."""

    def __init__(self, quiet_s: float, kept: int = limits.AUDIT_KEPT) -> None:
        self._quiet_s = quiet_s
        self._kept = kept
        self._said: OrderedDict[object, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._said)

    def say(self, what: object, now_s: float) -> bool:
        before = self._said.get(what)
        if before is not None and now_s - before < self._quiet_s:
            return False
        self._said[what] = now_s
        self._said.move_to_end(what)
        while len(self._said) > self._kept:
            self._said.popitem(last=False)
        return True


class Audit:
    """`logins`, `failed_logins`: since the agent started (SC-04)."""

    def __init__(self, ring: EventRing, clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._seen = Sparing(limits.AUDIT_QUIET_S)
        self._refused = Sparing(limits.AUDIT_REFUSED_QUIET_S)
        self.logins = 0
        self.failed_logins = 0

    def let_in(self, caller: Caller) -> None:
        """Somebody has logged in."""
        self.logins += 1
        self._seen.say(_who(caller), self._clock())
        self._tell_access(caller)

    def seen(self, caller: Caller) -> None:
        """Somebody is here without a login: known by the socket, or by a certificate."""
        if caller.access is not Access.NONE and self._seen.say(_who(caller), self._clock()):
            self.logins += 1
            self._tell_access(caller)

    def _tell_access(self, caller: Caller) -> None:
        self._ring.add(
            events.ACCESS_GRANTED,
            user=caller.user,
            origin=caller.origin,
            how=caller.how,
            level=caller.access.label,
        )

    def login_failed(self, user: str, origin: str, reason: str) -> None:
        """Each one is said: attempts are slowed down."""
        self.failed_logins += 1
        self._ring.add(events.LOGIN_FAILED, user=user, origin=origin, reason=reason)

    def login_put_off(self, user: str, origin: str, reason: str) -> None:
        self.failed_logins += 1
        if self._refused.say((user, origin, "login"), self._clock()):
            self._ring.add(events.LOGIN_FAILED, user=user, origin=origin, reason=reason)

    def logged_out(self, user: str, origin: str) -> None:
        self._ring.add(events.LOGGED_OUT, user=user, origin=origin)

    def refused(self, caller: Caller, command: str) -> None:
        if caller.access is Access.NONE:
            self.failed_logins += 1
        if self._refused.say((_who(caller), caller.access), self._clock()):
            self._ring.add(
                events.ACCESS_REFUSED,
                user=caller.user,
                origin=caller.origin,
                level=caller.access.label,
                command=command,
            )

    def changed(self, caller: Caller, command: str, failure: str = "") -> None:
        """`failure`: why nothing came of it."""
        type_ = events.NOT_CHANGED if failure else events.CHANGED
        self._ring.add(
            type_, user=caller.user, origin=caller.origin, command=command, result=failure or "done"
        )


def _who(caller: Caller) -> tuple[object, ...]:
    return (caller.user, caller.origin.split(" ")[0], caller.how, caller.access)
