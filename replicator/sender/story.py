"""The story of a connection: each step of its states, kept over restarts in `home/source/<connection>.story`.

A bounded ring. The file is one JSON value a line, appended as it happens and not synced: a kill loses
nothing, power loss the last seconds. It is written anew when it has become twice as long as what is kept.
"""

import os
import sys
from collections import deque

import msgspec

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.queue.durable_file import read_if_there, replace
from replicator.status import Dimension, StoryEntry
from replicator.world import World

_LINE_BYTES = 4096  # a line is cut to this by cutting its reason


class Story:
    """One writer: the connection's sender."""

    def __init__(self, world: World, path: str, kept: int = limits.STORY_KEPT) -> None:
        """Reads what is there. A damaged line is left out: this is for people."""
        self._world = world
        self._path = path
        self._kept = kept
        self._entries: deque[StoryEntry] = deque(maxlen=kept)
        self._last: dict[Dimension, StoryEntry] = {}
        self._since_ns: dict[Dimension, int] = {}  # monotonic: durations do not jump with the wall clock
        self._size = 0  # of the file
        self._lines = 0
        self._removed = False
        self._problem = ""
        self._load()

    def last(self, dimension: Dimension) -> str:
        """The state that was noted last, also by a former process; "": none."""
        entry = self._last.get(dimension)
        return entry.after if entry is not None else ""

    def note(self, dimension: Dimension, after: str, event: str, reason: str = "") -> None:
        """It is now `after`. Nothing new is not noted. Never raises OSError."""
        last = self._last.get(dimension)
        before = last.after if last is not None else ""
        if last is not None and (after, reason) == (before, last.reason):
            return
        if last is not None and after == before and not reason:
            return  # the same state, and its reason has gone: no news
        now_ns, wall_s = self._world.clock.monotonic_ns(), self._world.clock.wall_ns() / 1e9
        since_ns = self._since_ns.get(dimension)
        lasted_s: float | None = None
        if since_ns is not None:
            lasted_s = (now_ns - since_ns) / 1e9
        elif last is not None:  # of a former process
            lasted_s = max(wall_s - last.time, 0.0)
        if after != before or since_ns is None:
            self._since_ns[dimension] = now_ns
        sequence = self._entries[-1].sequence + 1 if self._entries else 1
        entry = StoryEntry(sequence, wall_s, dimension, before, after, event, reason[:_LINE_BYTES], lasted_s)
        self._keep(entry)
        self._write(entry)

    def since(self, sequence: int = 0, count: int | None = None) -> list[StoryEntry]:
        """Steps after `sequence`, oldest first; with `count` the newest so many of them."""
        found = [entry for entry in self._entries if entry.sequence > sequence]
        return found if count is None else found[max(0, len(found) - count) :]

    def remove(self) -> None:
        """The connection is gone for good, and its story with it."""
        self._removed = True
        try:
            self._world.disk.unlink(self._path)
        except OSError:
            pass  # it was never written, or stays as a stray file

    def _keep(self, entry: StoryEntry) -> None:
        self._entries.append(entry)
        self._last[entry.dimension] = entry

    # --- the file ---

    def _load(self) -> None:
        try:
            data = read_if_there(self._world.disk, self._path) or b""
        except OSError as error:
            self._say(error)
            return
        self._size = len(data)
        lines = data.splitlines()
        for line in lines:
            try:
                self._keep(msgspec.json.decode(line, type=StoryEntry))
            except MALFORMED:
                continue
        self._lines = len(lines)
        if data and not data.endswith(b"\n"):
            self._lines = 2 * self._kept  # a torn end: the next entry must not stand behind it

    def _write(self, entry: StoryEntry) -> None:
        if self._removed:
            return
        try:
            if self._lines >= 2 * self._kept:
                self._write_anew()
                return
            disk = self._world.disk
            disk.makedirs(os.path.dirname(self._path))
            handle = disk.open_append(self._path)
            try:
                line = msgspec.json.encode(entry) + b"\n"
                disk.append(handle, [line], self._size)
            finally:
                disk.close(handle)
            self._size += len(line)
            self._lines += 1
            self._problem = ""
        except OSError as error:
            self._lines = 2 * self._kept  # some of it may be there: all is written anew when that can be
            self._say(error)

    def _write_anew(self) -> None:
        data = b"".join(msgspec.json.encode(entry) + b"\n" for entry in self._entries)
        replace(self._world.disk, self._path, [data])
        self._size, self._lines = len(data), len(self._entries)

    def _say(self, error: OSError) -> None:
        if str(error) != self._problem:  # a full disk should not fill the log as well
            self._problem = str(error)
            print(f"the story is kept in memory only: {error}", file=sys.stderr, flush=True)
