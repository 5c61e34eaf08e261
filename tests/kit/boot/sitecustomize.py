"""A host that was booted again, for the programs of one test: with this directory in PYTHONPATH they find the
boot id in the file that the environment variable TEST_BOOT_ID_FILE names, and not the machine's own.

TEST_PLANTED names a mistake of `kit.failover_planted` that an agent makes. Its children do not.
"""

import builtins
import functools
import os
import sys
from typing import Any

_KERNEL = "/proc/sys/kernel/random/boot_id"
_open = builtins.open


@functools.wraps(_open)
def _open_of_this_boot(file: Any, *arguments: Any, **options: Any) -> Any:
    return _open(os.environ["TEST_BOOT_ID_FILE"] if file == _KERNEL else file, *arguments, **options)


if "TEST_BOOT_ID_FILE" in os.environ:
    builtins.open = _open_of_this_boot

if "TEST_PLANTED" in os.environ and any("replicator.agent.dtd" in word for word in sys.orig_argv):
    import pytest
    from kit import failover_planted

    getattr(failover_planted, os.environ["TEST_PLANTED"])(pytest.MonkeyPatch())
