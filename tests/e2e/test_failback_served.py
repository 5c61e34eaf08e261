"""The way home: only what was changed travels, clients wait for some seconds, and both sides are equal."""

import os
import time
from pathlib import Path

import pytest
from kit import machine
from kit.bulk import BLOCK_BYTES, build_bulk, change_bulk
from kit.failover_lab import FailoverLab, failover_lab
from kit.failover_rounds import fail_back, fail_over
from kit.patience import until

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout_s(300),
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

ORDERS = ("restore-first", pytest.param("failback-first", marks=pytest.mark.soak))
RATIO_MAX = 1.3
GAP_MAX_S = 5.0


def assert_protected_again(lab: FailoverLab) -> None:
    """The source owns, the target copies and watches, and both trees are equal."""
    lab.phase_becomes(Phase.WATCHING)
    lab.only_holder_becomes(lab.source.name)
    (lab.source.root / "after").write_bytes(b"all is as before")
    until(lambda: lab.is_exact(), 60, 0.2)
    lab.assert_equal()


@pytest.mark.parametrize("order", ORDERS)
def test_only_differences_travel(tmp_path: Path, order: str) -> None:
    with failover_lab(tmp_path, witness=True) as lab:
        build_bulk(lab.source.root)
        lab.protect()
        lab.become_cold()
        lab.monitor(interval_s=0.5, serve=False)
        (lab.source.root / "late").write_bytes(os.urandom(BLOCK_BYTES))  # there is a tail, perhaps
        lab.source.lose_power()
        lab.phase_becomes(Phase.ACTIVE)
        changed = change_bulk(lab.target.root)
        sent = lab.target.host.sent_bytes
        lab.source.boot()
        lab.follow()
        report = lab.fail_back(order)
        assert report["outcome"] == "completed", report
        sent = lab.target.host.sent_bytes - sent
        print(f"{order}: {sent} bytes sent for {changed} changed: {sent / changed:.2f}")
        assert_protected_again(lab)
        assert sent <= RATIO_MAX * changed


@pytest.mark.parametrize("order", ORDERS)
def test_clients_wait_for_seconds(tmp_path: Path, order: str) -> None:
    with failover_lab(tmp_path, witness=True) as lab:
        lab.protect()
        lab.monitor(interval_s=0.5)
        fail_over(lab, "power")
        lab.source.boot()
        lab.follow()
        returned = fail_back(lab, order)
        print(f"{order}: {returned.gap_s:.2f} s without service")
        assert returned.lost == [] and returned.owners == ["target", "source"]
        assert returned.gap_s <= GAP_MAX_S
        lab.end_service(lab.source)
        assert_protected_again(lab)


@pytest.mark.soak
def test_another_failover_after_the_failback(tmp_path: Path) -> None:
    with failover_lab(tmp_path, witness=True) as lab:
        lab.protect()
        lab.monitor(interval_s=0.5)
        fail_over(lab, "power")
        lab.end_service(lab.target)
        lab.source.boot()
        lab.follow()
        assert lab.fail_back("restore-first")["outcome"] == "completed"
        lab.phase_becomes(Phase.WATCHING)
        time.sleep(1)
        outcome = fail_over(lab, "cut")
        assert outcome.gaps == [] and outcome.promised == []
        assert lab.phase_becomes(Phase.ACTIVE)["epoch"] == 3
