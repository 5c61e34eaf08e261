"""A disk whose power can be cut: an ext4 file system in a file, of which copies are made at one moment.

The file lies on XFS, which copies a file in use by sharing its blocks: what the kernel has handed to the disk
by then is in the copy, all else is lost. So it is when a host stops at that moment.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST_BYTES = 1 << 30
DISK_BYTES = 256 << 20


class NoDisk(Exception):
    """Not possible on this machine."""


class Disk:
    """Mounted at `mountpoint`."""

    def __init__(self, directory: Path, mountpoint: Path) -> None:
        """Raises NoDisk."""
        self.mountpoint = mountpoint
        self._host = directory / "host"
        self._copies = 0
        for path in (self._host, mountpoint):
            path.mkdir()
        image = directory / "host.img"
        with open(image, "wb") as file:
            file.truncate(HOST_BYTES)
        _run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", image)
        _run("mount", "-o", "loop", image, self._host)
        self._image = self._host / "disk-0"
        with open(self._image, "wb") as file:
            file.truncate(DISK_BYTES)
        try:
            _run("mkfs.ext4", "-q", "-F", "-b", "4096", self._image)  # as large disks have
            self._mount()
        except BaseException:
            self.close()
            raise

    def _mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self.mountpoint)

    def copy(self) -> Path:
        """What is on the disk at this moment."""
        self._copies += 1
        copy = self._host / f"disk-{self._copies}"
        _run("cp", "--reflink=always", self._image, copy)
        return copy

    @contextmanager
    def as_after_a_cut(self, point: Path) -> Iterator[Path]:
        """What is there after a loss of power at this moment, mounted at `point`. Nobody notices."""
        copy = self.copy()
        point.mkdir()
        _run("mount", "-o", "loop", copy, point)
        try:
            yield point
        finally:
            self._unmount(point)
            point.rmdir()
            copy.unlink()

    def replace(self, copy: Path) -> None:
        """The host comes up with this disk. Nobody uses the former one any more."""
        self._unmount(self.mountpoint)
        self._image.unlink()
        self._image = copy
        self._mount()

    def _unmount(self, point: Path) -> None:
        while subprocess.run(["umount", "-l", point], capture_output=True, check=False).returncode == 0:
            pass

    def close(self) -> None:
        self._unmount(self.mountpoint)
        self._unmount(self._host)


def _run(*command: str | Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoDisk(str(error)) from error
    if done.returncode:
        raise NoDisk(f"{command[0]}: {done.stderr.strip()}")
