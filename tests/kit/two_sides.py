"""Two hosts between which a group is handed back, as far as a failback sees them: what survives a crash of
the owner's agent. They complain at once when something happens that must not be.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from kit.disk import MemoryDisk, ProcessDied, SteppingClock
from kit.plans import InlineWorld
from replicator.agent.failover.failback_parts import Frozen, Held, Parts
from replicator.agent.failover.procedure import Facts, Taken
from replicator.errors import ReplicatorError
from replicator.failover.handback import Behind, Home, HomeCopy, Mark
from replicator.failovers import (
    Check,
    CheckKind,
    Monitor,
    MonitorSettings,
    Phase,
    Promotion,
    Script,
    ScriptKind,
    TakeOver,
    WatchedAddress,
)

CONNECTION = "6a3c8d7e-0000-4000-8000-000000000001"
GROUP = "6a3c8d7e-0000-4000-8000-00000000000a"
OWNER, HOME = "beta", "alpha"
ADDRESS = "10.0.0.5/24"


def monitor(*, scripts: bool = True) -> Monitor:
    chosen = {kind: Script(path=f"/{kind}") for kind in ScriptKind} if scripts else {}
    return Monitor(
        uuid=GROUP,
        name="web",
        settings=MonitorSettings(
            source_host="alpha",
            addresses=(WatchedAddress(address=ADDRESS, checks=(Check(CheckKind.AGENT),)),),
            copies=(CONNECTION,),
            scripts=chosen,
        ),
        source_uuid="agent-alpha",
        source_name=HOME,
        phase=Phase.ACTIVE,
        epoch=3,
    )


@dataclass
class Side:
    """One host. `writable`: programs can write there now; a frozen side is not."""

    name: str
    address: bool = False
    open: bool = False
    frozen: bool = False
    epoch: int = 3
    copy: bool = False  # it is kept as a copy of the other
    held: bool = False
    scripts: list[str] = field(default_factory=list)

    @property
    def writable(self) -> bool:
        return self.open and not self.frozen


@dataclass
class TwoSides:
    """`act(name)` is asked at each call: what happens to it, as `kit.plans.Script`. Calls are counted."""

    act: Callable[[str], str] = lambda name: ""
    disk: MemoryDisk = field(default_factory=MemoryDisk)

    def __post_init__(self) -> None:
        self.world = InlineWorld(disk=self.disk, clock=SteppingClock())
        self.owner = Side(OWNER, address=True, open=True)
        self.home = Side(HOME, copy=True)
        self.monitor: Monitor | None = monitor()
        self.home_monitor: Monitor | None = None
        self.record: Promotion | None = None
        self.vote = 3  # the epoch that the witness has agreed to
        self.written = 100  # operations of the owner
        self.arrived = 90
        self.resumed = False
        self.lost = False  # home never answers again
        self.errands: list[str] = []
        self.calls: list[str] = []
        self.wrong: list[str] = []

    def parts(self) -> Parts:
        return Parts(
            home=_Home(self), own=_Own(self), arbiter=_Witness(self), scripts=_Scripts(self),
            addresses=_Addresses(self), errands=_Errands(self),
        )  # fmt: skip

    async def happen(self, name: str, effect: Callable[[], object], *, home: bool = False) -> None:
        """`home`: only home can do it."""
        await trio.lowlevel.checkpoint()
        if home and self.lost:
            raise ReplicatorError("no answer")
        self.calls.append(name)
        how = self.act(name)
        if how not in ("fail", "die before"):
            effect()
            self.look(name)
        if how.startswith("die"):
            raise ProcessDied
        if how:
            raise ReplicatorError(f"planned: {how}")

    def look(self, after: str) -> None:
        """What must never be."""
        owner, home = self.owner, self.home
        if owner.writable and home.writable:
            self.wrong.append(f"after {after} both sides write")
        if owner.address and home.address:
            self.wrong.append(f"after {after} both sides have the address")
        if home.writable and (self.record is None or self.arrived != self.written):
            self.wrong.append(f"after {after} home is open without everything")
        if self.record is not None and owner.writable:
            self.wrong.append(f"after {after} the owner writes though home owns the group")
        if self.record is not None and owner.open and owner.copy:
            self.wrong.append(f"after {after} the copy is captured")

    # --- how it may end ---

    def problems(self) -> list[str]:
        if self.record is not None:
            expected = [
                (self.home.writable, "home does not serve"),
                (self.home.address, "home has no address"),
                (self.resumed, "home is not protected"),
                (self.owner.copy and not self.owner.open, "the owner keeps no copy"),
                (not self.owner.address, "the owner has the address"),
                (not self.home.held, "home is held"),
                (self.owner.epoch == self.record.epoch, "the owner does not know the epoch"),
                (self.vote == self.record.epoch, "the witness knows another owner"),
                ("/post-failback" in self.owner.scripts, "no post-failback script"),
                ("/source-post-failback" in self.errands, "no script at home"),
            ]
        else:
            expected = [
                (self.owner.writable, "the owner does not serve"),
                (self.owner.address, "the owner has no address"),
                (not self.home.address, "home has the address"),
                (not self.home.held, "home is held"),
                (not self.home.open, "home is open"),
                (self.vote == 3, "the witness was not told"),
            ]
        return [*self.wrong, *(text for holds, text in expected if not holds)]

    def problems_without_home(self) -> list[str]:
        """Where home was lost: whether this host can take over, with an epoch that home cannot have."""
        expected = [
            (self.owner.copy and not self.owner.open, "the owner keeps no copy"),
            (not self.owner.frozen, "the owner is frozen"),
            (self.owner.epoch == 4, "the owner may take an epoch that home has"),
        ]
        return [*self.wrong, *(text for holds, text in expected if not holds)]


@dataclass
class _Part:
    sides: TwoSides


class _Home(_Part):
    async def look(self, monitor: Monitor) -> Home:
        copy = HomeCopy(connection=CONNECTION, repset="web", prepared=True, exact=True, data_state="OK")
        return Home(agent="agent-alpha", name=HOME, host="10.0.0.1", epoch=3, follows=True, copies=(copy,))

    async def prepare(self, monitor: Monitor) -> None:
        await self.sides.happen("prepare", lambda: None, home=True)

    async def hold(self, monitor: Monitor, order: TakeOver, attempt: str, say: object) -> Held:
        sides = self.sides

        def effect() -> None:
            sides.home.held = True

        await sides.happen("hold", effect, home=True)
        return Held(marks={CONNECTION: {"journal": (sides.arrived, sides.arrived)}})

    async def promote(self, monitor: Monitor, order: TakeOver, attempt: str) -> Promotion:
        sides = self.sides
        record = Promotion(
            group=order.group,
            epoch=order.epoch,
            parent_epoch=order.parent_epoch,
            owner="agent-alpha",
            owner_name=HOME,
            vote=order.vote,
        )

        def effect() -> None:
            if sides.vote != order.epoch:
                sides.wrong.append("promoted without a vote")
            if not sides.home.held or not sides.owner.frozen:
                sides.wrong.append("promoted while something moves")
            sides.record = sides.record or record
            sides.home.epoch = order.epoch

        await sides.happen("promote", effect, home=True)
        assert sides.record is not None
        return sides.record

    async def promotion(self, monitor: Monitor, epoch: int, attempt: str) -> Promotion | None:
        if self.sides.lost:
            await trio.sleep_forever()
        return self.sides.record

    async def open(self, monitor: Monitor, promotion: Promotion, say: object) -> None:
        def effect() -> None:
            self.sides.home.open, self.sides.home.held, self.sides.home.copy = True, False, False

        await self.sides.happen("open", effect, home=True)

    async def resume(self, monitor: Monitor, promotion: Promotion) -> None:
        def effect() -> None:
            self.sides.resumed = True
            if not self.sides.owner.copy:
                self.sides.wrong.append("home sends before there is a copy")

        await self.sides.happen("resume", effect, home=True)

    async def take(self, monitor: Monitor, attempt: str, *, forced: bool, say: object) -> Taken:
        def effect() -> None:
            self.sides.home.address = True

        await self.sides.happen("home takes", effect, home=True)
        return Taken(taken=(ADDRESS,))

    async def give_up(self, monitor: Monitor, attempt: str) -> None:
        def effect() -> None:
            self.sides.home.address = False

        await self.sides.happen("home gives up", effect, home=True)

    async def adopt(self, monitor: Monitor, attempt: str) -> None:
        def effect() -> None:
            self.sides.home_monitor = monitor

        await self.sides.happen("adopt", effect, home=True)

    async def disown(self, monitor: Monitor, attempt: str) -> None:
        def effect() -> None:
            self.sides.home_monitor = None

        await self.sides.happen("disown", effect, home=True)

    async def retire(self, monitor: Monitor) -> None:
        def effect() -> None:
            if self.sides.monitor is not None:
                self.sides.wrong.append("home retires before the owner has turned")

        await self.sides.happen("retire", effect, home=True)


class _Own(_Part):
    def connections(self, monitor: Monitor) -> tuple[str, ...]:
        return (CONNECTION,)

    async def behind(self, monitor: Monitor) -> tuple[Behind, ...]:
        return (Behind(connection=CONNECTION, operations=10, bytes=1000),)

    async def catch_up(self, monitor: Monitor, say: object) -> None:
        def effect() -> None:
            self.sides.arrived = self.sides.written - 1

        await self.sides.happen("catch up", effect)

    async def freeze(self, monitor: Monitor) -> Frozen:
        def effect() -> None:
            self.sides.owner.frozen = True

        await self.sides.happen("freeze", effect)
        return Frozen(mounts=("mount",))

    async def thaw(self, monitor: Monitor) -> None:
        def effect() -> None:
            self.sides.owner.frozen = False

        await self.sides.happen("thaw", effect)

    async def drain(self, monitor: Monitor, say: object) -> dict[str, dict[str, Mark]]:
        sides = self.sides

        def effect() -> None:
            if not sides.owner.frozen:
                sides.wrong.append("drained while programs write")
            sides.arrived = sides.written

        await sides.happen("drain", effect)
        return {CONNECTION: {"journal": (sides.written, sides.written)}}

    async def follow(
        self, monitor: Monitor, promotion: Promotion, connections: object, frozen: Frozen, say: object
    ) -> None:
        sides = self.sides

        def effect() -> None:
            if (connections, frozen.mounts) != ((CONNECTION,), ("mount",)):
                sides.wrong.append("it follows with something else")
            if not sides.home.open and not sides.lost:
                sides.wrong.append("the owner lets go before home is open")
            sides.owner.open, sides.owner.frozen, sides.owner.copy = False, False, True
            sides.owner.epoch = promotion.epoch

        await sides.happen("follow", effect)

    async def turn_around(self, monitor: Monitor) -> None:
        def effect() -> None:
            self.sides.monitor = None

        await self.sides.happen("turn", effect)

    async def has_turned(self, monitor: Monitor) -> bool:
        return self.sides.monitor is None


class _Witness(_Part):
    async def hand_over(
        self, monitor: Monitor, epoch: int, to: str, attempt: str, *, forced: bool, say: object
    ) -> str:
        def effect() -> None:
            self.sides.vote = epoch

        await self.sides.happen("vote", effect)
        return "witness"

    async def tell(self, monitor: Monitor, promotion: Promotion) -> None:
        await self.sides.happen("tell", lambda: None)


class _Scripts(_Part):
    async def run(self, facts: Facts, attempt: str, say: object) -> None:
        path = facts.monitor.settings.scripts[facts.kind].path
        await self.sides.happen(f"script {facts.kind}", lambda: self.sides.owner.scripts.append(path))


class _Addresses(_Part):
    async def take(self, monitor: Monitor, *, forced: bool, say: object) -> Taken:
        def effect() -> None:
            self.sides.owner.address = True

        await self.sides.happen("owner takes", effect)
        return Taken(taken=(ADDRESS,))

    async def give_up(self, monitor: Monitor, say: object) -> None:
        def effect() -> None:
            self.sides.owner.address = False

        await self.sides.happen("owner gives up", effect)


class _Errands(_Part):
    async def post_script(self, facts: Facts, attempt: str) -> None:
        path = facts.monitor.settings.scripts[facts.kind].path
        await self.sides.happen("errand", lambda: self.sides.errands.append(path))

    async def post_release(self, monitor: Monitor, order: TakeOver, attempt: str) -> None:
        sides = self.sides

        def effect() -> None:
            sides.home.held = False
            sides.vote = order.parent_epoch
            if sides.record is not None:
                sides.wrong.append("released though it was promoted")

        await sides.happen("release", effect)

    async def settle(self, group: str) -> None:
        pass
