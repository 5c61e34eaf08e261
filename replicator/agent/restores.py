"""Restores to this host: begun, watched over restarts of everything, ended.

A restore is a mirror in the other direction: the agent that keeps the copy sends it (`copy_keeper.py`), a
receiver here places it. Whoever gets the data is asked, and dials.

Over its own source, whole: the mounts are down meanwhile, so that no program sees a mixture, and nothing has
to be captured. Afterwards the source equals the copy, and the connection goes on from there (`Restored`).
Anything else is written as a program would write it: through the mount, if there is one.
"""

import os
import time
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address, parse_host_port
from replicator.agent.agent_calls import handed_over
from replicator.agent.connections import Connections
from replicator.agent.core import Change, Core, NotFoundError
from replicator.agent.mounts import Mounts
from replicator.agent.repsets import Repsets
from replicator.agent.restore_calls import ANY_COPY, Call, ask, calling
from replicator.agent.restore_checks import (
    Facts,
    Job,
    check_orphans_directory,
    check_request,
    job_of,
    refusal,
)
from replicator.agent.restore_compare import first_newer, not_there, plan_of, what_differs
from replicator.agent.restore_ending import Ending, lacking_everything
from replicator.agent.restore_progress import how_it_goes, view_of
from replicator.agent.state import Connection, Mount, Restore, new_uuid
from replicator.errors import ReplicatorError, UnreachableError, UsageError
from replicator.orphans import OrphanAction
from replicator.receiver.replica_paths import RefusedTarget, check_target
from replicator.restores import CopyView, Danger, Existing, Phase, Plan, RestoreRequest, RestoreView
from replicator.status import ConnectionState
from replicator.world import local_zone

_ACTS = {
    "pause": ("mirror_pause", events.RESTORE_PAUSED),
    "resume": ("mirror_resume", events.RESTORE_RESUMED),
}


class Restores:
    """`run` carries out those that are at work."""

    def __init__(self, core: Core, connections: Connections, mounts: Mounts, repsets: Repsets) -> None:
        self._core = core
        self._connections = connections
        self._ending = Ending(core, mounts, repsets)
        self._told: dict[str, Any] = {}  # by uuid: what the sender said last
        self._scopes: dict[str, trio.CancelScope] = {}
        self._runs = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled; the restores go on with the next agent."""
        await self._core.up.wait()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._runs.set()
            for restore in self._core.state.restores:
                if restore.is_at_work:
                    nursery.start_soon(self._carry_out, restore.uuid)
            await trio.sleep_forever()

    # --- looking ---

    async def copies(self, source: str) -> list[CopyView]:
        """What the agent at HOST[:PORT] keeps; "": this one."""
        found = await ask(self._core.peers, self._address(source), ANY_COPY, Call(action="copies"))
        return msgspec.convert(found, list[CopyView])

    def all(self) -> list[RestoreView]:
        return [view_of(restore, self._told.get(restore.uuid)) for restore in self._core.state.restores]

    def get(self, key: str) -> RestoreView:
        restore = self._find(key)
        return view_of(restore, self._told.get(restore.uuid))

    def _find(self, key: str) -> Restore:
        for restore in self._core.state.restores:
            if key in (str(restore.id), restore.uuid):
                return restore
        known = ", ".join(str(restore.id) for restore in self._core.state.restores) or "none"
        raise NotFoundError(f"no restore {key!r}; restores: {known}")

    def _address(self, source: str) -> Address:
        if source:
            return parse_host_port(source)
        listen = self._core.listen
        return Address(listen.connectable_host, listen.port)

    # --- beginning ---

    async def start(self, request: RestoreRequest) -> RestoreView | Plan:
        """Begin, or only say what would happen. Raises ReplicatorError with what would be lost."""
        check_request(request)
        await self._runs.wait()
        connection, address, copy = await self._copy_of(request)
        job = job_of(request, copy)
        places = [await trio.to_thread.run_sync(check_target, place) for place in job.places]
        job = job._replace(places=tuple(places))
        if request.orphans_directory:
            await trio.to_thread.run_sync(self._check_orphans_directory, request.orphans_directory, places)
        whole = not request.paths and request.existing is Existing.OVERWRITE
        over_source = connection is not None and whole and job.is_at_home
        if request.paths:
            missing = await not_there(self._core.peers, address, copy.uuid, job, request.paths)
            if missing:
                raise UsageError(f"the copy has no {missing[0]}")
        facts = await self._facts(request, connection, address, copy, job, over_source)
        refused = refusal(copy, facts, request.even_if)
        if request.dry_run:
            plan = await plan_of(self._core.peers, address, copy.uuid, job, request)
            return msgspec.structs.replace(plan, refused=refused)
        if refused:
            raise ReplicatorError(refused)
        async with self._core.change() as change:
            restore = await self._begin(change, request, connection, address, copy, job, over_source)
        self._core.events.add(
            events.RESTORE_STARTED,
            id=restore.id,
            repset=restore.repset.name,
            source=f"{copy.agent} at {address}",
            places=", ".join(restore.places),
        )
        assert self._nursery is not None
        self._nursery.start_soon(self._carry_out, restore.uuid)
        return self.get(restore.uuid)

    def _check_orphans_directory(self, directory: str, places: Sequence[str]) -> None:
        """As for orphans of copies (OR-03). Blocks. UsageError."""
        try:
            real = check_target(directory)
        except RefusedTarget as error:
            raise UsageError(f"orphans cannot be moved there: {error}") from None
        taken = [(self._core.home.path, f"the agent's own {self._core.home.path}")]
        for mount in self._core.state.mounts:
            taken += [(place, f"{place}, which is captured,") for place in (mount.path, mount.mountpoint)]
        taken = [(os.path.realpath(place), what) for place, what in taken]
        check_orphans_directory(real, places, taken)

    async def _copy_of(self, request: RestoreRequest) -> tuple[Connection | None, Address, CopyView]:
        try:
            connection = self._connections.find(request.copy)
        except ReplicatorError:
            if not request.source:
                raise
        else:
            address = self._address(request.source or (connection.target if connection.target_host else ""))
            found = await ask(self._core.peers, address, connection.uuid, Call(action="describe"))
            return connection, address, msgspec.convert(found, CopyView)
        known = await self.copies(request.source)
        fitting = [copy for copy in known if request.copy in (copy.uuid, copy.repset.name)]
        if len(fitting) != 1:
            names = ", ".join(f"{copy.uuid} ({copy.repset.name} of {copy.source_name})" for copy in known)
            how = "several copies" if fitting else "no copy"
            raise UsageError(f"{request.source} has {how} {request.copy!r}; copies there: {names or 'none'}")
        (copy,) = fitting
        own = next((c for c in self._core.state.connections if c.uuid == copy.uuid), None)
        return own, self._address(request.source), copy

    async def _facts(
        self,
        request: RestoreRequest,
        connection: Connection | None,
        address: Address,
        copy: CopyView,
        job: Job,
        over_source: bool,
    ) -> Facts:
        replicates, queued_ops = False, 0
        if connection is not None:
            status = await self._connections.status(connection)
            replicates = status.state in (ConnectionState.STARTED, ConnectionState.PAUSED)
            queued_ops = status.queued_ops
            self._check_others(connection, over_source)
        home = copy.source_uuid == self._core.identity.uuid
        occupied = newer = ""
        filled = [place for place in job.places if await trio.to_thread.run_sync(_has_something, place)]
        for root, place in zip(job.roots, job.places, strict=True):
            if place in filled and not (home and root.source == place):
                occupied = occupied or place
        wanted = request.existing is Existing.OVERWRITE and Danger.NEWER not in request.even_if
        if filled and wanted and not request.dry_run:
            newer = await first_newer(self._core.peers, address, copy.uuid, job, request)
        return Facts(
            connection.id if connection is not None else None,
            replicates,
            queued_ops,
            occupied,
            newer,
            over_source or request.protect,
        )

    def _check_others(self, connection: Connection, over_source: bool) -> None:
        """Other copies of the same mounts would not be copies of what is restored."""
        if not over_source:
            return
        mounts = {journal.mount.id for journal in self._core.children.journals(connection)}
        for other in self._core.state.connections:
            if other.uuid != connection.uuid and any(
                journal.mount.id in mounts for journal in self._core.children.journals(other)
            ):
                raise ReplicatorError(
                    f"connection {other.id} replicates the same directories to {other.target}, which"
                    f" would not be a copy of what is restored: dtctl disconnect {other.id} first, and"
                    " connect it again afterwards"
                )

    async def _begin(
        self,
        change: Change,
        request: RestoreRequest,
        connection: Connection | None,
        address: Address,
        copy: CopyView,
        job: Job,
        over_source: bool,
    ) -> Restore:
        """A step of a change."""
        state = self._core.state
        at_work = next((r for r in state.restores if r.is_at_work and r.copy == copy.uuid), None)
        if at_work is not None:
            raise ReplicatorError(f"restore {at_work.id} reads that copy already: dtctl restore status")
        mounts: list[Mount] = []
        if over_source:
            assert connection is not None
            mounts = [journal.mount for journal in self._core.children.journals(connection)]
            await self._take_down(change, connection, mounts)
        restore = Restore(
            uuid=new_uuid(),
            id=max((r.id for r in state.restores), default=0) + 1,
            copy=copy.uuid,
            host=address.host,
            port=address.port,
            request=request,
            definition=copy.repset,
            repset=job.repset,
            roots=job.roots,
            places=_below_mounts(job.places, mounts),
            epoch=copy.epoch,
            over_source=over_source,
            mounts=tuple(mount.id for mount in mounts),
            started=time.time(),
        )
        await ask(self._core.peers, address, copy.uuid, Call(action="hold", restore=restore.uuid))
        change.undo(ask, address, copy.uuid, Call(action="end", restore=restore.uuid))
        ended = [r for r in state.restores if not r.is_at_work][-limits.RESTORES_KEPT :]
        kept = [r for r in state.restores if r.is_at_work or r in ended]
        await change.save(restores=(*kept, restore))
        return restore

    async def _take_down(self, change: Change, connection: Connection, mounts: list[Mount]) -> None:
        children = self._core.children
        change.undo(children.start_sender, connection, patient=True)
        await children.stop_sender(connection.uuid)
        for mount in mounts:
            change.undo(children.start_capture, mount)
            try:
                await children.stop_capture(mount, force=False, persist=False)
            except ReplicatorError as error:
                raise ReplicatorError(
                    f"{error}; to restore the whole of it, stop what uses it first (fuser -vm"
                    f" {mount.mountpoint}); single paths (--path) are restored beside running programs"
                ) from None

    # --- carrying out ---

    async def _carry_out(self, uuid: str) -> None:
        scope = self._scopes[uuid] = trio.CancelScope()
        with scope:
            try:
                if self._restore(uuid).phase is Phase.RUNNING:
                    await self._send(self._restore(uuid))
                    await self._save(uuid, phase=Phase.FINISHING)
                await self._finish(self._restore(uuid))
            except ReplicatorError as error:
                await self._give_up(uuid, Phase.FAILED, str(error))
            except Exception as error:  # the agent has more to do than this restore
                traceback.print_exc()
                await self._give_up(uuid, Phase.FAILED, f"unexpected {type(error).__name__}: {error}")
        del self._scopes[uuid]

    def _restore(self, uuid: str) -> Restore:
        restore = self._core.state.restore_of(uuid)
        assert restore is not None
        return restore

    async def _save(self, uuid: str, **values: Any) -> None:
        async with self._core.change() as change:
            await self._ending.save(change, self._restore(uuid), **values)

    async def _send(self, restore: Restore) -> None:
        """Returns when everything is there. Raises ReplicatorError if it cannot be."""
        failure: ReplicatorError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_attached, restore)
            try:
                await self._until_there(restore)
            except ReplicatorError as error:
                failure = error  # kept from becoming a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _keep_attached(self, restore: Restore) -> None:
        """Dial, and dial again; what arrives is for the receiver here."""
        attach = Call(
            action="attach",
            restore=restore.uuid,
            repset=restore.repset,
            roots=restore.roots,
            places=restore.places,
            newer=restore.request.existing is Existing.NEWER,
            checksum=restore.request.checksum,
        )
        children = self._core.children
        while True:
            if not await self._is_connected(restore):
                try:
                    call = self._with_orders(attach, restore)
                    async with calling(self._core.peers, _of(restore), restore.copy, call) as (
                        _,
                        conversation,
                    ):
                        await children.adopt(restore.uuid, *await handed_over(self._core.peers, conversation))
                except ReplicatorError:
                    await trio.sleep(limits.RESTORE_RETRY_S)  # `_until_there` hears of what is for good
                    continue
                await trio.sleep(limits.RESTORE_RETRY_S / 2)  # until it has introduced itself
            await trio.sleep(limits.RESTORE_LOOK_S)

    def _with_orders(self, call: Call, restore: Restore) -> Call:
        own, target = self._core.state.transmission_from(
            restore.copy, restore.host, time.time(), local_zone()
        )
        return msgspec.structs.replace(call, own=own, target=target)

    async def _is_connected(self, restore: Restore) -> bool:
        child = self._core.children.receiver(restore.uuid)
        try:
            return child is not None and bool((await child.call("status"))["connected"])
        except ReplicatorError:
            return False

    async def _until_there(self, restore: Restore) -> None:
        removes = restore.request.orphans not in (None, OrphanAction.KEEP)
        while True:
            await trio.sleep(limits.RESTORE_LOOK_S)
            try:
                call = self._with_orders(Call(action="status", restore=restore.uuid), restore)
                status = await ask(self._core.peers, _of(restore), restore.copy, call)
            except UnreachableError:
                continue
            except ReplicatorError:
                await self._check_held(restore)
                continue
            self._told[restore.uuid] = status
            if how_it_goes(status, removes, restore.request.existing):
                return

    async def _check_held(self, restore: Restore) -> None:
        """Raises ReplicatorError if the copy does not stand still for this restore any more."""
        try:
            found = await ask(self._core.peers, _of(restore), restore.copy, Call(action="describe"))
        except UnreachableError:
            return
        if found["restoring"] != restore.uuid:
            raise ReplicatorError("the copy stands still no more: somebody there has let it go on")

    async def _finish(self, restore: Restore) -> None:
        await self._ending.sync(restore)
        lacking = {}
        noted = self._ending.is_noted(restore)  # and its mounts may be up already
        if restore.over_source and not noted and restore.request.orphans is not OrphanAction.DELETE:
            job = Job(restore.repset, restore.roots, restore.places)
            lacking = await what_differs(self._core.peers, _of(restore), restore.copy, job)
        goes_on = restore.over_source or restore.request.protect
        action = "finish" if goes_on else "end"
        call = Call(action=action, restore=restore.uuid, epoch=restore.epoch + 1)
        while True:
            try:
                await ask(self._core.peers, _of(restore), restore.copy, call)
                break
            except UnreachableError:
                await trio.sleep(limits.RESTORE_RETRY_S)
        await self._ending.forget_receiver(restore)
        view = view_of(restore, self._told.get(restore.uuid))
        async with self._core.change() as change:
            resumed = await self._ending.complete(change, restore, lacking, view)
        text = f"{view.done_files} files, {view.sent_bytes} bytes sent; {resumed}"
        self._core.events.add(events.RESTORE_COMPLETED, id=restore.id, text=text)
        self._told.pop(restore.uuid, None)

    # --- what a person asks for ---

    async def act(self, key: str, action: str) -> RestoreView:
        """`pause`, `resume`, `stop`."""
        restore = self._find(key)
        if not restore.is_at_work:
            raise ReplicatorError(f"restore {restore.id} has ended: {restore.phase}")
        if action == "stop":
            if restore.phase is Phase.FINISHING:
                raise ReplicatorError(f"restore {restore.id} is just ending")
            scope = self._scopes.get(restore.uuid)
            if scope is not None:
                scope.cancel()
            await self._give_up(restore.uuid, Phase.STOPPED, "by request")
            return self.get(key)
        what, event = _ACTS[action]
        call = Call(action="act", restore=restore.uuid, what=what)
        await ask(self._core.peers, _of(restore), restore.copy, call)
        self._core.events.add(event, id=restore.id)
        return self.get(key)

    async def _give_up(self, uuid: str, phase: Phase, reason: str) -> None:
        """What is here stays a mixture: it is not replicated until a person says so."""
        restore = self._restore(uuid)
        try:
            await ask(self._core.peers, _of(restore), restore.copy, Call(action="end", restore=uuid))
        except ReplicatorError as error:
            reason = f"{reason}; the agent of the copy was not told: {error}"
        await self._ending.forget_receiver(restore)
        async with self._core.change() as change:
            await self._ending.abandon(change, restore, phase, reason, lacking_everything(restore))
        event = events.RESTORE_STOPPED if phase is Phase.STOPPED else events.RESTORE_FAILED
        self._core.events.add(event, id=restore.id, reason=reason)


def _of(restore: Restore) -> Address:
    return Address(restore.host, restore.port)


def _has_something(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(entry.name != "lost+found" for entry in entries)
    except OSError:
        return False


def _below_mounts(places: tuple[str, ...], mounts: list[Mount]) -> tuple[str, ...]:
    """Where they are while the mounts are down: one that is not over itself leaves its mountpoint empty."""
    found = []
    for place in places:
        for mount in mounts:
            inside = place == mount.mountpoint or place.startswith(mount.mountpoint + "/")
            if inside and mount.mountpoint != mount.path:
                place = mount.path + place[len(mount.mountpoint) :]
        found.append(place)
    return tuple(found)
