"""What of a copy is not on stable storage yet: a few files, or who knows what.

Single files are synced one by one, which commits what their file system knows of them and no more. syncfs
also waits for all that other programs have written there, and writes back metadata whose time has not come:
for one append on ext4, 44 KiB reach the device instead of 28.
"""

import os
from collections.abc import Callable, Hashable
from threading import Lock

from replicator import limits


class Unsynced:
    """Filled by the thread that applies, emptied by another one that syncs."""

    def __init__(self) -> None:
        """A predecessor may have left anything."""
        self._lock = Lock()
        self._files: dict[Hashable, int] | None = None  # None: anything may have changed

    def has(self, key: Hashable) -> bool:
        """Whether what `key` names will be synced, whatever is done to it."""
        files = self._files
        return files is None or key in files

    def add_file(self, key: Hashable, descriptor: int) -> None:
        """A file was changed that is open as `descriptor`. OSError if it cannot be opened again."""
        # For reading: a file that somebody has open for writing cannot be executed (ETXTBSY).
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with self._lock:
            if self._files is not None and len(self._files) < limits.SYNC_FILES:
                self._files[key] = own
                return
        os.close(own)
        self.add_anything()

    def add_anything(self) -> None:
        with self._lock:
            files, self._files = self._files, None
        _close(files)

    def sync(self, sync_all: Callable[[], None]) -> None:
        """Bring it to stable storage; what is added meanwhile is for the next time. OSError: nothing is
        known to be there.
        """
        with self._lock:
            files, self._files = self._files, {}
        try:
            if files is None:
                sync_all()
            else:
                for descriptor in files.values():
                    os.fsync(descriptor)
        except BaseException:
            self.add_anything()
            raise
        finally:
            _close(files)

    def close(self) -> None:
        _close(self._files)
        self._files = None


def _close(files: dict[Hashable, int] | None) -> None:
    for descriptor in files.values() if files else ():
        os.close(descriptor)
