"""A copy that is made of what was the source: its directories were written by programs here until another
host took over, and equal what that host had at the fork point but for the tail.

The receiver that starts on what is written here knows nothing of the stream of its new source, which begins
where that took over, and knows of the tail as of what others have changed.
"""

import os
from collections.abc import Mapping

from replicator import limits
from replicator.net.frames import Connect
from replicator.queue.dirty import DirtyMap
from replicator.receiver.drift import Drift
from replicator.receiver.position_file import PositionFile
from replicator.receiver.replica_state import ReplicaState, StateFile
from replicator.status import TargetDataState
from replicator.world import World


def prepare(
    world: World,
    directory: str,
    connection_uuid: str,
    *,
    source_uuid: str,
    source_name: str,
    epoch: int,
    tails: Mapping[str, DirtyMap | None],
    suspect_since_ns: int = 0,
    connect: Connect | None = None,
) -> None:
    """Write what the first receiver of this connection will find. No other may run, and none have been there.

    `directory`: home/target/<connection>. `tails`: by id of the new source's journals, in terms of its paths;
    None: anything may differ, and no claim of "same" is believed for what was changed since
    `suspect_since_ns` (ctime here). `connect`: what its source will say, as far as that is known already: the
    copy can be taken over before it was heard. Blocks; durable on return. OSError. May be done again after a
    crash: the state, which makes it a copy, is written last.
    """
    state_file = StateFile(world, directory)
    world.disk.makedirs(directory)
    drift_path = os.path.join(directory, "drift")
    if world.disk.exists(drift_path):  # of an attempt that was cut short
        world.disk.unlink(drift_path)
    Drift(world, directory).add_tails(tails)
    if connect is not None:  # what is there was made by others, and is as durable as it will be
        positions = PositionFile(world, directory)
        positions.save({}, world.clock.wall_ns() - limits.FILE_CLOCK_STEP_NS)
        positions.close()
    differs = any(dirty is None or not dirty.is_empty for dirty in tails.values())
    state_file.save(
        ReplicaState(
            connection_uuid=connection_uuid,
            boot_id=world.clock.boot_id(),
            clean=True,
            source_uuid=source_uuid,
            source_name=source_name,
            connect=connect,
            data_state=TargetDataState.MIRROR_REQUIRED if differs else TargetDataState.OK,
            drifted=differs,
            suspect_since_ns=suspect_since_ns if None in tails.values() else None,
            epoch=epoch,
        )
    )


def is_prepared(world: World, directory: str, epoch: int) -> bool:
    """Whether this copy was prepared for its source of that epoch, or has gone on since. Blocks."""
    state = StateFile(world, directory).load()
    return state is not None and state.epoch >= epoch
