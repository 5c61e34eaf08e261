"""A lock that says that a process is there: it is held for as long as that lives, however that ends."""

import fcntl
import os
from pathlib import Path


def is_held(path: Path) -> bool:
    """Whether somebody has locked the file exclusively (flock(2)). False if there is none. OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
