"""The process that keeps the descriptors of a killed capture: that it comes up, and ends."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.fs import holder


@pytest.fixture
def stuck() -> Iterator[list[int]]:
    """Process ids of copies that never come up: what the interpreter's lock makes of one now and then."""
    made: list[int] = []
    yield made
    for pid in made:
        with pytest.raises(ProcessLookupError):  # it is gone, and nobody has to wait for it
            os.kill(pid, 0)


def _never(made: list[int]) -> int:
    pid = subprocess.Popen(["sleep", "60"]).pid
    made.append(pid)
    return pid


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_one_that_does_not_come_up_is_replaced(stuck: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    copy = holder._copy
    monkeypatch.setattr(holder, "_BEGIN_S", 0.1)
    monkeypatch.setattr(holder, "_copy", lambda: copy() if len(stuck) == 2 else _never(stuck))
    pid = holder.start()
    try:
        assert len(stuck) == 2 and pid not in stuck
        assert Path(f"/proc/{pid}/comm").read_text() == "capture-holder\n"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_without_any_it_is_an_error(stuck: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "_BEGIN_S", 0.02)
    monkeypatch.setattr(holder, "_TRIES", 3)
    monkeypatch.setattr(holder, "_copy", lambda: _never(stuck))
    with pytest.raises(OSError, match="not kept") as raised:
        holder.start()
    assert raised.value.errno == errno.EAGAIN and len(stuck) == 3


# Threads that compute and ask for the interpreter's lock all the time; then this process is killed.
BUSY = """
import os, signal, threading
from replicator import limits
from replicator.fs import holder
limits.HOLDER_GIVE_UP_S = 0.1
def busy():
    while True:
        sum(range(1000))
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
print(*[holder.start() for _ in range(20)], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_all_end_by_themselves_whatever_threads_there_were() -> None:
    ran = subprocess.run([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True, timeout=60)
    holders = [int(word) for word in ran.stdout.split()]
    assert ran.returncode == -signal.SIGKILL and len(holders) == 20
    until = time.monotonic() + 20
    while alive := [pid for pid in holders if _runs(pid)]:
        assert time.monotonic() < until, f"{alive} wait for ever"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_one_is_ended_by_a_process_with_many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    pid = holder.start()
    try:
        own = os.getpid()
        start = holder.start_time(pid)
        holder.end(holder.Held(pid, start, own, holder.start_time(own), 0, 0, 0, 0))
        assert os.waitpid(pid, os.WNOHANG) == (pid, signal.SIGKILL)
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
