"""A service whose source dies: it is back at the target, and nothing is missing that was promised."""

import statistics
import time
from pathlib import Path

import pytest
from kit import machine
from kit.campaign import amount
from kit.failover_lab import failover_lab
from kit.failover_rounds import Outcome, fail_over

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

ROUNDS = amount("FAILOVERS", 20)
ROUND_S = 60
GAP_MAX_S = 5.0


def one_round(directory: Path, how: str, *, synchronous: bool = False, mode: str = "wal") -> Outcome:
    directory.mkdir()
    with failover_lab(directory, witness=True, mode=mode) as lab:
        lab.protect(synchronous=synchronous)
        lab.monitor()
        outcome = fail_over(lab, how)
        assert lab.phase_becomes(Phase.ACTIVE)["epoch"] == 1
    print(f"{how}, {mode}{', synchronous' * synchronous}: {outcome.shown}", flush=True)
    assert outcome.gaps == [] and outcome.promised == []
    assert outcome.recovery_point_s is not None
    assert not (synchronous and outcome.lost), outcome.lost
    return outcome


@pytest.mark.parametrize(
    ("how", "synchronous"), [("power", False), pytest.param("cut", True, marks=pytest.mark.soak)]
)
def test_the_service_is_back(tmp_path: Path, how: str, synchronous: bool) -> None:
    one_round(tmp_path / "round", how, synchronous=synchronous)


@pytest.mark.soak
@pytest.mark.timeout_s(300 + ROUNDS * ROUND_S)
@pytest.mark.parametrize("how", ["cut", "power"])
@pytest.mark.parametrize("synchronous", [False, True])
def test_many_failovers(tmp_path: Path, how: str, synchronous: bool) -> None:
    modes = ("wal", "delete")
    found = [
        one_round(tmp_path / str(number), how, synchronous=synchronous, mode=modes[number % 2])
        for number in range(ROUNDS)
    ]
    median_s = statistics.median(outcome.gap_s for outcome in found)
    print(f"median {median_s:.2f} s, most {max(outcome.gap_s for outcome in found):.2f} s without service")
    assert median_s <= GAP_MAX_S


@pytest.mark.soak
def test_a_source_that_returns_finds_itself_superseded(tmp_path: Path) -> None:
    """Its address goes, its mounts take no change, its connection says what is needed."""
    with failover_lab(tmp_path, witness=True) as lab:
        lab.protect()
        lab.monitor(interval_s=0.5)
        fail_over(lab, "power")
        lab.source.boot()
        lab.only_holder_becomes(lab.target.name)
        lab.restore_is_required()
        with pytest.raises(OSError, match="Read-only"):
            (lab.source.root / "new").write_bytes(b"of a former owner")
        (lab.target.root / "new").write_bytes(b"of the owner")
        time.sleep(1)
        assert lab.holders() == [lab.target.name]
