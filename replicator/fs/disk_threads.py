"""Threads for what waits for a disk while other requests are served.

In place of the standard library's executor: handing something to that costs more than many a disk takes.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)


class DiskThreads:
    """At most `count`, started when they are needed. `submit` and `close` are for one thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.busy = 0
        """What is not done yet."""

    def submit(self, function: Callable[[], None]) -> None:
        with self._lock:
            self.busy += 1
        if self.busy > len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name=f"disk {len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._queue.put(function)

    def _work(self) -> None:
        while (function := self._queue.get()) is not None:
            try:
                function()
            except Exception:
                logger.exception("in a thread for the disk")
            with self._lock:
                self.busy -= 1

    def close(self) -> None:
        """Returns when all that was submitted is done."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
