"""Keeps idle processors from halting while a mount is busy.

Between a request and its reply the program sleeps, and its processor has nothing to do: it halts, and takes
longer to come back than the request took to be served (a virtual machine leaves to its host and returns).
Holding /dev/cpu_dma_latency open at 0 makes idle processors look for work instead. That costs power, on all
of them, so it is done only while requests come in quick succession.

Source: Documentation/power/pm_qos_interface.rst and admin-guide/pm/cpuidle.rst of Linux.
"""

import os
import struct
import time
from contextlib import suppress

from replicator import limits

_PATH = "/dev/cpu_dma_latency"
_NO_LATENCY = struct.pack("i", 0)


class Awake:
    """Told each request. One thread uses it."""

    __slots__ = ("_descriptor", "_left", "_path", "_since")

    def __init__(self, wanted: bool = True, path: str = _PATH) -> None:
        self._path = path if wanted else ""
        self._descriptor = -1
        self._left = limits.AWAKE_REQUESTS
        self._since = 0.0

    @property
    def timeout_ms(self) -> int | None:
        """How long a sleep may last before `release` is due."""
        return None if self._descriptor < 0 else limits.AWAKE_MS

    def served(self) -> None:
        self._left -= 1
        if self._left:
            return
        self._left = limits.AWAKE_REQUESTS
        now = time.perf_counter()
        is_busy = now - self._since < limits.AWAKE_MS / 1000
        self._since = now
        if is_busy and self._descriptor < 0:
            self._hold()
        elif not is_busy:
            self.release()

    def _hold(self) -> None:
        if not self._path:
            return
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._descriptor, _NO_LATENCY)
        except OSError:  # no such device in a container, or no privilege: it is only slower
            self._path = ""
            self.release()

    def release(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def is_worthwhile(idle: str, processors: int) -> bool:
    """Of a mount's option `idle`: `poll` and `sleep` say it, `auto` spares hosts with many processors."""
    return idle == "poll" or (idle == "auto" and processors <= limits.AWAKE_PROCESSORS)
