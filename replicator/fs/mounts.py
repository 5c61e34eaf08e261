"""What may be mounted where, and the mounting itself.

The decisions are pure functions of a parsed mountinfo. `mount_fuse` mounts by itself rather than through
fusermount, because only so the kernel can be told to leave the umask to us (see `_MS_POSIXACL`).

A capture that is killed leaves its mount behind, dead: every call there fails with ENOTCONN. That is what
keeps applications from changing the directory below while nobody records it, so the dead mount stays until
its successor is in place. The successor looks below it, and makes its own mount, in a mount namespace that
only one thread sees.
"""

import ctypes
import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from replicator import limits
from replicator.errors import NotPermittedError, ReplicatorError, UsageError

FSTYPE: Final = "fuse.replicator"

LOCK_SOURCE: Final = "replicator-lock"
"""What stands as the source of the empty file system over a locked copy (see `target_lock.py`)."""

T = TypeVar("T")

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
_MOUNTINFO = "/proc/thread-self/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")

# A FUSE file system mounted with this flag gets modes as the application gave them, and the umask beside
# them. Without it the kernel applies the umask also where a default ACL must take its place.
_MS_POSIXACL = 1 << 16
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_CLONE_NEWNS = 0x20000
_OPEN_TREE = 428  # the same number on every architecture
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT = 429
_MOVE_MOUNT_F_EMPTY_PATH = 0x004
_MOVE_MOUNT_BENEATH = 0x200  # since Linux 6.5
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})  # what a mount says whose process has ended

_libc = ctypes.CDLL(None, use_errno=True)


class MountEntry(NamedTuple):
    """One line of mountinfo, as far as it matters here."""

    point: str
    fstype: str
    source: str
    device: str  # major:minor
    id: int
    parent: int  # id of the mount it lies on
    root: str = "/"  # which directory of the file system is seen there
    read_only: bool = False  # this mount, whatever its file system allows


class Captured(NamedTuple):
    """A directory under capture and where it is mounted; both absolute and free of links."""

    path: str
    mountpoint: str


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Mounts in the order of the kernel's list, which is not always the one they lie in on one point."""
    entries = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, more = before.split(), after.split()
        if len(fields) >= 6 and len(more) >= 2:
            point, source = _unescape(fields[4]), _unescape(more[1])
            entries.append(
                MountEntry(
                    point,
                    more[0],
                    source,
                    fields[2],
                    int(fields[0]),
                    int(fields[1]),
                    _unescape(fields[3]),
                    "ro" in fields[5].split(","),
                )
            )
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
    """The mount one sees at exactly this point: of several the one that none of the others lies on."""
    here = [entry for entry in mounts if entry.point == point]
    covered = {entry.parent for entry in here}
    return next((entry for entry in reversed(here) if entry.id not in covered), None)


def mount_over(path: str, mounts: Sequence[MountEntry]) -> MountEntry | None:
    """The mount that `path` lies on."""
    points = {entry.point for entry in mounts if is_inside(path, entry.point)}
    return mount_at(max(points, key=len), mounts) if points else None


def without(mounts: Sequence[MountEntry], layers: Collection[int]) -> list[MountEntry]:
    """What is left if the mounts of these ids are taken away with all that is mounted on them."""
    gone = set(layers)
    size = -1
    while size != len(gone):  # a mount may be listed before the one it lies on
        size = len(gone)
        gone |= {entry.id for entry in mounts if entry.parent in gone}
    return [entry for entry in mounts if entry.id not in gone]


def is_lock(entry: MountEntry, mounts: Iterable[MountEntry]) -> bool:
    """Whether a mount is the lock of a copy: our empty file system, or the very directory that it covers,
    read only. Nothing else tells a bind mount of ours.
    """
    if entry.source == LOCK_SOURCE:
        return entry.fstype == "tmpfs"
    below = next((other for other in mounts if other.id == entry.parent), None)
    if below is None or not entry.read_only or entry.device != below.device:
        return False
    return os.path.normpath(os.path.join(below.root, os.path.relpath(entry.point, below.point))) == entry.root


def lock_at(point: str, mounts: Sequence[MountEntry]) -> MountEntry | None:
    """The lock one sees at exactly this point."""
    entry = mount_at(point, mounts)
    return entry if entry is not None and is_lock(entry, mounts) else None


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
        if covering is not None and is_lock(covering, mounts):
            raise UsageError(
                f"{directory} cannot be captured: {covering.point} is locked, as the copy of a connection is"
            )
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
        if error.errno in _DEAD and _is_capture(mount_at(real, read_mountinfo())):
            return real  # only directories are captured
        raise UsageError(f"{path}: {os.strerror(error.errno or errno.EIO)}") from None
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is not a directory")
    return real


def _is_capture(entry: MountEntry | None) -> bool:
    return entry is not None and entry.fstype == FSTYPE


def dead_layers(mountpoint: str) -> frozenset[int]:
    """Ids of the mounts that captures which no longer run have left at `mountpoint`.

    Raises UsageError if a running capture has it.
    """
    entries = read_mountinfo()
    if not _is_capture(mount_at(mountpoint, entries)):
        return frozenset()
    try:
        os.statvfs(mountpoint)  # is answered by the serving process, never from a cache
    except OSError as error:
        if error.errno not in _DEAD:
            raise
        return frozenset(entry.id for entry in entries if entry.point == mountpoint and _is_capture(entry))
    raise UsageError(f"{mountpoint} is captured already, by another process")


def clear_layers(mountpoint: str, layers: Collection[int]) -> None:
    """Unmount those of the mounts with these ids that nothing else lies on, the newest first.

    Raises OSError.
    """
    while (
        (entry := mount_at(mountpoint, read_mountinfo())) is not None
        and entry.id in layers
        and _is_capture(entry)  # ids are used again
    ):
        take_away(entry)


def take_away(entry: MountEntry) -> None:
    """Unmount this mount, which one sees at its point, lazily. OSError EBUSY if one sees another there."""
    # By descriptor: whoever else unmounts here at the same time must not make us take away the next one.
    descriptor = os.open(entry.point, os.O_PATH | os.O_CLOEXEC)
    try:
        if _mount_id(descriptor) != entry.id:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), entry.point)
        unmount(f"/proc/self/fd/{descriptor}", lazy=True)
    finally:
        os.close(descriptor)


def _mount_id(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def clear_stale(mountpoint: str) -> bool:
    """Unmount what captures that no longer run have left at `mountpoint`. Whether there was something.

    Not for a successor (see `mount_fuse`): the directory below is open to everybody from then on. Raises
    UsageError if a running capture has it, OSError.
    """
    layers = dead_layers(mountpoint)
    clear_layers(mountpoint, layers)
    return bool(layers)


def open_root(path: str, dead: Collection[int] = ()) -> int:
    """A descriptor of the directory that stays what it is when something is mounted over it. Raises OSError.

    It is a mount of its own where the kernel can make one, so that even unmounting the original does not take
    it away; else O_PATH. With `dead` (see `dead_layers`) it is the directory below what captures have left
    there, which stays in place.
    """
    return in_own_namespace(lambda: _open_uncovered(path)) if dead else _open_directory(path)


def _open_directory(path: str) -> int:
    try:
        return _clone(path)
    except OSError:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _open_uncovered(path: str) -> int:
    while _is_capture(mount_at(path, read_mountinfo())):
        unmount(path, lazy=True)
    return _open_directory(path)


def mount_fuse(source: str, mountpoint: str, dead: Collection[int] = ()) -> int:
    """Mount a FUSE file system for all users; returns the descriptor to serve it by. Needs root.

    With `dead` (see `dead_layers`) it takes the place of those mounts at once: at no moment does anybody
    reach the directory below. A kernel that cannot do that (before Linux 6.5) keeps them below the new mount,
    to be removed after it, with `clear_layers`.
    """
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotPermittedError(
            f"cannot open /dev/fuse: {os.strerror(error.errno or errno.EIO)}; is the fuse module loaded?"
        ) from None
    try:
        if dead:
            _replace(source, mountpoint, descriptor, dead)
        else:
            _mount(source, mountpoint, descriptor)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EPERM:
            raise NotPermittedError(f"cannot mount {mountpoint}: this needs root") from None
        raise ReplicatorError(f"cannot mount {mountpoint}: {os.strerror(error.errno or errno.EIO)}") from None
    _read_further_ahead(mountpoint)
    return descriptor


def _read_further_ahead(mountpoint: str) -> None:
    """Let the kernel read ahead as far as one request reaches: its own 128 KiB are meant for disks.

    Where it cannot be set, a sequential reader has half the rate.
    """
    entry = mount_at(mountpoint, read_mountinfo())  # stat(2) would wait for an answer of ours
    if entry is None or entry.fstype != FSTYPE:
        return
    try:
        with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(limits.READAHEAD_BYTES // 1024))
    except OSError:
        pass


def _mount(source: str, mountpoint: str, descriptor: int) -> None:
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(mountpoint), FSTYPE.encode(), _MS_POSIXACL, data.encode()
        ),
        mountpoint,
    )


def _replace(source: str, mountpoint: str, descriptor: int, dead: Collection[int]) -> None:
    """Slip a new mount in below the dead one, then take that away."""

    def make() -> int:
        _mount(source, mountpoint, descriptor)
        return _clone(mountpoint)

    # Made where nobody sees it: mount(2) only mounts on top, and what is already mounted cannot go beneath.
    mount = in_own_namespace(make)
    try:
        try:
            move_mount(mount, mountpoint, _MOVE_MOUNT_BENEATH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            move_mount(mount, mountpoint)
    finally:
        os.close(mount)
    clear_layers(mountpoint, dead)


def move_mount(mount: int, mountpoint: str, flags: int = 0) -> None:
    """Mount what `_clone` or `clone_tree` made. Raises OSError."""
    point, flags = os.fsencode(mountpoint), flags | _MOVE_MOUNT_F_EMPTY_PATH
    _check(_libc.syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, point, flags), mountpoint)


def _clone(path: str) -> int:
    """A mount of its own of what one sees at `path`, without what is mounted below. Raises OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path)


def clone_tree(path: str) -> int:
    """The same with what is mounted below. Raises OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    return _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path)


def in_own_namespace(function: Callable[[], T]) -> T:
    """Call where nobody else sees what is mounted and unmounted; what it opens stays usable everywhere.

    In a thread, as a namespace cannot be left again. Raises what the function raises, and OSError.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _check(_libc.unshare(_CLONE_NEWNS), "unshare")
            # Else an unmount here would be one everywhere.
            _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "/")
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="own-namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """umount2(2). Raises OSError: EBUSY while something is open below, unless `lazy`."""
    _check(_libc.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0), mountpoint)
