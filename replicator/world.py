"""What the core gets from outside: clock, disk, shared memory, doorbells, randomness, threads, network.

The simulator runs whole agents on trio's MockClock with an in-memory network and a fault-injecting disk, so
nothing in sender, receiver, journal or mirror calls time.time(), open(), random or a thread by itself.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from random import Random
from typing import Protocol, TypeVar
from zoneinfo import ZoneInfo

import trio

T = TypeVar("T")


class Disk(Protocol):
    """Files of a journal or a state directory. Synchronous; errors are OSError. Paths are str."""

    def makedirs(self, path: str) -> None:
        """Make what is missing of it, for the owner only."""
        ...

    def listdir(self, path: str) -> list[str]: ...
    def exists(self, path: str) -> bool: ...
    def size(self, path: str) -> int: ...
    def open_append(self, path: str) -> int:
        """Open for `append`, created if missing. Returns a handle."""
        ...

    def append(self, handle: int, buffers: list[bytes | memoryview], offset: int) -> None:
        """Write all buffers at `offset`, completely, or raise OSError."""
        ...

    def open_read(self, path: str) -> int: ...
    def read(self, handle: int, count: int, offset: int) -> bytes:
        """At most `count` bytes; shorter only at the end of the file."""
        ...

    def truncate(self, path: str, size: int) -> None: ...
    def fsync(self, handle: int) -> None: ...
    def fsync_directory(self, path: str) -> None: ...
    def close(self, handle: int) -> None: ...
    def unlink(self, path: str) -> None: ...
    def replace(self, source: str, destination: str) -> None: ...
    def free_bytes(self, path: str) -> int:
        """Bytes an unprivileged user could still write there."""
        ...


class RealDisk:
    """`Disk` on the operating system."""

    def makedirs(self, path: str) -> None:
        # os.makedirs would make the parents for everybody: who may write there may replace what is below.
        parent = os.path.dirname(path)
        if parent and not os.path.isdir(parent):
            self.makedirs(parent)
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def open_append(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, handle: int, buffers: list[bytes | memoryview], offset: int) -> None:
        wanted = sum(map(len, buffers))
        written = os.pwritev(handle, buffers, offset)
        if written != wanted:  # a full disk or a signal: rare, so joining is fine
            rest = memoryview(b"".join(buffers))[written:]
            offset += written
            while rest:
                written = os.pwrite(handle, rest, offset)
                rest = rest[written:]
                offset += written

    def open_read(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, handle: int, count: int, offset: int) -> bytes:
        return os.pread(handle, count, offset)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def fsync(self, handle: int) -> None:
        os.fdatasync(handle)

    def fsync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, handle: int) -> None:
        os.close(handle)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def replace(self, source: str, destination: str) -> None:
        os.replace(source, destination)

    def free_bytes(self, path: str) -> int:
        state = os.statvfs(path)
        return state.f_bavail * state.f_frsize


class SharedMemory(Protocol):
    """A small file mapped by several processes.

    It outlives each of them, but not a reboot when it lies on tmpfs.
    """

    @property
    def buffer(self) -> memoryview:
        """Writable, bytes. An aligned store of 8 bytes through `buffer.cast("Q")` is never seen half done."""
        ...

    def claim(self) -> bool:
        """Become its only owner until `close` or the end of the process; False: somebody else is."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Short exclusion between processes. Nothing inside may wait."""
        ...

    def remove(self) -> None:
        """Take its name away; those who have it open keep it."""
        ...

    def close(self) -> None: ...


class MappedFile:
    """`SharedMemory` on the operating system."""

    def __init__(self, path: str, size: int, create: bool) -> None:
        """Raises FileNotFoundError (not there and not to be created), ValueError (too small)."""
        self._path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(self._descriptor, size)
            self._map = mmap.mmap(self._descriptor, size)  # a smaller file is a ValueError
        except BaseException:
            os.close(self._descriptor)
            raise
        self._buffer = memoryview(self._map)

    @property
    def buffer(self) -> memoryview:
        return self._buffer

    def claim(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        # A record lock, which does not meet the flock of `claim`. Within one process it excludes nobody:
        # there, the absence of a checkpoint does.
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def flush(self) -> None:
        self._map.flush()
        os.fsync(self._descriptor)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """All views taken of `buffer` must have been released."""
        self._buffer.release()
        self._map.close()
        os.close(self._descriptor)


class Bell(Protocol):
    """The hearing side of a doorbell."""

    async def wait(self) -> None:
        """Return once it was rung since the last return, at once if that is so already."""
        ...

    def close(self) -> None: ...


class Doorbells(Protocol):
    """Wake another process. A ring carries no data: the one who wakes looks for himself."""

    def listen(self, path: str) -> Bell: ...
    def ring(self, path: str) -> bool:
        """Never blocks, never raises. False: nobody listens there."""
        ...

    def remove(self, path: str) -> None: ...


class FifoBell:
    """`Bell` on a named pipe."""

    def __init__(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # Read and write: the pipe then never reports end-of-file while its ringer restarts.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    async def wait(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            try:
                os.read(self._descriptor, 65536)
                return
            except BlockingIOError:
                continue  # a spurious wake-up

    def fileno(self) -> int:
        """Readable when it was rung; see `hear`."""
        return self._descriptor

    def hear(self) -> None:
        """Whatever was rung so far is heard."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, 65536)

    def close(self) -> None:
        os.close(self._descriptor)


class FifoDoorbells:
    """`Doorbells` on named pipes. The ringer's descriptors are kept: a ring is one write of one byte."""

    _KEPT = 128

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def listen(self, path: str) -> FifoBell:
        return FifoBell(path)

    def ring(self, path: str) -> bool:
        for _ in range(2):  # a kept descriptor may be of a listener that is gone; then open again
            descriptor = self._descriptors.get(path)
            kept = descriptor is not None
            try:
                if descriptor is None:
                    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    if len(self._descriptors) >= self._KEPT:
                        os.close(self._descriptors.pop(next(iter(self._descriptors))))
                    self._descriptors[path] = descriptor
                os.write(descriptor, b"\0")
                return True
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return True  # full: it has been rung often enough
                self._forget(path)
                if not kept:
                    return False
        return False

    def _forget(self, path: str) -> None:
        descriptor = self._descriptors.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        self._forget(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def local_zone() -> tzinfo:
    """Of this host, as its C library finds it (tzset(3)): `TZ`, else /etc/localtime, else UTC."""
    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name and not name.startswith("/"):
            return ZoneInfo(name)
        with open(name or "/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file, name or "/etc/localtime")
    except (OSError, ValueError):
        return UTC


class Clock(Protocol):
    """Time for stamps.

    Waiting is trio's business (trio.sleep), which follows the same clock in the simulator.
    """

    def monotonic_ns(self) -> int: ...
    def wall_ns(self) -> int: ...
    def boot_id(self) -> str: ...


class RealClock:
    """`Clock` of this host."""

    def __init__(self) -> None:
        with open("/proc/sys/kernel/random/boot_id") as file:
            self._boot_id = file.read().strip()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    def boot_id(self) -> str:
        return self._boot_id


async def _run_in_thread(function: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(function)


async def connect_tcp(host: str, port: int) -> trio.SocketStream:
    """Raises OSError with the reason that one of the addresses had: trio says only that all have failed."""
    try:
        return await trio.open_tcp_stream(host, port)
    except OSError as error:
        cause: BaseException | None = error.__cause__  # one for each address that was tried
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, os.strerror(cause.errno)) from None
        raise


@dataclass(frozen=True)
class World:
    """Everything outside. `in_thread` runs a blocking function without holding up other tasks."""

    disk: Disk = field(default_factory=RealDisk)
    clock: Clock = field(default_factory=RealClock)
    random: Random = field(default_factory=Random)
    connect: Callable[[str, int], Awaitable[trio.abc.HalfCloseableStream]] = connect_tcp
    shared_memory: Callable[[str, int, bool], SharedMemory] = MappedFile  # path, size, create
    doorbells: Doorbells = field(default_factory=FifoDoorbells)
    zone: tzinfo = field(default_factory=local_zone)

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await _run_in_thread(function)
