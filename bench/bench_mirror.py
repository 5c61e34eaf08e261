"""A full mirror against `rsync -a` to an rsync daemon.

All go over loopback, from the same source to the same kind of disk: a fresh ext4 for every run. They take
turns at going first. The source has just been made and lies in the page cache; rsync reads it beneath the
mount. "mirror" is `dtctl mirror start` and `dtctl wait` on a connection that stands, as rsync's daemon does;
"connect" is `dtctl connect` and `dtctl wait`: with the start of a sender and a receiver. Both hold two starts
of the program. "On disk" adds the sync of the target's file system afterwards, which none of them does.
"""

import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
from kit.dtd import free_port


@contextmanager
def rsync_daemon(work: Path, copy: Path) -> Iterator[str]:
    """Where `copy` can be reached with rsync."""
    port = free_port()
    configuration = work / "rsyncd.conf"
    configuration.write_text(
        f"uid = 0\ngid = 0\nuse chroot = no\nlog file = {work}/rsyncd.log\n"
        f"[copy]\npath = {copy}\nread only = no\n"
    )
    command = ["rsync", "--daemon", "--no-detach", f"--config={configuration}", f"--port={port}"]
    daemon = subprocess.Popen([*command, "--address=127.0.0.1"])
    try:
        harness.until(lambda: _listens(port), interval_s=0.02)
        yield f"rsync://127.0.0.1:{port}/copy/"
    finally:
        daemon.terminate()
        daemon.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def timed(disk: harness.Disk, copy: Callable[[], None]) -> tuple[float, float]:
    """Seconds until it returned, and until everything was on disk."""
    start = time.perf_counter()
    copy()
    done = time.perf_counter() - start
    disk.sync()
    return done, time.perf_counter() - start


def measure_tree(work: Path, source: Path, label: str, rounds: int, table: harness.Table) -> None:
    below = work / "below"
    below.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, below], check=True)
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
                command = ["rsync", "-a", f"{below}/", address]
                times["rsync"].append(timed(disk, lambda: subprocess.run(command, check=True) and None))

        ways = [with_mirror, with_rsync, with_connect]
        for number in range(rounds):
            for turn in range(len(ways)):
                subprocess.run(["sync"], check=True)
                harness.warm_memory(6 * harness.GIB)
                with harness.disk(work / "disk", 6 * harness.GIB) as disk:
                    ways[(number + turn) % len(ways)](disk)
            last = ", ".join(f"{way} {seconds[-1][0]:.2f} s" for way, seconds in times.items())
            harness.say(f"{label}: {last}")
    subprocess.run(["umount", below], check=True)
    for way in ("mirror", "connect"):
        for column, when in enumerate(("copied", "on disk")):
            mine, theirs = ([pair[column] for pair in times[who]] for who in (way, "rsync"))
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            table.row(
                f"{label}, {way}, {when}",
                rounds,
                harness.median_text(mine, 2),
                harness.median_text(theirs, 2),
                f"{ratio:.2f}",
            )


def measure(work: Path, quick: bool) -> None:
    rounds = 1 if quick else 5
    files, large_bytes = (5_000, 256 * harness.MIB) if quick else (50_000, 2 * harness.GIB)
    table = harness.Table(
        "Mirror, seconds, median (range)",
        "what",
        "pairs",
        "replicator",
        "rsync -a",
        "median of the pairs' ratios",
    )
    small, large = work / "small", work / "large"
    harness.make_small_files(small, files)
    measure_tree(work, small, f"{files:,} files of 0–8 KiB", rounds, table)
    large.mkdir()
    harness.make_file(large / "file", large_bytes)
    measure_tree(work, large, f"one file of {large_bytes // harness.MIB:,} MiB", rounds, table)


if __name__ == "__main__":
    harness.run(__doc__, measure)
