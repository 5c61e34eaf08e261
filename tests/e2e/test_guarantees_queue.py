"""No target, no room on it, or no room for the queue: applications never notice, and everything arrives."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from kit.disks import resize, small_disk, write
from kit.patience import until
from kit.protected import Protected, protected

from replicator.limits import MIB

pytestmark = pytest.mark.e2e

MEMORY_BYTES = 32 * MIB  # the least that can be configured
SEGMENT_BYTES = MIB
QUEUE = '[queue]\nmemory_size = "32 MiB"\nsegment_size = "1 MiB"\n'
PROCESS_BYTES = 100 * MIB  # what a process of ours may use beside the queue


def stored(directory: Path) -> int:
    found = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # a segment that was read to its end meanwhile
                found += os.lstat(os.path.join(where, name)).st_blocks * 512
    return found


def resident(process_id: int) -> int:
    """VmHWM: the most it ever had, mapped pages of the queue included."""
    with open(f"/proc/{process_id}/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def mirrored(pair: Protected) -> int:
    """Bytes of mirrors so far: they stay if nothing is mirrored again."""
    return int(pair.status["sent_mirror_bytes"])


def test_beyond_memory_to_disk(tmp_path: Path) -> None:
    with protected(tmp_path, configuration=QUEUE) as pair:
        before = mirrored(pair)
        pair.beta.stop()
        pair.beta.dtd("--stop-mounts")
        (identity,) = [m["id"] for m in pair.alpha.json("mount", "list")]
        uuid = json.loads((pair.alpha.home / "agent.json").read_text())["uuid"]
        memory = Path(f"/dev/shm/replicator-{uuid}/{identity}")
        for number in range(3):
            write(pair.source / f"file{number}", 50 * MIB)
            assert stored(memory) <= MEMORY_BYTES + SEGMENT_BYTES
        assert stored(pair.alpha.home / "queue") > 150 * MIB - MEMORY_BYTES - 10 * SEGMENT_BYTES
        status = pair.status
        assert status["disk_queue_bytes"] > 100 * MIB and status["memory_queue_bytes"] <= MEMORY_BYTES
        (capture,) = [m["pid"] for m in pair.alpha.json("mount", "list")]
        pair.beta.start()
        pair.assert_equal()
        for process_id in (capture, pair.status["sender_pid"], pair.status["receiver_pid"]):
            assert resident(process_id) < MEMORY_BYTES + PROCESS_BYTES
        assert (pair.status["target_data_state"], mirrored(pair)) == ("OK", before)
        until(lambda: stored(pair.alpha.home / "queue") < 10 * SEGMENT_BYTES)  # and is given back


def test_a_full_disk_on_the_target(tmp_path: Path) -> None:
    with small_disk(tmp_path / "copy", "12m"), protected(tmp_path) as pair:
        before = mirrored(pair)
        (pair.source / "first").write_text("first")
        write(pair.source / "large", 30 * MIB)
        (pair.source / "last").write_text("last")
        retrying = until(lambda: (s := pair.status)["target_status"] == "Retrying" and s)
        assert "No space left" in retrying["target_status_reason"]
        (pair.source / "while").write_text("applications go on")
        time.sleep(1)
        assert (pair.copy / "first").exists() and not (pair.copy / "last").exists()  # nothing overtakes
        resize(tmp_path / "copy", "100m")
        pair.assert_equal()
        status = pair.status
        assert (status["target_status"], status["target_status_reason"]) == ("OK", "")
        assert (status["target_data_state"], mirrored(pair)) == ("OK", before)


def test_a_full_queue(tmp_path: Path) -> None:
    disk = tmp_path / "queue"
    configuration = QUEUE + f'disk_directory = "{disk}"\ndisk_free_min = 0\n'
    with small_disk(disk, "8m"), protected(tmp_path, configuration=configuration) as pair:
        (pair.source / "kept").write_text("old")
        (pair.source / "removed").write_text("old")
        pair.drained()
        assert pair.alpha.dtctl("transmit", "stop", pair.id).code == 0
        for number in range(3):
            write(pair.source / f"file{number}", 25 * MIB)
        (pair.source / "kept").write_text("new")
        (pair.source / "removed").unlink()
        (pair.source / "file1").rename(pair.source / "renamed")
        assert stored(disk) <= 8 * MIB
        assert pair.alpha.dtctl("transmit", "start", pair.id).code == 0
        pair.assert_equal()  # what was lost is compared and brought, by itself
        assert pair.status["target_data_state"] == "OK"
        (pair.source / "afterwards").write_text("captured again")
        pair.assert_equal()
