"""A seeded history of the simulation (`kit.failover_histories`) in network namespaces, with real agents:

    PYTHONPATH=. ../.venv/bin/python -m kit.replay SEED [COUNT] [--verbose]      # in tests/

    with replay_lab(directory) as stage:       # source, target, witness, a service, its clients
        stage.replay(draw(seed))               # raises Violation

The same faults and commands at the same moments, `SPEED` times as fast. What the simulation has and this has
not: lost packets, and clocks that differ. A crash around the n-th save is one when so many files of the agent
have changed; a kill is of the agent alone, of all its processes but captures, or of all (by the seed).

Hosts are judged from outside (`kit.replay_judge`). Afterwards a person makes it well (`kit.replay_people`),
so the next history begins where this one has ended: with more epochs, and more bundles.
"""

import heapq
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kit.failover_histories import History, draw, play
from kit.failover_lab import FailoverLab, Machine, failover_lab
from kit.failover_world import Fault, Violation
from kit.replay_judge import Watcher, judge
from kit.replay_people import People
from kit.replay_service import Clients, Service, etcd_command

SPEED = float(os.environ.get("SOAK_FAILOVER_REPLAYS_SPEED", "2"))
INTERVAL_MIN_S = 0.3
BEFORE_S, AFTER_S = 1.0, 2.0  # real, without faults
REPAIR_S = 180.0  # real
SERVICE_S = 120.0  # until the service answers, where nothing is in its way
TICK_S = 0.02
TEND_S = 0.2
_SWITCH = """\
#!/bin/sh
touch {directory}/switch-$$
while [ ! -e {directory}/switched-$$ ]; do sleep 0.05; done
code=$(cat {directory}/switched-$$)
rm {directory}/switched-$$
exit "$code"
"""


@dataclass
class Standing:
    """How it is with one host. Times are real, CLOCK_MONOTONIC."""

    machine: Machine
    is_up: bool = True
    paused_until_s: float = 0.0
    starts: bool = False  # its agent, as soon as it goes on
    etcd: subprocess.Popen[bytes] | None = None
    saves_left: int = 0  # until it crashes; 0: it does not
    saved: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def is_paused(self) -> bool:
        return self.paused_until_s > 0

    @property
    def runs(self) -> bool:
        """Its operating system."""
        return self.is_up and not self.is_paused

    @property
    def agent_runs(self) -> bool:
        return self.runs and self.machine.agent.process is not None

    def has_saved(self) -> bool:
        """Since the last look."""
        files = [self.machine.agent.home / "state.json", *(self.machine.agent.home / "failover").rglob("*")]
        found = []
        for file in files:
            with suppress(OSError):
                state = file.stat()
                found.append((str(file), state.st_mtime_ns, state.st_size))
        before, self.saved = self.saved, tuple(found)
        return bool(before) and before != self.saved


@dataclass
class Summary:
    """What came of one history."""

    seed: int
    terms: list[str] = field(default_factory=list)
    epochs: int = 0
    writes: int = 0
    lost: int = 0
    bundled: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {' → '.join(self.terms)}, {self.epochs} epochs, {self.writes} writes,"
            f" {self.bundled} in bundles, {self.lost} lost, {self.seconds:.1f} s"
        )


class Stage:
    """Use `replay_lab`. `say`: is told what happens."""

    def __init__(self, lab: FailoverLab, say: Callable[[str], None]) -> None:
        assert lab.witness is not None
        self.lab = lab
        self.hosts = {machine.name: Standing(machine) for machine in lab.machines}
        self.cuts: set[tuple[str, str]] = set()
        self.services = [
            Service(lab, lab.source, enabled=True),
            Service(lab, lab.target, enabled=False),
        ]
        self.clients = Clients(lab, 0)
        self.story: list[str] = []
        self.random = Random(0)
        self.people = People(self)
        self.switch = lab.directory / "power-switch"
        self.switch.write_text(_SWITCH.format(directory=lab.directory))
        self.switch.chmod(0o755)
        self.watcher: Watcher | None = None
        self._say = say
        self._began_s = time.monotonic()
        self._uses_etcd = False
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._tend_s = 0.0

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self._began_s:7.2f} {text}"
        self.story.append(line)
        self._say(line)

    def prepare(self) -> None:
        """The directory is protected and watched, the service runs."""
        here, there = (service.script for service in reversed(self.services))
        self.lab.protect()
        self.lab.monitor(
            *("--script", f"post-failover={here} start"),
            *("--script", f"pre-failback={here} stop"),
            *("--script", f"source-post-failback={there} start"),
            serve=False,
            interval_s=0.5,
        )

    # --- one history ---

    def replay(self, history: History, *, until_served_by: str = "") -> Summary:
        """Raises Violation, with the story. `until_served_by`: a host; before that nothing is made well."""
        began_s = self._began_s = time.monotonic()
        self.story, self.random = [], Random(f"replay {history.seed}")
        self.say(str(history))
        self.people.configure(history.setup)
        group = self.people.group()
        assert group is not None
        self.watcher = Watcher(self, history)
        try:
            with self.watcher:
                self._writes_at("source")
                self.run_until(time.monotonic() + BEFORE_S)
                self._play(history)
                if until_served_by:
                    self._writes_at(until_served_by)
                self.run_until(time.monotonic() + AFTER_S)
                self._repair()
                if reason := self._help():
                    raise Violation(f"not protected again: {reason}")
                self._writes_at("source")
            summary = judge(self, history, group["epoch"], Summary(history.seed), self.watcher)
        except Violation as violation:
            raise Violation(violation.text, self.story) from None
        except Exception as error:
            error.add_note("\n".join(self.story))
            raise
        finally:
            self.people.close()
            self.clients.close()
        summary.seconds = time.monotonic() - began_s
        self.clients = Clients(self.lab, self.clients.serial)
        return summary

    def _writes_at(self, host: str) -> None:
        """Until somebody does that was not there before."""
        now_s = time.monotonic()
        while not any(one.host == host and one.sent_s > now_s for one in self.clients.answers):
            if time.monotonic() > now_s + SERVICE_S:
                raise Violation(f"not protected again: the {host} accepts no write")
            self.run_until(time.monotonic() + 0.1)

    def _play(self, history: History) -> None:
        """From its first fault to its last. What it takes to cut a host's power and to boot it is no time of
        the history.
        """
        faults = [fault for fault in history.faults if not self._is_idle(history, fault)]
        for before, fault in zip([faults[0], *faults] if faults else [], faults, strict=False):
            self.run_until(time.monotonic() + (fault.at_s - before.at_s) / SPEED)
            self.befall(fault)

    def _is_idle(self, history: History, fault: Fault) -> bool:
        """What happens to a witness that nobody asks."""
        return not history.setup.witness and "witness" in fault.arguments

    # --- time ---

    def at(self, moment_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (moment_s, next(self._count), what))

    def run_until(self, moment_s: float) -> None:
        while (now_s := time.monotonic()) < moment_s or (self._heap and self._heap[0][0] <= moment_s):
            self.tick()
            if self._heap and self._heap[0][0] <= now_s:
                heapq.heappop(self._heap)[2]()
            else:
                time.sleep(min(TICK_S, max(moment_s - now_s, 0.0)))

    def tick(self) -> None:
        for host in self.hosts.values():
            if host.is_paused and time.monotonic() >= host.paused_until_s:
                self.resume(host)
            if host.saves_left and host.is_up and host.has_saved():
                host.saves_left -= 1
                if not host.saves_left:
                    self.random.choice([self.crash, self.kill])(host)
        self._switch_power()
        self.people.reap()
        if time.monotonic() >= self._tend_s:
            self._tend_s = time.monotonic() + TEND_S
            for service in self.services:
                service.tend(host_runs=self.hosts[service.machine.name].runs)
            for name in ("source", "target"):
                if self.hosts[name].runs:
                    self.clients.keep(self.hosts[name].machine.host)
            self.clients.keep(self.lab.client_host)

    # --- faults ---

    def befall(self, fault: Fault) -> None:
        host = self.hosts.get(fault.arguments[0]) if fault.arguments else None
        match fault.what, host:
            case "cut", _:
                self.cut(*fault.arguments)
            case "heal", _:
                self.heal(*fault.arguments)
            case "crash", Standing():
                self.crash(host)
            case (("boot" | "start"), Standing()):
                self.boot(host) if fault.what == "boot" else self.start(host)
            case "crash at save", Standing():
                host.has_saved()
                host.saves_left = fault.arguments[1]
            case "kill", Standing():
                self.kill(host)
            case "pause", Standing():
                self.pause(host, fault.arguments[1] / SPEED)
            case _:
                self.people.command(fault)

    def cut(self, one: str, other: str) -> None:
        if (one, other) not in self.cuts:
            self.say(f"cut {one} → {other}")
            self.cuts.add((one, other))
            self.hosts[one].machine.host.block(self.hosts[other].machine.host)

    def heal(self, one: str, other: str) -> None:
        if (one, other) in self.cuts:
            self.say(f"heal {one} → {other}")
            self.cuts.remove((one, other))
            self.hosts[one].machine.host.unblock(self.hosts[other].machine.host)

    def crash(self, host: Standing) -> None:
        if host.is_up:
            self.say(f"{host.name} loses power")
            host.is_up, host.paused_until_s, host.saves_left, host.starts = False, 0.0, 0, False
            host.machine.lose_power()

    def boot(self, host: Standing) -> None:
        if not host.is_up:
            self.say(f"{host.name} boots")
            host.machine.boot(start=False)
            host.is_up = True
        self.start(host)

    def start(self, host: Standing) -> None:
        """Its agent, if it does not run; and its etcd. A host that stands still starts nothing."""
        if not host.is_up:
            return
        if host.is_paused:
            host.starts = True
            return
        agent = host.machine.agent
        if agent.process is None or agent.process.poll() is not None:
            self.say(f"{host.name}: agent starts")
            agent.launch()
        if host.name == "witness":
            self.keep_etcd(self._uses_etcd)

    def kill(self, host: Standing) -> None:
        """SIGKILL ends what stands still as well."""
        agent = host.machine.agent
        if not host.is_up or agent.process is None:
            return
        host.saves_left = 0
        if host.name == "witness" and self._uses_etcd:
            self.say("witness: etcd killed")
            self._end_etcd()
            return
        spared = self.random.choice(["everything else", "captures", "nothing"])
        self.say(f"{host.name}: agent killed, {spared} spared")
        match spared:
            case "everything else":
                agent.kill()
            case "captures":
                agent.kill_all("capture")
            case _:
                agent.kill_all()

    def pause(self, host: Standing, seconds: float) -> None:
        if host.is_up:
            self.say(f"{host.name} is paused for {seconds:.2f} s")
            host.machine.pause()
            host.paused_until_s = max(host.paused_until_s, time.monotonic() + seconds)

    def resume(self, host: Standing) -> None:
        self.say(f"{host.name} goes on")
        host.paused_until_s = 0.0
        host.machine.resume()
        if host.starts:
            host.starts = False
            self.start(host)

    def keep_etcd(self, wanted: bool) -> None:
        """On the witness: it runs if it is the witness of this history."""
        self._uses_etcd = wanted
        host = self.hosts["witness"]
        if not wanted:
            self._end_etcd()
        elif host.etcd is None or host.etcd.poll() is not None:
            with open(self.lab.directory / "etcd.log", "ab") as output:
                host.etcd = subprocess.Popen(
                    etcd_command(host.machine.disk.path / "etcd", host.machine.host),
                    stdout=output,
                    stderr=output,
                )

    def _end_etcd(self) -> None:
        if (etcd := self.hosts["witness"].etcd) is not None:
            etcd.kill()
            etcd.wait(30)
            self.hosts["witness"].etcd = None

    def _switch_power(self) -> None:
        """A power switch that cannot be cut off, but fails at times."""
        for request in self.lab.directory.glob("switch-*"):
            request.unlink()
            fails = self.random.random() < 0.3
            source = self.hosts["source"]
            self.say(f"the power switch {'fails' if fails else 'is used'}")
            if not fails:
                self.crash(source)
                back_s = self.random.uniform(2.0, 8.0) / SPEED
                self.at(time.monotonic() + back_s, lambda: self.boot(self.hosts["source"]))
            answer = self.lab.directory / f"switching-{request.name}"
            answer.write_text(f"{int(fails)}\n")
            answer.rename(self.lab.directory / request.name.replace("switch", "switched"))

    # --- what makes it well again ---

    def _repair(self) -> None:
        self.say("--- repair")
        self._heap.clear()
        for pair in tuple(self.cuts):
            self.heal(*pair)
        for host in self.hosts.values():
            host.saves_left = 0
            if host.is_paused:
                self.resume(host)
            self.boot(host)

    def _help(self) -> str:
        """Until all is as it was. Returns what is not; "": nothing."""
        deadline_s = time.monotonic() + REPAIR_S
        while reason := self.people.help():
            if time.monotonic() > deadline_s:
                return reason
            for host in self.hosts.values():
                if not host.is_up:  # whom a fence command has switched off
                    self.boot(host)
            self.run_until(time.monotonic() + 0.3)
        return ""

    def close(self) -> None:
        self.people.close()
        self.clients.close()
        for service in self.services:
            service.close()
        self._end_etcd()


@contextmanager
def replay_lab(
    directory: Path, *, planted: str = "", say: Callable[[str], None] = lambda line: None
) -> Iterator[Stage]:
    """All that histories need, protected and watched. `planted`: a mistake of `kit.failover_planted` that all
    agents have.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lab = stack.enter_context(failover_lab(directory, witness=True, planted=planted))
        stage = Stage(lab, say)
        stack.callback(stage.close)
        stage.prepare()
        yield stage


def chosen(first: int, count: int) -> list[int]:
    """So many seeds from the first one on: those in whose simulation somebody takes over."""
    taken_over = (seed for seed in itertools.count(first) if play(draw(seed)).failovers)
    return list(itertools.islice(taken_over, count))


def many(
    seeds: list[int], directory: Path, say: Callable[[str], None] = lambda line: None
) -> tuple[list[Summary], dict[int, str]]:
    """What went well, and of each seed that did not, why. A lab serves until a history fails in it."""
    done: list[Summary] = []
    failed: dict[int, str] = {}
    left = list(reversed(seeds))
    for number in itertools.count():
        if not left:
            return done, failed
        seed = None
        try:
            with replay_lab(directory / f"lab-{number}", say=say) as stage:
                while left:
                    seed = left.pop()
                    done.append(stage.replay(draw(seed)))
                    print(done[-1], flush=True)
        except Exception as error:
            if seed is None:  # hosts that cannot even be set up
                raise
            text = f"{type(error).__name__}: {error}"
            failed[seed] = text
            print(f"seed {seed}: {text}", flush=True)
            story = getattr(error, "story", None) or []
            notes = getattr(error, "__notes__", [])
            (directory / f"failed-{seed}").write_text("\n".join([text, *story, *notes]))
    raise AssertionError("not reached")


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    seeds = numbers if len(numbers) == 1 else chosen(*numbers)
    directory = Path(tempfile.mkdtemp(prefix="replay-"))
    print(f"stories of what fails: {directory}", flush=True)
    verbose = "--verbose" in sys.argv
    done, failed = many(seeds, directory, print if verbose else lambda line: None)
    print(f"{len(done)} went well, {len(failed)} did not: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
