"""The target at random moments, under load: always a state that the source went through."""

import os
import random
import statistics
import time
from pathlib import Path

import pytest
from kit import bank
from kit.patience import until
from kit.protected import Protected, protected
from kit.snapshots import frozen
from kit.workloads import CHECKS
from kit.writers import writing

from replicator import limits

pytestmark = pytest.mark.e2e

PAUSE_MAX_S = 0.15  # between two looks
LOSS_MAX_S = 2.0  # on a machine that does other things, too; soak holds the median to its promise
LOSS_MEDIAN_MAX_S = 0.05


def look_often(pair: Protected, looks: int, root: Path) -> None:
    """Freeze the receiver again and again while all workloads run, and check all of their directories."""
    chance = random.Random(looks)
    with writing(root / "out", *(("kit.workloads", name, pair.source / name) for name in CHECKS)) as writers:
        until(lambda: all((pair.copy / name).is_dir() for name in CHECKS))
        receiver = pair.status["receiver_pid"]
        seen = set()
        for number in range(looks):
            time.sleep(chance.uniform(0, PAUSE_MAX_S))
            with frozen(receiver):
                for name, check in CHECKS.items():
                    assert check(pair.copy / name) == [], f"{name}, look {number}"
                seen.add((pair.copy / "alternate" / "a").read_bytes())
        assert len(seen) > looks / 2  # looks at a copy that stands still would prove nothing
        for writer in writers:
            assert int(writer.stop()) > looks
    pair.assert_equal()
    assert pair.status["target_data_state"] == "OK"


def test_the_target_is_always_a_prefix(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        look_often(pair, 40, tmp_path)


def test_a_large_file_made_without_a_name_appears_when_it_is_complete(tmp_path: Path) -> None:
    size = 3 * limits.UNNAMED_BYTES
    with protected(tmp_path) as pair:
        for number in range(3):
            content = os.urandom(size)
            name, copy = pair.source / f"f{number}", pair.copy / f"f{number}"
            descriptor = os.open(pair.source, os.O_TMPFILE | os.O_WRONLY)
            try:
                assert os.write(descriptor, content) == size
                os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
                until(copy.exists, pause_s=0)
                assert copy.stat().st_size == size
                assert copy.read_bytes() == content
                os.pwrite(descriptor, b"later", size)
            finally:
                os.close(descriptor)
        pair.assert_equal()
        until(lambda: pair.status["target_data_state"] == "OK")


@pytest.mark.soak
@pytest.mark.timeout_s(600)
def test_the_target_is_always_a_prefix_for_long(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        look_often(pair, 200, tmp_path)


def open_often(pair: Protected, journal_mode: str, looks: int, root: Path) -> list[float]:
    """Copies of a database at random moments, opened. Returns what each of them had lost, in seconds."""
    chance = random.Random(looks)
    database = pair.source / "bank"
    bank.create(database, journal_mode)
    commands = [("kit.bank", database, journal_mode, str(seed)) for seed in (1, 2)]
    frozen_at: list[float] = []
    found: list[bank.Look] = []
    with writing(root / f"out-{journal_mode}", *commands) as writers:
        until(lambda: all(writer.output.count("\n") > 3 for writer in writers))
        pair.drained()
        receiver = pair.status["receiver_pid"]
        for number in range(looks):
            time.sleep(chance.uniform(0, PAUSE_MAX_S))
            scratch = root / f"{journal_mode}-{number}"
            with frozen(receiver) as still:
                look = bank.examine(pair.copy, "bank", scratch)
            assert look.problems == [], f"look {number}: {scratch}"
            frozen_at.append(still)
            found.append(look)
        said = "".join(writer.stop() for writer in writers)
    committed = {line.split()[0]: float(line.split()[1]) for line in said.splitlines()}
    losses = []
    for still, look in zip(frozen_at, found, strict=True):
        missing = [when for which, when in committed.items() if when < still and which not in look.transfers]
        losses.append(still - min(missing) if missing else 0.0)
    pair.assert_equal()
    assert bank.examine(pair.copy, "bank", root / f"{journal_mode}-end").transfers == set(committed)
    assert len({len(look.transfers) for look in found}) > looks / 2
    return losses


def tell(losses: list[float]) -> None:
    """For `pytest -rP`."""
    median_ms, max_ms = statistics.median(losses) * 1000, max(losses) * 1000
    print(f"lost at {len(losses)} moments: median {median_ms:.1f} ms, at most {max_ms:.1f} ms")


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_database_opens_at_any_moment(journal_mode: str, tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        losses = open_often(pair, journal_mode, 20, tmp_path)
    tell(losses)
    assert max(losses) < LOSS_MAX_S


@pytest.mark.soak
@pytest.mark.timeout_s(900)
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_database_opens_at_any_moment_for_long(journal_mode: str, tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        losses = open_often(pair, journal_mode, 200, tmp_path)
    tell(losses)
    assert statistics.median(losses) < LOSS_MEDIAN_MAX_S
