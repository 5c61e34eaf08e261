"""A target that is away for longer than the queue lasts, with real processes: the queue is given back, and
what is brought afterwards is in proportion to what has changed.
"""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kit.patience import until
from kit.protected import Protected, protected

from replicator.limits import KIB, MIB

pytestmark = pytest.mark.e2e

QUEUE = '[queue]\nmemory_size = "32 MiB"\nsegment_size = "1 MiB"\ndisk_size_max = 0\n'
FILES, FILE_BYTES = 400, 64 * KIB
BLOCK_BYTES = 4 * KIB


def build(source: Path, chance: random.Random) -> None:
    for number in range(FILES):
        directory = source / f"d{number % 20}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(chance.randbytes(FILE_BYTES))
    with open(source / "large", "wb") as file:
        file.truncate(1 << 30)


def overwrite(source: Path, chance: random.Random, total_bytes: int) -> None:
    """The same few places again and again, by so many bytes, at some 30 MB/s."""
    with open(source / "d0/f0", "r+b", buffering=0) as file:
        for _ in range(total_bytes // (32 * KIB)):
            os.pwrite(file.fileno(), chance.randbytes(32 * KIB), 0)
            time.sleep(0.001)


def change_some(source: Path, chance: random.Random) -> int:
    """Returns about how many bytes have changed."""
    with open(source / "large", "r+b", buffering=0) as file:
        for _ in range(50):
            offset = chance.randrange((1 << 30) // BLOCK_BYTES) * BLOCK_BYTES
            os.pwrite(file.fileno(), chance.randbytes(BLOCK_BYTES), offset)
    for number in range(20, 30):
        path = source / f"d{number % 20}" / f"f{number}"
        state = path.stat()
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), chance.randbytes(BLOCK_BYTES), BLOCK_BYTES)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # no comparison would find it
    (source / "d1/f1").unlink()
    (source / "d2/f2").rename(source / "d3/moved")
    (source / "d4/new").write_bytes(chance.randbytes(FILE_BYTES))
    return 60 * BLOCK_BYTES + 32 * KIB + 2 * FILE_BYTES


def events(pair: Protected) -> list[int]:
    return [event["id"] for event in pair.alpha.json("events")]


@pytest.mark.timeout_s(240)
def test_what_changed_while_a_target_was_away_is_brought_and_nothing_else(tmp_path: Path) -> None:
    chance = random.Random(1)
    with protected(tmp_path, configuration=QUEUE) as pair:
        build(pair.source, chance)
        pair.drained()
        until(lambda: not pair.status["lag"]["held_bytes"], 90)  # a sync of a busy disk
        sent = pair.status["sent_bytes"]
        pair.beta.stop()
        overwrite(pair.source, chance, 40 * MIB)
        until(lambda: pair.status["tracking"], 30)
        assert pair.status["replication_status"] == "Pending"
        changed = change_some(pair.source, chance)
        sender = pair.status["sender_pid"]
        # Killed before its first note of what is tracked, its successor has to take everything for changed.
        # From that note on nothing is forgotten.
        until(lambda: pair.status["tracked_files"], 30)
        os.kill(sender, signal.SIGKILL)
        overwrite(pair.source, chance, 40 * MIB)
        until(lambda: pair.status["sender_pid"] not in (None, sender), 30)
        until(lambda: pair.status["tracked_files"] >= 12, 30)
        assert pair.status["tracked_enough"]
        assert 801 in events(pair)
        assert 78 not in events(pair)  # all did fit into the queue
        assert "changed while the target was away" in pair.alpha.dtctl("why", pair.source / "d4/new").out
        pair.beta.start()
        pair.assert_equal()
        status = pair.status
        assert status["target_data_state"] == "OK" and status["mirror"]["kind"] == "recovery"
        touched = 15
        assert status["sent_mirror_bytes"] < 3 * changed + touched * 64 * KIB
        assert sent > FILES * FILE_BYTES  # a mirror would cost more than that


@pytest.mark.timeout_s(240)
def test_a_target_whose_disk_lost_what_was_not_synced_is_compared_only_there(tmp_path: Path) -> None:
    """The state of its receiver is that of another boot: so it looks after a loss of power."""
    chance = random.Random(2)
    with protected(
        tmp_path
    ) as pair:  # a queue that is never full: the end of a recovery would be synced at once
        build(pair.source, chance)
        pair.drained()
        until(lambda: not pair.status["lag"]["held_bytes"], 90)  # a sync of a busy disk
        change_some(pair.source, chance)
        pair.drained()
        receiver = pair.status["receiver_pid"]
        pair.beta.kill()
        os.kill(receiver, signal.SIGKILL)
        (state_file,) = (pair.beta.home / "target").glob("*/state.json")
        state = json.loads(state_file.read_text())
        state["boot_id"], state["clean"] = "another", False
        state_file.write_text(json.dumps(state))
        for path in ("d4/new", "d3/moved"):
            (pair.copy / path).write_bytes(b"")
        subprocess.run(["sync"], check=True, timeout=60)
        before = pair.status["sent_mirror_bytes"]
        pair.beta.start()
        pair.assert_equal()
        assert pair.status["target_data_state"] == "OK"
        assert pair.status["sent_mirror_bytes"] - before < 2 * MIB
