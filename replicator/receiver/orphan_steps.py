"""Orphans of a copy are removed a few at a time, between two operations."""

from collections.abc import Callable

import trio

from replicator import limits
from replicator.orphans import OrphanReport, OrphanSettings
from replicator.receiver.durability import Durability
from replicator.receiver.tree_in_use import TreeInUse
from replicator.world import World


class OrphanSteps:
    """Of one replica. `settings` hold from the next mirror on."""

    def __init__(
        self,
        world: World,
        settings: OrphanSettings,
        in_use: TreeInUse,
        durability: Durability,
        changed: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        """`wake` has `heed` called soon."""
        self.settings = settings
        self._world = world
        self._in_use = in_use
        self._durability = durability
        self._changed = changed
        self._wake = wake
        self._step_s = 0.0  # when the last one was
        self._actions: list[str] = []

    @property
    def report(self) -> OrphanReport:
        """How far their handling is."""
        tree = self._in_use.tree
        return tree.orphans.report if tree is not None else OrphanReport()

    def act(self, action: str) -> None:
        """`pause`, `resume` or `stop` their removal, between two operations."""
        self._actions.append(action)
        self._wake()

    def heed(self) -> None:
        """Do what was asked for."""
        while self._actions and self._in_use.tree is not None:
            action, orphans = self._actions.pop(0), self._in_use.tree.orphans
            if action == "pause":
                orphans.pause()
            elif action == "resume":
                orphans.resume()
            elif action == "stop":
                orphans.stop(self._world.clock.wall_ns())
            self._changed()

    def step_if_due(self) -> None:
        """While there is something else to do."""
        if trio.current_time() - self._step_s >= limits.ORPHAN_PAUSE_S:
            self.step()

    def step(self) -> bool:
        """Remove some. Whether there were any."""
        tree = self._in_use.tree
        if tree is None or not tree.orphans.removing:
            return False
        clock = self._world.clock
        tree.remove_orphans(self.settings, clock.monotonic_ns, clock.wall_ns())
        self._step_s = trio.current_time()
        self._durability.touched()
        return True
