"""The bucket of a bandwidth limit: who may send how much, and when. Pure: whoever calls says what time it is.

An even limit is the virtual scheduling of the generic cell rate algorithm (ITU-T I.371): the bucket is one
moment, at which all that was granted so far will have had its time. Whoever takes is given the next part of
the line from that moment on, so that any number of takers share it exactly, in the order in which they came,
whatever their clocks wake them late by. Who is later than that, as on a host under load, gets the lost time
back over the next minute, so that the average is kept as well. A limit with seconds is a window: it begins
with the first byte, and what is used up in it is there again when it is over.
"""

from dataclasses import dataclass

from replicator import limits
from replicator.transmission import Limit


@dataclass
class Bucket:
    """`due_ns`: when all that was granted has had its time; of a limit with seconds: when its window is over.
    `used`: bytes of that window. `arrears_ns`: time of an even limit that nobody has used.
    """

    due_ns: int = 0
    used: int = 0
    arrears_ns: int = 0

    def room(self, limit: Limit, now_ns: int) -> int:
        """How much may be taken in one go, at most; 0: nothing before `due_ns`."""
        if not limit.seconds:
            return slice_bytes(limit)
        if now_ns >= self.due_ns:
            return min(limit.bytes, limits.LIMIT_SLICE_MAX_BYTES)
        return max(min(limit.bytes - self.used, limits.LIMIT_SLICE_MAX_BYTES), 0)

    def take(self, limit: Limit, count: int, now_ns: int) -> int:
        """Take `count` bytes, whatever there is room for. Returns when they may be sent (ns)."""
        if limit.seconds:
            if now_ns >= self.due_ns:
                self.due_ns, self.used = now_ns + int(limit.seconds * 1e9), 0
            self.used += count
            return now_ns
        # Who comes late by no more than the slack has missed nothing. More of it comes back little by little,
        # or a second would get too much.
        at_ns = max(self.due_ns, now_ns - limits.LIMIT_SLACK_NS)
        arrears_ns = min(self.arrears_ns + at_ns - self.due_ns, limits.LIMIT_ARREARS_NS)
        takes_ns = int(count * 1e9 / limit.bytes_per_s)
        repaid_ns = min(arrears_ns, int(takes_ns * limits.LIMIT_REPAID))
        self.due_ns, self.arrears_ns = at_ns + takes_ns - repaid_ns, arrears_ns - repaid_ns
        return at_ns


def slice_bytes(limit: Limit) -> int:
    """What is sent at a time under an even limit."""
    share = int(limit.bytes_per_s * limits.LIMIT_SLICE_S)
    return min(max(share, limits.LIMIT_SLICE_MIN_BYTES), limits.LIMIT_SLICE_MAX_BYTES)
