"""When nothing is applied: a person wants that, a restore reads the copy, or the target is ill."""

import sys
from collections.abc import Callable

import trio

from replicator.errors import ReplicatorError
from replicator.receiver.kept_state import KeptState
from replicator.states import APPLY, ApplyEvent, Machine
from replicator.status import TargetDataState, TargetStatus


class Stopped(Exception):
    """Applying ends between two operations."""


class Halts:
    """Of one replica. `changed` is called when `status` is another one."""

    def __init__(self, kept: KeptState, changed: Callable[[], None]) -> None:
        self.due = False  # pause or stop was asked for: look before the next operation
        self.stopping = False
        self._kept = kept
        self._changed = changed
        self._machine: Machine[TargetStatus, ApplyEvent] = Machine(APPLY, TargetStatus.OK, self._moved)
        self._paused = False
        self._source_chosen = False
        self._wake = trio.Event()
        self._idle = trio.Event()

    @property
    def status(self) -> TargetStatus:
        return self._machine.state

    @property
    def reason(self) -> str:
        """Why it is retrying."""
        return self._machine.reason

    @property
    def stands_still(self) -> bool:
        """Nothing is applied: a person wants that, or a restore reads the copy."""
        return self._paused or bool(self._kept.state.restoring)

    # --- what others ask for ---

    def wake(self) -> None:
        """There is something to look at."""
        self._wake.set()

    def pause(self) -> None:
        """PT-01: the operation in progress is finished, then nothing is applied until `resume`."""
        if not self._paused:
            self._paused = self.due = True
            if not self._kept.state.restoring:
                self._machine.happen(ApplyEvent.PAUSE)
            self._wake.set()

    def resume(self) -> None:
        if self._kept.state.data_state is TargetDataState.RESTORE_REQUIRED and not self._source_chosen:
            raise ReplicatorError("the copy is in use: its source has to choose (dtctl recovery force)")
        if self._paused:
            self._paused = False
            self.go_on()

    def go_on(self) -> None:
        """If nothing else has it stand still."""
        if not self.stands_still:
            self.due = self.stopping
            self._machine.happen(ApplyEvent.RESUME)
            self._wake.set()

    def choose_source(self) -> None:
        """A mirror arrives that a person has forced: go on."""
        if self._kept.state.data_state is TargetDataState.RESTORE_REQUIRED:
            self._source_chosen = True
            self.resume()

    def hold(self) -> None:
        """The operation in progress is finished. What stands still from then on is for the state to say."""
        self.due = True
        if not self._paused:
            self._machine.happen(ApplyEvent.PAUSE)

    def stay(self) -> None:
        """It stands still already, and does so whatever ends."""
        self._paused = self.due = True

    def stop(self) -> None:
        """Applying ends after the operation in progress."""
        self.stopping = self.due = True
        self._wake.set()
        self.stir()

    async def stood_still(self) -> None:
        """Wait for the end of the operation in progress."""
        while self.status is not TargetStatus.PAUSED and not self.stopping:
            await self._idle.wait()

    async def stirred(self) -> None:
        """Wait for the end of the spool, or another status."""
        await self._idle.wait()

    # --- what the task that applies says, and waits for ---

    def begin(self) -> None:
        """A process begins where another has left the copy."""
        if self._kept.state.data_state is TargetDataState.RESTORE_REQUIRED and not self._source_chosen:
            self.pause()
        if self._kept.state.restoring:
            self.due = True
            self._machine.happen(ApplyEvent.PAUSE)

    def is_held(self) -> None:
        """Nothing is in progress any more."""
        self._machine.happen(ApplyEvent.HELD)

    async def rest(self) -> None:
        """Until somebody wakes it."""
        self._wake = trio.Event()
        await self._wake.wait()

    async def heed(self) -> None:
        """Stand still as long as that is wanted. Raises Stopped."""
        while self.stands_still and not self.stopping:
            self.is_held()
            await self.rest()
        if self.stopping:
            raise Stopped

    async def fails(self, reason: str, delay_s: float) -> None:
        """Something is to be tried again after that time. Raises Stopped."""
        if reason != self.reason:
            print(f"retrying: {reason}", file=sys.stderr, flush=True)
        self._machine.happen(ApplyEvent.FAIL, reason)
        with trio.move_on_after(delay_s):
            while not self.due:
                await self.rest()
        if self.due:
            await self.heed()

    def works(self) -> None:
        """What failed works again."""
        if self.status is TargetStatus.RETRYING:
            self._machine.happen(ApplyEvent.WORKS)

    def stir(self) -> None:
        """Those who wait for the end of the spool look again."""
        self._idle.set()
        self._idle = trio.Event()

    def _moved(self, before: TargetStatus, after: TargetStatus, event: ApplyEvent, reason: str) -> None:
        self.stir()
        self._changed()
