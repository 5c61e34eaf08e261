"""A line of 50 ms round trip, 100 Mbit/s and 1 % loss: a queue that drains, single changes, a cut, a mirror.

Two hosts (network namespaces), with real TCP between them, over TLS; a process carries the packets
(tests/kit/long_line.py). Rates are shares of the line's. `bbr`, `cubic`: congestion control of the source;
`window`: 256 KiB at most are on the line; `loss`: of 1 % of the packets.
"""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import harness
from kit import dtd
from kit.hosts import lan
from kit.long_line import LongLine, long_line

LINE = LongLine(round_trip_s=0.05, bytes_per_s=12_500_000, loss=0.01)
CLEAN = LongLine(loss=0.0)
WINDOW_BYTES = 256 << 10


@dataclass(frozen=True)
class Case:
    """`mib`: of a mirror, and of a queue; less where that takes minutes."""

    line: LongLine
    congestion_control: str
    mib: int
    window_bytes: int = 0


CASES = {
    "bbr": Case(CLEAN, "bbr", 200),
    "cubic": Case(CLEAN, "cubic", 200),
    "bbr-window": Case(CLEAN, "bbr", 100, WINDOW_BYTES),
    "bbr-loss": Case(LINE, "bbr", 200),
    "cubic-loss": Case(LINE, "cubic", 8),
}


def write(path: Path, size: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(os.urandom(harness.MIB))


def change(source: Path, copy: Path, number: int) -> float:
    """Seconds until 4 KiB are on the target."""
    block = number.to_bytes(8, "little") * 512
    start = time.perf_counter()
    with open(source / "changed", "r+b", buffering=0) as file:
        file.write(block)
    harness.until(lambda: (copy / "changed").read_bytes() == block, interval_s=0.0005)
    return time.perf_counter() - start


def measure_case(place: Path, name: str, case: Case, size: int, changes: int, table: harness.Table) -> None:
    source, copy = place / "source", place / "copy"
    source.mkdir(parents=True)
    write(source / "mirrored", size)
    (source / "changed").write_bytes(bytes(4096))
    (place / "memory").mkdir()
    settings = f'[connection]\ncongestion_control = "{case.congestion_control}"\n[queue]\n'
    with lan("alpha", "beta") as (alpha, beta), long_line(alpha, beta, case.line) as line:
        if case.window_bytes:  # of a buffer half counts
            beta.run("sysctl", "-qw", f"net.ipv4.tcp_rmem=4096 131072 {2 * case.window_bytes}")
        with harness.pair(place, settings=settings, hosts=(alpha, beta)) as agents:
            dtd.pair(agents.source_agent, agents.target_agent)
            agents.capture(source)
            start = time.perf_counter()
            agents.connect(source, copy)
            mirror_s = time.perf_counter() - start
            agents.source.post("connections", "bench", "transmit", body={"action": "stop"})
            write(source / "queued", size)
            start = time.perf_counter()
            agents.source.post("connections", "bench", "transmit", body={"action": "start"})
            agents.wait()
            drain_s = time.perf_counter() - start
            delays = sorted(change(source, copy, number + 1) for number in range(changes))
            line.cut()
            time.sleep(5)
            write(source / "while-cut", 1 << 20)
            line.mend()
            start = time.perf_counter()
            agents.wait()
            recovery_s = time.perf_counter() - start
            agents.settle()
            harness.assert_equal(source, copy)
            agents.disconnect()
    rate = case.line.bytes_per_s
    table.row(
        name,
        f"{size >> 20} MiB",
        f"{mirror_s:.1f} s ({size / mirror_s / rate:.2f})",
        f"{drain_s:.1f} s ({size / drain_s / rate:.2f})",
        f"{statistics.median(delays) * 1000:.0f} ms ({harness.percentile(delays, 99) * 1000:.0f} ms)",
        f"{recovery_s:.1f} s",
    )


def measure(work: Path, quick: bool, cases: list[str]) -> None:
    table = harness.Table(
        f"{LINE.bytes_per_s / 1e6:g} MB/s, {LINE.round_trip_s * 1000:g} ms",
        "line",
        "of",
        "first mirror (of the line's rate)",
        "queue drained",
        "4 KiB → target, median (99 %)",
        "after a cut of 5 s",
    )
    for number, name in enumerate(cases):
        case = CASES[name]
        size = (4 if quick else case.mib) << 20
        measure_case(work / str(number), name, case, size, 5 if quick else 40, table)


if __name__ == "__main__":
    harness.run(__doc__, measure, cases=list(CASES))
