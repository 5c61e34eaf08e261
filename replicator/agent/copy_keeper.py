"""The side of a restore that keeps the copy: describes it, has it stand still, and has it sent.

Nothing on the copy is changed. What is remembered of a restore is that the copy stands still for it, by its
receiver; a sender that this agent does not know (any more) is made anew when the other side attaches again.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import trio

from replicator import events, limits, transmission
from replicator.agent.agent_calls import Answer, handed_over
from replicator.agent.core import Core
from replicator.agent.restore_calls import Call, RestoreConversation, in_lists
from replicator.agent.supervisor import Child, Plan
from replicator.bounds import MALFORMED
from replicator.errors import NotPermittedError, ReplicatorError, UsageError
from replicator.fs import target_lock
from replicator.mirror.inventory import items
from replicator.mirror.scan import Source
from replicator.net.frames import Connect, PathMap
from replicator.paths import memory_directory
from replicator.receiver.replica_state import StateFile
from replicator.repset import ReplicationSet, compile_filter, is_inside
from replicator.restores import CopyView, Root
from replicator.security.channel import Channel
from replicator.security.trust import Peer
from replicator.sender.arguments import JournalArguments, MapArguments, SenderArguments, SenderOptions
from replicator.status import TargetStatus
from replicator.transmission import TransmissionOrders
from replicator.world import World

_ACTS = frozenset({"mirror_pause", "mirror_resume", "mirror_start"})


class CopyKeeper:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._senders: dict[str, SenderArguments] = {}  # by uuid of the restore
        self._orders: dict[str, TransmissionOrders] = {}  # the same: what its sender was told last

    # --- what the other side asks for ---

    async def serve(self, copy: str, channel: Channel) -> str:
        """One call. Returns what to log if it was refused."""
        conversation = RestoreConversation(channel)
        line = b""
        with trio.move_on_after(limits.GREETING_TIMEOUT_S):
            line = await conversation.receive_line(limits.RESTORE_CALL_BYTES)
        if not line:
            return f"did not say what it wants to restore within {limits.GREETING_TIMEOUT_S:.0f} s"
        try:
            call = msgspec.json.decode(line, type=Call)
            _check_id(call.restore)
            await self._core.up.wait()
            await self._start_of(copy)
            if call.action != "copies":
                await self._check_owner(copy, channel.peer)
            if call.action == "inventory":
                await self._send_inventory(call, copy, conversation)
            elif call.action == "attach":
                await self._attach(call, copy, conversation)
            else:
                await conversation.send_line(Answer(result=await self._answer(call, copy, channel.peer)))
        except MALFORMED as error:
            await conversation.send_line(Answer(error=f"this agent does not understand that: {error}"))
            return f"a restore was asked for in an unknown way: {error}"
        except ReplicatorError as error:
            await conversation.send_line(Answer(error=str(error), exit_code=int(error.exit_code)))
            return f"restore refused: {error}" if call.action in ("hold", "attach") else ""
        return ""

    async def _check_owner(self, copy: str, peer: Peer | None) -> None:
        """A copy is its source's, and of those to whom a person has given all copies. Raises
        NotPermittedError.
        """
        if peer is None or peer.restores_all:
            return
        owner = (await self._receiver(copy).call("status"))["source_uuid"]
        if owner != peer.uuid:
            raise NotPermittedError(
                f"copy {copy} belongs to another source: on {self._core.identity.name}, allow it with"
                f" dtctl trust restores {peer.name} all"
            )

    async def _answer(self, call: Call, copy: str, peer: Peer | None) -> object:
        """What asks for something that is to be known."""
        if call.action == "copies":
            found = await self._copies()
            if peer is None or peer.restores_all:
                return found
            return [view for view in found if view.source_uuid == peer.uuid]
        if call.action == "describe":
            return await self._describe(copy)
        if call.action == "status":
            return await self._status(call)
        if call.action == "act" and call.what in _ACTS:
            return await self._sender(call.restore).call(call.what)
        if call.action == "hold":
            await self._hold(call, copy)
        elif call.action == "end":
            await self._end_sender(call.restore)
            await self._receiver(copy).call("restore_ends", restore=call.restore)
        elif call.action == "finish":
            await self._finish(call, copy, peer)
        else:
            raise UsageError(f"this agent does not know {call.action!r} about restores")
        return None

    # --- copies ---

    async def _copies(self) -> list[CopyView]:
        found = []
        for child in self._core.children.receivers():
            try:
                found.append(await self._describe(child.plan.id))
            except ReplicatorError:
                continue  # nothing has come there yet
        return found

    async def _describe(self, copy: str) -> CopyView:
        child = self._receiver(copy)
        status = await child.call("status")
        connect = await self._connect_of(copy)
        stands = status["target_status"] in (TargetStatus.PAUSED, TargetStatus.PAUSE_PENDING)
        return CopyView(
            uuid=copy,
            repset=msgspec.json.decode(connect.set_definition, type=ReplicationSet),
            roots=roots_of(connect),
            source_uuid=status["source_uuid"],
            source_name=status["source_name"],
            agent=self._core.identity.name,
            data_state=status["target_data_state"],
            connected=status["connected"],
            paused=stands and not status["restoring"],
            waiting_bytes=0 if status["received"] == status["applied"] else max(status["queued_bytes"], 1),
            remap_links=connect.remap_links,
            epoch=status["epoch"],
            restoring=status["restoring"],
        )

    async def _connect_of(self, copy: str) -> Connect:
        directory = self._core.home.target(copy)
        state = await trio.to_thread.run_sync(lambda: StateFile(World(), directory).load())
        if state is None or state.connect is None:
            raise ReplicatorError(f"{self._core.identity.name} has nothing of copy {copy} yet")
        return state.connect

    async def _start_of(self, copy: str) -> None:
        """Its receiver may just be starting, as its agent does. If it does not, whoever needs it says so."""
        child = self._core.children.receiver(copy)
        if child is not None:
            with suppress(ReplicatorError):
                await child.wait_running(limits.RESTORE_RETRY_S)

    def _receiver(self, copy: str) -> Child:
        child = self._core.children.receiver(copy)
        if child is None:
            raise UsageError(
                f"{self._core.identity.name} keeps no copy {copy}: dtctl restore copies lists those it has"
            )
        return child

    async def _hold(self, call: Call, copy: str) -> None:
        """The copy stands still from here on, with all applied that had arrived, unless it is paused."""
        child = self._receiver(copy)
        view = await self._describe(copy)
        deadline_s = trio.current_time() + limits.RESTORE_DRAIN_S
        while view.waiting_bytes and not (view.paused or view.restoring):
            if trio.current_time() > deadline_s:
                break
            await trio.sleep(limits.RESTORE_LOOK_S)
            view = await self._describe(copy)
        first = not (await child.call("status"))["restoring"]
        await child.call("restore_begins", limits.RESTORE_CALL_S, restore=call.restore)
        if first:
            self._core.events.add(events.COPY_HELD, repset=view.repset.name, copy=copy)

    # --- its sender ---

    async def _attach(self, call: Call, copy: str, conversation: RestoreConversation) -> None:
        status = await self._receiver(copy).call("status")
        if status["restoring"] != call.restore:
            raise ReplicatorError("the copy does not stand still for this restore any more: start it again")
        child = await self._start_sender(call, copy)
        await self._direct(call, child)
        await conversation.send_line(Answer())
        number, _, handover = await handed_over(self._core.peers, conversation)
        await child.call_with_descriptors(
            "adopt", limits.CONTROL_TIMEOUT_S, [number], handover=msgspec.to_builtins(handover)
        )

    async def _direct(self, call: Call, child: Child) -> None:
        """Have it sent as the other side wants it: it is the end of the line whose settings those are."""
        orders = orders_of(call)
        if self._orders.get(call.restore) != orders or call.action == "attach":
            await child.call("set_transmission", orders=msgspec.to_builtins(orders))
            self._orders[call.restore] = orders

    async def _start_sender(self, call: Call, copy: str) -> Child:
        identifier = call.restore
        arguments = await self._arguments(call, copy)
        running = self._core.children.sender_of(identifier)
        if running is None or self._senders.get(identifier) != arguments:
            self._senders[identifier] = arguments
            plan = Plan(
                "sender",
                identifier,
                lambda: self._senders[identifier],
                may_end=lambda: identifier not in self._senders,
            )
            running = await self._core.children.start_planned(plan)
        await running.wait_running()
        return running

    async def _arguments(self, call: Call, copy: str) -> SenderArguments:
        known = {root.replica: root for root in roots_of(await self._connect_of(copy))}
        if call.repset is None or len(call.roots) != len(call.places) or not call.roots:
            raise UsageError("a restore has to say what goes where")
        if any(known.get(root.replica) != root for root in call.roots):
            raise UsageError("a restore asks for directories that are not of this copy")
        connect = await self._connect_of(copy)
        return SenderArguments(
            home=self._core.home.path,
            connection_uuid=call.restore,
            agent_uuid=self._core.identity.uuid,
            agent_name=self._core.identity.name,
            target_host="restore",
            target_port=0,
            repset=call.repset,
            journals=[
                JournalArguments(
                    mount_id=str(uuid.uuid5(uuid.UUID(call.restore), str(index))),
                    root=root.replica,
                    capture_socket="",
                    memory_directory=memory,
                    disk_directory=disk,
                    rules_root=root.source,
                )
                for index, (root, (memory, disk)) in enumerate(
                    zip(call.roots, self._journals(call.restore, len(call.roots)), strict=True)
                )
            ],
            maps=[MapArguments(index, "", place) for index, place in enumerate(call.places)],
            options=SenderOptions(
                mirror="difference",
                newer=call.newer,
                checksum=call.checksum,
                checksum_all=call.checksum and self._core.config.mirror.checksum_all,
                remap_links=connect.remap_links,
            ),
        )

    def _journals(self, restore: str, count: int) -> list[tuple[str, str]]:
        """Where the empty journals of a restore lie: (memory, disk)."""
        base, home = self._core.config.queue.memory_directory, self._core.home
        names = [f"restore-{restore}-{index}" for index in range(count)]
        return [
            (memory_directory(base, self._core.identity.uuid, name), os.path.join(home.queue, name))
            for name in names
        ]

    def _sender(self, restore: str) -> Child:
        child = self._core.children.sender_of(restore)
        if child is None:
            raise ReplicatorError("nothing is sent for this restore now")
        return child

    async def _status(self, call: Call) -> dict[str, Any]:
        child = self._sender(call.restore)
        await self._direct(call, child)
        return {"connection": await child.call("status"), "orphans": await child.call("orphans")}

    async def _end_sender(self, restore: str) -> None:
        """Its target is told, if it is there, and forgets the restore."""
        child = self._core.children.sender_of(restore)
        arguments = self._senders.pop(restore, None)
        self._orders.pop(restore, None)
        if child is not None:
            try:
                await child.call("disconnect", limits.DISCONNECT_TIMEOUT_S)
            except ReplicatorError:
                pass  # it does not run, or not well
            await self._core.children.stop_sender(restore)
        home = self._core.home
        for path in (home.source(restore), home.story(restore), home.dirt(restore)):
            with suppress(FileNotFoundError):  # the sender did it itself
                os.unlink(path)
        count = len(arguments.journals) if arguments is not None else 0
        for directories in self._journals(restore, count):
            for directory in directories:
                await trio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))

    async def _finish(self, call: Call, copy: str, peer: Peer | None) -> None:
        """A source equals the copy now: no older one may change it."""
        await self._end_sender(call.restore)
        child = self._receiver(copy)
        status = await child.call("status")
        if status["restoring"] == call.restore:
            source = peer.uuid if peer is not None else ""
            await child.reload("restored", restore=call.restore, epoch=call.epoch, source_uuid=source)
            repset = status["repset"]
            self._core.events.add(events.COPY_PROMOTED, repset=repset, copy=copy, epoch=call.epoch)

    # --- what is in it ---

    async def _send_inventory(self, call: Call, copy: str, conversation: RestoreConversation) -> None:
        """All objects, root by root."""
        if call.repset is None:
            raise UsageError("an inventory has to say of what")
        known = roots_of(await self._connect_of(copy))
        if any(root not in known for root in call.roots):
            raise UsageError("an inventory asks for directories that are not of this copy")
        sources = await trio.to_thread.run_sync(open_sources, call.repset, call.roots, True)
        try:
            await conversation.send_line(Answer())
            for source in sources:
                parts = in_lists(items(source))
                while part := await trio.to_thread.run_sync(partial(next, parts)):
                    await conversation.send_items(part)
                await conversation.send_items([])
        finally:
            for source in sources:
                source.close()


def _check_id(restore: str) -> None:
    """It becomes a part of file names. Raises UsageError."""
    try:
        canonical = str(uuid.UUID(restore)) if restore else ""
    except ValueError:
        canonical = ""
    if canonical != restore:
        raise UsageError(f"{restore[:80]!r} is no restore")


def orders_of(call: Call) -> TransmissionOrders:
    """Nothing but the texts is taken from the other side. Raises UsageError if they mean nothing."""
    own, target = (
        transmission.changed(settings, settings.compression, settings.bandwidth)
        for settings in (call.own, call.target)
    )
    return transmission.orders(own, target, page="")


def open_sources(repset: ReplicationSet, roots: Sequence[Root], beneath_locks: bool) -> list[Source]:
    """The trees of these directories, as far as the set goes. OSError as ReplicatorError."""
    try:
        if beneath_locks:
            descriptors = target_lock.open_beneath([root.replica for root in roots])
        else:
            descriptors = [
                os.open(root.replica, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for root in roots
            ]
    except OSError as error:
        raise ReplicatorError(f"{error.filename}: {error.strerror}") from None
    return [
        Source(descriptor, partial(compile_filter, repset, os.fsencode(root.source)))
        for root, descriptor in zip(roots, descriptors, strict=True)
    ]


def roots_of(connect: Connect) -> tuple[Root, ...]:
    """The parts of a copy, none inside another. Raises ReplicatorError if it is torn apart."""
    found: list[Root] = []
    maps = sorted(connect.maps, key=lambda m: (m.journal, len(m.source)))
    for entry in maps:
        root = _root(connect, entry)
        above = next((r for r in found if r.source != root.source and is_inside(root.source, r.source)), None)
        if above is None:
            found.append(root)
        elif root.replica != above.replica + root.source[len(above.source.rstrip("/")) :]:
            raise ReplicatorError(
                f"{root.source} was copied to {root.replica}, away from {above.source}: a copy with such maps"
                " cannot be restored in one go"
            )
    return tuple(found)


def _root(connect: Connect, entry: PathMap) -> Root:
    root, below = os.fsdecode(connect.journals[entry.journal].root), os.fsdecode(entry.source)
    source = f"{root.rstrip('/')}/{below}" if below else root
    return Root(source, os.fsdecode(entry.target))
