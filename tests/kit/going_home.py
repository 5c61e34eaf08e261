"""The data part of a failback on a simulated pair: what the steps of `agent/failover` do to journals and
copies, without agents.
"""

import trio

from kit.simulation import Simulation
from kit.taking_over import GROUP, Back
from replicator.failover.handback import Mark
from replicator.failovers import Promotion
from replicator.paths import Home
from replicator.queue.cursor import Cursor
from replicator.receiver.prepared import prepare
from replicator.sender.arguments import Restored


def _head(simulation: Simulation) -> Mark:
    cursor = Cursor.open(simulation.source_world, simulation.settings, simulation.journal_id, None)
    try:
        position = cursor.head()
    finally:
        cursor.close()
    return position.sequence, position.chain


def heads_of(forward: Simulation, back: Back) -> dict[str, dict[str, Mark]]:
    return {forward.connection: {back.journal_id: _head(back)}}


def positions_of(forward: Simulation, back: Back) -> dict[str, dict[str, Mark]]:
    assert back.receiver is not None
    marks = back.receiver.replica.applied.marks
    return {forward.connection: {journal: (p.sequence, p.chain) for journal, p in marks.items()}}


async def hand_over(forward: Simulation, back: Back, *, epoch: int) -> None:
    """The owner is frozen, and home has everything: home owns the group, its connection goes on from here,
    and the owner's directories are its copy again.
    """
    receiver = back.receiver
    assert receiver is not None
    await receiver.shut(GROUP)
    await receiver.restore_begins(GROUP)
    record = Promotion(
        group=GROUP, epoch=epoch, parent_epoch=epoch - 1, owner=back.agents[1], owner_name=back.hosts[1]
    )
    await receiver.promote(record)
    forward.epoch = epoch
    forward.restored = Restored(f"hand-over {epoch}", heads={forward.journal_id: _head(forward)})
    receiver.forget()
    await trio.testing.wait_all_tasks_blocked()
    await back.kill_receiver()
    await back.kill_sender()
    back.unmount()
    former = forward.receiver
    assert former is not None
    former.forget()
    await trio.testing.wait_all_tasks_blocked()
    await forward.kill_receiver()
    prepare(
        forward.target_world,
        Home(str(forward.home)).target(forward.connection),
        forward.connection,
        source_uuid=forward.agents[0],
        source_name=forward.hosts[0],
        epoch=epoch,
        tails={},
    )
