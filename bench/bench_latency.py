"""How long a change takes from the application's call until the copy has it, on an idle system.

Two agents on loopback. Time starts before the call and ends when a look at the copy, repeated every 0.1 ms,
sees the change. Changes are 20 ms apart. Renames have 1.5 s each, so that bytes include everything that
follows from one (times of directories, acknowledgements).
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import harness

BLOCK = 4096
SPACING_S = 0.02


def block(number: int) -> bytes:
    return number.to_bytes(8, "big") * (BLOCK // 8)


def milliseconds(change: Callable[[], None], seen: Callable[[], object]) -> float:
    start = time.perf_counter()
    change()
    harness.until(seen)
    return (time.perf_counter() - start) * 1000


def writes(source: Path, copy: Path, count: int, *, append: bool) -> list[float]:
    """Milliseconds of 4 KiB writes to one open file."""
    size = source.stat().st_size
    found = []
    with open(source, "r+b", buffering=0) as file, open(copy, "rb", buffering=0) as arrived:
        for number in range(1, count + 1):
            data = block(number)
            offset = size + (number - 1) * BLOCK if append else number * 7919 * BLOCK % size

            def change(data: bytes = data, offset: int = offset) -> None:
                os.pwrite(file.fileno(), data, offset)

            def seen(data: bytes = data, offset: int = offset) -> bool:
                return os.pread(arrived.fileno(), BLOCK, offset) == data

            time.sleep(SPACING_S)
            found.append(milliseconds(change, seen))
    return found


def new_files(source: Path, copy: Path, count: int) -> list[float]:
    """Milliseconds of create, write 4 KiB, close."""
    found = []
    for number in range(count):
        data, name = block(number + 1), f"new{number}"

        def change(data: bytes = data, name: str = name) -> None:
            (source / name).write_bytes(data)

        def seen(data: bytes = data, name: str = name) -> bool:
            try:
                return (copy / name).read_bytes() == data
            except FileNotFoundError:
                return False

        time.sleep(SPACING_S)
        found.append(milliseconds(change, seen))
    return found


def renames(
    agents: harness.Pair, source: Path, copy: Path, name: str, count: int
) -> tuple[list[float], float, float]:
    """Milliseconds of renames of one thing, bytes on the wire of each, and those that the sender counts."""
    agents.settle()
    wire, sent = agents.wire_bytes(), agents.status()["sent_bytes"]
    found = []
    for number in range(count):
        old, new = (name, name + "-moved") if number % 2 == 0 else (name + "-moved", name)

        def change(old: str = old, new: str = new) -> None:
            os.rename(source / old, source / new)

        def seen(new: str = new) -> bool:
            return os.path.lexists(copy / new)

        found.append(milliseconds(change, seen))
        assert not os.path.lexists(copy / old)
        time.sleep(1.5)
    wire, sent = agents.wire_bytes() - wire, agents.status()["sent_bytes"] - sent
    return found, wire / count, sent / count


def measure(work: Path, quick: bool) -> None:
    count, rename_count = (50, 3) if quick else (500, 10)
    source, copy = work / "source", work / "copy"
    source.mkdir()
    harness.make_file(source / "file", 4 * harness.MIB)
    harness.make_file(source / "large", harness.GIB // (16 if quick else 1))
    harness.make_small_files(source / "tree", 2000, per_directory=2000)
    with harness.pair(work) as agents:
        agents.capture(source)
        agents.connect(source, copy)
        agents.settle()
        table = harness.Table("From a change to its copy", "change", "n", "median, ms", "99 %, ms", "max, ms")
        for label, found in (
            ("4 KiB overwritten", lambda: writes(source / "file", copy / "file", count, append=False)),
            ("4 KiB appended", lambda: writes(source / "file", copy / "file", count, append=True)),
            ("new file of 4 KiB", lambda: new_files(source, copy, count)),
        ):
            values = found()
            figures = [statistics.median(values), harness.percentile(values, 99), max(values)]
            table.row(label, len(values), *(f"{figure:.2f}" for figure in figures))
        table = harness.Table(
            "Renames",
            "what",
            "n",
            "median, ms",
            "max, ms",
            "bytes on the wire, both ways",
            "of them sent as records",
        )
        size = (source / "large").stat().st_size // harness.MIB
        for label, name in ((f"file of {size} MiB", "large"), ("directory of 2,000 files", "tree/d0")):
            values, wire, sent = renames(agents, source, copy, name, rename_count)
            table.row(
                label,
                len(values),
                f"{statistics.median(values):.2f}",
                f"{max(values):.2f}",
                f"{wire:.0f}",
                f"{sent:.0f}",
            )


if __name__ == "__main__":
    harness.run(__doc__, measure)
