"""Home is found by its uuid, whatever address it has, and asked until it answers; scripts until they ran."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio.testing
from kit.two_sides import monitor

from replicator.addresses import Address
from replicator.agent.failover.errands import Errand, Errands
from replicator.agent.failover.home_calls import LOOK, RECORD, HomeCalls, Recorded
from replicator.agent.failover.procedure import Facts
from replicator.errors import UnreachableError
from replicator.events import EventType
from replicator.failover.handback import Home
from replicator.failovers import ScriptKind
from replicator.paths import Home as HomeDirectory

VIRTUAL = Address("10.0.0.5", 1500)  # the owner has it now
OWN = Address("10.0.0.1", 1500)


class Wire:
    """In place of `Calls`. `at`: who answers where; missing: nobody."""

    def __init__(self, at: dict[Address, Home]) -> None:
        self.at = at
        self.asked: list[tuple[Address, str]] = []
        self.silent_for = 0

    async def ask(
        self,
        address: Address,
        action: str,
        group: str,
        body: msgspec.Struct,
        answer: Any,
        timeout_s: float = 0,
    ) -> Any:
        msgspec.json.decode(msgspec.json.encode(body), type=type(body))
        self.asked.append((address, action))
        if self.silent_for:
            self.silent_for -= 1
            raise UnreachableError(f"no agent answers at {address}")
        if address not in self.at:
            raise UnreachableError(f"no agent answers at {address}")
        return self.at[address] if action == LOOK else Recorded()


ALPHA = Home(agent="agent-alpha", name="alpha", host="10.0.0.1")
BETA = Home(agent="agent-beta", name="beta", host="10.0.0.2")


def calls(wire: Wire) -> HomeCalls:
    return HomeCalls(wire, "agent-beta", lambda group: (VIRTUAL, OWN))  # type: ignore[arg-type]


async def test_the_owner_that_has_the_address_of_the_source_does_not_take_itself_for_it() -> None:
    wire = Wire({VIRTUAL: BETA, OWN: ALPHA})
    assert (await calls(wire).look(monitor())).name == "alpha"
    assert [address for address, _ in wire.asked] == [VIRTUAL, OWN]


async def test_where_home_was_met_is_asked_first() -> None:
    wire = Wire({VIRTUAL: BETA, OWN: ALPHA})
    found = calls(wire)
    await found.look(monitor())
    wire.asked.clear()
    await found.look(monitor())
    assert wire.asked == [(OWN, LOOK)]


async def test_another_agent_is_not_home() -> None:
    wire = Wire({VIRTUAL: BETA, OWN: msgspec.structs.replace(ALPHA, agent="agent-gamma", name="gamma")})
    found = await calls(wire).look(monitor())
    assert "10.0.0.5:1500 is this agent; 10.0.0.1:1500 is gamma, not alpha" in found.unreached


async def test_it_is_asked_for_five_minutes(autojump_clock: trio.testing.MockClock) -> None:
    wire = Wire({OWN: ALPHA})
    wire.silent_for = 100
    assert await calls(wire).promotion(monitor(), 4, "try") is None
    assert 40 < trio.current_time() < 60  # two ways in each try
    assert wire.asked[-1] == (OWN, RECORD)
    wire.at.clear()
    began_s = trio.current_time()
    with pytest.raises(UnreachableError):
        await calls(wire).retire(monitor())
    assert 295 < trio.current_time() - began_s <= 301


async def test_whether_home_was_promoted_is_asked_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    wire = Wire({OWN: ALPHA})
    wire.silent_for = 100_000
    assert await calls(wire).promotion(monitor(), 4, "try") is None
    assert trio.current_time() > 10_000


# --- scripts at home ---


def facts() -> Facts:
    return Facts(
        monitor=monitor(), kind=ScriptKind.SOURCE_POST_FAILBACK, epoch=4, reason="failback", forced=False
    )


class Told:
    """Home: fails so often, then runs what it is told."""

    def __init__(self, failures: int, problem: str = "") -> None:
        self.failures = failures
        self.problem = problem
        self.attempts: list[str] = []

    async def __call__(self, errand: Errand) -> str:
        if self.failures:
            self.failures -= 1
            raise UnreachableError("it is down")
        self.attempts.append(errand.attempt)
        return self.problem


def errands(tmp_path: Path, tell: Callable[[Errand], Awaitable[str]], events: list[str]) -> Errands:
    def add(event: EventType, **fields: object) -> SimpleNamespace:
        events.append(event.text.format(**fields))
        return SimpleNamespace(text=events[-1])

    async def note(monitor: object, what: str, text: str) -> None:
        assert what in ("errand-failed", "errand-waits") and text == events[-1]

    core = SimpleNamespace(home=HomeDirectory(str(tmp_path)), events=SimpleNamespace(add=add))
    return Errands(core, tell, note)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.limits.ERRAND_RETRY_S", 0.01)


async def run_until_nothing_is_left(found: Errands) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.run)
            while found.left:  # noqa: ASYNC110 -- nobody tells
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_script_is_started_when_home_can_be_reached_again(tmp_path: Path) -> None:
    told, events = Told(3), list[str]()
    found = errands(tmp_path, told, events)
    await found.post_script(facts(), "one")
    await found.post_script(facts(), "one")
    await run_until_nothing_is_left(found)
    assert told.attempts == ["one"]
    assert events == [
        "monitor web: alpha was asked and has not yet acknowledged: run its source-post-failback script:"
        " it is down",
        "monitor web: alpha has acknowledged: run its source-post-failback script",
    ]


async def test_it_survives_the_agent(tmp_path: Path) -> None:
    await errands(tmp_path, Told(0), []).post_script(facts(), "one")
    told = Told(1)
    await run_until_nothing_is_left(errands(tmp_path, told, []))
    assert told.attempts == ["one"]
    assert errands(tmp_path, told, []).left == ()


async def test_one_that_fails_there_is_told_of_and_not_asked_for_again(tmp_path: Path) -> None:
    told, events = Told(0, "/start: exit code 3"), list[str]()
    found = errands(tmp_path, told, events)
    await found.post_script(facts(), "one")
    await run_until_nothing_is_left(found)
    assert told.attempts == ["one"]
    assert events == [
        "monitor web: alpha was asked, and failed: run its source-post-failback script: /start: exit code 3"
    ]


async def test_after_a_month_a_person_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.limits.ERRAND_GIVE_UP_S", 0.0)
    events: list[str] = []
    found = errands(tmp_path, Told(10**9), events)
    await found.post_script(facts(), "one")
    await run_until_nothing_is_left(found)
    assert events == ["monitor web: alpha was asked in vain: run its source-post-failback script: it is down"]
