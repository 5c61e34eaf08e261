"""Notices what others change in a copy, and has it reported in terms of the source's paths.

One task beside the replica. What the kernel tells is gathered for a moment, as equal events become one
meanwhile, and noted; it is told to the source soon, or more and more rarely while a program goes on changing
the copy.
"""

import sys
from collections.abc import Container, Iterable

import trio

from replicator import limits
from replicator.fs.foreign import ForeignChange, ForeignChanges, Seen, UnwatchableError
from replicator.net.frames import Connect
from replicator.ops import shown
from replicator.queue.dirty import DirtyMap, Scope
from replicator.queue.dirty_tree import parent_of
from replicator.receiver.replica import Replica
from replicator.world import World

OFF = "off"
WATCHING = "on"
_NEVER = float("inf")


class DriftWatch:
    """Of one receiver. `state`: "on", "off", or why it cannot be done."""

    def __init__(
        self, world: World, replica: Replica, agent_bell: str, own: Container[int], *, wanted: bool
    ) -> None:
        self.state = OFF
        self._own = own  # processes whose changes are ours
        self._agent_bell = agent_bell
        self._world = world
        self._replica = replica
        self._wanted = wanted
        self._pause_s = limits.DRIFT_PAUSE_FIRST_S
        self._told_at, self._tell_at = -_NEVER, _NEVER  # of trio's clock
        self._watched: ForeignChanges | None = None
        self._read_ns = 0  # all up to then is known

    async def run(self) -> None:
        """Until cancelled, or until what is changed here is no business of the source any more."""
        while self._wanted and not self._is_over:
            tree, changed = self._replica.in_use.tree, self._replica.in_use.changed
            if tree is None:
                await changed.wait()
                continue
            try:
                watched = ForeignChanges(tree.directories(), self._own)
            except (UnwatchableError, OSError) as error:
                self.state = str(error)
                print(f"changes of others are not noticed: {error}", file=sys.stderr, flush=True)
                await changed.wait()
                continue
            try:
                self.state, self._replica.drift.watched = WATCHING, True
                self._watched = watched
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, watched)
                    await changed.wait()
                    nursery.cancel_scope.cancel()
            finally:
                self.state, self._replica.drift.watched = OFF, False
                self._watched = None
                watched.close()

    @property
    def _is_over(self) -> bool:
        return self._replica.ownership.is_promoted and not self._replica.state.closed

    async def look_now(self) -> None:
        """All that was changed before the call is noted on return."""
        before_ns = self._read_ns
        while self._watched is not None and (seen := self._watched.read()) is not None:
            if seen.changes or seen.overflow:
                await self._note(seen, before_ns)

    def look_again(self) -> None:
        """Whether to go on watching."""
        self._replica.in_use.tell()

    async def _watch(self, watched: ForeignChanges) -> None:
        self._read_ns = self._world.clock.wall_ns()
        gather_s = limits.DRIFT_GATHER_S
        while True:
            with trio.move_on_at(self._tell_at):
                await trio.lowlevel.wait_readable(watched)
                await trio.sleep(gather_s)
            before_ns, self._read_ns = self._read_ns, self._world.clock.wall_ns()
            reads, ours = 0, False
            while (seen := watched.read()) is not None:
                reads += 1
                if seen.changes or seen.overflow:
                    ours = True
                    await self._note(seen, before_ns)
                await trio.lowlevel.checkpoint()
            # A file system tells each of many copies on it what programs do anywhere there. The events of a
            # longer pause must fit its queue: so not where they come in numbers.
            quiet = not ours and reads <= 1
            gather_s = min(2 * gather_s, limits.DRIFT_GATHER_MAX_S) if quiet else limits.DRIFT_GATHER_S
            self._replica.drift.looked()
            if trio.current_time() >= self._tell_at:
                self._tell()

    async def _note(self, seen: Seen, since_ns: int) -> None:
        """Remember it. It is told when it is quiet, and not too soon after the last time."""
        replica, connect = self._replica, self._replica.state.connect
        assert connect is not None
        drift = replica.drift
        drift.changes += len(seen.changes) + seen.overflow
        if not drift.pending:
            drift.since_ns = since_ns - limits.FILE_CLOCK_STEP_NS
        anything = False
        for index, journal in enumerate(connect.journals):
            dirty = None if seen.anything else dirty_map(seen.changes, connect, index)
            if dirty is None or not dirty.is_empty:
                anything |= drift.add(journal.journal_id, dirty)
        if seen.changes:
            drift.last_path = seen.changes[-1].path
        now = trio.current_time()
        if self._tell_at == _NEVER:
            if now - self._told_at > 2 * self._pause_s:
                self._pause_s = limits.DRIFT_PAUSE_FIRST_S
            else:  # whoever works with the copy must not keep its source busy with repairing it
                self._pause_s = min(2 * self._pause_s, limits.DRIFT_PAUSE_MAX_S)
            self._tell_at = max(now + limits.DRIFT_QUIET_S, self._told_at + self._pause_s)
            what = "more than could be looked at" if seen.overflow else shown(drift.last_path) or "its top"
            print(f"others have changed the copy: {what}", file=sys.stderr, flush=True)
        await replica.changed_by_others(drift.since_ns if anything else None)

    def _tell(self) -> None:
        self._told_at, self._tell_at = trio.current_time(), _NEVER
        self._replica.drift.tell()
        self._replica.tell()
        self._world.doorbells.ring(self._agent_bell)


def dirty_map(changes: Iterable[ForeignChange], connect: Connect, journal: int) -> DirtyMap:
    """What these changes below the target directories of a connection mean for one of its journals.

    A directory whose list of names has changed comes as NAMES: it is for the source to say whether names that
    it does not have are to go.
    """
    targets = list(dict.fromkeys(path_map.target for path_map in connect.maps))
    dirty = DirtyMap(limits.DRIFT_BYTES)
    for change in changes:
        path = _source_path(targets[change.root], change.path, connect, journal)
        if path is None:
            continue
        if change.only_attributes:
            directory = Scope.DIRECTORY if change.of_directory else 0
            dirty.include(path, Scope.ATTRIBUTES | directory, 0)
            continue
        if change.of_name and path:
            dirty.include(parent_of(path), Scope.NAMES, 0)
        dirty.include(path, Scope.TREE if change.of_directory or change.of_name else Scope.WHOLE, 0)
    return dirty


def _source_path(target: bytes, path: bytes, connect: Connect, journal: int) -> bytes | None:
    """Where what lies there belongs: by the longest target directory that is a map's."""
    whole = target + b"/" + path if path else target
    best: tuple[bytes, bytes] | None = None
    for path_map in connect.maps:
        if path_map.journal != journal:
            continue
        top = path_map.target
        if (whole == top or whole.startswith(top + b"/")) and (best is None or len(top) > len(best[0])):
            below = whole[len(top) + 1 :]
            source = path_map.source
            best = top, (source + b"/" + below if source and below else source or below)
    return best[1] if best is not None else None
