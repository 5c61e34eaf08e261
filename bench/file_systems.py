"""What a benchmark of capture compares: the storage itself, and file systems that pass it through.

Each works on a directory of its own, `base/src`, and is mounted beside it, at `base/mnt`.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import harness
from kit.mount import CaptureMount

from replicator.mount_options import DEFAULTS, MountOptions

DOWNLOAD_S = 120.0
MOUNT_S = 20.0


@dataclass(frozen=True)
class FileSystem:
    """One of them, mounted."""

    directory: Path  # where programs work
    below: Path  # the same in the storage
    for_all_users: bool = True
    is_ours: bool = False
    drain: Callable[[], int] = lambda: 0  # takes what was journaled; how many records that was


@contextmanager
def native(base: Path) -> Iterator[FileSystem]:
    source, _ = _directories(base)
    yield FileSystem(source, source)


@contextmanager
def bindfs(base: Path) -> Iterator[FileSystem]:
    """Journals nothing."""
    source, mountpoint = _directories(base)
    with _mounted(["bindfs", "-f", source, mountpoint], mountpoint):
        yield FileSystem(mountpoint, source)


@contextmanager
def example(base: Path, program: Path) -> Iterator[FileSystem]:
    """`passthroughfs.py` of pyfuse3: journals nothing, and shows whoever mounted it only."""
    source, mountpoint = _directories(base)
    with _mounted([sys.executable, program, source, mountpoint], mountpoint):
        yield FileSystem(mountpoint, source, for_all_users=False)


@contextmanager
def ours(base: Path, memory: Path, binding: str, options: MountOptions = DEFAULTS) -> Iterator[FileSystem]:
    """Journals everything, for a reader that is attached."""
    _directories(base)
    memory.mkdir(parents=True)
    settings = {"binding": binding, "memory_directory": str(memory), "options": options}
    mount = CaptureMount(base, beside=True, settings=settings)
    try:
        mount.start().attach()
        yield FileSystem(mount.mountpoint, mount.source, is_ours=True, drain=mount.drain)
        mount.stop(force=True, persist=False)
    finally:
        mount.close()


def _directories(base: Path) -> tuple[Path, Path]:
    source, mountpoint = base / "src", base / "mnt"
    for path in (source, mountpoint):
        path.mkdir(parents=True)
        path.chmod(0o755)
    return source, mountpoint


@contextmanager
def _mounted(command: list[str | Path], mountpoint: Path) -> Iterator[None]:
    with open(mountpoint.with_name("log"), "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        try:
            harness.until(lambda: os.path.ismount(mountpoint) or process.poll() is not None)
        finally:
            if process.poll() is not None:
                raise harness.BenchError(f"{command[0]}: {mountpoint.with_name('log').read_text()[-500:]}")
        yield
    finally:
        subprocess.run(["umount", "-l", mountpoint], capture_output=True, check=False)
        try:
            process.wait(MOUNT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- what is not ours ---


def have_bindfs() -> bool:
    """Install it, for this benchmark only, where it is missing."""
    if shutil.which("bindfs") is None:
        harness.say("installing bindfs, Debian's package: to compare with")
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "bindfs"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, env=environment, capture_output=True, check=False)
    return shutil.which("bindfs") is not None


def download_example(directory: Path) -> Path | None:
    """pyfuse3's own pass-through file system, from the source distribution of the release installed here."""
    release = f"pyfuse3=={importlib.metadata.version('pyfuse3')}"
    options = ["--disable-pip-version-check", "--no-deps", "--no-binary", "pyfuse3"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", directory, release]
    try:
        subprocess.run(command, capture_output=True, timeout=DOWNLOAD_S, check=True)
        (archive,) = directory.glob("*.tar.gz")
        with tarfile.open(archive) as members:
            (name,) = [name for name in members.getnames() if name.endswith("/examples/passthroughfs.py")]
            content = members.extractfile(name)
            assert content is not None
            program = directory / "passthroughfs.py"
            program.write_bytes(content.read())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return program
