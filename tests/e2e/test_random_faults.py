"""Random faults of real hosts under load: applications see nothing of it, and the copy becomes equal again at
the cost of what was changed meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import machine
from kit.campaign import amount
from kit.faults import FAULTS, Campaign, Outcome
from kit.mixed_load import mixed_load
from kit.two_hosts import two_hosts
from kit.unused import build_unused

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

LONG = amount("FAULTS", 300)
SEED = amount("FAULTS_SEED", 1)
FAULT_S = 60  # at the most, on the average


@contextmanager
def campaign(directory: Path, seed: int) -> Iterator[Campaign]:
    with two_hosts(directory) as hosts:
        hosts.source.mkdir()
        build_unused(hosts.source / "unused", seed)
        hosts.connect()
        hosts.settled()
        (directory / "scratch").mkdir()
        with mixed_load(hosts.source / "used", directory / "out", seed) as load:
            yield Campaign(hosts, load, "unused", directory / "scratch", seed)
            load.stop()


def assert_cheap(outcome: Outcome) -> None:
    assert outcome.sent_bytes <= outcome.allowed_bytes, outcome.shown
    assert not outcome.full_scan, outcome.shown


@pytest.mark.timeout_s(400)
def test_each_kind_of_fault(tmp_path: Path) -> None:
    with campaign(tmp_path, 1) as faults:
        for kind in FAULTS:
            assert_cheap(faults.round(kind))


@pytest.mark.soak
@pytest.mark.timeout_s(300 + LONG * FAULT_S)
def test_random_faults(tmp_path: Path) -> None:
    with campaign(tmp_path, SEED) as faults:
        try:
            for _ in range(LONG):
                faults.round()
        finally:
            print(faults.told())
        for outcome in faults.outcomes:
            assert_cheap(outcome)
