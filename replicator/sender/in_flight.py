"""How much of a recovery may be on its way at a time: so that a change of an application waits only so long
behind it.

Pieces and records go in one ordered stream. What a change finds before it there has to be sent and put in
place first, so what is on its way is bounded by the time this takes, as congestion control by bandwidth and
delay does (BBR, Cardwell et al. 2016): the rate at which pieces arrive at best, times the shortest delay seen
and the time they may spend in queues. The best rate, not the present delay, as processes of a busy host wait
for a processor longer than that: fewer pieces on their way would help nobody.

Pure: whoever calls says what time it is (monotonic ns).
"""

from collections import deque
from typing import NamedTuple

from replicator import limits


class _Batch(NamedTuple):
    number: int
    bytes: int
    ahead_bytes: int  # on their way when it was sent
    arrived_bytes: int  # ever, until then
    sent_ns: int


class InFlight:
    """`bytes`: so many may be on their way."""

    def __init__(self) -> None:
        self.bytes = limits.RECOVERY_WINDOW_FIRST_BYTES
        self._arrived_bytes = 0
        self.begin()

    def begin(self) -> None:
        """A session, perhaps on another way."""
        self._sent: deque[_Batch] = deque()  # and not arrived
        self._arrived_ns = 0  # the last time that something did
        self._shortest_ns: int | None = None  # delay
        self._rates = [0.0, 0.0]  # the best of the present and of the last period, bytes/ns
        self._period_ns: int | None = None

    @property
    def part_bytes(self) -> int:
        """Content to read in one step: a few of them make up what may be on its way."""
        return min(max(self.bytes // 4, limits.RECOVERY_PART_MIN_BYTES), limits.PART_BYTES)

    def sent(self, number: int, size: int, ahead_bytes: int, now_ns: int) -> None:
        """This batch is in the stream, and so much of a recovery before it. Numbers only grow."""
        self._sent.append(_Batch(number, size, ahead_bytes, self._arrived_bytes, now_ns))

    def arrived(self, number: int, now_ns: int) -> None:
        """The target has what was sent up to this batch in place."""
        last: _Batch | None = None
        while self._sent and self._sent[0].number <= number:
            last = self._sent.popleft()
            self._arrived_bytes += last.bytes
        if last is None:
            return
        self._arrived_ns = now_ns
        delay_ns = max(now_ns - last.sent_ns, 1)
        self._shortest_ns = delay_ns if self._shortest_ns is None else min(delay_ns, self._shortest_ns)
        if last.ahead_bytes + last.bytes <= self.bytes / 2:
            return  # not so much was wanted: it says nothing of what could arrive
        self._note_rate((self._arrived_bytes - last.arrived_bytes) / delay_ns, now_ns)
        good = int(max(self._rates) * (self._shortest_ns + limits.RECOVERY_DELAY_NS / 2))
        good = min(max(good, self.bytes // 2), self.bytes * 2)
        self.bytes = min(max(good, 2 * limits.RECOVERY_PART_MIN_BYTES), limits.PIECE_BYTES_IN_FLIGHT)

    def held_ns(self, now_ns: int) -> int:
        """For how long nothing has arrived, though something is on its way."""
        return now_ns - max(self._sent[0].sent_ns, self._arrived_ns) if self._sent else 0

    def _note_rate(self, rate: float, now_ns: int) -> None:
        if self._period_ns is None or now_ns - self._period_ns > limits.RECOVERY_RATE_NS:
            self._period_ns = now_ns
            self._rates = [rate, self._rates[0]]
        self._rates[0] = max(self._rates[0], rate)
