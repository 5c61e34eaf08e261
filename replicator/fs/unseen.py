"""Files that may be changed unseen: by stores to a shared mapping that belongs to the storage below.

The kernel lets a program that opens a file for reading and writing, while others read it past us, map it
only in this way (see `open_modes`). No request tells of such stores. So the content of the file is noted to
be in doubt, which has it brought again: when the handle is closed; while a writable mapping is found
among all processes; and when the last one is gone. It is rare, it is said in the log, and it is never silent.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from replicator import limits

logger = logging.getLogger(__name__)

Identity = tuple[int, int]  # device and inode number


def mapped(lines: Iterable[str], wanted: frozenset[Identity]) -> set[Identity]:
    """Which of them lines of /proc/PID/maps show as mapped shared and writable. Pure.

    A file of the mount may be shown as itself or as the one below: anonymous devices (major number 0) are
    taken for the mount's.
    """
    inodes = {inode: (device, inode) for device, inode in wanted}
    found = set()
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) < 5 or fields[1][1] != "w" or fields[1][3] != "s":
            continue
        identity = inodes.get(int(fields[4]))
        if identity is not None:
            major, minor = (int(part, 16) for part in fields[3].split(":"))
            if major == 0 or os.makedev(major, minor) == identity[0]:
                found.add(identity)
    return found


def mapped_by_any_process(wanted: frozenset[Identity]) -> set[Identity]:
    """The same, of all processes. Takes a moment."""
    found: set[Identity] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/maps", encoding="utf-8", errors="replace") as lines:
                    found |= mapped(lines, wanted)
            except OSError:
                continue  # it has ended
    return found


class _Watched:
    __slots__ = ("doubted_at", "handles", "identity")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.handles = 0
        self.doubted_at = 0.0  # time.monotonic()


class Unseen:
    """All methods but `close` are called with `lock` held; so are `doubt` and `identity`, with a node id."""

    def __init__(
        self,
        lock: threading.Lock,
        doubt: Callable[[int], None],
        identity: Callable[[int], Identity],
        look: Callable[[frozenset[Identity]], set[Identity]] = mapped_by_any_process,
    ) -> None:
        self._lock = lock
        self._doubt = doubt
        self._identity = identity
        self._look = look
        self._nodes: dict[int, _Watched] = {}
        self._thread: threading.Thread | None = None
        self._ends = False
        self._wake = threading.Event()

    def is_watched(self, node_id: int) -> bool:
        return node_id in self._nodes

    def opened(self, node_id: int) -> None:
        watched = self._nodes.get(node_id)
        if watched is None:
            watched = self._nodes[node_id] = _Watched(self._identity(node_id))
            logger.warning(
                "inode %d was opened for reading and writing while it is read past this process: what is"
                " stored to a shared mapping of it cannot be seen; it will be brought again",
                watched.identity[1],
            )
        watched.handles += 1
        if self._thread is None and not self._ends:
            self._thread = threading.Thread(target=self._watch, name="unseen", daemon=True)
            self._thread.start()

    def released(self, node_id: int) -> None:
        watched = self._nodes.get(node_id)
        if watched is not None:
            watched.handles -= 1
            self._doubt_now(node_id, watched)
            self._wake.set()

    def close(self) -> None:
        """Note the last doubts, and look no more. Without `lock`."""
        self._ends = True
        self._wake.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        with self._lock:
            for node_id, watched in self._nodes.items():
                self._doubt_now(node_id, watched)
            self._nodes.clear()

    def _doubt_now(self, node_id: int, watched: _Watched) -> None:
        watched.doubted_at = time.monotonic()
        self._doubt(node_id)

    def _watch(self) -> None:
        """In a thread of its own, until nothing is left to watch."""
        while True:
            with self._lock:
                if not self._nodes:
                    self._thread = None
                    return
                is_ending = any(not watched.handles for watched in self._nodes.values())
                wanted = {node_id: watched.identity for node_id, watched in self._nodes.items()}
            self._wake.wait(limits.UNSEEN_LOOK_S if is_ending else limits.UNSEEN_LOOK_MAX_S)
            self._wake.clear()
            if self._ends:
                return
            found = self._look(frozenset(wanted.values()))
            with self._lock:
                self._looked(wanted, found)

    def _looked(self, wanted: dict[int, Identity], found: set[Identity]) -> None:
        for node_id, identity in wanted.items():
            watched = self._nodes[node_id]
            if identity in found:
                if time.monotonic() - watched.doubted_at >= limits.UNSEEN_DOUBT_S:
                    self._doubt_now(node_id, watched)
            elif not watched.handles:
                self._doubt_now(node_id, watched)
                del self._nodes[node_id]
