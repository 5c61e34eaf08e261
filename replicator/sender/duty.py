"""The part of its time that a recovery works: phases of work, each followed by a rest in proportion.

A phase ends when everything that was read in it is on the target: the work is the reading, the way, and what
the target does with it, so its part of the time is right whichever of them is the slowest. Pure: whoever
calls says what time it is (monotonic ns).
"""

from replicator import limits

WAIT_FOR_NEWS = -1
"""Answer of `pause_ns`: it depends on something else than time."""


class Duty:
    """`share`: 0 (never) to 1 (always). It may change at any time, also for the rest under way."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self._work_since_ns: int | None = None
        self._worked_ns = 0  # in the phase before
        self._rest_since_ns: int | None = None

    def pause_ns(self, now_ns: int, *, in_flight: bool) -> int:
        """How long to wait before the next step; 0: it may be taken; `WAIT_FOR_NEWS`: until something has
        arrived, or the share is another.

        `in_flight`: something that was read has not arrived yet.
        """
        if self.share >= 1.0:
            self._work_since_ns = self._rest_since_ns = None
            return 0
        if self.share <= 0.0:
            self.rest(now_ns)
            return WAIT_FOR_NEWS
        if self._rest_since_ns is not None:
            end_ns = self._rest_since_ns + int(self._worked_ns * (1.0 / self.share - 1.0))
            if now_ns < end_ns:
                return end_ns - now_ns
            self._rest_since_ns = None
        if self._work_since_ns is None:
            self._work_since_ns = now_ns
        if now_ns - self._work_since_ns < limits.RECOVERY_WORK_NS:
            return 0
        if in_flight:
            return WAIT_FOR_NEWS
        self.rest(now_ns)
        return self.pause_ns(now_ns, in_flight=False)

    def rest(self, now_ns: int) -> None:
        """The phase ends: there is nothing to do, or nothing may be done."""
        if self._work_since_ns is not None:
            self._worked_ns = now_ns - self._work_since_ns
            self._rest_since_ns = now_ns
            self._work_since_ns = None
