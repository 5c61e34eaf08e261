"""Automatic compression: which level, if any, brings the most data over this line now. Pure: whoever calls
says what time it is (monotonic ns).

Off is the rule where the line keeps up with its source. Where it does not, the rate at which data would
arrive is the smaller of two: how fast a level compresses (measured, so a busy host counts), and what the line
takes times how well it compresses (measured as well; levels that were not tried are guessed from one that
was). The best level is taken. It has to show that more arrives than before, for the line may not have been
what everybody waited for; else it is off for a while. Data that cannot be compressed is recognised frame by
frame, by a sample.
"""

from typing import NamedTuple

from replicator import limits

_GUESS = ((270e6, 2.5), (120e6, 2.7), (79e6, 2.9), (35e6, 3.0), (20e6, 3.05))
"""(bytes/s, ratio) of the levels from 1 on, text on one processor of 2024: only how they compare matters."""
_GAIN = 1.1  # anything less is not worth a change


class Look(NamedTuple):
    """The session's counters, all ever. `limit_bytes_per_s`: of a bandwidth limit."""

    plain_bytes: int  # written, before compression
    delivered_bytes: int  # taken by the line
    busy_ns: int  # in which the line, or a limit, had something that waited for it
    limit_bytes_per_s: float | None
    others_busy: float  # 0 to 1: processor time that others use


class AutoLevel:
    """`level`: of the slider; 0: off."""

    def __init__(self) -> None:
        self.level = 0
        self._speed = [guess[0] for guess in _GUESS]  # bytes/s
        self._ratio = [guess[1] for guess in _GUESS]
        self._link: float | None = None  # bytes/s
        self._last: tuple[int, Look] | None = None
        self._incompressible = False  # the last frame was
        self._saturated = 0  # looks in a row
        self._before: float | None = None  # plain bytes/s, when the level was off
        self._on_since_ns = 0
        self._tried = False
        self._best = 0.0  # plain bytes/s since then
        self._hold_until_ns = 0
        self._hold_ns = limits.AUTO_HOLD_NS

    def next_level(self) -> int:
        """For the next frame, if a `sampled` part of it can be compressed; 0: as it is."""
        return self.level

    def sampled(self, *, compressible: bool) -> None:
        """What a sample of the next frame says of it."""
        self._incompressible = not compressible

    def packed(self, level: int, plain_bytes: int, packed_bytes: int, took_ns: int) -> None:
        """A frame was compressed."""
        if (
            packed_bytes > 0.9 * plain_bytes
            or plain_bytes < limits.PACKED_THREAD_BYTES
            or level > len(_GUESS)
        ):
            return  # it says more of calls, or of one frame, than of compression
        index = level - 1
        speed, ratio = plain_bytes * 1e9 / max(took_ns, 1), plain_bytes / packed_bytes
        faster = (0.8 * self._speed[index] + 0.2 * speed) / _GUESS[index][0]
        better = (0.8 * self._ratio[index] + 0.2 * ratio) / _GUESS[index][1]
        # What is learnt of one level is true of the host and of the data.
        self._speed = [guess[0] * faster for guess in _GUESS]
        self._ratio = [max(guess[1] * better, 1.0) for guess in _GUESS]

    def is_due(self, now_ns: int) -> bool:
        return self._last is None or now_ns - self._last[0] >= limits.AUTO_LOOK_NS

    def look(self, now_ns: int, look: Look) -> None:
        """Decide again, if `is_due`."""
        if self._last is None:
            self._last = (now_ns, look)
            return
        last_ns, last = self._last
        elapsed_ns = now_ns - last_ns
        if not self.is_due(now_ns):
            return
        self._last = (now_ns, look)
        busy_ns = look.busy_ns - last.busy_ns
        plain = (look.plain_bytes - last.plain_bytes) * 1e9 / elapsed_ns
        if elapsed_ns > 10 * limits.AUTO_LOOK_NS:
            self._saturated = 0
            return  # a pause says nothing
        busy = busy_ns >= 0.7 * elapsed_ns
        self._saturated = self._saturated + 1 if busy else 0
        delivered = look.delivered_bytes - last.delivered_bytes
        if busy:
            self._note_link(delivered * 1e9 / busy_ns, look)
        elif self._link is not None and delivered * 1e9 > self._link * max(busy_ns, 1):
            self._note_link(delivered * 1e9 / max(busy_ns, 1), look)  # it has become faster
        if not self.level:
            self._maybe_on(now_ns, plain, look)
        else:
            self._adapt(now_ns, plain, look)

    def _note_link(self, rate: float, look: Look) -> None:
        if look.limit_bytes_per_s is not None:
            rate = min(rate, look.limit_bytes_per_s)
        self._link = rate if self._link is None else 0.5 * self._link + 0.5 * rate

    def _maybe_on(self, now_ns: int, plain: float, look: Look) -> None:
        if self._saturated < 2 or now_ns < self._hold_until_ns or self._link is None:
            return
        level = self._best_level(look, 0)
        if level:
            self.level = level
            self._before, self._best, self._tried = plain, 0.0, False
            self._on_since_ns = now_ns
            self._incompressible = False

    def _adapt(self, now_ns: int, plain: float, look: Look) -> None:
        self._best = max(self._best, plain)
        if not self._tried and self._best > _GAIN * (self._before or 0.0):
            self._tried = True
            self._hold_ns = limits.AUTO_HOLD_NS
        if not self._tried and not self._incompressible and now_ns - self._on_since_ns > limits.AUTO_TRIAL_NS:
            self._off(now_ns, self._hold_ns)
            self._hold_ns = min(2 * self._hold_ns, limits.AUTO_HOLD_MAX_NS)
            return
        if self._link is not None and not self._saturated and plain < 0.5 * self._link:
            self._off(now_ns, 0)  # all of it would go as it is
            return
        self.level = self._best_level(look, self.level)
        if not self.level:
            self._off(now_ns, 0)

    def _off(self, now_ns: int, hold_ns: int) -> None:
        self.level = 0
        self._saturated = 0
        self._hold_until_ns = now_ns + hold_ns

    def _best_level(self, look: Look, present: int) -> int:
        assert self._link is not None
        highest = min(limits.AUTO_LEVEL_MAX, len(_GUESS))
        if look.others_busy * 100 >= limits.AUTO_BUSY_PERCENT:
            highest = 1
        rates = [self._link]
        rates += [min(0.8 * s, self._link * r) for s, r in zip(self._speed, self._ratio, strict=True)]
        best = present if present <= highest else highest
        for level in range(highest + 1):
            if rates[level] > _GAIN * rates[best]:
                best = level
        return best
