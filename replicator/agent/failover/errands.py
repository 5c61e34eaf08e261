"""What another agent is asked for until it has acknowledged it, over kills of both: scripts (FB-02)."""

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

Tell = Callable[[Facts, str], Awaitable[None]]
"""Has home run a script; the attempt names it, so that it is not run twice. Raises ReplicatorError."""


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    facts: Facts
    attempt: str
    since: float  # seconds since the epoch of clocks


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """home/failover/errands.json."""

    errands: tuple[Errand, ...] = ()


class Errands:
    """Of one agent. `run` goes on with what is left."""

    def __init__(self, core: Core, tell: Tell) -> None:
        self._core = core
        self._tell = tell
        self._path = os.path.join(core.home.failover, "errands.json")
        self._left = load_document(self._path, Left) or Left()
        self._more = trio.Event()
        self._lock = trio.Lock()

    @property
    def left(self) -> tuple[Errand, ...]:
        return self._left.errands

    async def post_script(self, facts: Facts, attempt: str) -> None:
        """Durable on return. Raises StateError. The same attempt again changes nothing."""
        async with self._lock:
            if all(errand.attempt != attempt for errand in self.left):
                errand = Errand(facts=facts, attempt=attempt, since=time.time())
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
        facts = errand.facts
        try:
            await self._tell(facts, errand.attempt)
        except ReplicatorError as error:
            if time.time() - errand.since < limits.ERRAND_GIVE_UP_S:
                return
            problem = f"given up: {error}"
        else:
            problem = ""
        async with self._lock:
            await self._keep(tuple(known for known in self.left if known.attempt != errand.attempt))
        self._core.events.add(
            events.ERRAND_GIVEN_UP if problem else events.ERRAND_DONE,
            name=facts.monitor.name,
            kind=facts.kind.value,
            source=facts.monitor.source_name or facts.monitor.settings.source_host,
            **({"reason": problem} if problem else {}),
        )

    async def _keep(self, errands: tuple[Errand, ...]) -> None:
        left = Left(errands=errands)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._save, left)
        self._left = left

    def _save(self, left: Left) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        save_document(self._path, left)
