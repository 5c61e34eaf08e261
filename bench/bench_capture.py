"""What capture costs an application, beside file systems that capture nothing.

Native is the storage itself. bindfs is Debian's package; pyfuse3's example is `passthroughfs.py` of its
source distribution, which is downloaded for the run. Both journal nothing; our bindings do, for a reader that
takes the records after each measurement. All are mounted at once and take turns within each round. Ratios are
medians over rounds of the times within one round: below 1 the kernel binding is faster.

Uncached reads of the disk come from a loop device whose image is in memory. fio and pgbench are run where
they are installed; pyfuse3's example can be used by root only, and PostgreSQL does not run as root.
"""

import os
import statistics
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import file_systems
import harness
from file_systems import FileSystem
from programs import Program, Programs, Sizes

QUICK = Sizes(blocks=500, files=100, source_files=60, inserts=20, seconds=1, scale=1)
DISK_BYTES = 6 * harness.GIB
KERNEL = "kernel binding"
Make = Callable[[Path], AbstractContextManager[FileSystem]]
Times = dict[tuple[str, str], list[float]]  # (program, file system): seconds, one of each round


def compared(work: Path) -> dict[str, Make]:
    """The file systems there are here, by name."""
    makers: dict[str, Make] = {"native": file_systems.native}
    if file_systems.have_bindfs():
        makers["bindfs"] = file_systems.bindfs
    else:
        harness.say("without bindfs: it is neither here nor can it be installed")
    program = file_systems.download_example(work / "example")
    if program is not None:
        makers["pyfuse3's example"] = partial(file_systems.example, program=program)
    else:
        harness.say("without pyfuse3's example: its source distribution cannot be had")
    for binding in ("pyfuse3", "kernel"):
        makers[f"{binding} binding"] = partial(_ours, work / "memory", binding)
    return makers


def _ours(memory: Path, binding: str, base: Path) -> AbstractContextManager[FileSystem]:
    return file_systems.ours(base, memory / base.parent.name / binding, binding)


def measure_at(place: Path, makers: dict[str, Make], programs: dict[str, Program], rounds: int) -> Times:
    times: Times = {}
    missing: set[tuple[str, str]] = set()
    with ExitStack() as stack:
        mounted = {
            name: stack.enter_context(make(place / str(number)))
            for number, (name, make) in enumerate(makers.items())
        }
        names = list(mounted)
        journaled = dict.fromkeys(names, 0)
        for number in range(rounds):
            names = names[1:] + names[:1]  # nobody always comes after the same
            for label, program in programs.items():
                for name in names:
                    if (label, name) in missing:
                        continue
                    files = mounted[name]
                    try:
                        times.setdefault((label, name), []).append(program(files))
                    except (OSError, harness.BenchError) as error:
                        if files.is_ours or name == "native":
                            raise
                        harness.say(f"{label}: not with {name}: {error}")
                        missing.add((label, name))
                        times.pop((label, name), None)
                    journaled[name] += files.drain()
            harness.say(f"{place.name}: round {number + 1} of {rounds}")
    for name, files in mounted.items():
        if files.is_ours and not journaled[name]:
            raise harness.BenchError(f"the {name} has journaled nothing")
    return times


def show(title: str, times: Times, names: list[str]) -> None:
    others = [name for name in names if name != KERNEL]
    table = harness.Table(title, "µs, median", *names, *(f"kernel / {name}" for name in others))
    for label in dict.fromkeys(label for label, _ in times):
        cells = [_microseconds(times.get((label, name))) for name in names]
        ratios = [_ratio(times[label, KERNEL], times.get((label, name))) for name in others]
        table.row(label, *cells, *ratios)


def _microseconds(found: list[float] | None) -> str:
    if not found:
        return "–"
    value = statistics.median(found) * 1e6
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _ratio(ours: list[float], others: list[float] | None) -> str:
    if not others:
        return "–"
    return f"{statistics.median(a / b for a, b in zip(ours, others, strict=True)):.2f}"


def measure(work: Path, quick: bool) -> None:
    work.chmod(0o711)  # PostgreSQL, as a user of its own, must get through
    rounds = 1 if quick else 5
    makers = compared(work)
    programs = Programs(work, QUICK if quick else Sizes()).all()
    tmpfs = work / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "replicator-bench", tmpfs], check=True)
    try:
        show("On tmpfs", measure_at(tmpfs, makers, programs, rounds), list(makers))
    finally:
        subprocess.run(["umount", "-l", tmpfs], check=False)
    with harness.disk(work / "disk", DISK_BYTES) as disk:
        os.chmod(disk.path, 0o755)
        show("On disk (ext4)", measure_at(disk.path, makers, programs, rounds), list(makers))


if __name__ == "__main__":
    harness.run(__doc__, measure)
