"""What a source makes of what it hears of its groups: fences, records, leases. Only pages are real."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from replicator import limits
from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover import guards as guards_module
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.failover.fenced_start import FencedStart
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.grants import Answer
from replicator.agent.failover.guards import Guards, Unwatch, Watch, boottime_s
from replicator.agent.failover.leases import Leases
from replicator.agent.failover.releasing import Releasing
from replicator.agent.failover.returning import Returning
from replicator.agent.state import Away, Connection, Mount, State
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError
from replicator.failover.lease import Renew, Renewed
from replicator.failovers import GuardedAddress, Lapse, Promotion
from replicator.fences import FenceMode
from replicator.fs.fence import FencePage
from replicator.paths import Home
from replicator.repset import ReplicationSet
from replicator.security.trust import Peer

ME, TARGET, OTHER, GROUP, CON, MOUNT = (str(uuid.UUID(int=n)) for n in range(1, 7))


class FakeCore:
    """An agent with one mount and one connection."""

    def __init__(self, base: Path) -> None:
        self.home = Home(str(base))
        self.home.create()
        connection = Connection(
            uuid=CON, id=1, repset=ReplicationSet(name="web"), target_host="beta", target_port=1500, maps=(),
            created=0.0,
        )  # fmt: skip
        mount = Mount(id=MOUNT, path="/srv/data", mountpoint="/srv/data")
        self.state = State(mounts=(mount,), connections=(connection,))
        self.identity = SimpleNamespace(uuid=ME, name="alpha")
        self.told: list[tuple[int, dict[str, object]]] = []
        self.events = SimpleNamespace(add=lambda type_, **fields: self.told.append((type_.id, fields)))
        self.children = SimpleNamespace(
            journals=lambda connection: [SimpleNamespace(mount=mount)],
            capture=lambda mount: self.capture,
            fence=lambda mount: self.home.fence(mount.id),
            tell_sender=self._tell_sender,
            sender=lambda connection: self.sender,
            journal_settings=lambda mount: SimpleNamespace(memory_directory=str(base / "memory")),
        )
        self.capture = SimpleNamespace(pid=1, call=self._call)
        self.sender: Any = SimpleNamespace(call=self._say)
        self.tracking = False
        self.behind_s = 0.0
        self.pages: list[str] = []
        self.superseded: list[str] = []

    async def _say(self, name: str) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"tracking": self.tracking} if name == "status" else {"recovery_point_seconds": self.behind_s}

    async def _call(self, name: str, **arguments: str) -> None:
        await trio.lowlevel.checkpoint()
        assert name == "set_fence"
        self.pages.append(arguments["page"])

    async def _tell_sender(self, connection: Connection, call: str, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        self.superseded.append(reason)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Any]:
        yield SimpleNamespace(save=self.save)

    async def save(self, **fields: Any) -> None:
        await trio.lowlevel.checkpoint()
        # Survives what a restart does to it.
        state = msgspec.structs.replace(self.state, **fields)
        self.state = msgspec.json.decode(msgspec.json.encode(state), type=State)


class Bench:
    def __init__(self, base: Path) -> None:
        self.core = FakeCore(base)
        self.answers: dict[str, Callable[[Renew], Answer]] = {}
        self.asked: list[Renew] = []
        self.dropped: list[str] = []
        self.answers_after_s = 0.0  # the target
        self.restart()

    def restart(self) -> None:
        """Of the agent. Its capture stays."""
        core = cast(Core, self.core)
        self.calls = Calls(cast(Any, None))
        self.calls.ask = self._ask  # type: ignore[method-assign,assignment]
        self.fencing = Fencing(core)
        self.guards = Guards(core, self.calls, self.fencing)
        witnesses = SimpleNamespace(at=lambda name: SimpleNamespace(renew=self._renew_at_witness))
        self.leases = Leases(core, self.calls, self.guards, self.fencing, cast(Any, witnesses))
        self.start = FencedStart(core, self.guards, self.fencing)
        self.returning = Returning(core, self.guards, self._drop)

    async def _drop(self, group: str, wanted: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.dropped += list(wanted)

    async def _ask(self, address: object, action: str, group: str, body: Renew, answer: type) -> Answer:
        await trio.lowlevel.checkpoint()
        assert action == "renew"
        self.asked.append(body)
        await trio.sleep(self.answers_after_s)
        if "target" not in self.answers:
            raise UnreachableError("away")
        return self.answers["target"](body)

    async def _renew_at_witness(self, group: str, body: Renew) -> Renewed:
        await trio.lowlevel.checkpoint()
        if "witness" not in self.answers:
            raise UnreachableError("away")
        return self.answers["witness"](body).renewed

    async def watch(self, **fields: Any) -> guards_module.Watched:
        body = Watch(name="web", target_uuid=TARGET, target_name="beta", copies=(CON,), **fields)
        return await self.guards._watch(GROUP, body, caller())

    async def ask(self) -> None:
        """One round."""
        (guard,) = self.guards.all()
        owner = self.guards.standing(guard).owner
        for granter in ("target", "witness") if guard.witness else ("target",):
            owner._due_s[granter] = 0.0
            await self.leases._ask(guard, granter)
        await self.leases._look(GROUP)

    @property
    def mode(self) -> FenceMode | None:
        """What happens to a change; None: it is carried out."""
        page = self.fencing._pages.get(MOUNT)
        return None if page is None or page.is_open or page.mode is FenceMode.NONE else page.mode

    def events(self) -> list[int]:
        found, self.core.told = [number for number, _ in self.core.told], []
        return found


def caller(uuid: str = TARGET) -> Caller:
    return Caller(cast(Peer, SimpleNamespace(uuid=uuid, name="beta")), "10.0.0.6")


def grant(lease_s: float = 5.0) -> Callable[[Renew], Answer]:
    return lambda request: Answer(renewed=Renewed(granted=True, lease_s=lease_s, epoch=request.epoch))


def record(epoch: int = 1, owner: str = TARGET) -> Promotion:
    return Promotion(group=GROUP, epoch=epoch, parent_epoch=epoch - 1, owner=owner, owner_name="beta")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves CLOCK_BOOTTIME."""
    from replicator.fs import fence

    shift_ns = 0
    real = fence.clock_ns

    def shifted(which: int) -> int:
        return real(which) + shift_ns

    def advance(seconds: float) -> None:
        nonlocal shift_ns
        shift_ns += int(seconds * 1e9)

    monkeypatch.setattr(fence, "clock_ns", shifted)
    return advance


@pytest.fixture
def bench(tmp_path: Path, clock: object) -> Bench:
    return Bench(tmp_path)


Advance = Callable[[float], None]


async def test_a_source_that_need_not_stop_has_no_fence(bench: Bench) -> None:
    await bench.watch()
    await bench.guards.settle()
    assert bench.fencing.state(MOUNT) is None and bench.core.pages == []
    bench.answers["target"] = grant()
    await bench.ask()
    assert not bench.asked[-1].enforced
    assert bench.fencing.state(MOUNT) is None


async def test_nobody_counts_on_a_stop_before_it_is_set_up(bench: Bench, clock: Advance) -> None:
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    assert bench.mode is None
    await bench.ask()  # and no answer
    assert not bench.asked[-1].enforced and bench.mode is None
    clock(60)
    assert bench.mode is None
    bench.answers["target"] = grant()
    await bench.ask()
    assert not bench.asked[-1].enforced
    assert bench.mode is None and bench.core.pages == [bench.core.home.fence(MOUNT)]
    await bench.ask()
    assert bench.asked[-1].enforced
    clock(5.1)
    assert bench.mode is FenceMode.SUSPEND
    await bench.ask()
    assert bench.mode is None


async def test_a_capture_that_knows_no_fences_is_not_counted_on(bench: Bench) -> None:
    async def refuse(name: str, **arguments: str) -> None:
        await trio.lowlevel.checkpoint()
        raise ReplicatorError("unknown call")

    bench.core.capture.call = refuse
    bench.answers["target"] = grant()
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    for _ in range(3):
        await bench.ask()
    assert not any(request.enforced for request in bench.asked)
    assert 9352 in bench.events()


async def test_a_restart_of_the_agent_changes_nothing(
    bench: Bench, clock: Advance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FencedStart, "_was_up", lambda self, mount: True)
    bench.answers["target"] = grant(10.0)
    await bench.watch(lapse=Lapse.READ_ONLY, lease_s=10.0)
    await bench.ask()
    until_ns = bench.fencing.until_ns(MOUNT)
    del bench.answers["target"]
    bench.restart()
    await bench.start.before_mounts()
    await bench.ask()
    assert bench.fencing.until_ns(MOUNT) == until_ns and bench.mode is None
    clock(10.1)
    assert bench.mode is FenceMode.READ_ONLY


@pytest.mark.parametrize("witness", ["", "gamma"])
async def test_a_source_that_comes_back(bench: Bench, clock: Advance, witness: str) -> None:
    await bench.watch(witness=witness)
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is FenceMode.READ_ONLY and 9354 in bench.events()
    await bench.ask()
    assert bench.mode is FenceMode.READ_ONLY
    clock(limits.START_FENCED_S + 1)
    await bench.ask()
    if witness:
        assert bench.mode is FenceMode.READ_ONLY and 9356 in bench.events()
        clock(10_000)
        await bench.ask()
        assert bench.mode is FenceMode.READ_ONLY and 9356 not in bench.events()
        bench.answers["witness"] = grant()
        await bench.ask()
    else:
        assert 9355 in bench.events()
    assert bench.mode is None


@pytest.mark.parametrize("lapse", [Lapse.NONE, Lapse.SUSPEND])
async def test_an_answer_may_come_when_the_next_request_is_due(
    bench: Bench, clock: Advance, lapse: Lapse
) -> None:
    """On a slow line none would ever come otherwise: each request was given up for the next one."""
    await bench.watch(lapse=lapse, lease_s=1.0)
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is not None
    bench.answers["target"], bench.answers_after_s = grant(1.0), 0.5  # a third of a lease is its turn
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.leases.run)
        with trio.fail_after(30):
            while bench.mode is not None:  # noqa: ASYNC110 (a fence has no event for tests)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_superseded_by_whoever_says_so(bench: Bench) -> None:
    await bench.watch(addresses=())
    bench.answers["target"] = lambda request: Answer(
        renewed=Renewed(granted=False, epoch=1, promotion=record())
    )
    await bench.ask()
    assert bench.mode is FenceMode.READ_ONLY
    (guard,) = bench.guards.all()
    assert guard.superseded == record() and guard.is_superseded and guard.is_held
    assert bench.core.state.superseding(CON) == record()
    assert 4018 in (found := bench.events()) and 9358 in found
    assert "restore required" in bench.core.superseded[-1]
    # Again, and after a restart: it stays so, and is said once at each start.
    assert not await bench.guards.supersede(GROUP, record())
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is FenceMode.READ_ONLY
    await bench.returning.begin()
    assert bench.events().count(4018) == 1
    await bench.guards.forget(GROUP)  # its monitor is removed: the data is not this host's again
    assert bench.mode is FenceMode.READ_ONLY


async def test_the_fence_closes_before_the_record_is_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.watch()
    seen: list[FenceMode | None] = []
    save = bench.core.save

    async def slow(**fields: Any) -> None:
        seen.append(bench.mode)
        await bench.guards.settle()  # as something else may at that moment
        seen.append(bench.mode)
        await save(**fields)

    monkeypatch.setattr(bench.core, "save", slow)
    await bench.guards.supersede(GROUP, record())
    assert seen == [FenceMode.READ_ONLY] * 2


async def test_opened_by_a_person(bench: Bench) -> None:
    await bench.watch()
    with pytest.raises(ReplicatorError, match="may be written already"):
        await bench.returning.open("web", even_if_two_masters=True)
    await bench.guards.supersede(GROUP, record(1))
    with pytest.raises(ReplicatorError, match="compare both"):
        await bench.returning.open("web", even_if_two_masters=False)
    assert bench.mode is FenceMode.READ_ONLY
    await bench.returning.open("web", even_if_two_masters=True)
    assert bench.mode is None and 9357 in bench.events()
    (guard,) = bench.guards.all()
    assert guard.is_held  # nothing of it is sent
    assert not await bench.guards.supersede(GROUP, record(1)) and bench.mode is None
    assert await bench.guards.supersede(GROUP, record(2)) and bench.mode is FenceMode.READ_ONLY


async def test_a_copy_of_what_another_owns_is_not_opened(bench: Bench) -> None:
    """Its owner writes it: a program that did so as well would make it neither's."""
    await bench.watch()
    await bench.guards.supersede(GROUP, record(1))
    away = Away(connection="c", copy="r", group=GROUP, epoch=1)
    await bench.core.save(away=(away,))
    with pytest.raises(ReplicatorError, match="has become a copy"):
        await bench.returning.open("web", even_if_two_masters=True)
    assert bench.mode is FenceMode.READ_ONLY


async def test_opened_by_a_person_needs_no_lease_until_one_comes(bench: Bench, clock: Advance) -> None:
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    bench.restart()
    await bench.start.before_mounts()
    await bench.returning.open("web", even_if_two_masters=True)
    clock(100)
    await bench.ask()
    assert bench.mode is None and not bench.asked[-1].enforced
    bench.answers["target"] = grant()
    await bench.ask()
    await bench.ask()
    assert bench.asked[-1].enforced
    clock(6)
    assert bench.mode is FenceMode.SUSPEND


async def test_a_group_whose_copies_are_gone(bench: Bench, clock: Advance) -> None:
    """Its addresses are left: nothing is fenced, whatever becomes of it, and its leases hold nothing up."""
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    bench.answers["target"] = grant()
    await bench.ask()
    await bench.ask()
    assert bench.asked[-1].enforced
    await bench.core.save(connections=())  # disconnected
    await bench.guards.settle()
    clock(100)
    assert bench.mode is None
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0, terms=1)  # the target says so again, without copies
    (guard,) = bench.guards.all()
    assert bench.guards.mounts_of(guard) == () and bench.mode is None
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is None
    await bench.guards.supersede(GROUP, record(1))
    assert bench.mode is None and bench.core.superseded == []
    assert bench.dropped == []  # it had none
    await bench.guards.change(GROUP, addresses=(GuardedAddress(address="10.0.0.5/24"),))
    await bench.returning.begin()
    assert bench.dropped == ["10.0.0.5/24"]


class Sent:
    """Addresses, as `GroupAddresses`, and what a former owner ends."""

    def __init__(self, core: FakeCore) -> None:
        self.core = core
        self.put_back_groups: list[str] = []
        self.ended: list[Promotion] = []
        self.problem = ""

    async def put_back(self, group: str, *, forced: bool, say: object) -> None:
        await trio.lowlevel.checkpoint()
        self.put_back_groups.append(group)
        if self.problem:
            raise ReplicatorError(self.problem)

    async def end(self, promotion: Promotion) -> None:
        self.ended.append(promotion)
        await self.core.save(away=())


def releasing(bench: Bench) -> tuple[Releasing, Sent, list[str]]:
    sent, started = Sent(bench.core), []

    async def start(what: Any, patient: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        started.append(what.uuid if isinstance(what, Connection) else what.id)

    bench.core.children.start_sender = bench.core.children.start_capture = start
    bench.core.children.receiver = lambda uuid: None
    core = cast(Core, bench.core)
    return Releasing(core, bench.guards, cast(Any, sent), cast(Any, sent)), sent, started


async def test_a_source_is_released_from_a_target_that_is_lost(bench: Bench, clock: Advance) -> None:
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    release, sent, started = releasing(bench)
    bench.answers["target"] = grant()
    await bench.ask()
    await bench.ask()
    with pytest.raises(ReplicatorError, match=r"has a lease.*dtctl failover remove web on beta"):
        await release.release("web", even_if_two_masters=True)  # the target counts on its stop
    del bench.answers["target"]
    clock(60)
    assert bench.mode is FenceMode.SUSPEND
    with pytest.raises(ReplicatorError, match="--even-if-two-masters") as told:
        await release.release("web", even_if_two_masters=False)
    assert "\n" not in str(told.value) and bench.mode is FenceMode.SUSPEND
    sent.problem = "10.0.0.5/24 is in use"
    found = await release.release("web", even_if_two_masters=True)
    assert found.connections == (1,) and found.problems == ("addresses are not back: 10.0.0.5/24 is in use",)
    assert bench.guards.all() == () and bench.mode is None and 9362 in bench.events()
    assert sent.put_back_groups == [GROUP] and started == [CON] and sent.ended == []
    with pytest.raises(NotFoundError):
        await release.release("web", even_if_two_masters=True)


async def test_a_copy_of_a_lost_owner_is_this_hosts_own_again(bench: Bench) -> None:
    await bench.watch()
    await bench.guards.supersede(GROUP, record(1))
    away = Away(connection=CON, copy="r", group=GROUP, epoch=1, mounts=(MOUNT,), told=True)
    await bench.core.save(away=(away,))
    release, sent, started = releasing(bench)
    with pytest.raises(ReplicatorError, match="may be writing still"):
        await release.release("web", even_if_two_masters=False)
    await release.release("web", even_if_two_masters=True)
    assert sent.ended == [record(1)] and started == [MOUNT, CON] and bench.mode is None


async def test_its_target_hears_what_the_copies_lack(bench: Bench, clock: Advance) -> None:
    await bench.watch()
    bench.answers["target"] = grant()
    (guard,) = bench.guards.all()

    async def said() -> float | None:
        bench.leases._behind[GROUP] = await bench.leases._behind_of(guard), boottime_s()
        await bench.ask()
        return bench.asked[-1].behind_s

    await bench.ask()
    assert bench.asked[-1].behind_s is None  # nobody has looked yet
    assert await said() == 0.0
    bench.core.behind_s = 7.0
    found = await said()
    assert found is not None and 7.0 <= found < 8.0
    clock(10.0)  # the sender does not answer meanwhile
    await bench.ask()
    found = bench.asked[-1].behind_s
    assert found is not None and 17.0 <= found < 18.0
    clock(limits.GUARD_LAG_OLD_S)
    await bench.ask()
    assert bench.asked[-1].behind_s is None
    bench.core.tracking = True  # what is tracked has no age
    assert await said() is None
    bench.core.sender = None
    assert await said() is None


async def test_who_is_believed(bench: Bench) -> None:
    body = Watch(name="web", target_uuid=TARGET, target_name="beta", copies=(CON,))
    with pytest.raises(NotPermittedError):
        await bench.guards._watch(GROUP, body, caller(OTHER))
    await bench.watch()
    stolen = msgspec.structs.replace(body, target_uuid=OTHER)
    with pytest.raises(NotPermittedError):
        await bench.guards._watch(GROUP, stolen, caller(OTHER))
    for call in (
        lambda: bench.guards._unwatch(GROUP, Unwatch(), caller(OTHER)),
        lambda: bench.guards._tell(GROUP, guards_module.Tell(promotion=record()), caller(OTHER)),
    ):
        with pytest.raises(NotPermittedError):
            await call()
    # A copy whose sender has met another agent is none of its.
    Path(bench.core.home.source(CON)).parent.mkdir(exist_ok=True)
    Path(bench.core.home.source(CON)).write_text(f'{{"target_uuid": "{TARGET}"}}')
    foreign = Watch(name="theirs", target_uuid=OTHER, target_name="gamma", copies=(CON,))
    answer = await bench.guards._watch(str(uuid.uuid4()), foreign, caller(OTHER))
    assert answer.copies == ()


async def test_settings_that_come_late_change_nothing(bench: Bench) -> None:
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0, terms=3)
    answer = await bench.watch(lapse=Lapse.NONE, terms=2)  # was sent before, and held up
    assert bench.guards.find("web").lapse is Lapse.SUSPEND and answer.terms == 3
    await bench.watch(lapse=Lapse.NONE, terms=4)
    assert bench.guards.find("web").lapse is Lapse.NONE


async def test_who_is_superseded_while_its_target_says_something_stays_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.watch(terms=1)
    is_target = bench.guards._is_target

    async def slow(connection: str, target_uuid: str) -> bool:
        await bench.guards.supersede(GROUP, record())
        return await is_target(connection, target_uuid)

    monkeypatch.setattr(bench.guards, "_is_target", slow)
    await bench.watch(terms=2)
    assert bench.guards.find("web").terms == 2 and bench.guards.find("web").is_superseded
    assert bench.mode is FenceMode.READ_ONLY


async def test_nobody_asks_senders_what_no_target_wants_to_know(bench: Bench) -> None:
    await bench.watch()
    bench.answers["target"] = grant()
    await bench.ask()
    assert bench.leases._asked_lag == set()
    bench.answers["target"] = lambda request: msgspec.structs.replace(grant()(request), asks_lag=True)
    await bench.ask()
    assert bench.leases._asked_lag == {GROUP}
    bench.answers["target"] = grant()
    await bench.ask()
    assert bench.leases._asked_lag == set()


async def test_nobody_watches_any_more(bench: Bench, clock: Advance) -> None:
    bench.answers["target"] = grant()
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    await bench.ask()
    assert bench.fencing.state(MOUNT) is not None
    bench.answers["target"] = lambda request: Answer(renewed=Renewed(granted=False), watched=False)
    await bench.leases._ask(bench.guards.find("web"), "target")
    assert bench.guards.all() == () and bench.fencing.state(MOUNT) is None
    assert bench.core.pages[-1] == bench.core.home.fence(MOUNT) and bench.mode is None


async def test_frozen_until_thawed(bench: Bench, clock: Advance) -> None:
    bench.answers["target"] = grant()
    await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
    await bench.ask()
    await bench.fencing.freeze([MOUNT])
    assert bench.mode is FenceMode.FROZEN
    await bench.ask()  # a lease opens nothing
    assert bench.mode is FenceMode.FROZEN
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is FenceMode.FROZEN
    await bench.ask()
    assert bench.mode is FenceMode.FROZEN
    await bench.fencing.thaw([MOUNT])
    assert bench.mode is None
    await bench.fencing.freeze([MOUNT])
    await bench.guards.supersede(GROUP, record())  # what waits fails
    assert bench.mode is FenceMode.READ_ONLY
    await bench.fencing.thaw([MOUNT])
    assert bench.mode is FenceMode.READ_ONLY


async def test_fences_that_others_have_closed_stay_so(bench: Bench) -> None:
    """A hand-over closes mounts that no group guards."""
    await bench.fencing.set_mode([MOUNT], FenceMode.READ_ONLY, 0)
    await bench.guards.settle()
    assert bench.mode is FenceMode.READ_ONLY
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is FenceMode.READ_ONLY
    await bench.fencing.remove([MOUNT])
    assert bench.mode is None


async def test_a_lapsing_fence_without_group_goes(bench: Bench) -> None:
    """What a crash may leave of a group that nobody watches any more."""
    await bench.fencing.set_mode([MOUNT], FenceMode.SUSPEND, 1)
    bench.restart()
    await bench.start.before_mounts()
    assert bench.fencing.state(MOUNT) is None


async def test_a_freeze_holds_over_boots(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from replicator.fs import fence

    await bench.fencing.freeze([MOUNT])
    monkeypatch.setattr(fence, "_boot_id", lambda: b"b" * 36)
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is FenceMode.FROZEN and FencePage.find(bench.core.home.fence(MOUNT)) is not None
    await bench.fencing.thaw([MOUNT])
    assert bench.mode is None and bench.fencing.state(MOUNT) is None


@pytest.mark.parametrize("guarded", [False, True])
async def test_what_was_thawed_is_not_frozen_after_a_power_loss(
    bench: Bench, clock: Advance, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Of a mapped page, only what was synced is sure to be on the disk then."""
    page = Path(bench.core.home.fence(MOUNT))
    on_disk: list[bytes] = []
    sync = FencePage.sync

    def synced(self: FencePage) -> None:
        sync(self)
        on_disk.append(page.read_bytes())

    monkeypatch.setattr(FencePage, "sync", synced)
    bench.answers["target"] = grant()
    if guarded:
        await bench.watch(lapse=Lapse.SUSPEND, lease_s=5.0)
        await bench.ask()
    await bench.fencing.freeze([MOUNT])
    await bench.fencing.thaw([MOUNT])
    page.write_bytes(on_disk[-1])  # if it was removed: that may not be on the disk either
    bench.restart()
    await bench.start.before_mounts()
    assert bench.mode is not FenceMode.FROZEN


async def test_a_page_of_another_boot_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would close a mount that nobody guards any more."""
    from replicator.fs import fence

    await bench.fencing.set_mode([MOUNT], FenceMode.SUSPEND, 1)
    monkeypatch.setattr(fence, "_boot_id", lambda: b"b" * 36)
    bench.restart()
    await bench.start.before_mounts()
    assert not Path(bench.core.home.fence(MOUNT)).exists()
