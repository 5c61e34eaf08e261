"""Source, target and witness of one group, for `failover_world`. What is decided is decided by the modules
that agents run (`replicator/failover`: monitor, lease, owner, writing, witness, candidate, rejoin, phases,
plan); here is what carries it out: sends, saves, fences, copies.

Data is a tuple of operations, each with the name of the host on which it was done and a number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kit.failover_world import Ask, Host, Program, Save, Sleep, World
from replicator import limits
from replicator.failover import lease, plan, rejoin, witness
from replicator.failover.candidate import Action, Attempt, Candidacy, Order, may_begin
from replicator.failover.lease import Granter, GrantMemory, Renew, Renewed
from replicator.failover.monitor import News, SourceMonitor
from replicator.failover.owner import TARGET, Owner
from replicator.failover.phases import GROUP, GroupEvent
from replicator.failover.witness import (
    Ballot,
    Observer,
    Tell,
    Told,
    Voted,
    Withdraw,
    Witness,
    WitnessFile,
    WitnessRefusedError,
)
from replicator.failovers import (
    Guard,
    Lapse,
    Monitor,
    MonitorSettings,
    Phase,
    Promotion,
    WatchedAddress,
)

GROUP_ID = "group"
S, T, W = "source", "target", "witness"
ADDRESS = "10.0.0.5/24"
CALL_S = 2.0
Data = tuple[tuple[str, int], ...]

FENCE, VOTE, DRAIN, PROMOTE, OPEN, ADDRESSES, TELL = (
    "fence",
    "vote",
    "drain",
    "promote",
    "open",
    "addresses",
    "tell",
)
FAILOVER = [
    plan.Shape(VOTE, has_undo=True),
    plan.Shape(DRAIN, has_undo=True),
    plan.Shape(PROMOTE, commits=True),
    plan.Shape(OPEN),
    plan.Shape(ADDRESSES),
    plan.Shape(TELL, optional=True),
]
FREEZE, LEVEL, HAND_OVER, LEAVE = "freeze", "level", "hand over", "leave"
FAILBACK = [
    plan.Shape(FREEZE, has_undo=True),
    plan.Shape(LEVEL),
    plan.Shape(VOTE, has_undo=True),
    plan.Shape(HAND_OVER, commits=True),
    plan.Shape(LEAVE),
    plan.Shape(TELL, optional=True),
]


@dataclass
class Setup:
    """Of one history. `witness`: "agent", "etcd" or "" (none)."""

    witness: str = "agent"
    lapse: Lapse = Lapse.SUSPEND
    automatic: bool = True
    even_if_partitioned: bool = False
    fence_command: bool = False
    interval_s: float = 1.0
    misses: int = 3

    @property
    def settings(self) -> MonitorSettings:
        address = WatchedAddress(address=ADDRESS, interval_s=self.interval_s, misses=self.misses)
        return MonitorSettings(
            source_host=S,
            addresses=(address,),
            automatic=self.automatic,
            even_if_partitioned=self.even_if_partitioned,
            fence_command="off" if self.fence_command else "",
            witness=W if self.witness else "",
            lapse=self.lapse,
        )

    @property
    def starts_by_itself(self) -> bool:
        """What `dtctl` accepts as automatic: somebody or something is certain that the source has stopped."""
        certain = self.witness or self.fence_command or self.even_if_partitioned or self.lapse != Lapse.NONE
        return self.automatic and bool(certain)

    @property
    def lease_s(self) -> float:
        return lease.timers(self.interval_s, self.misses).lease_s


@dataclass
class Shared:
    """What the agents have in common, and what the checkers know of them."""

    setup: Setup
    forks: dict[int, Data] = field(default_factory=dict)  # data at the promotion of an epoch
    records: dict[int, Promotion] = field(default_factory=dict)
    attempts: int = 0
    bundles: set[tuple[str, int]] = field(default_factory=set)  # operations in bundles
    lost: set[tuple[str, int]] = field(default_factory=set)  # with the power of their host
    failovers: int = 0
    failbacks: int = 0

    def attempt(self) -> str:
        self.attempts += 1
        return f"attempt {self.attempts}"


class Agent:
    """What source and target have in common: data, mounts, an address, and a witness to ask."""

    name = ""

    def __init__(self, world: World, host: Host, shared: Shared) -> None:
        self.world = world
        self.host = host
        self.shared = shared
        self.data: Data = ()
        self.synced = 0  # operations of it that a loss of power spares
        self.has_address = False
        self.observer = Observer()
        self.witness = Asker(self)
        host.agent = self

    # --- the host ---

    def host_booted(self) -> None:
        """Its operating system is up."""

    def host_lost(self) -> None:
        self.shared.lost.update(self.data[self.synced :])
        self.data = self.data[: self.synced]
        self.has_address = False

    @property
    def until_s(self) -> float | None:
        """The expiry in the page of its mounts; None: they are not mounted."""
        until_s: float | None = self.host.memory.get("until_s")
        return until_s

    def set_until(self, until_s: float) -> None:
        self.host.memory["until_s"] = until_s

    def accepts(self) -> bool:
        """Whether a change of a file would be carried out, now."""
        host = self.host
        until_s = self.until_s
        return host.is_up and not host.is_paused and until_s is not None and host.now() < until_s

    def write(self, number: int) -> None:
        if self.accepts():
            self.data = (*self.data, (self.name, number))

    def sync(self) -> None:
        if self.host.is_up and not self.host.is_paused:
            self.synced = len(self.data)

    def is_late(self, sent_s: float) -> bool:
        """A session is an ordered stream: what was sent before something that has arrived is not to come."""
        late, self._arrived_s = sent_s < self._arrived_s, max(sent_s, self._arrived_s)
        return late

    _arrived_s = 0.0

    def put(self, data: Data) -> None:
        """Take it for one's own; it is synced before that is said."""
        self.data = data
        self.synced = len(data)

    def say(self, text: str) -> None:
        self.world.say(f"{self.name}: {text}")


class Asker:
    """The client's side of both kinds of witness. None: it does not answer, or refuses."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def renew(self, request: Renew) -> Program:
        return self._ask("renew", request, lambda entry: witness.renewed(entry, GROUP_ID, request))

    def vote(self, ballot: Ballot) -> Program:
        def decide(entry: Any) -> Any:
            observer, now_s = self._agent.observer, self._agent.host.now()
            wait_s = observer.wait_s(GROUP_ID, entry, ballot, now_s)
            ago_s = observer.granted_ago_s(GROUP_ID, now_s)
            return witness.voted(entry, GROUP_ID, ballot, wait_s, ago_s, {})

        return self._ask("vote", ballot, decide)

    def tell(self, tell: Tell) -> Program:
        return self._ask("tell", tell, lambda entry: _told(witness.told(entry, GROUP_ID, tell)))

    def withdraw(self, withdraw: Withdraw) -> Program:
        def decide(entry: Any) -> Any:
            if entry is None:
                raise WitnessRefusedError("unknown")
            return _told(witness.withdrawn(entry, withdraw))

        return self._ask("withdraw", withdraw, decide)

    def watch(self) -> Program:
        if self._agent.shared.setup.witness == "etcd":
            yield from self._read()

    def _ask(self, action: str, body: Any, decide: Callable[[Any], Any]) -> Program:
        if self._agent.shared.setup.witness == "agent":
            answer = yield Ask(W, action, body, CALL_S)
            return None if isinstance(answer, str) else answer
        for _ in range(limits.ETCD_TRIES):
            found = yield from self._read()
            if found is None:
                return None
            revision, entry = found
            try:
                changed, answer = decide(entry)
            except WitnessRefusedError:
                return None
            if changed is None or changed == entry:
                return answer
            swapped = yield Ask(W, "swap", (revision, changed), CALL_S)
            if swapped is None:
                return None
            if swapped:
                return answer
        return None

    def _read(self) -> Program:
        found = yield Ask(W, "range", None, CALL_S)
        if found is not None:
            self._agent.observer.see(GROUP_ID, found[0], self._agent.host.now())
        return found


def _told(entry: Any) -> tuple[Any, Told]:
    return entry, Told(epoch=entry.epoch, promotion=entry.promotion)


class SourceAgent(Agent):
    """As configured the source. Durable: `guard`, `abandoned` and `taken` (failbacks)."""

    name = S

    def __init__(self, world: World, host: Host, shared: Shared) -> None:
        super().__init__(world, host, shared)
        setup = shared.setup
        host.disk["guard"] = Guard(
            group=GROUP_ID,
            target_uuid=T,
            witness=W if setup.witness else "",
            lease_s=setup.lease_s,
            lapse=setup.lapse,
            terms=1,
        )
        self.resolved = False  # a person has said that the other branch survives

    @property
    def guard(self) -> Guard:
        guard: Guard = self.host.disk["guard"]
        return guard

    def host_booted(self) -> None:
        self.has_address = True  # as configured in its operating system

    def start(self) -> None:
        # Booted (None), or the agent before had only fenced them for its start: see `FencedStart._was_up`.
        came_back = not self.until_s
        self.owner = Owner(
            S,
            self.guard,
            self.host.now(),
            came_back=came_back,
            expiry_s=self.until_s or 0.0,
            frozen=False,
        )
        self.busy = False
        if self.guard.is_superseded:
            self.has_address = False
        self.apply()
        for program in (self.keep_leases(), self.replicate()):
            self.host.spawn(program)

    def apply(self) -> None:
        self.set_until(self.owner.right(self.host.now()).until_s)

    def keep_leases(self) -> Program:
        while True:
            now_s = self.host.now()
            self.apply()
            for granter in self.owner.due(now_s):
                self.host.spawn(self.renew(granter))
            yield Sleep(0.1)

    def renew(self, granter: str) -> Program:
        asked, request = self.owner.ask(granter, self.host.now())
        if granter == TARGET:
            answer = yield Ask(T, "renew", request, CALL_S)
        else:
            answer = yield from self.witness.renew(request)
        if isinstance(answer, Renewed):
            yield from self.heard(self.owner.answered(asked, answer, self.host.now()))

    def heard(self, record: Promotion | None) -> Program:
        """The record supersedes it, if there is one."""
        known = max(self.guard.epoch, self.guard.superseded.epoch if self.guard.superseded else 0)
        if record is not None and record.owner != S and record.epoch > max(known, self.guard.opened):
            self.say(f"superseded by epoch {record.epoch}")
            self.set_until(0.0)
            self.has_address = False
            yield from self.change(lambda guard: msgspec.structs.replace(guard, superseded=record))
        self.apply()

    def change(self, of: Callable[[Guard], Guard]) -> Program:
        """Of what the guard is by then: others change it meanwhile."""
        yield Save("guard", lambda: of(self.guard))
        self.owner.follow(self.guard)
        self.apply()

    # --- its copy, and the way home ---

    def replicate(self) -> Program:
        while True:
            if not self.guard.is_superseded:
                data = self.data
                answer = yield Ask(T, "records", (self.guard.epoch, data, self.world.now_s), CALL_S)
                if isinstance(answer, Promotion):
                    yield from self.heard(answer)
            yield Sleep(0.25)

    def serve(self, caller: str, action: str, body: Any) -> Program:
        match action:
            case "probe":
                return True
            case "watch":
                lapse, terms = body
                if _watched(self.guard, lapse, terms) != self.guard:
                    yield from self.change(lambda guard: _watched(guard, lapse, terms))
                return self.guard.terms
            case "return" | "take" | "abandon":
                while self.busy:
                    yield Sleep(0.002)
                self.busy = True
                handlers: dict[str, Callable[..., Program]] = {
                    "return": self.returning,
                    "take": self.take,
                    "abandon": self.abandon,
                }
                answer = yield from handlers[action](*body)
                self.busy = False
                return answer
            case "address":
                self.has_address = not self.guard.is_superseded
                return True

    def returning(self, record: Promotion, theirs: Data, sent_s: float) -> Program:
        """The return connection of the owner brings what it has."""
        if self.is_late(sent_s):
            return None
        yield from self.heard(record)
        guard = self.guard
        if not guard.is_superseded:
            return "opened" if guard.opened >= record.epoch else None
        assert guard.superseded is not None
        if guard.superseded.epoch != record.epoch:
            return None
        if self.host.disk.get("followed") != record.epoch:
            same = _common(self.data, theirs)
            tail, other = self.data[same:], theirs[same:]
            verdict = rejoin.rejoin(
                rejoin.Meeting(
                    mine=rejoin.Side(
                        group=GROUP_ID, agent=S, epoch=guard.epoch, owns=False, changes=len(tail)
                    ),
                    theirs=rejoin.Side(
                        group=GROUP_ID,
                        agent=T,
                        epoch=record.epoch,
                        owns=True,
                        changes=len(other),
                        promotion=record,
                    ),
                )
            )
            if verdict.bundle:
                yield Save("bundle", tail)
                self.shared.bundles.update(tail)
            if verdict.action is not rejoin.Action.FOLLOW and not self.resolved:
                return "hold"
            yield Save("followed", record.epoch)
        self.put(theirs)
        return "level"

    def take(self, record: Promotion, attempt: str, data: Data) -> Program:
        guard = self.guard
        if (
            attempt in self.host.disk.get("abandoned", ())
            or guard.superseded is None
            or guard.superseded.epoch != record.parent_epoch
            or self.data != data
        ):
            return False
        self.shared.forks[record.epoch] = data
        yield from self.change(
            lambda guard: msgspec.structs.replace(
                guard, epoch=record.epoch, owned_by=record, superseded=None, opened=0
            )
        )
        self.shared.records.setdefault(record.epoch, record)
        self.say(f"owns epoch {record.epoch} again")
        self.resolved = False
        return record

    def open(self) -> Program:
        """A person decides that it goes on writing. What it has then is its own again."""
        superseded = self.guard.superseded
        if superseded is not None:
            yield Save("followed", None)
            yield from self.change(lambda guard: msgspec.structs.replace(guard, opened=superseded.epoch))

    def follow(self) -> Program:
        """A person decides that it was wrong to open it."""
        self.set_until(0.0)
        self.has_address = False
        yield from self.change(lambda guard: msgspec.structs.replace(guard, opened=0))

    def abandon(self, attempt: str, epoch: int) -> Program:
        """That hand-over is given up, unless it was taken: then the record of it."""
        if self.guard.owned_by is not None and self.guard.epoch >= epoch:
            return self.guard.owned_by
        abandoned = (*self.host.disk.get("abandoned", ()), attempt)
        yield Save("abandoned", abandoned)
        return True


def _watched(guard: Guard, lapse: Lapse, terms: int) -> Guard:
    """Requests overtake each other: those of settings that were replaced since change nothing."""
    return guard if terms < guard.terms else msgspec.structs.replace(guard, lapse=lapse, terms=terms)


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the beginning that both have."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])


class TargetAgent(Agent):
    """As configured the target. Durable: `monitor`, `record`, `grants`, `plan`, `owed`."""

    name = T

    def __init__(self, world: World, host: Host, shared: Shared) -> None:
        super().__init__(world, host, shared)
        setup = shared.setup
        host.disk["monitor"] = Monitor(uuid=GROUP_ID, name="monitor", settings=setup.settings, terms=1)
        host.disk["grants"] = GrantMemory()
        host.disk["plan"] = ()
        host.disk["owed"] = ()

    @property
    def stored(self) -> Monitor:
        stored: Monitor = self.host.disk["monitor"]
        return stored

    @property
    def record(self) -> Promotion | None:
        """The last that it knows."""
        return self.host.disk.get("record")

    @property
    def epoch(self) -> int:
        return max(self.stored.epoch, self.record.epoch if self.record is not None else 0)

    @property
    def owns(self) -> bool:
        return self.record is not None and self.record.owner == T

    @property
    def notes(self) -> tuple[plan.Note, ...]:
        notes: tuple[plan.Note, ...] = self.host.disk["plan"]
        return notes

    @property
    def kind(self) -> str:
        """Of the plan that is open; "": none."""
        return self.notes[0].kind if self.notes and isinstance(self.notes[0], plan.Opened) else ""

    @property
    def stopped(self) -> int | None:
        """The epoch of the owner that it takes over from."""
        return self.opened.arguments["epoch"] - 1 if self.kind == "failover" else None

    # --- its life ---

    def start(self) -> None:
        now_s = self.host.now()
        self.observer = Observer()
        self.monitor = SourceMonitor(self.stored.settings, now_s)
        self.granter = Granter(self.host.disk["grants"], now_s, stopped=self.stopped)
        self.shut = bool(self.kind)
        self.source_terms = 0
        self.owing = False
        self.halted = ""
        self.level_s = 0.0
        self.at_level: Data | None = None
        self.asked = 0
        self.source_lost = False  # a person has said so
        if self.owns:
            self.has_address = self._has_done(ADDRESSES) if self.kind == "failover" else True
            frozen = self.kind == "failback"
            opened = self.kind != "failover" or self._has_done(OPEN)
            self.set_until(float("inf") if opened and not frozen else 0.0)
        else:
            self.has_address = False
            self.host.memory.pop("until_s", None)
        for program in (self.watch(), self.say_settings(), self.settle(), self.bring_home()):
            self.host.spawn(program)
        if self.kind:
            self.host.spawn(self.go_on(plan.Restarted(time=0.0)))

    def _has_done(self, step: str) -> bool:
        return any(isinstance(note, plan.Done) and note.step == step for note in self.notes)

    def set_phase(self, event: GroupEvent, **fields: Any) -> Program:
        def next_one() -> Any:
            phase = GROUP.get(
                (self.stored.phase, event), self.stored.phase
            )  # after a crash it is there already
            return msgspec.structs.replace(self.stored, phase=phase, **fields)

        yield Save(
            "monitor", next_one
        )  # of what is there then: agents change their state one after the other

    # --- watching ---

    def watch(self) -> Program:
        while True:
            now_s = self.host.now()
            for change in self.monitor.look(now_s):
                if change.news in (News.FAILED, News.ALIVE):
                    self.say(f"the source is {change.news}")
            # By what is, not by what is new: the phase may have moved since the news came.
            if self.monitor.failed and self.stored.phase is Phase.WATCHING and not self.kind:
                yield from self.source_failed()
            elif not self.monitor.failed and self.stored.phase in (Phase.ASKING, Phase.DECLINED):
                yield from self.set_phase(GroupEvent.SOURCE_ANSWERS)
            for probe in self.monitor.due(now_s):
                self.host.spawn(self.probe(probe))
            yield Sleep(self.monitor.pause_s)

    def probe(self, probe: Any) -> Program:
        answer = yield Ask(S, "probe", None, CALL_S)
        if answer is not None:
            self.monitor.answered(probe)
        elif self.stored.settings.witness:
            yield from self.witness.watch()

    def source_failed(self) -> Program:
        yield from self.set_phase(GroupEvent.SOURCE_FAILED)
        if self.stored.settings.automatic and may_begin(self.candidacy(Order.MONITOR)).action is Action.GO:
            self.begin(Order.MONITOR)

    def candidacy(self, order: Order) -> Candidacy:
        settings = self.stored.settings
        granted = self.granter.memory.armed
        return Candidacy(
            now_s=self.host.now(),
            order=order,
            automatic=settings.automatic,
            even_if_partitioned=settings.even_if_partitioned,
            failed=self.monitor.failed,
            owns=self.owns,
            fence_command=bool(settings.fence_command),
            witness=bool(settings.witness),
            armed=granted is not None and granted == self.stored.terms,
        )

    # --- leases, settings, records ---

    def serve(self, caller: str, action: str, body: Any) -> Program:
        match action:
            case "renew":
                yield from self.learn(body.promotion)
                before = self.granter.memory
                answer = self.granter.renew(
                    body,
                    self.host.now(),
                    epoch=self.epoch,
                    owns=self.owns,
                    promotion=self.record,
                    lease_s=self.shared.setup.lease_s,
                    terms=self.stored.terms,
                )
                if self.granter.memory != before:
                    yield Save("grants", self.granter.memory)
                return answer
            case "records":
                epoch, data, sent_s = body
                if epoch < self.epoch:
                    return self.record
                if self.shut or self.owns or epoch > self.epoch or self.is_late(sent_s):
                    return None
                self.put(data)
                return True

    def learn(self, record: Promotion | None) -> Program:
        if record is not None and record.epoch > self.epoch:
            self.say(f"learns of epoch {record.epoch}")
            self.host.memory.pop("until_s", None)
            self.has_address = False
            yield Save("record", record)

    def edit(self, lapse: Lapse) -> Program:
        """A person changes the settings: nobody is armed by them yet."""

        def edited() -> Any:
            settings = msgspec.structs.replace(self.stored.settings, lapse=lapse)
            return msgspec.structs.replace(self.stored, settings=settings, terms=self.stored.terms + 1)

        yield Save("monitor", edited)

    def say_settings(self) -> Program:
        while True:
            if self.source_terms != self.stored.terms:
                body = (self.stored.settings.lapse, self.stored.terms)
                self.source_terms = (yield Ask(S, "watch", body, CALL_S)) or 0
            yield Sleep(0.5)

    def settle(self) -> Program:
        """Tells the witness what it still has to know."""
        while True:
            if self.stored.settings.witness:
                for attempt in self.host.disk["owed"]:
                    answer = yield from self.witness.withdraw(Withdraw(agent=T, attempt=attempt))
                    if answer is not None:
                        yield from self.owe(remove=attempt)
                if self.owns:
                    assert self.record is not None
                    answer = yield from self.witness.tell(Tell(agent=T, other=S, promotion=self.record))
                    if answer is not None:
                        yield from self.learn(answer.promotion)
            yield Sleep(1.0)

    def bring_home(self) -> Program:
        """The return connection."""
        while True:
            if self.owns and self.until_s is not None:
                data = self.data
                self.state_of_source = yield Ask(S, "return", (self.record, data, self.world.now_s), CALL_S)
                if self.state_of_source == "level":
                    self.at_level = data
            yield Sleep(0.25)

    state_of_source: Any = None

    # --- procedures ---

    def begin(self, order: Order, *, kind: str = "failover") -> None:
        if self.kind:
            return
        opened = plan.Opened(
            uuid=self.shared.attempt(),
            kind=kind,
            subject=GROUP_ID,
            arguments={"order": order, "epoch": self.epoch + 1},
            steps=(),
            time=0.0,
        )
        self.host.disk["plan"] = (opened,)  # its sync is the first thing that `go_on` waits for
        self.say(f"begins {kind} ({order})")
        self.host.spawn(self.go_on(None))

    def retry(self, *, forced: bool = False) -> None:
        if self.kind and self.halted:
            self.host.spawn(self.go_on(plan.Retried(forced=forced, time=0.0)))

    def lose_source(self) -> None:
        """A person says that the source is lost for good, in a failback that cannot be taken back."""
        doubt = plan.is_in_doubt(FAILBACK, self.notes) or plan.is_committed(FAILBACK, self.notes)
        if self.kind == "failback" and doubt:
            self.source_lost = True
            if self.halted:
                self.host.spawn(self.go_on(plan.Lost(time=0.0)))

    @property
    def opened(self) -> plan.Opened:
        opened = self.notes[0]
        assert isinstance(opened, plan.Opened)
        return opened

    def note(self, note: plan.Note | None) -> Program:
        yield Save("plan", self.notes if note is None else (*self.notes, note))

    def go_on(self, first: plan.Note | None) -> Program:
        self.halted = ""
        kind = self.kind
        shapes = FAILOVER if kind == "failover" else FAILBACK
        if not any(isinstance(note, plan.Doing) for note in self.notes):
            event = GroupEvent.BEGIN if kind == "failover" else GroupEvent.HAND_BACK
            yield from self.set_phase(event)
        yield from self.note(first)
        while True:
            what = plan.decide(shapes, self.notes)
            match what.action:
                case plan.Action.DO:
                    yield from self.note(plan.Doing(step=what.step, time=0.0))
                    problem = yield from self.do(what.step)
                    if problem and what.step in (PROMOTE, HAND_OVER):
                        yield from self.look(what.step, problem)
                    elif problem:
                        self.say(f"{what.step} fails: {problem}")
                        yield from self.note(plan.Failed(step=what.step, reason=problem))
                    else:
                        yield from self.note(plan.Done(step=what.step))
                case plan.Action.LOOK:
                    yield from self.look(what.step, "interrupted")
                case plan.Action.UNDO:
                    yield from self.undo(what.step)
                    yield from self.note(plan.Undone(step=what.step))
                case plan.Action.HALT:
                    self.halted = what.reason
                    self.say(f"halts at {what.step}: {what.reason}")
                    return
                case plan.Action.END:
                    assert what.outcome is not None
                    yield from self.end(kind, what.outcome)
                    return

    def look(self, step: str, reason: str) -> Program:
        if step == PROMOTE:
            done = self.owns and self.epoch == self.opened.arguments["epoch"]
        else:
            done = yield from self.was_handed_over()
        note = plan.Done(step=step, found=True) if done else plan.Failed(step=step, reason=reason)
        yield from self.note(note)

    def end(self, kind: str, outcome: plan.Outcome) -> Program:
        self.say(f"{kind}: {outcome}")
        completed = outcome is plan.Outcome.COMPLETED
        takes_over = plan.is_lost(self.notes) and completed
        if kind == "failover":
            event = GroupEvent.COMPLETED if completed else GroupEvent.TAKEN_BACK
            self.shared.failovers += completed
            if not completed:
                self.granter.resume()  # its undo has done so, unless it was in a former life
        else:
            event = GroupEvent.HANDED_BACK if completed else GroupEvent.HAND_BACK_UNDONE
            self.shared.failbacks += completed
        yield from self.set_phase(event, epoch=self.epoch)
        yield Save("plan", ())
        self.shut = self.source_lost = False
        if takes_over:
            self.begin(Order.PERSON)

    def do(self, step: str) -> Program:
        """Returns why it failed, or None."""
        handlers: dict[str, Callable[[], Program]] = {
            VOTE: self.agree if self.kind == "failover" else self.put_forward,
            DRAIN: self.drain,
            PROMOTE: self.promote,
            OPEN: self.open,
            ADDRESSES: self.take_addresses,
            TELL: self.tell,
            FREEZE: self.freeze,
            LEVEL: self.wait_for_level,
            HAND_OVER: self.hand_over,
            LEAVE: self.leave,
        }
        return (yield from handlers[step]())

    def undo(self, step: str) -> Program:
        if step == VOTE and self.kind == "failover":
            yield from self.owe(add=self.opened.uuid)
            self.granter.resume()
        elif step == VOTE:
            yield from self.owe(add=self.opened.uuid)
        elif step == DRAIN:
            self.shut = False
        elif step == FREEZE:
            self.set_until(float("inf"))
        yield Sleep(0.0)

    def owe(self, *, add: str = "", remove: str = "") -> Program:
        """One after the other: two that change it at once would forget one of the changes."""
        while self.owing:
            yield Sleep(0.002)
        self.owing = True
        left = [attempt for attempt in self.host.disk["owed"] if attempt not in (add, remove)]
        yield Save("owed", (*left, *([add] if add else [])))
        self.owing = False

    def ballot(self, agent: str, candidate: str, owner: str) -> Ballot:
        return Ballot(
            agent=agent,
            candidate=candidate,
            owner=owner,
            parent_epoch=self.epoch,
            epoch=self.opened.arguments["epoch"],
            attempt=self.opened.uuid,
            lease_s=self.shared.setup.lease_s,
            promotion=self.record,
        )

    def agree(self) -> Program:
        order = self.opened.arguments["order"]
        attempt = Attempt(
            self.candidacy(order),
            self.ballot(T, T, S),
            self.granter,
            self.stored.terms,
            witness=bool(self.stored.settings.witness),
        )
        while True:
            verdict = attempt.look(self.host.now(), failed=self.monitor.failed)
            match verdict.action:
                case Action.GO:
                    return None
                case Action.WAIT:
                    yield Sleep(max(verdict.until_s - self.host.now(), limits.WITNESS_POLL_S))
                case Action.FENCE:
                    began_s = self.host.now()
                    fenced = yield from self.fence()
                    attempt.fence(fenced, began_s)
                case Action.VOTE:
                    voted = yield from self.witness.vote(attempt.ballot())
                    if isinstance(voted, Voted):
                        attempt.vote(voted, self.host.now())
                    else:
                        attempt.silence("no answer", self.host.now())
                case _:
                    return verdict.reason

    def fence(self) -> Program:
        """A power switch that cannot be cut off, but fails at times."""
        yield Sleep(0.3)
        if self.world.random.random() < 0.3:
            return False
        source = self.world.hosts[S]
        source.crash()
        self.world.later(self.world.random.uniform(2.0, 8.0), source.boot)
        return True

    def drain(self) -> Program:
        self.shut = True
        yield Sleep(0.05)

    def promote(self) -> Program:
        record = Promotion(
            group=GROUP_ID,
            epoch=self.opened.arguments["epoch"],
            parent_epoch=self.epoch,
            owner=T,
            owner_name=T,
            vote=self.stored.settings.witness,
        )
        if record.epoch <= self.epoch:
            return "the group has another owner since"
        self.shared.forks[record.epoch] = self.data
        yield Save("record", record)
        self.say(f"owns epoch {record.epoch}")
        return None

    def open(self) -> Program:
        self.set_until(float("inf"))
        yield Sleep(0.01)

    def take_addresses(self) -> Program:
        source = self.world.hosts[S]
        reached = not {(S, T), (T, S)} & self.world.cut
        forced = any(isinstance(note, plan.Retried) and note.forced for note in self.notes)
        if source.is_up and reached and source.agent.has_address and not forced:
            return "the source has the address still"
        self.has_address = True
        yield Sleep(0.01)
        return None

    def tell(self) -> Program:
        if self.stored.settings.witness and self.record is not None:
            answer = yield from self.witness.tell(Tell(agent=T, other=S, promotion=self.record))
            return None if answer is not None else "no answer"
        return None

    # --- failback ---

    def freeze(self) -> Program:
        self.set_until(0.0)
        yield Sleep(0.01)

    def wait_for_level(self) -> Program:
        for _ in range(30):
            if self.at_level == self.data:
                return None
            yield Sleep(0.2)
        return "the source does not get level"

    def put_forward(self) -> Program:
        if not self.stored.settings.witness:
            return None
        ballot = self.ballot(T, S, T)
        for _ in range(3):
            voted = yield from self.witness.vote(ballot)
            if isinstance(voted, Voted):
                return None if voted.given else voted.reason
        return "the witness does not answer"

    def handed_over(self) -> Promotion:
        return Promotion(
            group=GROUP_ID,
            epoch=self.opened.arguments["epoch"],
            parent_epoch=self.epoch,
            owner=S,
            owner_name=S,
            vote=self.stored.settings.witness,
        )

    def hand_over(self) -> Program:
        record = self.handed_over()
        answer = yield Ask(S, "take", (record, self.opened.uuid, self.data), CALL_S)
        if isinstance(answer, Promotion):
            yield from self.learn(answer)
            return None
        return "the source did not take it"

    def was_handed_over(self) -> Program:
        if not self.owns:
            return True
        while True:
            if self.source_lost or plan.is_lost(self.notes):
                return (yield from self.presume())
            answer = yield Ask(S, "abandon", (self.opened.uuid, self.opened.arguments["epoch"]), CALL_S)
            if isinstance(answer, Promotion):
                yield from self.learn(answer)
                return True
            if answer is True:
                return False
            yield Sleep(0.5)

    def presume(self) -> Program:
        """Nobody can say whether the source has taken it: it counts as if."""
        yield from self.note(plan.Lost(time=0.0))
        self.say("takes its source to own the group")
        yield from self.learn(self.handed_over())
        return True

    def leave(self) -> Program:
        self.has_address = False
        self.host.memory.pop("until_s", None)
        if self.source_lost or plan.is_lost(self.notes):
            return None
        answer = yield Ask(S, "address", None, CALL_S)
        return None if answer else "the source did not take the address"


class WitnessAgent:
    """An agent that is a witness. Durable: `witness`."""

    def __init__(self, world: World, host: Host) -> None:
        self.host = host
        host.agent = self

    def host_booted(self) -> None: ...

    def host_lost(self) -> None: ...

    def start(self) -> None:
        self.witness = Witness(self.host.disk.get("witness", WitnessFile()), self.host.now())
        self.busy = False

    def serve(self, caller: str, action: str, body: Any) -> Program:
        while self.busy:
            yield Sleep(0.002)
        self.busy = True
        before = self.witness.file
        act = {
            "renew": self.witness.renew,
            "vote": self.witness.vote,
            "tell": self.witness.tell,
            "withdraw": self.witness.withdraw,
        }[action]
        try:
            answer: Any = act(GROUP_ID, body, self.host.now())  # type: ignore[operator]
        except WitnessRefusedError as error:
            answer = str(error)
        if self.witness.file is not before:
            yield Save("witness", self.witness.file)
        self.busy = False
        return answer

    def forget(self) -> None:
        """A person makes a mistake."""
        if GROUP_ID in self.witness.file.groups:
            self.witness.forget(GROUP_ID)
            self.host.disk["witness"] = self.witness.file


class EtcdAgent:
    """An etcd with one key. Durable: `key`, as (revision, entry)."""

    def __init__(self, world: World, host: Host) -> None:
        self.host = host
        host.disk["key"] = (0, None)
        host.agent = self

    def host_booted(self) -> None: ...

    def host_lost(self) -> None: ...

    def start(self) -> None: ...

    def serve(self, caller: str, action: str, body: Any) -> Program:
        revision, _ = self.host.disk["key"]
        if action == "range":
            yield Sleep(0.0)
            return self.host.disk["key"]
        expected, entry = body
        if revision != expected:
            yield Sleep(0.0)
            return False
        self.host.disk["key"] = (revision + 1, entry)
        yield Sleep(0.002)
        return True
