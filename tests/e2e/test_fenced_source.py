"""A source that is watched: its mounts obey its leases, it starts fenced, it steps back when superseded.

On hosts of their own: it drops addresses.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from kit.dtd import Agent, running
from kit.hosts import lan
from kit.patience import until

from replicator.child.control import Control
from replicator.failovers import CopyFork, Promotion
from replicator.paths import Home

pytestmark = pytest.mark.e2e

ADDRESS = "10.77.0.100/24"  # by which clients reach the source

WAIT_S = 20.0
LEASE = ("--interval", "1", "--misses", "3")  # 1.8 seconds
LONG_LEASE = ("--interval", "10", "--misses", "3")  # 19.6


class Pair:
    """alpha protects a directory on beta, which watches alpha."""

    def __init__(self, base: Path, alpha: Agent, beta: Agent) -> None:
        self.alpha, self.beta = alpha, beta
        self.source, self.copy = base / "source", base / "copy"
        self.source.mkdir()
        (self.source / "file").write_text("one")
        alpha.json("protect", self.source, f"{beta.address}:{self.copy}", "--wait")

    def watch(self, *options: str) -> None:
        address = ("--address", ADDRESS, "--even-if-silent")
        self.beta.json("failover", "add", self.alpha.address, "--name", "web", *address, *options)
        until(lambda: [g["copies"] for g in self.alpha.json("failover", "guards")] == [[self.uuid]])

    @property
    def uuid(self) -> str:
        return str(self.connection["uuid"])

    @property
    def guard(self) -> dict[str, Any]:
        (found,) = self.alpha.json("failover", "guards")
        return dict(found)

    @property
    def fence(self) -> dict[str, Any]:
        (mount,) = self.alpha.json("mount", "list")
        return dict(mount["fence"] or {})

    @property
    def connection(self) -> dict[str, Any]:
        (found,) = self.alpha.json("status")
        return dict(found)

    def write(self, text: str) -> int:
        """0, or the errno."""
        try:
            # One change, as the fence may close at any moment: an open that truncates would be another.
            file = os.open(self.source / "file", os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.write(file, text.encode())
            finally:
                os.close(file)
        except OSError as error:
            return error.errno or -1
        return 0

    def put_address_up(self) -> None:
        assert self.alpha.host is not None
        self.alpha.host.ip("address", "replace", ADDRESS, "dev", "eth0")

    @property
    def has_address(self) -> bool:
        assert self.alpha.host is not None
        shown = subprocess.run(
            [*self.alpha.host.command, "ip", "address"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return ADDRESS in shown.stdout

    def is_open(self) -> bool:
        return self.write("try") == 0

    def is_read_only(self) -> bool:
        return self.write("try") == errno.EROFS

    def events(self, number: int) -> list[str]:
        return [event["text"] for event in self.alpha.json("events") if event["id"] == number]


@pytest.fixture
def protected(tmp_path: Path) -> Iterator[Pair]:
    with (
        lan("alpha", "beta") as hosts,
        running(tmp_path, "alpha", "beta", hosts=hosts) as (alpha, beta),
    ):
        yield Pair(tmp_path, alpha, beta)


def test_mounts_obey_leases(protected: Pair) -> None:
    alpha, beta = protected.alpha, protected.beta
    protected.watch(*LONG_LEASE, "--lapse", "read-only")
    until(lambda: protected.fence.get("left_s") is not None, what=lambda: protected.guard)
    assert protected.is_open()
    # Agents and captures that are killed and started again change nothing, while leases go on: who is away
    # for longer than one of them is stopped, however long an agent takes to start here.
    capture = alpha.json("mount", "list")[0]["pid"]
    alpha.kill()
    os.kill(capture, 9)
    alpha.start()
    for _ in range(20):
        assert protected.is_open()
        time.sleep(0.1)
    # Nobody grants any more.
    beta.json("failover", "edit", "web", *LEASE, "--even-if-silent")
    until(lambda: protected.guard["lease_s"] < 2, what=lambda: protected.guard)
    beta.kill()
    until(protected.is_read_only)
    assert (protected.source / "file").read_text() == "try"
    until(lambda: protected.events(9350) != [])
    assert protected.fence["mode"] == "read-only" and not protected.fence["is_open"]
    assert not protected.guard["is_open"]
    # Neither does a new agent, or capture, open it.
    alpha.kill()
    assert protected.is_read_only()
    alpha.start()
    os.kill(alpha.json("mount", "list")[0]["pid"], 9)
    until(lambda: (protected.source / "file").exists())
    assert protected.is_read_only()
    beta.start()
    until(protected.is_open)
    # Nobody watches any more.
    beta.json("failover", "remove", "web")
    until(lambda: alpha.json("failover", "guards") == [])
    assert protected.fence == {}
    assert protected.is_open()
    alpha.json("wait", "1")
    assert (protected.copy / "file").read_text() == "try"


def test_a_source_starts_fenced(protected: Pair) -> None:
    alpha, beta = protected.alpha, protected.beta
    protected.watch()
    assert protected.fence == {}  # it need not stop by itself: no cost
    beta.stop()
    alpha.stop()
    assert alpha.dtd("--stop-mounts").code == 0
    alpha.start()
    until(lambda: protected.fence != {}, what=lambda: (alpha.json("events"), protected.guard))
    assert protected.is_read_only()
    assert "has come back" in protected.guard["reason"]
    assert protected.events(9354)
    # A restart of the agent in the middle of it is none of the host.
    alpha.kill()
    alpha.start()
    assert protected.is_read_only()
    refused = alpha.dtctl("failover", "open", "web")
    assert refused.code == 1 and "--even-if-two-masters" in refused.err
    beta.start()
    until(protected.is_open, what=lambda: protected.guard)
    until(lambda: protected.fence == {})


def test_a_synchronous_mount_promises_nothing_without_a_lease(protected: Pair) -> None:
    """Its target is given up after three seconds, when the lease has lapsed: what nobody else has is not told
    to be safe.
    """
    alpha, beta = protected.alpha, protected.beta
    options = ("sync=fsync", "sync_timeout=3", "sync_policy=degrade")
    alpha.json("mount", "set", protected.source, *options)
    until(lambda: protected.connection["synchrony"] == "Synchronous", what=lambda: protected.connection)
    protected.watch(*LEASE, "--lapse", "suspend")
    until(lambda: protected.fence.get("left_s") is not None, what=lambda: protected.guard)
    program = (
        "import os, sys; f = os.open(sys.argv[1], os.O_RDWR); os.write(f, b'x'); os.fsync(f); print('safe')"
    )
    beta.kill_all()
    with subprocess.Popen(
        [sys.executable, "-c", program, protected.source / "file"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: protected.connection["synchrony"] == "Degraded", what=lambda: protected.connection)
            time.sleep(1)
            assert process.poll() is None
            assert not protected.fence["is_open"]
            beta.start()
            assert process.communicate(timeout=WAIT_S)[0] == "safe\n"
        finally:
            process.kill()
    alpha.json("wait", "1")
    assert (protected.copy / "file").read_text().startswith("x")


def promote(protected: Pair) -> Promotion:
    """What a promotion leaves in the receiver of the target."""
    group = protected.beta.json("failover", "list")[0]["uuid"]
    connection = protected.connection["uuid"]
    record = Promotion(
        group=group,
        epoch=1,
        parent_epoch=0,
        owner=protected.beta.uuid,
        owner_name="beta",
        copies=(CopyFork(connection=connection, parent_epoch=0),),
        reason="test",
        time=time.time(),
    )

    async def tell() -> None:
        async with Control(Home(str(protected.beta.home)).socket("receiver", connection)) as control:
            await control.call("shut", 10, group=group)
        async with Control(Home(str(protected.beta.home)).socket("receiver", connection)) as control:
            await control.call("restore_begins", 10, restore=group)
        async with Control(Home(str(protected.beta.home)).socket("receiver", connection)) as control:
            await control.call("promote", 10, record=msgspec.to_builtins(record))

    trio.run(tell)
    return record


def test_a_source_that_is_superseded_steps_back(protected: Pair) -> None:
    alpha = protected.alpha
    protected.watch()
    protected.put_address_up()
    assert protected.is_open()
    promote(protected)
    until(protected.is_read_only, what=lambda: protected.connection)
    until(lambda: protected.events(4018) != [])
    for _ in range(2):
        connection = protected.connection
        assert connection["state"] == "Error" and connection["target_data_state"] == "Restore Required"
        assert "beta has owned this data since" in connection["state_reason"]
        assert "restore required" in alpha.dtctl("status").out
        assert any("beta" in entry["reason"] for entry in alpha.json("story", "1"))
        assert protected.guard["superseded"]["owner_name"] == "beta"
        assert protected.fence["mode"] == "read-only"
        assert alpha.dtctl("transmit", "start", "1").code == 1
        assert protected.is_read_only()
        until(lambda: not protected.has_address)
        protected.put_address_up()
        # A boot, as far as mounts are concerned: it is remembered.
        alpha.stop()
        assert alpha.dtd("--stop-mounts").code == 0
        alpha.start()
    refused = alpha.dtctl("failover", "open", "web")
    assert refused.code == 1
    assert "compare both" in refused.err and "whoever stopped last is not always right" in refused.err
    assert alpha.dtctl("failover", "open", "web", "--even-if-two-masters").code == 0
    assert protected.is_open()
    assert protected.events(9357)
    alpha.kill()
    alpha.start()
    assert protected.is_open()
    assert protected.connection["state"] == "Error"  # and nothing of it is sent
