"""Whether idle processors are kept awake exactly while requests come fast."""

import os
import time
from pathlib import Path

import pytest

from replicator import limits
from replicator.fs.awake import Awake, is_worthwhile


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "cpu_dma_latency"
    path.write_bytes(b"")
    return path


def open_times(device: Path) -> int:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link) == str(device) for link in links)


def burst(awake: Awake) -> None:
    for _ in range(2 * limits.AWAKE_REQUESTS):
        awake.served()


def test_processors_stay_awake_from_a_burst_of_requests_to_the_end_of_it(device: Path) -> None:
    awake = Awake(path=str(device))
    awake.served()
    assert open_times(device) == 0
    assert awake.timeout_ms is None
    burst(awake)
    assert open_times(device) == 1
    assert device.read_bytes() == bytes(4)
    assert awake.timeout_ms == limits.AWAKE_MS
    burst(awake)
    assert open_times(device) == 1
    awake.release()
    assert open_times(device) == 0
    assert awake.timeout_ms is None
    burst(awake)
    assert open_times(device) == 1
    awake.release()


def test_requests_that_come_slowly_do_not_keep_them_awake(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    awake = Awake(path=str(device))
    pause = 1.1 * limits.AWAKE_MS / 1000 / limits.AWAKE_REQUESTS
    for _ in range(10 * limits.AWAKE_REQUESTS):
        now += pause
        awake.served()
        assert open_times(device) == 0
    burst(awake)
    assert open_times(device) == 1
    for _ in range(2 * limits.AWAKE_REQUESTS):
        now += pause
        awake.served()
    assert open_times(device) == 0


def test_what_cannot_be_had_or_is_not_wanted_is_done_without(tmp_path: Path, device: Path) -> None:
    awake = Awake(path=str(tmp_path / "missing"))
    burst(awake)
    assert awake.timeout_ms is None
    awake = Awake(wanted=False, path=str(device))
    burst(awake)
    assert open_times(device) == 0


def test_hosts_with_many_processors_are_spared_unless_told_otherwise() -> None:
    assert is_worthwhile("auto", 2)
    assert not is_worthwhile("auto", limits.AWAKE_PROCESSORS + 1)
    assert is_worthwhile("poll", 512)
    assert not is_worthwhile("sleep", 2)
