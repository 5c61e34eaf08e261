"""What an agent does when it is asked, assembled. The API only translates to this.

What mounts, replication sets, connections and targets share, and the rule for changes, is in `core.py`.
"""

import os
import time
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec
import trio

import replicator
from replicator import events
from replicator.addresses import Address, parse_host_port
from replicator.agent import restore_calls
from replicator.agent.agent_calls import Answering
from replicator.agent.calendar_service import CalendarService
from replicator.agent.connections import Connections
from replicator.agent.copy_keeper import CopyKeeper
from replicator.agent.core import Core
from replicator.agent.diagnostics_service import DiagnosticsService
from replicator.agent.failover import calls as failover_calls
from replicator.agent.failover.ownership import Ownership
from replicator.agent.gate import Gate
from replicator.agent.mounts import Mounts
from replicator.agent.orphan_service import OrphanService
from replicator.agent.pairing import Pairing
from replicator.agent.peers import PeerView, view_of
from replicator.agent.protect import ProtectRequest, protect
from replicator.agent.queues import Queues
from replicator.agent.recovery_control import RecoveryControl
from replicator.agent.repsets import Repsets
from replicator.agent.restores import Restores
from replicator.agent.schedule_service import ScheduleService
from replicator.agent.state import Mount
from replicator.agent.targets import Targets
from replicator.agent.transmissions import Transmissions
from replicator.agent.verify_service import VerifyService
from replicator.diagnostics import is_nowhere
from replicator.errors import ReplicatorError
from replicator.events import EventRing
from replicator.security.channel import Channel
from replicator.status import ConnectionStatus

if TYPE_CHECKING:
    from replicator.agent.failover.service import FailoverService


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    name: str
    version: str
    pid: int
    home: str
    listen: str
    insecure: bool
    started: float
    mounts: int
    repsets: int
    connections: int
    receivers: int
    logins: int
    failed_logins: int


class Service:
    """The agent."""

    def __init__(self, core: Core) -> None:
        self.mounts = Mounts(core)
        self.repsets = Repsets(core)
        self.connections = Connections(core, self.mounts, self.repsets)
        self.targets = Targets(core, self.connections)
        self.queues = Queues(core)
        self.recovery = RecoveryControl(core, self.connections, self.repsets)
        self.transmissions = Transmissions(core, self.connections)
        self.orphans = OrphanService(core, self.connections)
        self.copies = CopyKeeper(core)
        self.restores = Restores(core, self.connections, self.mounts, self.repsets)
        self.ownership = Ownership(core)
        self.schedules = ScheduleService(core, self.connections)
        self.calendars = CalendarService(core, self.connections)
        self.diagnostics = DiagnosticsService(core, self.connections)
        self.verify = VerifyService(core, self.connections)
        self.peers = core.peers
        self.pairing = Pairing(core.peers)
        self.access = Gate(core.config.access, core.events)
        self.stop_requested = trio.Event()
        self._core = core
        self._started = time.time()
        self._failover: FailoverService | None = None
        self._failover_problem = "it is being loaded"
        self._failover_was_loaded = trio.Event()

    @property
    def events(self) -> EventRing:
        return self._core.events

    @property
    def failover(self) -> "FailoverService":
        """Raises ReplicatorError: it could not be loaded."""
        if self._failover is None:
            raise ReplicatorError(f"this agent does not take part in failover: {self._failover_problem}")
        return self._failover

    @property
    def answering(self) -> dict[str, Answering]:
        """Who answers other agents, by the purpose of their call."""
        return {
            restore_calls.PURPOSE: self.copies.serve,
            failover_calls.PURPOSE: self._answer_about_failover,
        }

    async def _answer_about_failover(self, group: str, channel: Channel) -> str:
        """Whoever asks while it is being loaded waits that moment."""
        await self._failover_was_loaded.wait()
        return await self.ownership.calls.serve(group, channel)

    async def protect(self, request: ProtectRequest) -> ConnectionStatus:
        """See `protect.py`."""
        return await protect(self._core, self.mounts, self.repsets, self.connections, request)

    # --- other agents ---

    async def pair(self, host: str, code: str) -> PeerView:
        known = await self.pairing.pair(parse_host_port(host), code)
        return view_of(known)

    async def act_on_peer(self, action: str, key: str) -> PeerView:
        """`revoke`, or what a peer may restore from: `restores-all`, `restores-own`."""
        if action != "revoke":
            return view_of(self.peers.grant(key, restores_all=action == "restores-all"))
        known = self.peers.revoke(key)
        await self.peers.drop(known.uuid)
        return view_of(known)

    def other_agents(self) -> list[Address]:
        """Targets that are not paired may still be told of a certificate: they know this agent by its
        authority.
        """
        connections = self._core.state.connections
        return [
            Address(c.target_host, c.target_port)
            for c in connections
            if c.target_host and not is_nowhere(c.target_host)
        ]

    # --- life ---

    async def start(self) -> None:
        """Bring everything up that should run. Returns when all mounts serve, or were tried.

        Whoever wants to change something meanwhile waits until then.
        """
        async with self._core.change():
            await self._start()
        self._core.up.set()

    async def _start(self) -> None:
        await self._core.children.adopt_strays()
        await self.ownership.before_mounts()
        async with trio.open_nursery() as nursery:
            for mount in self._core.state.mounts:
                if not self._core.state.is_restored(mount=mount.id):
                    nursery.start_soon(self._start_mount, mount)
        for connection in self._core.state.connections:
            if self._core.state.is_restored(connection=connection.uuid):
                continue
            await self._core.children.start_sender(connection, patient=True)
            self._core.events.add(
                events.AUTO_RECONNECTED,
                id=connection.id,
                repset=connection.repset.name,
                target=connection.target,
            )
        self._core.children.forget_places()
        for uuid in self._core.children.receivers_known():
            await self._core.children.end_outdated_receiver(uuid)
            await self._core.children.start_receiver(uuid, patient=True)

    async def load_failover(self) -> None:
        """To be done once, when children run: to import it takes a part of the time in which they start, and
        no program waits for it. Where it cannot be (a file of it is damaged), all else goes on without.
        """
        module = await trio.to_thread.run_sync(import_module, "replicator.agent.failover.service")
        try:
            self._failover = module.FailoverService(
                self._core, self.ownership, self.connections, self.mounts, self.repsets
            )
        except ReplicatorError as error:
            self._failover_problem = f"{error}; mend that, and start the agent again"
            self._core.events.add(events.FAILOVER_NOT_LOADED, reason=str(error))
        self._failover_was_loaded.set()

    async def run_failover(self) -> None:
        """After `load_failover`, until cancelled."""
        if self._failover is not None:
            await self._failover.run()

    async def running(self) -> None:
        """Wait until all that should run does, or is tried again."""
        await self._core.up.wait()
        await self._core.children.running()

    async def _start_mount(self, mount: Mount) -> None:
        child = await self._core.children.start_capture(mount, patient=True)
        try:
            await child.wait_running()
            await self._core.children.follow_configuration(mount)
        except ReplicatorError as error:
            self._core.events.add(events.MOUNT_FAILED, path=mount.path, reason=str(error))

    def agent(self) -> AgentView:
        return AgentView(
            uuid=self._core.identity.uuid,
            name=self._core.identity.name,
            version=replicator.__version__,
            pid=os.getpid(),
            home=self._core.home.path,
            listen=str(self._core.listen),
            insecure=bool(self.peers.settings.allow_plain),
            started=self._started,
            mounts=len(self._core.state.mounts),
            repsets=len(self._core.state.repsets),
            connections=len(self._core.state.connections),
            receivers=len(self._core.children.receivers()),
            logins=self.access.audit.logins,
            failed_logins=self.access.audit.failed_logins,
        )

    async def stop(self, *, mounts: bool, force: bool) -> None:
        """Ask the agent to end.

        With `mounts` these are taken down first; raises ReplicatorError if one is in use.
        """
        if mounts:
            async with self._core.change():
                await self._core.children.stop_flows()
                await self._core.children.stop_captures(force=force)
        self.stop_requested.set()
