"""Events of failover in the system's log: FO-16."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.agent.failover import syslog
from replicator.events import Event, Severity

EVENT = Event(1, 0.0, 700000, Severity.ERROR, "monitor web: 10.0.0.5 of alpha does not answer")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "log"))
        found.settimeout(0.1)
        yield found


def test_a_line_as_syslog_writes_it(log: socket.socket, tmp_path: Path) -> None:
    syslog.tell(EVENT, str(tmp_path / "log"))
    assert log.recv(2048).decode() == f"<27>dtd[{os.getpid()}]: 700000 {EVENT.text}"


def test_under_a_service_manager_the_event_log_has_told_it(
    log: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    syslog.tell(EVENT, str(tmp_path / "log"))
    with pytest.raises(TimeoutError):
        log.recv(2048)


def test_a_log_that_is_not_there_or_does_not_listen_stops_nothing(log: socket.socket, tmp_path: Path) -> None:
    syslog.tell(EVENT, str(tmp_path / "none"))
    for _ in range(1000):
        syslog.tell(EVENT, str(tmp_path / "log"))
