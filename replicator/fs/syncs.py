"""The syncs that programs wait for: by the kernel's ring if it has one for us, else by threads.

What a program is told to be durable must not be news to a reader after a loss of power. So before its file,
the activity log is synced, if that has something; and that is done at once anyway, so that readers get on.
"""

import logging
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from replicator import limits
from replicator.fs.kernel_binding import Failure, Header, Held, Later, Reply, Sync
from replicator.fs.sync_ring import SyncRing

logger = logging.getLogger(__name__)

_LOG_KEY = (1 << 64) - 1  # in the ring; no request has this number


class Log(Protocol):
    """What is needed of `replicator.queue.activity.ActivityLog`; see there."""

    is_dirty: bool
    on_dirty: Callable[[], None]

    @property
    def is_covering(self) -> bool: ...
    def begin_sync(self) -> int | None: ...
    def end_sync(self, error: OSError | None = None) -> None: ...


class Syncs:
    """`reply` is called when one is answered, by `begin`, `tend` or `finish`. For one thread."""

    def __init__(
        self,
        reply: Callable[[Header, Reply], None],
        sync: Callable[[int, bool], None],
        log: Log | None,
        lock: threading.Lock,
        in_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        """`sync`: of a handle, content only or not; used without a ring. `lock` guards `log`."""
        self._reply = reply
        self._sync = sync
        self._log = log
        self._lock = lock
        self._in_thread = in_thread
        self._pending: dict[int, tuple[Header, Sync]] = {}  # by the number of the request
        # Those that wait for the sync of the log that is under way, and for the next.
        self._with_log: list[tuple[Header, Sync]] = []
        self._after_log: list[tuple[Header, Sync]] = []
        self._log_in_ring = False
        self._woken = self._rung = False
        self.thread = 0
        """That of `tend`: it need not be woken."""
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when `tend` has something to do that this thread does not know of."""
        if log is not None:
            log.on_dirty = self.wake
            self._woken = log.is_dirty
        self.ring: SyncRing | None = None
        try:
            self.ring = SyncRing(limits.SYNCS)
        except OSError as error:  # an old kernel, or one that forbids it
            logger.info("syncs are done by threads: %s", error.strerror)

    def begin(self, header: Header, sync: Sync) -> None:
        log = self._log
        if log is None or log.is_covering or self.ring is None:
            self._begin(header, sync)
            return
        with self._lock:
            waiting = self._after_log if log.is_dirty else self._with_log
        waiting.append((header, sync))
        self.tend()

    def _begin(self, header: Header, sync: Sync) -> None:
        unique = header[2]
        if self.ring is not None and self.ring.submit(sync.handle, sync.data_only, unique):
            self._pending[unique] = header, sync
            return

        def wait() -> bytes | Held:
            self.cover()
            self._sync(sync.handle, sync.data_only)
            return sync.reply

        self._reply(header, Later(wait))

    def cover(self) -> None:
        """Return when the log has all that was noted before the call. In any thread."""
        log = self._log
        while log is not None and not log.is_covering:
            with self._lock:
                handle = log.begin_sync()
            if handle is None:  # another one is under way
                threading.Event().wait(limits.SYNC_LOOK_S)
            else:
                self._sync_log(handle)

    def _sync_log(self, handle: int) -> None:
        """In any thread."""
        problem: OSError | None = None
        try:
            os.fdatasync(handle)
        except OSError as error:
            problem = error
        with self._lock:
            assert self._log is not None
            self._log.end_sync(problem)
        self.wake()

    # --- looking after them ---

    def wake(self) -> None:
        """There is something to `tend`. From any thread, also when nobody tends any more."""
        if self.bell < 0:
            return  # what is journaled after the end is covered when the journal is closed
        if threading.get_ident() != self.thread:
            self._rung = True
            with suppress(OSError):
                os.eventfd_write(self.bell, 1)
        self._woken = True

    @property
    def are_pending(self) -> bool:
        """Whether `tend` may have something to do."""
        return self._woken or bool(self._pending) or self._log_in_ring

    def tend(self) -> None:
        """Answer those that are done, and begin what can be begun."""
        if self._woken:
            self._woken = False
            if self._rung:
                self._rung = False
                with suppress(BlockingIOError):
                    os.eventfd_read(self.bell)
        if self.ring is not None:
            for unique, error in self.ring.done():
                if unique == _LOG_KEY:
                    self._log_is_synced(error)
                else:
                    header, sync = self._pending.pop(unique)
                    self._reply(header, Failure(error) if error else sync.reply)
        log = self._log
        if log is not None and not self._log_in_ring and (log.is_dirty or self._with_log or self._after_log):
            self._tend_log(log)

    def _tend_log(self, log: Log) -> None:
        with self._lock:
            covering = log.is_covering
            handle = None if covering else log.begin_sync()
        if handle is not None:
            self._with_log += self._after_log
            self._after_log = []
            if self.ring is not None and self.ring.submit(handle, True, _LOG_KEY):
                self._log_in_ring = True
            else:
                self._in_thread(lambda: self._sync_log(handle))
        elif covering:
            waiting, self._with_log, self._after_log = self._with_log + self._after_log, [], []
            for header, sync in waiting:
                self._begin(header, sync)

    def _log_is_synced(self, error: int) -> None:
        self._log_in_ring = False
        with self._lock:
            assert self._log is not None
            self._log.end_sync(OSError(error, os.strerror(error)) if error else None)
        waiting, self._with_log = self._with_log, []
        for header, sync in waiting:
            self._begin(header, sync)

    def finish(self) -> None:
        """Answer all, however long it takes."""
        while self.ring is not None and (
            self._pending or self._log_in_ring or self._with_log or self._after_log
        ):
            self.tend()
            if self._pending or self._log_in_ring:
                select.select([self.ring.fileno(), self.bell], [], [])
        self.cover()
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        os.close(self.bell)
        self.bell = -1
