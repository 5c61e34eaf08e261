"""What programs pay for a synchronous mount: commits of SQLite and PostgreSQL, and plain fdatasync, on the
disk itself, on an asynchronous and on a synchronous mount, over lines of several round trips.

Source and target share this machine, each with a disk of its own (ext4 on a loop device). Between them a
relay in a process of its own delays what passes. Rounds of all modes are interleaved.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import harness
from file_systems import FileSystem
from kit.slow_line import slow_line
from programs import CLIENTS, Programs, Sizes

ROUND_TRIPS_MS = (0, 1, 5, 20)
DISK_BYTES = 2 * harness.GIB
BLOCK = os.urandom(4096)


def append_durably(directory: Path, name: str, seconds: float) -> list[float]:
    """Seconds of each: append 4 KiB, fdatasync."""
    found = []
    descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    until_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < until_s:
        os.write(descriptor, BLOCK)
        os.fdatasync(descriptor)
        found.append(time.perf_counter() - began_s)
    os.close(descriptor)
    os.unlink(directory / name)
    return found


class Cases:
    """Each gives the seconds of one operation, the median."""

    def __init__(self, work: Path, seconds: int, inserts: int) -> None:
        self._seconds = seconds
        self._programs = Programs(work, Sizes(inserts=inserts, seconds=seconds))

    def one(self, files: FileSystem) -> float:
        return statistics.median(append_durably(files.directory, "appended", self._seconds))

    def several(self, files: FileSystem) -> float:
        """Per operation of all: they share syncs and answers."""
        counts: list[int] = []

        def work(number: int) -> None:
            counts.append(len(append_durably(files.directory, f"appended{number}", self._seconds)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        began_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - began_s) / sum(counts)

    def all(self) -> dict[str, Callable[[FileSystem], float]]:
        cases: dict[str, Callable[[FileSystem], float]] = {
            "append 4 KiB and fdatasync": self.one,
            "the same, of 16 threads": self.several,
        }
        named = self._programs.all()
        wanted = ("SQLite insert and commit", f"pgbench transaction, {CLIENTS} clients")
        return cases | {name: named[name] for name in wanted if name in named}


def become(agents: harness.Pair, source: Path, sync: str) -> None:
    harness.dtctl(agents.source_agent, "mount", "set", source, f"sync={sync}", "sync_timeout=60")
    state = "Synchronous" if sync != "async" else ""
    harness.until(lambda: agents.status()["synchrony"] == state, interval_s=0.05)


def measure(work: Path, quick: bool) -> None:
    rounds, seconds, inserts = (1, 1, 20) if quick else (3, 4, 200)
    with (
        harness.disk(work / "disk", DISK_BYTES) as disk,
        harness.disk(work / "target", DISK_BYTES) as target,
        harness.pair(work) as agents,
    ):
        work.chmod(0o711)
        cases = Cases(work, seconds, inserts).all()
        native, mounted = (FileSystem(disk.path / name, disk.path / name) for name in ("native", "source"))
        for files in (native, mounted):
            files.directory.mkdir()
        agents.capture(mounted.directory)
        for round_trip_ms in ROUND_TRIPS_MS:
            with slow_line(agents.target_agent.port, round_trip_ms / 1000) as line:
                copy = target.path / f"copy-{round_trip_ms}"
                maps = [{"source": str(mounted.directory), "target": str(copy)}]
                address = f"127.0.0.1:{line.port}"
                body = {"repset": "bench", "target": address, "maps": maps, "mirror": "full"}
                agents.source.post("connections", body=body)
                agents.wait()
                table = harness.Table(
                    f"{round_trip_ms} ms added to the round trip",
                    *("operation", "native", "async", "sync=fsync", "sync / async", "sync / native"),
                )
                for name, case in cases.items():
                    found: dict[str, list[float]] = {"native": [], "async": [], "fsync": []}
                    for _ in range(rounds):
                        found["native"].append(case(native))
                        for sync in ("async", "fsync"):
                            become(agents, mounted.directory, sync)
                            found[sync].append(case(mounted))
                            agents.wait()
                    middle = {mode: statistics.median(values) for mode, values in found.items()}
                    table.row(
                        name,
                        *(f"{middle[mode] * 1000:.2f} ms" for mode in found),
                        f"{middle['fsync'] / middle['async']:.1f}",
                        f"{middle['fsync'] / middle['native']:.1f}",
                    )
                become(agents, mounted.directory, "async")
                agents.disconnect()


if __name__ == "__main__":
    harness.run(__doc__, measure)
