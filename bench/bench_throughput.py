"""How fast a program can write through a mount, with sender and receiver working beside it, and without them.

One process, no fsync. 4 KiB at random places of a file of 256 MiB for 10 s; 1 MiB after the other to a new
file. Drain is the time from the last write until the target has everything.
"""

import os
import random
import statistics
import time
from pathlib import Path

import harness

RANDOM_FILE_BYTES = 256 * harness.MIB


def random_writes(path: Path, seconds: float) -> float:
    """4 KiB writes per second."""
    block, blocks = os.urandom(4096), RANDOM_FILE_BYTES // 4096
    places = random.Random(1)
    with open(path, "r+b", buffering=0) as file:
        descriptor, count = file.fileno(), 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            os.pwrite(descriptor, block, places.randrange(blocks) * 4096)
            count += 1
    return count / elapsed


def sequential_writes(path: Path, size: int) -> float:
    """MiB per second."""
    block = os.urandom(harness.MIB)
    with open(path, "wb", buffering=0) as file:
        start = time.perf_counter()
        for _ in range(size // harness.MIB):
            file.write(block)
        elapsed = time.perf_counter() - start
    return size / harness.MIB / elapsed


def measure(work: Path, quick: bool) -> None:
    rounds, seconds, size = (1, 2.0, 64 * harness.MIB) if quick else (3, 10.0, 512 * harness.MIB)
    source, copy = work / "source", work / "copy"
    source.mkdir()
    harness.make_file(source / "file", RANDOM_FILE_BYTES)
    small: dict[bool, list[float]] = {True: [], False: []}
    large: dict[bool, list[float]] = {True: [], False: []}
    drains: dict[str, list[float]] = {"small": [], "large": []}
    with harness.pair(work) as agents:
        agents.capture(source)
        sequential_writes(
            source / "new", size
        )  # the first one also finds the memory that the others use again

        def drain(name: str) -> None:
            start = time.perf_counter()
            agents.wait()
            drains[name].append(time.perf_counter() - start)

        for _ in range(rounds):
            for connected in (False, True):
                if connected:
                    agents.connect(source, copy, mirror="difference")
                os.sync()
                small[connected].append(random_writes(source / "file", seconds))
                if connected:
                    drain("small")
                os.sync()
                large[connected].append(sequential_writes(source / "new", size))
                if connected:
                    drain("large")
                    agents.settle()
                    harness.assert_equal(source, copy)
                    agents.disconnect()
                (source / "new").unlink()
    table = harness.Table(
        "Writing through a mount, median (range)",
        "what",
        "rounds",
        "without a connection",
        "sender and receiver running",
        "ratio",
        "drain afterwards, s",
    )
    for label, rates, name in (
        (f"4 KiB at random places for {seconds:.0f} s, writes/s", small, "small"),
        (f"1 MiB after the other, {size // harness.MIB} MiB, MiB/s", large, "large"),
    ):
        ratio = statistics.median(rates[True]) / statistics.median(rates[False])
        table.row(
            label,
            rounds,
            harness.median_text(rates[False]),
            harness.median_text(rates[True]),
            f"{ratio:.2f}",
            harness.median_text(drains[name], 1),
        )


if __name__ == "__main__":
    harness.run(__doc__, measure)
