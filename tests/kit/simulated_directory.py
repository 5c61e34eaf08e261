"""Where the trees of a simulation are; what its killed processes had open is closed with it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def simulated_directory() -> Iterator[Path]:
    """A directory in memory; names in it get the modes that are asked for. Removed in the end."""
    umask = os.umask(0)
    directory = Path(tempfile.mkdtemp(prefix="replicator-test-sim-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        os.umask(umask)
        _close_below(directory)
        shutil.rmtree(directory)


def _close_below(directory: Path) -> None:
    """The kernel does it for a process that is killed; a simulated one is a cancelled task."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory's own
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{directory}/"):
                os.close(int(name))
