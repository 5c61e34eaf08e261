"""Up to where a copy is on stable storage: synced now and then, and at once when somebody waits for it."""

import sys
from collections.abc import Callable

import trio

from replicator import limits
from replicator.receiver.drift import Drift
from replicator.receiver.failures import reason_of
from replicator.receiver.kept_state import KeptState
from replicator.receiver.position_file import PositionFile
from replicator.receiver.replica_state import Applied, Marks
from replicator.receiver.tree_in_use import TreeInUse
from replicator.world import World


class Durability:
    """Of one replica. `changed` is called when there is something new to tell."""

    def __init__(
        self,
        world: World,
        positions: PositionFile,
        kept: KeptState,
        applied: Applied,
        drift: Drift,
        in_use: TreeInUse,
        changed: Callable[[], None],
    ) -> None:
        self.settled = ""  # the mirror that has ended, and all it brought is on stable storage
        self.secured: Marks = dict(positions.marks)
        """Up to where the copy is on stable storage; `durable` says so durably, and may come later."""
        self.is_waited_for = False  # programs on the source have waited for this copy: a synchronous mount
        self.answered: Callable[[], None] = changed
        """Called when something is secured that somebody waits for."""
        self._world = world
        self._positions = positions
        self._kept = kept
        self._applied = applied
        self._drift = drift
        self._in_use = in_use
        self._changed = changed
        self._unsynced = trio.Event()
        self._unsynced_bytes = 0
        self._much_unsynced = trio.Event()
        self._wanted: dict[str, int] = {}  # what somebody waits for to be secured, by journal
        self._secure_now = trio.Event()

    @property
    def durable(self) -> Marks:
        """Up to where the copy is on stable storage."""
        return self._positions.marks

    # --- what is to be synced ---

    def touched(self) -> None:
        """Something of the copy was changed."""
        self._unsynced.set()

    def passed(self, size_bytes: int) -> None:
        """So much of the stream is applied completely."""
        if self._wanted:
            self._look_at_wanted()
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes >= limits.SYNC_BYTES:
            self._much_unsynced.set()

    def soon(self) -> None:
        """What is complete is made durable soon."""
        self._unsynced.set()
        self._much_unsynced.set()

    async def keep_durable(self) -> None:
        """Sync the copy while there is something new, and move the durable marks. Until cancelled."""
        if self._applied.marks != self.durable or self._kept.state.mirror_id:
            self._unsynced.set()  # of a predecessor: a source keeps everything until it hears that
        while True:
            await self._unsynced.wait()
            # A sync of many changes costs little more than of one, and what a mirror brings may be repeated.
            mirroring = self._kept.state.mirroring
            with trio.move_on_after(limits.SYNC_DELAY_MIRRORING_S if mirroring else limits.SYNC_DELAY_S):
                await self._much_unsynced.wait()
            self._unsynced = trio.Event()
            self._much_unsynced = trio.Event()
            self._unsynced_bytes = 0
            try:
                await self.make_durable()
            except OSError as error:
                print(f"cannot make the copy durable: {reason_of(error)}", file=sys.stderr, flush=True)
                self._unsynced.set()
            await trio.sleep(limits.SYNC_INTERVAL_S)

    async def make_durable(self, *, clean: bool = False) -> None:
        """Everything applied so far is on stable storage, and `durable` says so. OSError.

        `clean`: nothing follows, so that this is still exact in a later boot.
        """
        async with self._in_use.lock:
            tree, marks, done_ns = self._in_use.tree, dict(self._applied.marks), self._applied.wall_ns
            state = self._kept.state
            settled = "" if state.mirroring else state.mirror_id
            repaired = self._drift.mark()
            wall_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS

            def sync() -> None:
                if tree is not None:
                    tree.sync()
                # After it: a position must never be ahead of the copy.
                self._positions.save(marks, wall_ns, done_ns)

            await self._world.in_thread(sync)
            self._is_secured(marks)
            self.settled = settled
            self._drift.settle(repaired)
            self._in_use.is_stale = True  # a good time to look at it afresh
        if clean:
            await self._kept.save(clean=True)
        self._changed()

    # --- what somebody waits for ---

    def want_secured(self, wanted: dict[str, int]) -> None:
        """A program on the source waits until everything up to these sequences is secured."""
        self.is_waited_for = True
        for journal_id, sequence in wanted.items():
            if sequence > max(self._wanted.get(journal_id, 0), _sequence(self.secured, journal_id)):
                self._wanted[journal_id] = sequence
        self._look_at_wanted()

    def _look_at_wanted(self) -> None:
        marks = self._applied.marks
        if any(_sequence(marks, journal_id) >= wanted for journal_id, wanted in self._wanted.items()):
            self._secure_now.set()

    def _is_secured(self, marks: Marks) -> None:
        self.secured = marks
        before = len(self._wanted)
        self._wanted = {
            journal_id: wanted
            for journal_id, wanted in self._wanted.items()
            if wanted > _sequence(marks, journal_id)
        }
        if len(self._wanted) < before:
            self.answered()

    async def keep_secure(self) -> None:
        """Sync the copy at once when somebody waits for what is applied. Until cancelled.

        Those that come to wait meanwhile share the next sync. The durable marks follow later, as ever.
        """
        while True:
            await self._secure_now.wait()
            self._secure_now = trio.Event()
            try:
                async with self._in_use.lock:
                    tree, marks = self._in_use.tree, dict(self._applied.marks)
                    if tree is not None:
                        await self._world.in_thread(tree.sync)
                    self._is_secured(marks)
            except OSError as error:
                print(f"cannot sync the copy: {reason_of(error)}", file=sys.stderr, flush=True)
                await trio.sleep(limits.APPLY_RETRY_FIRST_S)
            self._look_at_wanted()


def _sequence(marks: Marks, journal_id: str) -> int:
    position = marks.get(journal_id)
    return position.sequence if position is not None else 0
