"""What the core gets from outside: clock, disk, randomness, threads, network.

The simulator runs whole agents on trio's MockClock with an in-memory network and a fault-injecting disk, so nothing
in sender, receiver, journal or mirror calls time.time(), open(), random or a thread by itself.
"""

import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")


class Disk(Protocol):
    """Files of a journal or a state directory. Synchronous; errors are OSError. Paths are str."""

    def makedirs(self, path: str) -> None: ...
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
        os.makedirs(path, mode=0o700, exist_ok=True)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def open_append(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, handle: int, buffers: list[bytes | memoryview], offset: int) -> None:
        wanted = sum(len(b) for b in buffers)
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


class Clock(Protocol):
    """Time for stamps. Waiting is trio's business (trio.sleep), which follows the same clock in the simulator."""

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


async def _connect_tcp(host: str, port: int) -> trio.abc.HalfCloseableStream:
    return await trio.open_tcp_stream(host, port)


@dataclass(frozen=True)
class World:
    """Everything outside. `in_thread` runs a blocking function without holding up other tasks."""

    disk: Disk = field(default_factory=RealDisk)
    clock: Clock = field(default_factory=RealClock)
    random: random.Random = field(default_factory=random.Random)
    connect: Callable[[str, int], Awaitable[trio.abc.HalfCloseableStream]] = _connect_tcp

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await _run_in_thread(function)
