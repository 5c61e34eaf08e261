"""Sets the limit that the calendar of a connection says, once a second: clocks may be set at any time."""

from collections.abc import Callable, Sequence

import trio

from replicator import limits
from replicator.limit_calendar import InForce, LimitEntry, check, in_force
from replicator.world import World


class LimitWatch:
    """`apply` gets the text of the limit that holds from now on, "" for the one without a calendar; only when
    it is another.
    """

    def __init__(self, world: World, entries: Sequence[LimitEntry], apply: Callable[[str], None]) -> None:
        self._world = world
        self._apply = apply
        self._entries: tuple[LimitEntry, ...] = ()
        self._applied = ""
        self.set(entries)

    def set(self, entries: Sequence[LimitEntry]) -> None:
        """It holds when this returns. UsageError."""
        check(entries)
        self._entries = tuple(entries)
        self.look()

    @property
    def now(self) -> InForce:
        """Which entry holds, and when that changes."""
        return in_force(self._entries, self._world.clock.wall_ns() / 1e9, self._world.zone)

    def look(self) -> None:
        """See what holds, and have it applied."""
        entry = self.now.entry
        text = entry.limit if entry is not None else ""
        if text != self._applied:
            self._applied = text
            self._apply(text)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            # When a second begins: others that share a limit look at the same time.
            now_s = self._world.clock.wall_ns() / 1e9
            await trio.sleep(limits.SCHEDULE_LOOK_S - now_s % limits.SCHEDULE_LOOK_S)
            if self._entries:
                self.look()
