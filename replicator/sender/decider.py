"""What a sender does with each record of a journal: ship it, ship another in its stead, or skip it, and then
perhaps bring what it changed.

By the rules of the set, and by what a mirror run has brought and will bring. All between two checkpoints: a
decision has its effect on the order of its flow at once, and `out` are the frames that go before the record.
"""

import logging

from replicator.mirror.mirroring import MirrorRun
from replicator.mirror.order import Decision
from replicator.mirror.requirements import concerns, require_dirty
from replicator.ops import NAME_KINDS, RENAME_EXCHANGE, TWO_PATH_KINDS, Flag, Kind, Record
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap
from replicator.sender.flow import Flow
from replicator.sender.mirror_stream import MirrorStream
from replicator.sender.mirrors import Mirrors
from replicator.sender.root_guard import RootChanged, root_change
from replicator.sender.shipments import Shipment

logger = logging.getLogger(__name__)


class Decider:
    """See the module."""

    def __init__(self, mirrors: Mirrors, stream: MirrorStream) -> None:
        self._mirrors = mirrors
        self._stream = stream

    def decide(self, flow: Flow, record: Record, out: list[Shipment]) -> Decision | Record:
        """What to do with one record; a `Record` is to be shipped in its stead. Raises RootChanged."""
        kind = record.kind
        if kind == Kind.HOLE:
            self._recover_lost(flow, record, out)
            return Decision.SKIP
        if kind == Kind.DOUBT:
            named = (record.path, record.path2) if record.path2 else (record.path,)
            self._recover(flow, [p for p in named if flow.filter.may_contain(p)], out)
            return Decision.SKIP
        derived = self._filtered(flow, record, out)
        if derived is not None:
            return derived
        if not flow.order.active:
            return Decision.SHIP
        if kind in NAME_KINDS:
            self._stream.abandon(flow, record, out)
        decision = flow.order.ship(record)
        if decision is Decision.SKIP and record.flags & Flag.MULTILINK and not flow.all_required:
            # This name may be gone before it is brought; the others are not known, and lack the operation.
            flow.require_all(self._mirrors.run)
            self._mirrors.wake_scanner()
        elif kind in NAME_KINDS:
            self._mirrors.wake_scanner()
        return decision

    def _filtered(self, flow: Flow, record: Record, out: list[Shipment]) -> Decision | Record | None:
        """What the set's rules say: None to go on, else the answer."""
        rules = flow.filter
        if not rules.everything_below(b""):
            is_directory = bool(record.flags & Flag.DIRECTORY)
            inside = rules.may_contain(record.path) if is_directory else rules.includes(record.path)
        else:
            is_directory = False
            inside = True
        if record.kind in NAME_KINDS and inside and (change := root_change(flow, record)):
            raise RootChanged(change)
        if inside and (record.kind not in TWO_PATH_KINDS or rules.everything_below(b"")):
            return None
        if record.kind not in TWO_PATH_KINDS:
            return Decision.SKIP
        inside2 = rules.may_contain(record.path2) if is_directory else rules.includes(record.path2)
        if not inside and not inside2:
            return Decision.SKIP
        if record.kind == Kind.LINK:
            if inside and inside2:
                return None
            if inside2:  # LK-10: from outside: its content has to be read
                self._recover(flow, [record.path2], out, exact=False)
            return Decision.SKIP
        if record.arg0 & RENAME_EXCHANGE:
            if inside and inside2 and not is_directory:
                return None
            paths = [p for p, i in ((record.path, inside), (record.path2, inside2)) if i]
            self._recover(flow, paths, out)
            return None if inside and inside2 else Decision.SKIP
        if inside and inside2:
            whole = rules.everything_below(record.path) and rules.everything_below(record.path2)
            if is_directory and not whole:
                self._recover(flow, [record.path2], out)  # the rules below may differ at the new place
            return None
        if inside:  # LK-04, LK-13: moved out of the set
            return record._replace(kind=Kind.REMOVE_TREE, path2=b"", payload=b"", arg0=0)
        self._recover(flow, [record.path2], out)  # moved into the set
        return record._replace(kind=Kind.REMOVE_TREE, path=record.path2, path2=b"", payload=b"", arg0=0)

    def _recover(self, flow: Flow, paths: list[bytes], out: list[Shipment], *, exact: bool = True) -> None:
        """Bring these paths. What is shipped next needs a target that knows of it."""
        if paths:
            self._recovering(flow, out, exact=exact)
            for path in paths:
                flow.order.require(path)

    def _recovering(self, flow: Flow, out: list[Shipment], *, exact: bool = True) -> MirrorRun:
        run = self._mirrors.recovering(flow, exact=exact)
        self._stream.announce(out)
        return run

    def _recover_lost(self, flow: Flow, hole: Record, out: list[Shipment]) -> None:
        """Bring what a HOLE says was lost; everything if it does not say."""
        dirty = None
        if len(hole.payload):
            try:
                dirty = DirtyMap.decode(hole.payload)
            except CorruptDirtyMap as error:
                logger.warning("a loss in the journal: everything is compared: %s", error)
        if dirty is not None and not concerns(dirty, flow.filter):
            return
        run, order = self._recovering(flow, out), flow.order
        self._mirrors.distrust_since(flow.passed_wall_ns, dirty is None)
        order.operations_lost()
        flow.links_seen.clear()
        for transfer in flow.transfers:  # some of it may have been read before
            if transfer.read is not None:
                order.void(transfer.read.identity)
        if dirty is None:
            run.bring_everything()
            for root in flow.filter.roots:
                order.require(root)
        else:
            with run.expecting(order):
                require_dirty(dirty, flow.filter, order, in_place=not run.partial)
