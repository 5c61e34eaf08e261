"""Groups in which this agent is the source (`State.guards`): who watches it, and what follows for its mounts.

A target tells its source that it watches it, and with what settings (`watch`, `unwatch`); the source believes
that of the agent that keeps its copies, and of nobody else. What the fence of a mount says follows from all
groups of the mount, see `guard_fences.py`.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.guard_fences import GuardFences
from replicator.agent.state import load_document
from replicator.bounds import Count, Id
from replicator.errors import NotPermittedError, ReplicatorError
from replicator.failover.lease import Seconds
from replicator.failover.owner import Owner
from replicator.failover.writing import Right
from replicator.failovers import Guard, GuardedAddress, Lapse, Promotion, superseded_reason
from replicator.fences import MODE_OF, FenceMode
from replicator.fs.fence import boottime_ns


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Call `watch`, target → source. Said again whenever it changes, and when the source comes back."""

    name: str
    target_uuid: Id
    target_name: str
    target_port: int = limits.PORT
    witness: str = ""
    lease_s: Seconds = 0.0
    lapse: Lapse = Lapse.NONE
    terms: Count = 0
    copies: tuple[Id, ...] = ()  # uuids of connections
    addresses: tuple[GuardedAddress, ...] = ()
    epoch: Count = 0


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer."""

    agent_uuid: str
    agent_name: str
    copies: tuple[str, ...] = ()  # those that are guarded now
    epoch: int = 0
    terms: int = 0  # number of the settings that it goes by


class Unwatch(msgspec.Struct, frozen=True, kw_only=True):
    """Call `unwatch`, target → source: its monitor was removed."""


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """Call `superseded`, new owner → source: see `Guards.supersede`."""

    promotion: Promotion


@dataclass
class Standing:
    """Of one group, not kept over restarts."""

    owner: Owner
    inherited_s: float = 0.0  # until then an earlier agent's leases are valid
    enforcing: bool = True  # the fences of its mounts follow its leases
    has_ended: bool = False  # nobody watches it any more
    superseded_by: str = ""  # name of the agent; known before it is durable
    is_open: bool = True


@dataclass
class _News:
    """Rung when guards change; then replaced."""

    event: trio.Event = field(default_factory=trio.Event)

    def ring(self) -> None:
        self.event.set()
        self.event = trio.Event()


def boottime_s() -> float:
    return boottime_ns() / 1e9


class GuardView(msgspec.Struct, frozen=True, kw_only=True):
    """A group in which this host is the source, for users."""

    name: str
    group: str
    target: str  # HOST:PORT, with the name of the agent
    witness: str
    epoch: int
    lapse: str  # failovers.Lapse
    lease_s: float
    is_open: bool  # its mounts may be written
    left_s: float | None  # until they may not, unless a lease is granted; None: no lease is needed
    reason: str  # why they may not, or what that depends on
    by_hand: bool  # a person has opened it
    copies: tuple[str, ...]  # uuids of connections
    superseded: Promotion | None  # by which another agent owns it


class Guards:
    """Of one agent."""

    def __init__(self, core: Core, calls: Calls, fencing: Fencing) -> None:
        self._core = core
        self._fences = GuardFences(core, fencing, self)
        self._standings: dict[str, Standing] = {}
        self._changing = trio.Lock()
        self.news = _News()
        self.on_superseded: list[Any] = []  # async (guard, promotion): what else is to be done
        calls.register("watch", Watch, self._watch)
        calls.register("unwatch", Unwatch, self._unwatch)
        calls.register("superseded", Tell, self._tell)

    # --- what there is ---

    def all(self) -> tuple[Guard, ...]:
        return self._core.state.guards

    def get(self, group: str) -> Guard | None:
        return next((guard for guard in self.all() if guard.group == group), None)

    def find(self, key: str) -> Guard:
        """By its name or uuid. Raises NotFoundError."""
        for guard in self.all():
            if key in (guard.name, guard.group):
                return guard
        known = ", ".join(guard.name for guard in self.all()) or "none"
        raise NotFoundError(f"nobody watches this host as {key!r}; groups it is the source of: {known}")

    def standing(self, guard: Guard) -> Standing:
        if guard.group not in self._standings:
            self.begin(guard)
        return self._standings[guard.group]

    def begin(
        self, guard: Guard, *, came_back: bool = False, inherited_s: float = 0.0, enforcing: bool = True
    ) -> None:
        """`came_back`: its mounts were not up. `inherited_s`: until then they may write by leases of an
        earlier agent. `enforcing` False: nobody counts on it to stop yet; it begins to with its first lease.
        """
        owner = Owner(self._core.identity.uuid, guard, boottime_s(), came_back=came_back)
        self._standings[guard.group] = Standing(owner, inherited_s, enforcing)

    def _follow(self, guard: Guard) -> None:
        """It is durable. Under other terms, or in another epoch, leases of before are none any more."""
        standing = self.standing(guard)
        former = standing.owner.guard
        if (former.epoch, former.terms) != (guard.epoch, guard.terms):
            standing.inherited_s = 0.0
        standing.owner.follow(guard)

    def mounts_of(self, guard: Guard) -> tuple[str, ...]:
        """Ids of the mounts whose changes go to its copies."""
        found = {
            journal.mount.id: None
            for connection in self._core.state.connections
            if connection.uuid in guard.copies
            for journal in self._core.children.journals(connection)
        }
        return tuple(found)

    def view(self, guard: Guard) -> GuardView:
        allowed, now_s = self.right_of(guard), boottime_s()
        return GuardView(
            name=guard.name,
            group=guard.group,
            target=f"{guard.target_name} ({Address(guard.target_host, guard.target_port)})",
            witness=guard.witness,
            epoch=guard.epoch,
            lapse=guard.lapse.value,
            lease_s=round(guard.lease_s, 3),
            is_open=allowed.holds(now_s) or not self.mounts_of(guard),  # copies that are gone guard none
            left_s=None if allowed.until_s == inf else round(max(allowed.until_s - now_s, 0), 3),
            reason="opened by hand" if guard.by_hand and not guard.is_superseded else allowed.reason,
            by_hand=guard.by_hand,
            copies=guard.copies,
            superseded=guard.superseded if guard.is_held else None,
        )

    # --- what follows ---

    def right_of(self, guard: Guard) -> Right:
        """Whether its mounts may write, and until when."""
        standing = self.standing(guard)
        if standing.superseded_by:
            return Right(0.0, f"{standing.superseded_by} owns the group now")
        if standing.has_ended or (guard.by_hand and not guard.is_superseded):
            return Right(inf)
        allowed = standing.owner.right(boottime_s())
        if not standing.enforcing and not guard.is_superseded and not standing.owner.came_back:
            return Right(inf)
        if guard.lapse is not Lapse.NONE and not guard.is_superseded and not standing.owner.came_back:
            return Right(max(allowed.until_s, standing.inherited_s), allowed.reason)
        return allowed

    def is_closed_for_good(self, guard: Guard) -> bool:
        return bool(self.standing(guard).superseded_by) or guard.is_superseded

    def mode_of(self, guard: Guard) -> FenceMode:
        """What its mounts do when they may not."""
        if self.is_closed_for_good(guard) or self.standing(guard).owner.came_back:
            return FenceMode.READ_ONLY
        return MODE_OF[guard.lapse]

    def begin_fences(self) -> None:
        """See `GuardFences.begin`."""
        self._fences.begin()

    async def settle(self) -> None:
        """Write what holds now into the fences of all mounts."""
        await self._fences.settle()

    def look(self) -> None:
        """Events of leases that have lapsed meanwhile."""
        self._fences.look()

    # --- what changes it ---

    async def change(self, group: str, **fields: Any) -> Guard:
        """Replace fields of one, durably. Raises NotFoundError: it was removed."""
        async with self._changing:
            guard = msgspec.structs.replace(self.find(group), **fields)
            await self._core.save(guards=tuple(guard if g.group == group else g for g in self.all()))
            self._follow(guard)
        self.news.ring()
        return guard

    async def supersede(self, group: str, promotion: Promotion) -> bool:
        """Somebody says that another agent owns the group. Whether that is so and was not known: then it is
        durable, and the mounts are fenced, on return. From `renew`, a refused session, an acknowledgement.
        """
        guard = self.get(group)
        if guard is None or promotion.group != group:
            return False
        superseded = guard.superseded
        if promotion.epoch <= max(guard.epoch, superseded.epoch if superseded is not None else 0):
            return False
        if promotion.owner == self._core.identity.uuid:
            # What this agent was, and has forgotten: its state is from a backup.
            await self.change(group, epoch=promotion.epoch, owned_by=promotion)
            return False
        standing = self.standing(guard)
        standing.superseded_by = promotion.owner_name
        await self.settle()  # at once, and before it is durable: after a crash this agent asks again
        guard = await self.change(group, superseded=promotion)
        standing.superseded_by = ""
        await self.settle()
        self._core.events.add(
            events.SUPERSEDED,
            name=guard.name,
            owner=promotion.owner_name,
            epoch=promotion.epoch,
            reason=superseded_reason(promotion),
        )
        for act in self.on_superseded:
            await act(guard, promotion)
        return True

    async def learn(self, connection: str, promotion: Promotion) -> None:
        """The target of a connection has refused it with this record."""
        if self.get(promotion.group) is None:
            known = next((c for c in self._core.state.connections if c.uuid == connection), None)
            if known is None:
                return
            guard = Guard(
                group=promotion.group,
                name=promotion.owner_name,
                target_uuid=promotion.owner,
                target_name=promotion.owner_name,
                target_host=known.target_host,
                target_port=known.target_port,
                copies=(connection,),
            )
            async with self._changing:
                if self.get(guard.group) is None:
                    await self._core.save(guards=(*self.all(), guard))
            self.news.ring()
        guard = self.find(promotion.group)
        if connection not in guard.copies:
            await self.change(guard.group, copies=(*guard.copies, connection))
        await self.supersede(promotion.group, promotion)

    async def forget(self, group: str) -> None:
        """Nobody watches it any more."""
        guard = self.get(group)
        if guard is None or guard.is_held:
            return  # what another agent owns stays so, whoever watches
        # First, so that after a crash there is no fence that nobody knows of.
        self.standing(guard).has_ended = True
        await self.settle()
        async with self._changing:
            await self._core.save(guards=tuple(g for g in self.all() if g.group != group))
        self._standings.pop(group, None)
        self.news.ring()
        self._core.events.add(events.GUARD_REMOVED, name=guard.name, target=guard.target_name)

    async def dismiss(self, group: str) -> None:
        """This agent is no source of that group any more: it keeps its copy, or protects it itself. Nothing,
        if it is none.
        """
        if self.get(group) is None:
            return
        async with self._changing:
            await self._core.save(guards=tuple(g for g in self.all() if g.group != group))
        self._standings.pop(group, None)
        self.news.ring()
        await self.settle()

    # --- what targets say ---

    async def _watch(self, group: str, body: Watch, caller: Caller) -> Watched:
        if caller.peer is not None and caller.peer.uuid != body.target_uuid:
            raise NotPermittedError("an agent can only say of itself that it watches")
        copies = tuple([uuid for uuid in body.copies if await self._is_target(uuid, body.target_uuid)])
        async with self._changing:
            known = self.get(group)  # what it is by now: it may have been superseded meanwhile
            if known is not None:
                _check_target(known, caller)
            guard = _watched(known or Guard(group=group, epoch=body.epoch), body, copies, caller.host)
            if guard != known:
                others = tuple(g for g in self.all() if g.group != group)
                await self._core.save(guards=(*others, guard))
                if known is None:
                    self.begin(guard, enforcing=False)
                else:
                    if known.lapse is Lapse.NONE:
                        self.standing(guard).enforcing = False
                    self._follow(guard)
        if guard != known:
            await self.settle()
            self.news.ring()
        if known is None:
            self._core.events.add(
                events.GUARD_ADDED, name=guard.name, target=guard.target_name, lapse=guard.lapse.value
            )
        identity = self._core.identity
        return Watched(
            agent_uuid=identity.uuid,
            agent_name=identity.name,
            copies=copies,
            epoch=guard.epoch,
            terms=guard.terms,
        )

    async def _is_target(self, connection: str, target_uuid: str) -> bool:
        """Whether that agent has the copy of this connection, as far as it has ever proved it."""
        if all(known.uuid != connection for known in self._core.state.connections):
            return False
        path = self._core.home.source(connection)
        try:
            known = await trio.to_thread.run_sync(load_document, path, _Remembered)
        except ReplicatorError:
            return False
        return known is None or known.target_uuid in ("", target_uuid)

    async def _unwatch(self, group: str, body: Unwatch, caller: Caller) -> None:
        guard = self.get(group)
        if guard is not None:
            _check_target(guard, caller)
            await self.forget(group)

    async def _tell(self, group: str, body: Tell, caller: Caller) -> Watched:
        guard = self.find(group)
        _check_target(guard, caller)
        await self.supersede(group, body.promotion)
        identity = self._core.identity
        return Watched(
            agent_uuid=identity.uuid, agent_name=identity.name, copies=guard.copies, epoch=guard.epoch
        )


def _watched(guard: Guard, body: Watch, copies: tuple[str, ...], host: str) -> Guard:
    """With what its target says of it. Requests overtake each other on the way, and those of settings that
    have been replaced since change nothing: their target counts on the later ones.
    """
    if body.terms < guard.terms:
        return guard
    return msgspec.structs.replace(
        guard,
        name=body.name,
        target_uuid=body.target_uuid,
        target_name=body.target_name,
        target_host=host or guard.target_host,
        target_port=body.target_port,
        witness=body.witness,
        lease_s=body.lease_s,
        lapse=body.lapse,
        terms=body.terms,
        copies=copies or guard.copies,
        addresses=body.addresses,
    )


class _Remembered(msgspec.Struct, frozen=True):
    """What is of interest of `sender.sender_state.SenderState`."""

    target_uuid: str = ""


def _check_target(guard: Guard, caller: Caller) -> None:
    if caller.peer is not None and guard.target_uuid not in ("", caller.peer.uuid):
        raise NotPermittedError(f"this group is watched by another agent ({guard.target_name})")
