"""A line of 50 ms round trip, 100 Mbit/s and 1 % loss: a queue that drains, single changes, a cut, a mirror.

The line is a proxy (tests/kit/long_line.py) between two agents on this machine. Rates are shares of the
line's. `window`: the same with less on the line at a time, as a receive buffer that does not grow would have
it.
"""

import os
import statistics
import time
from pathlib import Path

import harness
from kit import long_line
from kit.long_line import LongLine

LINE = LongLine(round_trip_s=0.05, bytes_per_s=12_500_000, loss=0.01)
CASES = {
    "no loss": LongLine(loss=0.0),
    "1 % loss": LINE,
    "1 % loss, window 256 KiB": LongLine(window_bytes=256 << 10),
}


def write(path: Path, size: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(os.urandom(harness.MIB))


def connect(agents: harness.Pair, source: Path, copy: Path, port: int) -> float:
    """Seconds until the first mirror is complete."""
    maps = [{"source": str(source), "target": str(copy)}]
    start = time.perf_counter()
    body = {"repset": "bench", "target": f"127.0.0.1:{port}", "maps": maps, "mirror": "full"}
    agents.source.post("connections", body=body)
    agents.wait()
    return time.perf_counter() - start


def change(source: Path, copy: Path, number: int) -> float:
    """Seconds until 4 KiB are on the target."""
    block = number.to_bytes(8, "little") * 512
    start = time.perf_counter()
    with open(source / "changed", "r+b", buffering=0) as file:
        file.write(block)
    harness.until(lambda: (copy / "changed").read_bytes() == block, interval_s=0.0005)
    return time.perf_counter() - start


def measure(work: Path, quick: bool) -> None:
    size, changes = ((16 << 20), 5) if quick else ((200 << 20), 40)
    table = harness.Table(
        f"Queue of {size >> 20} MiB, {LINE.bytes_per_s / 1e6:g} MB/s, {LINE.round_trip_s * 1000:g} ms",
        "line",
        "first mirror",
        "drain",
        "drain, of the line's rate",
        "4 KiB → target, median (99 %)",
        "after a cut of 5 s",
    )
    for name, line in CASES.items():
        place = work / name.replace(" ", "-").replace("%", "percent").replace(",", "")
        source, copy = place / "source", place / "copy"
        source.mkdir(parents=True)
        write(source / "mirrored", size)
        (source / "changed").write_bytes(bytes(4096))
        (place / "memory").mkdir()
        with harness.pair(place) as agents, long_line.running(agents.target_agent.port, line) as proxy:
            agents.capture(source)
            mirror_s = connect(agents, source, copy, proxy.port)
            agents.source.post("connections", "bench", "transmit", body={"action": "stop"})
            write(source / "queued", size)
            start = time.perf_counter()
            agents.source.post("connections", "bench", "transmit", body={"action": "start"})
            agents.wait()
            drain_s = time.perf_counter() - start
            delays = sorted(change(source, copy, number + 1) for number in range(changes))
            proxy.cut()
            time.sleep(5)
            write(source / "while-cut", 1 << 20)
            proxy.mend()
            start = time.perf_counter()
            agents.wait()
            recovery_s = time.perf_counter() - start
            agents.settle()
            harness.assert_equal(source, copy)
            agents.disconnect()
        table.row(
            name,
            f"{mirror_s:.1f} s ({size / mirror_s / line.bytes_per_s:.2f})",
            f"{drain_s:.1f} s",
            f"{size / drain_s / line.bytes_per_s:.2f}",
            f"{statistics.median(delays) * 1000:.0f} ms ({harness.percentile(delays, 99) * 1000:.0f} ms)",
            f"{recovery_s:.1f} s",
        )


if __name__ == "__main__":
    harness.run(__doc__, measure)
