"""Random operations on real files, compared with a model in memory after each of them.

    python -m kit.file_exerciser DIRECTORY SEED COUNT [--late-stores] [--pause SECONDS]

COUNT 0: until SIGTERM. It prints how many operations are done, now and then and at the end, and fails on the
first error, and when a file is not what it should be.

Without --late-stores what is stored in a mapping is synced at once, so that the files of a target go through
the states of `kit.file_operations.History`. With it the kernel writes it back when it likes.
"""

import argparse
import ctypes
import errno
import mmap
import os
import random
import signal
import time
from pathlib import Path

from kit.file_operations import FILES, PAGE, SECTOR, History, Kind, Operation

TOLD_EVERY = 50  # operations
FORGET_CHANCE = (
    0.2  # after a comparison: what is not in the cache must be read before a part of a page is written
)
PAST_CACHE_CHANCE = 0.2
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # linux/falloc.h
_OPENINGS = {"plain": os.O_RDWR, "append": os.O_RDWR | os.O_APPEND, "direct": os.O_RDWR | os.O_DIRECT}

_libc = ctypes.CDLL(None, use_errno=True)


class Exerciser:
    """Files in a directory of its own, each open in three ways."""

    def __init__(self, directory: Path, seed: int, *, late_stores: bool = False) -> None:
        self.history = History(seed)
        self._late_stores = late_stores
        self._chance = random.Random(seed)  # of what makes no difference to the files
        directory.mkdir(parents=True)
        self._paths = [directory / str(number) for number in range(FILES)]
        self._open = [self._opened(path) for path in self._paths]
        self._buffer = mmap.mmap(-1, 1 << 20)  # aligned, as O_DIRECT wants it
        self._perform = {
            Kind.WRITE: self._write,
            Kind.APPEND: self._append,
            Kind.WRITE_DIRECT: self._write_direct,
            Kind.STORE: self._store,
            Kind.TRUNCATE: self._truncate,
            Kind.ALLOCATE: self._fallocate,
            Kind.PUNCH: self._fallocate,
            Kind.ZERO: self._fallocate,
            Kind.COPY: self._copy,
            Kind.READ: self._read,
            Kind.READ_DIRECT: self._read_direct,
            Kind.READ_MAPPED: self._read_mapped,
            Kind.SEEK: self._seek,
            Kind.SYNC: self._sync,
            Kind.SYNC_MAPPED: self._sync_mapped,
            Kind.REOPEN: self._reopen,
        }

    def step(self) -> None:
        operation = self.history.next
        try:
            self._perform[operation.kind](operation)
            self.history.step()
            self._check(operation.file)
        except Exception as error:
            error.add_note(f"operation {self.history.number}: {_shown(operation)}")
            raise

    def close(self) -> None:
        for descriptors in self._open:
            for descriptor in descriptors.values():
                os.close(descriptor)
        self._buffer.close()

    def _opened(self, path: Path) -> dict[str, int]:
        """In an order of chance: to some file systems the oldest descriptor of a file is special."""
        ways = self._chance.sample(sorted(_OPENINGS), len(_OPENINGS))
        return {way: os.open(path, _OPENINGS[way] | os.O_CREAT, 0o644) for way in ways}

    # --- changes ---

    def _write(self, operation: Operation) -> None:
        done = os.pwrite(self._open[operation.file]["plain"], operation.data, operation.start)
        assert done == operation.length

    def _append(self, operation: Operation) -> None:
        assert os.write(self._open[operation.file]["append"], operation.data) == operation.length

    def _write_direct(self, operation: Operation) -> None:
        view = memoryview(self._buffer)[: operation.length]
        view[:] = operation.data
        done = os.pwritev(self._open[operation.file]["direct"], [view], operation.start)
        assert done == operation.length

    def _store(self, operation: Operation) -> None:
        start = operation.start - operation.start % PAGE
        with self._mapped(operation) as mapping:
            mapping[operation.start - start : operation.end - start] = operation.data
            if not self._late_stores:
                mapping.flush()

    def _mapped(self, operation: Operation) -> mmap.mmap:
        """From the page on in which the operation starts."""
        start = operation.start - operation.start % PAGE
        return mmap.mmap(self._open[operation.file]["plain"], operation.end - start, offset=start)

    def _truncate(self, operation: Operation) -> None:
        if self._chance.random() < 0.3:
            os.truncate(self._paths[operation.file], operation.start)
        else:
            os.ftruncate(self._open[operation.file]["plain"], operation.start)

    def _fallocate(self, operation: Operation) -> None:
        mode = {Kind.ALLOCATE: 0, Kind.PUNCH: _PUNCH_HOLE, Kind.ZERO: _ZERO_RANGE}[operation.kind]
        if operation.keep_size or operation.kind == Kind.PUNCH:
            mode |= _KEEP_SIZE
        start, length = ctypes.c_int64(operation.start), ctypes.c_int64(operation.length)
        if _libc.fallocate(self._open[operation.file]["plain"], mode, start, length) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _copy(self, operation: Operation) -> None:
        source = self._open[operation.source]["plain"]
        target = self._open[operation.file]["plain"]
        done = 0
        while done < operation.length:
            left, places = operation.length - done, (operation.source_start + done, operation.start + done)
            count = os.copy_file_range(source, target, left, *places)
            assert count > 0
            done += count

    # --- looks ---

    def _read(self, operation: Operation) -> None:
        found = os.pread(self._open[operation.file]["plain"], operation.length, operation.start)
        self._compare(operation, found)

    def _read_direct(self, operation: Operation) -> None:
        """Up to the end of the file, which need not be that of a sector."""
        view = memoryview(self._buffer)[: operation.length]
        count = os.preadv(self._open[operation.file]["direct"], [view], operation.start)
        self._compare(operation, bytes(view[:count]))

    def _read_mapped(self, operation: Operation) -> None:
        start = operation.start - operation.start % PAGE
        with self._mapped(operation) as mapping:
            self._compare(operation, mapping[operation.start - start : operation.end - start])

    def _compare(self, operation: Operation, found: bytes) -> None:
        wanted = self.history.contents[operation.file][operation.start : operation.end]
        assert found == wanted, _difference(found, wanted, operation.start)

    def _seek(self, operation: Operation) -> None:
        """Holes are zeros, and lie between data up to the end."""
        descriptor = self._open[operation.file]["plain"]
        wanted = self.history.contents[operation.file]
        place = 0
        while place < len(wanted):
            try:
                data = os.lseek(descriptor, place, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole is left
                    raise
                data = len(wanted)
            assert place <= data <= len(wanted), (place, data)
            assert not any(wanted[place:data]), f"a hole from {place} to {data} where there is data"
            place = data
            if data < len(wanted):
                place = os.lseek(descriptor, data, os.SEEK_HOLE)
                assert data < place <= len(wanted), (data, place)

    def _sync(self, operation: Operation) -> None:
        os.fsync(self._open[operation.file]["plain"])

    def _sync_mapped(self, operation: Operation) -> None:
        with self._mapped(operation) as mapping:
            mapping.flush()

    def _reopen(self, operation: Operation) -> None:
        for descriptor in self._open[operation.file].values():
            os.close(descriptor)
        self._open[operation.file] = self._opened(self._paths[operation.file])

    def _check(self, file: int) -> None:
        wanted = self.history.contents[file]
        descriptor = self._open[file]["plain"]
        size = os.fstat(descriptor).st_size
        assert size == len(wanted), f"{size} bytes, not {len(wanted)}"
        found = self._all_of(file, size + 1)
        assert found == wanted, _difference(found, wanted, 0)
        if self._chance.random() < FORGET_CHANCE:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _all_of(self, file: int, length: int) -> bytes:
        """Out of the cache, or past it."""
        if self._chance.random() < PAST_CACHE_CHANCE:
            view = memoryview(self._buffer)[: length + -length % SECTOR]
            return bytes(view[: os.preadv(self._open[file]["direct"], [view], 0)])
        return os.pread(self._open[file]["plain"], length, 0)


def _difference(found: bytes, wanted: bytes | bytearray, start: int) -> str:
    if len(found) != len(wanted):
        return f"{len(found)} bytes from {start} on, not {len(wanted)}"
    places = [n for n, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other]
    return f"{len(places)} bytes differ between {start + places[0]} and {start + places[-1]}"


def _shown(operation: Operation) -> str:
    data = f"{len(operation.data)} bytes" if operation.data else "no data"
    return f"{operation._replace(data=b'')}, {data}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--late-stores", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    exerciser = Exerciser(options.directory, options.seed, late_stores=options.late_stores)
    history = exerciser.history
    while not stopping and (not options.count or history.number < options.count):
        exerciser.step()
        time.sleep(options.pause)
        if history.number % TOLD_EVERY == 0:
            os.write(1, b"%d\n" % history.number)
    exerciser.close()
    os.write(1, b"%d\n" % history.number)


if __name__ == "__main__":
    main()
