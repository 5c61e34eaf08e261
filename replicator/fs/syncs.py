"""The syncs that programs wait for: by the kernel's ring if it has one for us, else by threads."""

import logging
import select
from collections.abc import Callable

from replicator import limits
from replicator.fs.kernel_binding import Failure, Header, Later, Reply, Sync
from replicator.fs.sync_ring import SyncRing

logger = logging.getLogger(__name__)


class Syncs:
    """`reply` is called when one is answered, by `begin`, `answer` or `finish`. For one thread."""

    def __init__(self, reply: Callable[[Header, Reply], None], sync: Callable[[int, bool], None]) -> None:
        """`sync`: of a handle, content only or not; used without a ring."""
        self._reply = reply
        self._sync = sync
        self._pending: dict[int, tuple[Header, Sync]] = {}  # by the number of the request
        self.ring: SyncRing | None = None
        try:
            self.ring = SyncRing(limits.SYNCS)
        except OSError as error:  # an old kernel, or one that forbids it
            logger.info("syncs are done by threads: %s", error.strerror)

    def begin(self, header: Header, sync: Sync) -> None:
        unique = header[2]
        if self.ring is not None and self.ring.submit(sync.handle, sync.data_only, unique):
            self._pending[unique] = header, sync
            return

        def wait() -> bytes:
            self._sync(sync.handle, sync.data_only)
            return sync.reply

        self._reply(header, Later(wait))

    @property
    def are_pending(self) -> bool:
        return bool(self._pending)

    def answer(self) -> None:
        """Those that are done."""
        if self.ring is None:
            return
        for unique, error in self.ring.done():
            header, sync = self._pending.pop(unique)
            self._reply(header, Failure(error) if error else sync.reply)

    def finish(self) -> None:
        """Answer all, however long it takes."""
        while self._pending and self.ring is not None:
            select.select([self.ring], [], [])
            self.answer()
        if self.ring is not None:
            self.ring.close()
            self.ring = None
