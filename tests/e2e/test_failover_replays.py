"""Seeded histories of the simulation on real hosts: `tests/kit/replay.py` says how.

SOAK_FAILOVER_REPLAYS says how many of them, SOAK_FAILOVER_REPLAYS_SEED where they begin; seconds of the
simulation in a real one are SOAK_FAILOVER_REPLAYS_SPEED (2): less of it for a machine that is slow.
"""

from pathlib import Path

import pytest
from kit import ledger, machine
from kit.campaign import amount
from kit.failover_agents import Setup
from kit.failover_histories import History
from kit.failover_world import Fault, Violation
from kit.ledger_client import Answer
from kit.replay import chosen, many, replay_lab
from kit.replay_judge import Look, two_writers

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout_s(300),
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

REPLAYS = amount("FAILOVER_REPLAYS", 100)
FIRST_SEED = amount("FAILOVER_REPLAYS_SEED", 0)
REPLAY_S = 120


def apart(one: str, other: str) -> list[Fault]:
    """Until all is made well."""
    return [Fault(1.0, "cut", (one, other)), Fault(1.0, "cut", (other, one))]


CUT_OFF = [*apart("source", "target"), *apart("source", "witness")]


def test_a_write_between_two_looks_is_seen() -> None:
    looks = [
        Look(1.0, 1.1, Phase.ACTIVE, 1),
        Look(2.0, 2.1, Phase.ACTIVE, 1),
        Look(3.0, 3.1, Phase.WATCHING, 2),
    ]
    within, before = Answer(1, 1.2, 1.3, "source"), Answer(2, 1.05, 1.3, "source")
    assert two_writers(looks, [within, before]) == [within]
    assert two_writers(looks, [Answer(3, 1.2, 1.3, "target"), Answer(4, 2.2, 2.3, "source")]) == []


def test_rows_are_found_in_a_part_of_a_database(tmp_path: Path) -> None:
    database = ledger.open_ledger(tmp_path, "wal")
    for number in (7, 70):
        database.execute("insert into entry values (?, ?)", (number, ledger.text_of(number)))
    log = tmp_path / f"{ledger.NAME}-wal"
    assert ledger.rows_in(log) == {7, 70}
    (tmp_path / "part").write_bytes(log.read_bytes()[-4096:])
    assert ledger.rows_in(tmp_path / "part") == {7, 70}
    database.close()


def test_a_source_that_is_cut_off(tmp_path: Path) -> None:
    with replay_lab(tmp_path / "lab", say=print) as stage:
        summary = stage.replay(History(0, Setup(), CUT_OFF), until_served_by="target")
    assert summary.terms == ["source", "target", "source"] and summary.epochs == 2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("planted", "faults"),
    [
        ("a_restarted_source_gives_itself_a_lease", CUT_OFF),
        ("nobody_waits_for_the_witness", apart("source", "target")),
    ],
)
def test_mistakes_are_found(tmp_path: Path, planted: str, faults: list[Fault]) -> None:
    with (
        replay_lab(tmp_path / "lab", planted=planted, say=print) as stage,
        pytest.raises(Violation, match="two writers"),
    ):
        stage.replay(History(0, Setup(), faults), until_served_by="target")


@pytest.mark.soak
@pytest.mark.timeout_s(300 + REPLAYS * REPLAY_S)
def test_seeded_histories(tmp_path: Path) -> None:
    done, failed = many(chosen(FIRST_SEED, REPLAYS), tmp_path / "replays")
    epochs, bundled = sum(one.epochs for one in done), sum(one.bundled for one in done)
    print(f"{len(done)} went well: {epochs} epochs, {bundled} writes in bundles; not so: {failed}")
    assert not failed
