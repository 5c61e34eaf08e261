"""Settings of the Python interpreter for processes that move data."""

import gc
import sys

from replicator import limits


def tune() -> None:
    """Call once everything is imported.

    What is loaded by then lives as long as the process: the collector need not look at it again and again.
    What a batch makes dies by reference counts; the collector only has to find the rare cycle.
    """
    sys.setswitchinterval(limits.THREAD_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(limits.COLLECT_AFTER_OBJECTS, 20, 50)
