"""What an administrator asks of mirrors."""

from replicator.errors import ReplicatorError, UsageError
from replicator.mirror.mirroring import FORCED, KINDS, LOG, MirrorRun
from replicator.orphans import MIRROR
from replicator.sender.changes import Changes, Wake
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.mirrors import NOT_BY_ITSELF, Mirrors
from replicator.sender.sender_state import SenderStateFile
from replicator.sender.sent_pieces import SentPieces
from replicator.states import MirrorEvent


class MirrorCommands:
    """ReplicatorError: it cannot be now; UsageError: nor at any other time."""

    def __init__(
        self,
        mirrors: Mirrors,
        flows: list[Flow],
        memory: SenderStateFile,
        dirt: Dirt,
        sent: SentPieces,
        changes: Changes,
        *,
        shipper: Wake,
    ) -> None:
        self._mirrors = mirrors
        self._flows = flows
        self._memory = memory
        self._dirt = dirt
        self._sent = sent
        self._changes = changes
        self._shipper = shipper

    def start(
        self, kind: str, *, exact: bool, newer: bool = False, checksum: bool = False, connected: bool
    ) -> None:
        """MR-08. A mirror that runs is stopped and begun anew."""
        if kind not in KINDS and kind != LOG:
            raise UsageError(f"unknown kind of mirror {kind!r}: use full, difference or log")
        if kind == LOG and not (self._dirt.active and self._dirt.sufficient):
            raise ReplicatorError("what the target lacks is not known: start a difference mirror")
        if self._mirrors.run is not None:
            self.stop(connected=connected)
        if kind == LOG:
            self._mirrors.recover_tracked().by_itself = False
        else:
            self._mirrors.begin(kind, exact=exact, newer=newer, checksum=checksum)
        self._changes.notify()

    def force(self) -> None:
        """The source was chosen to survive: the next session begins with all of it."""
        if self._mirrors.run is not None:
            self.stop(connected=False)
        state = self._memory.state
        state.mirror_wanted, state.mirror_exact, state.mirror_paused = FORCED, True, False
        self._memory.save()

    def stop(self, *, connected: bool) -> None:
        """MR-07: the position is lost; the data state becomes Mirror Required."""
        run = self._running()
        run.happen(MirrorEvent.STOP)
        self._memory.state.mirror_wanted = None
        self._memory.save()
        if not connected or self._sent.announced != run.run_id:
            for flow in self._flows:
                flow.forget_mirror()
            self._mirrors.end(False)
        self._changes.notify()
        self._shipper.ring()

    def pause(self) -> None:
        """MR-06."""
        if self._running().stopped:
            raise ReplicatorError("the mirror is being stopped")
        self._mirrors.set_paused(self._running(), True, "by request")

    def resume(self) -> None:
        """MR-06: go on where it was."""
        if self._mirrors.run is None or not self._mirrors.run.paused:
            raise ReplicatorError("no mirror is paused")
        self._memory.state.mirror_by_hand = True
        self._mirrors.set_paused(self._mirrors.run, False, "by request")

    def set_automatic(self, automatic: bool) -> None:
        """DC-22. A recovery that runs is paused, one that is paused goes on; mirrors that were asked for are
        not touched.
        """
        self._mirrors.automatic = automatic
        run = self._mirrors.run
        if run is not None and run.by_itself and not run.stopped and run.paused is automatic:
            self._memory.state.mirror_by_hand = False
            reason = "automatic recovery is on" if automatic else NOT_BY_ITSELF
            self._mirrors.set_paused(run, not automatic, reason)

    def find_orphans(self, mode: str) -> None:
        """Have all names compared, and nothing else (OR-02)."""
        if self._mirrors.run is not None:
            raise ReplicatorError("a mirror is running: start again when it has ended")
        if not self._mirrors.is_exact_now:
            raise ReplicatorError(
                "the copy is not exact, so what its orphans are is not known: mirror it first"
            )
        run = self._mirrors.begin_recovery()
        run.by_itself = False
        run.orphans, run.lists_names = mode, True
        for flow in self._flows:
            flow.order.active = True
            for root in flow.filter.roots:
                flow.order.walk_names(root)
        self._mirrors.wake_workers()
        self._changes.notify()

    def handle_orphans(self) -> None:
        """A verification has met some: as a mirror of the whole set, if the target's settings have that."""
        if self._mirrors.orphans_wanted and self._mirrors.is_exact_now:
            self.find_orphans(MIRROR)

    def stop_orphans(self) -> None:
        """No more names are compared; the copy is as exact as before."""
        run = self._running()
        run.orphans_stopped = True
        for flow in self._flows:
            flow.order.stop_walking()
        if run.paused:
            self.resume()
        self._changes.notify()
        self._mirrors.wake_workers()

    def _running(self) -> MirrorRun:
        if self._mirrors.run is None:
            raise ReplicatorError("no mirror is running")
        return self._mirrors.run
