"""A copy that its host was the owner of, and is not any more."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from replicator.agent.failover.copies_again import CopiesAgain
from replicator.failovers import Promotion
from replicator.net.frames import Connect, JournalInfo, PathMap
from replicator.paths import Home
from replicator.receiver.position_file import PositionFile
from replicator.receiver.replica_state import ReplicaState, StateFile
from replicator.status import TargetDataState
from replicator.world import World

CON = "6a3c8d7e-0000-4000-8000-000000000001"
RECORD = Promotion(group="group", epoch=4, parent_epoch=3, owner="agent-alpha", owner_name="alpha")


async def test_it_can_be_taken_over_before_its_source_has_sent_anything(tmp_path: Path) -> None:
    """What is copied there is known from before: a failover that finds no copy moves addresses alone."""
    home, started = Home(str(tmp_path)), []
    home.create()

    async def start(uuid: str, *, patient: bool) -> None:
        started.append(uuid)

    children = SimpleNamespace(receiver=lambda uuid: None, start_receiver=start)
    copies = CopiesAgain(cast(Any, SimpleNamespace(home=home, children=children)))
    directory = home.target(CON)
    Path(directory).mkdir(parents=True)
    journal = JournalInfo("journal", b"/srv/data")
    connect = Connect(CON, "web", 1, "{}", (journal,), (PathMap(0, b"", b"/srv/data"),))
    StateFile(World(), directory).save(
        ReplicaState(connection_uuid=CON, epoch=3, owned=True, connect=connect)
    )
    known = await copies.connect_of(CON)
    assert known == connect
    for _ in range(2):  # as after a crash
        await copies.follow(CON, RECORD, known)
    state = StateFile(World(), directory).load()
    assert state is not None and state.connect == connect and started == [CON, CON]
    assert (state.epoch, state.data_state, state.owned) == (4, TargetDataState.OK, False)
    positions = PositionFile(World(), directory)
    assert positions.marks == {} and positions.wall_ns > 0  # what is there now a loss of power does not touch
    positions.close()
    await copies.discard(CON)
    assert await copies.connect_of(CON) is None
