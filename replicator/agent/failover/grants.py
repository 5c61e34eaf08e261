"""On the target: its sources are told that they are watched, and get leases.

Leases that may be out are durable: after a restart of this agent nothing is decided before they have lapsed.
`failover/lease.py` decides.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.failover.group_copies import GroupCopies
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Tell, Unwatch, Watch, Watched, boottime_s
from replicator.agent.state import load_document, save_document
from replicator.errors import NotPermittedError, ReplicatorError
from replicator.failover.lease import Granter, GrantMemory, Renew, Renewed
from replicator.failover.terms import terms_of
from replicator.failovers import GuardedAddress, Monitor, Phase, Promotion

VERSION = 1
_TAKEN = frozenset({Phase.TAKING_OVER, Phase.ACTIVE, Phase.HANDING_BACK})

Record = Callable[[str], Promotion | None]
"""The last promotion of a group that this agent knows of."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """To the call `renew`. `watched` False: this agent has no such monitor (any more). `asks_lag`: next time
    it wants to hear what the copies lack.
    """

    renewed: Renewed
    watched: bool = True
    asks_lag: bool = False


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """Of one group. `source_host`, `source_port`: where to say that nobody watches any more."""

    memory: GrantMemory = GrantMemory()
    source_host: str = ""
    source_port: int = 0


class GrantFile(msgspec.Struct, frozen=True, kw_only=True):
    """home/failover/grants.json. `ended`: groups whose monitor is removed, until their source knows."""

    version: int = VERSION
    groups: dict[str, Granted] = {}
    ended: dict[str, Granted] = {}


class Grants:
    """Of one agent. `run` tells the sources."""

    def __init__(
        self,
        core: Core,
        calls: Calls,
        groups: Groups,
        copies: GroupCopies,
        record: Record,
        now_s: Callable[[], float] = boottime_s,
    ) -> None:
        """Raises StateError: what was granted cannot be read."""
        self._core = core
        self._calls = calls
        self._groups = groups
        self._copies = copies
        self._record = record
        self._now_s = now_s
        self._file = load_document(core.home.grants, GrantFile) or GrantFile()
        self._granters: dict[str, Granter] = {}
        self._lock = trio.Lock()
        self._told: dict[str, tuple[Watch | Tell, float]] = {}  # by group, and when
        self._silent: set[str] = set()
        self._behind: dict[
            str, tuple[float, float]
        ] = {}  # by group: what its copies lack, and when it was said
        calls.register("renew", Renew, self._renew)

    def granter(self, group: str) -> Granter:
        """`stop` it before the group is taken over; then no lease is valid any more from `free_s` on."""
        monitor = self._groups.get(group)
        taken = monitor is not None and monitor.phase in _TAKEN
        if group not in self._granters:
            memory = self._granted(group).memory
            stopped = monitor.epoch if monitor is not None and taken else None
            self._granters[group] = Granter(memory, self._now_s(), stopped=stopped)
        granter = self._granters[group]
        if granter.is_stopped and not taken:
            granter.resume()  # it was taken back by an agent that ended before it had done this
        return granter

    def _granted(self, group: str) -> Granted:
        return self._file.groups.get(group, Granted())

    def behind_s(self, monitor: Monitor) -> float | None:
        """What the copies of a group lacked when its source was heard last, which was no longer ago than a
        failure takes to be seen. None: nobody knows.
        """
        found_s, heard_s = self._behind.get(monitor.uuid, (None, 0.0))
        watched = [a for a in monitor.settings.addresses if a.monitored]
        countdown_s = max(
            (a.interval_s * max([a.misses, *(check.misses for check in a.checks)]) for a in watched),
            default=0.0,
        )
        recent_s = countdown_s + 2 * limits.GUARD_LOOK_S + limits.FAILOVER_CALL_S
        return found_s if self._now_s() - heard_s < recent_s else None

    # --- leases ---

    async def _renew(self, group: str, body: Renew, caller: Caller) -> Answer:
        monitor, record = self._groups.get(group), self._record(group)
        if caller.peer is not None and caller.peer.uuid != body.agent:
            raise NotPermittedError("an agent can only ask for leases of its own")
        if monitor is None:
            epoch = record.epoch if record is not None else 0
            if record is None or body.epoch >= epoch:
                no = Renewed(granted=False, epoch=epoch, reason="this agent does not watch it any more")
                return Answer(renewed=no, watched=False)
            return Answer(renewed=Renewed(granted=False, epoch=epoch, promotion=record))
        if monitor.source_uuid and caller.peer is not None and monitor.source_uuid != caller.peer.uuid:
            raise NotPermittedError("this group has another source")
        if body.behind_s is None:
            self._behind.pop(group, None)
        else:
            self._behind[group] = body.behind_s, self._now_s()
        async with self._lock:
            renewed = await self._decide(monitor, record, body)
        return Answer(renewed=renewed, asks_lag=bool(monitor.settings.lag_max_s))

    async def _decide(self, monitor: Monitor, record: Promotion | None, body: Renew) -> Renewed:
        group, known = monitor.uuid, monitor.epoch
        if record is not None:
            known = max(known, record.epoch)
        learned = body.promotion
        if learned is not None and learned.epoch > known and learned.owner == body.agent:
            await self._groups.change(group, epoch=learned.epoch)
            known = learned.epoch
        owns = record is not None and record.epoch == known and record.owner == self._core.identity.uuid
        granter, granted = self.granter(group), self._granted(group)
        before = granter.memory
        answer = granter.renew(
            body,
            self._now_s(),
            epoch=known,
            owns=owns,
            promotion=record if record is not None and record.epoch == known else None,
            lease_s=terms_of(monitor.settings).lease_s,
            terms=monitor.terms,
        )
        if granter.memory != before:
            await self._keep(group, msgspec.structs.replace(granted, memory=granter.memory))
        return answer

    async def _keep(self, group: str, granted: Granted | None) -> None:
        groups = {**self._file.groups}
        ended = {**self._file.ended}
        if granted is not None:
            groups[group] = granted
            ended.pop(group, None)
        elif group in groups:
            ended[group] = groups.pop(group)
        await self._save(GrantFile(groups=groups, ended=ended))

    async def _save(self, file: GrantFile) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(_write, self._core.home.grants, file))
        self._file = file

    # --- telling ---

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            async with trio.open_nursery() as nursery:
                for monitor in self._groups.all():
                    nursery.start_soon(self._tell_one, monitor)
                for group in {*self._file.groups, *self._file.ended}:
                    if self._groups.get(group) is None:
                        nursery.start_soon(self._end_one, group)
            await trio.sleep(limits.GUARD_TELL_S)

    async def tell(self, monitor: Monitor) -> Watched | None:
        """Tell the source what it does not know yet: that it is watched, with which settings, or that this
        agent has taken over. None: it knows. Raises UnreachableError, ReplicatorError.
        """
        address = Address(monitor.settings.source_host, monitor.settings.source_port)
        record = self._record(monitor.uuid)
        if record is not None and record.owner == self._core.identity.uuid and monitor.phase in _TAKEN:
            news: Tell | Watch = Tell(promotion=record)
            action = "superseded"
        elif monitor.phase in _TAKEN:
            return None
        else:
            await self._remember(monitor)
            news = await self._watch_of(monitor)
            action = "watch"
        told, told_s = self._told.get(monitor.uuid, (None, 0.0))
        if told == news and self._now_s() - told_s < limits.GUARD_TELL_AGAIN_S:
            return None
        answer = await self._calls.ask(address, action, monitor.uuid, news, Watched)
        if answer.terms > monitor.terms:
            # This agent's state is from a backup: what it says has to count from now on.
            await self._groups.change(monitor.uuid, terms=answer.terms + 1)
        else:
            self._told[monitor.uuid] = news, self._now_s()
        return answer

    async def _watch_of(self, monitor: Monitor) -> Watch:
        settings, identity = monitor.settings, self._core.identity
        terms = terms_of(settings)
        copies = await self._copies.of(monitor)
        return Watch(
            name=monitor.name,
            target_uuid=identity.uuid,
            target_name=identity.name,
            target_port=self._core.listen.port,
            witness=terms.witness,
            lease_s=terms.lease_s,
            lapse=terms.lapse,
            terms=monitor.terms,
            copies=tuple(copy.connection for copy in copies),
            addresses=tuple(GuardedAddress(address=address.address) for address in settings.taken),
            epoch=monitor.epoch,
        )

    async def _remember(self, monitor: Monitor) -> None:
        """Where its source is: to free it when the monitor is gone."""
        settings = monitor.settings
        known = self._file.groups.get(monitor.uuid)
        wanted = msgspec.structs.replace(
            known or Granted(), source_host=settings.source_host, source_port=settings.source_port
        )
        if wanted != known:
            async with self._lock:
                memory = self._granted(monitor.uuid).memory
                await self._keep(monitor.uuid, msgspec.structs.replace(wanted, memory=memory))

    async def _tell_one(self, monitor: Monitor) -> None:
        try:
            answer = await self.tell(monitor)
            if answer is not None and not monitor.source_uuid:  # no heartbeat has said it
                source: dict[str, Any] = {
                    "source_uuid": answer.agent_uuid,
                    "source_name": answer.agent_name,
                }
                await self.tell(await self._groups.change(monitor.uuid, **source))  # now with its copies
        except ReplicatorError as error:
            if monitor.uuid not in self._silent:
                self._silent.add(monitor.uuid)
                self._core.events.add(events.SOURCE_NOT_TOLD, name=monitor.name, reason=str(error))
        else:
            self._silent.discard(monitor.uuid)

    async def _end_one(self, group: str) -> None:
        """Its monitor is removed: the source is free."""
        try:
            async with self._lock:
                if group in self._file.groups:
                    await self._keep(group, None)
            self._told.pop(group, None)
            ended = self._file.ended.get(group)
            if ended is None:
                return
            await self._calls.ask(
                Address(ended.source_host, ended.source_port), "unwatch", group, Unwatch(), type(None)
            )
            async with self._lock:
                rest = {uuid: granted for uuid, granted in self._file.ended.items() if uuid != group}
                await self._save(msgspec.structs.replace(self._file, ended=rest))
        except ReplicatorError:
            return  # tried again; the source asks for a lease when it is back, too, and hears of it then


def _write(path: str, file: GrantFile) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    save_document(path, file)
