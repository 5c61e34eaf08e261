"""Hosts that are overloaded are no hosts that have failed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import machine
from kit.dtd import running
from kit.hosts import lan

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not machine.is_root(), reason="network namespaces need root"),
]

OVERLOAD_S = float(os.environ.get("SOAK_OVERLOAD_S", "1800"))
LOOK_S = 5.0
HOGS_PER_PROCESSOR = 8
WRITERS = 4
_WRITER = """
import os, sys
while True:
    with open(sys.argv[1], "wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
"""


@contextmanager
def overload(directory: Path) -> Iterator[None]:
    """More programs want the processors than there are, and others keep the disk of the homes busy."""
    hog = [sys.executable, "-c", "while True: pass"]
    commands = [hog] * (HOGS_PER_PROCESSOR * (os.cpu_count() or 1))
    commands += [[sys.executable, "-c", _WRITER, str(directory / f"load{n}")] for n in range(WRITERS)]
    processes = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(60)


@pytest.mark.timeout_s(OVERLOAD_S + 600)
def test_overload_of_both_hosts_is_no_failure(tmp_path: Path) -> None:
    """With defaults, and beside it with the shortest countdown that is advised (1 s × 3)."""
    with (
        lan("alpha", "gamma", "beta") as hosts,
        running(tmp_path, "alpha", "gamma", "beta", hosts=hosts) as (alpha, gamma, beta),
    ):
        for name, agent, timing in (
            ("defaults", alpha, ()),
            ("short", gamma, ("--interval", "1", "--misses", "3")),
        ):
            assert agent.host is not None
            where = ("--address", f"{agent.host.address}/24")
            beta.json("failover", "add", agent.address, "--name", name, *where, *timing)
        lowest: dict[str, float] = {}
        with overload(tmp_path):
            end_s = time.monotonic() + OVERLOAD_S
            while time.monotonic() < end_s:
                time.sleep(LOOK_S)
                for monitor in beta.json("failover", "list"):
                    (address,) = monitor["addresses"]
                    part = address["remaining_s"] / address["timeout_s"]
                    lowest[monitor["name"]] = min(part, lowest.get(monitor["name"], 1.0))
                    assert monitor["phase"] == "watching", monitor
        told = [entry["what"] for entry in beta.json("failover", "history", "defaults")]
        assert told == ["added"]
        short = [entry["what"] for entry in beta.json("failover", "history", "short")]
        shown = ", ".join(f"{name} {part:.0%}" for name, part in lowest.items())
        print(f"\n{OVERLOAD_S:.0f} s: lowest part of the countdown that was seen: {shown}; short: {short}")
        assert short == ["added"]
