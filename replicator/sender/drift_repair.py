"""What a source does about changes that others made in its copy: it brings these paths again (AD-09).

What is reported stays here until a run is complete that was asked for it, so a run that begins anew meanwhile
is asked for it as well. All changes happen between two checkpoints.
"""

from dataclasses import dataclass

from replicator.errors import RemoteProtocolError
from replicator.mirror.mirroring import MirrorRun
from replicator.mirror.requirements import require_foreign, require_tail
from replicator.net.frames import Drift
from replicator.ops import shown
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap
from replicator.sender.flow import Flow
from replicator.sender.mirrors import Mirrors


@dataclass(frozen=True)
class _Reported:
    number: int
    flow: Flow
    dirty: DirtyMap | None  # None: anything may have changed
    tail: bool  # the target wrote it while it was the source


class DriftRepair:
    """Of one connection. `remove`: what others put where the source has nothing is removed."""

    def __init__(self, flows: list[Flow], mirrors: Mirrors, *, remove: bool) -> None:
        self.changes = 0  # ever noticed by the target, as it counts
        self.last_path = ""
        self._flows = flows
        self._mirrors = mirrors
        self._remove = remove
        self._reported: list[_Reported] = []
        self._brought = 0  # number of the last one that a complete run has brought
        mirrors.drift = self.heed

    def report(self, frame: Drift) -> None:
        """The target says so. Raises RemoteProtocolError."""
        if frame.journal >= len(self._flows):
            raise RemoteProtocolError(f"drift of journal {frame.journal}, which does not exist")
        try:
            dirty = DirtyMap.decode(frame.dirty) if frame.dirty else None
        except CorruptDirtyMap as error:
            raise RemoteProtocolError(f"drift cannot be decoded: {error}") from None
        self.changes = frame.changes
        self.last_path = shown(frame.last_path)
        mirrors = self._mirrors
        if mirrors.run is not None and frame.number <= mirrors.run.drift:
            return  # told again in a new session: it is under way
        if mirrors.run is None and mirrors.was_exact and frame.number <= self._brought:
            return  # the end of the run that has brought it is on its way
        reported = _Reported(frame.number, self._flows[frame.journal], dirty, frame.tail)
        self._reported = [r for r in self._reported if r.number != frame.number] + [reported]
        if mirrors.run is None:
            # It may speak of a mirror whose end is on its way.
            mirrors.was_exact = mirrors.was_exact or frame.exact
            mirrors.begin_recovery()  # which asks for all that is reported
        else:
            self._require(mirrors.run, reported)
        mirrors.wake_workers()

    def heed(self, run: MirrorRun, begins: bool) -> None:
        """A run begins: what is known to be wrong is not to be believed. Or it has ended complete: then all
        that it was asked for is right.
        """
        if begins:
            for reported in self._reported:
                self._require(run, reported)
        else:
            self._brought = max(self._brought, run.drift)
            self._reported = [r for r in self._reported if r.number > run.drift]

    def _require(self, run: MirrorRun, reported: _Reported) -> None:
        flow = reported.flow
        order = flow.order
        order.active = True
        order.operations_lost()  # what this run has brought so far may have been changed again
        flow.links_seen.clear()
        for transfer in flow.transfers:
            if transfer.read is not None:
                order.void(transfer.read.identity)
        remove = self._remove or reported.tail
        run.exact = run.exact or remove
        run.drift = max(run.drift, reported.number)
        with run.expecting(order):
            if reported.dirty is None:
                for root in flow.filter.roots:
                    order.require(root)
            elif reported.tail:
                require_tail(reported.dirty, flow.filter, order, flow.source.file_at)
            else:
                require_foreign(reported.dirty, flow.filter, order, remove=remove)
