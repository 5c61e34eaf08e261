"""The scanner of a sender: works off what its flows' orders require, and queues pieces at their places.

One task. It reads in a thread, in small steps, because the stream waits at the open place of each step:
replication goes first, so a step ends after so many bytes or files as the pace allows.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from replicator import limits
from replicator.fs.many_states import AVAILABLE, sizes_of
from replicator.mirror.alike import without
from replicator.mirror.comparison import Claim
from replicator.mirror.local_copy import LocalTarget
from replicator.mirror.mirroring import MirrorRun
from replicator.mirror.names import names_changed
from replicator.mirror.order import name_change_in_directory, name_change_touches, parent_of
from replicator.mirror.pieces import Abandon, Alike, Files, Finish, Links, LinkTo, Part, Times
from replicator.mirror.scan import Choice, Directory, Found, Source, join
from replicator.ops import Kind, Record
from replicator.sender.amending import Amender
from replicator.sender.changes import Wake
from replicator.sender.flow import Flow, OpenTransfer, QueuedPiece
from replicator.sender.pace import Pace
from replicator.world import Clock, World


class Scanner:
    """Reads what the orders of `flows` require, for the run that `run()` returns (None: no mirror).

    Looks for work when `wake` rings, and rings the shipper when it has something.
    """

    def __init__(
        self,
        world: World,
        flows: list[Flow],
        run: Callable[[], MirrorRun | None],
        may_scan: Callable[[], Awaitable[None]],
        pace: Pace,
        *,
        wake: Wake,
        shipper: Wake,
    ) -> None:
        self._world = world
        self._pace = pace
        self._flows = flows
        self._mirror_run = run
        self._may_scan = may_scan  # returns when a step is allowed: not paused, not too much in flight
        self._wake = wake
        self._shipper = shipper
        self._amender = Amender(world, run, may_scan, self._queue, pace)
        self._transfers = 0
        self.local: LocalTarget | None = None  # the target, if it is on this host; of the session
        self.idle = True  # has nothing under way that is on no list

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.begin()
            self.idle = False
            for flow in self._flows:
                if flow.order.active and await self._bring_something(flow):
                    break
            else:
                self.idle = True
                self._pace.rest()
                self._shipper.ring()  # the mirror may be complete
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
        # Before whole paths: what is patched is known by its identity when other names of it are met.
        if await self._amender.bring_something(flow):
            return True
        path = flow.order.next_work()
        if path is not None:
            await self._bring(flow, path)
            return True
        if flow.times_again:
            await self._bring_times(flow, flow.times_again.pop())
            return True
        # Last, and when the stream has all that was read: it makes every path pending, which voids the
        # comparisons under way, and each of a file with more names would ask for all once more.
        if flow.order.names_unknown and flow.order.nothing_pending():
            flow.order.names_unknown = False
            flow.require_all(self._mirror_run())
            return True
        return False

    # --- one path, with all below it (its sub-directories later) ---

    async def _bring(self, flow: Flow, first: bytes) -> None:
        paths = [first, *flow.order.more_work(limits.STEP_PATHS - 1)]
        try:
            await self._may_scan()
            choice = self._choice(flow, many=True)
            place = flow.open_place()
            self._pace.step_begins()
            look = partial(_look, flow.source, paths, choice, self._world.clock)
            seen = await self._world.in_thread(look)
            self._pace.step_ends()
        except trio.Cancelled:
            flow.abort_place()
            self._read_later(flow, paths)
            raise
        changes = flow.close_place()
        self._read_later(flow, paths[len(seen) :])
        below: list[bytes] = []
        unfinished: list[Directory] = []
        large: list[bytes] = []
        parents: dict[bytes, None] = {}
        listed_in: dict[bytes, Times] = {}  # where a listing may have to make the directory
        for path, found in zip(paths, seen, strict=False):
            if isinstance(found, Directory):
                if _unsettled(changes, path):
                    below.append(path)
                    continue
                self._queue_directory(flow, path, place, found, changes)
                if path:
                    listed_in[found.parent_times.path] = found.parent_times
                below += found.directories
                if found.times is None:
                    unfinished.append(found)
            else:
                parents[parent_of(path)] = None
                if found.large and not _touched(changes, path):
                    large.append(path)
                else:
                    self._queue_valid(flow, place, [found], changes)
        changed = [Found(p, t) for p, t in listed_in.items() if flow.has(p) and not _unsettled(changes, p)]
        self._queue(flow, QueuedPiece(place, changed))
        self._read_later(flow, below)
        await self._bring_rest(flow, unfinished, large, list(parents))

    def _read_later(self, flow: Flow, paths: list[bytes]) -> None:
        for path in reversed(paths):  # taken from the end: in this order
            flow.order.read_later(path)

    async def _bring_rest(
        self, flow: Flow, unfinished: list[Directory], large: list[bytes], parents: list[bytes]
    ) -> None:
        """What one step could not."""
        try:
            while unfinished:
                directory = unfinished.pop()
                read = directory.read
                await self._bring_names(
                    flow, directory.listing.path, directory.names, large=read.large, many=True
                )
            while large:
                await self._bring_large(flow, large.pop())
            while parents:
                await self._bring_times(flow, parents.pop())
        except trio.Cancelled:
            for directory in unfinished:
                path, left = directory.listing.path, directory.read.large
                self._leave(flow, path, directory.names)
                if left is not None:
                    flow.read_again(left)
                flow.times_again.add(path)
            for path in large:
                flow.read_again(path)
            flow.times_again.update(parents)
            raise

    def _queue_directory(
        self, flow: Flow, path: bytes, place: int, seen: Directory, changes: list[Record]
    ) -> None:
        read = seen.read
        found = [Found(path, seen.listing, whole=True)]
        valid = self._valid(flow, read.found, changes)
        found += valid
        self._leave(flow, path, read.later)
        pending = [read.large.rpartition(b"/")[2]] if read.large is not None else []
        if seen.times is not None and flow.has(path):
            found.append(Found(path, seen.times))
        size = sum(map(_weight, valid))
        self._queue(flow, QueuedPiece(place, found, seen.directories, pending + seen.names, bytes=size))

    async def _bring_names(
        self,
        flow: Flow,
        directory: bytes,
        names: list[bytes],
        *,
        large: bytes | None = None,
        many: bool = False,
    ) -> None:
        """`large`: the name before these, a file of its own transfer. `many`: they may be claimed
        together.
        """
        index = 0
        try:
            while True:
                if large is not None:
                    await self._bring_large(flow, large)
                if index >= len(names):
                    break
                await self._may_scan()
                place = flow.open_place()
                self._pace.step_begins()
                choice = self._choice(flow, many=many)
                step = partial(flow.source.read_names, directory, names, index, choice)
                read = await self._world.in_thread(step)
                self._pace.step_ends()
                changes = flow.close_place()
                index += read.names
                large = read.large
                self._leave(flow, directory, read.later)
                self._queue_valid(flow, place, read.found, changes)
        except trio.Cancelled:
            flow.abort_place()
            self._leave(flow, directory, names[index:])
            flow.times_again.add(directory)
            raise
        await self._bring_times(flow, directory)

    def _leave(self, flow: Flow, directory: bytes, names: list[bytes]) -> None:
        """These names are pending, and we did not come to them."""
        for name in names:
            flow.read_again(join(directory, name))

    async def _bring_times(self, flow: Flow, directory: bytes) -> None:
        if not flow.has(directory):
            return
        place = flow.open_place()
        try:
            times = await self._world.in_thread(partial(flow.source.directory_times, directory))
        except BaseException:
            flow.abort_place()
            flow.times_again.add(directory)
            raise
        changes = flow.close_place()
        # A later change of names journals the directory's mtime by itself.
        if times is not None and not _unsettled(changes, directory):
            self._queue(flow, QueuedPiece(place, [Found(directory, times)]))
        else:
            self._shipper.ring()

    async def _bring_large(self, flow: Flow, path: bytes) -> None:
        """A file of its own transfer, part by part, each at a place of its own."""
        if flow.order.asks_begun() and await self._ask_begun(flow, path):
            return
        self._transfers += 1
        transfer = OpenTransfer(path, self._transfers)
        flow.transfers.append(transfer)
        try:
            while not transfer.ended:
                await self._may_scan()
                if not transfer.ended:
                    await self._transfer_step(flow, transfer)
        except trio.Cancelled:
            flow.read_again(path, transfer.read.identity if transfer.read is not None else None)
            raise
        finally:
            if transfer.read is not None:
                transfer.read.close()

    async def _ask_begun(self, flow: Flow, path: bytes) -> bool:
        """Ask whether the target has a part of it. False: it is not worth it."""
        run = self._mirror_run()
        distrust_ns = run.distrust_ctime_after_ns if run is not None else None
        try:
            await self._may_scan()
            place = flow.open_place()
            now_ns = self._world.clock.wall_ns()
            ask = partial(_ask_begun, flow.source, path, now_ns, distrust_ns)
            found = await self._world.in_thread(ask)
        except BaseException:
            flow.abort_place()
            flow.read_again(path)
            raise
        changes = flow.close_place()
        if found is None:
            return False
        if _touched(changes, path):
            flow.order.require(path)
            self._shipper.ring()
        else:
            self._widen(flow, found)
            self._queue(flow, QueuedPiece(place, [found]))
        return True

    async def _transfer_step(self, flow: Flow, transfer: OpenTransfer) -> None:
        path = transfer.path
        place = flow.open_place()
        try:
            found = await self._world.in_thread(
                partial(
                    _read_parts,
                    flow,
                    transfer,
                    self._pace.part_bytes,
                    self._world.clock.wall_ns(),
                    self.local,
                )
            )
        except BaseException:
            flow.abort_place()
            raise
        changes = flow.close_place()
        if transfer.ended:  # the shipper met a change of its name
            self._shipper.ring()
            return
        if _touched(changes, path) or transfer.read is None:
            flow.order.require(path)
            found = []
        elif isinstance(found, str):
            self._report(path, found)
            found = [Found(path)]
        if transfer.read is not None and found and found[-1].entry is not None:
            size = sum(len(f.entry.data) for f in found if isinstance(f.entry, Part))
            self._widen(flow, found[0])
            self._queue(flow, QueuedPiece(place, found, transfer=transfer, bytes=size))
            transfer.started = True
            transfer.ended = isinstance(found[-1].entry, Finish)
            return
        transfer.ended = True
        if transfer.started:
            found = [Found(path, Abandon(path, transfer.number)), *found]
        elif transfer in flow.transfers:
            flow.transfers.remove(transfer)
        self._queue(flow, QueuedPiece(place, found, transfer=transfer))

    # --- queueing ---

    def _choice(self, flow: Flow, *, many: bool) -> Choice:
        run = self._mirror_run()
        assert run is not None
        many = many and AVAILABLE and (run.continued or run.comparison.claim is Claim.SIZE_AND_TIME)
        return Choice(
            run.comparison,
            run.exact,
            run.lists_names or (run.exact and bool(run.orphans)),
            flow.order.must_send_whole,
            flow.order.was_brought,
            flow.order.may_compare,
            flow.order.link_is_known,
            flow.links_seen,
            run.distrust_ctime_after_ns,
            flow.order.unsure_among,
            run.continued,
            many and flow.order.may_claim_many(),
            AVAILABLE and not run.comparison.blocks,
            run.comparison.claim is Claim.SIZE_AND_TIME and not run.some_paths,
            flow.order.may_be_elsewhere,
            self._pace.part_bytes,
            self._pace.step_files,
        )

    def _queue_valid(self, flow: Flow, place: int, batch: list[Found], changes: list[Record]) -> None:
        valid = self._valid(flow, batch, changes)
        self._queue(flow, QueuedPiece(place, valid, bytes=sum(map(_weight, valid))))

    def _valid(self, flow: Flow, batch: list[Found], changes: list[Record]) -> list[Found]:
        """What is certain of it; what a change of names made uncertain is required again."""
        valid: list[Found] = []
        for found in batch:
            if isinstance(found.entry, Alike | Files | Links):
                if (certain := self._certain(flow, found, found.entry, changes)) is not None:
                    self._widen(flow, certain)
                    valid.append(certain)
            elif found.directory or (changes and _touched(changes, found.path)):
                flow.order.require(found.path)
            else:
                if found.problem:
                    self._report(found.path, found.problem)
                self._widen(flow, found)
                valid.append(found)
        return valid

    def _certain(
        self, flow: Flow, found: Found, entry: Alike | Files | Links, changes: list[Record]
    ) -> Found | None:
        """The same for what speaks of many."""
        if not changes:
            return found
        if any(_unsure(r) or name_change_touches(r, entry.path) for r in changes):
            # Each of them: they may be pending by themselves.
            for name in entry.names:
                flow.order.require(join(entry.path, name))
            return None
        changed = set().union(*(names_changed(r, entry.path) or () for r in changes))
        if not isinstance(entry, Alike):
            if changed.isdisjoint(entry.names):
                return found
            for name in entry.names:
                flow.order.require(join(entry.path, name))
            return None
        left, kept = without(entry, changed)
        for name in changed.intersection(entry.names):
            flow.order.require(join(entry.path, name))
        if left is None:
            return None
        size = sum(sizes_of(left.states))
        return found._replace(entry=left, size=size, inodes=[found.inodes[index] for index in kept])

    def _queue(self, flow: Flow, piece: QueuedPiece) -> None:
        if piece.found:
            flow.pieces.append(piece)
        self._shipper.ring()

    def _widen(self, flow: Flow, found: Found) -> None:
        """A hard-linked file in a run of a few paths: its other names are not known, and replacing it here
        would part it from them on the target.

        So everything is compared.
        """
        several = found.linked or (found.links > 1 and not isinstance(found.entry, LinkTo))
        if several and not flow.all_required:
            flow.require_all(self._mirror_run())

    def _report(self, path: bytes, reason: str) -> None:
        run = self._mirror_run()
        if run is not None:
            run.problem(path, reason)


def _weight(found: Found) -> int:
    """What it counts of what may be on its way: bytes sent, or the time that it takes the target."""
    if isinstance(found.entry, Alike):
        return len(found.entry.names) * limits.CLAIM_WEIGHT_BYTES
    if isinstance(found.entry, Files | Links):
        size = found.size if found.whole else 0
        return size + len(found.entry.names) * limits.FILE_WEIGHT_BYTES
    return found.size if found.whole else 0


def _look(source: Source, paths: list[bytes], choice: Choice, clock: Clock) -> list[Directory | Found]:
    """What is at these paths, from the first on: as many as one step allows."""
    seen: list[Directory | Found] = []
    size = 0
    until_ns = clock.monotonic_ns() + limits.STEP_PATHS_NS
    for path in paths:
        found = source.look(path, choice)
        seen.append(found)
        for one in found.read.found if isinstance(found, Directory) else [found]:
            size += one.size if one.whole else 0
        if size >= choice.step_bytes or clock.monotonic_ns() >= until_ns:
            break
    return seen


def _ask_begun(source: Source, path: bytes, now_ns: int, distrust_ns: int | None) -> Found | None:
    try:
        return source.ask_begun(path, now_ns, distrust_ns)
    except OSError:
        return None  # who reads it says why


def _read_parts(
    flow: Flow, transfer: OpenTransfer, part_bytes: int, now_ns: int, local: LocalTarget | None
) -> list[Found] | str:
    """Parts of about `part_bytes` together; a reason if the file cannot be read; nothing if it is no
    file now.

    The first call opens it: it has to be what has the name at the place of that step. `local`: where it
    might be copied to instead.
    """
    found: list[Found] = []
    total = 0
    try:
        if transfer.read is None:
            transfer.read = flow.source.open_transfer(transfer.path, transfer.number, now_ns)
            if transfer.read is None:
                return []
            if local is not None and flow.copies_locally:
                offered = local.offer(flow.index, transfer.path, transfer.number)
                flow.copies_locally = offered is not None and transfer.read.copy_to(offered)
        read = transfer.read
        while total < part_bytes and len(found) < limits.STEP_FILES:
            entry = read.next(part_bytes - total)
            size = len(entry.data) + read.copied if isinstance(entry, Part) else 0
            links = entry.links if isinstance(entry, Finish) else read.links
            found.append(Found(transfer.path, entry, read.identity, links, size, whole=True))
            total += size
            if isinstance(entry, Finish):
                break
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return found


def _unsure(record: Record) -> bool:
    return record.kind in (Kind.HOLE, Kind.DOUBT)


def _unsettled(changes: list[Record], directory: bytes) -> bool:
    return any(_unsure(r) or name_change_in_directory(r, directory) for r in changes)


def _touched(changes: list[Record], path: bytes) -> bool:
    return any(_unsure(r) or name_change_touches(r, path) for r in changes)
