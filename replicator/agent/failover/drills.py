"""Drills: would the services of a source start on its copies, here, now? (issue: test mode.)

The copies stand still at one point that their source went through, while what arrives goes on into their
queues, so the source is protected as before. Commands run in a room of their own (`drill_room.py`), which
sees the copies at the original paths. Afterwards, whatever happened, the room is gone and the copies go on.

What was begun is durable before it is: an agent that is killed in the middle finds it, and cleans up.
A failover goes first: it ends a drill at once (`give_way`).
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.contained import OUTSIDE, reason_of
from replicator.agent.failover.drill_file import DrillFiles
from replicator.agent.failover.drill_order import Command, CommandEnd, Findings, Order, Place
from replicator.agent.failover.drill_process import RoomError, RoomProcess
from replicator.agent.failover.group_copies import GroupCopies, GroupCopy
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.groups import Groups
from replicator.agent.state import new_uuid
from replicator.errors import ReplicatorError, UsageError
from replicator.failover.occasion import Occasion, environment
from replicator.failover.phases import MAY_OWN
from replicator.failover.supervised import How
from replicator.failover_drills import (
    HOLD,
    OVER,
    Drill,
    DrillCommand,
    DrillPoint,
    DrillRequest,
    DrillState,
)
from replicator.failovers import Monitor, ScriptKind
from replicator.status import TargetDataState

_AGENT_ENDED = "the agent ended in the middle"
_STOP_S = 2.0  # for the copies to go on, when the agent ends; else its successor sees to it


class _UnderWay:
    """A drill that runs. `done` is set when everything is as it was before."""

    def __init__(self, drill: Drill) -> None:
        self.drill = drill
        self.hold = HOLD + drill.uuid  # by this name its copies stand still
        self.held_since_s: float | None = None
        self.scope = trio.CancelScope()
        self.free = trio.Event()  # set when the copies go on
        self.done = trio.Event()
        self.ending = ""  # why it was told to end
        self.at_once = False

    def set(self, **fields: Any) -> Drill:
        self.drill = msgspec.structs.replace(self.drill, **fields)
        return self.drill


class Drills:
    """`Service.failover.drills`. `run` carries them out."""

    def __init__(self, core: Core, groups: Groups, copies: GroupCopies, group_scripts: GroupScripts) -> None:
        self._core = core
        self._groups = groups
        self._copies = copies
        self._scripts = group_scripts
        self._base = os.path.join(core.home.failover, "drills")
        self._files = DrillFiles(self._base)
        self._under_way: dict[str, _UnderWay] = {}  # by group
        self._nursery: trio.Nursery | None = None
        self._cleaned = trio.Event()

    async def run(self) -> None:
        """Clean up what an earlier agent has left, then carry out what is asked for. Cancelled, what runs is
        ended and cleaned up, within limits.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._clean_up()
            self._cleaned.set()
            await trio.sleep_forever()

    # --- asked for ---

    async def begin(self, key: str, request: DrillRequest) -> Drill:
        """Start one. Raises UsageError, ReplicatorError: it cannot be now."""
        await self._cleaned.wait()
        monitor = self._groups.find(key)
        if not 0 < request.timeout_s <= limits.SCRIPT_TIMEOUT_MAX_S:
            raise UsageError(f"a check may take from 0 to {limits.SCRIPT_TIMEOUT_MAX_S:.0f} s, without 0")
        if monitor.uuid in self._under_way:
            raise ReplicatorError(
                f"a drill of {monitor.name} runs: dtctl failover drill {monitor.name} --end"
            )
        if monitor.phase in MAY_OWN:
            raise ReplicatorError(f"{monitor.name} is {monitor.phase}: a drill is for a target that waits")
        has_script = request.scripts and ScriptKind.POST_FAILOVER in monitor.settings.scripts
        if not (request.check or has_script or request.keep):
            raise UsageError(
                f"{monitor.name} has no post-failover script: say what to run (--check), or to keep the view"
                " (--keep)"
            )
        drill = Drill(
            uuid=new_uuid(), group=monitor.uuid, name=monitor.name, request=request, began=time.time()
        )
        under_way = _UnderWay(drill)
        self._under_way[monitor.uuid] = under_way
        assert self._nursery is not None
        self._nursery.start_soon(self._carry_out, monitor, under_way)
        return drill

    async def end(self, key: str) -> Drill:
        """End the one that runs. Returns when everything is as it was. Raises ReplicatorError: none runs."""
        monitor = self._groups.find(key)
        under_way = self._under_way.get(monitor.uuid)
        if under_way is None:
            raise ReplicatorError(f"no drill of {monitor.name} runs")
        self._stop(under_way, "by request")
        await under_way.done.wait()
        return under_way.drill

    async def give_way(self, group: str) -> None:
        """A failover begins: no drill is to be seen when this returns, and the copies go on."""
        await self._cleaned.wait()
        under_way = self._under_way.get(group)
        if under_way is not None:
            under_way.at_once = True
            self._stop(under_way, "a failover began")
            await under_way.free.wait()

    def _stop(self, under_way: _UnderWay, why: str) -> None:
        under_way.ending = under_way.ending or why
        under_way.scope.cancel()

    async def all(self, key: str) -> list[Drill]:
        """Of a group, the newest first."""
        monitor = self._groups.find(key)
        kept = await trio.to_thread.run_sync(self._files.all)
        found = [d for d in kept if d.group == monitor.uuid]
        under_way = self._under_way.get(monitor.uuid)
        if under_way is not None:
            found = [under_way.drill, *(d for d in found if d.uuid != under_way.drill.uuid)]
        return found

    # --- carried out ---

    async def _carry_out(self, monitor: Monitor, under_way: _UnderWay) -> None:
        room = RoomProcess(os.path.join(self._base, under_way.drill.uuid))
        agent_ends = True
        try:
            with under_way.scope:
                try:
                    await self._try(monitor, under_way, room)
                except OUTSIDE as error:  # MALFORMED: what the room could write of a result to a full disk
                    under_way.set(state=DrillState.IMPOSSIBLE, reason=reason_of(error))
            agent_ends = False
        finally:
            under_way.at_once = under_way.at_once or agent_ends
            if under_way.drill.state is DrillState.RUNNING:
                ended, why = DrillState.ENDED, under_way.ending
                if agent_ends:
                    ended, why = DrillState.INTERRUPTED, _AGENT_ENDED
                under_way.set(state=ended, reason=why)
            try:
                with trio.CancelScope(shield=True):
                    await self._finish(under_way, room, agent_ends=agent_ends)
            finally:  # nobody waits for it for ever, a failover least of all
                del self._under_way[monitor.uuid]
                under_way.free.set()
                under_way.done.set()

    async def _try(self, monitor: Monitor, under_way: _UnderWay, room: RoomProcess) -> None:
        request = under_way.drill.request
        copies = await self._copies.of(monitor)
        _check(copies, request)
        under_way.set(held=tuple(copy.connection for copy in copies))
        await self._save(under_way)
        self._core.events.add(events.DRILL_STARTED, group=monitor.name, count=len(copies))
        under_way.held_since_s = trio.current_time()
        assert self._nursery is not None
        self._nursery.start_soon(self._keep_up, under_way)
        for copy in copies:
            receiver = self._copies.receiver(copy.connection)
            await receiver.call("restore_begins", limits.RESTORE_CALL_S, restore=under_way.hold)
        under_way.set(points=tuple(_point(copy) for copy in await self._copies.of(monitor)))
        await room.start(await self._order(monitor, copies, request))
        if request.duplicate:
            await room.copied()
            await self._let_go(under_way)
        await room.ready()
        under_way.set(pid=room.pid)
        await self._save(under_way)
        findings = await room.result()
        under_way.set(**_found(findings))
        if request.keep and not findings.problem:
            under_way.set(state=DrillState.KEPT)
            await self._save(under_way)
            try:
                await room.gone()
            finally:
                under_way.set(state=_judged(findings))
        under_way.set(state=_judged(findings), reason=findings.problem)

    async def _order(self, monitor: Monitor, copies: Sequence[GroupCopy], request: DrillRequest) -> Order:
        kind = ScriptKind.POST_FAILOVER
        occasion = await self._scripts.occasion(
            monitor, kind, epoch=monitor.epoch + 1, reason="drill", test=True
        )
        told = variables_of(occasion)
        places = {root.source: Place(root.replica, root.source) for copy in copies for root in copy.roots}
        commands = []
        script = monitor.settings.scripts.get(kind) if request.scripts else None
        if script is not None:
            line = (script.path, *script.arguments)
            commands.append(
                Command(name=f"{kind} script", command=line, environment=told, timeout_s=script.timeout_s)
            )
        if request.check:
            line = ("/bin/sh", "-c", request.check)
            commands.append(
                Command(name="check", command=line, environment=told, timeout_s=request.timeout_s)
            )
        return Order(
            places=tuple(sorted(places.values(), key=lambda place: place.at)),
            addresses=tuple(address.address for address in occasion.addresses),
            host_name=monitor.settings.host_name,
            commands=tuple(commands),
            duplicate=request.duplicate,
            keep_s=limits.DRILL_KEEP_S if request.keep else 0.0,
        )

    async def _finish(self, under_way: _UnderWay, room: RoomProcess, *, agent_ends: bool = False) -> None:
        """The room is gone, nothing of it is left, and the copies go on."""
        try:
            await room.end(at_once=under_way.at_once)
        except (RoomError, OSError) as error:  # its view is its own: the copies go on
            self._core.events.add(events.UNDO_FAILED, reason=reason_of(error))
        with trio.move_on_after(_STOP_S if agent_ends else limits.DRILL_END_S) as deadline:
            await self._let_go(under_way)
            under_way.free.set()
        await trio.to_thread.run_sync(room.remove)
        if deadline.cancelled_caught:
            if not agent_ends and self._nursery is not None:
                self._nursery.start_soon(self._let_go, under_way)
            return  # not over, for the next start
        drill = under_way.set(ended=time.time(), pid=0, held=())
        try:
            await self._save(under_way)
            await trio.to_thread.run_sync(self._files.tidy)
        except OSError as error:
            self._core.events.add(events.UNDO_FAILED, reason=f"a drill cannot be noted: {error.strerror}")
        passed = drill.state is DrillState.PASSED
        event = events.DRILL_PASSED if passed else events.DRILL_NOT_PASSED
        self._core.events.add(event, group=drill.name, text=drill.text(), seconds=drill.still_s)
        monitor = self._groups.get(drill.group)
        if monitor is not None:
            await self._groups.note(monitor, "drill", drill.text())

    async def _let_go(self, under_way: _UnderWay) -> None:
        """The copies go on. Tried until each of them has said so."""
        waiting = set(under_way.drill.held)
        while waiting:
            for connection in sorted(waiting):
                child = self._core.children.receiver(connection)
                try:
                    if child is not None:
                        await child.call("restore_ends", restore=under_way.hold)
                except ReplicatorError:
                    continue  # it is being started
                waiting.discard(connection)
            if waiting:
                await trio.sleep(limits.RESTORE_LOOK_S)
        if under_way.held_since_s is not None:
            under_way.set(still_s=round(trio.current_time() - under_way.held_since_s, 3))
            under_way.held_since_s = None

    async def _keep_up(self, under_way: _UnderWay) -> None:
        """Else the copies go on by themselves (`receiver/drill_hold.py`)."""
        while not under_way.free.is_set() and under_way.held_since_s is not None:
            for connection in under_way.drill.held:
                child = self._core.children.receiver(connection)
                if child is not None:
                    with suppress(ReplicatorError):  # it is being started, and counts from then on
                        await child.call("drill_goes_on", restore=under_way.hold)
            with trio.move_on_after(limits.DRILL_HOLD_S / 3):
                await under_way.free.wait()

    async def _save(self, under_way: _UnderWay) -> None:
        drill = under_way.drill
        await trio.to_thread.run_sync(self._files.save, drill)

    async def _clean_up(self) -> None:
        """What an agent has left that ended in the middle."""
        known = await trio.to_thread.run_sync(self._files.all)
        for drill in known:
            if drill.state not in OVER:
                under_way = _UnderWay(drill)
                under_way.at_once = True
                judged = DrillState.INTERRUPTED if drill.state is DrillState.RUNNING else _of_commands(drill)
                under_way.set(state=judged, reason=_AGENT_ENDED)
                await self._finish(under_way, RoomProcess(os.path.join(self._base, drill.uuid)))


def _check(copies: Sequence[GroupCopy], request: DrillRequest) -> None:
    """Raises ReplicatorError: these copies cannot be tried now."""
    for copy in copies:
        name = copy.repset or copy.connection
        if copy.problem:
            raise ReplicatorError(f"the copy of {name}: {copy.problem}")
        if copy.restoring:
            raise ReplicatorError(f"the copy of {name} stands still already, for a restore or another drill")
        if copy.data_state != TargetDataState.OK:
            raise ReplicatorError(f"the copy of {name} is no state that its source was in: {copy.data_state}")
        if copy.synchronous and not request.duplicate:
            raise ReplicatorError(
                f"programs on the source wait for the copy of {name} (synchronous mount), so it must not"
                " stand still: copy it first (--copy)"
            )


def _point(copy: GroupCopy) -> DrillPoint:
    return DrillPoint(
        connection=copy.connection, repset=copy.repset, applied=copy.applied, time=copy.applied_until
    )


def variables_of(occasion: Occasion) -> dict[str, str]:
    """The environment in the room: there the copies are where the source has its data."""
    roots = tuple(msgspec.structs.replace(root, replica=root.source) for root in occasion.roots)
    return {
        **environment(msgspec.structs.replace(occasion, roots=roots)),
        "REPLICATOR_DRILL": "1",
    }


def _found(findings: Findings) -> dict[str, object]:
    changes = findings.changes
    return {
        "commands": tuple(_command(end) for end in findings.ends),
        "changed_files": changes.files,
        "changed_bytes": changes.data_bytes,
        "removed": changes.removed,
    }


def _command(end: CommandEnd) -> DrillCommand:
    exited = end.how == How.EXITED
    result = f"exit code {end.code}" if exited else f"{end.how}{f': {end.reason}' if end.reason else ''}"
    return DrillCommand(
        name=end.name,
        command=end.command,
        result=result,
        succeeded=end.succeeded,
        exit_code=end.code if exited else None,
        duration_s=end.duration_s,
        output=end.output,
        output_bytes=end.output_bytes,
    )


def _judged(findings: Findings) -> DrillState:
    if findings.problem:
        return DrillState.IMPOSSIBLE
    return DrillState.PASSED if all(end.succeeded for end in findings.ends) else DrillState.FAILED


def _of_commands(drill: Drill) -> DrillState:
    return DrillState.PASSED if all(c.succeeded for c in drill.commands) else DrillState.FAILED
