"""One change at a time, undone in reverse order if it fails half-way."""

from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from replicator import events
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.state import AgentIdentity, State, load_state
from replicator.config import Config
from replicator.errors import ReplicatorError
from replicator.events import EventRing
from replicator.paths import Home
from replicator.repset import ReplicationSet


@pytest.fixture
def core(tmp_path: Path) -> Core:
    ring = EventRing(lambda: 0, lambda _: None)
    identity = AgentIdentity(uuid="u", name="n")
    return Core(
        Home(str(tmp_path)),
        identity,
        Config(),
        State(),
        Address("", 1),
        ring,
        cast(Any, None),
        cast(Any, None),
    )


def step(done: list[str], name: str, error: Exception | None = None) -> Any:
    async def undo() -> None:
        done.append(name)
        if error is not None:
            raise error

    return undo


async def test_a_change_that_succeeds_is_saved_and_not_undone(core: Core) -> None:
    done: list[str] = []
    repset = ReplicationSet("web", 1, ())
    async with core.change() as change:
        change.undo(step(done, "first"))
        await change.save(repsets=(repset,))
    assert done == []
    assert core.state.repsets == load_state(core.home.state).repsets == (repset,)


async def test_a_change_that_fails_is_undone_from_its_end(core: Core) -> None:
    done: list[str] = []
    with pytest.raises(ReplicatorError, match="half-way"):
        async with core.change() as change:
            change.undo(step(done, "first"))
            change.undo(step(done, "second", ReplicatorError("the mount is busy")))
            change.undo(step(done, "third"))
            raise ReplicatorError("half-way")
    assert done == ["third", "second", "first"]
    (event,) = core.events.since(0, 10)
    assert event.id == events.UNDO_FAILED.id
    assert "busy" in event.text


async def test_a_cancelled_change_is_undone(core: Core) -> None:
    done: list[str] = []

    async def undo() -> None:
        await trio.lowlevel.checkpoint()
        done.append("undone")

    with trio.CancelScope() as scope:
        async with core.change() as change:
            change.undo(undo)
            scope.cancel()
            await trio.sleep(1)
    assert done == ["undone"]


async def test_one_change_at_a_time(core: Core) -> None:
    order: list[str] = []

    async def change(name: str) -> None:
        async with core.change():
            order.append(f"{name} begins")
            await trio.testing.wait_all_tasks_blocked()
            order.append(f"{name} ends")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, "one")
        nursery.start_soon(change, "another")
    assert order[1::2] == [line.replace("begins", "ends") for line in order[::2]]
