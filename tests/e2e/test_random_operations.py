"""Random operations on files of a mount: the mount, and then the copy, have what a model says."""

import os
from pathlib import Path

import pytest
from kit.campaign import amount
from kit.file_exerciser import TOLD_EVERY
from kit.file_operations import History
from kit.patience import until
from kit.protected import Protected, protected
from kit.snapshots import frozen
from kit.writers import writing

pytestmark = pytest.mark.e2e

PROGRAMS = 4  # half of them leave it to the kernel when a mapping is written back
SHORT = 4_000  # operations of all programs together
LONG = amount("OPERATIONS", 1_000_000)
OPERATIONS_PER_S = 200  # at the least
DRAIN_TIMEOUT_S = 300


def exercise(pair: Protected, count: int, outputs: Path, seed: int) -> None:
    programs = [
        ("kit.file_exerciser", pair.source / str(n), str(seed + n), str(count // PROGRAMS), *late(n))
        for n in range(PROGRAMS)
    ]
    with writing(outputs, *programs) as writers:
        for writer in writers:
            assert int(writer.finish(60 + count / OPERATIONS_PER_S).split()[-1]) == count // PROGRAMS
    pair.assert_equal(DRAIN_TIMEOUT_S)
    for n in range(PROGRAMS):
        history = History(seed + n)
        while history.number < count // PROGRAMS:
            history.step()
        assert contents(pair.copy / str(n)) == history.contents


def late(number: int) -> tuple[str, ...]:
    return ("--late-stores",) if number % 2 else ()


def contents(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in sorted(os.listdir(directory))]


def test_random_operations(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        exercise(pair, SHORT, tmp_path / "out", 1)


@pytest.mark.soak
@pytest.mark.timeout_s(300 + LONG / OPERATIONS_PER_S)
def test_a_million_random_operations(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        exercise(pair, LONG, tmp_path / "out", 1000)


def test_the_copy_goes_through_the_same_states(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        command = ("kit.file_exerciser", pair.source / "files", "7", "0")
        with writing(tmp_path / "out", command) as (writer,):
            until(lambda: writer.output.count("\n") > 1)
            pair.drained()
            history, places = History(7), set()
            for _ in range(20):
                with frozen(pair.status["receiver_pid"]):
                    found = contents(pair.copy / "files")
                places.add(history.find(found, int(writer.output.split()[-1]) + TOLD_EVERY))
            assert len(places) > 10
            done = int(writer.stop().split()[-1])
        pair.assert_equal()
        assert history.find(contents(pair.copy / "files"), done) <= done
