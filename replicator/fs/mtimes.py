"""Late mtimes: what nobody sets, but a target must have all the same.

Every write, and every change of a directory's entries, changes an mtime. One record for each would
double the journal, so the mtime is journaled when a written file is closed, and a pause after the last
change of anything else.

What is still waiting is noted by path in a small file beside the journal's memory tier, and so is what
moves meanwhile: if the process is killed, its successor tells those mtimes. A path noted too often, or one
that has changed hands since, does no harm: what is told is always the mtime of what stands there. Only a name
that the killed process was changing must wait until the journal has that change.
"""

import logging
import os
import stat
from collections.abc import Callable, Iterable

from replicator import limits
from replicator.fs.attributes import attributes_of
from replicator.fs.calls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, open_how, openat2
from replicator.fs.nodes import Node, NodeTable
from replicator.fs.recorder import Recorder
from replicator.ops import AttributeMask, Flag, Kind

logger = logging.getLogger(__name__)

_NS_PER_S = 1_000_000_000
_MOVED = b"/"  # before the old path of a move, which is followed by the new one: paths do not begin with it
_ASIDE = b"/"  # where one of two exchanged paths is meanwhile
_OPEN_OBJECT = open_how(os.O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)


def _moved(path: bytes, old: bytes, new: bytes) -> bytes:
    """Where a path is after the rename of `old`."""
    return new + path[len(old) :] if _is_within(path, old) else path


def _is_within(path: bytes, outer: bytes) -> bool:
    return path == outer or path.startswith(outer + b"/")


class Notes:
    """Paths in a file that outlives the process. Errors cost the notes, nothing else."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self.previous = self._read()
        """What a predecessor left."""
        self._bytes = sum(len(path) + 1 for path in self.previous)  # moves are not counted
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            logger.warning("mtimes still pending would not survive a kill: %s", error)

    def _read(self) -> list[bytes]:
        try:
            with open(self._path, "rb") as file:
                # Behind the last separator stands what a kill cut off.
                entries = iter(file.read().split(b"\0")[:-1])
        except OSError:
            return []
        paths: list[bytes] = []
        for entry in entries:
            if not entry.startswith(_MOVED):
                paths.append(entry)
            elif (new := next(entries, None)) is not None:
                paths = [_moved(path, entry[1:], new) for path in paths]
        return list(dict.fromkeys(paths))

    def move(self, old: bytes, new: bytes) -> None:
        """What is noted at `old` and below is at `new` from now on."""
        self.add(_MOVED + old + b"\0" + new)

    def add(self, path: bytes) -> None:
        try:
            self._bytes += os.write(self._descriptor, path + b"\0")
        except OSError:
            pass  # a full tmpfs, or no file: see the class

    @property
    def is_large(self) -> bool:
        return self._bytes > limits.MTIME_NOTES_BYTES

    def rewrite(self, paths: Iterable[bytes]) -> None:
        if self._descriptor < 0:
            return
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError:
            return
        self._bytes = 0
        for path in paths:
            self.add(path)

    def clear(self) -> None:
        if self._bytes:
            self.rewrite(())

    def close(self) -> None:
        """The file goes unless there is something in it."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        if not self._bytes:
            try:
                os.unlink(self._path)
            except OSError:
                pass  # an empty file is as good as none


class LateMtimes:
    """Nodes whose mtime is still to be journaled; oldest first, at most `limits.PENDING_MTIMES`."""

    def __init__(
        self,
        nodes: NodeTable,
        recorder: Recorder,
        path_of: Callable[[Node], bytes | None],
        lost: Callable[[Node], bool],
        monotonic_ns: Callable[[], int],
        notes: Notes | None,
    ) -> None:
        """`path_of`: the path to record a node under. `lost`: it has none, but a name we do not know."""
        self._nodes = nodes
        self._recorder = recorder
        self._path_of = path_of
        self._lost = lost
        self._monotonic_ns = monotonic_ns
        self._notes = notes
        self._pending: dict[int, Node] = {}
        self._moved = False  # notes have moves: they are better written anew
        self._previous: list[bytes] = []  # noted by a killed predecessor, of names that it was changing

    def __len__(self) -> int:
        return len(self._pending)

    def changed(self, node: Node) -> None:
        """Its content or its entries changed now."""
        node.changed_ns = self._monotonic_ns()
        if node.id in self._pending:
            return
        self._pending[node.id] = node
        node.uses += 1
        if self._notes is not None and (path := self._path_of(node)) is not None:
            self._notes.add(path)
        if len(self._pending) > limits.PENDING_MTIMES:
            self._flush(next(iter(self._pending.values())))

    def moved(self, old: bytes, new: bytes, *, exchanged: bool = False) -> None:
        """An object, with all below, has another name; `exchanged`: and what was there has its own."""
        moves = ((old, _ASIDE), (new, old), (_ASIDE, new)) if exchanged else ((old, new),)
        for source, target in moves:
            self._previous = [_moved(path, source, target) for path in self._previous]
            if self._notes is not None and self._pending:
                self._notes.move(source, target)
        self._moved = True

    def closed(self, node: Node) -> None:
        """Whoever wrote it has closed it: tell its mtime, if it is pending."""
        if node.id in self._pending:
            self._flush(node)

    def told(self, node: Node) -> None:
        """Its mtime has just been journaled because somebody set it."""
        if self._pending.pop(node.id, None) is not None:
            self._nodes.release(node)

    def tick(self) -> None:
        """Tell the mtimes of what has been quiet for `limits.QUIET_MTIME_S`."""
        if self._pending:
            quiet_since_ns = self._monotonic_ns() - int(limits.QUIET_MTIME_S * _NS_PER_S)
            for node in [node for node in self._pending.values() if node.changed_ns <= quiet_since_ns]:
                self._flush(node)
        if self._notes is None:
            return
        if not self._pending:
            self._notes.clear()
        elif self._moved or self._notes.is_large:
            paths = map(self._path_of, self._pending.values())
            self._notes.rewrite(path for path in paths if path is not None)
        self._moved = False

    def settle(self) -> None:
        """Tell all of them at once."""
        for node in list(self._pending.values()):
            self._flush(node)
        if self._notes is not None:
            self._notes.clear()

    def tell_previous(self, paths: Iterable[bytes], unsettled: Iterable[bytes] = ()) -> None:
        """Tell the mtimes of paths that a killed predecessor left pending, but those at or below `unsettled`.

        The journal does not have yet what it did with these names: they wait for `settled`.
        """
        names = tuple(unsettled)
        for path in paths:
            if any(_is_within(path, name) for name in names):
                self._previous.append(path)
            else:
                self._tell_at(path)

    def settled(self) -> None:
        """What the predecessor was doing is done, and journaled."""
        paths, self._previous = self._previous, []
        for path in paths:
            self._tell_at(path)

    def _tell_at(self, path: bytes) -> None:
        """Whatever stands there now; nothing, if it is gone."""
        try:
            descriptor = openat2(self._nodes.root.descriptor, path or b".", _OPEN_OBJECT)
        except OSError:
            return
        try:
            self._tell(path, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _flush(self, node: Node) -> None:
        del self._pending[node.id]
        path = self._path_of(node)
        if path is not None:
            try:
                self._tell(path, self._nodes.stat(node))
            except OSError:
                pass  # somebody changed the storage below: nothing of ours to tell
        elif self._lost(node):
            self._recorder.doubt(b"")
        self._nodes.release(node)

    def _tell(self, path: bytes, state: os.stat_result) -> None:
        flags = Flag.AFTER_CLOSE
        if stat.S_ISDIR(state.st_mode):
            flags |= Flag.DIRECTORY
        elif state.st_nlink > 1:
            flags |= Flag.MULTILINK
        self._recorder.append_more(
            Kind.SETATTR,
            path,
            payload=attributes_of(state, AttributeMask.MTIME).encode(),
            flags=int(flags),
            inode=state.st_ino,
        )
