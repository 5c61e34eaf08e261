"""Seeded histories of the simulation on real hosts: `tests/kit/replay.py` says how.

SOAK_FAILOVER_REPLAYS says how many of them, SOAK_FAILOVER_REPLAYS_SEED where they begin; seconds of the
simulation in a real one are SOAK_FAILOVER_REPLAYS_SPEED (3): less of it for a machine that is slow.
"""

from pathlib import Path

import pytest
from kit import machine
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


def apart(one: str, other: str, at_s: float, lasts_s: float) -> list[Fault]:
    pairs = ((one, other), (other, one))
    return [Fault(at_s, "cut", pair) for pair in pairs] + [
        Fault(at_s + lasts_s, "heal", pair) for pair in pairs
    ]


CUT_OFF = [*apart("source", "target", 1.0, 15.0), *apart("source", "witness", 1.0, 15.0)]
"""Simulated seconds: a third of them is real."""


def in_order(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.at_s)


def test_a_write_between_two_looks_is_seen() -> None:
    looks = [
        Look(1.0, 1.1, Phase.ACTIVE, 1),
        Look(2.0, 2.1, Phase.ACTIVE, 1),
        Look(3.0, 3.1, Phase.WATCHING, 2),
    ]
    within, before = Answer(1, 1.2, 1.3, "source"), Answer(2, 1.05, 1.3, "source")
    assert two_writers(looks, [within, before]) == [within]
    assert two_writers(looks, [Answer(3, 1.2, 1.3, "target"), Answer(4, 2.2, 2.3, "source")]) == []


def test_a_source_that_is_cut_off(tmp_path: Path) -> None:
    with replay_lab(tmp_path / "lab", say=print) as stage:
        summary = stage.replay(History(0, Setup(), in_order(CUT_OFF)))
    assert summary.terms == ["source", "target", "source"] and summary.epochs == 2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("planted", "faults"),
    [
        ("a_restarted_source_gives_itself_a_lease", CUT_OFF),
        ("nobody_waits_for_the_witness", apart("source", "target", 1.0, 60.0)),
    ],
)
def test_mistakes_are_found(tmp_path: Path, planted: str, faults: list[Fault]) -> None:
    with (
        replay_lab(tmp_path / "lab", planted=planted, say=print) as stage,
        pytest.raises(Violation, match="two writers"),
    ):
        stage.replay(History(0, Setup(), in_order(faults)))


@pytest.mark.soak
@pytest.mark.timeout_s(300 + REPLAYS * REPLAY_S)
def test_seeded_histories(tmp_path: Path) -> None:
    done, failed = many(chosen(FIRST_SEED, REPLAYS), tmp_path / "replays")
    epochs, bundled = sum(one.epochs for one in done), sum(one.bundled for one in done)
    print(f"{len(done)} went well: {epochs} epochs, {bundled} writes in bundles; not so: {failed}")
    assert not failed
