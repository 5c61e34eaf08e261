"""What another agent is asked for until it has acknowledged it, over kills of both: that it runs a script
(FB-02), or lets its copies go on.
"""

import os
import time
from collections.abc import Awaitable, Callable

import msgspec
import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.procedure import Facts
from replicator.agent.state import load_document, save_document
from replicator.errors import ReplicatorError
from replicator.failovers import Monitor, TakeOver


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """`attempt` names it: what was done once is not done again. Either `facts` of a script, or an `order` of
    which nothing comes.
    """

    monitor: Monitor
    attempt: str
    since: float  # seconds since the epoch of clocks
    facts: Facts | None = None
    order: TakeOver | None = None

    @property
    def what(self) -> str:
        return f"run its {self.facts.kind} script" if self.facts is not None else "let its copies go on"


Do = Callable[[Errand], Awaitable[str]]
"""Asks once. Returns how it failed, for good; "": it has not. Raises ReplicatorError: to be asked again."""


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """home/failover/errands.json."""

    errands: tuple[Errand, ...] = ()


class Errands:
    """Of one agent. `run` goes on with what is left."""

    def __init__(self, core: Core, do: Do, note: Callable[[Monitor, str, str], Awaitable[None]]) -> None:
        """`note`: see `Groups.note`."""
        self._core = core
        self._ask = do
        self._note = note
        self._path = os.path.join(core.home.failover, "errands.json")
        self._left = load_document(self._path, Left) or Left()
        self._told: dict[str, str] = {}  # by attempt: why it is still to be done
        self._more = trio.Event()
        self._lock = trio.Lock()

    @property
    def left(self) -> tuple[Errand, ...]:
        return self._left.errands

    async def post_script(self, facts: Facts, attempt: str) -> None:
        """Durable on return. Raises StateError. The same attempt again changes nothing."""
        await self._post(Errand(monitor=facts.monitor, attempt=attempt, since=time.time(), facts=facts))

    async def post_release(self, monitor: Monitor, order: TakeOver, attempt: str) -> None:
        """The same: copies that were held go on, and a vote that was not used is taken back."""
        await self._post(Errand(monitor=monitor, attempt=attempt, since=time.time(), order=order))

    async def settle(self, group: str) -> None:
        """What an earlier try of a failback left to be taken back is, before another one begins. Raises
        ReplicatorError: not yet.
        """
        for errand in self.left:
            if errand.monitor.uuid == group and errand.order is not None:
                await self._ask(errand)
                await self._done(errand)

    async def _post(self, errand: Errand) -> None:
        async with self._lock:
            if all(known.attempt != errand.attempt for known in self.left):
                await self._keep((*self.left, errand))
        self._more.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._more = trio.Event()
            for errand in self.left:
                await self._do(errand)
            with trio.move_on_after(limits.ERRAND_RETRY_S if self.left else float("inf")):
                await self._more.wait()

    async def _do(self, errand: Errand) -> None:
        ended, problem = events.ERRAND_DONE, ""
        try:
            problem = await self._ask(errand)
            if problem:
                ended = events.ERRAND_FAILED
        except ReplicatorError as error:
            if time.time() - errand.since < limits.ERRAND_GIVE_UP_S:
                await self._tell_why(errand, str(error))
                return
            ended, problem = events.ERRAND_GIVEN_UP, str(error)
        await self._done(errand)
        event = self._core.events.add(ended, reason=problem, **_fields(errand))
        if problem:
            await self._note(errand.monitor, "errand-failed", event.text)

    async def _tell_why(self, errand: Errand, reason: str) -> None:
        """Once for each reason."""
        if self._told.get(errand.attempt) != reason:
            self._told[errand.attempt] = reason
            event = self._core.events.add(events.ERRAND_WAITS, reason=reason, **_fields(errand))
            await self._note(errand.monitor, "errand-waits", event.text)

    async def _done(self, errand: Errand) -> None:
        async with self._lock:
            await self._keep(tuple(known for known in self.left if known.attempt != errand.attempt))

    async def _keep(self, errands: tuple[Errand, ...]) -> None:
        left = Left(errands=errands)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._save, left)
        self._left = left

    def _save(self, left: Left) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        save_document(self._path, left)


def _fields(errand: Errand) -> dict[str, str]:
    monitor = errand.monitor
    source = monitor.source_name or monitor.settings.source_host
    return {"name": monitor.name, "source": source, "what": errand.what}
