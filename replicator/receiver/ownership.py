"""Whose the data of a copy is, and who may write it: its source, or this host since a promotion."""

from collections.abc import Callable

import msgspec

from replicator.errors import ReplicatorError
from replicator.failovers import Promotion
from replicator.receiver.durability import Durability
from replicator.receiver.halts import Halts
from replicator.receiver.kept_state import KeptState
from replicator.receiver.replica_state import Applied
from replicator.states import DataEvent
from replicator.status import TargetDataState, TargetStatus


class Ownership:
    """Of one copy. What is decided here holds over restarts. All that saves raises OSError."""

    def __init__(
        self,
        kept: KeptState,
        applied: Applied,
        halts: Halts,
        durability: Durability,
        changed: Callable[[], None],
    ) -> None:
        self._kept = kept
        self._applied = applied
        self._halts = halts
        self._durability = durability
        self._changed = changed

    async def know_source(self, source_uuid: str, source_name: str) -> None:
        state = self._kept.state
        if (source_uuid, source_name) != (state.source_uuid, state.source_name):
            await self._kept.save(source_uuid=source_uuid, source_name=source_name)

    # --- a restore reads it ---

    async def hold_for(self, restore: str) -> None:
        """Stand still, durably, until `restored` or `release`: also in the next process. OSError."""
        if self._kept.state.restoring not in ("", restore):
            raise ReplicatorError(f"the copy is being restored already ({self._kept.state.restoring})")
        if not self._kept.state.restoring:
            self._halts.hold()
            self._kept.state = msgspec.structs.replace(self._kept.state, restoring=restore)
            self._halts.wake()
        await self._kept.save(restoring=restore)
        await self._halts.stood_still()
        await self._durability.make_durable()  # the source will be what is there now

    async def release(self, restore: str) -> None:
        """The restore has ended, and the source is none that was restored: go on."""
        if self._kept.state.restoring == restore:
            await self._kept.save(restoring="")
            self._halts.go_on()

    async def restored(self, epoch: int, source_uuid: str = "") -> None:
        """A source was restored from the copy as it is: no older one may change it any more. What was
        received and not applied counts for nothing: see `Receiver.restored`. `source_uuid`: whose it is from
        now on; "": that is not proved.
        """
        if epoch > self._kept.state.epoch:
            owner = {"source_uuid": source_uuid} if source_uuid else {}
            await self._kept.save(epoch=epoch, fork=dict(self._applied.marks), **owner)

    async def learn_epoch(self, epoch: int) -> None:
        """A source of a later epoch writes from now on: nobody of an earlier one does. That the copy is of
        that epoch, and equals such a source somewhere, is more than that.
        """
        if epoch > self._kept.state.source_epoch:
            await self._kept.save(source_epoch=epoch)

    # --- this host, or another, takes it over ---

    async def shut(self, group: str) -> None:
        """The copy is about to be promoted: no source is let in from now on, durably, until `reopen`."""
        if self._kept.state.closed not in ("", group):
            raise ReplicatorError(f"the copy is being taken over already ({self._kept.state.closed})")
        await self._kept.save(closed=group)

    async def reopen(self, group: str) -> None:
        """It is not promoted after all: its source may go on. Nothing, if it was."""
        if self._kept.state.closed == group and not self.is_promoted:
            await self._kept.save(closed="")
        await self.release(group)

    async def promote(self, record: Promotion) -> None:
        """This host owns the data from now on. What is in the spool stays there, and is never applied.

        `closed` stays until `seal`. Raises ReplicatorError: it does not stand still for that, or belongs to
        somebody else since.
        """
        known = self._kept.state.promotion
        if known is not None and (known.group, known.epoch) == (record.group, record.epoch):
            return
        if record.epoch <= self._kept.state.epoch:
            raise ReplicatorError(f"the copy is of epoch {self._kept.state.epoch} already")
        if self._kept.state.restoring != record.group or self._halts.status is not TargetStatus.PAUSED:
            raise ReplicatorError("the copy does not stand still for a promotion")
        self._halts.stay()
        self._kept.happen(DataEvent.PROMOTED)
        marks = dict(self._applied.marks)
        await self._kept.save(
            epoch=record.epoch,
            fork=marks,
            promotion=record,
            owned=True,
            restoring="",
            closed=record.group,
        )
        self._changed()

    async def seal(self) -> None:
        """What is changed here from now on is captured, and no longer any business of this copy."""
        if self.is_promoted and self._kept.state.closed:
            await self._kept.save(closed="")

    @property
    def is_promoted(self) -> bool:
        """Whether this host owns the data, and not the source."""
        promotion = self._kept.state.promotion
        return self._kept.state.owned and promotion is not None and promotion.epoch == self._kept.state.epoch

    async def learn(self, record: Promotion) -> None:
        """Another host owns the data of its source from now on: that one is refused."""
        if record.epoch > self._kept.state.epoch:
            await self._kept.save(epoch=record.epoch, fork=dict(self._applied.marks), promotion=record)

    async def take_into_use(self) -> None:
        """From now on the copy is changed here: nothing is applied until the source was chosen to survive."""
        if self._halts.status is not TargetStatus.PAUSED:
            raise ReplicatorError("it is written by its source: pause it first (dtctl target pause)")
        data_state = self._kept.state.data_state
        if data_state not in (TargetDataState.OK, TargetDataState.RESTORE_REQUIRED):
            raise ReplicatorError(f"the copy is no state that its source was in: {data_state}")
        self._kept.happen(DataEvent.USED)
        await self._kept.save()
        self._changed()
