"""What may be mounted where, and the mounting itself.

The decisions are pure functions of a parsed /proc/self/mountinfo. `mount_fuse` mounts by itself rather than
through fusermount, because only so the kernel can be told to leave the umask to us (see `_MS_POSIXACL`).
"""

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from replicator.errors import NotPermittedError, ReplicatorError, UsageError

FSTYPE: Final = "fuse.replicator"

_PSEUDO_TYPES = frozenset(
    {
        "autofs",
        "bdev",
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "cpuset",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "pipefs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sockfs",
        "sysfs",
        "tracefs",
    }
)
_MOUNTINFO = "/proc/self/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")

# A FUSE file system mounted with this flag gets modes as the application gave them, and the umask beside
# them. Without it the kernel applies the umask also where a default ACL must take its place.
_MS_POSIXACL = 1 << 16
_MNT_DETACH = 2
_OPEN_TREE = 428  # the same number on every architecture
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


class MountEntry(NamedTuple):
    """One line of mountinfo, as far as it matters here."""

    point: str
    fstype: str
    source: str
    device: str  # major:minor


class Captured(NamedTuple):
    """A directory under capture and where it is mounted; both absolute and free of links."""

    path: str
    mountpoint: str


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Mounts in the order they were made: of several on one point the last one counts."""
    entries = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, more = before.split(), after.split()
        if len(fields) >= 6 and len(more) >= 2:
            entries.append(MountEntry(_unescape(fields[4]), more[0], _unescape(more[1]), fields[2]))
    return entries


def read_mountinfo() -> list[MountEntry]:
    with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


# --- decisions ---


def is_inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it. Both are absolute and normal."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def mount_at(point: str, mounts: Sequence[MountEntry]) -> MountEntry | None:
    """The mount one sees at exactly this point."""
    return next((entry for entry in reversed(mounts) if entry.point == point), None)


def mount_over(path: str, mounts: Sequence[MountEntry]) -> MountEntry | None:
    """The mount that `path` lies on."""
    best: MountEntry | None = None
    for entry in mounts:
        if is_inside(path, entry.point) and (best is None or len(entry.point) >= len(best.point)):
            best = entry
    return best


def check_mount(
    path: str,
    mountpoint: str,
    mounts: Sequence[MountEntry],
    captured: Iterable[Captured] = (),
    own_directories: Iterable[str] = (),
) -> None:
    """Whether `path` may be captured and mounted at `mountpoint` (both from `resolve`).

    `captured`: what this or another agent has under capture already. `own_directories`: home and queues of
    the agent. Raises UsageError with one line that says what is wrong.
    """
    for directory in (path, mountpoint):
        if directory == "/":
            raise UsageError("the root directory cannot be captured: name the directories that hold data")
    for existing in captured:
        for one in (path, mountpoint):
            for other in (existing.path, existing.mountpoint):
                _refuse_nested(one, other)
    covering = mount_over(path, mounts)
    if covering is not None and covering.fstype == FSTYPE:
        raise UsageError(f"{path} lies inside {covering.point}, which is captured already")
    for directory in (path, mountpoint):
        covering = mount_over(directory, mounts)
        if covering is not None and covering.fstype in _PSEUDO_TYPES:
            raise UsageError(f"{directory} is on a {covering.fstype} file system: no files to protect there")
    for entry in mounts:
        for directory in (path, mountpoint):
            if entry.point != directory and is_inside(entry.point, directory):
                raise UsageError(
                    f"another file system is mounted at {entry.point}, inside {directory}: its content would"
                    " vanish; unmount it or capture directories beside it"
                )
    if path != mountpoint and (is_inside(mountpoint, path) or is_inside(path, mountpoint)):
        raise UsageError(
            f"one of {path} and {mountpoint} is inside the other: mount it at itself or elsewhere"
        )
    for own in own_directories:
        for directory in (path, mountpoint):
            if is_inside(own, directory):
                raise UsageError(
                    f"{directory} contains the agent's own directory {own}: move that elsewhere, or every"
                    " change would cause the next"
                )


def _refuse_nested(one: str, other: str) -> None:
    if one == other:
        raise UsageError(f"{one} is captured already")
    if is_inside(one, other):
        raise UsageError(f"{one} lies inside {other}, which is captured already")
    if is_inside(other, one):
        raise UsageError(f"{one} contains {other}, which is captured already")


# --- effects ---


def resolve(path: str) -> str:
    """The directory's absolute path without links. Raises UsageError if it is none."""
    real = os.path.realpath(path)
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or errno.EIO)}") from None
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is not a directory")
    return real


def clear_stale(mountpoint: str) -> bool:
    """Unmount what a capture that no longer runs has left at `mountpoint`. Whether there was something.

    Raises UsageError if a running capture has it.
    """
    cleared = False
    while True:
        entry = mount_at(mountpoint, read_mountinfo())
        if entry is None or entry.fstype != FSTYPE:
            return cleared
        try:
            os.statvfs(mountpoint)  # is answered by the serving process, never from a cache
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
        else:
            raise UsageError(f"{mountpoint} is captured already, by another process")
        unmount(mountpoint, lazy=True)
        cleared = True


def open_root(path: str) -> int:
    """A descriptor of the directory that stays what it is when something is mounted over it. Raises OSError.

    It is a mount of its own where the kernel can make one, so that even unmounting the original does not take
    it away; else O_PATH.
    """
    descriptor: int = _libc.syscall(
        _OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    )
    if descriptor >= 0:
        return descriptor
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def mount_fuse(source: str, mountpoint: str) -> int:
    """Mount a FUSE file system for all users; returns the descriptor to serve it by. Needs root."""
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotPermittedError(
            f"cannot open /dev/fuse: {os.strerror(error.errno or errno.EIO)}; is the fuse module loaded?"
        ) from None
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    result = _libc.mount(
        os.fsencode(source), os.fsencode(mountpoint), FSTYPE.encode(), _MS_POSIXACL, data.encode()
    )
    if result < 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        if number == errno.EPERM:
            raise NotPermittedError(f"cannot mount {mountpoint}: this needs root")
        raise ReplicatorError(f"cannot mount {mountpoint}: {os.strerror(number)}")
    return descriptor


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """umount2(2). Raises OSError: EBUSY while something is open below, unless `lazy`."""
    if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mountpoint)
