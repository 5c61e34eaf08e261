"""Whether memory depends on how many entries a tree has: peaks of a small mirror and of one ten times larger.

Ten files of up to 64 bytes in each directory. Agents are new for each tree.
"""

from pathlib import Path

import harness

ROLES = ("capture", "sender", "receiver")


def peaks(work: Path, entries: int) -> dict[str, int]:
    source, copy = work / f"source{entries}", work / f"copy{entries}"
    source.mkdir()
    harness.make_small_files(source, entries * 10 // 11, per_directory=10, size_max=64)
    with harness.pair(work) as agents:
        agents.capture(source)
        agents.connect(source, copy)
        processes = agents.processes()
        return {role: harness.memory_bytes(processes[role], "VmHWM") for role in ROLES}


def measure(work: Path, quick: bool) -> None:
    sizes = (2_000, 20_000) if quick else (20_000, 200_000)
    table = harness.Table(
        "Peak memory of a full mirror, MiB",
        "process",
        *(f"{size:,} entries" for size in sizes),
        "bytes per further entry",
    )
    small, large = (peaks(work, size) for size in sizes)
    for role in ROLES:
        growth = (large[role] - small[role]) / (sizes[1] - sizes[0])
        table.row(
            role, f"{small[role] / harness.MIB:.1f}", f"{large[role] / harness.MIB:.1f}", f"{growth:.0f}"
        )


if __name__ == "__main__":
    harness.run(__doc__, measure)
