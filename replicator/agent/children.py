"""Which children an agent has, and what each of them is started with.

The arguments of a child are made anew for every start, so that one that crashed comes back with what holds
now.
"""

import base64
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf

import msgspec
import trio

from replicator import events, limits, transmission
from replicator.addresses import Address
from replicator.agent import planning
from replicator.agent.launcher import answer
from replicator.agent.process import serving_process
from replicator.agent.queue_places import Place, QueuePlaces
from replicator.agent.state import AgentIdentity, Connection, Mount, Restore, State
from replicator.agent.supervisor import Child, Plan, Supervisor, stop_serving
from replicator.bounds import MALFORMED
from replicator.capture import held_mount
from replicator.capture.arguments import CaptureSettings
from replicator.config import Config
from replicator.diagnostics import is_nowhere
from replicator.errors import JournalError, ReplicatorError, UsageError
from replicator.events import EventRing
from replicator.failovers import superseded_reason
from replicator.fs import mounts as fs_mounts
from replicator.orphans import OrphanAction, OrphanSettings
from replicator.paths import Home, memory_directory
from replicator.queue.cursor import Cursor
from replicator.queue.header import Header
from replicator.queue.settings import JournalSettings
from replicator.receiver.arguments import ReceiverArguments
from replicator.repset import overlapping
from replicator.restores import Existing
from replicator.security.channel import Handover
from replicator.security.settings import SecuritySettings
from replicator.sender.arguments import JournalArguments, MapArguments, SenderArguments, SenderOptions
from replicator.sender.verify_log import VerifyLogSettings
from replicator.shares import shares
from replicator.transmission import TransmissionOrders
from replicator.world import World


async def running_settings(child: Child) -> JournalSettings | None:
    """Of the queue of a capture; None: it does not say."""
    try:
        status = await child.call("status")
        return msgspec.convert(status["queue"]["settings"], JournalSettings)
    except (ReplicatorError, KeyError, msgspec.ValidationError):
        return None


class Children:
    """Captures, senders and receivers of one agent.

    `state` and `listen` are asked for at every start of a child.
    """

    def __init__(
        self,
        home: Home,
        identity: AgentIdentity,
        config: Config,
        listen: Address,
        ring: EventRing,
        supervisor: Supervisor,
        state: Callable[[], State],
        security: SecuritySettings,
    ) -> None:
        self._home = home
        self._identity = identity
        self._config = config
        self._listen = listen
        self._ring = ring
        self._supervisor = supervisor
        self._state = state
        self._security = security
        self._places = QueuePlaces(home.places, World().disk)
        self._known_targets: dict[str, list[str]] = {}  # by connection: what was asked for once
        self._room_made_s = -inf
        self._copied_ahead: set[str] = set()  # queues of which a copy is being made while they are in use

    # --- captures ---

    def capture(self, mount: Mount) -> Child | None:
        return self._supervisor.get("capture", mount.id)

    async def start_capture(self, mount: Mount, *, patient: bool = False) -> Child:
        """Raises ChildError with the reason if it cannot be mounted, unless `patient`."""

        async def look() -> None:
            await trio.to_thread.run_sync(self._note_stale, mount)
            await self._settle(mount.id, mount.path, self._wanted_place(mount))

        async def tell(child: Child) -> None:
            await child.call("set_active", **self.active(mount))
            if page := self.fence(mount):
                await child.call("set_fence", page=page)
            self._drop_lost_readers(mount)
            async with self._receivers_away(mount):
                pass  # they come back and write through the mount that is there now

        async def give_up(reason: str) -> None:
            directory = self.journal_settings(mount).memory_directory
            if await trio.to_thread.run_sync(held_mount.give_up, directory):
                log = self._home.child_log("capture", mount.id)
                self._ring.add(events.MOUNT_GIVEN_UP, path=mount.path, reason=reason, log=log)

        plan = Plan(
            "capture",
            mount.id,
            lambda: self._capture_arguments(mount),
            prepare=look,
            greet=tell,
            give_up=give_up,
        )
        return await self._supervisor.start(plan, patient=patient)

    async def stop_capture(self, mount: Mount, *, force: bool, persist: bool) -> None:
        """Unmount.

        `persist`: what its journal holds in memory goes to disk. Raises ReplicatorError if it is in use.
        """
        async with self._receivers_away(mount):
            await self._supervisor.stop("capture", mount.id, force=force, persist=persist)

    async def reload_capture(self, mount: Mount) -> None:
        """Replace its process by one with the software as it is on disk now. Raises ReplicatorError.

        A software that does not start, or could not take over, is refused before anything happens.
        """
        child = self.capture(mount)
        if child is None:
            raise ReplicatorError(f"{mount.path} is not served: see dtctl mount list")
        successor = await answer("capture", "--format")
        if not successor.isdigit():
            raise ReplicatorError(f"{mount.path} cannot be reloaded: the new software cannot do so")
        await child.reload("leave", format=int(successor))

    async def discard_mount(self, mount: Mount) -> None:
        """Remove what a mount that is no longer captured has left: its journal, and a dead mount, if its
        capture was killed and stopped before it came up again.
        """
        held_mount.give_up(self.journal_settings(mount).memory_directory)
        with suppress(FileNotFoundError):
            os.unlink(self._home.fence(mount.id))
        with suppress(UsageError, OSError):
            await trio.to_thread.run_sync(fs_mounts.clear_stale, mount.mountpoint)
        await self.discard_journal(mount)

    async def discard_journal(self, mount: Mount) -> None:
        """Remove what a journal that nobody writes or reads has left in memory and on disk."""
        settings = self.journal_settings(mount)
        for directory in (settings.memory_directory, settings.disk_directory):
            await trio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
        await trio.to_thread.run_sync(self._places.forget, mount.id)

    @asynccontextmanager
    async def _receivers_away(self, mount: Mount) -> AsyncIterator[None]:
        """No receiver writes at `mount` meanwhile: its open directories are of what was there before."""
        stopped = []
        for child in self.receivers():
            try:
                status = await child.call("status")
            except ReplicatorError:
                continue  # not up: it will find what is there then
            targets = status["targets"]
            if status.get("owned"):
                continue  # it writes nothing: its copy was promoted
            if any(
                overlapping(target, place) for target in targets for place in (mount.path, mount.mountpoint)
            ):
                await self._supervisor.stop("receiver", child.plan.id)
                stopped.append(child.plan.id)
        try:
            yield
        finally:
            for uuid in stopped:
                await self.start_receiver(uuid, patient=True)

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

    def active(self, mount: Mount) -> dict[str, object]:
        """What a capture is told of its readers: the arguments of `set_active`."""
        return {"prefixes": self.active_prefixes(mount), "synchronous": self.synchronous(mount)}

    def journals(self, connection: Connection) -> list[planning.Journal]:
        """The mounts a connection reads; none if they are gone."""
        try:
            return planning.journals_of(connection.repset, self._state().mounts)
        except ReplicatorError:
            return []

    def _capture_arguments(self, mount: Mount) -> CaptureSettings:
        queue = self._config.queue
        settings = self.journal_settings(mount)
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

    def journal_settings(self, mount: Mount) -> JournalSettings:
        """Where the journal of a mount is, and how large it may become."""
        return self._settings(self._places.of(mount.id, self._wanted_place(mount)))

    def _wanted_place(self, mount: Mount) -> Place:
        queue = self._config.queue
        return Place(
            memory_directory(queue.memory_directory, self._identity.uuid, mount.id),
            os.path.join(queue.disk_directory or self._home.queue, mount.id),
        )

    def _settings(self, place: Place) -> JournalSettings:
        queue = self._config.queue
        return JournalSettings(
            place.memory,
            place.disk,
            queue.segment_size,
            queue.memory_size,
            queue.disk_size_max,
            queue.disk_free_min,
        )

    async def _settle(self, identifier: str, name: str, wanted: Place, first: Place | None = None) -> None:
        """Bring a queue that nobody uses now to where it shall be. If it cannot be there, it stays. `first`:
        where it is if that was not noted.
        """
        if identifier in self._copied_ahead:
            return  # its capture was killed just now: programs shall not wait for that
        try:
            moved = await trio.to_thread.run_sync(self._places.settle, identifier, wanted, first)
        except (OSError, ReplicatorError) as error:
            directory = self._places.of(identifier, first or wanted).disk
            reason = f"{wanted.disk}: {getattr(error, 'strerror', None) or error}"
            self._ring.add(events.QUEUE_NOT_MOVED, name=name, directory=directory, reason=reason)
        else:
            if moved:
                self._ring.add(events.QUEUE_MOVED, name=name, directory=wanted.disk)

    async def follow_configuration(self, mount: Mount) -> None:
        """Have a capture that was started under another configuration take up what is set for its queue,
        without unmounting.
        """
        child = self.capture(mount)
        if child is None or child.pid is None:
            return
        running = await running_settings(child)
        wanted = self._wanted_place(mount)
        if running is None or running == self._settings(Place(running.memory_directory, wanted.disk)):
            return
        try:
            if running.disk_directory != wanted.disk:
                for connection in self._state().connections:  # they are started after this
                    if any(journal.mount.id == mount.id for journal in self.journals(connection)):
                        await stop_serving(self._home, "sender", connection.uuid)
                await self._copy_ahead(mount.id, wanted)
            await self.reload_capture(mount)
        except (OSError, ReplicatorError) as error:
            self._ring.add(events.QUEUE_SETTINGS_LATER, name=mount.path, reason=str(error))
        else:
            self._ring.add(events.QUEUE_SETTINGS, name=mount.path)

    async def _copy_ahead(self, identifier: str, wanted: Place) -> None:
        self._copied_ahead.add(identifier)
        try:
            await trio.to_thread.run_sync(self._places.prepare, identifier, wanted)
        finally:
            self._copied_ahead.discard(identifier)

    def _drop_lost_readers(self, mount: Mount) -> None:
        """Readers whose connection ended while the journal was closed: nothing is kept for them any more."""
        world, settings = World(), self.journal_settings(mount)
        known = {connection.uuid for connection in self._state().connections}
        try:
            header = Header(world, settings.memory_directory)
            try:
                readers = [str(header.slot_uuid(index)) for index in header.readers()]
            finally:
                header.close()
            for reader in readers:
                if reader not in known:
                    Cursor.open(world, settings, mount.id, reader).remove()
        except (OSError, ValueError, JournalError) as error:
            self._ring.add(events.ADVICE, text=f"{mount.path}: a reader of its journal is lost: {error}")

    def _note_stale(self, mount: Mount) -> None:
        """A capture that was killed leaves a mount that fails; the next one clears it away."""
        if held_mount.is_held(self.journal_settings(mount).memory_directory):
            return  # the next one serves it on
        try:
            os.statvfs(mount.mountpoint)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                self._ring.add(events.MOUNT_STALE, mountpoint=mount.mountpoint)

    # --- senders ---

    def sender(self, connection: Connection) -> Child | None:
        return self._supervisor.get("sender", connection.uuid)

    async def tell_sender(self, connection: Connection, call: str, /, **arguments: object) -> None:
        """Have a setting that is saved hold at once. A sender that does not run, or ends now, has a successor
        with it in its arguments.
        """
        child = self.sender(connection)
        if child is not None and child.pid is not None:
            with suppress(ReplicatorError):
                await child.call(call, **arguments)

    async def start_sender(self, connection: Connection, *, patient: bool = False) -> Child:
        settings = self._config.connection

        async def tell(child: Child) -> None:
            with suppress(ReplicatorError):  # of another version
                await child.call(
                    "configure",
                    remirror=settings.auto_remirror,
                    reconnect=settings.auto_reconnect,
                    checksum_all=self._config.mirror.checksum_all,
                    verify_log=msgspec.to_builtins(self._verify_log()),
                    replication_ratio=self._config.mirror.replication_ratio,
                )
            with suppress(ReplicatorError):
                now = next((c for c in self._state().connections if c.uuid == connection.uuid), connection)
                await child.call(
                    "set_transmission", orders=msgspec.to_builtins(self.transmission_orders(now))
                )

        plan = Plan(
            "sender",
            connection.uuid,
            lambda: self._sender_arguments(connection),
            greet=tell,
            may_end=lambda: connection.uuid not in {c.uuid for c in self._state().connections},
        )
        return await self._supervisor.start(plan, patient=patient)

    async def end_sender(self, connection: Connection, mounts: Sequence[Mount]) -> bool:
        """End a connection for good. Returns whether the target was told.

        A sender that does not run cannot give back its places in the journals: that is done for it.
        """
        child = self.sender(connection)
        told = False
        if child is not None:
            try:
                told = bool(await child.call("disconnect", limits.DISCONNECT_TIMEOUT_S))
            except ReplicatorError:
                pass  # it does not run, or not well: below
            await self._supervisor.stop("sender", connection.uuid)
        home, uuid = self._home, connection.uuid
        for remembered in (
            home.source(uuid),
            home.story(uuid),
            home.dirt(uuid),
            home.schedule(uuid),
            home.diagnostics(uuid),
        ):
            with suppress(FileNotFoundError):  # the sender did it itself
                os.unlink(remembered)
        if connection.host not in {c.host for c in self._state().connections if c.uuid != uuid}:
            with suppress(FileNotFoundError):  # of no use to anybody
                os.unlink(home.target_limit(connection.host))
        for mount in mounts:
            if self.capture(mount) is not None:
                self._drop_lost_readers(mount)
        return told

    def _sender_arguments(self, connection: Connection) -> SenderArguments:
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
                remirror=self._config.connection.auto_remirror,
                reconnect=self._config.connection.auto_reconnect,
                reconnect_at_start=self._config.connection.reconnect_at_start,
                verify_log=self._verify_log(),
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

    def _verify_log(self) -> VerifyLogSettings:
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
        settings = self.journal_settings(journal.mount)
        return JournalArguments(
            mount_id=journal.mount.id,
            root=journal.root,
            capture_socket=self._home.socket("capture", journal.mount.id),
            memory_directory=settings.memory_directory,
            disk_directory=settings.disk_directory,
        )

    # --- senders of restores, which are no connections ---

    def sender_of(self, uuid: str) -> Child | None:
        return self._supervisor.get("sender", uuid)

    async def start_planned(self, plan: Plan) -> Child:
        return await self._supervisor.start(plan)

    async def stop_sender(self, uuid: str) -> None:
        await self._supervisor.stop("sender", uuid)

    # --- receivers ---

    def receiver(self, uuid: str) -> Child | None:
        return self._supervisor.get("receiver", uuid)

    def receivers(self) -> list[Child]:
        return self._supervisor.all("receiver")

    def receivers_known(self) -> list[str]:
        """Connections whose copies are kept here, from their directories: a receiver has no place in the
        state.
        """
        try:
            uuids = sorted(os.listdir(self._home.targets))
        except FileNotFoundError:
            return []
        return [uuid for uuid in uuids if self._has_target(uuid)]

    async def start_receiver(self, uuid: str, *, patient: bool = False) -> Child:
        plan = Plan(
            "receiver",
            uuid,
            lambda: self._receiver_arguments(uuid),
            prepare=partial(
                self._settle,
                uuid,
                f"the copy of connection {uuid}",
                self._wanted_spool(uuid),
                self._former_spool(uuid),
            ),
            may_end=lambda: not self._has_target(uuid),
        )
        return await self._supervisor.start(plan, patient=patient)

    async def adopt(self, uuid: str, descriptor: int, data: bytes, handover: Handover | None = None) -> None:
        """Hand a source's socket, with what was read from it, to the receiver of a connection.

        Raises ReplicatorError.
        """
        child = self.receiver(uuid)
        if child is None:
            await self._make_room()
            child = await self.start_receiver(uuid)
        await child.wait_running()
        self._known_targets.pop(uuid, None)  # it may have other ones from now on
        await child.call_with_descriptors(
            "adopt",
            limits.CONTROL_TIMEOUT_S,
            [descriptor],
            first=base64.b64encode(data).decode(),
            handover=msgspec.to_builtins(handover),
            other_targets=await self._targets(except_uuid=uuid),
        )

    async def drop_peer(self, uuid: str) -> None:
        """End all sessions with an agent that is trusted no more."""
        for child in (*self._supervisor.all("receiver"), *self._supervisor.all("sender")):
            with suppress(ReplicatorError):  # one that gets up makes a handshake first
                await child.call("drop_peer", uuid=uuid)

    async def _make_room(self) -> None:
        """Whoever says a greeting gets a process: end those that came to nothing, and bound the rest. Not
        each time: many sources may come at once, and all are asked then.
        """
        now_s = trio.current_time()
        crowded = len(self.receivers()) >= limits.RECEIVERS
        if not crowded and now_s < self._room_made_s + limits.MAKE_ROOM_S:
            return
        self._room_made_s = now_s
        for child in self.receivers():
            try:
                status = await child.call("status")
            except ReplicatorError:
                continue
            if not status["source_uuid"] and not status["connected"]:
                await child.call("forget")
                await trio.to_thread.run_sync(self._places.forget, child.plan.id)
        if len(self.receivers()) >= limits.RECEIVERS:
            raise ReplicatorError(f"{limits.RECEIVERS} connections end here already: no more are accepted")

    async def _targets(self, *, except_uuid: str) -> list[str]:
        """Where the other receivers write."""
        found: list[str] = []
        children = self.receivers()
        present = {child.plan.id for child in children}
        self._known_targets = {k: v for k, v in self._known_targets.items() if k in present}
        for child in children:
            uuid = child.plan.id
            if uuid == except_uuid:
                continue
            targets = self._known_targets.get(uuid)
            if targets is None:
                try:
                    status = await child.call("status")
                except ReplicatorError:
                    continue  # it is getting up again, and will be asked in its turn
                targets = status["targets"]
                if status["connected"]:  # they are what they will be until its next session
                    self._known_targets[uuid] = targets
            found += targets
        return found

    def _has_target(self, uuid: str) -> bool:
        try:
            return bool(os.listdir(self._home.target(uuid)))
        except OSError:
            return False

    def _receiver_arguments(self, uuid: str, place: Place | None = None) -> ReceiverArguments:
        queue = self._config.queue
        place = place or self._places.of(uuid, self._wanted_spool(uuid))
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
        return OrphanSettings(
            action=request.orphans or OrphanAction.KEEP,
            directory=request.orphans_directory,
            older_than_days=request.orphans_older_than_days,
            log_names=known.log_names,
            limit_count=0 if request.orphans_over_limit else known.limit_count,
            limit_percent=0 if request.orphans_over_limit else known.limit_percent,
        )

    def _wanted_spool(self, uuid: str) -> Place:
        queue = self._config.queue
        disk = queue.disk_directory
        return Place(
            memory_directory(queue.memory_directory, self._identity.uuid, f"spool-{uuid}"),
            os.path.join(disk, f"spool-{uuid}") if disk else os.path.join(self._home.target(uuid), "spool"),
        )

    def _former_spool(self, uuid: str) -> Place:
        """Where software that did not note it had the spool."""
        return Place(self._wanted_spool(uuid).memory, os.path.join(self._home.target(uuid), "spool"))

    def forget_places(self) -> None:
        """Of queues that are no more."""
        mounts = {mount.id for mount in self._state().mounts}
        self._places.keep_only(mounts | set(self.receivers_known()))

    async def end_outdated_receiver(self, uuid: str) -> None:
        """End a receiver that an earlier agent has started under another configuration of queues: nothing is
        lost, and another one is started.
        """
        wanted = self._wanted_spool(uuid)
        known = self._places.of(uuid, wanted)
        arguments = self._receiver_arguments(uuid, Place(known.memory, wanted.disk))
        try:
            data = await trio.Path(self._home.arguments("receiver", uuid)).read_bytes()
            running = msgspec.json.decode(data, type=ReceiverArguments)
        except (FileNotFoundError, *MALFORMED):
            return  # none, or of another software, which says what it was told in another way
        running = msgspec.structs.replace(running, orphans=arguments.orphans)  # of which it is told at once
        if running != arguments:
            await stop_serving(self._home, "receiver", uuid)

    # --- all of them ---

    async def running(self) -> None:
        """Wait until each of them runs, or does not."""
        for child in self._supervisor.everyone():
            with suppress(ReplicatorError):
                await child.wait_running()

    async def stop_flows(self) -> None:
        """Stop senders and receivers; they go on where they were when they are started again."""
        await self._stop_all([*self._supervisor.all("sender"), *self._supervisor.all("receiver")])

    async def stop_captures(self, *, force: bool) -> None:
        """Unmount everything and save journals to disk. Raises ReplicatorError if something is in use."""
        await self._stop_all(self._supervisor.all("capture"), force=force, persist=True)

    async def _stop_all(self, children: list[Child], **arguments: bool) -> None:
        errors: list[ReplicatorError] = []

        async def stop(child: Child) -> None:
            try:
                await self._supervisor.stop(child.plan.role, child.plan.id, **arguments)
            except ReplicatorError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for child in children:
                nursery.start_soon(stop, child)
        if errors:
            raise ReplicatorError("; ".join(str(error) for error in errors))

    async def adopt_strays(self) -> None:
        """Look after processes of an earlier agent that the state does not know."""
        state = self._state()
        known = {c.uuid for c in state.connections} | {m.id for m in state.mounts}
        for role, identifier in self._home.children():
            path = self._home.socket(role, identifier)
            process = serving_process(path)
            if process is None:
                os.unlink(path)  # left by a process that was killed
                continue
            process.close()
            if role == "receiver" or identifier in known:
                continue
            reason = "it is not in the state"
            if role == "sender":
                try:
                    await stop_serving(self._home, role, identifier)
                    continue
                except ReplicatorError as error:
                    reason = str(error)
            # A capture is left alone: applications use its mount, nothing is taken from them unasked.
            self._ring.add(events.STRAY, role=role, id=identifier, pid=process.pid, reason=reason)
