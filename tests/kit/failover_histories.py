"""Histories of a group drawn from seeds, and what must hold in each: see `Checker`.

    PYTHONPATH=. ../.venv/bin/python -m kit.failover_histories SEED [COUNT] [--verbose]      # in tests/

A history that fails is shrunk: faults are left out as long as the same thing goes wrong.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from kit.failover_agents import (
    FAILBACK,
    GROUP_ID,
    EtcdAgent,
    S,
    Setup,
    Shared,
    SourceAgent,
    T,
    TargetAgent,
    W,
    WitnessAgent,
)
from kit.failover_world import Fault, Host, Violation, World
from replicator import limits
from replicator.failover import plan
from replicator.failover.candidate import Order
from replicator.failovers import Lapse, Phase

FAULTS_S = 60.0  # so long something goes wrong now and then
REPAIR_S = 120.0  # so long it may take afterwards until all is protected again
WRITE_S = 0.25
OVERRULING = frozenset({"force", "open"})
"""Commands by which a person takes it on himself that there is one writer: then forks are found."""


@dataclass
class History:
    """`drift`: how far clocks may be apart, as a part of what is allowed. `overruled`: two writers are no
    violation, and what follows of them is looked at.
    """

    seed: int
    setup: Setup
    faults: list[Fault]
    loss: float = 0.0
    slow: float = 0.0
    drift: float = 1.0
    overruled: bool = False

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.setup}, loss {self.loss}, slow {self.slow}"]
        return "\n".join([*lines, *(f"  {fault}" for fault in self.faults)])

    @property
    def is_guarded(self) -> bool:
        """Whether nobody can make two writers of it: by leases that are enforced throughout, or by a witness
        without whom nothing is taken.
        """
        edited = any(fault.what == "edit" for fault in self.faults)
        overruled = self.overruled or any(fault.what in OVERRULING for fault in self.faults)
        return not overruled and (
            bool(self.setup.witness) or (self.setup.lapse is not Lapse.NONE and not edited)
        )


@dataclass
class Outcome:
    failovers: int = 0
    failbacks: int = 0
    forks: int = 0
    writes: int = 0
    events: int = 0
    guarded: bool = True
    counts: Counter[str] = field(default_factory=Counter)


def draw(seed: int) -> History:
    random = Random(f"history {seed}")
    setup = Setup(
        witness=random.choice(["agent", "agent", "agent", "etcd", "etcd", ""]),
        lapse=random.choices([Lapse.SUSPEND, Lapse.READ_ONLY, Lapse.NONE], [6, 2, 1])[0],
        automatic=random.random() < 0.75,
        fence_command=random.random() < 0.2,
        interval_s=random.choice([0.5, 1.0, 1.0, 2.0]),
        misses=random.choice([2, 3, 3, 5]),
    )
    if not setup.witness and random.random() < 0.5:
        setup.lapse = Lapse.NONE
        setup.even_if_partitioned = random.random() < 0.5
    # In each history some kinds of faults often and others never: all of them evenly would bring about only
    # what needs few.
    mood = Mood(
        kinds=_some(random, KINDS),
        commands=_some(random, COMMANDS),
        gap_s=random.choice([0.5, 2.0, 4.0, 8.0]),
        length=random.choice([0.2, 1.0, 1.0, 3.0]),
    )
    faults: list[Fault] = []
    at_s = 4.0
    while at_s < FAULTS_S:
        at_s += random.expovariate(1 / mood.gap_s)
        faults.extend(_draw_fault(random, mood, at_s))
    faults.sort(key=lambda fault: fault.at_s)
    return History(
        seed,
        setup,
        [fault for fault in faults if fault.at_s < FAULTS_S],
        loss=random.choice([0.0, 0.0, 0.01, 0.1]),
        slow=random.choice([0.0, 0.02, 0.2, 0.5]),
    )


def draw_lost(seed: int) -> History:
    """While a group is handed back its source is gone, and a person says that it is lost: rightly or not."""
    random = Random(f"lost {seed}")
    history = draw(seed)
    gone_s = random.choice([0.0, 0.0, 0.1]) + random.uniform(0.0, 0.04)  # a hand-over is quick
    back_s = gone_s + random.choice([1.0, 5.0, 15.0]) * random.uniform(0.5, 1.5)
    apart = {
        "cut": [(S, T), (T, S)],
        "no answers": [(S, T)],
        "no requests": [(T, S)],
        "isolate": [(S, T), (T, S), (S, W), (W, S)],
    }
    match random.choice([*apart, "crash", "pause"]):
        case "crash":
            then = [Fault(gone_s, "crash", (S,)), Fault(back_s, "boot", (S,))]
        case "pause":
            then = [Fault(gone_s, "pause", (S, back_s - gone_s))]
        case how:
            then = [Fault(gone_s, "cut", pair) for pair in apart[how]]
            then += [Fault(back_s, "heal", pair) for pair in apart[how]]
    if random.random() < 0.3:
        then.append(Fault(gone_s + random.uniform(0.0, 3.0), "crash at save", (T, random.randint(1, 4))))
        then.append(Fault(gone_s + 4.0, "boot", (T,)))
    then += [Fault(gone_s + random.uniform(0.3, 8.0), "lost") for _ in range(random.randint(1, 3))]
    people = [Fault(at_s, what) for at_s in (11.0, 15.0, 19.0) for what in ("retry", "resolve")]
    people += [Fault(at_s, "failback") for at_s in range(20, 40, 2)]
    later = [fault for fault in history.faults if fault.at_s > 36.0]
    faults = [Fault(8.0, "now"), Fault(8.0, "at hand-over", tuple(then)), *people, *later]
    return replace(history, faults=sorted(faults, key=lambda fault: fault.at_s))


KINDS = {
    "cut": 4.0,
    "half cut": 3.0,
    "isolate": 3.0,
    "crash": 3.0,
    "crash at save": 2.0,
    "kill": 2.0,
    "pause": 2.0,
    "command": 6.0,
}
COMMANDS = {
    "now": 6.0,
    "yes": 6.0,
    "failback": 8.0,
    "resolve": 2.0,
    "retry": 4.0,
    "edit": 1.0,
    "forget": 0.5,
    "force": 0.25,
    "open": 0.25,
}


@dataclass
class Mood:
    """How often what happens, as weights; seconds between two faults; how long they last, as a factor."""

    kinds: dict[str, float]
    commands: dict[str, float]
    gap_s: float
    length: float


def _some(random: Random, weights: dict[str, float]) -> dict[str, float]:
    while True:
        some = {name: weight * random.choice([0.0, 1.0, 1.0, 5.0]) for name, weight in weights.items()}
        if any(some.values()):
            return some


def _draw_fault(random: Random, mood: Mood, at_s: float) -> list[Fault]:
    host = random.choice([S, S, T, T, W])
    lasts_s = random.choice([0.3, 1.0, 3.0, 8.0, 20.0]) * random.uniform(0.5, 1.5) * mood.length
    (kind,) = random.choices(list(mood.kinds), list(mood.kinds.values()))
    match kind:
        case "cut" | "half cut":
            one, other = random.sample([S, T, W], 2)
            pairs = [(one, other)] if kind == "half cut" else [(one, other), (other, one)]
            return [Fault(at_s, "cut", pair) for pair in pairs] + [
                Fault(at_s + lasts_s, "heal", pair) for pair in pairs
            ]
        case "isolate":
            others = [other for other in (S, T, W) if other != host]
            pairs = [pair for other in others for pair in ((host, other), (other, host))]
            return [Fault(at_s, "cut", pair) for pair in pairs] + [
                Fault(at_s + lasts_s, "heal", pair) for pair in pairs
            ]
        case "crash":
            return [Fault(at_s, "crash", (host,)), Fault(at_s + lasts_s, "boot", (host,))]
        case "crash at save":
            return [
                Fault(at_s, "crash at save", (random.choice([S, T, T, T, W]), random.randint(1, 6))),
                Fault(at_s + lasts_s, "boot", (host,)),
            ]
        case "kill":
            return [Fault(at_s, "kill", (host,)), Fault(at_s + min(lasts_s, 3.0), "start", (host,))]
        case "pause":
            return [Fault(at_s, "pause", (host, lasts_s))]
        case _:
            (command,) = random.choices(list(mood.commands), list(mood.commands.values()))
            arguments = (random.choice([Lapse.NONE, Lapse.SUSPEND]),) if command == "edit" else ()
            return [Fault(at_s, command, arguments)]


# --- carrying it out ---


class Play:
    """One history under way."""

    def __init__(self, history: History, *, world: World | None = None) -> None:
        self.history = history
        self.world = world or World(history.seed)
        self.world.loss, self.world.slow = history.loss, history.slow
        random = self.world.random
        bound = limits.LEASE_DRIFT / 2 * history.drift
        hosts = {
            name: Host(self.world, name, 1.0 + random.uniform(-bound, bound) * 0.99) for name in (S, T, W)
        }
        self.shared = Shared(history.setup)
        self.source = SourceAgent(self.world, hosts[S], self.shared)
        self.target = TargetAgent(self.world, hosts[T], self.shared)
        self.witness: WitnessAgent | EtcdAgent
        if history.setup.witness == "etcd":
            self.witness = EtcdAgent(self.world, hosts[W])
        else:
            self.witness = WitnessAgent(self.world, hosts[W])
        self.hosts = hosts
        self.written: set[tuple[str, int]] = set()
        self.checker = Checker(self)
        self._number = 0
        self._at_hand_over: tuple[Fault, ...] = ()  # times from when one has begun

    def run(self) -> Outcome:
        for host in self.hosts.values():
            host.boot()
        self.world.watchers.append(self.checker.look)
        self.world.watchers.append(self._look_for_hand_over)
        self.world.later(0.0, self._write)
        for fault in self.history.faults:
            self.world.at(fault.at_s, lambda fault=fault: self.befall(fault))
        self.world.run_until(FAULTS_S)
        self._repair()
        end_s = FAULTS_S + REPAIR_S
        while self.world.now_s < end_s and self.checker.unprotected():
            self.world.run_until(self.world.now_s + 1.0)
            self._help()
        self.checker.end()
        return Outcome(
            failovers=self.shared.failovers,
            failbacks=self.shared.failbacks,
            forks=self.checker.forks,
            writes=len(self.written),
            events=self.world.events,
            guarded=self.history.is_guarded,
        )

    def _write(self) -> None:
        """Programs on all hosts write, whenever they can. Some of it is synced."""
        for agent in (self.source, self.target):
            if agent.accepts():
                self._number += 1
                agent.write(self._number)
                self.written.add((agent.name, self._number))
            if self.world.random.random() < 0.2:
                agent.sync()
        self.world.later(WRITE_S * self.world.random.uniform(0.2, 1.8), self._write)

    def _look_for_hand_over(self) -> None:
        target = self.target
        if self._at_hand_over and target.kind == "failback" and plan.is_in_doubt(FAILBACK, target.notes):
            then, self._at_hand_over = self._at_hand_over, ()
            for fault in then:
                self.world.later(fault.at_s, lambda fault=fault: self.befall(fault))

    def befall(self, fault: Fault) -> None:
        world, what = self.world, fault.what
        named = fault.arguments[0] if fault.arguments else None
        host = self.hosts.get(named) if isinstance(named, str) else None
        world.say(f"--- {fault.what} {' '.join(map(str, fault.arguments))}")
        match what:
            case "cut":
                world.cut.add((fault.arguments[0], fault.arguments[1]))
            case "heal":
                world.cut.discard((fault.arguments[0], fault.arguments[1]))
            case "crash":
                assert host
                host.crash()
            case "boot":
                assert host
                host.boot()
                host.start()
            case "crash at save":
                assert host
                host.crash_at_save = fault.arguments[1]
            case "kill":
                assert host
                host.stop()
            case "start":
                assert host
                host.start()
            case "pause":
                assert host
                host.pause(fault.arguments[1])
            case "at hand-over":
                self._at_hand_over = fault.arguments
            case "suspend":
                assert host
                host.pause(fault.arguments[1], clock_stops=True)
            case _:
                self.command(fault)

    def command(self, fault: Fault) -> None:
        """What a person does, rightly or not. Nothing, if the agent does not run."""
        target, source = self.target, self.source
        if fault.what == "forget":
            if isinstance(self.witness, WitnessAgent) and self.witness.host.is_running:
                self.witness.forget()
            return
        agent = source if fault.what in ("resolve", "open") else target
        if not agent.host.is_running or agent.host.is_paused:
            return
        match fault.what:
            case "now":
                target.begin(Order.PERSON) if not target.owns else None
            case "yes":
                if target.stored.phase in (Phase.ASKING, Phase.DECLINED):
                    target.begin(Order.PERSON)
            case "force":
                target.begin(Order.OFF) if not target.owns else None
            case "failback":
                if target.stored.phase is Phase.ACTIVE:
                    target.begin(Order.PERSON, kind="failback")
            case "lost":
                target.lose_source()
            case "retry":
                target.retry()
            case "edit":
                target.host.spawn(target.edit(fault.arguments[0]))
            case "resolve":
                source.resolved = True
            case "open":
                source.host.spawn(source.open())

    # --- what makes it well again ---

    def _repair(self) -> None:
        self.world.say("--- repair")
        self._at_hand_over = ()
        self.world.cut.clear()
        self.world.loss = self.world.slow = 0.0
        for host in self.hosts.values():
            host.crash_at_save = 0
            host.boot()
            host.start()

    def _help(self) -> None:
        """A person answers what is asked, and brings things home."""
        target, source = self.target, self.source
        for host in self.hosts.values():
            host.boot()  # whom a fence command has switched off
        if not (target.host.is_running and source.host.is_running):
            return
        if target.halted:
            target.retry(forced=True)
        nobody = not target.owns and (source.guard.is_superseded or not source.has_address)
        if nobody and not target.kind:
            target.begin(Order.PERSON)  # a source that was taken to own the group, and does not
        if target.owns and target.state_of_source == "opened":
            source.host.spawn(source.follow())  # a person sees the fork, and chooses
            source.resolved = True
        if target.owns and target.state_of_source == "hold":
            source.resolved = True
        if target.stored.phase is Phase.ACTIVE and target.state_of_source == "level" and not target.kind:
            target.begin(Order.PERSON, kind="failback")


# --- what must hold ---


class Checker:
    """After each event:

    - *One writer.* In a guarded history (`History.is_guarded`) never do mounts of two hosts accept changes.
    - *One owner.* An epoch is owned by one agent; what a host or the witness knows of epochs never falls.
    - *One address.* Who is superseded and knows it has none. In a guarded history two hosts have the address
      only while the mounts of the former owner are closed.

    At the end, when all is healed: protected again, within REPAIR_S; each change that was carried out is in
    the data of the owner, or in a bundle, or was lost with the power of its host.
    """

    def __init__(self, play: Play) -> None:
        self.play = play
        self.forks = 0
        self._epochs: dict[str, int] = {}
        self._owners: dict[int, str] = {}

    def look(self) -> None:
        play = self.play
        source, target = play.source, play.target
        if play.history.is_guarded:
            if source.accepts() and target.accepts():
                self.fail("two writers")
            if source.has_address and target.has_address and source.accepts():
                self.fail("two addresses, and the former owner writes")
        if source.guard.is_superseded and source.has_address and source.host.is_running:
            self.fail("a superseded source has the address")
        if target.record is not None:
            self._own(target.record.epoch, target.record.owner)
        self._rise(T, target.epoch)
        if source.guard.owned_by is not None:
            self._own(source.guard.owned_by.epoch, S)
        self._rise(S, source.guard.epoch)

    def _own(self, epoch: int, owner: str) -> None:
        if self._owners.setdefault(epoch, owner) != owner:
            self.fail(f"epoch {epoch} has two owners")

    def _rise(self, who: str, epoch: int) -> None:
        if epoch < self._epochs.get(who, 0):
            self.fail(f"the epoch of {who} falls to {epoch}")
        self._epochs[who] = epoch

    def unprotected(self) -> str:
        """Why the group is not protected as it was configured; "": it is."""
        source, target = self.play.source, self.play.target
        if not all(host.is_running for host in self.play.hosts.values()):
            return "a host is down"
        if target.owns or target.stored.phase is not Phase.WATCHING or target.kind:
            return f"the target is {target.stored.phase}, {target.kind or 'at rest'} {target.halted}"
        if not source.accepts():
            return f"the source does not write: {source.owner.right(source.host.now()).reason}"
        if source.guard.epoch != target.epoch:
            return f"epochs {source.guard.epoch} and {target.epoch}"
        if target.host.disk["owed"] and self.play.history.setup.witness:
            return "the witness was not told of what was given up"
        if self._pending_vote():
            return "the witness waits for what becomes of its vote"
        if len(target.data) < len(source.data) - 10:
            return "the copy is behind"
        if target.stored.settings.lapse is not Lapse.NONE and target.granter.memory.armed is None:
            return "the target does not know that its source stops by itself"
        if not source.has_address or target.has_address:
            return "the address is not where it belongs"
        return ""

    def _pending_vote(self) -> bool:
        witness = self.play.witness
        if isinstance(witness, EtcdAgent):
            entry = witness.host.disk["key"][1]
        else:
            entry = witness.witness.file.groups.get(GROUP_ID)
        return entry is not None and entry.vote is not None

    def end(self) -> None:
        if reason := self.unprotected():
            self.fail(f"not protected again: {reason}")
        play = self.play
        kept = set(play.source.data) | play.shared.bundles | play.shared.lost
        if missing := play.written - kept:
            self.fail(f"{len(missing)} changes are nowhere: {sorted(missing)[:5]}")
        self.forks = bool(play.shared.bundles)

    def fail(self, text: str) -> None:
        raise Violation(text, self.play.world.story)


# --- many of them ---

Player = Callable[[History], Outcome]


def play(history: History) -> Outcome:
    """Raises Violation."""
    return Play(history).run()


def shrink(history: History, player: Player = play) -> tuple[History, Violation]:
    """The same with as few faults as go wrong in the same way. It has to go wrong."""
    found = _violation(history, player)
    assert found is not None
    size = max(len(history.faults) // 2, 1)
    while True:
        for start in range(0, len(history.faults), size):
            fewer = [*history.faults[:start], *history.faults[start + size :]]
            smaller = replace(history, faults=fewer)
            again = _violation(smaller, player)
            if again is not None and again.text.split(":")[0] == found.text.split(":")[0]:
                history, found = smaller, again
                break
        else:
            if size == 1:
                return history, found
            size //= 2


def _violation(history: History, player: Player) -> Violation | None:
    try:
        player(history)
    except Violation as violation:
        return violation
    return None


def run(
    seeds: Sequence[int], player: Player = play, drawn: Callable[[int], History] = draw
) -> tuple[Outcome, list[int]]:
    """Sums of all that went well, and seeds of those that did not."""
    total, failed = Outcome(), []
    for seed in seeds:
        try:
            outcome = player(drawn(seed))
        except Violation:
            failed.append(seed)
            continue
        total.failovers += outcome.failovers
        total.failbacks += outcome.failbacks
        total.forks += outcome.forks
        total.writes += outcome.writes
        total.events += outcome.events
        total.counts["guarded"] += outcome.guarded
    return total, failed


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdigit() else 1
    drawn = draw_lost if "--lost" in sys.argv else draw
    began = time.monotonic()
    total, failed = run(range(first, first + count), drawn=drawn)
    print(f"{count} histories in {time.monotonic() - began:.1f} s: {total}")
    for seed in failed[: 1 if "--verbose" in sys.argv else 10]:
        history, violation = shrink(drawn(seed))
        print(f"\n{violation}\n{history}")
        if "--verbose" in sys.argv:
            print("\n".join(violation.story))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
