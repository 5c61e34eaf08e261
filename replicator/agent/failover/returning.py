"""What a source does that comes back: it starts fenced, asks, and goes on or steps back.

An agent that knows of a group, and whose mounts are not up already, brings them up read-only. A grant of
target or witness opens them. Whoever owns the group by now supersedes it: see `superseded`.
"""

from collections.abc import Awaitable, Callable, Iterable

import trio

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.guards import Guards, boottime_s
from replicator.agent.process import serving_process
from replicator.agent.state import Mount
from replicator.capture import held_mount
from replicator.errors import ReplicatorError
from replicator.failovers import Guard, Promotion, superseded_reason
from replicator.fences import FenceMode
from replicator.fs.fence import FencePage

Drop = Callable[[str, Iterable[str]], Awaitable[object]]
"""Removes addresses (with their prefixes) of a group from this host, as far as they are here: see
`GroupAddresses.drop`.
"""


class Returning:
    """Of one agent."""

    def __init__(self, core: Core, guards: Guards, fencing: Fencing, drop: Drop) -> None:
        self._core = core
        self._guards = guards
        self._fencing = fencing
        self._drop = drop
        guards.on_superseded.append(self.superseded)

    # --- at a start ---

    async def before_mounts(self) -> None:
        """When the agent starts, before its mounts do: those of groups that are not up are fenced."""
        self._fencing.begin()
        self._guards.begin_fences()
        for guard in self._guards.all():
            if guard.is_superseded:
                continue
            mounts = [m for m in self._core.state.mounts if m.id in self._guards.mounts_of(guard)]
            were_up = not mounts or await trio.to_thread.run_sync(self._were_up, mounts)
            if were_up:
                inherited_s = min((self._fencing.until_ns(m.id) for m in mounts), default=0) / 1e9
                fenced = all(self._fencing.obeys(m.id) for m in mounts)
                self._guards.begin(guard, inherited_s=inherited_s, enforcing=fenced)
            else:
                self._guards.begin(guard, came_back=True)
                whom = f"{guard.target_name} or the witness" if guard.witness else guard.target_name
                self._core.events.add(events.START_FENCED, name=guard.name, whom=whom)
        await self._guards.settle()

    def _were_up(self, mounts: list[Mount]) -> bool:
        """Whether an earlier agent has left all of them to programs, and not just fenced for a start."""
        return all(self._was_up(mount) for mount in mounts)

    def _was_up(self, mount: Mount) -> bool:
        page = FencePage.find(self._core.home.fence(mount.id))
        if page is not None:
            starting = page.mode is FenceMode.READ_ONLY and not page.until_ns
            page.close()
            if starting:
                return False
        process = serving_process(self._core.home.socket("capture", mount.id))
        if process is not None:
            process.close()
            return True
        return held_mount.is_held(self._core.children.journal_settings(mount).memory_directory)

    async def after_mounts(self) -> None:
        """What a superseded agent does at every start."""
        for guard in self._guards.all():
            if guard.is_held and guard.superseded is not None:
                await self.superseded(guard, guard.superseded)

    # --- superseded ---

    async def superseded(self, guard: Guard, promotion: Promotion) -> None:
        """Hold its connections (*Restore required*, event 4018), and drop its addresses; the mounts are
        fenced already. Done again at every start: whatever was done already stays as it is.
        """
        reason = superseded_reason(promotion)
        for connection in self._core.state.connections:
            if connection.uuid in guard.copies:
                await self._core.children.tell_sender(connection, "supersede", reason=reason)
                self._core.events.add(events.RESTORE_NEEDED, id=connection.id, target=promotion.owner_name)
        if not guard.is_superseded:
            return  # a person has opened it, and answers for the addresses as well
        try:
            await self._drop(guard.group, [address.address for address in guard.addresses])
        except (OSError, ReplicatorError) as error:
            self._core.events.add(events.ADDRESSES_NOT_DROPPED, name=guard.name, reason=str(error))

    # --- by a person ---

    async def open(self, key: str, *, even_if_two_masters: bool) -> Guard:
        """A person decides that this agent goes on writing, whatever others say (DC-25). Raises
        ReplicatorError that says what that means and what else can be done, unless `even_if_two_masters`.
        """
        guard = self._guards.find(key)
        if any(away.group == guard.group for away in self._core.state.away):
            owner = guard.target_name or guard.target_host
            raise ReplicatorError(
                f"{guard.name}: what is here has become a copy of what {owner} owns, which writes it:"
                f" go home with `dtctl failback` on {owner}, or, if that is lost for good, take over from it:"
                f" dtctl failover now {guard.name} --source-is-off"
            )
        allowed = self._guards.right_of(guard)
        if allowed.holds(boottime_s()):
            raise ReplicatorError(f"{guard.name}: its mounts may be written already")
        if not even_if_two_masters:
            raise ReplicatorError(self._advice(guard, allowed.reason))
        epoch = guard.superseded.epoch if guard.superseded is not None else 0
        guard = await self._guards.change(guard.group, opened=epoch, by_hand=True)
        self._core.events.add(events.OPENED_BY_HAND, name=guard.name, reason=allowed.reason)
        await self._guards.settle()
        return guard

    def _advice(self, guard: Guard, reason: str) -> str:
        """DC-26, DC-27."""
        target = guard.target_name or guard.target_host
        owner = guard.superseded if guard.is_held else None
        if owner is not None:
            what = (
                f"{superseded_reason(owner)}. If both write, each has what the other lacks, and one of them"
                " is left over. First look who served programs last (the newest files, logs and events on"
                " both hosts): whoever stopped last is not always right. Safe: leave this side read-only,"
                f" compare both, then `dtctl failback` on {owner.owner_name}"
            )
        else:
            what = (
                f"{reason}. Nobody knows here whether {target} has taken over meanwhile. Safe: make {target}"
                f" or the witness reachable, or look there: `dtctl failover list` on {target}"
            )
        return f"{guard.name}: {what}. Only if {target} does not write: --even-if-two-masters"
