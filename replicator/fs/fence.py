"""The fence of a mount: until when its programs may change something, and what happens to them afterwards.

A page of shared memory, written by the agent, read by the capture before each change. It outlives both, and
holds until the host is booted: its clock counts from there. A page of another boot, or none where one should
be, closes the mount.

    magic (8 bytes) | - (8) | until, ns of CLOCK_BOOTTIME (8) | mode (8) | boot id, as text (36)

Words are stored whole, the mode first: whoever sees a fence closed sees what that means.
"""

import errno
import logging
import mmap
import os
import time
from array import array
from contextlib import suppress
from typing import Final

from replicator.fences import FenceMode
from replicator.world import MappedFile

logger = logging.getLogger(__name__)

_MAGIC: Final = int.from_bytes(b"RPFENCE1", "little")
_BYTES: Final = 4096
_MAGIC_AT, UNTIL_AT, MODE_AT = 0, 2, 3  # words
_BOOT: Final = slice(32, 68)
BOOTTIME: Final = time.CLOCK_BOOTTIME

clock_ns = time.clock_gettime_ns

ERRNO: Final = {FenceMode.READ_ONLY: errno.EROFS, FenceMode.IO_ERROR: errno.EIO}


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: time since the boot, in which the host slept as well."""
    return clock_ns(BOOTTIME)


def _boot_id() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


class FencePage:
    """One page, for whoever writes it. Raises OSError."""

    def __init__(self, path: str) -> None:
        """Makes it, closed for changes, if there is none of this boot."""
        self._memory = MappedFile(path, _BYTES, create=True)
        self._words = self._memory.buffer.cast("Q")
        boot_id = _boot_id()
        if self._words[_MAGIC_AT] != _MAGIC or bytes(self._memory.buffer[_BOOT]) != boot_id:
            self._words[UNTIL_AT] = 0
            self._words[MODE_AT] = FenceMode.READ_ONLY
            self._memory.buffer[_BOOT] = boot_id
            self._words[_MAGIC_AT] = _MAGIC

    @classmethod
    def find(cls, path: str) -> "FencePage | None":
        """That of this boot. None: there is none, or it is of another."""
        with suppress(OSError, ValueError):
            Fence.at(path)
            return cls(path)
        return None

    @classmethod
    def was_frozen(cls, path: str) -> bool:
        """Whether somebody had frozen it, in whatever boot: that ends when it is thawed."""
        with suppress(OSError, ValueError):
            with open(path, "rb") as file:
                words = memoryview(file.read(_BOOT.start)).cast("Q")
            return words[_MAGIC_AT] == _MAGIC and words[MODE_AT] == FenceMode.FROZEN
        return False

    def sync(self) -> None:
        """What it says is on the disk."""
        self._memory.flush()

    @property
    def until_ns(self) -> int:
        return self._words[UNTIL_AT]

    @property
    def mode(self) -> FenceMode:
        return FenceMode(self._words[MODE_AT])

    def set(self, mode: FenceMode, until_ns: int) -> None:
        """Changes are carried out until then, and as `mode` says from then on. 0: from now on."""
        self._words[MODE_AT] = mode
        self._words[UNTIL_AT] = until_ns

    @property
    def is_open(self) -> bool:
        return clock_ns(BOOTTIME) < self._words[UNTIL_AT]

    def close(self) -> None:
        self._words.release()
        self._memory.close()

    def remove(self) -> None:
        self._memory.remove()
        self.close()


class Fence:
    """The same, for whoever obeys it. Any thread may ask."""

    def __init__(self, words: memoryview) -> None:
        self.words = words
        """For the one comparison that each change costs: open while `CLOCK_BOOTTIME < words[UNTIL_AT]`."""

    @classmethod
    def at(cls, path: str) -> "Fence":
        """Raises OSError, ValueError: it says nothing in this boot."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            page = memoryview(mmap.mmap(descriptor, _BYTES, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)
        words = page.cast("Q")
        if words[_MAGIC_AT] != _MAGIC or bytes(page[_BOOT]) != _boot_id():
            raise ValueError(f"{path}: not of this boot")
        return cls(words)

    @classmethod
    def fixed(cls, mode: FenceMode, until_ns: int = 0) -> "Fence":
        """One that nobody changes."""
        return cls(memoryview(array("Q", [_MAGIC, 0, until_ns, mode])))

    def closed(self) -> FenceMode | None:
        """What is to be done with a change; None: nothing, it is open."""
        words = self.words
        if clock_ns(BOOTTIME) < words[UNTIL_AT]:
            return None
        mode = FenceMode(words[MODE_AT])
        return None if mode is FenceMode.NONE else mode


def fence_at(path: str) -> Fence | None:
    """The fence of a mount; "": it has none."""
    if not path:
        return None
    try:
        return Fence.at(path)
    except (OSError, ValueError) as error:
        logger.error("the fence cannot be read, so nothing may be changed: %s", error)
        return Fence.fixed(FenceMode.READ_ONLY)
