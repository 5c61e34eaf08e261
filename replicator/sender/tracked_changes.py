"""What was only tracked is brought when the stream goes on: by which run, or by none."""

from replicator.mirror.mirroring import CHECKSUM, DIFFERENCE, FULL, KINDS, LOG, OFF, RECOVERY, MirrorRun
from replicator.sender.changes import Wake
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.mirrors import Mirrors
from replicator.sender.sender_state import SenderStateFile
from replicator.states import MirrorEvent


class TrackedChanges:
    """Of one sender."""

    def __init__(
        self, mirrors: Mirrors, flows: list[Flow], memory: SenderStateFile, dirt: Dirt, *, scanner: Wake
    ) -> None:
        self._mirrors = mirrors
        self._flows = flows
        self._memory = memory
        self._dirt = dirt
        self._scanner = scanner

    def bring(self, *, replicating: bool) -> None:
        """The stream has come to where the tracking ended; the target lacks what the dirt says."""
        run = self._mirrors.run
        self._begin_tracked(run, replicating)
        if self._mirrors.run is not None and self._mirrors.run is not run:
            self._mirrors.run.by_itself = True
            self._mirrors.hold()

    def _begin_tracked(self, run: MirrorRun | None, replicating: bool) -> None:
        dirt = self._dirt
        self._mirrors.forget_end()
        if run is not None and run.stopped:
            return  # its end will say that the target is not exact
        if run is not None and not (run.kind == RECOVERY and run.some_paths):
            self._bring_tracked_with(run)
        elif not replicating or self._mirrors.remirror == OFF:
            self._tell_inexact()
        elif not dirt.sufficient:
            dirt.bring()
            wanted = self._memory.state.mirror_wanted
            if wanted in KINDS:
                self._mirrors.begin_wanted(wanted, exact=True, distrust_ctime_after_ns=dirt.distrust_wall_ns)
            else:
                kind = FULL if self._mirrors.remirror == FULL else RECOVERY
                self._mirrors.begin(kind, exact=True, distrust_ctime_after_ns=dirt.distrust_wall_ns)
        elif self._mirrors.remirror == LOG:
            self._mirrors.recover_tracked()
        else:
            dirt.bring()
            checksum = self._mirrors.remirror == CHECKSUM
            kind = DIFFERENCE if checksum else self._mirrors.remirror
            self._mirrors.begin(
                kind, exact=True, checksum=checksum, distrust_ctime_after_ns=dirt.distrust_wall_ns
            )

    def _bring_tracked_with(self, run: MirrorRun) -> None:
        """The run that is under way brings the whole set: what it has brought may be old again."""
        dirt = self._dirt
        run.exact = True
        self._mirrors.distrust_since(dirt.distrust_wall_ns, not dirt.tells)
        for flow in self._flows:
            flow.order.operations_lost()
            flow.links_seen.clear()
            if dirt.tells:
                with run.expecting(flow.order):
                    dirt.require(flow)
            else:
                for root in flow.filter.roots:
                    flow.order.require(root)
        self._scanner.ring()

    def _tell_inexact(self) -> None:
        """Nobody brings it now: from here on the target is not exact."""
        if self._mirrors.run is not None:
            self._mirrors.forget_run()
        self._mirrors.begin_recovery().happen(MirrorEvent.STOP)
        self._memory.state.mirror_wanted = None
        self._memory.save()
