"""How much of a recovery may be on its way at a time, so that a change of an application need not wait long
behind it.

Pieces and records go in one ordered stream. What a change finds before it there has to be sent and put in
place first, so what is on its way is bounded by the time that this takes, as congestion control by delay does
(LEDBAT, RFC 6817): the delay of each batch beyond the shortest one seen is time spent in queues. Pure:
whoever calls says what time it is (monotonic ns).
"""

from collections import deque

from replicator import limits


class InFlight:
    """`bytes`: so many may be on their way."""

    def __init__(self) -> None:
        self.bytes = limits.RECOVERY_WINDOW_FIRST_BYTES
        self._sent: deque[tuple[int, int, int]] = deque()  # (number, bytes before it, when): not arrived yet
        self._shortest_ns: int | None = None  # delay, of this session

    @property
    def part_bytes(self) -> int:
        """Content to read in one step: a few of them make up what may be on its way."""
        return min(max(self.bytes // 4, limits.RECOVERY_PART_MIN_BYTES), limits.PART_BYTES)

    def begin(self) -> None:
        """A session, perhaps on another way."""
        self._sent.clear()
        self._shortest_ns = None

    def sent(self, number: int, ahead_bytes: int, now_ns: int) -> None:
        """This batch is in the stream, and so much of a recovery before it. Numbers only grow."""
        self._sent.append((number, ahead_bytes, now_ns))

    def arrived(self, number: int, now_ns: int) -> None:
        """The target has what was sent up to this batch in place."""
        last: tuple[int, int, int] | None = None
        while self._sent and self._sent[0][0] <= number:
            last = self._sent.popleft()
        if last is None:
            return
        _, ahead_bytes, sent_ns = last
        delay_ns = now_ns - sent_ns
        self._shortest_ns = delay_ns if self._shortest_ns is None else min(delay_ns, self._shortest_ns)
        queued_ns = max(delay_ns - self._shortest_ns, 1)
        # It was queued behind so many bytes: that many times the time there should be are good.
        good = int(ahead_bytes * limits.RECOVERY_DELAY_NS / 2 / queued_ns)
        if good > self.bytes and ahead_bytes <= self.bytes / 2:
            return  # not so much was wanted: it says nothing of what more would do
        good = min(max(good, self.bytes // 2), self.bytes * 2)
        self.bytes = min(max(good, 2 * limits.RECOVERY_PART_MIN_BYTES), limits.PIECE_BYTES_IN_FLIGHT)
