"""The data part of taking over: copies stand still, are promoted, and are opened for programs.

    report = await promotions.look(order)      # nothing is changed
    report = await promotions.drain(order)     # undo: `release`
    record = await promotions.promote(order)   # no undo: it is durable, or nothing has happened
    await promotions.open(record.group)        # done again after a crash, as often as it takes

Every step may be done again: what was done already stays as it is. `record` says on which side of the
point of no return a crashed take-over is. `opening.py` opens.
"""

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.failover.opening import Opening
from replicator.agent.mounts import Mounts
from replicator.agent.state import load_document, save_document
from replicator.agent.supervisor import Child
from replicator.errors import ReplicatorError
from replicator.failovers import CopyFork, CopyReport, Promotion, Report, TakeOver
from replicator.status import TargetDataState, TargetStatus

_ROW_SHIFT = 40


class NotReadyError(ReplicatorError):
    """A copy cannot be promoted, or not unless a person forces it."""


async def _nothing(record: Promotion) -> None:
    pass


class Promotions:
    """Of one agent: of the copies that it keeps, and, in a failback, of those of return connections.
    `before_opening`: what else ends with a promotion; called again as often as `open` is.
    """

    def __init__(self, core: Core, mounts: Mounts, connections: Connections) -> None:
        self.before_opening: Callable[[Promotion], Awaitable[None]] = _nothing
        self._core = core
        self.opening = self._opening = Opening(core, mounts)

    def record(self, group: str) -> Promotion | None:
        """The last one of the group that this agent made, or was told of. It is durable."""
        return load_document(self._core.home.promotion(group), Promotion)

    async def look(self, order: TakeOver) -> Report:
        """The copies as they are, and the epoch that a promotion would reach. Changes nothing."""
        copies = await self._look_at_all(order)
        epoch = order.epoch or 1 + max([order.parent_epoch, *(copy.epoch for copy in copies)])
        return Report(group=order.group, epoch=epoch, copies=tuple(copies))

    # --- drain ---

    async def drain(self, order: TakeOver) -> Report:
        """No session of the source is accepted any more (it is told why), what has arrived is applied for at
        most `drain_s`, then the copies are durable and stand still, also over restarts, until `release`.

        What is left then is in the report. Raises NotReadyError, with nothing changed, if a copy is in no
        state that its source was in, unless `forced`; and if one does not come to a stop.
        """
        began_s = trio.current_time()
        report = await self.look(order)
        if report.problems and not order.forced:
            raise NotReadyError("; ".join(report.problems))
        missing = [c.problem for c in report.copies if self._child(c.connection) is None]
        if missing:
            raise NotReadyError("; ".join(missing))
        try:
            await _at_once(order.copies, lambda uuid: self._drain(uuid, order))
        except ReplicatorError:
            await self.release(order)
            raise
        copies = await self._look_at_all(order)
        kept = {copy.connection: copy.problem for copy in report.copies}
        copies = [msgspec.structs.replace(copy, problem=kept[copy.connection]) for copy in copies]
        took_s = trio.current_time() - began_s
        return msgspec.structs.replace(report, copies=tuple(copies), took_s=took_s)

    async def _drain(self, uuid: str, order: TakeOver) -> None:
        child = self._receiver(uuid)
        await child.call("shut", group=order.group)
        with trio.move_on_after(order.drain_s):
            while _waits(await child.call("status")):  # noqa: ASYNC110  # another process
                await trio.sleep(limits.DRAIN_LOOK_S)
        await child.call("restore_begins", limits.RESTORE_CALL_S, restore=order.group)

    async def release(self, order: TakeOver) -> None:
        """Undo `drain`: the copies go on with their source. Does nothing once they are promoted."""
        for uuid in order.copies:
            child = self._child(uuid)
            if child is not None:
                await child.wait_running()
                await child.call("reopen", group=order.group)

    # --- promote ---

    async def promote(self, order: TakeOver) -> Promotion:
        """The record is durable here, then the receivers have its epoch: sources of older ones are refused
        with it. `order.epoch` as `drain` has reported it. Raises NotReadyError: a copy does not stand still,
        or has a higher epoch; nothing has happened then. Once the record is durable nothing is raised for
        single receivers: `open` tells them again.
        """
        known = self.record(order.group)
        if known is not None and known.epoch >= order.epoch:
            if (known.epoch, known.owner) != (order.epoch, self._core.identity.uuid):
                raise NotReadyError(f"{known.owner_name} owns the group already (epoch {known.epoch})")
            record = known
        else:
            forks = [await self._fork(uuid, order) for uuid in order.copies]
            record = Promotion(
                group=order.group,
                epoch=order.epoch,
                parent_epoch=order.parent_epoch,
                owner=self._core.identity.uuid,
                owner_name=self._core.identity.name,
                copies=tuple(forks),
                reason=order.reason,
                time=time.time(),
                vote=order.vote,
            )
            await self.keep(record)
        for copy in record.copies:
            try:
                await self._opening.tell_receiver(record, copy.connection)
            except ReplicatorError as error:
                text = f"copy {copy.connection} was not told that it is promoted: {error}"
                self._core.events.add(events.ADVICE, text=text)
        return record

    async def keep(self, record: Promotion) -> None:
        """Make a record durable that this agent makes, or is told of; never instead of a later one."""
        known = self.record(record.group)
        if known is None or known.epoch < record.epoch:
            path = self._core.home.promotion(record.group)

            def save() -> None:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                save_document(path, record)

            await trio.to_thread.run_sync(save)

    async def _fork(self, uuid: str, order: TakeOver) -> CopyFork:
        status = await self._receiver(uuid).call("status")
        name = status["repset"] or uuid
        if status["restoring"] != order.group or status["target_status"] != TargetStatus.PAUSED:
            raise NotReadyError(f"{name}: the copy does not stand still for this any more")
        if status["epoch"] >= order.epoch:
            raise NotReadyError(f"{name}: the copy is of epoch {status['epoch']} already")
        return CopyFork(
            connection=uuid,
            parent_epoch=status["epoch"],
            marks=msgspec.convert(status["positions"], dict[str, tuple[int, int]]),
            applied_until=status["applied_until"],
            exact=_is_exact(status),
        )

    # --- open ---

    async def open(self, group: str) -> Report:
        """Programs may write: locks end, each root is mounted over itself and captured, and its return
        connection tracks changes from the first one on. Raises ReplicatorError: to be done again.
        """
        began_s = trio.current_time()
        record = self.record(group)
        if record is None or record.owner != self._core.identity.uuid:
            raise NotReadyError("this agent does not own the group")
        await self.before_opening(record)
        for copy in record.copies:
            await self._opening.open(record, copy.connection)
        order = TakeOver(group=group, copies=tuple(c.connection for c in record.copies), epoch=record.epoch)
        report = await self.look(order)
        return msgspec.structs.replace(report, took_s=trio.current_time() - began_s)

    # --- what is there ---

    def _child(self, uuid: str) -> Child | None:
        return self._core.children.receiver(uuid)

    def _receiver(self, uuid: str) -> Child:
        child = self._child(uuid)
        if child is None:
            raise NotReadyError(f"{self._core.identity.name} keeps no copy of connection {uuid}")
        return child

    async def _look_at_all(self, order: TakeOver) -> list[CopyReport]:
        found: dict[str, CopyReport] = {}

        async def look(uuid: str) -> None:
            found[uuid] = await self._look(uuid, order)

        await _at_once(order.copies, look)
        return [found[uuid] for uuid in order.copies]

    async def _look(self, uuid: str, order: TakeOver) -> CopyReport:
        try:
            status = await self._receiver(uuid).call("status")
        except ReplicatorError as error:
            return CopyReport(connection=uuid, problem=str(error))
        received, applied = status["received"], status["applied"]
        left = _waits(status)
        return CopyReport(
            connection=uuid,
            repset=status["repset"],
            source_name=status["source_name"],
            places=tuple(status["targets"]),
            data_state=status["target_data_state"],
            epoch=status["epoch"],
            received=received,
            applied=applied,
            left_operations=sum(_between(applied.get(k, 0), n) for k, n in received.items()) if left else 0,
            left_bytes=status["queued_bytes"] if left else 0,
            applied_until=status["applied_until"],
            problem=_problem(status, order),
        )


def _between(applied: int, received: int) -> int:
    """Operations; of those that were in a former row of the journal nobody knows how many they were."""
    if applied >> _ROW_SHIFT != received >> _ROW_SHIFT:
        return 1
    return max(received - applied, 0)


def _waits(status: dict[str, Any]) -> bool:
    """Whether something has arrived that is not applied."""
    return bool(status["queued_bytes"]) or status["received"] != status["applied"]


def _is_exact(status: dict[str, Any]) -> bool:
    """What others have changed is known, and goes along: see `Opening`."""
    state = status["target_data_state"]
    return state == TargetDataState.OK or bool(status["exact_but_drifted"])


def _problem(status: dict[str, Any], order: TakeOver) -> str:
    """Why it cannot be promoted unless a person forces it."""
    name, state, how = status["repset"] or status["connection_uuid"], status["target_data_state"], ""
    promotion = status["promotion"]
    if promotion is not None and promotion["group"] == order.group and promotion["epoch"] == status["epoch"]:
        return ""  # it is
    if status["restoring"] not in ("", order.group):
        how = "is being restored from"
    elif state != TargetDataState.OK:
        drifted = (
            "others have changed it" if status["exact_but_drifted"] else "no state that its source was in"
        )
        how = f"is {state}: {drifted}"
    elif status["restoring"] != order.group and status["target_status"] != TargetStatus.OK:
        reason = status["target_status_reason"]
        how = f"is {status['target_status']}" + (f": {reason}" if reason else "")
    return f"{name}: the copy {how}" if how else ""


async def _at_once(items: tuple[str, ...], work: Callable[[str], Awaitable[None]]) -> None:
    """For all of them; raises the first ReplicatorError when all have ended."""
    errors: list[ReplicatorError] = []

    async def one(item: str) -> None:
        try:
            await work(item)
        except ReplicatorError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)
    if errors:
        raise errors[0]
