"""What a source does that finds itself superseded, or that a person opens all the same."""

from collections.abc import Awaitable, Callable, Iterable

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.guards import Guards, boottime_s
from replicator.errors import ReplicatorError
from replicator.failovers import Guard, Promotion, superseded_reason

Drop = Callable[[str, Iterable[str]], Awaitable[object]]
"""Removes addresses (with their prefixes) of a group from this host, as far as they are here: see
`GroupAddresses.drop`.
"""


class Returning:
    """Of one agent."""

    def __init__(self, core: Core, guards: Guards, drop: Drop) -> None:
        self._core = core
        self._guards = guards
        self._drop = drop
        guards.on_superseded.append(self.superseded)

    async def begin(self) -> None:
        """What a superseded agent does at every start."""
        for guard in self._guards.all():
            if guard.is_held and guard.superseded is not None:
                await self.superseded(guard, guard.superseded)

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
