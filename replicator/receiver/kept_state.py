"""What a replica remembers over a loss of power (`state.json`), and how that changes."""

import msgspec
import trio

from replicator import limits
from replicator.receiver.replica_state import ReplicaState, StateFile
from replicator.states import DATA, DataEvent, step
from replicator.status import TargetDataState
from replicator.world import World


class KeptState:
    """`state`: as it is now; `save` changes it, and the file."""

    def __init__(self, world: World, file: StateFile, state: ReplicaState) -> None:
        self.state = state
        self._world = world
        self._file = file
        self._lock = trio.Lock()

    async def save(self, **changes: object) -> None:
        """Durably. OSError."""
        async with self._lock:
            state = msgspec.structs.replace(self.state, boot_id=self._world.clock.boot_id(), **changes)
            await self._world.in_thread(lambda: self._file.save(state))
            # Meanwhile these may have changed, and only these.
            now = self.state
            self.state = msgspec.structs.replace(
                state,
                data_state=now.data_state,
                drifted=now.drifted,
                lacking_since_ns=now.lacking_since_ns,
            )

    def happen(self, event: DataEvent) -> None:
        """Take the step of the data state that this means. It is not saved."""
        before = self.state
        data_state = step(DATA, before.data_state, event)
        was_exact = before.data_state is TargetDataState.OK
        drifted = event is DataEvent.DRIFT and (before.drifted or was_exact)
        lacking_since_ns = before.lacking_since_ns if data_state is TargetDataState.MIRROR_REQUIRED else None
        if event is DataEvent.LOSS and was_exact:
            lacking_since_ns = self._world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS
        self.state = msgspec.structs.replace(
            before, data_state=data_state, drifted=drifted, lacking_since_ns=lacking_since_ns
        )
