"""How a source and its target come together again in a new session: where the stream goes on
(`stream_start.py`), and what is brought beside it because of that.

What the stream jumps over was tracked, and is brought by what the dirt says. What nobody knows is compared.
"""

from replicator.mirror.mirroring import RECOVERY
from replicator.net.frames import Connected
from replicator.sender.changes import Wake
from replicator.sender.connection_states import ConnectionStates
from replicator.sender.continuation import is_exact
from replicator.sender.dirt import Dirt
from replicator.sender.flow import Flow
from replicator.sender.introduction import CopyInUse
from replicator.sender.known_copy import KnownCopy
from replicator.sender.lag_watch import LagWatch
from replicator.sender.mirrors import Mirrors
from replicator.sender.root_guard import RootChanged, missing_root
from replicator.sender.sender_state import SenderStateFile
from replicator.sender.stream_start import StreamStart
from replicator.sender.tracked_changes import TrackedChanges
from replicator.sender.tracking import Tracker
from replicator.states import ReplicationEvent
from replicator.status import TargetDataState


class Resync:
    """Only the sender's tasks touch it; between two checkpoints it is consistent."""

    def __init__(
        self,
        flows: list[Flow],
        start: StreamStart,
        copy: KnownCopy,
        memory: SenderStateFile,
        dirt: Dirt,
        tracker: Tracker,
        mirrors: Mirrors,
        tracked: TrackedChanges,
        states: ConnectionStates,
        lag: LagWatch,
        shipper: Wake,
    ) -> None:
        self._flows = flows
        self._start = start
        self._copy = copy
        self._memory = memory
        self._dirt = dirt
        self._tracker = tracker
        self._mirrors = mirrors
        self._tracked = tracked
        self._states = states
        self._lag = lag
        self._shipper = shipper
        self.jump_pending = True
        """`catch_up` is to be called before anything is shipped, and `Tracker.end` before that."""
        self._torn = False  # the target has lost what was not durable; it is tracked
        self._restored = False  # the target has still to hear that the source was restored from it
        self._wanted = False  # a person let replication go on: what the target lacks is to be brought
        self._target_mirror = ""  # id of the last run it had heard of when the session began

    # --- a session begins ---

    async def resume(self, connected: Connected) -> None:
        """Bring flows, orders and the mirror in line with what the target has.

        Raises CopyInUse, UnreadableJournal.
        """
        dirt, copy, mirrors = self._dirt, self._copy, self._mirrors
        was_exact = dirt.active or copy.was_exact_last
        was_complete = copy.was_exact_last or mirrors.was_exact or bool(self._memory.state.restored)
        lost_since_ns = dirt.distrust_wall_ns if dirt.active else 0
        self._target_mirror = connected.mirror_id
        copy.found(TargetDataState(connected.data_state))
        self._states.reported_data = copy.data_state
        self.refuse_copy_in_use()
        if await self._go_on_restored(connected):
            return
        unknown = any(mark is None for mark in connected.received)
        torn = connected.power_lost and was_exact and not unknown and not mirrors.brings_everything
        if unknown or (connected.power_lost and not torn):
            await self._forget_tracked()
        elif self._has_heard_nothing and not connected.power_lost:
            dirt.known = False
        copy.resume(connected)
        lost = await self._start.find(
            connected,
            exact=mirrors.run is None
            and is_exact(
                connected.data_state, mirroring=connected.mirroring, power_lost=connected.power_lost
            ),
            complete=copy.is_exact or was_complete or (connected.power_lost and was_exact),
            torn=torn,
            lost_since_ns=lost_since_ns,
        )
        if lost:
            await self._forget_tracked()
            self._start.root_changed = False
        self._torn = torn and not lost
        self._lag.resume(copy.applied, copy.durable)
        if lost:
            self._states.replicate(ReplicationEvent.FAIL, lost.why)
        if lost or not (self._torn or self.jumps):
            mirrors.resume(connected, bool(lost), was_exact=copy.was_exact_last)
        else:
            mirrors.take_up(connected)
        if lost and lost.since_wall_ns:
            mirrors.distrust_since(lost.since_wall_ns, True)

    async def _go_on_restored(self, connected: Connected) -> bool:
        """The source was restored from the copy, which does not know that yet: nothing is compared.

        False: it was not, or the copy knows, or the journals have begun anew since and cannot say what they
        have lost: then everything is compared.
        """
        if not self._is_restored(connected):
            return False
        await self._tracker.end()
        if not self._start.go_on_restored(connected):
            return False
        self._start.root_changed = False
        self._torn = False
        self._restored = True
        self._copy.resume(connected)
        self._lag.resume(self._copy.applied, self._copy.durable)
        self._mirrors.take_up(connected)
        return True

    def _is_restored(self, connected: Connected) -> bool:
        dirt = self._dirt
        if not self._memory.state.restored or not dirt.active:
            return False
        return (
            not dirt.told
            or self._copy.data_state is TargetDataState.RESTORE_REQUIRED
            or any(
                mark is None or mark.sequence < dirt.base(flow)
                for flow, mark in zip(self._flows, connected.received, strict=True)
            )
        )

    @property
    def _has_heard_nothing(self) -> bool:
        """Whether the target lacks something of which nobody here has heard."""
        dirt, copy = self._dirt, self._copy
        return dirt.active and not dirt.told and self._mirrors.run is None and not copy.is_exact

    async def _forget_tracked(self) -> None:
        await self._tracker.end()
        self._dirt.clear()

    def refuse_copy_in_use(self) -> None:
        """DC-24. Raises CopyInUse, unless the source was chosen to survive."""
        if self._copy.data_state is TargetDataState.RESTORE_REQUIRED and not self._mirrors.forced:
            raise CopyInUse

    def root_is_gone(self) -> None:
        """RootChanged has ended the session. If a person puts the root back, all is compared, unless what was
        tracked says enough.
        """
        self._start.root_changed = not self.jumps

    # --- what the stream does not bring ---

    @property
    def jumps(self) -> bool:
        """Whether the target is not where the stream goes on, and what is in between is tracked."""
        return self._dirt.active and any(flow.reached not in (None, flow.position) for flow in self._flows)

    @property
    def pending(self) -> bool:
        """Whether it is still to be told, or to be found, what has to be brought."""
        return self._tracker.tracking or self.jumps or (self._dirt.active and self.jump_pending)

    def catch_up(self) -> None:
        """The stream goes on. What it jumps over, or what was not shipped before, is brought by what the dirt
        says. Raises RootChanged.
        """
        self.jump_pending = False
        dirt, mirrors = self._dirt, self._mirrors
        replicating = self._states.replicating
        wanted, self._wanted = self._wanted, False
        torn, self._torn = self._torn, False
        restored, self._restored = self._restored, False
        if not dirt.active:
            return
        if self.jumps or torn or restored:
            self._guard_roots()
            self._tracked.bring(replicating=replicating)
        elif mirrors.run is not None:
            self._wanted = wanted  # when it has ended
        elif self._copy.is_exact:
            self._bring_what_exact_lacks()
        elif wanted and replicating and dirt.outstanding:
            self._tracked.bring(replicating=True)

    def changed_by_others(self, *, exact: bool) -> None:
        """AD-09. A copy that was exact until then lacks no more than one that still is."""
        if exact and self._dirt.active and self._mirrors.run is None and not (self.jumps or self._torn):
            self._bring_what_exact_lacks()

    def _bring_what_exact_lacks(self) -> None:
        """The target is an exact copy of where it is, and the stream goes on there."""
        dirt, replicating = self._dirt, self._states.replicating
        if dirt.skipped:  # while a mirror ran that was to be without replication
            if replicating:
                self._tracked.bring(replicating=True)
        elif not dirt.told or dirt.told == self._target_mirror:
            dirt.brought()  # it has all of it
        elif dirt.outstanding:  # it has never heard that it lacks something
            self._tracked.bring(replicating=replicating)

    def _guard_roots(self) -> None:
        """RS-15, for what was tracked."""
        change = self._dirt.root_changed or missing_root(self._flows)
        if change:
            raise RootChanged(change)

    # --- when a mirror, or a person, lets it go on ---

    def want(self) -> None:
        """Bring what the target lacks because replication was stopped, also if this process ends before."""
        state = self._memory.state
        if self._dirt.active and self._mirrors.run is None and state.mirror_wanted is None:
            state.mirror_wanted = RECOVERY
            self._memory.save()
        self._wanted = True
        self._look_again()

    def run_ends(self, complete: bool) -> None:
        """The end of a mirror run is in the stream."""
        if complete and self._states.reported_data is TargetDataState.MIRROR_REQUIRED:
            self._states.reported_data = TargetDataState.MIRRORING  # until it has heard of the end
        self._mirrors.end(complete)
        if not complete and self._dirt.outstanding and self._states.replicating:
            self._states.replicate(ReplicationEvent.FAIL, "what the target lacks is not brought")
        if self._wanted:
            self._look_again()

    def _look_again(self) -> None:
        """`catch_up`, as soon as the stream goes on."""
        self.jump_pending = True
        self._shipper.ring()
