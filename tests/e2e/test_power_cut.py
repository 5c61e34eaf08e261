"""The source's host loses power at random moments, with everything on its disk: whichever side was ahead,
both are equal afterwards, and only what was hot was compared.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from kit import dtd, leftovers
from kit.campaign import amount
from kit.patience import until
from kit.power_cut import Disk, NoDisk
from kit.protected import Protected
from kit.snapshots import frozen
from kit.writers import writing

from replicator.child.control import Control
from replicator.paths import Home

pytestmark = pytest.mark.e2e

DIRECTORIES, FILES = 30, 50
HOT_ENTRIES = 200  # then the churn begins anew


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Protected, Disk]]:
    """The source and its agent's home lie on the disk."""
    try:
        disk = Disk(tmp_path, tmp_path / "disk")
    except NoDisk as error:
        pytest.skip(str(error))
    alpha, beta = dtd.Agent(disk.mountpoint / "alpha", "alpha"), dtd.Agent(tmp_path / "beta", "beta")
    try:
        for agent in (alpha, beta):
            agent.start()
        pair = Protected(tmp_path, alpha, beta)
        pair.source = disk.mountpoint / "source"
        pair.source.mkdir()
        for directory in range(DIRECTORIES):
            (pair.source / f"d{directory}").mkdir()
            for file in range(FILES):
                (pair.source / f"d{directory}" / f"f{file}").write_bytes(b"%d" % file * 500)
        pair.connect()
        yield pair, disk
    finally:
        for agent in (alpha, beta):
            agent.close()
        disk.close()


def capture_status(pair: Protected) -> dict[str, Any]:
    async def ask() -> Any:
        async with Control(Home(str(pair.alpha.home)).socket("capture", pair.mount_id)) as capture:
            return await capture.call("status")

    status: dict[str, Any] = trio.run(ask)
    return status


def become_cold(pair: Protected) -> None:
    pair.drained()
    until(lambda: not capture_status(pair)["hot"], timeout_s=60)


def cut_power(pair: Protected, disk: Disk, writer: int | None = None, pause_s: float = 0) -> None:
    """What the disk has at this moment is all that is left of the source's host, and it comes up again.

    `writer` (a process) goes on for `pause_s` after the last that the target gets. What it did last is noted
    when the power goes: the moment that the activity log does not cover (FORMAT.md) is left out.
    """
    with frozen(pair.status["sender_pid"]):
        if writer is not None:
            time.sleep(pause_s)
            os.kill(writer, signal.SIGSTOP)
            until(lambda: capture_status(pair)["covered"])
        copy = disk.copy()
        home = pair.alpha.home
        with leftovers.held(home) as processes:
            pair.alpha.kill()
            processes.send(signal.SIGKILL)
            until(processes.have_ended)
    until(lambda: not leftovers.processes_of_home(pair.alpha.home))
    for point in leftovers.mounts_below(disk.mountpoint):
        os.system(f"umount -l {point}")
    leftovers.remove_memory_directories(home)
    disk.replace(copy)
    pair.alpha.start()
    until(lambda: pair.status["state"] == "Started")


def churned(pair: Protected, disk: Disk, root: Path, count: int, seed: int) -> None:
    chance, hot = random.Random(seed), pair.source / "hot"
    become_cold(pair)
    for number in range(count):
        with writing(root / f"out{number}", ("kit.churn", hot, str(seed + number))) as (writer,):
            time.sleep(chance.uniform(0.2, 4))
            cut_power(pair, disk, writer.pid, chance.uniform(0, 0.1))
        pair.assert_equal()
        mirror = pair.status["mirror"]
        assert pair.status["target_data_state"] == "OK"
        # What the churn has, more than once where directories were moved; everything is 1,500 and more.
        assert mirror["done_files"] < 1000, mirror
        assert not hot.exists() or mirror["kind"], "nothing was compared"
        if sum(1 for _ in hot.rglob("*")) > HOT_ENTRIES:
            shutil.rmtree(hot)
            become_cold(pair)


@pytest.mark.timeout_s(240)
def test_power_cuts(pair: tuple[Protected, Disk], tmp_path: Path) -> None:
    churned(*pair, tmp_path, 3, 1)


@pytest.mark.soak
@pytest.mark.timeout_s(3600)
def test_many_power_cuts(pair: tuple[Protected, Disk], tmp_path: Path) -> None:
    churned(*pair, tmp_path, amount("POWER_CUTS", 20), int(time.time()))


def test_nothing_is_compared_of_an_idle_set(pair: tuple[Protected, Disk]) -> None:
    (pair[0].source / "d0" / "f0").write_bytes(b"changed once")
    become_cold(pair[0])
    cut_power(*pair)
    pair[0].assert_equal()
    assert pair[0].status["sent_mirror_bytes"] == 0
    assert pair[0].status["mirror"]["kind"] == ""
