"""What a mirror run puts into the stream of its sender: its beginning, pieces at their places, its end.

All between two checkpoints: `out` are the frames that are sent next.
"""

from array import array

import msgspec

from replicator import limits
from replicator.mirror.comparison import Claim
from replicator.mirror.mirroring import MirrorRun
from replicator.mirror.order import Order, name_change_touches
from replicator.mirror.patches import PatchRequest
from replicator.mirror.pieces import (
    Abandon,
    Alike,
    Batch,
    Begun,
    Digests,
    Files,
    Finish,
    Links,
    LinkTo,
    Listing,
    Names,
    Part,
    Patch,
    Patched,
    Same,
    Times,
    encode_batch,
)
from replicator.mirror.scan import Found, join
from replicator.net.frames import MirrorBegin, MirrorEnd, PieceBatch
from replicator.ops import Identity, Record, shown
from replicator.sender.flow import Flow, OpenTransfer, QueuedPiece
from replicator.sender.mirrors import Mirrors
from replicator.sender.resync import Resync
from replicator.sender.scanner import Scanner
from replicator.sender.sent_pieces import NO_WORK, SentPieces, Work
from replicator.sender.shipments import Shipment, Totals
from replicator.states import MirrorEvent


class MirrorStream:
    """See the module."""

    def __init__(
        self,
        flows: list[Flow],
        mirrors: Mirrors,
        scanner: Scanner,
        sent: SentPieces,
        resync: Resync,
        totals: Totals,
    ) -> None:
        self._flows = flows
        self._mirrors = mirrors
        self._scanner = scanner
        self._sent = sent
        self._resync = resync
        self._totals = totals

    # --- beginning and end ---

    def announce(self, out: list[Shipment]) -> None:
        """If a run is under way, the target hears of it before anything of it, and before what needs it."""
        run = self._mirrors.run
        if run is None or self._sent.announced == run.run_id:
            return
        self._sent.announced = run.run_id
        self._sent.clear()
        out.append(Shipment(MirrorBegin(run.run_id, run.kind_told, run.orphan_mode, run.continued), None))

    def finish(self, run: MirrorRun, out: list[Shipment]) -> None:
        """Nothing can be shipped now: is the mirror complete?"""
        if run.stopped:
            self._end(run, False, out)
            return
        if not self._scanner.idle or any(f.pieces or not f.nothing_to_read() for f in self._flows):
            run.happen(MirrorEvent.MORE)
            return
        if any(f.position.sequence < f.order.scanned_head for f in self._flows):
            return
        run.happen(MirrorEvent.ALL_SENT)
        if self._sent:
            return
        assert all(f.order.nothing_pending() for f in self._flows), "a pending path nobody would bring"
        self._end(run, run.problem_count == 0 and not run.partial, out)

    def _end(self, run: MirrorRun, complete: bool, out: list[Shipment]) -> None:
        out.append(Shipment(MirrorEnd(run.run_id, complete, run.drift, not run.orphans_stopped), None))
        for flow in self._flows:
            flow.forget_mirror()
        self._sent.clear()
        self._sent.announced = ""
        self._resync.run_ends(complete)

    # --- pieces ---

    def emit(self, flow: Flow, out: list[Shipment]) -> None:
        """The first of the pieces that wait has come to its place, and with it those that stand there, too.

        Claims that meanwhile cannot be trusted are read again instead.
        """
        pieces = flow.pieces
        piece = pieces.popleft()
        before = self._done
        entries, weight = self._entries(flow, piece), piece.bytes
        while entries and piece.patch is None and pieces and pieces[0].patch is None:
            if pieces[0].place != piece.place or weight + pieces[0].bytes > limits.PART_BYTES:
                break
            piece = pieces.popleft()
            entries += self._entries(flow, piece)
            weight += piece.bytes
        if entries:
            done = self._done
            work = Work(done.files - before.files, done.bytes - before.bytes)
            self._send(flow, entries, out, weight, piece.patch, work)
        self._mirrors.wake_scanner()  # there is room for another piece, or something to read again

    @property
    def _done(self) -> Work:
        run = self._mirrors.run
        return Work(run.done_files, run.done_bytes) if run is not None else NO_WORK

    def _entries(self, flow: Flow, piece: QueuedPiece) -> list[Found]:
        """What of a piece enters the stream."""
        order = flow.order
        entries: list[Found] = []
        if not order.active or (piece.patch is not None and not order.may_patch(piece.patch)):
            return entries
        for found in piece.found:
            entry = found.entry
            if isinstance(entry, Same | LinkTo) and not self._still_holds(order, entry, found.identity):
                flow.read_again(found.path, found.identity)
                continue
            if isinstance(entry, Alike) and not self._still_alike(flow, entry, found):
                continue
            if isinstance(entry, Links):
                found = self._known_links(flow, entry, found)
                entry = found.entry
                if entry is None:
                    continue
            self._enter(flow, piece, found, piece.transfer)
            if isinstance(entry, Begun):
                number = self._mirrors.ask_begun(flow, found.path, found.identity, found.links)
                found = found._replace(entry=msgspec.structs.replace(entry, number=number))
            if entry is not None:
                entries.append(found)
        return entries

    def _still_holds(self, order: Order, entry: Same | LinkTo, identity: Identity) -> bool:
        """Whether what the scanner knew when it chose not to send the content is true at this place."""
        if isinstance(entry, LinkTo):
            return order.link_is_known(identity)
        if entry.claim in (
            Claim.CONTENT,
            Claim.NOTHING,
            Claim.ELSEWHERE,
        ):  # whatever was changed since, they speak of content
            return entry.claim is Claim.ELSEWHERE or order.may_compare(identity)
        run = self._mirrors.run
        claims = run is not None and (run.comparison.believes_attributes or run.continued)
        return (claims or order.was_brought(identity)) and not order.must_send_whole(identity, entry.path)

    def _still_alike(self, flow: Flow, entry: Alike, found: Found) -> bool:
        """The same for a claim about many: those that cannot be trusted are read again besides."""
        order = flow.order
        if not order.may_claim_many():
            flow.lost(found)
            return False
        for index in order.unsure_among(found.inodes):
            flow.read_again(join(entry.path, entry.names[index]), Identity(found.inodes[index], 0))
        return True

    def _known_links(self, flow: Flow, entry: Links, found: Found) -> Found:
        """What of it the target has under another name; the rest is read again. No entry: nothing."""
        order = flow.order
        kept: list[int] = []
        for index, inode in enumerate(found.inodes):
            if order.link_is_known(Identity(inode, 0)):
                kept.append(index)
            else:
                flow.read_again(join(entry.path, entry.names[index]), Identity(inode, 0))
        if len(kept) == len(entry.names):
            return found
        if not kept:
            return Found(found.path)
        inodes = array("Q", [found.inodes[index] for index in kept])
        left = Links(entry.path, tuple(entry.names[index] for index in kept), inodes.tobytes())
        size = found.size * len(kept) // len(entry.names)
        return found._replace(entry=left, inodes=inodes.tolist(), size=size)

    def _enter(self, flow: Flow, piece: QueuedPiece, found: Found, transfer: OpenTransfer | None) -> None:
        """Account for one entry that enters the stream."""
        order, entry = flow.order, found.entry
        run = self._mirrors.run
        assert run is not None
        if isinstance(entry, Listing):
            order.directory_sent(found.path, piece.directories, piece.names)
        elif isinstance(entry, Part):
            if entry.first:
                assert transfer is not None
                transfer.sent = True
                order.file_sent(found.path, found.identity, whole=True, links=found.links, complete=False)
            if transfer is not None:
                transfer.counted_bytes += found.size
            run.done_bytes += found.size
            run.sent_bytes += len(entry.data)
            run.skipped_bytes += found.size - len(entry.data)  # copied within this host
        elif isinstance(entry, Finish):
            if transfer is not None:
                transfer.counted_bytes = 0
            order.transfer_sent(found.path, found.identity)
            run.done_files += 1
            if transfer in flow.transfers:
                flow.transfers.remove(transfer)
        elif isinstance(entry, Abandon):
            assert transfer is not None
            run.done_bytes -= transfer.counted_bytes
            _void(flow, transfer)
        elif isinstance(entry, Times):
            return
        elif isinstance(entry, Files):
            count = order.many_sent(found.path, entry.names, found.inodes, found.linked)
            size = found.size if count == len(entry.names) else found.size * count // len(entry.names)
            run.found_whole(size, count)
            run.done_files += count
            run.done_bytes += size
            run.sent_bytes += found.size
            run.current = shown(found.path)
        elif isinstance(entry, Links):
            order.many_linked(found.path, entry.names, found.inodes)
            run.found_whole(found.size, len(entry.names))
            run.done_files += len(entry.names)
            run.done_bytes += found.size
            run.skipped_bytes += found.size
            run.current = shown(found.path)
        elif isinstance(entry, Alike):
            order.many_claimed(found.path, entry.names[-1])
            run.found_whole(found.size, len(entry.names))
            run.done_files += len(entry.names)
            run.done_bytes += found.size
            run.skipped_bytes += found.size
            run.current = shown(found.path)
        elif isinstance(entry, Same) and entry.claim in (Claim.NOTHING, Claim.ELSEWHERE):
            order.file_sent(found.path, found.identity, whole=True, links=found.links, complete=False)
            run.found_whole(found.size)
            elsewhere = entry.claim is Claim.ELSEWHERE
            if elsewhere:
                order.asks_elsewhere(found.identity)
            self._mirrors.compare(flow, found.path, found.identity, found.links, elsewhere=elsewhere)
        elif isinstance(entry, Begun):
            order.file_sent(found.path, found.identity, whole=True, links=found.links, complete=False)
            run.found_whole(found.size)
        elif isinstance(entry, Digests):
            data_bytes = sum(length for _, length in entry.extents)
            run.compared(max(min(entry.end, entry.size) - entry.start, 0), data_bytes)
            run.current = shown(found.path)
        elif isinstance(entry, Names):
            order.names_sent(found.path)
        elif isinstance(entry, Patch):
            run.patched(sum(length for _, length in entry.holes), found.size)
            run.current = shown(found.path)
        elif isinstance(entry, Patched):
            assert piece.patch is not None
            order.patch_sent(piece.patch, found.links)
            run.done_files += 1
        else:
            again = order.was_brought(found.identity)
            identity = found.identity if entry is not None else None
            right = found.whole or found.digested
            order.file_sent(found.path, identity, whole=right, links=found.links, complete=not found.digested)
            if entry is None or (again and found.links == 1):
                return  # nothing, or moved meanwhile and counted before
            run.found_whole(found.size)
            run.done_files += 1
            run.done_bytes += found.size
            if found.whole:
                run.sent_bytes += found.size
            else:
                run.skipped_bytes += found.size
            if found.digested:
                run.compared_bytes += found.size
            run.current = shown(found.path)

    def abandon(self, flow: Flow, record: Record, out: list[Shipment]) -> None:
        """A name on the way to a file that is being transferred changes here: what was sent of it is void."""
        for transfer in list(flow.transfers):
            if transfer.sent and name_change_touches(record, transfer.path):
                flow.end_transfer(transfer)
                if self._mirrors.run is not None:
                    self._mirrors.run.done_bytes -= transfer.counted_bytes
                _void(flow, transfer)
                self._send(flow, [Found(transfer.path, Abandon(transfer.path, transfer.number))], out)

    def _send(
        self,
        flow: Flow,
        entries: list[Found],
        out: list[Shipment],
        weight: int = 0,
        patch: PatchRequest | None = None,
        work: Work = NO_WORK,
    ) -> None:
        number = self._sent.next_number()
        data = encode_batch(Batch(number, flow.index, tuple(f.entry for f in entries if f.entry is not None)))
        size = sum(map(len, data))
        out.append(Shipment(PieceBatch(number), data))
        # Digests are small, and what the target has to do for them is not.
        self._sent.add(number, max(size, weight), flow, entries, patch, work)
        self._totals.sent_bytes += size
        self._totals.mirror_bytes += size


def _void(flow: Flow, transfer: OpenTransfer) -> None:
    assert transfer.read is not None
    flow.order.void(transfer.read.identity)
    flow.links_seen.discard(transfer.read.identity)
    if transfer in flow.transfers:
        flow.transfers.remove(transfer)
