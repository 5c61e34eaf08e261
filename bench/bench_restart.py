"""Everything is killed with SIGKILL and started again, while one change in a large tree is not on the target.

Before each kill the target's receiver stands still, a file is changed in place through the mount, and its
mtime is put back; nothing is synced. Names, sizes and times of both trees are equal then: the first time
rsync is asked what it would bring. Then both agents are started at once, and time runs from the start of the
later one, until

- the mount answers (of a capture that was killed),
- the change is in the copy,
- the connection is OK, with nothing queued.

Mirrors are counted in the story of the connection; that nobody compares everything is seen without asking
anybody, by the access times of the directories below the mount (the file system must not be mounted noatime).
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import harness
from bench_mirror import rsync_daemon
from kit.hidden_change import change_in_place
from kit.protected import serves
from kit.snapshots import frozen

from replicator.errors import ReplicatorError

FILES_PER_DIRECTORY = 100
MARK_BYTES = 64
LOOK_S = 0.002
# What is killed, and roles that are spared.
VARIANTS: dict[str, tuple[str, ...]] = {
    "all processes": (),
    "all but the capture": ("capture",),
}


class Trees:
    """The source as programs see it, as it lies below the mount, and its copy."""

    def __init__(self, work: Path, files: int) -> None:
        self.source, self.below, self.copy = work / "source", work / "below", work / "copy"
        self.files = files
        harness.make_small_files(self.source, files, per_directory=FILES_PER_DIRECTORY)
        self.below.mkdir()
        subprocess.run(["mount", "--bind", self.source, self.below], check=True)

    def name(self, number: int) -> str:
        return f"d{number // FILES_PER_DIRECTORY}/f{number}"

    def choose(self, wanted: int) -> int:
        """A file from that number on that has room for a mark."""
        while (self.below / self.name(wanted)).stat().st_size < MARK_BYTES:
            wanted = (wanted + 1) % self.files
        return wanted

    def forget_reads(self) -> None:
        for directory in self.below.iterdir():
            os.utime(directory, ns=(0, directory.stat().st_mtime_ns))

    def directories_read(self) -> int:
        """Since they were forgotten: the kernel notes it (mount(8), relatime)."""
        return sum(directory.stat().st_atime_ns != 0 for directory in self.below.iterdir())


def restart(
    agents: harness.Pair, trees: Trees, number: int, spared: tuple[str, ...], work: Path | None
) -> dict[str, float]:
    """One round: what it took, by the name of a column. `work`: a place for rsync, if that is to be asked."""
    name = trees.name(trees.choose(number))
    mark = os.urandom(MARK_BYTES)
    story_end = max(entry["sequence"] for entry in story(agents))
    trees.forget_reads()
    with frozen(agents.processes()["receiver"]):
        change_in_place(trees.source / name, mark)
        agents.source_agent.kill_all(*spared)
        agents.target_agent.kill_all()
    found: dict[str, float] = {}
    assert head(trees.copy / name) != mark
    if work is not None:
        found["rsync"] = name in rsync_would_bring(work, trees)
        trees.forget_reads()
    agents.target_agent.launch()
    began = time.perf_counter()
    agents.source_agent.launch()
    harness.until(lambda: serves(trees.source), interval_s=LOOK_S)
    found["mount"] = time.perf_counter() - began
    harness.until(lambda: head(trees.copy / name) == mark, interval_s=LOOK_S)
    found["visible"] = time.perf_counter() - began
    harness.until(lambda: is_well(agents), interval_s=5 * LOOK_S)
    found["well"] = time.perf_counter() - began
    agents.settle()
    found["sent"] = agents.status()["sent_bytes"]
    found["mirrors"] = sum(
        entry["dimension"] == "mirror status" and entry["event"] == "mirror begins"
        for entry in story(agents)
        if entry["sequence"] > story_end
    )
    found["read"] = trees.directories_read()
    return found


def head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MARK_BYTES)


def story(agents: harness.Pair) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = agents.source.get("connections", "bench", "story")
    return found


def is_well(agents: harness.Pair) -> bool:
    try:
        status = agents.status()
    except ReplicatorError:  # it is just coming up
        return False
    states = status["state"], status["target_data_state"], status["target_status"]
    return states == ("Started", "OK", "OK") and not status["queued_ops"]


def rsync_would_bring(work: Path, trees: Trees) -> list[str]:
    """Names of what `rsync -a` takes for different."""
    with rsync_daemon(work, trees.copy) as address:
        result = subprocess.run(
            ["rsync", "-an", "--out-format=%n", f"{trees.below}/", address],
            capture_output=True,
            text=True,
            check=True,
        )
    return result.stdout.splitlines()


def measure(work: Path, quick: bool, files: int, rounds: int) -> None:
    trees = Trees(work, files)
    columns = (
        "rounds",
        "mount answers, s",
        "change on the target, s",
        "all well, s",
        "worst, in this order, s",
    )
    table = harness.Table(
        f"Killed and started again, {files:,} files, one of them changed in place (medians)",
        "killed",
        *columns,
        "bytes sent",
        "mirrors",
        "directories read",
        "found by rsync -a",
    )
    with harness.pair(work) as agents:
        agents.capture(trees.source)
        agents.connect(trees.source, trees.copy)
        agents.settle()
        found: dict[str, list[dict[str, float]]] = {label: [] for label in VARIANTS}
        for number in range(rounds):
            for place, (label, spared) in enumerate(VARIANTS.items()):
                wanted = (number * len(VARIANTS) + place) * 7919 % files
                found[label].append(restart(agents, trees, wanted, spared, None if number else work))
                harness.say(f"{label}: {found[label][-1]}")
        for label, values in found.items():
            show(table, label, values)
        harness.assert_equal(trees.below, trees.copy)
        agents.disconnect()
    subprocess.run(["umount", trees.below], check=True)


def show(table: harness.Table, label: str, values: list[dict[str, float]]) -> None:
    times = [[value[name] for value in values] for name in ("mount", "visible", "well")]
    table.row(
        label,
        len(values),
        *(harness.median_text(column, 2) for column in times),
        " / ".join(f"{max(column):.2f}" for column in times),
        harness.median_text([value["sent"] for value in values]),
        f"{sum(value['mirrors'] for value in values):.0f}",
        f"{sum(value['read'] for value in values):.0f}",
        f"{sum(value.get('rsync', 0) for value in values):.0f} of {sum('rsync' in v for v in values)}",
    )


if __name__ == "__main__":
    harness.run(__doc__, measure, files=(50_000, 2_000), rounds=(20, 2))
