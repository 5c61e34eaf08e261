"""What home answers in a failback: requests of a try that was taken back do nothing, however late."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio.testing
from kit.two_sides import ADDRESS, CONNECTION, GROUP, monitor

from replicator.agent.failover import home_calls
from replicator.agent.failover.calls import Caller
from replicator.agent.failover.home_calls import (
    About,
    AboutEpoch,
    AboutOrder,
    AboutScript,
    AboutTaking,
    AboutTry,
)
from replicator.agent.failover.homecoming import Deeds, Homecoming
from replicator.agent.failover.procedure import Facts, Taken
from replicator.errors import ReplicatorError
from replicator.failover.script_result import Outcome, ScriptResult
from replicator.failovers import Promotion, ScriptKind, TakeOver, return_of
from replicator.paths import Home as HomeDirectory

HOME, OWNER = "agent-alpha", "agent-beta"
CALLER = Caller(None, "10.0.0.2")
TAKEN_BACK = "that failback was taken back"


class Copies:
    """`homecoming.Promotions`."""

    def __init__(self) -> None:
        self.held = False
        self.known: Promotion | None = None
        self.may_drain = trio.Event()
        self.may_drain.set()

    def record(self, group: str) -> Promotion | None:
        return self.known

    async def drain(self, order: TakeOver) -> None:
        assert order.copies == (return_of(CONNECTION),)
        await self.may_drain.wait()
        self.held = True

    async def release(self, order: TakeOver) -> None:
        self.held = False

    async def promote(self, order: TakeOver) -> Promotion:
        if self.known is None:
            if not self.held:
                raise ReplicatorError("the copy does not stand still")
            self.known = Promotion(
                group=GROUP,
                epoch=order.epoch,
                parent_epoch=order.parent_epoch,
                owner=HOME,
                owner_name="alpha",
            )
        return self.known


class Receiver:
    async def wait_running(self, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()

    async def call(self, name: str) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"positions": {"journal": (7, 77)}}


class HomeHost:
    """The former source. Its agent may be started again: what is not durable is gone then."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.copies = Copies()
        self.addresses: set[str] = set()
        self.watches = False
        self.withdrawn: list[str] = []
        self.ran: list[str] = []
        self.start()

    def start(self, *, up: bool = True) -> None:
        self.up = trio.Event()
        if up:
            self.up.set()
        self.answers: dict[str, Any] = {}
        core = SimpleNamespace(
            home=HomeDirectory(str(self.directory)),
            up=self.up,
            identity=SimpleNamespace(uuid=HOME, name="alpha"),
            children=SimpleNamespace(receiver=lambda uuid: Receiver()),
        )
        guard = SimpleNamespace(
            name="web",
            superseded=SimpleNamespace(owner=OWNER, owner_name="beta", epoch=3),
            addresses=(SimpleNamespace(address=ADDRESS),),
        )
        nobody: Any = None
        Homecoming(
            core,  # type: ignore[arg-type]
            SimpleNamespace(register=lambda action, body, handler: self.answers.update({action: handler})),  # type: ignore[arg-type]
            SimpleNamespace(get=lambda group: guard, find=lambda group: guard),  # type: ignore[arg-type]
            nobody,
            self.copies,  # type: ignore[arg-type]
            nobody,
            nobody,
            self,
            Deeds(self.run_script, nobody, self.withdraw, self.adopt, self.disown, nobody),
        )

    # --- addresses and deeds ---

    async def put_back(self, group: str, *, forced: bool, say: object) -> Taken:
        self.addresses.add(ADDRESS)
        return Taken(taken=(ADDRESS,))

    async def drop(self, group: str, wanted: Iterable[str]) -> list[str]:
        self.addresses -= set(wanted)
        return []

    async def withdraw(self, monitor: object, order: object, attempt: str) -> None:
        self.withdrawn.append(attempt)

    async def adopt(self, monitor: object, guard: object) -> None:
        self.watches = True

    async def disown(self, group: str) -> None:
        self.watches = False

    async def run_script(self, facts: Facts, attempt: str) -> ScriptResult:
        self.ran.append(attempt)
        return ScriptResult(kind=facts.kind, path="/start", outcome=Outcome.DONE, exit_code=0)

    # --- what the owner asks for ---

    async def ask(self, action: str, attempt: str) -> Any:
        fields: dict[str, Any] = {"agent": OWNER, "monitor": monitor(), "attempt": attempt}
        about: About
        match action:
            case home_calls.HOLD | home_calls.RELEASE | home_calls.PROMOTE:
                order = TakeOver(group=GROUP, copies=(CONNECTION,), parent_epoch=3, epoch=4)
                about = AboutOrder(order=order, **fields)
            case home_calls.RECORD:
                about = AboutEpoch(epoch=4, **fields)
            case home_calls.TAKE:
                about = AboutTaking(**fields)
            case _:
                about = AboutTry(**fields)
        answer = await self.answers[action](GROUP, about, CALLER)
        return msgspec.to_builtins(answer)

    async def refuses(self, action: str, attempt: str) -> None:
        with pytest.raises(ReplicatorError, match=TAKEN_BACK):
            await self.ask(action, attempt)

    async def is_taken_back(self, attempt: str) -> None:
        """As an owner does whose request to promote was not answered."""
        assert (await self.ask(home_calls.RECORD, attempt))["promotion"] is None
        await self.ask(home_calls.RELEASE, attempt)


@pytest.fixture
def home(tmp_path: Path) -> HomeHost:
    return HomeHost(tmp_path)


async def test_a_hand_over(home: HomeHost) -> None:
    held = await home.ask(home_calls.HOLD, "one")
    assert held["marks"] == {CONNECTION: {"journal": (7, 77)}}
    record = await home.ask(home_calls.PROMOTE, "one")
    assert record["epoch"] == 4
    home.start()
    assert await home.ask(home_calls.PROMOTE, "one") == record
    assert (await home.ask(home_calls.RECORD, "one"))["promotion"] == record
    await home.ask(home_calls.RELEASE, "one")
    assert home.copies.held  # what is final is not taken back
    assert home.withdrawn == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_late_promotion_of_an_earlier_try_is_refused(home: HomeHost, restarted: bool) -> None:
    await home.ask(home_calls.HOLD, "one")
    assert (await home.ask(home_calls.RECORD, "one"))["promotion"] is None
    if restarted:
        home.start()
    await home.refuses(home_calls.PROMOTE, "one")  # also before the copies are let go
    await home.ask(home_calls.RELEASE, "one")
    await home.ask(home_calls.HOLD, "two")
    if restarted:
        home.start()
    await home.refuses(home_calls.PROMOTE, "one")
    assert home.copies.known is None
    assert (await home.ask(home_calls.PROMOTE, "two"))["epoch"] == 4


async def test_nothing_of_a_try_that_was_taken_back_is_done_late(home: HomeHost) -> None:
    await home.ask(home_calls.TAKE, "one")
    await home.ask(home_calls.HOLD, "one")
    await home.is_taken_back("one")
    assert not home.copies.held and not home.addresses and home.withdrawn == ["one"]
    for action in (home_calls.HOLD, home_calls.TAKE, home_calls.ADOPT, home_calls.PROMOTE):
        await home.refuses(action, "one")
    assert not home.copies.held and not home.addresses and not home.watches


async def test_the_late_end_of_an_earlier_try_leaves_the_present_one_alone(home: HomeHost) -> None:
    await home.ask(home_calls.HOLD, "one")
    await home.is_taken_back("one")
    await home.ask(home_calls.TAKE, "two")
    await home.ask(home_calls.ADOPT, "two")
    await home.ask(home_calls.HOLD, "two")
    for action in (home_calls.RELEASE, home_calls.GIVE_UP, home_calls.DISOWN, home_calls.RECORD):
        await home.ask(action, "one")
    assert home.copies.held and home.addresses and home.watches
    await home.ask(home_calls.PROMOTE, "two")


async def test_addresses_and_a_monitor_are_given_up_once_more_if_that_was_interrupted(home: HomeHost) -> None:
    await home.ask(home_calls.TAKE, "one")
    await home.ask(home_calls.RELEASE, "one")
    home.addresses.add(ADDRESS)  # as if its agent had been killed before they were dropped
    await home.ask(home_calls.GIVE_UP, "one")
    assert not home.addresses


async def test_what_is_being_held_is_let_go_afterwards(home: HomeHost) -> None:
    """The owner has lost patience, or a person has; home still waits for what has arrived to be applied."""
    home.copies.may_drain = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(home.ask, home_calls.HOLD, "one")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(home.ask, home_calls.RELEASE, "one")
        await trio.testing.wait_all_tasks_blocked()
        home.copies.may_drain.set()
    assert not home.copies.held


@pytest.mark.parametrize(("epoch", "ran"), [(2, []), (4, ["late"])])
async def test_no_services_are_started_where_another_agent_has_taken_over_since(
    home: HomeHost, epoch: int, ran: list[str]
) -> None:
    """It is owned by another one since epoch 3. The script was asked for when home had got `epoch`."""
    kind = ScriptKind.SOURCE_POST_FAILBACK
    facts = Facts(monitor=monitor(), kind=kind, epoch=epoch, reason="", forced=False)
    about = AboutScript(agent=OWNER, monitor=monitor(), facts=facts, attempt="late")
    answer = await home.answers[home_calls.SCRIPT](GROUP, about, CALLER)
    assert home.ran == ran and answer.problem == ("" if ran else "not run: beta has taken over since")


async def test_an_agent_that_starts_answers_when_it_is_up(
    home: HomeHost, autojump_clock: trio.testing.MockClock
) -> None:
    home.start(up=False)
    with pytest.raises(ReplicatorError, match="alpha is still starting"):
        await home.ask(home_calls.HOLD, "one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(home.ask, home_calls.HOLD, "one")
        await trio.sleep(1)
        assert not home.copies.held
        home.up.set()
    assert home.copies.held
