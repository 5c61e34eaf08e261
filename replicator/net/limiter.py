"""How fast a session may write: two limits at a time, of its connection and of its target.

The target's bucket lies in shared memory, where all senders to that target take from it: they share one limit
without asking anybody. Both limits may change at any moment; whoever waits for one looks again.
"""

from collections.abc import Callable

import trio
import xxhash

from replicator import limits
from replicator.net.bucket import Bucket
from replicator.transmission import Limit
from replicator.world import Clock, SharedMemory

PAGE_BYTES = 64
_KEY, _DUE, _USED, _ARREARS = range(4)


class SharedBucket:
    """A bucket in a page that several processes have mapped. A page that was written for another limit, or in
    another boot, is begun anew.
    """

    def __init__(self, page: SharedMemory, boot_id: str) -> None:
        self._page = page
        self._boot_id = boot_id
        self._words = page.buffer.cast("Q")

    def use(self, limit: Limit, now_ns: int, step: Callable[[Bucket], None]) -> None:
        """Do this with the bucket, alone. `step` may not wait."""
        key = xxhash.xxh3_64_intdigest(f"{limit.bytes} {limit.seconds} {self._boot_id}".encode())
        words = self._words
        with self._page.lock():
            fresh = words[_KEY] != key
            bucket = Bucket() if fresh else Bucket(words[_DUE], words[_USED], words[_ARREARS])
            if fresh and not limit.seconds:
                # Those who share it hear of another limit one after the other. Until all have, each begins
                # anew all the time, and must not have something for nothing each time.
                bucket.due_ns = now_ns + int(limits.LIMIT_SLICE_S * 1e9)
            step(bucket)
            words[_KEY], words[_DUE] = key, bucket.due_ns
            words[_USED], words[_ARREARS] = bucket.used, bucket.arrears_ns

    def close(self) -> None:
        self._words.release()
        self._page.close()


class Limiter:
    """`grant` for one task at a time; everything else from any task of the same run."""

    def __init__(self, clock: Clock) -> None:
        self.waited_ns = 0
        """Ever, for a limit: whoever waits long is held by it and not by the line."""
        self._clock = clock
        self._own: Limit | None = None
        self._bucket = Bucket()
        self._target: Limit | None = None
        self._shared: SharedBucket | None = None
        self._changed = trio.Event()
        self._reserved: tuple[int, int] | None = None  # (bytes, from when on): granted and not sent yet

    def set_limits(self, own: Limit | None, target: Limit | None, shared: SharedBucket | None) -> None:
        """At once, also for what waits now. A limit without a bucket to share is the connection's alone."""
        if shared is None and target is not None:
            smaller = own is not None and own.bytes_per_s <= target.bytes_per_s
            own, target = (own if smaller else target), None
        if (own, target) == (self._own, self._target) and shared is self._shared:
            return
        if own != self._own:
            self._bucket = Bucket(due_ns=0 if own is None or own.seconds else self._clock.monotonic_ns())
        self._own, self._target, self._shared = own, target, shared
        self._reserved = None
        self._changed.set()
        self._changed = trio.Event()

    @property
    def bytes_per_s(self) -> float | None:
        """What holds now; None: no limit."""
        rates = [limit.bytes_per_s for limit in (self._own, self._target) if limit is not None]
        return min(rates, default=None)

    async def grant(self, wanted: int) -> int:
        """Wait until something may be sent. Returns how many bytes, from 1 to `wanted`; they count as sent.

        Not later than a heartbeat a few of them may go in any case: else a peer would miss them in the middle
        of a frame, and take this side for dead.
        """
        began_s = trio.current_time()
        trickle_s = began_s + limits.HEARTBEAT_S
        try:
            while True:
                changed = self._changed
                now_ns = self._clock.monotonic_ns()
                if self._reserved is None:
                    self._reserved, until_ns = self._reserve(wanted, now_ns)
                if self._reserved is not None:
                    granted, until_ns = self._reserved
                    if until_ns <= now_ns:
                        return self._use(min(granted, wanted))
                if trio.current_time() >= trickle_s:
                    return self._trickle(wanted, now_ns)
                until_s = trio.current_time() + max(until_ns - now_ns, 0) / 1e9
                with trio.move_on_at(min(until_s, trickle_s)):
                    await changed.wait()
        finally:
            self.waited_ns += int((trio.current_time() - began_s) * 1e9)

    def charge(self, count: int) -> None:
        """These bytes went beside what was granted: what comes next waits for them."""
        if count > 0:
            self._reserve(count, self._clock.monotonic_ns(), force=True)

    def _use(self, count: int) -> int:
        assert self._reserved is not None
        granted, at_ns = self._reserved
        self._reserved = (granted - count, at_ns) if count < granted else None
        return count

    def _trickle(self, wanted: int, now_ns: int) -> int:
        count = min(wanted, limits.LIMIT_TRICKLE_BYTES)
        if self._reserved is not None:
            return self._use(min(count, self._reserved[0]))
        self._reserve(count, now_ns, force=True)
        return count

    def _reserve(
        self, wanted: int, now_ns: int, *, force: bool = False
    ) -> tuple[tuple[int, int] | None, int]:
        """((bytes, from when on) or None, when to look again). `force`: all of it, whatever there is room
        for.
        """
        own, target, shared = self._own, self._target, self._shared
        if own is None and target is None:
            return (wanted, now_ns), now_ns
        found: tuple[tuple[int, int] | None, int] = (None, now_ns)

        def step(bucket: Bucket | None) -> None:
            nonlocal found
            both = [(own, self._bucket)] if own is not None else []
            if bucket is not None and target is not None:
                both.append((target, bucket))
            rooms = [bucket.room(limit, now_ns) for limit, bucket in both]
            count = wanted if force else min(wanted, *rooms)
            if count:
                at_ns = max(bucket.take(limit, count, now_ns) for limit, bucket in both)
                found = (count, at_ns), at_ns
            else:
                empty = [b.due_ns for (_, b), room in zip(both, rooms, strict=True) if not room]
                found = None, max(empty)

        if target is not None and shared is not None:
            shared.use(target, now_ns, step)
        else:
            step(None)
        return found
