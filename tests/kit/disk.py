"""A host's disks, shared memory and doorbells in memory, with every fault that a test can ask for.

`MemoryDisk` keeps a page cache and a medium apart: what was not synced may be lost, in part and in any
combination, when the power goes; what lies below a volatile directory is lost as a whole. A process can end,
and a call can fail, at any call; calls are counted from 1.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import trio

from replicator.world import World


class ProcessDied(BaseException):
    """The process ended in the middle of a disk call. No handler of the product may catch it."""


@dataclass
class _File:
    cache: bytearray = field(default_factory=bytearray)
    medium: bytes = b""
    changes: list[tuple[int, bytes] | int] = field(
        default_factory=list
    )  # writes, truncations; not on the medium yet

    def write(self, data: bytes, offset: int) -> None:
        _write_into(self.cache, data, offset)
        self.changes.append((offset, data))

    def truncate(self, size: int) -> None:
        _truncate(self.cache, size)
        self.changes.append(size)

    def sync(self) -> None:
        image = bytearray(self.medium)
        for change in self.changes:
            _apply(image, change)
        self.medium = bytes(image)
        self.changes.clear()

    def lose_power(self, random: Random) -> None:
        image = bytearray(self.medium)
        keep = random.choice(["all", "prefix", "any", "none"])
        count = random.randrange(len(self.changes) + 1)
        for number, change in enumerate(self.changes):
            if keep == "none" or (keep == "prefix" and number > count):
                continue
            if keep == "any" and random.random() < 0.5:
                continue
            if isinstance(change, tuple) and (keep == "prefix" and number == count):
                offset, data = change
                torn = random.randrange(len(data) + 1)
                # The size may have reached the medium without the data.
                rest = bytes(len(data) - torn) if random.random() < 0.5 else b""
                change = (offset, data[:torn] + rest)
            _apply(image, change)
        self.medium = bytes(image)
        self.cache = image
        self.changes.clear()


def _write_into(image: bytearray, data: bytes, offset: int) -> None:
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def _truncate(image: bytearray, size: int) -> None:
    del image[size:]
    image.extend(bytes(size - len(image)))


def _apply(image: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        _truncate(image, change)
    else:
        _write_into(image, change[1], change[0])


@dataclass(frozen=True)
class Fault:
    """What happens at a call. `die`: before it, after it, or (writes only) in the middle of it."""

    error: int = 0
    die: Literal["", "before", "after", "torn"] = ""


@dataclass
class MemoryDisk:
    """`replicator.world.Disk`. `volatile`: directories on tmpfs. Capacities in bytes, None for no limit."""

    volatile: tuple[str, ...] = ("/memory",)
    capacity: int | None = None
    volatile_capacity: int | None = None
    random: Random = field(default_factory=lambda: Random(0))

    calls: int = 0
    log: list[str] = field(default_factory=list)
    fault: Callable[[int, str, str], Fault | None] | None = None
    """Asked at every call, with its number, name and path."""

    def __post_init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._durable_names: dict[str, int] = {}
        # Changes of names not synced yet: (directory, what each name is then)
        self._name_changes: list[tuple[str, dict[str, int | None]]] = []
        self._directories = {"/", *self.volatile}
        self._handles: dict[int, tuple[int, str]] = {}
        self._next = 3
        self.pages: dict[str, bytearray] = {}
        self.owners: dict[int, object] = {}

    # --- faults ---

    def fail_at(self, call: int, error: int, count: int = 1) -> None:
        """`count` calls from number `call` on fail with that errno."""
        self.fault = lambda n, name, path: Fault(error=error) if call <= n < call + count else None

    def die_at(self, call: int, when: Literal["before", "after", "torn"]) -> None:
        self.fault = lambda n, name, path: Fault(die=when) if n == call else None

    def heal(self) -> None:
        self.fault = None

    def die(self) -> None:
        """All processes of the host end: their handles and claims are gone; caches and mapped pages stay."""
        self._handles.clear()
        self.owners.clear()
        self.fault = None

    def sync(self) -> None:
        """sync(2): everything is on the medium now."""
        for file in self._files.values():
            file.sync()
        self._durable_names = dict(self._names)
        self._name_changes.clear()

    def lose_power(self) -> None:
        """The host loses power and starts again: of what was not synced, any part may be left."""
        self.die()
        self.pages = {path: page for path, page in self.pages.items() if not self._is_volatile(path)}
        names = {path: number for path, number in self._durable_names.items() if not self._is_volatile(path)}
        for directory, change in self._name_changes:
            if not self._is_volatile(directory) and self.random.random() < 0.5:
                for path, number in change.items():
                    if number is None:
                        names.pop(path, None)
                    else:
                        names[path] = number
        self._name_changes.clear()
        self._names = names
        self._durable_names = dict(names)
        self._files = {number: self._files[number] for number in names.values()}
        for file in self._files.values():
            file.lose_power(self.random)
        self._directories = {d for d in self._directories if d in self.volatile or not self._is_volatile(d)}

    def _is_volatile(self, path: str) -> bool:
        return any(path == top or path.startswith(top + "/") for top in self.volatile)

    @contextlib.contextmanager
    def _call(self, name: str, path: str) -> Iterator[Fault]:
        self.calls += 1
        self.log.append(f"{name} {path}")
        fault = (self.fault(self.calls, name, path) if self.fault else None) or Fault()
        if fault.die == "before":
            self._end()
        if fault.error and name not in ("append", "fsync"):
            raise OSError(fault.error, os.strerror(fault.error), path)
        try:
            yield fault
        finally:
            if fault.die:
                self._end()

    def _end(self) -> None:
        self.fault = None
        raise ProcessDied

    # --- Disk ---

    def makedirs(self, path: str) -> None:
        with self._call("makedirs", path):
            while path != "/":
                self._directories.add(path)
                path = path.rpartition("/")[0] or "/"

    def listdir(self, path: str) -> list[str]:
        with self._call("listdir", path):
            if path not in self._directories:
                raise FileNotFoundError(errno.ENOENT, "no such directory", path)
            return sorted(name.rpartition("/")[2] for name in self._names if name.rpartition("/")[0] == path)

    def exists(self, path: str) -> bool:
        with self._call("exists", path):
            return path in self._names or path in self._directories

    def size(self, path: str) -> int:
        with self._call("size", path):
            return len(self._files[self._number(path)].cache)

    def open_append(self, path: str) -> int:
        with self._call("open_append", path):
            directory = path.rpartition("/")[0]
            if directory not in self._directories:
                raise FileNotFoundError(errno.ENOENT, "no such directory", directory)
            if path not in self._names:
                self._next += 1
                self._files[self._next] = _File()
                self._change_names(directory, {path: self._next})
            return self._handle(path)

    def append(self, handle: int, buffers: list[bytes | memoryview], offset: int) -> None:
        number, path = self._opened(handle)
        file = self._files[number]
        data = b"".join(buffers)
        with self._call("append", path) as fault:
            if fault.die == "torn" or fault.error:
                data = data[: self.random.choice([0, len(data), self.random.randrange(len(data) + 1)])]
            room = self._room(path)
            if room is not None and offset + len(data) - len(file.cache) > room:
                file.write(data[: max(0, room + len(file.cache) - offset)], offset)
                raise OSError(errno.ENOSPC, "no space left", path)
            file.write(data, offset)
            if fault.error:
                raise OSError(fault.error, os.strerror(fault.error), path)

    def open_read(self, path: str) -> int:
        with self._call("open_read", path):
            return self._handle(path)

    def read(self, handle: int, count: int, offset: int) -> bytes:
        number, path = self._opened(handle)
        with self._call("read", path):
            return bytes(self._files[number].cache[offset : offset + count])

    def truncate(self, path: str, size: int) -> None:
        with self._call("truncate", path):
            self._files[self._number(path)].truncate(size)

    def fsync(self, handle: int) -> None:
        number, path = self._opened(handle)
        with self._call("fsync", path) as fault:
            if fault.error:
                # As real kernels do: the pages count as clean now, and never reach the medium.
                self._files[number].changes.clear()
                raise OSError(fault.error, os.strerror(fault.error), path)
            self._files[number].sync()

    def fsync_directory(self, path: str) -> None:
        with self._call("fsync_directory", path):
            kept = []
            for directory, change in self._name_changes:
                if directory != path:
                    kept.append((directory, change))
                    continue
                for name, number in change.items():
                    if number is None:
                        self._durable_names.pop(name, None)
                    else:
                        self._durable_names[name] = number
            self._name_changes = kept

    def close(self, handle: int) -> None:
        _, path = self._opened(handle)
        with self._call("close", path):
            del self._handles[handle]

    def unlink(self, path: str) -> None:
        with self._call("unlink", path):
            self._number(path)
            self._change_names(path.rpartition("/")[0], {path: None})

    def replace(self, source: str, destination: str) -> None:
        with self._call("replace", source):
            number = self._number(source)
            self._change_names(destination.rpartition("/")[0], {source: None, destination: number})

    def free_bytes(self, path: str) -> int:
        with self._call("free_bytes", path):
            room = self._room(path)
            return 1 << 50 if room is None else max(0, room)

    # --- for tests ---

    def contents(self, path: str) -> bytes:
        return bytes(self._files[self._number(path)].cache)

    def damage(self, path: str, data: bytes) -> None:
        """Put other contents in place, as if they had always been there."""
        file = self._files[self._number(path)]
        file.cache = bytearray(data)
        file.medium = data
        file.changes.clear()

    def paths(self, directory: str = "") -> list[str]:
        return sorted(name for name in self._names if name.startswith(directory))

    @property
    def open_handles(self) -> list[str]:
        return sorted(path for _, path in self._handles.values())

    # --- inside ---

    def _number(self, path: str) -> int:
        try:
            return self._names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from None

    def _handle(self, path: str) -> int:
        number = self._number(path)
        self._next += 1
        self._handles[self._next] = (number, path)
        return self._next

    def _opened(self, handle: int) -> tuple[int, str]:
        try:
            return self._handles[handle]
        except KeyError:
            raise OSError(errno.EBADF, "not open") from None

    def _change_names(self, directory: str, change: dict[str, int | None]) -> None:
        for path, number in change.items():
            if number is None:
                self._names.pop(path, None)
            else:
                self._names[path] = number
        self._name_changes.append((directory, change))

    def _room(self, path: str) -> int | None:
        volatile = self._is_volatile(path)
        capacity = self.volatile_capacity if volatile else self.capacity
        if capacity is None:
            return None
        used = sum(
            len(self._files[number].cache)
            for name, number in self._names.items()
            if self._is_volatile(name) == volatile
        )
        return capacity - used


class MemoryPage:
    """`replicator.world.SharedMemory` on a `MemoryDisk`."""

    def __init__(self, disk: MemoryDisk, path: str, size: int, create: bool) -> None:
        if path not in disk.pages:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such page", path)
            disk.pages[path] = bytearray(size)
        self._disk = disk
        self._path = path
        self._page = disk.pages[path]
        if len(self._page) != size:
            raise ValueError("page of another size")
        self._buffer = memoryview(self._page)

    @property
    def buffer(self) -> memoryview:
        return self._buffer

    def claim(self) -> bool:
        return self._disk.owners.setdefault(id(self._page), self) is self

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        yield  # nothing inside waits, and all "processes" run in one thread

    def remove(self) -> None:
        self._disk.pages.pop(self._path, None)

    def close(self) -> None:
        self._buffer.release()
        if self._disk.owners.get(id(self._page)) is self:
            del self._disk.owners[id(self._page)]


class MemoryBell:
    def __init__(self, bells: "MemoryDoorbells", path: str) -> None:
        self._bells = bells
        self._path = path
        self._event = trio.Event()
        bells.listeners[path] = self

    def ring(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()

    def close(self) -> None:
        if self._bells.listeners.get(self._path) is self:
            del self._bells.listeners[self._path]


class MemoryDoorbells:
    """`replicator.world.Doorbells` within one process. `rings` counts them."""

    def __init__(self) -> None:
        self.listeners: dict[str, MemoryBell] = {}
        self.rings = 0

    def listen(self, path: str) -> MemoryBell:
        return MemoryBell(self, path)

    def ring(self, path: str) -> bool:
        bell = self.listeners.get(path)
        if bell is None:
            return False
        self.rings += 1
        bell.ring()
        return True

    def remove(self, path: str) -> None:
        self.listeners.pop(path, None)


class SteppingClock:
    """`replicator.world.Clock` that goes on by a microsecond with every look."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.wall_offset_ns = 1_700_000_000 * 10**9
        self.boot = 1

    def monotonic_ns(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def wall_ns(self) -> int:
        return self.wall_offset_ns + self.now_ns

    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def reboot(self) -> None:
        self.boot += 1


def memory_world(disk: MemoryDisk, clock: SteppingClock | None = None, seed: int = 0) -> World:
    """A World on `disk`, with doorbells and a clock of its own."""
    return World(
        disk=disk,
        clock=clock or SteppingClock(),
        random=Random(seed),
        shared_memory=lambda path, size, create: MemoryPage(disk, path, size, create),
        doorbells=MemoryDoorbells(),
    )


class Process:
    """`replicator.world.Disk` as one process of a host sees it: once it is dead, nothing of it reaches the
    disk any more, whatever its `finally` clauses do.
    """

    def __init__(self, disk: MemoryDisk, killed: Callable[[], None]) -> None:
        """`killed` is called when the process dies in the middle of a disk call."""
        self._disk = disk
        self._killed = killed
        self._calls_left: int | None = None
        self.dead = False
        self.died = False  # by itself

    def die_in(self, calls: int) -> None:
        """End at that disk call, counted from 1; an append is done in part."""
        self._calls_left = calls

    def append(self, handle: int, buffers: list[bytes | memoryview], offset: int) -> None:
        if self._dies_now():
            data = b"".join(buffers)
            self._disk.append(handle, [data[: self._disk.random.randrange(len(data) + 1)]], offset)
            self._die()
        self._disk.append(handle, buffers, offset)

    def __getattr__(self, name: str) -> object:
        if self._dies_now():
            self._die()
        return getattr(self._disk, name)

    def _dies_now(self) -> bool:
        if self.dead:
            raise ProcessDied
        if self._calls_left is not None:
            self._calls_left -= 1
        return self._calls_left == 0

    def _die(self) -> None:
        self.dead = self.died = True
        self._killed()
        raise ProcessDied
