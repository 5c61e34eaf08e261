"""Mirrors against `rsync -a` to an rsync daemon, and `rclone sync` where that is installed.

All go over loopback, from the same source to the same kind of disk, and take turns at going first. The source
has just been made and lies in the page cache; rsync reads it beneath the mount. "mirror" is `dtctl mirror
start` and `dtctl wait` on a connection that stands, as rsync's daemon does; "connect" is `dtctl connect` and
`dtctl wait`: with the start of a sender and a receiver. Both hold two starts of the program.

First copies go to a fresh ext4 for every run. "On disk" adds the sync of the target's file system afterwards,
which none of them does.

rclone copies from directory to directory, in one process without a network: it has no daemon that keeps
owners and modes. It knows no hard links.

- `small`: small files.
- `large`: one large file.
- `links`: files with two names each, and symbolic links; against `rsync -aH`, as its copy is to be equal.
- `unchanged`: a difference mirror of files that are there already; memory is the peak of the largest process
  of a side. "Processor" is the time of all processes that mirror: it says more than seconds where others work
  on the machine, too.
"""

import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import harness
from kit.dtd import free_port


class Usage(NamedTuple):
    """Of a process that has ended, with those it has waited for: the largest peak of memory."""

    peak_bytes: int
    processor_s: float


def _ended(process: subprocess.Popen[bytes]) -> Usage:
    """Wait for it."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def _forked() -> None:
    """With something to do in between Python forks. What vforks has the peak of this process for its own."""


@contextmanager
def rsync_daemon(work: Path, copy: Path, used: list[Usage] | None = None) -> Iterator[str]:
    """Where `copy` can be reached with rsync. `used` gets what it has used, at the end."""
    port = free_port()
    configuration = work / "rsyncd.conf"
    configuration.write_text(
        f"uid = 0\ngid = 0\nuse chroot = no\nlog file = {work}/rsyncd.log\n"
        f"[copy]\npath = {copy}\nread only = no\n"
    )
    command = ["rsync", "--daemon", "--no-detach", f"--config={configuration}", f"--port={port}"]
    daemon = subprocess.Popen([*command, "--address=127.0.0.1"], preexec_fn=_forked)
    try:
        harness.until(lambda: _listens(port), interval_s=0.02)
        yield f"rsync://127.0.0.1:{port}/copy/"
    finally:
        daemon.terminate()
        usage = _ended(daemon)
        if used is not None:
            used.append(usage)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def rclone(below: Path, copy: Path) -> None:
    """With modes, owners and times, which it has to be asked for."""
    command = ["rclone", "sync", "--metadata", "--links", "--config=", below, copy]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def has_rclone() -> bool:
    if shutil.which("rclone") is None:
        harness.say("rclone is not installed: left out")
        return False
    return True


def read_all(tree: Path) -> None:
    """All find it in memory: rclone drops what it has read (posix_fadvise(2), POSIX_FADV_DONTNEED)."""
    command = ["find", tree, "-type", "f", "-exec", "cat", "{}", "+"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(disk: harness.Disk, copy: Callable[[], None]) -> tuple[float, float]:
    """Seconds until it returned, and until everything was on disk."""
    start = time.perf_counter()
    copy()
    done = time.perf_counter() - start
    disk.sync()
    return done, time.perf_counter() - start


def measure_tree(
    work: Path, source: Path, label: str, rounds: int, table: harness.Table, options: str = "-a"
) -> None:
    below = work / "below"
    below.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, below], check=True)
    used_bytes = harness.used_bytes(source)
    times: dict[str, list[tuple[float, float]]] = {"connect": [], "mirror": [], "rsync": []}
    with harness.pair(work) as agents:
        agents.capture(source)
        agent, address = agents.source_agent, agents.target_agent.address

        def connect(disk: harness.Disk, *options: str) -> None:
            harness.dtctl(
                agent, "connect", "bench", address, "--map", f"{source}={disk.path / 'copy'}", *options
            )

        def connect_and_wait(disk: harness.Disk) -> None:
            connect(disk, "--mirror=full")
            harness.dtctl(agent, "wait", "bench")

        def mirror_and_wait() -> None:
            harness.dtctl(agent, "mirror", "start", "bench", "full")
            harness.dtctl(agent, "wait", "bench")

        def with_connect(disk: harness.Disk) -> None:
            times["connect"].append(timed(disk, lambda: connect_and_wait(disk)))
            finish(disk)

        def with_mirror(disk: harness.Disk) -> None:
            connect(disk, "--no-mirror")
            times["mirror"].append(timed(disk, mirror_and_wait))
            finish(disk)

        def finish(disk: harness.Disk) -> None:
            if len(times["connect"]) + len(times["mirror"]) <= 2:
                harness.assert_equal(below, disk.path / "copy")
            agents.disconnect()

        def with_rsync(disk: harness.Disk) -> None:
            copy = disk.path / "copy"
            copy.mkdir()
            with rsync_daemon(work, copy) as address:
                command = ["rsync", options, f"{below}/", address]
                times["rsync"].append(timed(disk, lambda: subprocess.run(command, check=True) and None))

        def with_rclone(disk: harness.Disk) -> None:
            times["rclone"].append(timed(disk, lambda: rclone(below, disk.path / "copy")))

        ways = [with_mirror, with_rsync, with_connect]
        if options == "-a" and has_rclone():
            times["rclone"] = []
            ways.append(with_rclone)
        for number in range(rounds):
            for turn in range(len(ways)):
                subprocess.run(["sync"], check=True)
                harness.warm_memory(6 * harness.GIB)
                read_all(below)
                with harness.disk(work / "disk", 6 * harness.GIB + 2 * used_bytes) as disk:
                    ways[(number + turn) % len(ways)](disk)
            last = ", ".join(f"{way} {seconds[-1][0]:.2f} s" for way, seconds in times.items())
            harness.say(f"{label}: {last}")
    subprocess.run(["umount", below], check=True)
    ways_and_others = [("mirror", "rsync"), ("connect", "rsync")]
    if "rclone" in times:
        ways_and_others.append(("mirror", "rclone"))
    for way, other in ways_and_others:
        for column, when in enumerate(("copied", "on disk")):
            mine, theirs = ([pair[column] for pair in times[who]] for who in (way, other))
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            table.row(
                f"{label}, {way}, {when}" + (" (rclone)" if other == "rclone" else ""),
                rounds,
                harness.median_text(mine, 2),
                harness.median_text(theirs, 2),
                f"{ratio:.2f}",
            )


def measure_unchanged(work: Path, source: Path, files: int, rounds: int) -> None:
    below = work / "below"
    below.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, below], check=True)
    times: dict[str, list[float]] = {"mirror": [], "rsync": [], "rclone": []}
    used: dict[str, list[Usage]] = {"source": [], "target": [], "rsync source": [], "rsync target": []}
    with (
        harness.pair(work) as agents,
        harness.disk(work / "disk", 6 * harness.GIB, inodes=files + files // 50 + 100_000) as disk,
    ):
        copy = disk.path / "copy"
        subprocess.run(["cp", "-a", below, copy], check=True)
        disk.sync()
        agents.capture(source)
        agent, address = agents.source_agent, agents.target_agent.address

        def mirror() -> None:
            harness.dtctl(agent, "connect", "bench", address, "--map", f"{source}={copy}", "--no-mirror")
            processes = agents.processes()
            sides = {"source": processes["sender"], "target": processes["receiver"]}
            before_s = {side: harness.processor_s(process_id) for side, process_id in sides.items()}
            start = time.perf_counter()
            harness.dtctl(agent, "mirror", "start", "bench", "difference")
            harness.dtctl(agent, "wait", "bench")
            times["mirror"].append(time.perf_counter() - start)
            for side, process_id in sides.items():
                processor_s = harness.processor_s(process_id) - before_s[side]
                used[side].append(Usage(harness.memory_bytes(process_id, "VmHWM"), processor_s))
            agents.disconnect()

        def rsync() -> None:
            with rsync_daemon(work, copy, used["rsync target"]) as address:
                command = ["rsync", "-a", f"{below}/", address]
                start = time.perf_counter()
                process = subprocess.Popen(command, preexec_fn=_forked)
                used["rsync source"].append(_ended(process))
                times["rsync"].append(time.perf_counter() - start)

        def with_rclone() -> None:
            start = time.perf_counter()
            rclone(below, copy)
            times["rclone"].append(time.perf_counter() - start)

        ways = [mirror, rsync, *([with_rclone] if has_rclone() else [])]
        for number in range(rounds + 1):  # the first one warms the caches
            for turn in range(len(ways)):
                ways[(number + turn) % len(ways)]()
            last = ", ".join(f"{who} {seconds[-1]:.2f} s" for who, seconds in times.items() if seconds)
            harness.say(f"{files:,} files unchanged: {last}")
        harness.assert_equal(below, copy)
    subprocess.run(["umount", below], check=True)
    mine, theirs = times["mirror"][1:], times["rsync"][1:]
    table = harness.Table(
        f"Difference mirror of {files:,} unchanged files, median (range)",
        "what",
        "pairs",
        "replicator",
        "rsync -a",
        "median of the pairs' ratios",
    )
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    table.row("seconds", rounds, harness.median_text(mine, 2), harness.median_text(theirs, 2), f"{ratio:.2f}")

    def processor_s(*sides: str) -> list[float]:
        return [
            sum(one.processor_s for one in turn) for turn in zip(*(used[s][1:] for s in sides), strict=True)
        ]

    for name, sides in (("source", ["source"]), ("target", ["target"]), ("both", ["source", "target"])):
        mine, theirs = processor_s(*sides), processor_s(*(f"rsync {side}" for side in sides))
        ratio = statistics.median(mine) / statistics.median(theirs)
        texts = harness.median_text(mine, 2), harness.median_text(theirs, 2)
        table.row(f"processor, {name}, seconds", rounds, *texts, f"{ratio:.2f}")
    if others := times["rclone"][1:]:
        mine = times["mirror"][1:]
        ratio = statistics.median(a / b for a, b in zip(mine, others, strict=True))
        texts = (harness.median_text(values, 2) for values in (mine, others))
        table.row("seconds (rclone)", rounds, *texts, f"{ratio:.2f}")
    for side in ("source", "target"):
        mib = [[one.peak_bytes / harness.MIB for one in used[who][1:]] for who in (side, f"rsync {side}")]
        table.row(
            f"memory of the {side}, MiB",
            rounds,
            *(harness.median_text(values) for values in mib),
            f"{statistics.median(mib[0]) / statistics.median(mib[1]):.2f}",
        )


def measure(work: Path, quick: bool, cases: list[str], rounds: int, files: int, mib: int) -> None:
    if first := [case for case in cases if case != "unchanged"]:
        table = harness.Table(
            "First copy, seconds, median (range)",
            "what",
            "pairs",
            "replicator",
            "rsync -a, or rclone sync",
            "median of the pairs' ratios",
        )
    for case in first:
        source = work / case
        if case == "small":
            harness.make_small_files(source, files)
            measure_tree(work, source, f"{files:,} files of 0–8 KiB", rounds, table)
        elif case == "large":
            source.mkdir()
            harness.make_file(source / "file", mib * harness.MIB)
            measure_tree(work, source, f"one file of {mib:,} MiB", rounds, table)
        else:
            links, symlinks = files // 5, files // 2
            harness.make_names(source, links, symlinks)
            label = f"{links:,} files with two names, {symlinks:,} symbolic links"
            measure_tree(work, source, label, rounds, table, "-aH")
        shutil.rmtree(source)
    if "unchanged" in cases:
        harness.make_sparse_files(work / "unchanged", 10 * files)
        measure_unchanged(work, work / "unchanged", 10 * files, rounds)


if __name__ == "__main__":
    harness.run(
        __doc__,
        measure,
        cases=("small", "large", "links", "unchanged"),
        rounds=(5, 1),
        files=(100_000, 5_000),
        mib=(8192, 256),
    )
