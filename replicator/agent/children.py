"""The children of an agent: captures, senders and receivers, started, told and ended."""

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

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent import planning
from replicator.agent.child_arguments import ChildArguments
from replicator.agent.launcher import answer
from replicator.agent.process import serving_process
from replicator.agent.queue_layout import QueueLayout
from replicator.agent.queue_places import Place
from replicator.agent.state import AgentIdentity, Connection, Mount, State
from replicator.agent.supervisor import Child, Plan, Supervisor, stop_serving
from replicator.bounds import MALFORMED
from replicator.capture import held_mount
from replicator.config import Config
from replicator.errors import JournalError, ReplicatorError, UsageError
from replicator.events import EventRing
from replicator.fs import mounts as fs_mounts
from replicator.paths import Home
from replicator.queue.cursor import Cursor
from replicator.queue.header import Header
from replicator.queue.settings import JournalSettings
from replicator.receiver.arguments import ReceiverArguments
from replicator.repset import overlapping
from replicator.security.channel import Handover
from replicator.security.settings import SecuritySettings
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
        self._config = config
        self._ring = ring
        self._supervisor = supervisor
        self._state = state
        self._queues = QueueLayout(home, identity, config.queue, ring)
        self.arguments = ChildArguments(home, identity, config, listen, state, security, self._queues)
        self._known_targets: dict[str, list[str]] = {}  # by connection: what was asked for once
        self._room_made_s = -inf

    # --- captures ---

    def capture(self, mount: Mount) -> Child | None:
        return self._supervisor.get("capture", mount.id)

    async def start_capture(self, mount: Mount, *, patient: bool = False) -> Child:
        """Raises ChildError with the reason if it cannot be mounted, unless `patient`."""

        async def look() -> None:
            await trio.to_thread.run_sync(self._note_stale, mount)
            await self._queues.settle_journal(mount)

        async def tell(child: Child) -> None:
            await child.call("set_active", **self.arguments.active(mount))
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
            lambda: self.arguments.capture(mount),
            prepare=look,
            greet=tell,
            give_up=give_up,
        )
        return await self._supervisor.start(plan, patient=patient)

    def journals(self, connection: Connection) -> list[planning.Journal]:
        return self.arguments.journals(connection)

    def journal_settings(self, mount: Mount) -> JournalSettings:
        return self._queues.journal_settings(mount)

    def fence(self, mount: Mount) -> str:
        return self.arguments.fence(mount)

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
        await trio.to_thread.run_sync(self._queues.forget, mount.id)

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

    async def follow_configuration(self, mount: Mount) -> None:
        """Have a capture that was started under another configuration take up what is set for its queue,
        without unmounting.
        """
        child = self.capture(mount)
        if child is None or child.pid is None:
            return
        running = await running_settings(child)
        wanted = self._queues.wanted_place(mount)
        if running is None or running == self._queues.settings(Place(running.memory_directory, wanted.disk)):
            return
        try:
            if running.disk_directory != wanted.disk:
                for connection in self._state().connections:  # they are started after this
                    if any(journal.mount.id == mount.id for journal in self.journals(connection)):
                        await stop_serving(self._home, "sender", connection.uuid)
                await self._queues.copy_ahead(mount)
            await self.reload_capture(mount)
        except (OSError, ReplicatorError) as error:
            self._ring.add(events.QUEUE_SETTINGS_LATER, name=mount.path, reason=str(error))
        else:
            self._ring.add(events.QUEUE_SETTINGS, name=mount.path)

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
                    verify_log=msgspec.to_builtins(self.arguments.verify_log()),
                    replication_ratio=self._config.mirror.replication_ratio,
                )
            with suppress(ReplicatorError):
                now = next((c for c in self._state().connections if c.uuid == connection.uuid), connection)
                await child.call(
                    "set_transmission", orders=msgspec.to_builtins(self.arguments.transmission_orders(now))
                )

        plan = Plan(
            "sender",
            connection.uuid,
            lambda: self.arguments.sender(connection),
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
            lambda: self.arguments.receiver(uuid),
            prepare=partial(self._queues.settle_spool, uuid),
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
                await trio.to_thread.run_sync(self._queues.forget, child.plan.id)
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

    def forget_places(self) -> None:
        """Of queues that are no more."""
        mounts = {mount.id for mount in self._state().mounts}
        self._queues.keep_only(mounts | set(self.receivers_known()))

    async def end_outdated_receiver(self, uuid: str) -> None:
        """End a receiver that an earlier agent has started under another configuration of queues: nothing is
        lost, and another one is started.
        """
        wanted = Place(self._queues.spool(uuid).memory, self._queues.wanted_spool(uuid).disk)
        arguments = self.arguments.receiver(uuid, wanted)
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
