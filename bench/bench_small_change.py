"""What 4 KiB appended to a file of 1 GiB cost: bytes on the wire, bytes on the disk, processor time.

Two agents on loopback; the target's copy, queue and state lie on an ext4 of their own, so that its device
counts all that the target writes. Processor time is that of all processes of both agents.
"""

import os
import statistics
import time
from pathlib import Path

import harness

BLOCK = os.urandom(4096)


def changes(
    agents: harness.Pair, disk: harness.Disk, path: Path, count: int, spacing_s: float, idle: bool
) -> list[float]:
    """Per change: wire bytes, bytes written by the receiver, bytes written to its disk, processor ms."""
    agents.settle()
    disk.sync()
    processes = agents.processes()

    def totals() -> list[float]:
        return [
            agents.wire_bytes(),
            harness.written_bytes(processes["receiver"]),
            disk.written_bytes(),
            sum(harness.processor_s(process_id) for process_id in processes.values()) * 1000,
        ]

    before = totals()
    with open(path, "ab", buffering=0) as file:
        for _ in range(count):
            if not idle:
                file.write(BLOCK)
            time.sleep(spacing_s)
    time.sleep(1.5)  # not settle(): asking the agents would be counted as their work
    disk.sync()
    after = totals()
    agents.wait()
    assert agents.processes() == processes
    return [(new - old) / count for new, old in zip(after, before, strict=True)]


def measure(work: Path, quick: bool) -> None:
    rounds = 1 if quick else 3
    source = work / "source"
    source.mkdir()
    size = harness.GIB // (16 if quick else 1)
    harness.make_file(source / "large", size)
    with (
        harness.disk(work / "disk", 3 * harness.GIB) as disk,
        harness.pair(work, target_home=disk.path / "home") as agents,
    ):
        agents.capture(source)
        agents.connect(source, disk.path / "copy")
        table = harness.Table(
            f"4 KiB appended to a file of {size // harness.MIB} MiB, per change",
            "how",
            "n",
            "bytes on the wire, both ways",
            "bytes written by the receiver",
            "bytes written to its disk",
            "processor time, ms",
        )
        few = 3 if quick else 10
        for label, count, spacing_s, idle in (
            ("every 20 ms", 250, 0.02, False),
            ("every 2.5 s", few, 2.5, False),
            ("nothing appended, per 2.5 s", few, 2.5, True),
        ):
            found = [changes(agents, disk, source / "large", count, spacing_s, idle) for _ in range(rounds)]
            wire, written, on_disk, processor = (
                statistics.median(values) for values in zip(*found, strict=True)
            )
            table.row(
                label,
                f"{rounds} × {count}",
                f"{wire:.0f}",
                f"{written:.0f}",
                f"{on_disk:.0f}",
                f"{processor:.2f}",
            )


if __name__ == "__main__":
    harness.run(__doc__, measure)
