"""What capture costs an application: the same on a plain directory and on a mount with a reader attached.

    python bench/capture.py [DIRECTORY]

DIRECTORY is where the trees are made (default: /dev/shm, so that no disk is measured). Prints microseconds
per operation, medians of several interleaved rounds. Needs root.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.mount import CaptureMount

ROUNDS = 5
COUNT = 2000
BLOCK = os.urandom(4096)
LARGE = os.urandom(1 << 20)


def write_blocks(directory: Path) -> float:
    """4 KiB writes at random-like places of a 8 MiB file."""
    descriptor = os.open(directory / "blocks", os.O_RDWR | os.O_CREAT)
    start = time.perf_counter()
    for number in range(COUNT):
        os.pwrite(descriptor, BLOCK, number * 7919 % COUNT * 4096)
    elapsed = time.perf_counter() - start
    os.close(descriptor)
    return elapsed / COUNT


def write_large(directory: Path) -> float:
    """1 MiB writes, one after another."""
    count = 64
    descriptor = os.open(directory / "large", os.O_RDWR | os.O_CREAT)
    start = time.perf_counter()
    for number in range(count):
        os.pwrite(descriptor, LARGE, number << 20)
    elapsed = time.perf_counter() - start
    os.close(descriptor)
    return elapsed / count


def create_files(directory: Path) -> float:
    """Create, write 2 KiB, close."""
    count = COUNT // 4
    start = time.perf_counter()
    for number in range(count):
        descriptor = os.open(directory / f"c{number}", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, BLOCK[:2048])
        os.close(descriptor)
    return (time.perf_counter() - start) / count


def look_at_files(directory: Path) -> float:
    """stat of what the kernel has not cached yet."""
    count = COUNT // 4
    start = time.perf_counter()
    for number in range(count):
        os.path.exists(directory / f"absent{number}{time.monotonic_ns()}")
    return (time.perf_counter() - start) / count


def rename_files(directory: Path) -> float:
    """Each file to a new name and back."""
    count = COUNT // 4
    start = time.perf_counter()
    for number in range(count // 2):
        os.rename(directory / f"c{number}", directory / "moving")
        os.rename(directory / "moving", directory / f"c{number}")
    return (time.perf_counter() - start) / count


def remove_files(directory: Path) -> float:
    """unlink."""
    count = COUNT // 4
    start = time.perf_counter()
    for number in range(count):
        os.unlink(directory / f"c{number}")
    return (time.perf_counter() - start) / count


WORKLOADS: dict[str, Callable[[Path], float]] = {
    "4 KiB write": write_blocks,
    "1 MiB write": write_large,
    "create + 2 KiB + close": create_files,
    "rename": rename_files,
    "unlink": remove_files,
    "stat (absent)": look_at_files,
}


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else "/dev/shm"
    with tempfile.TemporaryDirectory(dir=where, prefix="replicator-bench-") as name:
        base = Path(name)
        plain = base / "plain"
        plain.mkdir()
        mount = CaptureMount(base)
        try:
            mount.start().attach()
            results: dict[tuple[str, str], list[float]] = {}
            for _ in range(ROUNDS):
                for kind, directory in (("plain", plain), ("mount", mount.mountpoint)):
                    for label, workload in WORKLOADS.items():
                        results.setdefault((label, kind), []).append(workload(directory))
                mount.records()
            print(f"{'µs per operation':<26}{'plain':>10}{'captured':>10}")
            for label in WORKLOADS:
                row = [statistics.median(results[label, kind]) * 1e6 for kind in ("plain", "mount")]
                print(f"{label:<26}{row[0]:>10.1f}{row[1]:>10.1f}")
            mount.stop()
        finally:
            mount.close()


if __name__ == "__main__":
    main()
