"""Look at a target at one moment: its receiver stands still meanwhile.

    with frozen(agent.json("status")[0]["receiver_pid"]):
        shutil.copytree(target, somewhere)

What is seen is what a kill of the receiver, or the end of its source, would leave behind.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from kit.patience import until
from replicator.child.control import Control
from replicator.paths import Home

STOP_TIMEOUT_S = 10.0


@contextmanager
def frozen(process_id: int) -> Iterator[float]:
    """All threads of a process stand still inside. Gives the wall-clock time from which on they surely do.

    It may be killed inside.
    """
    os.kill(process_id, signal.SIGSTOP)
    try:
        _wait_stopped(process_id)
        yield time.time()
    finally:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGCONT)


def _wait_stopped(process_id: int) -> None:
    # The signal is sent; a thread inside a system call stops only when that returns.
    until(
        lambda: all(
            _state(process_id, thread) in "TtZX" for thread in os.listdir(f"/proc/{process_id}/task")
        ),
        STOP_TIMEOUT_S,
        0.0005,
        what=f"process {process_id} does not stop",
    )


def _state(process_id: int, thread: str) -> str:
    try:
        with open(f"/proc/{process_id}/task/{thread}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it ended between listing and looking
        return "X"


@contextmanager
def beneath(home: str | os.PathLike[str], mount_id: str) -> Iterator[str]:
    """The captured directory as the storage below the mount has it: a path for this process only."""

    async def ask() -> list[int]:
        async with Control(Home(os.fspath(home)).socket("capture", mount_id)) as capture:
            return (await capture.call_with_descriptors("root"))[1]

    (descriptor,) = trio.run(ask)
    try:
        yield f"/proc/self/fd/{descriptor}/."
    finally:
        os.close(descriptor)
