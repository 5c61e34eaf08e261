"""What it costs that a target notices changes by others ([target] watch): fanotify marks its file system.

Two pairs of agents, one target watched and one not, each with an ext4 of its own; rounds are interleaved. A
*neighbour* is a process that works on the target's file system, outside of the copy: each change of its costs
the kernel an event, and the receiver a look at it. *Replication* is a source that changes as fast as it can.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

SETTINGS = '[target]\nwatch = "{}"\n\n[queue]\n'
WATCHES = ("off", "on")


def files_come_and_go(directory: Path, count: int) -> None:
    """Each is created, written to, renamed and removed: about six events."""
    directory.mkdir(exist_ok=True)
    content = os.urandom(4096)
    for number in range(count):
        path, other = f"{directory}/f{number}", f"{directory}/g{number}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, content)
        os.close(descriptor)
        os.rename(path, other)
        os.unlink(other)


def one_file_is_written(directory: Path, count: int) -> None:
    """4 KiB at a time: events of one file are merged as long as nobody has read them."""
    directory.mkdir(exist_ok=True)
    content = os.urandom(4096)
    with open(directory / "file", "wb", buffering=0) as file:
        for number in range(count):
            file.seek(number % 1000 * 4096)
            file.write(content)


def receiver(agents: harness.Pair) -> dict[str, Any]:
    """What the only receiver says of itself."""
    (copy,) = agents.target.get("targets")
    status: dict[str, Any] = copy["status"]
    return status


def measure(work: Path, quick: bool) -> None:
    rounds, count = (1, 1000) if quick else (5, 10_000)
    with contextlib.ExitStack() as stack:
        pairs: dict[str, harness.Pair] = {}
        places: dict[str, Path] = {}
        for watch in WATCHES:
            base = work / watch
            base.mkdir()
            (base / "memory").symlink_to(work / "memory" / watch)
            (work / "memory" / watch).mkdir()
            disk = stack.enter_context(harness.disk(base / "disk", 2 * harness.GIB))
            agents = harness.pair(base, target_home=disk.path / "home", settings=SETTINGS.format(watch))
            pairs[watch] = stack.enter_context(agents)
            (base / "source").mkdir()
            (base / "source" / "file").touch()  # an empty source is no reason to empty a target
            pairs[watch].capture(base / "source")
            pairs[watch].connect(base / "source", disk.path / "copy")
            harness.until(lambda watch=watch: receiver(pairs[watch])["watch"] == watch)
            places[watch] = disk.path / "neighbour"
        table = harness.Table(
            f"A watched target, against one that is not ({count:,} files or writes, {rounds} rounds)",
            "what",
            "not watched: µs each",
            "watched: µs each",
            "ratio of the medians",
            "receiver's processor time, not watched: µs each",
            "watched: µs each",
        )
        work_of: list[tuple[str, Callable[[Path, int], None], bool]] = [
            ("neighbour: files come and go", files_come_and_go, False),
            ("neighbour: one file is written", one_file_is_written, False),
            ("replication: files come and go", files_come_and_go, True),
            ("replication: one file is written", one_file_is_written, True),
        ]
        for label, work_on, replicated in work_of:
            took: dict[str, list[float]] = {watch: [] for watch in WATCHES}
            used: dict[str, list[float]] = {watch: [] for watch in WATCHES}
            for number in range(rounds + 1):
                for watch in WATCHES if number % 2 else reversed(WATCHES):
                    place = work / watch / "source" / "busy" if replicated else places[watch]
                    agents = pairs[watch]
                    process = agents.processes()["receiver"]
                    agents.settle()
                    used_s, begun_s = harness.processor_s(process), time.perf_counter()
                    work_on(place, count)
                    if replicated:
                        agents.wait()
                    took_s = time.perf_counter() - begun_s
                    time.sleep(0.5)  # events are looked at ten times a second
                    if number:  # the first one warms up
                        took[watch].append(took_s / count * 1e6)
                        used[watch].append((harness.processor_s(process) - used_s) / count * 1e6)
            ratio = statistics.median(took["on"]) / statistics.median(took["off"])
            table.row(
                label,
                *(harness.median_text(took[watch], 1) for watch in WATCHES),
                f"{ratio:.2f}",
                *(harness.median_text(used[watch], 1) for watch in WATCHES),
            )
        if any(receiver(agents)["foreign_changes"] for agents in pairs.values()):
            raise harness.BenchError("changes by others were seen where there are none")


if __name__ == "__main__":
    harness.run(__doc__, measure)
