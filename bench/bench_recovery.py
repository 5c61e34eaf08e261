"""What an outage costs: a recovery after a queue that was too small, against rsync on equal trees.

The target is gone while a program fills the queue, and then changes 4 KiB each at many places: of one large
sparse file, or of one file each in a large tree. "Recovery" is from the target's start until `dtctl wait`
returns, its bytes are what the sender sent and read meanwhile. rsync brings a second and a third copy, which
were equal to the first, from the same source (beneath the mount) to a daemon; its bytes are what both sides
sent. Files are small or sparse, and everything is in the page cache, which favours rsync: it has to read all.
"""

import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import harness
from bench_mirror import rsync_daemon

CHANGES = 1_000
CHANGE_BYTES = 4096
QUEUE = '[queue]\nmemory_size = "32 MiB"\ndisk_size_max = 0\n'
FILLING_BYTES = 96 * harness.MIB
WAYS = {
    # -S: a copy that is not sparse would not fit on most machines
    "rsync -aS": ("-aS",),
    "rsync -a --inplace --no-whole-file": ("-a", "--inplace", "--no-whole-file"),
}


def measure_outage(
    work: Path, source: Path, change: Callable[[Path, random.Random], None], label: str, table: harness.Table
) -> None:
    """`change` makes the changes through the mount at this path."""
    below, copy = work / "below", work / "copy"
    below.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, below], check=True)
    copies = [work / f"copy-{number}" for number in range(len(WAYS))]
    with harness.pair(work, settings=QUEUE) as agents:
        agents.capture(source)
        agents.connect(source, copy)
        harness.say(f"{label}: mirrored")
        for other in copies:
            subprocess.run(["cp", "-a", "--sparse=always", copy, other], check=True)
        harness.say(f"{label}: copies made")
        agents.target_gone()
        chance = random.Random(1)
        fill(source / "filling")
        change(source, chance)
        fill(source / "filling")
        before = agents.status()
        sender = before["sender_pid"]
        read = io_bytes(sender, "rchar")
        began = time.perf_counter()
        agents.target_agent.start()
        agents.wait()
        mine_s = time.perf_counter() - began
        after = agents.status()
        sent = after["sent_bytes"] - before["sent_bytes"]
        read = io_bytes(sender, "rchar") - read
        assert after["target_data_state"] == "OK", after["target_data_state"]
        harness.say(f"{label}: {mine_s:.2f} s, {sent:,} bytes sent, {read:,} read")
        table.row(f"{label}: recovery", f"{mine_s:.2f}", f"{sent:,}", f"{read:,}", "")
        harness.assert_equal(below, copy)
        for other, (name, options) in zip(copies, WAYS.items(), strict=True):
            with rsync_daemon(work, other) as address:
                began = time.perf_counter()
                result = subprocess.run(
                    ["rsync", *options, "--stats", "--no-human-readable", f"{below}/", address],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                theirs_s = time.perf_counter() - began
            wire = sum(
                int(n) for n in re.findall(r"^Total bytes (?:sent|received): (\d+)", result.stdout, re.M)
            )
            table.row(
                f"{label}: {name}",
                f"{theirs_s:.2f}",
                f"{wire:,}",
                "all",
                f"{mine_s / theirs_s:.3f} of the time, {sent / wire:.3f} of the bytes",
            )
        agents.disconnect()
    subprocess.run(["umount", below], check=True)
    for path in (copy, *copies):
        subprocess.run(["rm", "-rf", path], check=True)


def io_bytes(process_id: int, field: str) -> int:
    (line,) = [x for x in Path(f"/proc/{process_id}/io").read_text().splitlines() if x.startswith(field)]
    return int(line.split()[1])


def fill(path: Path) -> None:
    """One small file, written again and again: more than the queue takes, and 1 MiB that differs."""
    block = os.urandom(harness.MIB)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for _ in range(FILLING_BYTES // len(block)):
        os.pwrite(descriptor, block, 0)
    os.close(descriptor)


def measure(work: Path, quick: bool) -> None:
    sparse_bytes, files = (harness.GIB, 5_000) if quick else (100 * harness.GIB, 1_000_000)
    table = harness.Table(
        "Recovery after an outage", "what", "seconds", "bytes sent", "bytes read", "recovery against it"
    )

    def in_one_file(mounted: Path, chance: random.Random) -> None:
        descriptor = os.open(mounted / "image", os.O_WRONLY)
        for _ in range(CHANGES):
            place = chance.randrange(sparse_bytes // CHANGE_BYTES) * CHANGE_BYTES
            os.pwrite(descriptor, os.urandom(CHANGE_BYTES), place)
        os.close(descriptor)

    def in_many_files(mounted: Path, chance: random.Random) -> None:
        for number in chance.sample(range(files), CHANGES):
            descriptor = os.open(mounted / f"d{number // 100}" / f"f{number}", os.O_WRONLY)
            os.pwrite(descriptor, os.urandom(CHANGE_BYTES), 0)
            os.close(descriptor)

    large = work / "large"
    large.mkdir()
    with open(large / "image", "wb") as file:
        file.truncate(sparse_bytes)
    measure_outage(
        work, large, in_one_file, f"{sparse_bytes // harness.GIB} GiB, sparse, 1,000 places", table
    )
    many = work / "many"
    harness.make_small_files(many, files, size_max=2048)
    measure_outage(work, many, in_many_files, f"{files:,} files, 1,000 of them", table)


if __name__ == "__main__":
    harness.run(__doc__, measure)
