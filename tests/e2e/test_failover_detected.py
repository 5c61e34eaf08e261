"""Real agents on hosts that fail: when a target takes its source for failed, and when it does not."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kit import machine
from kit.campaign import amount
from kit.failover_lab import MONITOR, FailoverLab, failover_lab
from kit.patience import until

from replicator import limits
from replicator.cli.client import Client
from replicator.errors import UnreachableError
from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

INTERVAL_S, MISSES = 0.5, 3
OVERLOAD_S = amount("OVERLOAD_S", 1800)


def test_a_person_is_asked_and_the_question_outlives_the_agent(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.monitor(automatic=False, interval_s=INTERVAL_S, misses=MISSES, serve=False)
        lab.phase_becomes(Phase.WATCHING)
        failed_s = lab.cut(lab.source)
        assert lab.phase_becomes(Phase.ASKING)["question"]
        assert time.monotonic() - failed_s >= INTERVAL_S * (MISSES - 1)
        lab.target.agent.kill()
        lab.target.agent.start()
        assert lab.group["phase"] == Phase.ASKING and lab.group["question"]
        lab.source.host.mend()
        lab.phase_becomes(Phase.WATCHING)
        assert lab.holders() == ["source"] and "begun" not in lab.history()


def test_copies_that_lack_too_much_are_a_persons_affair(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.monitor("--max-lag", "3", interval_s=INTERVAL_S, misses=MISSES, serve=False)
        until(lambda: lab.source.agent.json("failover", "guards"), 20, 0.2)
        assert lab.source.agent.dtctl("transmit", "stop", "1").code == 0
        (lab.source.root / "late").write_bytes(b"nobody else has it")
        # Until it is too old, and the target has heard so.
        time.sleep(3 + limits.GUARD_LAG_S + limits.GUARD_LOOK_S + 1)
        lab.cut(lab.source)
        lab.phase_becomes(Phase.ASKING)
        history = ("failover", "history", MONITOR)
        until(lambda: "lacked the last" in lab.target.agent.dtctl(*history).out, 20, 0.2)
        assert lab.holders() == ["source"]
        lab.target.agent.json("failover", "answer", MONITOR, "yes", "--force")
        lab.phase_becomes(Phase.ACTIVE)
        assert not (lab.target.root / "late").exists()


@pytest.mark.soak
def test_a_paused_target_does_not_take_its_source_for_failed(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.monitor(automatic=False, interval_s=INTERVAL_S, misses=MISSES, serve=False)
        for _ in range(3):
            lab.target.pause()
            time.sleep(2 * INTERVAL_S * MISSES)
            lab.target.resume()
            time.sleep(INTERVAL_S * MISSES)
        assert lab.group["phase"] == Phase.WATCHING and "failed" not in lab.history()


def look(lab: FailoverLab) -> dict[str, Any]:
    """At the monitor, without a program that has to start first: that alone may take a minute here."""
    client = Client(str(lab.target.agent.home))
    while True:
        with suppress(UnreachableError):
            found = client.get("failover", "monitors", MONITOR)
            assert isinstance(found, dict)
            return found


@pytest.mark.soak
@pytest.mark.timeout_s(900 + OVERLOAD_S)
def test_no_false_alarm_under_overload(tmp_path: Path) -> None:
    """Both hosts have several times the work that they can do; the settings are the defaults."""
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.monitor(automatic=True, interval_s=limits.MONITOR_INTERVAL_S, misses=limits.MONITOR_MISSES)
        lab.serve(lab.source)
        with lab.client() as client, lab.overload(lab.source), lab.overload(lab.target):
            until_s = time.monotonic() + OVERLOAD_S
            lowest_s = limits.MONITOR_INTERVAL_S * limits.MONITOR_MISSES
            while time.monotonic() < until_s:
                time.sleep(2)
                group = look(lab)
                assert group["phase"] == Phase.WATCHING, group
                lowest_s = min(lowest_s, *(address["remaining_s"] for address in group["addresses"]))
            told = client.stop()
        assert "failed" not in lab.history() and lab.holders() == ["source"]
    print(f"{OVERLOAD_S} s of overload: countdown never below {lowest_s:.1f} s; {len(told.answers)} writes")
