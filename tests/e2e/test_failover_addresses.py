"""A monitor without copies: addresses move, scripts run, and a client finds the service again."""

import time
from pathlib import Path

import pytest
from kit import machine
from kit.failover_lab import failover_lab

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]


def test_addresses_and_a_service_move(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        for host in (lab.source, lab.target):
            host.root.mkdir()
        lab.own_address()
        lab.serve(lab.source)
        lab.monitor(interval_s=0.5)
        with lab.client() as client:
            assert client.first_answer(0).host == "source"
            time.sleep(1)
            failed_s = lab.cut(lab.source)
            answer = client.first_answer(failed_s)
            assert answer.host == "target"
            print(f"{answer.answered_s - failed_s:.2f} s without service")
        assert lab.phase_becomes(Phase.ACTIVE)["epoch"] == 1
        assert lab.holders() == ["source", "target"]  # the source is alone, and nobody can tell it
        lab.source.host.mend()
        lab.only_holder_becomes("target")
