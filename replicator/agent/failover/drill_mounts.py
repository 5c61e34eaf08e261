"""What the room of a drill sees of its host: everything that is storage, with changes going elsewhere."""

import ctypes
import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from replicator import limits
from replicator.agent.failover.drill_order import Changes
from replicator.fs import mounts, target_lock

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8  # MS_*, see mount(2)
REMOUNT, BIND, MOVE, REC, PRIVATE = 32, 1 << 12, 1 << 13, 1 << 14, 1 << 18
_STORAGE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "overlay"})
_NOT_SEEN = ("/proc", "/sys", "/dev", "/run")  # the room has its own
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_RUN_DEPTH = 2
_NOT_IN_RUN = frozenset({"systemd", "dbus", "user", "docker", "containerd", "lock", "udev"})
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, point: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). OSError."""
    kind, options = fstype.encode() or None, data.encode() or None
    if _libc.mount(os.fsencode(source), os.fsencode(point), kind, flags, options) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)


def overlay(lower: int, upper: int, work: int, point: str) -> None:
    """What is at `lower`, with changes going to `upper`; all by descriptor, so no path has to be escaped.

    The root looks like that of `lower`: overlayfs takes its attributes from the upper one. `volatile`: nobody
    needs the changes after a power cut. `redirect_dir`: directories can be renamed. `metacopy`: a change of
    attributes alone copies no content. OSError.
    """
    _make_alike(lower, upper)
    layers = {"lowerdir": lower, "upperdir": upper, "workdir": work}
    plain = ",".join(f"{name}=/proc/self/fd/{fd}" for name, fd in layers.items())
    try:
        mount("drill", point, "overlay", data=f"{plain},volatile,redirect_dir=on,metacopy=on")
    except OSError:  # an older kernel, or file systems that cannot have all of that
        mount("drill", point, "overlay", data=plain)


def _make_alike(lower: int, upper: int) -> None:
    state = os.stat(lower)
    for name in os.listxattr(f"/proc/self/fd/{lower}"):
        if not name.startswith("trusted.overlay."):
            os.setxattr(upper, name, os.getxattr(f"/proc/self/fd/{lower}", name))
    os.fchown(upper, state.st_uid, state.st_gid)
    os.fchmod(upper, stat.S_IMODE(state.st_mode))
    os.utime(upper, ns=(state.st_atime_ns, state.st_mtime_ns))


def new_layers(base: int, of: str) -> tuple[int, int]:
    """Upper and work directory of an overlay, in the directory `base`."""
    found = []
    for kind in ("changes", "work"):
        name = f"{kind}-{of}"
        os.mkdir(name, 0o755, dir_fd=base)
        found.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base))
    return found[0], found[1]


def uncover(copy: str) -> None:
    """Take locks and captures away from a copy, in this namespace: the storage is below. OSError."""
    for place in target_lock.places([copy]):
        while True:
            entries = mounts.read_mountinfo()
            entry = mounts.mount_at(place, entries)
            if entry is None or not (entry.fstype == mounts.FSTYPE or mounts.is_lock(entry, entries)):
                break
            mounts.take_away(entry)


class Storage(NamedTuple):
    """A mount of this host: where it is, and a descriptor of what is seen there."""

    point: str
    descriptor: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(os.stat(self.descriptor).st_mode)


def storage() -> list[Storage]:
    """What the room sees, the root first, each mount after the one it lies on."""
    entries = mounts.read_mountinfo()
    found = []
    for point in sorted({entry.point for entry in entries}, key=lambda p: (p != "/", p.count("/"), p)):
        entry = mounts.mount_at(point, entries)
        if entry is None or entry.fstype not in _STORAGE or mounts.is_lock(entry, entries):
            continue
        if any(mounts.is_inside(point, other) for other in _NOT_SEEN):
            continue
        try:
            found.append(Storage(point, os.open(point, os.O_PATH | os.O_CLOEXEC)))
        except OSError:
            continue  # something lies over it
    return found


def show(seen: Storage, layers: int, number: int) -> None:
    """One more mount of this host, in its place. A single file (as containers mount them), and what no
    overlay can lie over, is there to be read. OSError.
    """
    if seen.is_directory:
        try:
            overlay(seen.descriptor, *new_layers(layers, str(number)), seen.point)
            return
        except OSError:
            pass
    mount(f"/proc/self/fd/{seen.descriptor}", seen.point, flags=BIND)
    mount("none", seen.point, flags=BIND | REMOUNT | RDONLY)


class RunDirectory(NamedTuple):
    path: str
    mode: int
    uid: int
    gid: int


def run_directories(top: str = "/run") -> list[RunDirectory]:
    """The directories in /run that services expect, and none of what is in them: by the sockets there one
    would reach the services of this host.
    """
    found = []
    levels = [top]
    for _ in range(_RUN_DEPTH):
        levels = [path for level in levels for path in _directories(level)]
        for path in levels:
            state = os.lstat(path)
            found.append(RunDirectory(path, stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid))
    return found


def _directories(path: str) -> Iterator[str]:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and entry.name not in _NOT_IN_RUN:
                    yield entry.path
    except OSError:
        return


def make_run(directories: list[RunDirectory]) -> None:
    mount("drill", "/run", "tmpfs", NOSUID | NODEV, f"mode=755,size={limits.DRILL_HOST_BYTES}")
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)
    for path, mode, uid, gid in directories:
        os.mkdir(path)
        os.chown(path, uid, gid)
        os.chmod(path, mode)


def make_devices() -> None:
    """No disks, and nothing else of this host."""
    mount("drill", "/dev", "tmpfs", NOSUID, "mode=755,size=64k,nr_inodes=100")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"/dev/{name}", 0o666)
    os.mkdir("/dev/pts")
    os.mkdir("/dev/shm")
    mount("drill", "/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.symlink("/proc/self/fd", "/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    mount("drill", "/dev/shm", "tmpfs", NOSUID | NODEV, f"mode=1777,size={limits.DRILL_HOST_BYTES}")
    try:
        mount("sysfs", "/sys", "sysfs", RDONLY | NOSUID | NODEV | NOEXEC)
    except OSError:
        pass  # a container that may not: few services look there


def copied(copy: int, to: int) -> None:
    """All of a copy, in `to`; without its content where the file system shares that (reflinks). OSError."""
    source, target = f"/proc/self/fd/{copy}/.", f"/proc/self/fd/{to}/."
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "-T", source, target],
        pass_fds=(copy, to),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(errno.EIO, f"the copy cannot be copied: {' '.join(done.stderr.split())}")


def changes_of(layers: list[int]) -> Changes:
    """What is in the upper layers of overlays. A removed name is a character device 0/0 there."""
    files = data_bytes = removed = 0
    for layer in layers:
        for _, directories, names, at in os.fwalk(".", dir_fd=layer):
            for name in [*directories, *names]:
                try:
                    state = os.stat(name, dir_fd=at, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # services still run
                if stat.S_ISCHR(state.st_mode) and state.st_rdev == 0:
                    removed += 1
                elif not stat.S_ISDIR(state.st_mode):
                    files += 1
                    data_bytes += state.st_blocks * 512
    return Changes(files=files, data_bytes=data_bytes, removed=removed)
