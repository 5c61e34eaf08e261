"""The laboratory in which failover is shown, by failovers made by hand: what it finds is true."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit import machine
from kit.failover_lab import VIRTUAL, FailoverLab, announce, failover_lab
from kit.hosts import Host, lan
from kit.ledger_client import Acknowledged, Answer, overlaps, owners

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

LOAD_S = 1.0
_HEARD = """
import socket, sys
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind((sys.argv[1], 9000)); ear.settimeout(0.3)
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
try:
    print(ear.recv(100).decode())
except TimeoutError:
    print("nothing")
"""
_SAY = (
    "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 9000))"
)


def hears(listener: Host, speaker: Host) -> bool:
    ear = subprocess.Popen(
        [*listener.command, sys.executable, "-c", _HEARD, listener.address], stdout=subprocess.PIPE, text=True
    )
    assert ear.stdout is not None and ear.stdout.readline() == "ready\n"
    speaker.run(sys.executable, "-c", _SAY, listener.address)
    return ear.communicate(timeout=20)[0] == "x\n"


def test_one_direction_between_two_hosts_is_lost_and_nothing_else() -> None:
    with lan("one", "other", "third") as (one, other, third):
        with one.deaf_to(other):
            assert not hears(other, one)
            assert hears(third, one) and hears(one, third) and hears(other, third)
            one.ip("neigh", "replace", other.address, "lladdr", other.hardware_address, "dev", "eth0")
            other.ip("neigh", "replace", one.address, "lladdr", one.hardware_address, "dev", "eth0")
            assert hears(one, other) and not hears(other, one)
        assert hears(other, one) and hears(one, other)


def test_a_gap_is_told_from_what_was_lost_at_the_end() -> None:
    told = Acknowledged([Answer(number, number, number + 0.5) for number in range(1, 6)])
    assert told.gaps([1, 2, 3]) == [] and [answer.number for answer in told.lost([1, 2, 3])] == [4, 5]
    assert [answer.number for answer in told.gaps([1, 2, 4])] == [3]
    assert [answer.number for answer in told.before(3.6).lost([1, 2])] == [3]
    assert told.first_sent_after(3.0) == told.answers[3] and told.first_sent_after(9.0) is None


def test_two_masters_are_seen() -> None:
    source = [Answer(1, 1.0, 1.1, "source"), Answer(2, 2.0, 2.3, "source")]
    assert overlaps(source, [Answer(3, 2.1, 2.4, "target")]) == []
    assert overlaps(source, [Answer(3, 1.5, 1.9, "target")]) == [source[1]]
    assert overlaps(source, []) == []
    assert owners([*source, Answer(3, 2.1, 2.4, "target")]) == ["source", "target"]
    assert owners([*source, Answer(3, 1.5, 1.9, "target")]) == ["source", "target", "source"]
    late = Answer(4, 1.95, 3.0, "source")
    assert owners([source[0], Answer(3, 1.5, 2.0, "target"), late]) == ["source", "target"]


def take_over_by_hand(lab: FailoverLab) -> Path:
    """As an administrator would without any of our failover: from a copy of the copy."""
    taken = lab.target.disk.path / "taken"
    shutil.copytree(lab.target.root, taken)
    lab.target.add_address(VIRTUAL)
    announce(lab.target, VIRTUAL)
    lab.serve(lab.target, taken)
    return taken


@pytest.mark.parametrize("mode", ["wal", pytest.param("delete", marks=pytest.mark.soak)])
def test_a_client_finds_the_service_at_the_other_host(tmp_path: Path, mode: str) -> None:
    with failover_lab(tmp_path, mode=mode) as lab:
        lab.protect()
        lab.serve(lab.source)
        with lab.client() as client, lab.client(lab.source) as at_the_source:
            client.first_answer(0)
            time.sleep(LOAD_S)
            failed_s = lab.cut(lab.source)
            taken = take_over_by_hand(lab)
            answer = client.first_answer(failed_s)
            told = client.stop()
            assert answer.host == "target"
            at_the_source.first_answer(answer.answered_s)  # it is alive, and both have the address
            assert lab.holders() == ["source", "target"]
            assert overlaps(at_the_source.stop().by("source"), told.by("target"))
        assert told.before(failed_s).answers
        assert told.before(failed_s).gaps(lab.rows(taken)) == []
        assert answer.number in lab.rows(taken)
        assert answer.number not in lab.rows(lab.source.root)


def test_power_loss_of_the_source(tmp_path: Path) -> None:
    """SQLite asked for a sync before it said so: whatever was acknowledged is on the disk of the source."""
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.serve(lab.source)
        with lab.client() as client:
            client.first_answer(0)
            time.sleep(LOAD_S)
            failed_s = lab.source.lose_power()
            told = client.stop()
        assert lab.source.host.processes() == []
        assert told.before(failed_s).gaps(lab.rows(lab.target.root)) == []
        lab.source.boot()
        assert lab.source.has(VIRTUAL)
        assert told.lost(lab.rows(lab.source.root)) == []
