"""What becomes of a drill at something else: a failover, a receiver that is gone, the end of its agent."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from kit.patience import until_async

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.drills import Drills
from replicator.agent.failover.group_copies import GroupCopies, GroupCopy
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.groups import Groups
from replicator.errors import ReplicatorError
from replicator.failover.occasion import Occasion, ScriptRoot
from replicator.failover_drills import HOLD, Drill, DrillRequest, DrillState
from replicator.failovers import Monitor, MonitorSettings, Phase
from replicator.paths import Home
from replicator.restores import Root

pytestmark = pytest.mark.fs
UUID = "6f1c7b1e-0f3e-4e0a-b1d1-1d9d7c1b2a11"


class Receiver:
    """Stands still by the name of who wants it, as a real one does."""

    def __init__(self) -> None:
        self.holds: str = ""
        self.calls: list[str] = []
        self.away = 0  # so many calls fail

    async def call(self, name: str, timeout_s: float = 0.0, /, **arguments: Any) -> None:
        await trio.lowlevel.checkpoint()
        if (
            name == "drill_goes_on"
        ):  # told all the time, so that it stands still no longer than its agent lives
            assert self.holds in ("", arguments["restore"])
            return
        if self.away:
            self.away -= 1
            raise ReplicatorError("it is being started")
        self.calls.append(name)
        if name == "restore_begins":
            assert self.holds in ("", arguments["restore"])
            self.holds = arguments["restore"]
        else:
            assert name == "restore_ends"
            if arguments["restore"] == self.holds:
                self.holds = ""


class Agent:
    """What a drill needs of one, around a real directory."""

    def __init__(self, tmp_path: Path) -> None:
        self.copy = tmp_path / "copy"
        self.copy.mkdir(exist_ok=True)
        (self.copy / "file").write_text("x")
        self.at = str(tmp_path / "elsewhere" / "data")
        self.receiver = Receiver()
        self.events: list[int] = []
        self.notes: list[str] = []
        self.state = "OK"
        self.synchronous = False
        self.monitor = Monitor(uuid=UUID, name="web", settings=MonitorSettings(source_host="alpha"))
        home = Home(str(tmp_path / "home"))
        core = SimpleNamespace(
            home=home,
            events=SimpleNamespace(add=lambda type_, **_: self.events.append(type_.id)),
            children=SimpleNamespace(receiver=lambda uuid: self.receiver if uuid == "c" else None),
        )
        self.drills = Drills(
            cast(Core, core),
            cast(Groups, SimpleNamespace(find=self._find, get=lambda _: self.monitor, note=self._note)),
            cast(GroupCopies, SimpleNamespace(of=self._copies, receiver=lambda _: self.receiver)),
            cast(GroupScripts, SimpleNamespace(occasion=self._occasion)),
        )
        self.scratch = Path(home.failover) / "drills"

    def _find(self, key: str) -> Monitor:
        return self.monitor

    async def _note(self, monitor: Monitor, what: str, text: str) -> None:
        self.notes.append(text)

    async def _copies(self, monitor: Monitor) -> list[GroupCopy]:
        return [
            GroupCopy(
                connection="c",
                repset="data",
                roots=(Root(self.at, str(self.copy)),),
                data_state=self.state,
                synchronous=self.synchronous,
                applied={"journal": 7},
                applied_until=5.0,
            )
        ]

    async def _occasion(self, monitor: Monitor, kind: Any, **more: Any) -> Occasion:
        root = ScriptRoot(source=self.at, replica=str(self.copy))
        return Occasion(kind=kind, group="web", uuid=UUID, roots=(root,), test=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.drills.run)
            yield
            nursery.cancel_scope.cancel()

    async def last(self) -> Drill:
        (first, *_) = await self.drills.all("web")
        return first

    async def begin(self, check: str, **options: Any) -> Drill:
        """Returns when its check runs."""
        await self.drills.begin("web", DrillRequest(check=f"touch {self.at}/began; {check}", **options))
        await until_async(self.in_the_room)
        return await self.last()

    def in_the_room(self) -> bool:
        return any(self.scratch.glob("*/changes/0/began"))


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


async def test_it_gives_way_to_a_failover_at_once(agent: Agent) -> None:
    async with agent.running():
        begun = await agent.begin("trap '' TERM; while :; do sleep 0.1; done")
        assert agent.receiver.holds == HOLD + begun.uuid
        began_s = trio.current_time()
        await agent.drills.give_way(UUID)
        assert trio.current_time() - began_s < limits.SCRIPT_TERM_S / 2  # its commands are not asked to end
        assert agent.receiver.holds == "" and not os.path.exists(f"/proc/{begun.pid}")
        await until_async(lambda: agent.notes)
        drill = await agent.last()
        assert (drill.state, drill.reason) == (DrillState.ENDED, "a failover began")
    assert not list(agent.scratch.glob("*/"))


async def test_a_failover_that_has_begun_keeps_it_from_beginning(agent: Agent) -> None:
    async with agent.running():
        await agent.drills.give_way(UUID)  # there is none
        agent.monitor = Monitor(
            uuid=UUID, name="web", settings=agent.monitor.settings, phase=Phase.TAKING_OVER
        )
        with pytest.raises(ReplicatorError, match="taking over"):
            await agent.drills.begin("web", DrillRequest(check="true"))


async def test_a_receiver_that_is_away_is_told_when_it_is_back(agent: Agent) -> None:
    async with agent.running():
        await agent.begin("sleep 1000")
        agent.receiver.away = 5
        await agent.drills.end("web")
        assert agent.receiver.holds == "" and agent.receiver.calls == ["restore_begins", "restore_ends"]
        assert (await agent.last()).still_s > 0


async def test_an_agent_that_ends_leaves_nothing_that_stands_still(agent: Agent) -> None:
    async with agent.running():
        begun = await agent.begin("sleep 1000")
    assert agent.receiver.holds == ""
    assert not os.path.exists(f"/proc/{begun.pid}") and not list(agent.scratch.glob("*/"))
    assert (await agent.last()).state is DrillState.INTERRUPTED


async def test_what_an_agent_could_not_tell_its_successor_does(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.agent.failover.drills._STOP_S", 0.2)
    async with agent.running():
        await agent.begin("sleep 1000")
        agent.receiver.away = 1000
    assert agent.receiver.holds
    successor = Agent(tmp_path)
    successor.receiver = agent.receiver
    agent.receiver.away = 3
    async with successor.running():
        await until_async(lambda: not agent.receiver.holds)
        await until_async(lambda: successor.notes)
        assert (await successor.last()).state is DrillState.INTERRUPTED
    assert successor.events == [events.DRILL_NOT_PASSED.id]


async def test_only_a_state_that_was_is_tried(agent: Agent) -> None:
    async with agent.running():
        agent.state = "Mirroring"
        await agent.drills.begin("web", DrillRequest(check="true"))
        await until_async(lambda: agent.notes)
        assert "no state that its source was in" in (await agent.last()).reason
        agent.state, agent.synchronous = "OK", True
        await agent.drills.begin("web", DrillRequest(check="true"))
        await until_async(lambda: len(agent.notes) == 2)
        assert "--copy" in (await agent.last()).reason
        assert agent.receiver.calls == []
        await agent.drills.begin("web", DrillRequest(check="true", duplicate=True))
        await until_async(lambda: len(agent.notes) == 3)
        assert (await agent.last()).state is DrillState.PASSED


async def test_one_at_a_time(agent: Agent) -> None:
    async with agent.running():
        await agent.begin("sleep 1000")
        with pytest.raises(ReplicatorError, match="runs: dtctl failover drill web --end"):
            await agent.drills.begin("web", DrillRequest(check="true"))
        await agent.drills.end("web")
        with pytest.raises(ReplicatorError, match="no drill of web runs"):
            await agent.drills.end("web")


async def test_its_point_is_remembered(agent: Agent) -> None:
    async with agent.running():
        await agent.drills.begin("web", DrillRequest(check="exit 3"))
        await until_async(lambda: agent.notes)
        drill = await agent.last()
    (point,) = drill.points
    assert (point.applied, point.time) == ({"journal": 7}, 5.0)
    assert agent.notes == ["drill failed (check: exit code 3; 0 files changed in the view)"]
    assert agent.events == [events.DRILL_STARTED.id, events.DRILL_NOT_PASSED.id]
