"""Whether memory depends on how many files a tree has: peaks of each process, for trees of growing size.

Empty files, a hundred in each directory, 10,000 of them first and then ten times as many each time, up to
`--files`. Agents are new for each tree. Of each: the first copy; a difference mirror, which finds all as it
is; a verification of names, sizes and attributes. A peak is that of one of these, not of what came before.
"""

from collections.abc import Callable
from pathlib import Path

import harness

ROLES = ("capture", "sender", "receiver")
FILES_MIN = 10_000
INODE_ROOM = 100_000


def peaks(agents: harness.Pair, work: Callable[[], None]) -> dict[str, int]:
    """Of each process, of the time that this takes."""
    processes = agents.processes()
    for role in ROLES:
        harness.begin_peak(processes[role])
    work()
    assert agents.processes() == processes, "one of them has ended meanwhile"
    return {role: harness.memory_bytes(processes[role], "VmHWM") for role in ROLES}


def measure_tree(work: Path, files: int) -> dict[str, dict[str, int]]:
    with harness.disk(work / "disk", 2 * harness.GIB + files * 1024, inodes=2 * files + INODE_ROOM) as disk:
        source, copy = disk.path / "source", disk.path / "copy"
        harness.make_sparse_files(source, files, size_max=0)
        with harness.pair(work) as agents:
            agents.capture(source)
            agents.connect(source, copy, mirror=None)

            def mirror(kind: str) -> None:
                harness.dtctl(agents.source_agent, "mirror", "start", "bench", kind)
                agents.wait()

            def verify() -> None:
                harness.dtctl(agents.source_agent, "verify", "bench")

            return {
                "first copy": peaks(agents, lambda: mirror("full")),
                "difference mirror": peaks(agents, lambda: mirror("difference")),
                "verification": peaks(agents, verify),
            }


def measure(work: Path, quick: bool, files: int) -> None:
    sizes = [FILES_MIN // 10 if quick else FILES_MIN]
    while sizes[-1] * 10 <= files:
        sizes.append(sizes[-1] * 10)
    if sizes[-1] < files:
        sizes.append(files)
    found = {}
    for size in sizes:
        found[size] = measure_tree(work, size)
        harness.say(f"{size:,} files: {found[size]}")
    table = harness.Table(
        "Peak memory, MiB",
        "what",
        "process",
        *(f"{size:,} files" for size in sizes),
        "bytes per further file",
    )
    first, last = sizes[0], sizes[-1]
    for what in found[first]:
        for role in ROLES:
            values = [found[size][what][role] for size in sizes]
            growth = (values[-1] - values[0]) / (last - first)
            table.row(what, role, *(f"{value / harness.MIB:.1f}" for value in values), f"{growth:.1f}")


if __name__ == "__main__":
    harness.run(__doc__, measure, files=(1_000_000, 10_000))
