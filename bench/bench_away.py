"""A target that is away while programs make millions of small changes: what that costs them, and the source.

Programs (`small_operations.py`) change files through the mount as fast as it takes them, so many operations a
turn: with a live target, and with its agent stopped, by turns. In the middle the target is away for all of
`--operations`, made in turns as well. The queue is small: soon what changes is only noted (tracked). Memory
is the proportional set size of agent, capture and sender together (proc(5), smaps_rollup); what of it is
shared memory is mostly the memory tier. Samples are taken in all turns, so that all bear what they cost. Then
the target comes back, and both trees are compared. The turns on the storage itself show how much of an
operation's time the programs take.
"""

import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import harness

WRITERS = 2
TURNS_AWAY = 40  # of the long time that the target is away
READY_S = 600.0  # for the programs to make their files
SOURCE_ROLES = ("source dtd", "capture", "sender")


@dataclass(frozen=True)
class Sizes:
    """Limits of the queue, and how often to look."""

    memory_mib: int = 64
    disk_mib: int = 256
    sample_s: float = 2.0

    @property
    def settings(self) -> str:
        return f'[queue]\nmemory_size = "{self.memory_mib} MiB"\ndisk_size_max = "{self.disk_mib} MiB"\n'


QUICK = Sizes(memory_mib=32, disk_mib=32, sample_s=0.3)


@dataclass(frozen=True)
class Sample:
    """Of the source. Sizes in bytes."""

    memory: int  # of all its processes
    shared_memory: int  # part of that
    memory_tier: int
    disk_tier: int
    other_disk: int  # beside the disk tier: the activity log, what is tracked, the story
    tracking: bool
    files: int
    directories: int
    trees: int


class Source:
    """The source's agent as it is looked at. The target must be there when this begins."""

    def __init__(self, agents: harness.Pair, memory_directory: Path) -> None:
        self._agents = agents
        self._memory_directory = memory_directory
        processes = agents.processes()
        self._process_ids = [processes[role] for role in SOURCE_ROLES]

    def sample(self) -> Sample:
        texts = [Path(f"/proc/{number}/smaps_rollup").read_text() for number in self._process_ids]
        status, home = self._agents.status(), self._agents.source_agent.home
        disk_tier = space_bytes(home / "queue", "*.segment")
        return Sample(
            memory=sum(kibibytes(text, "Pss") for text in texts) * 1024,
            shared_memory=sum(kibibytes(text, "Pss_Shmem") for text in texts) * 1024,
            memory_tier=space_bytes(self._memory_directory, "*.segment"),
            disk_tier=disk_tier,
            other_disk=space_bytes(home / "queue", "*") + space_bytes(home / "source", "*") - disk_tier,
            tracking=status["tracking"],
            files=status["tracked_files"],
            directories=status["tracked_directories"],
            trees=status["tracked_trees"],
        )

    def lost_operations(self) -> int:
        """What its queue had no room for, ever."""
        return sum(queue["lost_ops"] for queue in self._agents.source.get("queues"))


def kibibytes(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    assert found, field
    return int(found[1])


def space_bytes(directory: Path, pattern: str) -> int:
    """Space of files below that match; those that go meanwhile take none."""
    total = 0
    for path in directory.rglob(pattern):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


class Writers:
    """Programs at work side by side. Between turns they change nothing."""

    def __init__(self, directory: Path) -> None:
        program = Path(__file__).with_name("small_operations.py")
        self._processes = [
            subprocess.Popen(
                [sys.executable, program, directory / f"of-{number}", str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(WRITERS)
        ]
        self._wait(READY_S)

    def turn(self, operations: int, source: Source | None, sample_s: float) -> tuple[float, list[Sample]]:
        """So many operations, all together. Returns operations per second, and samples taken meanwhile."""
        began_s = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{operations // WRITERS}\n")
            process.stdin.flush()
        samples = self._wait(sample_s, source)
        return operations / (time.perf_counter() - began_s), samples

    def _wait(self, pause_s: float, source: Source | None = None) -> list[Sample]:
        """Until each has answered. A sample after each pause."""
        waiting = {process.stdout for process in self._processes}
        samples, next_s = [], time.monotonic() + pause_s
        while waiting:
            answered, _, _ = select.select(waiting, [], [], max(next_s - time.monotonic(), 0))
            for output in answered:
                assert output is not None
                if not output.readline():
                    raise harness.BenchError("a program that changes files has failed")
                waiting.discard(output)
            if time.monotonic() >= next_s:
                if source is None and pause_s == READY_S:
                    raise harness.BenchError(f"programs were not ready within {READY_S:.0f} s")
                if source is not None:
                    samples.append(source.sample())
                next_s = time.monotonic() + pause_s
        return samples

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@contextmanager
def writing(directory: Path) -> Iterator[Writers]:
    writers = Writers(directory)
    try:
        yield writers
    finally:
        writers.close()


class Run:
    """Turns with a live target and without one."""

    def __init__(self, agents: harness.Pair, writers: Writers, source: Source, sizes: Sizes) -> None:
        self._agents = agents
        self._writers = writers
        self._source = source
        self._sizes = sizes
        self.gave_way = 0  # turns with a live target that was too slow for this queue

    def connected(self, operations: int) -> float:
        rate, samples = self._turn(operations)
        self.gave_way += any(sample.tracking for sample in samples)
        self._agents.wait()
        return rate

    def away(self, operations: int, turns: int) -> tuple[list[float], list[Sample], float]:
        """Returns rates, samples, and seconds from the target's start until all is well again."""
        self._agents.target_agent.stop()
        found = [self._turn(operations) for _ in range(turns)]
        began_s = time.perf_counter()
        self._agents.target_agent.start()
        self._agents.wait()
        recovered_s = time.perf_counter() - began_s
        return [rate for rate, _ in found], [sample for _, taken in found for sample in taken], recovered_s

    def _turn(self, operations: int) -> tuple[float, list[Sample]]:
        return self._writers.turn(operations, self._source, self._sizes.sample_s)


def measure(work: Path, quick: bool, operations: int, rounds: int) -> None:
    sizes = QUICK if quick else Sizes()
    source, below, copy = work / "source", work / "below", work / "copy"
    turn = max(operations // (4 if quick else TURNS_AWAY), 1000)
    for directory in (source, below, work / "native"):
        directory.mkdir()
    rates: dict[str, list[float]] = {
        name: []
        for name in ("on the storage itself", "connected", "away, by turns with that", "away, for long")
    }
    native, live, brief, long = rates.values()
    with writing(work / "native") as writers:
        native += [writers.turn(turn, None, READY_S)[0] for _ in range(rounds)]
    subprocess.run(["mount", "--bind", source, below], check=True)
    with harness.pair(work, settings=sizes.settings) as agents:
        agents.capture(source)
        agents.connect(source, copy)
        with writing(source) as writers:
            seen = Source(agents, work / "memory" / "source")
            run = Run(agents, writers, seen, sizes)
            run.connected(turn)  # the first turn also finds the memory that the others use again
            for number in range(rounds):
                live.append(run.connected(turn))
                brief += run.away(turn, 1)[0]
                harness.say(f"round {number + 1}: connected {live[-1]:,.0f}/s, away {brief[-1]:,.0f}/s")
                if number == rounds // 2:
                    before = agents.status()["sent_bytes"]
                    turned, samples, recovered_s = run.away(turn, operations // turn)
                    long += turned
                    status = agents.status()
                    sent_bytes = status["sent_bytes"] - before
                    result = compared(agents, below, copy)
                    tree_bytes = harness.used_bytes(below)
                    harness.say(f"away for {operations:,} operations, and back within {recovered_s:.1f} s")
            lost = seen.lost_operations()
        compared(agents, below, copy)
        agents.disconnect()
    subprocess.run(["umount", below], check=True)
    show_rates(rates, live, turn)
    show_use(samples, sizes, operations)
    table = harness.Table("The target is back", "what", "")
    table.row("its start until all is well, s", f"{recovered_s:.1f}")
    table.row("kind", status["mirror"]["kind"] or "from the queue")
    table.row("sent, MiB", f"{sent_bytes / harness.MIB:.1f}")
    table.row("space that all files of the source take, MiB", f"{tree_bytes / harness.MIB:.1f}")
    table.row("source and copy", result)
    table.row("operations that the queue had no room for", f"{lost:,}")
    table.row("turns with a live target in which the queue gave way", f"{run.gave_way} of {rounds + 1}")


def compared(agents: harness.Pair, below: Path, copy: Path) -> str:
    agents.settle()
    os.sync()  # what is not written yet may look like data where there is a hole
    return harness.assert_equal(below, copy)


def show_rates(rates: dict[str, list[float]], connected: list[float], turn: int) -> None:
    usual = statistics.median(connected)
    table = harness.Table(
        f"Operations per second of {WRITERS} programs, turns of {turn:,} operations",
        "target",
        "turns",
        "median (range)",
        "against connected",
    )
    for label, values in rates.items():
        ratio = statistics.median(values) / usual
        table.row(label, len(values), harness.median_text(values), f"{ratio:.2f}")


def show_use(samples: list[Sample], sizes: Sizes, operations: int) -> None:
    if not samples:
        raise harness.BenchError("too few operations to take a sample")
    table = harness.Table(
        f"The source while its target is away for {operations:,} operations ({len(samples)} samples)",
        "what",
        "limit",
        "first",
        "median",
        "last",
        "peak",
    )
    for label, limit, values in (
        ("memory of agent, capture and sender, MiB", "", [s.memory for s in samples]),
        ("the same but shared memory, MiB", "", [s.memory - s.shared_memory for s in samples]),
        ("memory tier, MiB", sizes.memory_mib, [s.memory_tier for s in samples]),
        ("disk tier, MiB", sizes.disk_mib, [s.disk_tier for s in samples]),
        ("beside it on disk, MiB", "", [s.other_disk for s in samples]),
    ):
        figures = values[0], statistics.median(values), values[-1], max(values)
        table.row(label, limit, *(f"{figure / harness.MIB:.1f}" for figure in figures))
    for label, counts in (
        ("noted: entries of one file", [s.files for s in samples]),
        ("noted: lists of names", [s.directories for s in samples]),
        ("noted: whole trees", [s.trees for s in samples]),
        ("only noted, nothing queued (1: yes)", [int(s.tracking) for s in samples]),
    ):
        table.row(label, "", counts[0], f"{statistics.median(counts):.0f}", counts[-1], f"{max(counts):,}")


if __name__ == "__main__":
    harness.run(__doc__, measure, operations=(10_000_000, 20_000), rounds=(6, 2))
