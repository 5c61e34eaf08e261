"""Settings of the Python interpreter, and of its allocator, for processes that move data."""

import ctypes
import gc
import sys

from replicator import limits

# malloc.h: parameters of mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def tune() -> None:
    """Call once everything is imported.

    What is loaded by then lives as long as the process: the collector need not look at it again and again.
    What a batch makes dies by reference counts; the collector only has to find the rare cycle.
    """
    keep_freed_memory()
    sys.setswitchinterval(limits.THREAD_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(limits.COLLECT_AFTER_OBJECTS, 20, 50)


def keep_freed_memory() -> None:
    """glibc gives a buffer of a megabyte back to the kernel as soon as it is freed, and takes it anew for the
    next piece of a mirror: a third of a receiver's time. See mallopt(3).
    """
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_TRIM_THRESHOLD, 64 * limits.MIB)
    mallopt(_M_TOP_PAD, 16 * limits.MIB)
    mallopt(_M_MMAP_THRESHOLD, 32 * limits.MIB)
