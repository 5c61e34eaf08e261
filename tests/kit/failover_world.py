"""Hosts, their clocks and disks, and a network, as events in one heap: for thousands of histories a minute.

A program of a host is a generator. What it yields is what it waits for:

    yield Sleep(1.0)                       # seconds of the clock of its host
    answer = yield Ask("witness", "vote", body, timeout_s=2.0)    # None: no answer in that time
    yield Save("guard", value)             # durable when it goes on; the host may crash before or after it

A host that crashes drops its programs wherever they are. Its clock is CLOCK_BOOTTIME: it starts anew at a
boot, runs a little too fast or slow, and runs on while the host is paused. A paused host does nothing, and
then everything that was due.
"""

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any

Program = Generator[Any, Any, Any]


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Ask:
    """A call of another host. What it answers, or None."""

    host: str
    action: str
    body: Any = None
    timeout_s: float = 2.0


@dataclass(frozen=True)
class Save:
    """Replace a durable value. `value`: or a function that makes it then, of what is there."""

    key: str
    value: Any


class World:
    """`now_s`: true time, which nobody in it knows."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_s = 0.0
        self.hosts: dict[str, Host] = {}
        self.cut: set[tuple[str, str]] = set()  # (from, to): nothing arrives
        self.loss = 0.0
        self.slow = 0.0  # part of the messages that take up to `SLOW_S`
        self.story: list[str] = []
        self.watchers: list[Callable[[], None]] = []  # called after each event
        self.events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, time_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._count), what))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now_s + seconds, what)

    def run_until(self, time_s: float) -> None:
        while self._heap and self._heap[0][0] <= time_s:
            self.now_s, _, what = heapq.heappop(self._heap)
            what()
            self.events += 1
            for watcher in self.watchers:
                watcher()
        self.now_s = time_s

    def say(self, text: str) -> None:
        self.story.append(f"{self.now_s:8.3f} {text}")

    def deliver(self, source: str, destination: str, what: Callable[[], None]) -> None:
        """If it arrives. What is cut is looked at when it is sent and when it arrives."""
        if (source, destination) in self.cut or self.random.random() < self.loss:
            return
        delay_s = self.random.expovariate(1 / 0.004) + 0.0005
        if self.random.random() < self.slow:
            delay_s += self.random.uniform(0.0, 4.0)

        def arrive() -> None:
            if (source, destination) not in self.cut:
                what()

        self.later(delay_s, arrive)


class Host:
    """`disk` is durable. `memory` is lost with the host, but not with its agent: pages of captures."""

    def __init__(self, world: World, name: str, rate: float) -> None:
        self.world = world
        self.name = name
        self.rate = rate  # of its clock
        self.disk: dict[str, Any] = {}
        self.memory: dict[str, Any] = {}
        self.is_up = False
        self.is_running = False  # its agent
        self.boots = 0
        self.paused_until_s = 0.0
        self.crash_at_save = 0  # crashes around the n-th save from now on
        self.agent: Any = None
        self._booted_s = 0.0
        self._base_s = 0.0
        self._life = 0  # of the agent: what was begun in a former one has ended
        world.hosts[name] = self

    # --- its life ---

    def boot(self) -> None:
        if self.is_up:
            return
        self.is_up, self.boots = True, self.boots + 1
        self._booted_s, self._base_s = self.world.now_s, self.world.random.uniform(0.0, 50.0)
        self.memory = {}
        self.world.say(f"{self.name} boots")
        self.agent.host_booted()
        self.start()

    def start(self) -> None:
        """Its agent."""
        if self.is_up and not self.is_running:
            self.is_running = True
            self._life += 1
            self.world.say(f"{self.name}: agent starts")
            self.agent.start()

    def stop(self) -> None:
        """Kill its agent."""
        if self.is_running:
            self.world.say(f"{self.name}: agent killed")
            self.is_running = False
            self._life += 1

    def crash(self) -> None:
        """Power loss."""
        if self.is_up:
            self.world.say(f"{self.name} loses power")
            self.stop()
            self.is_up = False
            self.paused_until_s = 0.0
            self.agent.host_lost()

    def pause(self, seconds: float, *, clock_stops: bool = False) -> None:
        """`clock_stops`: as that of a virtual machine may, which somebody has suspended from outside."""
        if self.is_up:
            self.world.say(f"{self.name} is paused for {seconds:.2f} s")
            self.paused_until_s = max(self.paused_until_s, self.world.now_s + seconds)
            if clock_stops:
                self._base_s -= seconds * self.rate  # nobody reads it before

    @property
    def is_paused(self) -> bool:
        return self.world.now_s < self.paused_until_s

    def now(self) -> float:
        return self._base_s + (self.world.now_s - self._booted_s) * self.rate

    # --- its programs ---

    def spawn(self, program: Program) -> None:
        self._step(program, self._life, None)

    def when(self, life: int, what: Callable[[], None]) -> None:
        """Now, or when it is no longer paused, if the agent still lives."""
        if life != self._life or not self.is_running:
            return
        if self.is_paused:
            self.world.at(self.paused_until_s, lambda: self.when(life, what))
        else:
            what()

    def _step(self, program: Program, life: int, value: Any) -> None:
        try:
            waits_for = program.send(value)
        except StopIteration:
            return
        match waits_for:
            case Sleep(seconds):
                self.world.later(
                    max(seconds, 0.0) / self.rate,
                    lambda: self.when(life, lambda: self._step(program, life, None)),
                )
            case Ask():
                self._ask(waits_for, program, life)
            case Save(key, value):
                self._save(key, value, program, life)
            case _:
                raise TypeError(f"{self.name}: a program waits for {waits_for!r}")

    def _save(self, key: str, value: Any, program: Program, life: int) -> None:
        """Syncs take their time; other programs run meanwhile."""
        if self.crash_at_save == 1 and self.world.random.random() < 0.5:
            self.crash_at_save = 0
            self._die()
            return

        def done() -> None:
            self.disk[key] = value() if callable(value) else value
            if self.crash_at_save:
                self.crash_at_save -= 1
                if not self.crash_at_save:
                    self._die()
                    return
            self._step(program, life, None)

        def synced() -> None:
            if life == self._life:
                self.when(life, done)
            elif self.world.random.random() < 0.5:  # killed meanwhile: it may have been done all the same
                self.disk[key] = value() if callable(value) else value

        self.world.later(self.world.random.uniform(0.0005, 0.02), synced)

    def _die(self) -> None:
        if self.world.random.random() < 0.5:
            self.crash()
        else:
            self.stop()

    def _ask(self, ask: Ask, program: Program, life: int) -> None:
        open_ = [True]

        def finish(answer: Any) -> None:
            if open_[0]:
                open_[0] = False
                self._step(program, life, answer)

        def back(answer: Any) -> None:
            self.world.deliver(ask.host, self.name, lambda: self.when(life, lambda: finish(answer)))

        other = self.world.hosts[ask.host]

        def arrive() -> None:
            if other.is_running:
                other_life = other._life
                other.when(
                    other_life,
                    lambda: other.spawn(_served(other.agent.serve(self.name, ask.action, ask.body), back)),
                )

        self.world.deliver(self.name, ask.host, arrive)
        self.world.later(ask.timeout_s / self.rate, lambda: self.when(life, lambda: finish(None)))


def _served(program: Program, back: Callable[[Any], None]) -> Program:
    answer = yield from program
    if answer is not None:
        back(answer)


@dataclass
class Fault:
    """Something that happens to a history at `at_s`. `what` and `arguments`: see `failover_histories.py`."""

    at_s: float
    what: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at_s:.2f} {self.what} {' '.join(map(str, self.arguments))}"


@dataclass
class Violation(AssertionError):
    text: str
    story: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text
