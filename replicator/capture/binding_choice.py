"""Which binding a capture uses."""

import os
import re

from replicator.errors import UsageError

BINDINGS = ("auto", "kernel", "pyfuse3")
_KERNEL_MIN = (5, 4)  # kernel_protocol.MINOR_MIN


def check(binding: str) -> None:
    """Raises UsageError if there is no such binding."""
    if binding not in BINDINGS:
        raise UsageError(f"binding {binding!r}: must be auto, kernel or pyfuse3")


def choose(wanted: str, release: str | None = None) -> str:
    """The binding to use: `kernel` for `auto` where the kernel is new enough. `release`: of the kernel.

    Raises UsageError.
    """
    check(wanted)
    found = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version >= _KERNEL_MIN:
        return "pyfuse3" if wanted == "pyfuse3" else "kernel"
    if wanted == "kernel":
        raise UsageError(
            f"binding kernel: needs Linux {_KERNEL_MIN[0]}.{_KERNEL_MIN[1]}; use auto or pyfuse3"
        )
    return "pyfuse3"
