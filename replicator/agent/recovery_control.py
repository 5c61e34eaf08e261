"""Recoveries and mirrors of this host: how fast all of them may be, in which order of importance, and whether
they begin by themselves.

The agent decides (`shares.py`) and tells each sender by a control call; a sender that is started later finds
it in its arguments. While something recovers, it looks each second whether programs change what is captured
here.
"""

from enum import StrEnum
from functools import partial
from typing import TypeVar

import msgspec
import trio

from replicator import events, limits
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.repsets import Repsets
from replicator.agent.state import Connection
from replicator.agent.survivor import SURVIVORS, Sides, choose
from replicator.errors import ReplicatorError, UsageError
from replicator.queue.recovery import ROW_SHIFT
from replicator.shares import Priority, Speed, shares
from replicator.status import ConnectionStatus

E = TypeVar("E", bound=StrEnum)


class RecoveryView(msgspec.Struct, frozen=True, kw_only=True):
    """Recovery on this host."""

    speed: Speed
    busy: bool  # programs change what is captured, so that recoveries rest in between
    priorities: dict[str, Priority]  # of sets that have another than the default


class Activity:
    """Whether programs change what is captured, told by how journals grow. Pure; times in seconds."""

    def __init__(self) -> None:
        self.busy = False
        self._last_s: float | None = None
        self._busy_s = float("-inf")
        self._heads: dict[str, int] = {}

    def look(self, now_s: float, heads: dict[str, int]) -> None:
        """`heads`: sequence of the last record of each journal; looks may be as frequent as they like."""
        if self._last_s is None or now_s - self._last_s > 10 * limits.RECOVERY_LOOK_S:
            self._last_s, self._heads = now_s, heads
            return
        elapsed_s = now_s - self._last_s
        if elapsed_s < limits.RECOVERY_LOOK_S / 2:
            return
        # A journal that has begun a new row is at another number altogether.
        operations = sum(
            head - before
            for journal, head in heads.items()
            if (before := self._heads.get(journal, head)) >> ROW_SHIFT == head >> ROW_SHIFT
        )
        if operations / elapsed_s >= limits.RECOVERY_BUSY_OPERATIONS_PER_S:
            self._busy_s = now_s
        self.busy = now_s - self._busy_s < limits.RECOVERY_BUSY_S
        self._last_s, self._heads = now_s, heads


class RecoveryControl:
    """See the module."""

    def __init__(self, core: Core, connections: Connections, repsets: Repsets) -> None:
        self._core = core
        self._connections = connections
        self._repsets = repsets
        self._activity = Activity()
        self._sharing = trio.Lock()  # what was decided last is told last

    def view(self) -> RecoveryView:
        state = self._core.state
        return RecoveryView(
            speed=state.recovery_speed, busy=self._activity.busy, priorities=dict(state.priorities)
        )

    # --- what an administrator asks for ---

    async def set_speed(self, speed: str) -> RecoveryView:
        """DC-19. It holds when this returns."""
        wanted = _one_of(Speed, speed, "speed")
        async with self._core.change() as change:
            await change.save(recovery_speed=wanted)
        self._core.events.add(events.RECOVERY_SPEED, speed=wanted)
        await self.share_out()
        return self.view()

    async def set_priority(self, repset: str, priority: str) -> RecoveryView:
        """DC-17: of a set, for all of its connections."""
        wanted = _one_of(Priority, priority, "priority")
        async with self._core.change() as change:
            self._repsets.find(repset)
            others = {n: p for n, p in self._core.state.priorities.items() if n != repset}
            changed = others if wanted is Priority.REGULAR else {**others, repset: wanted}
            await change.save(priorities=changed)
        self._core.events.add(events.RECOVERY_PRIORITY, repset=repset, priority=wanted)
        await self.share_out()
        return self.view()

    async def act(self, key: str, action: str) -> ConnectionStatus:
        """`pause` or `resume` what runs (DC-21); `automatic` or `manual`: whether it begins by itself
        (DC-22).
        """
        if action in ("pause", "resume"):
            return await self._connections.mirror(
                key, action, kind="difference", newer=False, checksum=False, orphans="keep"
            )
        automatic = action == "automatic"
        async with self._core.change() as change:
            connection = self._connections.find(key)
            options = msgspec.structs.replace(connection.options, automatic_recovery=automatic)
            changed = msgspec.structs.replace(connection, options=options)
            await change.save(
                connections=tuple(
                    changed if c.uuid == connection.uuid else c for c in self._core.state.connections
                )
            )
        event = events.RECOVERY_AUTOMATIC if automatic else events.RECOVERY_MANUAL
        self._core.events.add(event, id=connection.id)
        await self._core.children.tell_sender(changed, "set_recovery", automatic=automatic)
        return await self._connections.status(changed)

    async def force(self, key: str, survivor: str, confirm: str) -> ConnectionStatus:
        """DC-25: which side survives, if both were changed. Refused unless that is confirmed by the set's
        name.
        """
        if survivor not in SURVIVORS:
            raise UsageError(f"survivor {survivor!r}: must be one of {', '.join(SURVIVORS)}")
        connection = self._connections.find(key)
        status = await self._connections.status(connection)
        sides = Sides(
            connection.repset.name, status.target, status.target_data_state, status.queued_replication_ops
        )
        choice = choose(sides, survivor, confirm)
        if not choice.allowed:
            raise ReplicatorError(choice.text)
        child = self._core.children.sender(connection)
        if child is None:
            raise ReplicatorError(f"connection {connection.id} does not run")
        await child.call("force_source")
        self._core.events.add(events.SOURCE_FORCED, id=connection.id, lost=choice.text)
        return await self._connections.status(connection)

    # --- beside it ---

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            rung = self._core.rung
            if await self.share_out():
                await trio.sleep(limits.RECOVERY_LOOK_S)
            else:
                await rung.wait()

    async def share_out(self) -> int:
        """Tell each sender how much of its time it may recover. Returns how many want to."""
        async with self._sharing:
            return await self._share_out()

    async def _share_out(self) -> int:
        connections = self._core.state.connections
        recovering: set[str] = set()
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(self._ask, connection, recovering)
        if recovering:
            self._activity.look(trio.current_time(), await self._heads())
        state = self._core.state
        share = partial(shares, state.recovery_speed, busy=self._activity.busy and bool(recovering))
        at_work = [c for c in connections if c.uuid in recovering]
        wanted = dict(
            zip((c.uuid for c in at_work), share([state.priority_of(c) for c in at_work]), strict=True)
        )
        tell = self._core.children.tell_sender
        async with trio.open_nursery() as nursery:
            for connection in connections:
                # One that does nothing now begins as if it were alone, until the next look.
                part = wanted.get(connection.uuid, share([state.priority_of(connection)])[0])
                nursery.start_soon(partial(tell, connection, "set_recovery", share=part))
        return len(recovering)

    async def _ask(self, connection: Connection, recovering: set[str]) -> None:
        child = self._core.children.sender(connection)
        try:
            if child is not None and child.pid is not None and await child.call("recovering"):
                recovering.add(connection.uuid)
        except ReplicatorError:
            pass  # it does not run, or not well: its successor will be asked

    async def _heads(self) -> dict[str, int]:
        heads: dict[str, int] = {}
        for mount in self._core.state.mounts:
            child = self._core.children.capture(mount)
            try:
                if child is not None and child.pid is not None:
                    heads[mount.id] = (await child.call("status"))["head_sequence"]
            except ReplicatorError:
                pass  # it is being replaced: it is looked at the next time
        return heads


def _one_of(kind: type[E], text: str, what: str) -> E:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{what} {text!r}: must be one of {', '.join(kind)}") from None
