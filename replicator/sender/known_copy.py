"""What a source knows of the copy: how far it has come, and in what state it is."""

from replicator.net.frames import Acknowledge, Connected
from replicator.sender.sender_state import SenderStateFile
from replicator.status import TargetDataState


class KnownCopy:
    """As its target said last, in an earlier session if there is none. Whether it was exact is remembered
    over a restart of the process.
    """

    def __init__(self, journals: int, memory: SenderStateFile) -> None:
        # Sequences, by index of the journal; 0: not known.
        self.received = [0] * journals
        self.applied = [0] * journals
        self.durable = [0] * journals
        self.secured = [0] * journals
        self.data_state = TargetDataState.MIRROR_REQUIRED
        self._memory = memory

    def resume(self, connected: Connected) -> None:
        """A session begins. What the target does not know any more stays what it was."""
        for index, mark in enumerate(connected.received):
            if mark is None:
                continue
            applied, durable = connected.applied[index], connected.durable[index]
            self.received[index] = mark.sequence
            self.applied[index] = applied.sequence if applied else 0
            self.durable[index] = self.secured[index] = durable.sequence if durable else 0

    def acknowledged(self, frame: Acknowledge) -> None:
        self.received = list(frame.received)
        self.applied = list(frame.applied)
        self.durable = list(frame.durable)
        self.secured = list(frame.secured or frame.durable)

    def found(self, data_state: TargetDataState) -> None:
        """A session begins, and the target says so. If it lacks something since the last one, that is noted
        only when it has been heard what (`is_now`): until then a successor has to know that it was exact.
        """
        if data_state is TargetDataState.MIRROR_REQUIRED:
            self.data_state = data_state
        else:
            self.is_now(data_state)

    def is_now(self, data_state: TargetDataState) -> None:
        """It says what has become of it."""
        self.data_state = data_state
        if self.is_exact is not self._memory.state.exact:
            self._memory.state.exact = self.is_exact
            self._memory.save()

    @property
    def is_exact(self) -> bool:
        return self.data_state is TargetDataState.OK

    @property
    def was_exact_last(self) -> bool:
        """The same, when it was heard of last; see `found`."""
        return self._memory.state.exact
