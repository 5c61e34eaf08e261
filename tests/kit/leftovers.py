"""Mounts, processes and memory directories that tests left behind, found by their temporary directory.

Only what lies below a pytest base directory (/tmp/pytest-of-USER/pytest-N) is touched: several sessions,
and a real agent, may run on this machine at the same time.
"""

import getpass
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HOLDER = "capture-holder "  # how such a process names itself
MEMORY_DIRECTORY = Path("/dev/shm")
GRACE_S = 3.0  # a process that was told to stop may still be doing so


def mounts_below(base: Path) -> list[str]:
    """Mount points below `base`, innermost first."""
    prefix = f"{base}/"
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            point = line.split()[4].encode().decode("unicode_escape")
            if point.startswith(prefix):
                found.append(point)
    return found[::-1]


def processes_of(base: Path) -> dict[int, str]:
    """Processes of ours (other than this one) whose command line names something below `base`, by id."""
    return {
        process: command
        for process, command in _processes().items()
        if f"{base}/" in command and "replicator" in command
    }


def processes_of_home(home: Path) -> dict[int, str]:
    """All processes of the one agent with this home, what holds the mounts of its captures included."""
    return {
        process: command
        for process, command in _processes().items()
        if (f"{home}/" in command or f"{home} " in command)
        and ("replicator" in command or command.startswith(HOLDER))
    }


class Held(NamedTuple):
    """Processes by descriptors, each the same one for as long as it is open."""

    descriptors: list[int]

    def send(self, number: signal.Signals) -> None:
        for descriptor in self.descriptors:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def have_ended(self) -> bool:
        """With nothing open any more: one that is being killed has files open, but no command line."""
        return len(select.select(self.descriptors, [], [], 0)[0]) == len(self.descriptors)


@contextmanager
def held(home: Path) -> Iterator[Held]:
    """All processes of the agent with this home."""
    with ExitStack() as stack:
        found = Held([])
        for process_id in processes_of_home(home):
            with suppress(ProcessLookupError):
                found.descriptors.append(os.pidfd_open(process_id))
                stack.callback(os.close, found.descriptors[-1])
        yield found


def _processes() -> dict[int, str]:
    """Command lines of all processes but this one."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        found[int(entry)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def memory_directories_of(base: Path) -> list[Path]:
    """Memory tiers of the agents whose homes lie below `base`."""
    found = []
    for directory, names, files in os.walk(base):
        names[:] = [n for n in names if not os.path.ismount(os.path.join(directory, n))]
        if "agent.json" not in files:
            continue
        try:
            uuid = json.loads(Path(directory, "agent.json").read_bytes())["uuid"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        path = MEMORY_DIRECTORY / f"replicator-{uuid}"
        if path.is_dir():
            found.append(path)
    return found


def remove_memory_directories(base: Path) -> list[Path]:
    """Remove the memory tiers of agents whose homes are about to go. Returns them."""
    found = memory_directories_of(base)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return found


def sweep(base: Path) -> list[str]:
    """Remove all of it. Returns what there was, for people."""
    found = []
    deadline = time.monotonic() + GRACE_S
    while (processes := processes_of(base)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process_id, command in processes.items():
        found.append(f"process {process_id}: {command}")
        try:
            os.kill(process_id, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for point in mounts_below(base):
        found.append(f"mount {point}")
        subprocess.run(["umount", "-l", point], capture_output=True, timeout=10, check=False)
    return found + [f"memory directory {path}" for path in remove_memory_directories(base)]


def sweep_dead_sessions() -> list[str]:
    """Sweep the base directories of sessions that no longer run. Returns what there was."""
    root = Path(tempfile.gettempdir(), f"pytest-of-{getpass.getuser()}")
    found = []
    for base in sorted(root.glob("pytest-[0-9]*")):
        if not _is_alive(base):
            found += sweep(base)
    return found


def _is_alive(base: Path) -> bool:
    """pytest keeps its process id in .lock while a session runs."""
    try:
        process_id = int((base / ".lock").read_text())
        os.kill(process_id, 0)
    except (OSError, ValueError):
        return False
    return True
