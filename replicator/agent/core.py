"""What the services of an agent share: its state, its children, and the rule for changes.

One change at a time: whoever alters the state does it within `Core.change` and needs the `Change` it gives.
A change is checked first, saved, and then carried out; if it fails half-way, what its steps have registered
with `undo` is done, in reverse order.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import trio

from replicator import events
from replicator.addresses import Address, normalise_path
from replicator.agent.children import Children
from replicator.agent.peers import Peers
from replicator.agent.state import AgentIdentity, State, save
from replicator.config import Config
from replicator.errors import ExitCode, ReplicatorError
from replicator.events import EventRing
from replicator.fences import FenceState
from replicator.paths import Home


class NotFoundError(ReplicatorError):
    """There is no mount, set, rule or connection of that name."""

    exit_code = ExitCode.USAGE


@dataclass(eq=False)
class Core:
    """`state` is what should be; the supervisor makes it so. `listen` is where the agent accepts sources."""

    home: Home
    identity: AgentIdentity
    config: Config
    state: State
    listen: Address
    events: EventRing
    children: Children
    peers: Peers
    up: trio.Event = field(default_factory=trio.Event)  # everything was started that should run
    fence_state: Callable[[str], FenceState | None] = lambda mount: None
    """Of a mount, by its id."""
    rung: trio.Event = field(default_factory=trio.Event)  # by a sender whose state changes; then replaced
    _changes: trio.Lock = field(default_factory=trio.Lock)
    _saving: trio.Lock = field(default_factory=trio.Lock)

    @asynccontextmanager
    async def change(self) -> AsyncIterator["Change"]:
        """Hold up all other changes until the end of the block; undo this one if it raises."""
        async with self._changes:
            change = Change(self)
            try:
                yield change
            except BaseException:
                with trio.CancelScope(shield=True):
                    await change.take_back()
                raise

    async def save(self, **fields: Any) -> None:
        """Make fields of the state durable, then believe in them. For `Change.save`, and for whoever alone
        changes a field and must not wait for a change that takes long.
        """
        with trio.CancelScope(shield=True):
            async with self._saving:
                state = msgspec.structs.replace(self.state, **fields)
                await trio.to_thread.run_sync(save, self.home.state, state)
                self.state = state


class Change:
    """The change under way."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._undo: list[Callable[[], Awaitable[object]]] = []

    def undo(self, step: Callable[..., Awaitable[object]], *arguments: Any, **options: Any) -> None:
        """Call this if a later step of the change fails."""
        self._undo.append(partial(step, *arguments, **options))

    async def save(self, **changes: Any) -> None:
        """Make a changed state durable, then believe in it."""
        await self._core.save(**changes)

    async def take_back(self) -> None:
        """What cannot be undone is said in an event: the error of the change itself goes to its caller."""
        while self._undo:
            try:
                await self._undo.pop()()
            except ReplicatorError as error:
                self._core.events.add(events.UNDO_FAILED, reason=str(error))


async def real_path(path: str, what: str) -> str:
    """An absolute path without symbolic links: what a mount is, and what rules compare with."""
    path = normalise_path(path, what)
    return await trio.to_thread.run_sync(os.path.realpath, path)
