"""What follows of a source's silence: questions, answers, failovers; over restarts and full disks."""

import errno
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover import syslog, watching
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.heartbeats import HeartbeatAsker
from replicator.agent.failover.history import Entry, History
from replicator.agent.failover.monitors import MonitorRequest, Monitors
from replicator.agent.failover.watching import Watching
from replicator.agent.state import State, StateError
from replicator.errors import ReplicatorError
from replicator.events import Event, EventRing
from replicator.failover.candidate import Order
from replicator.failover.phases import GroupEvent
from replicator.failover.probes import Silent, Unable
from replicator.failovers import Check, CheckKind, Monitor, MonitorSettings, Phase, Take, WatchedAddress
from replicator.paths import Home

PING = (Check(CheckKind.PING),)
UUID = "11111111-1111-1111-1111-111111111111"


def monitor(**settings: Any) -> Monitor:
    address = WatchedAddress(address="10.0.0.5/24", checks=PING, interval_s=1.0, misses=3)
    wanted = MonitorSettings(source_host="alpha", addresses=(address,), **settings)
    return Monitor(uuid=UUID, name="web", settings=wanted)


class World:
    """An agent's core, as far as this needs one, a source that answers or not, and a failover."""

    def __init__(self, directory: Path, first: Monitor) -> None:
        self.state = State(monitors=(first,))
        self.home = Home(str(directory))
        self.events = EventRing(lambda: 0, lambda event: None)
        self.disk_is_full = False
        self.notes_fail = False  # those of a procedure
        self.answer: Exception | None = None
        self.begun: list[tuple[str, bool]] = []  # (reason, forced)
        self.refusal = ""
        self.takes_s = 0.5
        self.outcome = GroupEvent.COMPLETED
        self.scripts: list[str] = []
        self.entries: list[Entry] = []
        self.groups: Groups
        self.watching: Watching

    async def save(self, **fields: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self.disk_is_full:
            raise StateError("no space left")
        self.state = msgspec.structs.replace(self.state, **fields)

    async def fail_over(self, group: str, *, reason: str, forced: bool, order: Order) -> None:
        if self.notes_fail:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.refusal:
            raise ReplicatorError(self.refusal)
        self.begun.append((reason, forced))
        assert (order is Order.MONITOR) == self.state.monitors[0].settings.automatic
        await self.groups.step(group, GroupEvent.BEGIN)
        await trio.sleep(self.takes_s)
        await self.groups.step(group, self.outcome)

    async def probe(
        self, check: Check, address: str, environment: Mapping[str, str], timeout_s: float
    ) -> None:
        await trio.sleep(0.01)
        if self.answer is not None:
            raise self.answer

    async def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    async def read(self) -> list[Entry]:
        return self.entries

    @asynccontextmanager
    async def agent(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator["World"]:
        """Runs until the end of the block."""
        monkeypatch.setattr(watching, "probe", self.probe)
        self.groups = Groups(cast(Core, self))
        self.groups._history = cast(History, self)  # a thread would not know the time of this clock
        self.watching = Watching(
            cast(Core, self), self.groups, cast(HeartbeatAsker, SimpleNamespace(forget=lambda _: None))
        )
        self.watching.taking_over = self

        async def script(monitor: Monitor, reason: str) -> None:
            self.scripts.append(reason)

        self.watching.run_question_script = script
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watching.run)
            await trio.testing.wait_all_tasks_blocked()
            yield self
            nursery.cancel_scope.cancel()

    @property
    def phase(self) -> Phase:
        return self.state.monitors[0].phase

    @property
    def event_ids(self) -> list[int]:
        return [event.id for event in self.events.since()]

    async def history(self) -> list[str]:
        return [entry.what for entry in await self.groups.history()]


@pytest.fixture
def silent_syslog(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    told: list[Event] = []
    monkeypatch.setattr(syslog, "tell", told.append)
    return told


pytestmark = pytest.mark.usefixtures("silent_syslog")


async def test_a_silent_source_is_asked_about(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_syslog: list[Event]
) -> None:
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):
        await trio.sleep(100)
        assert world.phase is Phase.WATCHING and world.event_ids == []
        world.answer = Silent("no answer")
        began_s = trio.current_time()
        await world.groups.changed.wait()
        assert 2.0 <= trio.current_time() - began_s <= 3.5
        await trio.sleep(30)
        assert world.phase is Phase.ASKING and world.begun == []
        assert world.event_ids == [9305, 700000, 100, 9303]
        assert [event.id for event in silent_syslog] == world.event_ids  # FO-16
        assert world.scripts == ["10.0.0.5/24: ping: no answer"]
        assert await world.history() == ["silent", "failed", "asked"]
        world.answer = None
        await trio.sleep(2)
        assert world.phase is Phase.WATCHING
        world.answer = Silent("no answer")
        await trio.sleep(10)
        assert len(world.scripts) == 2  # another question


async def test_automatic(autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monitor(automatic=True, even_if_partitioned=True))
    async with world.agent(monkeypatch):
        world.answer = Silent("no answer")
        await trio.sleep(10)
        ((reason, forced),) = world.begun
        assert "alpha has failed" in reason and not forced
        assert world.phase is Phase.ACTIVE and world.scripts == []
        assert world.event_ids == [9305, 700000, 100, 101]
        world.answer = None  # the address is this host's own now
        await trio.sleep(60)
        assert world.phase is Phase.ACTIVE and len(world.event_ids) == 4


@pytest.mark.parametrize("refusal", ["", "the disk is full"])
async def test_what_does_not_work_by_itself_is_asked_about(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """Taken back, or not even begun; and it is not tried again and again."""
    world = World(tmp_path, monitor(automatic=True, even_if_partitioned=True))
    world.refusal, world.outcome = refusal, GroupEvent.TAKEN_BACK
    async with world.agent(monkeypatch):
        world.answer = Silent("no answer")
        await trio.sleep(60)
        assert world.phase is Phase.ASKING and len(world.begun) == (0 if refusal else 1)
        assert world.event_ids.count(9303) == 1 and world.event_ids.count(101) == 1
        assert world.event_ids.count(9310) == (1 if refusal else 0)


async def test_a_disk_that_takes_no_notes_holds_up_what_begins_by_itself(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no question of it, and is told once."""
    world = World(tmp_path, monitor(automatic=True, even_if_partitioned=True))
    async with world.agent(monkeypatch):
        world.answer, world.notes_fail = Silent("no answer"), True
        await trio.sleep(60)
        assert world.phase is Phase.WATCHING and world.begun == []
        assert world.event_ids.count(9329) == 1 and world.event_ids.count(101) == 1
        world.notes_fail = False
        await trio.sleep(5)
        assert world.phase is Phase.ACTIVE and len(world.begun) == 1 and world.scripts == []


async def test_a_person_is_told_at_once_that_the_disk_takes_no_notes(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monitor())
    world.notes_fail = True
    async with world.agent(monkeypatch):
        with pytest.raises(ReplicatorError, match="No space left"):
            await world.watching.begin(UUID, "asked for", forced=False)
        await trio.sleep(60)
        assert world.phase is Phase.WATCHING and world.event_ids.count(9310) == 1


async def test_a_source_that_answers_again_is_not_taken_over_when_the_disk_has_room(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monitor(automatic=True, even_if_partitioned=True))
    async with world.agent(monkeypatch):
        world.answer, world.notes_fail = Silent("no answer"), True
        await trio.sleep(10)
        world.answer = None
        await trio.sleep(3)
        world.notes_fail = False
        await trio.sleep(10)
        assert world.phase is Phase.WATCHING and world.begun == []


async def test_a_script_that_cannot_be_run_ends_nothing(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):

        async def script(monitor: Monitor, reason: str) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        world.watching.run_question_script = script
        world.answer = Silent("no answer")
        await trio.sleep(10)
        assert world.phase is Phase.ASKING and world.event_ids.count(events.ADVICE.id) == 1


@pytest.mark.parametrize("automatic", [True, False])
async def test_what_takes_time_is_begun_a_moment_before(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, automatic: bool
) -> None:
    """And only where nobody is asked."""
    world, begun = World(tmp_path, monitor(automatic=automatic, even_if_partitioned=automatic)), list[float]()

    async def get_ready(monitor: Monitor) -> None:
        await trio.lowlevel.checkpoint()
        begun.append(trio.current_time())

    async with world.agent(monkeypatch):
        world.watching.get_ready = get_ready
        await trio.sleep(30)
        assert begun == []
        world.answer = Silent("no answer")
        while 100 not in world.event_ids:  # noqa: ASYNC110  # FAILOVER_CONDITION
            await trio.sleep(0.01)
        failed_s = trio.current_time()
        assert not begun or 0.3 <= failed_s - begun[0] <= 0.7
        await trio.sleep(30)
        assert len(begun) == 2 * automatic  # and when it begins, for a failover that nobody saw coming


async def test_answers(autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):
        people = Monitors.__new__(Monitors)
        people._groups, people.watching = world.groups, world.watching
        people.report_of, people.is_armed = lambda group: None, lambda monitor: False
        left: list[str] = []

        async def leave(group: str) -> None:
            left.append(group)

        people.leave_addresses = leave
        with pytest.raises(ReplicatorError, match="asks nothing"):
            await people.answer("web", yes=True, forced=False)
        world.answer = Silent("no answer")
        await trio.sleep(10)
        assert "shall this host take over?" in people.get("web").question
        assert (await people.answer("web", yes=False, forced=False)).phase is Phase.DECLINED
        await trio.sleep(60)
        assert world.phase is Phase.DECLINED and world.begun == [] and people.get("web").question == ""
        view = await people.answer("web", yes=True, forced=True)  # later, all the same
        assert view.phase is Phase.ACTIVE and world.begun == [("answered yes", True)]
        with pytest.raises(ReplicatorError, match="already"):
            await people.now("web", forced=False)
        with pytest.raises(ReplicatorError, match="does not watch it"):
            await people.set_watching("web", on=False)
        moved = monitor(take=Take.NONE).settings
        with pytest.raises(ReplicatorError, match="until they have gone home"):
            await people.edit("web", MonitorRequest(settings=moved))
        with pytest.raises(ReplicatorError, match="--even-if-owner"):
            await people.remove("web")
        uuid = people.get("web").uuid
        await people.remove("web", even_if_owner=True)
        await trio.sleep(1)
        assert people.all() == [] and left == [uuid]  # the owner keeps them


async def test_now_needs_no_silence_and_a_refusal_is_told(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FO-15."""
    world = World(tmp_path, monitor())
    world.takes_s = 100.0
    async with world.agent(monkeypatch):
        people = Monitors.__new__(Monitors)
        people._groups, people.watching = world.groups, world.watching
        people.report_of, people.is_armed = lambda group: None, lambda monitor: False
        world.refusal = "another is under way"
        with pytest.raises(ReplicatorError, match="under way"):
            await people.now("web", forced=False)
        assert world.phase is Phase.WATCHING
        world.refusal = ""
        assert (await people.now("web", forced=False)).phase is Phase.TAKING_OVER
        for wrong in (people.remove("web"), people.set_watching("web", on=False)):
            with pytest.raises(ReplicatorError, match=r"wait|cannot be"):
                await wrong
        await trio.sleep(101)
        assert world.phase is Phase.ACTIVE


async def test_a_question_stays_until_the_source_is_heard(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that has just started has heard nothing yet: that is no sign of life."""
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):
        world.answer = Silent("no answer")
        await trio.sleep(10)
        assert world.phase is Phase.ASKING
    async with world.agent(monkeypatch):
        await trio.sleep(10)
        assert (
            world.phase is Phase.ASKING and len(world.scripts) == 2
        )  # the script is told which attempt it is
        world.answer = None
        await trio.sleep(2)
        assert world.phase is Phase.WATCHING
    world.answer = Silent("no answer")
    async with world.agent(monkeypatch):
        await trio.sleep(2.5)
        assert world.phase is Phase.WATCHING  # a whole countdown, after a restart
        await trio.sleep(3)
        assert world.phase is Phase.ASKING


async def test_a_disk_that_is_full_delays_and_loses_nothing(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):
        world.disk_is_full = True
        world.answer = Silent("no answer")
        await trio.sleep(60)
        assert world.phase is Phase.WATCHING and 700000 not in world.event_ids
        world.disk_is_full = False
        await trio.sleep(1)
        assert world.phase is Phase.ASKING and world.event_ids.count(700000) == 1


async def test_what_this_host_cannot_ask_is_no_failure(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):
        world.answer = Unable("Too many open files")
        await trio.sleep(100)
        assert world.phase is Phase.WATCHING
        (view,) = world.watching.views(world.state.monitors[0])
        assert "cannot ask: Too many open files" in view.reason


async def test_a_bug_in_a_probe_neither_ends_the_agent_nor_fails_over(
    autojump_clock: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(tmp_path, monitor(automatic=True, even_if_partitioned=True))
    async with world.agent(monkeypatch):
        world.answer = ZeroDivisionError("bug")
        await trio.sleep(20)
        assert world.phase is Phase.WATCHING and world.begun == []
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_monitors_come_and_go(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monitor())
    async with world.agent(monkeypatch):
        other = msgspec.structs.replace(monitor(), uuid=UUID.replace("1", "2"), name="other")
        await world.groups.add(other)
        await trio.sleep(5)
        world.answer = Silent("no answer")
        await world.groups.remove(UUID)
        await trio.sleep(10)
        (left,) = world.state.monitors
        assert left.name == "other" and left.phase is Phase.ASKING
        assert math.isclose(world.watching.views(left)[0].remaining_s, 0.0)
