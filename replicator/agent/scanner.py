"""The scanner of a sender: works off what its flows' orders require, and queues pieces at their places.

One task. It reads in a thread, in small steps, because the stream waits at the open place of each step:
replication goes first, so a step ends after `limits.PART_BYTES` or `limits.STEP_FILES`.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from replicator import limits
from replicator.agent.flow import Flow, OpenTransfer, QueuedPiece
from replicator.agent.mirroring import MirrorRun
from replicator.mirror.order import name_change_in_directory, name_change_touches, parent_of
from replicator.mirror.pieces import Abandon, Finish, Part
from replicator.mirror.scan import Choice, Directory, Found, Transfer, join
from replicator.ops import Kind, Record
from replicator.world import World


class Scanner:
    """Reads what the orders of `flows` require, for the run that `run()` returns (None: no mirror)."""

    def __init__(
        self,
        world: World,
        flows: list[Flow],
        run: Callable[[], MirrorRun | None],
        may_scan: Callable[[], Awaitable[None]],
        wake_shipper: Callable[[], None],
    ) -> None:
        self._world = world
        self._flows = flows
        self._mirror_run = run
        self._may_scan = may_scan  # returns when a step is allowed: not paused, not too much in flight
        self._wake_shipper = wake_shipper
        self._wake = trio.Event()
        self._transfers = 0

    def wake(self) -> None:
        """There may be work."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake = trio.Event()
            for flow in self._flows:
                if flow.order.active and await self._bring_something(flow):
                    break
            else:
                self._wake_shipper()  # the mirror may be complete
                await self._wake.wait()

    async def _bring_something(self, flow: Flow) -> bool:
        """One item of what `flow` has to read.

        On cancellation nothing is lost: it is read again in the next session.
        """
        if flow.again:
            directory = next(iter(flow.again))
            names = sorted(flow.again.pop(directory))
            await self._bring_names(flow, directory, names)
            return True
        path = flow.order.next_work()
        if path is not None:
            try:
                await self._bring(flow, path)
            except trio.Cancelled:
                flow.order.read_later(path)
                raise
            return True
        if flow.times_again:
            await self._bring_times(flow, flow.times_again.pop())
            return True
        return False

    # --- one path, with all below it (its sub-directories later) ---

    async def _bring(self, flow: Flow, path: bytes) -> None:
        await self._may_scan()
        choice = self._choice(flow)
        place = flow.open_place()
        try:
            seen = await self._world.in_thread(partial(flow.source.look, path, choice))
        except BaseException:
            flow.abort_place()
            raise
        changes = flow.close_place()
        if isinstance(seen, Directory):
            if any(_unsure(r) or name_change_in_directory(r, path) for r in changes):
                flow.order.read_later(path)
                self._wake_shipper()
                return
            listed = Found(path, seen.listing, whole=True)
            self._queue(flow, QueuedPiece(place, [listed], seen.directories, seen.names))
            for directory in reversed(seen.directories):  # taken from the end: in sorted order
                flow.order.read_later(directory)
            await self._bring_names(flow, path, seen.names)
            return
        if seen.large and not _touched(changes, path):
            self._wake_shipper()
            await self._bring_large(flow, path)
        else:
            self._queue_valid(flow, place, [seen], changes)
        await self._bring_times(flow, parent_of(path))

    async def _bring_names(self, flow: Flow, directory: bytes, names: list[bytes]) -> None:
        index = 0
        while index < len(names):
            await self._may_scan()
            choice = self._choice(flow)
            place = flow.open_place()
            try:
                read = partial(
                    flow.source.read_names,
                    directory,
                    names,
                    index,
                    choice,
                    limits.PART_BYTES,
                    limits.STEP_FILES,
                )
                batch = await self._world.in_thread(read)
            except BaseException:
                flow.abort_place()
                self._leave(flow, directory, names[index:])
                raise
            changes = flow.close_place()
            index += len(batch)
            large = batch.pop() if batch and batch[-1].large else None
            self._queue_valid(flow, place, batch, changes)
            if large is not None:
                try:
                    await self._bring_large(flow, large.path)
                except BaseException:
                    self._leave(flow, directory, names[index:])
                    raise
        await self._bring_times(flow, directory)

    def _leave(self, flow: Flow, directory: bytes, names: list[bytes]) -> None:
        """These names are pending, and we were cancelled before we came to them."""
        for name in names:
            flow.read_again(join(directory, name))

    async def _bring_times(self, flow: Flow, directory: bytes) -> None:
        place = flow.open_place()
        try:
            times = await self._world.in_thread(partial(flow.source.directory_times, directory))
        except BaseException:
            flow.abort_place()
            flow.times_again.add(directory)
            raise
        changes = flow.close_place()
        # A later change of names journals the directory's mtime by itself.
        if times is not None and not any(
            _unsure(r) or name_change_in_directory(r, directory) for r in changes
        ):
            self._queue(flow, QueuedPiece(place, [Found(directory, times)]))
        else:
            self._wake_shipper()

    async def _bring_large(self, flow: Flow, path: bytes) -> None:
        self._transfers += 1
        opened = await self._world.in_thread(partial(flow.source.open_transfer, path, self._transfers))
        if isinstance(opened, Found):  # gone, or no longer a file: look again at it as a whole
            flow.order.require(path)
            return
        transfer = OpenTransfer(opened)
        flow.transfers.append(transfer)
        try:
            while not transfer.ended:
                await self._may_scan()
                if transfer.ended:
                    break
                await self._transfer_step(flow, transfer)
        except trio.Cancelled:
            flow.order.require(path, touched=opened.identity)
            raise
        finally:
            opened.close()

    async def _transfer_step(self, flow: Flow, transfer: OpenTransfer) -> None:
        path = transfer.transfer.path
        place = flow.open_place()
        try:
            found = await self._world.in_thread(partial(_read_parts, transfer.transfer))
        except BaseException:
            flow.abort_place()
            raise
        changes = flow.close_place()
        if transfer.ended:  # the shipper met a change of its name
            self._wake_shipper()
            return
        if _touched(changes, path) or isinstance(found, str):
            if isinstance(found, str):
                self._report(path, found)
                found = [Found(path)]
            else:
                flow.order.require(path)
                found = []
            if transfer.first_place >= 0:
                found = [Found(path, Abandon(path, transfer.transfer.number)), *found]
            transfer.ended = True
            self._queue(flow, QueuedPiece(place, found, transfer=transfer))
            return
        if transfer.first_place < 0:
            transfer.first_place = place
        size = sum(f.size for f in found)
        self._queue(flow, QueuedPiece(place, found, transfer=transfer, bytes=size))
        if isinstance(found[-1].entry, Finish):
            transfer.ended = True

    # --- queueing ---

    def _choice(self, flow: Flow) -> Choice:
        run = self._mirror_run()
        assert run is not None
        return Choice(
            run.compares,
            run.exact,
            flow.order.must_send_whole,
            flow.order.link_is_known,
            flow.links_seen,
            run.distrust_ctime_after_ns,
        )

    def _queue_valid(self, flow: Flow, place: int, batch: list[Found], changes: list[Record]) -> None:
        """Queue what is certain; require again what a change of names made uncertain."""
        valid: list[Found] = []
        for found in batch:
            if found.directory or (changes and _touched(changes, found.path)):
                flow.order.require(found.path)
            else:
                if found.problem:
                    self._report(found.path, found.problem)
                valid.append(found)
        self._queue(flow, QueuedPiece(place, valid, bytes=sum(f.size for f in valid if f.whole)))

    def _queue(self, flow: Flow, piece: QueuedPiece) -> None:
        if piece.found:
            flow.pieces.append(piece)
        self._wake_shipper()

    def _report(self, path: bytes, reason: str) -> None:
        run = self._mirror_run()
        if run is not None:
            run.problem(path, reason)


def _read_parts(transfer: Transfer) -> list[Found] | str:
    """Parts of about `limits.PART_BYTES` together; a reason if the file cannot be read."""
    found: list[Found] = []
    total = 0
    try:
        while total < limits.PART_BYTES and len(found) < limits.STEP_FILES:
            entry = transfer.next(limits.PART_BYTES - total)
            size = len(entry.data) if isinstance(entry, Part) else 0
            links = entry.links if isinstance(entry, Finish) else transfer.links
            found.append(Found(transfer.path, entry, transfer.identity, links, size, whole=True))
            total += size
            if isinstance(entry, Finish):
                break
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return found


def _unsure(record: Record) -> bool:
    return record.kind in (Kind.HOLE, Kind.DOUBT)


def _touched(changes: list[Record], path: bytes) -> bool:
    return any(_unsure(r) or name_change_touches(r, path) for r in changes)
