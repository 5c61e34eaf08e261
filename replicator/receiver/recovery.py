"""Where spool and tree of a receiver stand when its process starts: after a kill, a stop, or power loss."""

import os
import sys
from dataclasses import dataclass

import msgspec

from replicator import limits
from replicator.errors import JournalError
from replicator.receiver import intake
from replicator.receiver import replica_state as states
from replicator.receiver.position_file import PositionFile
from replicator.receiver.refused_file import RefusedFile
from replicator.receiver.replica_state import Applied, Received, RefusedBatch, ReplicaState, StateFile
from replicator.receiver.replica_tree import LINKS_PREFIX, ORPHANS_FILE
from replicator.receiver.shared_value import SharedValue
from replicator.receiver.spool import Spool
from replicator.states import DATA, DataEvent, step
from replicator.status import TargetDataState
from replicator.world import World


def open_page(world: World, memory_directory: str, name: str) -> SharedValue:
    path = os.path.join(memory_directory, name)
    return SharedValue(world, path, limits.POSITION_BYTES, create=True)


@dataclass(frozen=True)
class Standing:
    """What was found, and is stored as well."""

    state: ReplicaState
    received: Received
    applied: Applied
    refused: list[RefusedBatch]
    comes_again: bool = False  # see Replica


@dataclass(frozen=True)
class Remains:
    """What a receiver of before has left. `directory`: home/target/<connection>."""

    world: World
    directory: str
    spool: Spool
    state_file: StateFile
    positions: PositionFile
    received_page: SharedValue
    applied_page: SharedValue
    refused_file: RefusedFile

    def recover(self, state: ReplicaState) -> Standing:
        """`state`: of the state file. The spool is read from what is applied on. OSError."""
        pages = self.received_page.load(), self.applied_page.load()
        if state.boot_id == self.world.clock.boot_id() and pages[0] is not None and pages[1] is not None:
            received = states.decode(pages[0], Received)
            applied = states.decode(pages[1], Applied)
            try:
                self.spool.seek(received.spool)
                while (frame := self.spool.read()) is not None:  # a kill came between spool and page
                    intake.note(received, frame.frame, frame.position)
                self.spool.seek(applied.spool)
            except JournalError as error:
                print(f"the spool is lost, its source sends it again: {error}", file=sys.stderr, flush=True)
                return self._without_spool(state, applied)
            return Standing(state, received, applied, self.refused_file.load())
        return self._after_power_loss(state)

    def _without_spool(self, state: ReplicaState, applied: Applied) -> Standing:
        """The tree is exact up to what is applied, but for one operation that a kill may have cut short."""
        self.spool.seek_head()
        applied.spool, applied.done = self.spool.head, 0
        received = intake.only_applied(applied, state)
        self.received_page.store(states.encode(received))
        self.applied_page.store(states.encode(applied))
        return Standing(state, received, applied, self.refused_file.load(), comes_again=not state.clean)

    def _after_power_loss(self, state: ReplicaState) -> Standing:
        """Another boot, or the memory is gone: what was not durable may be there in part. The source
        compares.
        """
        connect = state.connect
        lost = connect is not None and not state.clean
        lacking = state.lacking_since_ns is not None  # what that was is forgotten with the memory
        suspect_since_ns = state.suspect_since_ns
        if lost and suspect_since_ns is None:
            suspect_since_ns = self.positions.wall_ns
        if state.lacking_since_ns is not None:
            suspect_since_ns = min(suspect_since_ns or state.lacking_since_ns, state.lacking_since_ns)
        self._remove_identities()
        self.spool.seek_head()
        received = Received(
            self.spool.head,
            dict(self.positions.marks),
            connect=states.fingerprint(connect) if connect is not None else 0,
            journals=states.journal_ids(connect) if connect is not None else (),
        )
        done_ns = self.positions.done_ns
        applied = Applied(self.spool.head, 0, dict(self.positions.marks), wall_ns=done_ns)
        state = msgspec.structs.replace(
            state,
            boot_id=self.world.clock.boot_id(),
            mirroring=False,
            mirror_id="",
            data_state=state.data_state
            if state.clean and not state.mirroring
            else step(DATA, state.data_state, DataEvent.POWER_LOST),
            suspect_since_ns=suspect_since_ns,
            drifted=(state.drifted or lacking) and state.clean,
            power_lost=state.power_lost
            or (lost and (state.data_state != TargetDataState.MIRROR_REQUIRED or state.drifted or lacking)),
        )
        # This order: until the last of them is written, the next start comes here again.
        self.refused_file.save([])
        self.received_page.store(states.encode(received))
        self.applied_page.store(states.encode(applied))
        self.state_file.save(state)
        return Standing(state, received, applied, [])

    def _remove_identities(self) -> None:
        """The tables of hard links and orphans are not synced: after power loss they may not even open."""
        disk = self.world.disk
        for name in disk.listdir(self.directory):
            if name.startswith((LINKS_PREFIX, ORPHANS_FILE)):
                disk.unlink(os.path.join(self.directory, name))
