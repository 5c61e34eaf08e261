"""Microseconds of a journal's daily work, on this machine: `python bench/journal.py [--seconds S]`.

The memory tier lies on /dev/shm as in production. Each figure is the best of several rounds: what the code
costs, not what the machine does besides.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from replicator.ops import Kind
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings, JournalWriter
from replicator.world import World

JOURNAL = "2f0c7a52-1d5e-4c39-8f63-6d0f4a1b7c11"
READER = "2f0c7a52-1d5e-4c39-8f63-6d0f4a1b7c12"
ROUNDS = 5
WAKE_UPS = 300


def best_us(function: Callable[[], object], seconds: float) -> float:
    """Microseconds of one call: best round of several."""
    count = 100
    best = float("inf")
    deadline = time.perf_counter() + seconds
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() < deadline:
        begun = time.perf_counter()
        for _ in range(count):
            function()
        taken = time.perf_counter() - begun
        best = min(best, taken / count)
        count = max(100, min(20_000, int(count * seconds / ROUNDS / max(taken, 1e-9))))
        rounds += 1
    return best * 1e6


def append_us(writer: JournalWriter, size: int, seconds: float) -> float:
    payload = os.urandom(size)
    return best_us(
        lambda: writer.append(Kind.WRITE, b"dir/file.dat", payload=payload, inode=5, arg0=4096), seconds
    )


def read_us(world: World, settings: JournalSettings, writer: JournalWriter, size: int) -> float:
    """Per record, verified and decoded."""
    cursor = Cursor.open(world, settings, JOURNAL, READER, create=True)
    payload = os.urandom(size)
    count = 10_000
    for _ in range(count):
        writer.append(Kind.WRITE, b"dir/file.dat", payload=payload)
    start = cursor.position
    best = float("inf")
    for _ in range(ROUNDS):
        cursor.seek(start)
        begun = time.perf_counter()
        records = 0
        while (run := cursor.read()) is not None:
            records += len(run.records)
        best = min(best, (time.perf_counter() - begun) / records)
    cursor.remove()
    return best * 1e6


ECHO = """
import sys, trio
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings
from replicator.world import World
memory, disk, journal, reader = sys.argv[1:]
async def main():
    cursor = Cursor.open(World(), JournalSettings(memory, disk), journal, reader, create=True)
    print(flush=True)
    while True:
        await cursor.wait()
        while cursor.read() is not None:
            pass
        sys.stdout.write("\\n")
        sys.stdout.flush()
trio.run(main)
"""


def wake_up_us(settings: JournalSettings, writer: JournalWriter) -> float:
    """From append to the answer, through a pipe, of a reader asleep in another process: median."""
    arguments = [
        sys.executable,
        "-c",
        ECHO,
        settings.memory_directory,
        settings.disk_directory,
        JOURNAL,
        READER,
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        times = []
        for _ in range(WAKE_UPS):
            time.sleep(0.002)
            begun = time.perf_counter()
            writer.append(Kind.WRITE, b"dir/file.dat", payload=b"x")
            process.stdout.readline()
            times.append(time.perf_counter() - begun)
        process.terminate()
    Cursor.open(World(), settings, JOURNAL, READER).remove()
    return sorted(times)[len(times) // 2] * 1e6


def measure(memory: Path, disk: Path, seconds: float) -> list[tuple[str, float]]:
    world = World()
    settings = JournalSettings(str(memory), str(disk))
    writer = JournalWriter.open(world, settings, JOURNAL)
    rows = [(f"append, {size} B payload", append_us(writer, size, seconds)) for size in (0, 4096, 131_072)]
    reader = Cursor.open(world, settings, JOURNAL, READER, create=True)
    bare = best_us(lambda: writer.append(Kind.UNLINK, b"dir/file.dat"), seconds)
    rows.append(("append, 0 B, a reader registered and awake", bare))
    reader.remove()
    rows += [
        (f"read and verify, {size} B payload", read_us(world, settings, writer, size)) for size in (0, 4096)
    ]
    rows.append(("flight slot, set and cleared", best_us(lambda: in_flight(writer), seconds)))
    rows.append(("has_readers", best_us(lambda: writer.has_readers, seconds)))
    rows.append(("sleeping reader of another process, woken and answering", wake_up_us(settings, writer)))
    writer.close(persist=False)
    return rows


def in_flight(writer: JournalWriter) -> None:
    writer.flight(Kind.RENAME, b"dir/file.dat", b"dir/other.dat")
    writer.clear_flight()


def main() -> None:
    parser = argparse.ArgumentParser(description="Microseconds of a journal's daily work.")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each figure (default 0.5)")
    seconds = parser.parse_args().seconds
    memory = Path(tempfile.mkdtemp(prefix="replicator-bench-", dir="/dev/shm"))
    try:
        with tempfile.TemporaryDirectory() as disk:
            for name, figure in measure(memory, Path(disk), seconds):
                print(f"{name:<58} {figure:>9.2f} µs")
    finally:
        shutil.rmtree(memory)


if __name__ == "__main__":
    main()
