"""kill -9 of every process of ours, on either side, alone and in pairs, under load: nothing is lost, nothing
is mirrored again, and applications see nothing of it.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from kit.patience import until
from kit.protected import Protected, protected, serves
from kit.workloads import CHECKS
from kit.writers import writing

pytestmark = pytest.mark.e2e

# What to kill, and whose it is.
SINGLE = [("sender",), ("receiver",), ("source dtd",), ("target dtd",)]
PAIRS = [
    ("sender", "receiver"),
    ("sender", "source dtd"),
    ("receiver", "target dtd"),
    ("sender", "target dtd"),
    ("receiver", "source dtd"),
    ("source dtd", "target dtd"),
]


def kill(pair: Protected, victims: tuple[str, ...], status: dict[str, Any]) -> None:
    """End them at once, and start again those that nobody else starts."""
    agents = {"source dtd": pair.alpha, "target dtd": pair.beta}
    for victim in victims:
        if victim in agents:
            agents[victim].kill()
        else:
            os.kill(status[f"{victim}_pid"], signal.SIGKILL)
    for victim in victims:
        if victim in agents:
            agents[victim].start()


LOAD_S = 8.0  # at least so long


def connected(pair: Protected, before: dict[str, Any], victims: tuple[str, ...]) -> dict[str, Any] | None:
    status = pair.status
    replaced = all(status[f"{v}_pid"] not in (None, before[f"{v}_pid"]) for v in victims if "dtd" not in v)
    return status if status["state"] == "Started" and status["receiver_pid"] and replaced else None


def kill_under_load(pair: Protected, rounds: list[tuple[str, ...]], root: Path, seed: int) -> None:
    chance = random.Random(seed)
    commands = [("kit.workloads", name, pair.source / name) for name in CHECKS]
    with writing(root / "out", *commands) as writers:
        until(lambda: all((pair.copy / name).is_dir() for name in CHECKS))
        began_s = time.monotonic()
        for victims in rounds:
            before = pair.status
            kill(pair, victims, before)
            after = until(lambda b=before, v=victims: connected(pair, b, v))
            # A new sender counts from nothing; nobody may have begun a mirror in either case.
            began = 0 if after["sender_pid"] != before["sender_pid"] else before["sent_mirror_bytes"]
            assert after["sent_mirror_bytes"] == began, victims
            assert after["target_data_state"] == "OK", (victims, after)
            for writer in writers:
                writer.assert_running()
            time.sleep(chance.uniform(0, 0.5))
        time.sleep(max(began_s + LOAD_S - time.monotonic(), 0))  # successors come faster than writers write
        for writer in writers:
            assert int(writer.stop()) > 20
    mirrored = pair.status["sent_mirror_bytes"]
    pair.assert_equal()
    status = pair.status
    assert (status["target_data_state"], status["sent_mirror_bytes"]) == ("OK", mirrored)
    for name, check in CHECKS.items():
        assert check(pair.copy / name) == []


@pytest.mark.parametrize("rounds", [SINGLE, PAIRS[::2]], ids=["one", "two"])
def test_killed_under_load(rounds: list[tuple[str, ...]], tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        kill_under_load(pair, rounds, tmp_path, len(rounds))


@pytest.mark.soak
@pytest.mark.timeout_s(1200)
def test_killed_under_load_for_long(tmp_path: Path) -> None:
    chance = random.Random(7)
    with protected(tmp_path) as pair:
        kill_under_load(pair, chance.choices(SINGLE + PAIRS, k=60), tmp_path, 7)


def reload_under_load(pair: Protected, count: int, out: Path) -> None:
    commands = [("kit.workloads", name, pair.source / name) for name in CHECKS]
    with writing(out, *commands) as writers:
        until(lambda: all((pair.copy / name).is_dir() for name in CHECKS))
        mirrored = pair.status["sent_mirror_bytes"]
        for _ in range(count):
            (before,) = pair.alpha.json("mount", "list")
            after = pair.alpha.json("mount", "reload", pair.source)
            assert after["pid"] not in (None, before["pid"]) and after["state"] == "serving"
            for writer in writers:
                writer.assert_running()
        for writer in writers:
            assert int(writer.stop()) > 20
    pair.assert_equal()
    status = pair.status
    assert (status["target_data_state"], status["sent_mirror_bytes"]) == ("OK", mirrored)
    for name, check in CHECKS.items():
        assert check(pair.copy / name) == []
    ends = [event["text"] for event in pair.alpha.json("events") if "ended unexpectedly" in event["text"]]
    assert ends == []


def test_reloaded_under_load(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        reload_under_load(pair, 5, tmp_path / "out")


@pytest.mark.soak
@pytest.mark.timeout_s(1200)
def test_reloaded_fifty_times(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        reload_under_load(pair, 50, tmp_path / "out")


def test_a_killed_capture(tmp_path: Path) -> None:
    """Applications notice nothing, and nothing captured is lost or in doubt."""
    with protected(tmp_path) as pair, open(pair.source / "held", "w") as held:  # the capture's lowest number
        with writing(tmp_path / "out", ("kit.workloads", "publish", pair.source / "publish")) as (writer,):
            until((pair.copy / "publish" / "pointer").exists)
            mirrored = pair.status["sent_mirror_bytes"]
            (mount,) = pair.alpha.json("mount", "list")
            os.kill(mount["pid"], signal.SIGKILL)
            until(lambda: serves(pair.source) and pair.alpha.json("mount", "list")[0]["pid"] != mount["pid"])
            time.sleep(0.5)
            writer.assert_running()
            assert int(writer.stop()) > 0
        held.write("opened before")
        held.close()
        assert int((pair.source / "publish" / "pointer").read_text()) > 0
        (pair.source / "publish" / "pointer.new").unlink(missing_ok=True)
        (pair.source / "later").write_text("written afterwards")
        (pair.source / "publish").rename(pair.source / "moved")
        pair.assert_equal()
        assert (pair.copy / "later").read_text() == "written afterwards"
        assert (pair.copy / "held").read_text() == "opened before"
        status = pair.status
        assert status["target_data_state"] == "OK"
        assert status["sent_mirror_bytes"] == mirrored
