"""One simulated run: agents with faults, changes and checkers, all drawn from a seed.

    .venv/bin/python -m kit.trial FIRST [COUNT] [--verbose]     (in tests/, with PYTHONPATH=..)

runs seeds and prints what failed; with one seed and `--verbose`, what happened in it. The same seed is the
same run within one version of the tests, when strings hash alike (`main` sees to that).
"""

import collections
import contextlib
import io
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio._core._run as trio_scheduler
import trio.testing

from kit import random_changes
from kit.checkers import Watch, WatchedTree
from kit.disk import ProcessDied
from kit.power import Synced
from kit.random_changes import RandomChanges
from kit.simulated_faults import COSTLY, FAULTS, Faults
from kit.topology import TICK_S, Connection, Mount, Topology, topology
from kit.trees import snapshot
from replicator import limits
from replicator.sender.arguments import SenderOptions
from replicator.sender.mirrors import Mirrors
from replicator.status import TargetDataState

PATIENCE_S = 600.0  # of virtual time, for everything to be equal again
TINY_QUEUE = {"memory_bytes": 2 * 64 * 1024, "disk_bytes": 0}
SMALL_LIMITS: dict[str, tuple[int, ...]] = {
    "PART_BYTES": (100, 1000),
    "STEP_FILES": (3,),
    "PIECES_IN_FLIGHT": (6, 40),
    "NAMES_PER_PIECE": (2,),
    "RUN_BYTES": (1024, 20_000),
    "SYNC_FILES": (2,),
    "READ_CHUNK_BYTES": (2048,),
    "COMPARE_BLOCK_BYTES": (4096,),
    "COMPARE_MIN_BYTES": (0,),
}


@dataclass
class Plan:
    """What a seed says about a run."""

    seed: int
    mounts: int = 1
    hosts: int = 1
    kind: str = "full"
    checksum: bool = False  # the mirror compares blocks,
    checksum_all: bool = False  # of all files
    stale: bool = False  # the target begins with an old copy
    early: bool = False  # changes and faults begin before the first mirror is complete
    tiny_queue: bool = False
    faults: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: int) -> "Plan":
        chance = Random(seed)
        plan = cls(seed)
        plan.mounts = chance.choice((1, 1, 1, 2))
        plan.hosts = chance.choice((1, 1, 1, 2))
        plan.kind = chance.choice(("full", "difference"))
        plan.stale = chance.random() < 0.3
        plan.early = chance.random() < 0.5
        plan.tiny_queue = plan.mounts == plan.hosts == 1 and chance.random() < 0.3
        cheap = sorted(FAULTS.keys() - COSTLY)
        plan.faults = chance.sample(cheap, chance.randint(1, len(cheap)))
        if plan.tiny_queue:
            plan.faults = [*plan.faults[:6], "full_queue", "full_queue"]
        elif chance.random() < 0.2:
            plan.faults = [*plan.faults[:6], "target_loses_power", "target_loses_power"]
        elif chance.random() < 0.5:
            plan.faults = [*plan.faults[:3], "mirror_again", "mirror_again", "mirror_again"]
        if chance.random() < 0.7:
            plan.limits = {name: chance.choice(values) for name, values in SMALL_LIMITS.items()}
        if plan.kind == "difference":
            plan.checksum, plan.checksum_all = chance.choice(((False, False), (True, False), (True, True)))
        return plan

    @property
    def needs_only_the_queue(self) -> bool:
        return not COSTLY & {*self.faults}


@contextlib.contextmanager
def _with(settings: dict[str, int]) -> Iterator[None]:
    former = {name: getattr(limits, name) for name in settings}
    for name, value in settings.items():
        setattr(limits, name, value)
    try:
        yield
    finally:
        for name, value in former.items():
            setattr(limits, name, value)


@contextlib.contextmanager
def _full_comparisons() -> Iterator[list[str]]:
    """Each time that a sender begins to bring a whole set: what kind."""
    begin, found = Mirrors.begin, []

    def counted(self: Mirrors, kind: str, **how: Any) -> object:
        found.append(kind)
        return begin(self, kind, **how)

    Mirrors.begin = counted  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Mirrors.begin = begin  # type: ignore[method-assign]


class Trial:
    """A run of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.chance = Random(plan.seed)
        self.told: list[str] = []
        self.watches: dict[str, Watch] = {}
        self._synced: dict[str, Synced] = {}
        self._complete = False  # every target has been exact once
        self.counts: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        random_changes.SIZE_MAX = self.chance.choice((400, 400, 20_000))
        try:
            with _with(self.plan.limits), _full_comparisons() as self._full:
                async with topology(self.plan.seed) as net:
                    await self._run(net)
        finally:
            random_changes.SIZE_MAX = 400

    async def _run(self, net: Topology) -> None:
        plan, chance = self.plan, self.chance
        net.network.split = 0.2  # pieces cost more time than all else
        self._outside = net.directory / "outside"
        self._outside.mkdir()
        (self._outside / "file").write_text("nobody's business")
        outside = snapshot(self._outside)
        sizes = TINY_QUEUE if plan.tiny_queue else {}
        self.mounts = [net.mount(f"m{number}", **sizes) for number in range(plan.mounts)]
        self.changes = [self._changes_of(mount) for mount in self.mounts]
        self.ignore = frozenset({"holes"}) if plan.stale else frozenset[str]()
        self.connections = [self._connect(net, f"host{number}") for number in range(plan.hosts)]
        self.faults = Faults(
            net,
            self.connections,
            chance,
            lose_power=self._lose_power,
            set_illness=lambda connection, how: setattr(self.watches[connection.host], "illness", how),
        )
        self.told = self.faults.told
        if not plan.early:
            await self._settled()
        for _ in range(2):
            begun = len(self._full)
            await self._change_and_fail(chance.randint(8, 30))
            self.faults.heal()
            await self._settled()
            if self._complete and plan.needs_only_the_queue:
                assert len(self._full) == begun, f"everything was compared: {self._full[begun:]}"
            self._complete = True
        assert snapshot(self._outside) == outside, "something outside of the target was touched"

    # --- set-up ---

    def _changes_of(self, mount: Mount) -> RandomChanges:
        changes = RandomChanges(mount.source, self.chance)
        mount.source.create(b"filler")
        mount.source.symlink(b"way out", b"../../outside")
        mount.source.symlink(b"other way", bytes(self._outside))
        changes.steps(self.chance.choice((20, 60)))
        return changes

    def _connect(self, net: Topology, host: str) -> Connection:
        plan = self.plan
        options = SenderOptions(
            mirror=plan.kind, checksum=plan.checksum, checksum_all=plan.checksum_all, orphans="delete"
        )
        connection = net.connect(self.mounts, host, options=options, start=False)
        copies = [connection.copy_of(mount) for mount in self.mounts]
        watch = Watch(copies, ignore=self.ignore)
        self.watches[host] = watch
        if plan.stale:
            connection.target.mkdir()
            for mount, changes in zip(self.mounts, self.changes, strict=True):
                subprocess.run(["cp", "-a", str(mount.root), str(connection.copy_of(mount))], check=True)
                # What hid behind size and mtime before the connection was made, a comparison cannot find.
                changes.restores_times = plan.kind != "difference" or plan.checksum_all
                changes.steps(25)
                changes.restores_times = True

        def open_tree(*arguments: Any) -> WatchedTree:
            watch.opened_by(connection.receiver)
            return WatchedTree(watch, *arguments)

        connection.open_tree = open_tree
        if "target_loses_power" in plan.faults:
            connection.target.mkdir(exist_ok=True)
            synced = self._synced[host] = Synced(connection.target, net.directory / f"image-{host}")
            watch.after_sync = synced.note
        connection.start_receiver()
        connection.start_sender()
        return connection

    # --- what happens ---

    async def _change_and_fail(self, rounds: int) -> None:
        chance = self.chance
        # A mirror of so few files is over soon: for more than one change to meet it they have to come fast.
        pauses_s = (0, 0.0002, 0.001, 0.01, 0.5)[: chance.choice((4, 5))]
        for _ in range(rounds):
            for number, changes in enumerate(self.changes):
                changes.steps(chance.choice((0, 1, 1, 3, 10)))
                if chance.random() < 0.3:
                    self._probe(number)
            await trio.sleep(chance.choice(pauses_s))
            if chance.random() < 0.2:
                await self.faults.happen(self.plan.faults)
            self._look()

    def _probe(self, number: int) -> None:
        mount = self.mounts[number]
        if mount.writer.record_losses():
            for watch in self.watches.values():
                watch.probe(number, mount.writer.position.sequence, mount.root)

    def _look(self) -> None:
        for connection in self.connections:
            if connection.sender_process.dead:
                continue
            status = connection.status
            for journal_id, applied in status.applied.items():
                assert status.durable[journal_id] <= applied <= status.received[journal_id], status
            self.watches[connection.host].check_durable(status.durable)
        for mount in self.mounts:
            used = mount.writer.statistics()
            assert used.memory_bytes <= mount.settings.memory_bytes, used

    async def _lose_power(self, connection: Connection) -> None:
        await connection.lose_target_power()
        made = [path for path in map(connection.copy_of, self.mounts) if path.exists()]
        self.told.append(self._synced[connection.host].lose_power(self.chance))
        for path in made:
            path.mkdir(exist_ok=True)  # as `replica_paths.make_targets` made it: durable
        self.watches[connection.host].lost_power()

    async def _settled(self) -> None:
        """All is well again: everything is applied, and both sides are equal."""
        with trio.move_on_after(PATIENCE_S):
            for connection in self.connections:
                await self._started(connection)
            for mount in self.mounts:
                while self.plan.tiny_queue and not self._has_room(mount):  # noqa: ASYNC110  # nothing tells
                    await trio.sleep(TICK_S)
            for connection in self.connections:
                while not await self._drained(connection):  # noqa: ASYNC110  # nothing tells
                    await trio.sleep(1)
            for connection in self.connections:
                connection.assert_equal(self.ignore)
            return
        raise AssertionError(f"not equal for {PATIENCE_S} s: {[c.status for c in self.connections]}")

    async def _started(self, connection: Connection) -> None:
        """A command that ended a process has to be given again."""
        while True:
            with contextlib.suppress(ProcessDied):
                if not connection.sender_process.dead:
                    connection.running.transmit_start()
                    return
            await trio.sleep(0.1)  # its agent is about to start another

    def _has_room(self, mount: Mount) -> bool:
        mount.writer.collect()
        return mount.writer.statistics().segments <= 1 and mount.writer.record_losses()

    async def _drained(self, connection: Connection) -> bool:
        """Whether all is applied. A sender that ends meanwhile says nothing."""
        if connection.sender_process.dead:
            return False
        applied = await connection.applied(30)
        self._look()
        return (
            applied
            and not connection.sender_process.dead
            and connection.status.target_data_state is TargetDataState.OK
        )


def run(seed: int) -> Trial:
    """Raises what the run raises."""
    trial = Trial(Plan.of(seed))
    # As pytest-trio does for Hypothesis: trio's own choice of the next task follows from the seed, too.
    trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_scheduler._r.seed(seed)
    try:
        trio.run(trial.run, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseException as error:
        error.add_note(f"{trial.plan}\n" + "\n".join(trial.told))
        raise
    finally:
        trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING = False
    trial.counts["applied"] = sum(watch.applied for watch in trial.watches.values())
    trial.counts["prefixes seen"] = sum(watch.probed for watch in trial.watches.values())
    trial.counts.update(line.split()[1] for line in trial.told if line[0].isdigit())
    return trial


def why(error: BaseException) -> str:
    """The first line of the innermost reason."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".strip().replace("\n", " | ")[:300]


def main(first: int, count: int = 1, *, verbose: bool = False) -> int:
    failed = []
    counts: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    for seed in range(first, first + count):
        said = sys.stderr if verbose else io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                counts += run(seed).counts
        except (Exception, BaseExceptionGroup) as error:
            failed.append(seed)
            print(f"{seed}: {why(error)}", flush=True)
            if verbose:
                traceback.print_exception(error)
    took_s = time.monotonic() - begun
    print(f"{count} runs in {took_s:.0f} s, {1000 * took_s / count:.0f} ms each; failed: {failed}")
    for name, number in sorted(counts.items()):
        print(f"    {name}: {number}")
    return len(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is a part of a run
        os.environ["PYTHONHASHSEED"] = "0"
        os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent.parent))
        os.execv(sys.executable, [sys.executable, "-m", "kit.trial", *sys.argv[1:]])
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    raise SystemExit(bool(partial(main, *numbers)(verbose="--verbose" in sys.argv)))
