"""A process that keeps the descriptors of a killed one open, for its successor to take.

It shares the table of descriptors (clone(2) with CLONE_FILES) and does nothing but sleep: so it holds, at any
moment and at no cost per operation, exactly what the capture has open, /dev/fuse and files without name among
it. When the capture is killed, the kernel keeps the requests of applications instead of failing them, and the
successor takes each descriptor at the number it had, which is the number the kernel knows a handle by.

It does not wait for ever: if the capture has ended and no successor has come (no agent runs that would start
one), it ends as well, so that applications get an error in the end.

Its memory is what the capture had touched when it was made, shared with it as long as neither changes it.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import stat
import time
from dataclasses import asdict, dataclass
from functools import cache

from replicator import limits
from replicator.fs import calls

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter lock over clone(2): one thread in both
_PIDFD_GETFD = 438  # the same number on every architecture
_PR_SET_NAME = 15
_NAME = b"capture-holder"
_POLLIN = 1
_poll = _libc.poll
_exit = _libc._exit
_BEGIN_S = 0.5  # for a holder to come up
_TRIES = 20
_END_S = 5.0  # for a killed holder to be gone


class HolderError(Exception):
    """There is none, or it does not hold what it should."""


@dataclass(frozen=True)
class Held:
    """What is written down for a successor."""

    pid: int
    started: str  # start time in clock ticks since boot: tells it from another process of the same id
    owner: int  # process id of the capture, and its start time
    owner_started: str
    fuse: int  # the descriptor's number, in its table
    root: int
    minor: int  # what was agreed with the kernel
    flags: int


def start() -> int:
    """A holder of this process's descriptors, now and later; its process id. Raises OSError.

    It is a copy of the calling thread alone, so what it does is limited to sleeping. If another thread had
    just asked for the interpreter lock, the copy waits for ever for a thread that it does not have to take
    it (CPython's drop_gil), before it does anything: that one is no good, and another is made.
    """
    for _ in range(_TRIES):
        pid = _copy()
        if _sleeps(pid):
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise OSError(
        errno.EAGAIN, "no holder of descriptors comes up: they are not kept if this process is killed"
    )


def _copy() -> int:
    title = _Title()
    owner = _Poll(_pidfd(os.getpid()), _POLLIN, 0)
    pid = calls.clone(calls.CLONE_FILES)
    if pid == 0:
        title.set()
        _sleep(owner)
    return pid


def _sleeps(pid: int) -> bool:
    """Whether it has come as far as to sleep, in time: it takes its name last."""
    until = time.monotonic() + _BEGIN_S
    while time.monotonic() < until:
        with open(f"/proc/{pid}/comm", "rb") as file:
            if file.read().rstrip() == _NAME:
                return True
        time.sleep(0.001)
    return False


class _Title:
    """The memory where ps(1) finds a command line: the holder must not look like the capture it was."""

    def __init__(self) -> None:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        self._start, self._end = int(fields[45]), int(fields[46])
        with open("/proc/self/cmdline", "rb") as command:
            self._text = _NAME + b"\0of\0" + command.read().rstrip(b"\0").rpartition(b"\0")[2] + b"\0"

    def set(self) -> None:
        length = self._end - self._start
        if self._start and length > 0:
            ctypes.memmove(self._start, self._text[: length - 1].ljust(length, b"\0"), length)


@cache
def _pidfd(pid: int) -> int:
    """Of this process: stays open, for every holder it will have."""
    return os.pidfd_open(pid)


class _Poll(ctypes.Structure):
    """struct pollfd"""

    _fields_ = (("descriptor", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def _sleep(owner: _Poll) -> None:
    """In the holder, until nobody has come for `limits.HOLDER_GIVE_UP_S` after its owner's end.

    Nothing may be closed or opened here: the table is the capture's.
    """
    _libc.setsid()
    everything = ctypes.create_string_buffer(b"\xff" * 128, 128)
    _libc.sigprocmask(signal.SIG_SETMASK, everything, None)  # but SIGKILL, which nobody can block
    _libc.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)  # last: `start` waits for it
    while not owner.revents & _POLLIN:
        _poll(ctypes.byref(owner), 1, -1)
    _poll(None, 0, int(limits.HOLDER_GIVE_UP_S * 1000))
    _exit(0)


def start_time(pid: int) -> str:
    """Raises OSError: no such process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[19]


def note(path: str, held: Held) -> None:
    """Write down where a successor finds everything. Raises OSError."""
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump(asdict(held), file)
    os.replace(f"{path}.new", path)


def find(path: str) -> Held | None:
    """What a capture noted, if its holder lives."""
    try:
        with open(path, encoding="ascii") as file:
            held = Held(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    return held if _lives(held.pid, held.started) else None


def is_owned(held: Held) -> bool:
    """Whether the capture itself still runs: then nobody is to take anything."""
    return _lives(held.owner, held.owner_started)


def _lives(pid: int, started: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == started and fields[0] not in "ZX"  # one that has ended may not be reaped yet


def end(held: Held) -> None:
    """The holder's part is over. What nobody else has open is closed when this returns."""
    try:
        descriptor = os.pidfd_open(held.pid)
    except OSError:
        return
    try:
        if start_time(held.pid) == held.started:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended = select.poll()  # select(2) takes no number above 1,023
            ended.register(descriptor, select.POLLIN)
            ended.poll(_END_S * 1000)
    except OSError:
        pass
    finally:
        os.close(descriptor)


# --- taking over ---


@dataclass(frozen=True)
class Descriptors:
    """What a successor has taken: all at the numbers they had."""

    fuse: int
    root: int
    files: dict[int, int]  # open files: number -> flags of open(2)
    directories: list[int]  # open for reading
    pinned: dict[tuple[int, int], int]  # O_PATH: (inode, device) -> number


def take(held: Held) -> Descriptors:
    """Take a killed predecessor's descriptors. Call before anything else is opened: numbers must be free.

    Raises HolderError; what was taken is then closed again.
    """
    taken: list[int] = []
    try:
        pidfd = os.pidfd_open(held.pid)
    except OSError as error:
        raise HolderError(f"the holder has ended: {error}") from None
    try:
        pidfd = _move_away(pidfd)
        mount = _information(held.pid, held.root)[1]
        numbers = [int(name) for name in os.listdir(f"/proc/{held.pid}/fd")]
        files: dict[int, int] = {}
        directories: list[int] = []
        pinned: dict[tuple[int, int], int] = {}
        for number in sorted(numbers):
            flags, mount_id = _information(held.pid, number)
            if number not in (held.fuse, held.root) and mount_id != mount:
                continue  # the predecessor's own: journal, sockets
            _take_one(pidfd, number)
            taken.append(number)
            if number in (held.fuse, held.root):
                continue
            state = os.fstat(number)
            if flags & os.O_PATH:
                if (state.st_ino, state.st_dev) in pinned:
                    os.close(number)
                    taken.remove(number)
                else:
                    pinned[state.st_ino, state.st_dev] = number
            elif stat.S_ISDIR(state.st_mode):
                directories.append(number)
            else:
                files[number] = flags
        return Descriptors(held.fuse, held.root, files, directories, pinned)
    except (OSError, ValueError, HolderError) as error:
        for number in taken:
            os.close(number)
        raise HolderError(f"cannot take a predecessor's descriptors: {error}") from None
    finally:
        os.close(pidfd)


def _move_away(descriptor: int) -> int:
    """The same at a number that no handle has."""
    moved = _fcntl_dupfd(descriptor, 1 << 16)
    os.close(descriptor)
    return moved


def _fcntl_dupfd(descriptor: int, at_least: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, min(at_least, soft - 1))


def _information(pid: int, number: int) -> tuple[int, int]:
    """(flags, mount id) of a descriptor of a process."""
    flags = mount = 0
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
        for line in file:
            if line.startswith("flags:"):
                flags = int(line.split()[1], 8)
            elif line.startswith("mnt_id:"):
                mount = int(line.split()[1])
    return flags, mount


def _take_one(pidfd: int, number: int) -> None:
    copy: int = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if copy == number:
        os.set_inheritable(copy, False)
        return
    try:
        os.fstat(number)
    except OSError:
        os.dup2(copy, number, inheritable=False)
        os.close(copy)
    else:
        os.close(copy)
        raise HolderError(f"descriptor {number} is in use already")
