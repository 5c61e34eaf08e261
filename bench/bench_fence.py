"""What a fence costs a program: 4 KiB writes on one mount (tmpfs), by turns without a fence, with one that is
open, and, to show what noise looks like, without one again.
"""

import os
import statistics
import time
from pathlib import Path

import harness
from kit.mount import CaptureMount

from replicator.fences import FOREVER_NS, FenceMode
from replicator.fs.fence import FencePage

BINDINGS = ("kernel", "pyfuse3")


def round_us(path: Path, count: int) -> float:
    """Of one write."""
    content = os.urandom(4096)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        began_ns = time.perf_counter_ns()
        for number in range(count):
            os.pwrite(descriptor, content, number % 256 * 4096)
        return (time.perf_counter_ns() - began_ns) / count / 1000
    finally:
        os.close(descriptor)


def measure(work: Path, quick: bool) -> None:
    rounds, count = (4, 500) if quick else (40, 5000)
    table = harness.Table(
        f"4 KiB writes with and without a fence ({rounds} rounds of {count:,} each)",
        *("binding", "no fence: µs", "open fence: µs", "ratio, median of rounds", "no fence again, ratio"),
    )
    for binding in BINDINGS:
        base = work / "memory" / binding
        base.mkdir()
        page = FencePage(str(base / "fence"))
        page.set(FenceMode.SUSPEND, FOREVER_NS)
        mount = CaptureMount(base, settings={"binding": binding})
        try:
            mount.start().attach()
            path = mount.mountpoint / "file"
            round_us(path, count)
            found: list[tuple[float, ...]] = []
            for _ in range(rounds):
                row = []
                for fence in ("", str(base / "fence"), ""):
                    mount.call("set_fence", page=fence)
                    row.append(round_us(path, count))
                    mount.drain()
                found.append(tuple(row))
            plain, fenced, _ = zip(*found, strict=True)
            table.row(
                binding,
                harness.median_text(plain, 1),
                harness.median_text(fenced, 1),
                f"{statistics.median(f / ((p + a) / 2) for p, f, a in found):.3f}",
                f"{statistics.median(a / p for p, _, a in found):.3f}",
            )
        finally:
            mount.close()
            page.close()


if __name__ == "__main__":
    harness.run(__doc__, measure)
