"""What each child of an agent is started with.

It is made anew for every start, so that one that crashed comes back with what holds now.
"""

import os
from collections.abc import Callable

import msgspec

from replicator import transmission
from replicator.addresses import Address
from replicator.agent import planning
from replicator.agent.queue_layout import QueueLayout
from replicator.agent.queue_places import Place
from replicator.agent.restore_checks import orphan_settings
from replicator.agent.state import AgentIdentity, Connection, Mount, Restore, State
from replicator.capture.arguments import CaptureSettings
from replicator.config import Config
from replicator.diagnostics import is_nowhere
from replicator.errors import ReplicatorError
from replicator.failovers import superseded_reason
from replicator.orphans import OrphanSettings
from replicator.paths import Home
from replicator.receiver.arguments import ReceiverArguments
from replicator.restores import Existing
from replicator.security.settings import SecuritySettings
from replicator.sender.arguments import JournalArguments, MapArguments, SenderArguments, SenderOptions
from replicator.sender.verify_log import VerifyLogSettings
from replicator.shares import shares
from replicator.transmission import TransmissionOrders


class ChildArguments:
    """`state` is asked for each time."""

    def __init__(
        self,
        home: Home,
        identity: AgentIdentity,
        config: Config,
        listen: Address,
        state: Callable[[], State],
        security: SecuritySettings,
        queues: QueueLayout,
    ) -> None:
        self._home = home
        self._identity = identity
        self._config = config
        self._listen = listen
        self._state = state
        self._security = security
        self._queues = queues

    # --- captures ---

    def capture(self, mount: Mount) -> CaptureSettings:
        queue = self._config.queue
        settings = self._queues.journal_settings(mount)
        # As it is now: its options may have changed. One that is being made is not in the state yet.
        mount = next((known for known in self._state().mounts if known.id == mount.id), mount)
        return CaptureSettings(
            home=self._home.path,
            mount_id=mount.id,
            path=mount.path,
            mountpoint=mount.mountpoint,
            binding=mount.binding,
            options=mount.options,
            memory_directory=settings.memory_directory,
            disk_directory=settings.disk_directory,
            segment_bytes=queue.segment_size,
            memory_bytes=queue.memory_size,
            disk_bytes=queue.disk_size_max,
            disk_free_min_bytes=queue.disk_free_min,
            readers=self._first_readers(mount),
            active=self.active_prefixes(mount),
            synchronous=self.synchronous(mount),
            fence=self.fence(mount),
        )

    def _first_readers(self, mount: Mount) -> list[str]:
        """Connections that have to know of every change from the first one on: see `Restored.heads`."""
        return [
            connection.uuid
            for connection in self._state().connections
            if connection.restored is not None and mount.id not in connection.restored.heads
            if any(journal.mount.id == mount.id for journal in self.journals(connection))
        ]

    def fence(self, mount: Mount) -> str:
        """The page that says until when programs may change something there; "": there is none."""
        page = self._home.fence(mount.id)
        return page if os.path.exists(page) else ""

    def active(self, mount: Mount) -> dict[str, object]:
        """What a capture is told of its readers: the arguments of `set_active`."""
        return {"prefixes": self.active_prefixes(mount), "synchronous": self.synchronous(mount)}

    def active_prefixes(self, mount: Mount) -> list[bytes]:
        """What of a mount has to be journaled: the parts that connections read."""
        filters = [
            journal.filter
            for connection in self._state().connections
            for journal in self.journals(connection)
            if journal.mount.id == mount.id
        ]
        return planning.active_prefixes(filters)

    def synchronous(self, mount: Mount) -> dict[str, list[bytes]]:
        """Connections that the mount waits for if it is synchronous, and where their sets begin in it. Not
        those that only measure: nothing would be safe.
        """
        return {
            connection.uuid: list(journal.filter.roots)
            for connection in self._state().connections
            for journal in self.journals(connection)
            if journal.mount.id == mount.id and not is_nowhere(connection.target_host)
        }

    def journals(self, connection: Connection) -> list[planning.Journal]:
        """The mounts a connection reads; none if they are gone."""
        try:
            return planning.journals_of(connection.repset, self._state().mounts)
        except ReplicatorError:
            return []

    # --- senders ---

    def sender(self, connection: Connection) -> SenderArguments:
        # As it is now: a restore may have ended since.
        known = (c for c in self._state().connections if c.uuid == connection.uuid)
        connection = next(known, connection)
        journals = planning.journals_of(connection.repset, self._state().mounts)
        address = planning.address_of(connection, self._listen)
        return SenderArguments(
            home=self._home.path,
            connection_uuid=connection.uuid,
            agent_uuid=self._identity.uuid,
            agent_name=self._identity.name,
            target_host=address.host,
            target_port=address.port,
            repset=connection.repset,
            journals=[self._journal_arguments(journal) for journal in journals],
            maps=[
                MapArguments(index, source, target)
                for index, journal in enumerate(journals)
                for source, target in planning.journal_maps(journal.root, connection.maps)
            ],
            epoch=connection.epoch,
            restored=connection.restored,
            superseded=self._superseded(connection),
            options=SenderOptions(
                mirror=connection.options.mirror,
                newer=connection.options.newer,
                checksum=connection.options.checksum,
                checksum_all=self._config.mirror.checksum_all,
                local_copy=self._config.mirror.local_copy,
                replicate=connection.options.replicate,
                remap_links=connection.options.remap_links,
                orphans=connection.options.orphans,
                automatic_recovery=connection.options.automatic_recovery,
                recovery_share=self._recovery_share(connection),
                lock=connection.options.lock,
                congestion_control=self._config.connection.congestion_control,
                remirror=self._config.connection.auto_remirror,
                reconnect=self._config.connection.auto_reconnect,
                reconnect_at_start=self._config.connection.reconnect_at_start,
                verify_log=self.verify_log(),
                replication_ratio=self._config.mirror.replication_ratio,
                schedule=self._state().schedule_of(connection),
                limit_calendar=connection.options.limit_calendar,
                target_calendar=self._state().calendar_of(connection.host),
                transmission=self.transmission_orders(connection),
            ),
            connection_id=connection.id,
            security=self._security,
        )

    def _superseded(self, connection: Connection) -> str:
        promotion = self._state().superseding(connection.uuid)
        return superseded_reason(promotion) if promotion is not None else ""

    def transmission_orders(self, connection: Connection) -> TransmissionOrders:
        """What the sender of this connection is to do."""
        target = self._state().transmission_of(connection.host)
        page = self._home.target_limit(connection.host)
        return transmission.orders(connection.options.transmission, target, page)

    def verify_log(self) -> VerifyLogSettings:
        settings = self._config.verify
        return VerifyLogSettings(
            directory=settings.log_directory,
            name=settings.log_name,
            size_max=settings.log_size_max,
            append=settings.log_append,
            files=settings.log_files,
        )

    def _recovery_share(self, connection: Connection) -> float:
        """Until it is known what else recovers here, and what programs do."""
        state = self._state()
        return shares(state.recovery_speed, [state.priority_of(connection)], busy=False)[0]

    def _journal_arguments(self, journal: planning.Journal) -> JournalArguments:
        settings = self._queues.journal_settings(journal.mount)
        return JournalArguments(
            mount_id=journal.mount.id,
            root=journal.root,
            capture_socket=self._home.socket("capture", journal.mount.id),
            memory_directory=settings.memory_directory,
            disk_directory=settings.disk_directory,
        )

    # --- receivers ---

    def receiver(self, uuid: str, place: Place | None = None) -> ReceiverArguments:
        """`place`: of its spool, if it is to be another than it is."""
        queue = self._config.queue
        place = place or self._queues.spool(uuid)
        restore = self._state().restore_of(uuid)
        return ReceiverArguments(
            home=self._home.path,
            connection_uuid=uuid,
            agent_uuid=self._identity.uuid,
            agent_name=self._identity.name,
            memory_directory=place.memory,
            disk_directory=place.disk,
            segment_bytes=queue.segment_size,
            memory_bytes=queue.memory_size,
            disk_bytes=queue.disk_size_max,
            disk_free_min_bytes=queue.disk_free_min,
            watch=self._config.target.watch,
            keep_deleted=self._keep_deleted(uuid) if restore is None else "",
            orphans=self._orphans(restore),
            keeps_existing=restore is not None and restore.request.existing is Existing.MISSING,
        )

    def _keep_deleted(self, uuid: str) -> str:
        directory = self._config.target.keep_deleted
        return os.path.join(directory, uuid) if directory else ""

    def _orphans(self, restore: Restore | None) -> OrphanSettings:
        """What becomes of names that the source, or the copy that is restored, does not have."""
        known = self._state().orphans
        if restore is None:
            return known
        request = restore.request
        return msgspec.structs.replace(
            orphan_settings(request),
            log_names=known.log_names,
            limit_count=0 if request.orphans_over_limit else known.limit_count,
            limit_percent=0 if request.orphans_over_limit else known.limit_percent,
        )
