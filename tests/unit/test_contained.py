"""What the outside does to tasks of failover: it is told once, and they go on. A bug ends the agent."""

import errno
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing
from kit.disk import MemoryDisk, SteppingClock
from kit.plans import InlineWorld

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover import arbiter, drills, errands
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.arbiter import Arbiter, Owed
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.contained import Contained, reason_of
from replicator.agent.failover.drill_order import Findings
from replicator.agent.failover.drills import Drills
from replicator.agent.failover.dropping import Dropping
from replicator.agent.failover.errands import Errand, Errands, Left
from replicator.agent.failover.etcd import EtcdWitness, parse_etcd
from replicator.agent.failover.procedures import Kind, Procedures
from replicator.agent.state import State, StateError
from replicator.agent.watch import Watch
from replicator.errors import ReplicatorError, UnreachableError
from replicator.events import EventRing
from replicator.failover import addresses
from replicator.failover.phases import GroupEvent
from replicator.failover.plan_runner import Plan, Run, Step
from replicator.failover.scripts import Scripts
from replicator.failover_drills import Drill, DrillRequest, DrillState
from replicator.failovers import Monitor, MonitorSettings, Phase, Promotion, TakeOver
from replicator.paths import Home
from replicator.status import ConnectionStatus

FULL = OSError(errno.ENOSPC, "No space left on device", "/var/lib/replicator")
GROUP = str(uuid.UUID(int=7))
MONITOR = Monitor(uuid=GROUP, name="web", settings=MonitorSettings(source_host="alpha"))


class Outside:
    """A ring of events, and how often something still fails."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.ring = EventRing(lambda: 0, lambda event: None)
        self.calls = 0

    async def meet(self) -> None:
        await trio.lowlevel.checkpoint()
        self.fail()

    def fail(self) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)

    @property
    def told(self) -> list[str]:
        return [event.text for event in self.ring.since()]


async def test_it_is_told_once_and_begun_again(autojump_clock: object) -> None:
    gone = trio.BrokenResourceError("the peer is gone")
    outside = Outside(FULL, FULL, UnreachableError("away"), gone, msgspec.ValidationError("no number"))
    await Contained(outside.ring).keep("errands", outside.meet)
    assert outside.calls == 6
    assert [text.split(": ", 1)[1] for text in outside.told] == [
        "/var/lib/replicator: No space left on device; it is tried again",
        "away; it is tried again",
        "the peer is gone; it is tried again",
        "no number; it is tried again",
    ]


async def test_what_had_worked_is_told_again(autojump_clock: object) -> None:
    outside = Outside(FULL, FULL)

    async def work() -> None:
        await trio.sleep(limits.FAILOVER_WORKED_S)
        await outside.meet()

    await Contained(outside.ring).keep("errands", work)
    assert len(outside.told) == 2


async def test_several_at_once(autojump_clock: object) -> None:
    outside = Outside(FULL, ReplicatorError("no"))

    async def fail() -> None:
        outside.fail()

    async def work() -> None:
        if outside.failures:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(fail)

    await Contained(outside.ring).keep("leases", work)
    (text,) = outside.told
    assert "No space left on device" in text and "no" in text.split("; ")


async def test_a_bug_is_none_of_it(autojump_clock: object) -> None:
    outside = Outside(FULL, ZeroDivisionError())
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Contained(outside.ring).keep, "leases", outside.meet)
    assert caught.group_contains(ZeroDivisionError) and len(outside.told) == 1


async def test_an_end_of_the_agent_is_none_of_it(autojump_clock: object) -> None:
    outside = Outside()
    with trio.move_on_after(5) as scope:
        await Contained(outside.ring).keep("leases", trio.sleep_forever)
    assert scope.cancelled_caught and outside.told == []


def test_reasons_are_one_line() -> None:
    assert reason_of(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert reason_of(ReplicatorError("a\nb")) == "a?b"
    assert reason_of(trio.BrokenResourceError()) == "BrokenResourceError"


# --- each task ---


def core_of(outside: Outside, base: Path) -> Core:
    home = Home(str(base))
    home.create()
    return cast(
        Core,
        SimpleNamespace(
            home=home, events=outside.ring, identity=SimpleNamespace(uuid="me", name="beta"), state=State()
        ),
    )


async def keeps(outside: Outside, work: Callable[[], Awaitable[None]], reached: Callable[[], bool]) -> None:
    """`work` comes to where it should, whatever it has met."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Contained(outside.ring).keep, "it", work)
        with trio.fail_after(30):
            while not reached():  # noqa: ASYNC110  # in the way of the product
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def fails_to_save(module: Any, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    save = module.save_document

    def saving(path: str, value: msgspec.Struct) -> None:
        outside.fail()
        save(path, value)

    monkeypatch.setattr(module, "save_document", saving)
    monkeypatch.setattr(limits, "FAILOVER_AGAIN_S", 0.01)
    monkeypatch.setattr(Contained.keep, "__defaults__", (0.01,))


async def test_a_vote_cannot_be_struck_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Outside(StateError("full"))
    asked: list[str] = []

    async def withdraw(group: str, body: object) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(group)

    witnesses = SimpleNamespace(at=lambda name: SimpleNamespace(withdraw=withdraw))
    asking = Arbiter(core_of(outside, tmp_path), cast(Any, witnesses), cast(Any, None))
    asking._owed = Owed(votes=(("gamma", GROUP, "try"),))
    fails_to_save(arbiter, outside, monkeypatch)
    await keeps(outside, asking.run, lambda: not asking._owed.votes)
    assert asked == [GROUP, GROUP] and len(outside.told) == 1


async def test_an_errand_cannot_be_struck_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Outside(StateError("full"), FULL)

    async def do(errand: Errand) -> str:
        await trio.lowlevel.checkpoint()
        return ""

    async def note(monitor: Monitor, what: str, text: str) -> None:
        await trio.lowlevel.checkpoint()

    order = TakeOver(group=GROUP, copies=(), parent_epoch=1)
    left = Left(errands=(Errand(monitor=MONITOR, attempt="a", since=0.0, order=order),))
    sent = Errands(core_of(outside, tmp_path), do, note)
    sent._left = left
    fails_to_save(errands, outside, monkeypatch)
    await keeps(outside, sent.run, lambda: not sent.left)
    assert [text for text in outside.told if "tried again" in text] == [
        "it: full; it is tried again",
        "it: /var/lib/replicator: No space left on device; it is tried again",
    ]


async def test_interfaces_cannot_be_looked_at(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once an address is taken it is announced for a while, whatever happens to the host's links."""
    outside = Outside(OSError(errno.EMFILE, "Too many open files"))

    async def look() -> addresses.Host:
        await outside.meet()
        return addresses.Host((), ())

    monkeypatch.setattr(addresses, "look", look)
    own = GroupAddresses(MemoryDisk(), "/book", outside.ring.add)
    place = cast(addresses.Place, SimpleNamespace(address=None))
    monkeypatch.setattr(addresses.Host, "has", lambda host, address: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.run)
        await trio.testing.wait_all_tasks_blocked()
        own._announce_for_a_while(GROUP, [place])
        await trio.sleep(sum(limits.ADDRESS_ANNOUNCED_S) + 1)
        nursery.cancel_scope.cancel()
    assert outside.calls == len(limits.ADDRESS_ANNOUNCED_S)


class Groups:
    """Of one group, whose state cannot be saved at first."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self.monitor = MONITOR

    def get(self, group: str) -> Monitor | None:
        return self.monitor if group == GROUP else None

    async def set_phase(self, group: str, phase: Phase) -> Monitor:
        await self.outside.meet()
        self.monitor = msgspec.structs.replace(self.monitor, phase=phase)
        return self.monitor


async def test_a_procedure_waits_for_the_disk_at_its_begin_and_end(autojump_clock: object) -> None:
    outside, warned = Outside(StateError("full"), StateError("full")), list[str]()
    groups, disk, done = Groups(outside), MemoryDisk(), list[str]()

    async def do(run: Run) -> None:
        await trio.lowlevel.checkpoint()
        done.append("it")
        outside.failures = [StateError("full")]

    async def ended(report: object) -> None:
        await trio.lowlevel.checkpoint()

    world = InlineWorld(disk=disk, clock=SteppingClock())
    procedures = Procedures("/home/failover", groups, world, ended, warned.append)
    plan = Plan("failover", [Step("it", do)])
    procedures.register(
        Kind("failover", lambda _: plan, GroupEvent.BEGIN, GroupEvent.COMPLETED, GroupEvent.TAKEN_BACK)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(procedures.run)
        await procedures.start("failover", GROUP, {}, reason="silent")
        nursery.cancel_scope.cancel()
    assert done == ["it"] and groups.monitor.phase is Phase.ACTIVE
    assert warned == [f"a procedure of group {GROUP} waits: full"] * 2  # begin and end
    assert procedures.report(GROUP) is None


async def test_arguments_that_nobody_understands_any_more() -> None:
    """Of a plan that other software has begun: that is told, and other groups go on."""
    disk, outside, warned = MemoryDisk(), Outside(), list[str]()

    def kind(build: Callable[[Any], Plan]) -> Kind:
        return Kind("failover", build, GroupEvent.BEGIN, GroupEvent.COMPLETED, GroupEvent.TAKEN_BACK)

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    world = InlineWorld(disk=disk, clock=SteppingClock())
    first = Procedures("/home/failover", Groups(outside), world)
    first.register(kind(lambda _: Plan("failover", [Step("it", forever)])))
    with trio.move_on_after(0.1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            nursery.start_soon(lambda: first.start("failover", GROUP, {}, reason="silent"))

    async def ended(report: object) -> None:
        await trio.lowlevel.checkpoint()

    second = Procedures("/home/failover", Groups(outside), world, ended, warned.append)
    second.register(kind(lambda arguments: arguments["monitor"]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.run)
        await second.ready()
        with pytest.raises(ReplicatorError, match="has to be looked at first"):
            await second.start("failover", GROUP, {}, reason="silent")
        nursery.cancel_scope.cancel()
    assert len(warned) == 1


async def test_what_a_power_cut_left_of_a_script(tmp_path: Path) -> None:
    """A file without content is no order, and ends nobody; a whole one is told, once, on a full disk too."""
    outside = Outside()
    for name, about in (("empty", b""), ("good", None)):
        directory = tmp_path / name
        directory.mkdir()
        good = {"kind": "post-failover", "group": "web", "script": {"path": "/x"}}
        (directory / "about.json").write_bytes(msgspec.json.encode(good) if about is None else about)
    scripts = Scripts(str(tmp_path), outside.ring.add)
    with trio.move_on_after(0.2):
        await scripts.serve()
    assert [event.id for event in outside.ring.since()] == [events.SCRIPT_FAILED.id]
    assert [name for name, _ in scripts.results()] == ["good"]


async def test_a_drill_whose_result_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Outside()

    class Room:
        pid = 0

        def __init__(self, directory: str) -> None: ...
        async def start(self, order: object) -> None: ...
        async def ready(self) -> None: ...
        async def result(self) -> Findings:
            return msgspec.json.decode(b"{", type=Findings)

        async def end(self, *, at_once: bool = False) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        def remove(self) -> None: ...

    async def nothing(*_: object) -> tuple[()]:
        await trio.lowlevel.checkpoint()
        return ()

    monkeypatch.setattr(drills, "RoomProcess", Room)
    groups = SimpleNamespace(find=lambda key: MONITOR, get=lambda group: None)
    core = core_of(outside, tmp_path)
    copies = SimpleNamespace(of=nothing)
    tried = Drills(core, cast(Any, groups), cast(Any, copies), cast(Any, None))
    monkeypatch.setattr(tried, "_order", nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tried.run)
        drill: Drill = await tried.begin("web", DrillRequest(check="true"))
        with trio.fail_after(10):
            while tried._under_way:  # noqa: ASYNC110  # what has ended is gone
                await trio.sleep(0.01)
            await tried.give_way(GROUP)
        (found,) = await tried.all("web")
        nursery.cancel_scope.cancel()
    assert found.uuid == drill.uuid and found.state is DrillState.IMPOSSIBLE


async def test_a_record_that_a_target_tells_of_cannot_be_saved() -> None:
    outside = Outside(StateError("full"))
    record = Promotion(group=GROUP, epoch=2, parent_epoch=1, owner="beta", owner_name="beta")
    status = cast(ConnectionStatus, SimpleNamespace(uuid="c", promotion=record))

    async def nobody() -> list[Any]:
        await trio.lowlevel.checkpoint()
        return []

    async def one() -> list[ConnectionStatus]:
        await trio.lowlevel.checkpoint()
        return [status]

    async def learn(connection: str, promotion: Promotion) -> None:
        await outside.meet()

    core = SimpleNamespace(
        children=SimpleNamespace(receivers=list), config=SimpleNamespace(target=SimpleNamespace(watch="off"))
    )
    watch = Watch(
        cast(Any, core), cast(Any, SimpleNamespace(all=one)), cast(Any, SimpleNamespace(all=nobody)), learn
    )
    watch._seen = {}
    await watch.look()
    watch._seen = {}
    await watch.look()
    assert outside.calls == 2


async def test_whoever_asks_hears_what_this_host_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class Talk:
        def __init__(self, channel: object) -> None: ...
        async def receive_line(self, bytes_max: int) -> bytes:
            await trio.lowlevel.checkpoint()
            return b'{"action":"dropped","body":{}}'

        async def send_line(self, answer: Any) -> None:
            await trio.lowlevel.checkpoint()
            said.append(answer)

    class Body(msgspec.Struct):
        pass

    async def handler(group: str, body: Body, caller: object) -> object:
        await trio.lowlevel.checkpoint()
        raise FULL

    monkeypatch.setattr("replicator.agent.failover.calls.Conversation", Talk)
    monkeypatch.setattr("replicator.agent.failover.calls._host", lambda channel: "")
    calls = Calls(cast(Any, None))
    calls.register("dropped", Body, handler)
    assert await calls.serve(GROUP, cast(Any, SimpleNamespace(peer=None))) == ""
    assert said[0].error == "this agent cannot do that now: No space left on device"


@pytest.mark.parametrize(
    "kvs", [5, [5], [{}], [{"value": 5, "mod_revision": "1"}], [{"value": "e30=", "mod_revision": []}]]
)
async def test_an_etcd_that_answers_nonsense(kvs: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one that does not answer."""
    witness = EtcdWitness(parse_etcd("etcd://127.0.0.1:1/prefix"))
    monkeypatch.setattr(witness, "_request", lambda *_: {"kvs": kvs})
    with pytest.raises(UnreachableError, match="damaged"):
        await witness.watch(GROUP)


async def test_addresses_that_are_given_back_while_others_are_dropped(autojump_clock: object) -> None:
    """By a call of their owner, between two looks at them."""

    class Own:
        async def drop(self, group: str, wanted: object) -> list[str]:
            await trio.lowlevel.checkpoint()
            dropping._unwanted.pop("b", None)
            return []

    class Guards:
        def get(self, group: str) -> object:
            return SimpleNamespace(is_superseded=True, superseded=None)

    own = cast(Any, Own())
    dropping = Dropping(Calls(cast(Any, None)), cast(Any, None), cast(Any, Guards()), own)
    dropping._unwanted = {"a": ("10.0.0.5/24",), "b": ("10.0.0.6/24",)}
    with trio.move_on_after(1):
        await dropping.run()
    assert list(dropping._unwanted) == ["a"]
