"""Trees of a size that capture must not feel: millions of objects, one directory with a million names."""

import os
import resource
import subprocess
import threading
import time
from pathlib import Path

import pytest
from kit.mount import CaptureMount

pytestmark = [pytest.mark.fs, pytest.mark.soak, pytest.mark.timeout_s(1500)]

MIB = 1 << 20
MILLION = 1_000_000
CAPTURE_MIB_MAX = 300  # of both: what it takes at its peak
WAIT_MAX_S = 0.5  # for a small request beside large ones, on a machine that does other things, too


def peak_bytes(mount: CaptureMount) -> int:
    assert mount.process is not None
    for line in Path(f"/proc/{mount.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such line")


def fill(directory: Path, names: int) -> None:
    """Empty files, made in the storage below before there is a mount."""
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        for number in range(names):
            os.mknod(b"name-%07d" % number, 0o100644, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def counted(*command: str | Path) -> int:
    """Lines a program prints."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: process.stdout.read(MIB), b""))  # type: ignore[union-attr]
        assert process.wait() == 0
        return lines


class Others:
    """Small requests meanwhile, in a thread; how long the longest took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._going = True
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while self._going:
            number += 1
            started = time.monotonic()
            self._path.write_bytes(b"%d" % number)
            os.unlink(self._path)
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            time.sleep(0.01)

    def __enter__(self) -> "Others":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()


def test_a_directory_with_a_million_names(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})
    try:
        fill(mount.source / "d", MILLION)
        mount.start()
        before = peak_bytes(mount)
        directory = mount.mountpoint / "d"
        with Others(mount.mountpoint / "f") as others:
            assert counted("ls", "-f", directory) == MILLION + 2
            assert counted("find", directory, "-size", "0", "-type", "f") == MILLION
        print(f"longest {others.longest_s:.3f} s, {before >> 20} MiB grew to {peak_bytes(mount) >> 20}")
        assert others.longest_s < WAIT_MAX_S
        assert peak_bytes(mount) < CAPTURE_MIB_MAX * MIB
        os.rename(directory / "name-0999999", directory / "last")
        assert (directory / "last").exists()
        assert mount.stop() == 0
    finally:
        mount.close()


def test_two_million_objects_and_4096_descriptors(tmp_path: Path) -> None:
    mount = CaptureMount(tmp_path, settings={"binding": "kernel"})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        directories = 20_000  # five times as many as descriptors
        for number in range(directories):
            if number % 100 == 0:
                (mount.source / f"tree/{number // 100}").mkdir(parents=True)
            fill(mount.source / f"tree/{number // 100}/{number}", 99)
        mount.spawn()
        assert mount.process is not None
        resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        mount.wait()
        with Others(mount.mountpoint / "f") as others:
            found = counted("find", mount.mountpoint / "tree", "-mindepth", "1", "-newermt", "1971-01-01")
            assert found == 100 * directories + 200
        print(f"longest {others.longest_s:.3f} s, peak {peak_bytes(mount) >> 20} MiB")
        assert peak_bytes(mount) < CAPTURE_MIB_MAX * MIB
        assert others.longest_s < WAIT_MAX_S
        assert mount.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        mount.close()
