"""Queues of real agents: other limits and another directory, disks that are too small, damaged files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from kit.disks import ext4, write
from kit.dtd import Agent
from kit.patience import until
from kit.protected import Protected, protected

from replicator import events
from replicator.limits import MIB

pytestmark = pytest.mark.e2e


def configuration(**values: str | int) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["[queue]", *lines]) + "\n"


SMALL: dict[str, str | int] = {"memory_size": "32 MiB", "segment_size": "1 MiB"}


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def segments(directory: Path) -> list[Path]:
    return [path for path in files(directory) if path.suffix == ".segment"]


def mount_number(path: Path) -> str:
    """Of the kernel: another one if it was mounted anew."""
    with open("/proc/self/mountinfo") as file:
        (number,) = (line.split()[0] for line in file if line.split()[4] == str(path))
    return number


def queue(agent: Agent) -> dict[str, Any]:
    """The only one, once its process answers."""
    found = until(lambda: agent.json("queue"))
    assert isinstance(found, list) and len(found) == 1
    return dict(found[0])


def told(agent: Agent) -> list[int]:
    return [event["id"] for event in agent.json("events")]


def mirrored(pair: Protected) -> int:
    """Bytes that this sender has sent for mirrors."""
    return int(pair.status["sent_mirror_bytes"])


def backlog(pair: Protected, mib: int) -> None:
    assert pair.alpha.dtctl("transmit", "pause", pair.id).code == 0
    write(pair.source / "large", mib * MIB)
    for number in range(20):
        (pair.source / f"file{number}").write_text(f"{number}" * 1000)
    (pair.source / "file3").rename(pair.source / "renamed")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_another_directory_and_other_limits(end: str, tmp_path: Path) -> None:
    """By a restart of the agent; the mount stays, programs keep their files, nothing is lost or mirrored."""
    former, new = tmp_path / "former", tmp_path / "new"
    first = configuration(**SMALL, disk_directory=str(former))
    second = configuration(
        **{**SMALL, "memory_size": "48 MiB"}, disk_directory=str(new), disk_size_max="1 GiB"
    )
    with protected(tmp_path, configuration=first) as pair:
        number = mount_number(pair.source)
        backlog(pair, 60)
        assert len(segments(former)) > 20
        with open(pair.source / "log", "w") as log:
            log.write("before\n")
            log.flush()
            getattr(pair.alpha, end)()
            log.write("while no agent runs\n")
            log.flush()
            (pair.alpha.home / "replicator.toml").write_text(second)
            pair.alpha.start()
            until(lambda: events.QUEUE_SETTINGS.id in told(pair.alpha))
            found = queue(pair.alpha)
            assert found["disk_directory"] == str(new / pair.mount_id)
            assert (found["memory_max_bytes"], found["disk_max_bytes"]) == (48 * MIB, 1024 * MIB)
            assert files(former) == [] and len(segments(new)) > 20
            assert mount_number(pair.source) == number
            assert {events.QUEUE_MOVED.id, events.QUEUE_SETTINGS.id} <= set(told(pair.alpha))
            log.write("afterwards\n")
        write(pair.source / "more", 30 * MIB)
        assert pair.alpha.dtctl("transmit", "resume", pair.id).code == 0
        pair.assert_equal()
        assert (pair.status["target_data_state"], mirrored(pair)) == ("OK", 0)
        until(lambda: len(segments(new)) < 5)
        # And nothing happens to a queue that is where it shall be.
        pair.alpha.stop()
        pair.alpha.start()
        (pair.source / "last").write_text("last")
        pair.assert_equal()
        assert events.QUEUE_SETTINGS.id not in told(pair.alpha)


def test_another_directory_after_everything_was_stopped(tmp_path: Path) -> None:
    new = tmp_path / "new"
    with protected(tmp_path, configuration=configuration(**SMALL)) as pair:
        backlog(pair, 60)
        pair.alpha.stop()
        assert pair.alpha.dtd("--stop-mounts").code == 0
        text = configuration(**SMALL, disk_directory=str(new))
        (pair.alpha.home / "replicator.toml").write_text(text)
        pair.alpha.start()
        until(lambda: segments(pair.alpha.home / "queue") == [])
        assert pair.alpha.dtctl("transmit", "resume", pair.id).code == 0
        pair.assert_equal()
        assert (pair.status["target_data_state"], mirrored(pair)) == ("OK", 0)


def test_a_directory_that_is_too_small(tmp_path: Path) -> None:
    """The queue stays where it is, and that is said."""
    new = tmp_path / "new"
    with ext4(new, 16), protected(tmp_path, configuration=configuration(**SMALL)) as pair:
        backlog(pair, 80)
        pair.alpha.stop()
        text = configuration(**SMALL, disk_directory=str(new))
        (pair.alpha.home / "replicator.toml").write_text(text)
        pair.alpha.start()
        until(lambda: events.QUEUE_SETTINGS_LATER.id in told(pair.alpha))
        (later,) = (e for e in pair.alpha.json("events") if e["id"] == events.QUEUE_SETTINGS_LATER.id)
        assert "No space left" in later["text"]
        assert queue(pair.alpha)["disk_directory"].startswith(str(pair.alpha.home))
        assert segments(new) == []
        assert pair.alpha.dtctl("transmit", "resume", pair.id).code == 0
        pair.assert_equal()
        assert (pair.status["target_data_state"], mirrored(pair)) == ("OK", 0)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_queue_of_a_copy_moves_too(end: str, tmp_path: Path) -> None:
    former, new = tmp_path / "former", tmp_path / "new"
    first = configuration(**SMALL, disk_directory=str(former))
    with protected(tmp_path, beta_configuration=first) as pair:
        before = mirrored(pair)
        assert pair.beta.dtctl("target", "pause", pair.status["uuid"]).code == 0
        write(pair.source / "large", 60 * MIB)
        until(lambda: len(segments(former)) > 15)
        getattr(pair.beta, end)()
        (pair.beta.home / "replicator.toml").write_text(configuration(**SMALL, disk_directory=str(new)))
        pair.beta.start()
        until(lambda: str(new) in queue(pair.beta)["disk_directory"])
        pair.assert_equal()
        assert files(former) == []
        assert (pair.status["target_data_state"], mirrored(pair)) == ("OK", before)


def test_a_full_queue_of_a_copy_pauses_its_source(tmp_path: Path) -> None:
    disk = tmp_path / "spool"
    text = configuration(**SMALL, disk_directory=str(disk), disk_free_min="2 MiB")
    with ext4(disk, 24), protected(tmp_path, beta_configuration=text) as pair:
        before = mirrored(pair)
        assert pair.beta.dtctl("target", "pause", pair.status["uuid"]).code == 0
        write(pair.source / "large", 90 * MIB)
        paused = until(lambda: (s := pair.status)["state"] == "Paused" and s)
        assert "queue is full" in paused["state_reason"] and paused["target_queue_full"]
        until(lambda: queue(pair.beta)["full"])
        found = queue(pair.beta)
        assert found["percent"] > 90 and found["room_bytes"] < 2 * MIB and found["disk_free_bytes"] >= 2 * MIB
        write(pair.source / "more", 10 * MIB)  # programs go on
        assert pair.status["queued_bytes"] > 10 * MIB
        assert "its source has to wait" in pair.beta.dtctl("queue").out
        until(lambda: events.TARGET_QUEUE_FULL.id in told(pair.alpha))
        until(lambda: {events.QUEUE_FULL.id, events.QUEUE_ALERT.id} <= set(told(pair.beta)))
        assert pair.beta.dtctl("target", "resume", pair.status["uuid"]).code == 0
        pair.assert_equal()
        status = pair.status
        assert (status["state"], status["target_queue_full"]) == ("Started", False)
        assert (status["target_data_state"], mirrored(pair)) == ("OK", before)
        until(lambda: {events.QUEUE_ROOM.id, events.QUEUE_NORMAL.id} <= set(told(pair.beta)))


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def test_damaged_segments_of_both_sides(tmp_path: Path) -> None:
    text = configuration(**SMALL)
    with protected(tmp_path, configuration=text, beta_configuration=text) as pair:
        before = mirrored(pair)
        # The copy's: its source sends it again.
        assert pair.beta.dtctl("target", "pause", pair.status["uuid"]).code == 0
        write(pair.source / "one", 60 * MIB)
        spool = until(lambda: len(found := segments(pair.beta.home / "target")) > 20 and found)
        flip(spool[5])
        assert pair.beta.dtctl("target", "resume", pair.status["uuid"]).code == 0
        pair.assert_equal()
        assert (pair.status["target_data_state"], mirrored(pair)) == ("OK", before)
        # The source's: what it held is compared.
        backlog(pair, 60)
        # One of the last: the first are what the copy has applied already and its disk does not have yet.
        flip(segments(pair.alpha.home / "queue")[-5])
        assert pair.alpha.dtctl("transmit", "resume", pair.id).code == 0
        pair.assert_equal()
        assert pair.status["target_data_state"] == "OK" and mirrored(pair) > before
