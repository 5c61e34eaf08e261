"""A mirror that compares blocks against rsync to an rsync daemon.

One large file whose old copy lies on the target, and has another time.

- `changed`: some of its 4 KiB blocks differ; against `rsync --inplace --no-whole-file --checksum`.
- `inserted`: the old copy lacks the first MiB; against `rsync -a`, which looks for what was moved only where
  it builds another file.

Both go over
loopback, from the same source to the same kind of disk, a fresh ext4 for every run, and take turns at going
first. What they read lies in the page cache, as far as that has room. "mirror" is `dtctl mirror start` and
`dtctl wait` on a connection that stands, with two starts of the program. Bytes are those of TCP in both
directions; rsync's those of its own statistics.
"""

import os
import random
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import harness
from bench_mirror import rsync_daemon

BLOCK_BYTES = 4096
SHARE = 0.01  # of the blocks that differ
INSERTED_BYTES = harness.MIB
OPTIONS = {"changed": ["--inplace", "--no-whole-file", "--checksum"], "inserted": []}


def make_source(path: Path, size_bytes: int) -> None:
    """Random content, all of it different: rsync finds blocks that repeat anywhere."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(size_bytes // harness.MIB):
            file.write(os.urandom(harness.MIB))


def make_copy(source: Path, copy: Path) -> int:
    """An old copy. Returns how many bytes of whole blocks differ."""
    copy.mkdir()
    shutil.copyfile(source, copy / source.name)
    count = source.stat().st_size // BLOCK_BYTES
    chosen = random.Random(1).sample(range(count), int(count * SHARE))
    with open(copy / source.name, "r+b", buffering=0) as file:
        for block in sorted(chosen):
            os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), block * BLOCK_BYTES)
    os.utime(copy / source.name, ns=(0, source.stat().st_mtime_ns - 10**9))
    return len(chosen) * BLOCK_BYTES


def make_copy_without_beginning(source: Path, copy: Path) -> int:
    """An old copy that lacks the first bytes. Returns how many."""
    copy.mkdir()
    with open(source, "rb") as file, open(copy / source.name, "wb") as other:
        file.seek(INSERTED_BYTES)
        shutil.copyfileobj(file, other, harness.MIB)
    os.utime(copy / source.name, ns=(0, source.stat().st_mtime_ns - 10**9))
    return INSERTED_BYTES


def mirror(source: Path, disk: harness.Disk, agents: harness.Pair) -> tuple[float, int]:
    agent, address = agents.source_agent, agents.target_agent.address
    harness.dtctl(
        agent, "connect", "bench", address, "--map", f"{source}={disk.path / 'copy'}", "--no-mirror"
    )
    before = agents.wire_bytes()
    start = time.perf_counter()
    harness.dtctl(agent, "mirror", "start", "bench", "difference", "--checksum")
    harness.dtctl(agent, "wait", "bench")
    took_s = time.perf_counter() - start
    return took_s, agents.wire_bytes() - before


def rsync(work: Path, source: Path, disk: harness.Disk, case: str) -> tuple[float, int]:
    with rsync_daemon(work, disk.path / "copy") as address:
        options = ["-a", "--stats", *OPTIONS[case]]
        start = time.perf_counter()
        result = subprocess.run(
            ["rsync", *options, f"{source}/", address], check=True, capture_output=True, text=True
        )
        took_s = time.perf_counter() - start
    found = re.findall(r"Total bytes (?:sent|received): ([\d,]+)", result.stdout)
    return took_s, sum(int(number.replace(",", "")) for number in found)


def measure(work: Path, quick: bool, cases: list[str], rounds: int, mib: int) -> None:
    source, below = work / "source", work / "below"
    source.mkdir()
    below.mkdir()
    make_source(source / "file", mib * harness.MIB)
    subprocess.run(["mount", "--bind", source, below], check=True)
    with harness.pair(work) as agents:
        agents.capture(source)
        for case in cases:
            measure_case(work, source, below, agents, case, rounds, mib)
    subprocess.run(["umount", below], check=True)


def measure_case(
    work: Path, source: Path, below: Path, agents: harness.Pair, case: str, rounds: int, mib: int
) -> None:
    found: dict[str, list[tuple[float, int]]] = {"mirror": [], "rsync": []}
    make = make_copy if case == "changed" else make_copy_without_beginning
    changed = 0
    for number in range(rounds):
        for turn in range(2):
            who = ("mirror", "rsync")[(number + turn) % 2]
            with harness.disk(work / "disk", 2 * mib * harness.MIB + 2 * harness.GIB) as disk:
                changed = make(below / "file", disk.path / "copy")
                disk.sync()
                if who == "mirror":
                    found[who].append(mirror(source, disk, agents))
                else:
                    found[who].append(rsync(work, below, disk, case))
                if number == 0:
                    harness.assert_equal(below, disk.path / "copy")
                if who == "mirror":
                    agents.disconnect()
        last = ", ".join(f"{who} {runs[-1][0]:.2f} s" for who, runs in found.items())
        harness.say(f"{case}, {mib:,} MiB: {last}")
    what = f"{SHARE:.0%} of its 4 KiB blocks differ" if case == "changed" else "its beginning was inserted"
    table = harness.Table(
        f"One file of {mib:,} MiB, {what}",
        "what",
        "pairs",
        "replicator",
        "rsync",
        "median of the pairs' ratios",
    )
    mine, theirs = found["mirror"], found["rsync"]
    ratio = statistics.median(a[0] / b[0] for a, b in zip(mine, theirs, strict=True))
    times = [harness.median_text([run[0] for run in runs], 2) for runs in (mine, theirs)]
    table.row("seconds", rounds, *times, f"{ratio:.2f}")
    sent = [harness.median_text([run[1] / changed for run in runs], 3) for runs in (mine, theirs)]
    ratio = statistics.median(a[1] / b[1] for a, b in zip(mine, theirs, strict=True))
    table.row("bytes per changed byte", rounds, *sent, f"{ratio:.2f}")


if __name__ == "__main__":
    harness.run(__doc__, measure, cases=("changed", "inserted"), rounds=(5, 1), mib=(10_240, 64))
