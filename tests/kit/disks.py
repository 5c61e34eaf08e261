"""Disks that are small, and what fills them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator.limits import MIB


def write(path: Path, size_bytes: int) -> None:
    """Content that differs in every page, as fast as it goes; an application's error is the test's."""
    block = bytearray(os.urandom(MIB))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for number in range(size_bytes // MIB):
            block[:8] = number.to_bytes(8, "big")
            assert os.write(descriptor, block) == MIB
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "test-disk", directory], check=True, timeout=20
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=20)


def resize(directory: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True, timeout=20)


@contextmanager
def ext4(directory: Path, size_mib: int) -> Iterator[None]:
    """A disk of its own, with a real file system."""
    with _made(directory, size_mib, ["mkfs.ext4", "-q", "-m", "0"]):
        yield


@contextmanager
def xfs(directory: Path, size_mib: int = 320) -> Iterator[None]:
    """The same, of files that can share blocks. At least 300 MiB."""
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs (Debian: xfsprogs)")
    with _made(directory, size_mib, ["mkfs.xfs", "-q", "-m", "reflink=1"]):
        yield


@contextmanager
def _made(directory: Path, size_mib: int, command: list[str]) -> Iterator[None]:
    image = directory.with_suffix(".image")
    with open(image, "wb") as file:
        file.truncate(size_mib * MIB)
    subprocess.run([*command, image], check=True, timeout=30)
    directory.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", image, directory], capture_output=True, timeout=30)
    if mounted.returncode:
        pytest.skip(f"no loop device: {mounted.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=30)
