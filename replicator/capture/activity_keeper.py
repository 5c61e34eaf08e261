"""Keeps the activity log of a capture short: what all readers and the source's own storage have is not hot.

`queue/activity.py` says what a file of it has to wait for. Syncing the source's storage takes time from
applications, so it is done when the source is quiet and most is on its disk by itself, or else now and then.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial

import trio

from replicator import limits
from replicator.errors import JournalError
from replicator.queue.activity import ActivityLog
from replicator.queue.journal import JournalWriter
from replicator.world import World

logger = logging.getLogger("replicator.capture")


class ActivityKeeper:
    """Of one journal that keeps activity. `lock` guards the journal."""

    def __init__(
        self, world: World, journal: JournalWriter, lock: threading.Lock, sync_storage: Callable[[], None]
    ) -> None:
        """`sync_storage`: returns when all that was done to the source so far is on its disk. In a thread."""
        if journal.activity is None:
            raise ValueError("a journal without activity log")
        self.log: ActivityLog = journal.activity
        self._world = world
        self._journal = journal
        self._lock = lock
        self._sync_storage = sync_storage
        self._head = -1
        self._changed_at = self._cold_at = 0.0
        self._dirty = trio.Event()
        self._covered = trio.Event()
        self.storage_syncs = 0

    @property
    def is_hot(self) -> bool:
        """Whether after a loss of power something would have to be compared."""
        log = self.log
        return log.is_broken or log.is_hot or bool(log.closed or self._journal.uncovered_readers())

    # --- from hot to cold ---

    async def keep(self) -> None:
        """Until cancelled."""
        self._changed_at = self._cold_at = trio.current_time()
        trouble = ""
        while True:
            await trio.sleep(limits.ACTIVITY_LOOK_S)
            try:
                await self._look()
                trouble = ""
            except (OSError, JournalError) as error:
                if str(error) != trouble:
                    logger.warning("activity log: %s", error)
                trouble = str(error)

    async def _look(self) -> None:
        log, now = self.log, trio.current_time()
        head = self._journal.position.sequence
        if head != self._head:
            self._head, self._changed_at = head, now
        quiet = now - self._changed_at >= limits.ACTIVITY_QUIET_S
        due = quiet or now - self._cold_at >= limits.ACTIVITY_AGE_S
        if log.is_broken or log.is_full or (due and log.is_hot and not log.closed):
            prepared = await self._world.in_thread(log.prepare_next)
            with self._lock:
                log.rotate(prepared)
        closed = log.closed
        if len(closed) > 1 and await self._world.in_thread(partial(log.merge, closed)):
            with self._lock:
                log.forget(closed[:-1])
        if due:
            await self._become_cold()

    async def _become_cold(self) -> None:
        log, journal = self.log, self._journal
        with self._lock:
            closed = log.closed if log.closed_are_durable else []
            readers = journal.uncovered_readers()
        if not closed and not readers:
            return
        await self._world.in_thread(self._sync_storage)
        self.storage_syncs += 1
        self._cold_at = trio.current_time()
        with self._lock:
            log.forget(closed)
            journal.readers_are_covered(readers)
        if readers:
            await self._world.in_thread(journal.save_header)

    # --- syncs of the log, where no other thread serves ---

    async def run_syncs(self) -> None:
        """Sync the log whenever it has something. Until cancelled."""
        log = self.log
        log.on_dirty = self._note_dirty
        if log.is_dirty:
            self._note_dirty()
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            while (handle := log.begin_sync()) is not None:
                problem: OSError | None = None
                try:
                    await self._world.in_thread(partial(self._world.disk.fsync, handle))
                except OSError as error:
                    problem = error
                log.end_sync(problem)
                self._covered.set()
                self._covered = trio.Event()

    def _note_dirty(self) -> None:
        self._dirty.set()

    async def covered(self) -> None:
        """Return when the log has all that was noted."""
        while not self.log.is_covering:
            await self._covered.wait()
