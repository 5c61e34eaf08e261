"""A disk whose host can lose power: ext4 on a loop device.

    with power_disk(tmp_path / "disk") as disk:
        ...                       # work in disk.path; end everything that has it open
        disk.lose_power()         # what was not synced may be gone

The file system is shut down first (EXT4_IOC_SHUTDOWN, as xfstests do it): from that moment on nothing reaches
the device, neither data nor what is left of the journal. Then a copy of the device is mounted in its place.
"""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXT4_IOC_SHUTDOWN = 0x8004587D  # linux/fs/ext4/ext4.h: _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_TIMEOUT_S = 60
SIZE_BYTES = 1 << 30


class PowerDisk:
    """Use `power_disk`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._image = path.with_name(f"{path.name}.image")

    def create(self, size_bytes: int) -> None:
        self.path.mkdir()
        with open(self._image, "xb") as image:
            os.truncate(image.fileno(), size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", self._image)
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self.path)

    def unmount(self) -> None:
        _run("umount", self.path)

    def cut_power(self) -> None:
        """From here on every call fails, and nothing reaches the device."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def boot(self) -> None:
        """What the device had is there again. Nobody has the former one open any more."""
        left = self._image.with_suffix(".left")
        _run("cp", "--sparse=always", self._image, left)
        self.unmount()
        left.replace(self._image)
        self.mount()

    @property
    def free_bytes(self) -> int:
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, timeout=_TIMEOUT_S, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def power_disk(path: Path, size_bytes: int = SIZE_BYTES) -> Iterator[PowerDisk]:
    """Mounted at `path`, which is made; gone afterwards."""
    disk = PowerDisk(path)
    disk.create(size_bytes)
    try:
        yield disk
    finally:
        _run("umount", "-l", path)
