"""Small applications whose files say whether they are a state that the applications went through.

Each workload changes files in one directory, in an order that is part of its meaning; its check finds what no
prefix of its operations could have left. They know nothing of replication, and the checks only look at files.

    python -m kit.workloads NAME DIRECTORY [PAUSE_S]   # until SIGTERM; prints its rounds, fails on any error

A workload is a generator of rounds over `Files`, so that the same one also runs operation by operation
(tests/unit/test_workloads.py breaks its order there, and sees the check notice).
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

LINE = b"%015d\n"
LINE_BYTES = 16  # divides a page: a write is one request to a file system, and so one operation
LOG_LINES_MAX = 20_000
NAMES_KEPT = 5
GENERATION_FILES = 3
APPEARING_AT = (0, 100_000)  # a hole lies between


class Files(Protocol):
    """What a workload does to its directory. `kit.recording.Source` does it, too."""

    def create(self, path: bytes) -> None: ...
    def appear(self, path: bytes, extents: dict[int, bytes]) -> None: ...
    def mkdir(self, path: bytes) -> None: ...
    def write(self, path: bytes, offset: int, data: bytes) -> None: ...
    def rename(self, path: bytes, path2: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...


class PlainFiles:
    """`Files` by system calls; everything written is synced before the next operation."""

    def __init__(self, directory: str) -> None:
        self._directory = os.fsencode(directory) + b"/"

    def create(self, path: bytes) -> None:
        os.close(os.open(self._directory + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def appear(self, path: bytes, extents: dict[int, bytes]) -> None:
        descriptor = os.open(self._directory, os.O_WRONLY | os.O_TMPFILE, 0o644)
        try:
            for offset, data in extents.items():
                assert os.pwrite(descriptor, data, offset) == len(data)
            source = f"/proc/self/fd/{descriptor}"
            os.link(source, self._directory + path, src_dir_fd=descriptor, follow_symlinks=True)
        finally:
            os.close(descriptor)

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self._directory + path)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        descriptor = os.open(self._directory + path, os.O_WRONLY)
        try:
            assert os.pwrite(descriptor, data, offset) == len(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: bytes, path2: bytes) -> None:
        os.rename(self._directory + path, self._directory + path2)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._directory + path)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._directory + path)


# --- workloads: each yields after a round ---


def alternate(files: Files) -> Iterator[int]:
    """Two files written in turn: b is never newer than a, nor older by more than one."""
    for name in (b"a", b"b"):
        files.create(name)
        files.write(name, 0, LINE % 0)
    number = 0
    while True:
        yield number
        number += 1
        files.write(b"a", 0, LINE % number)
        files.write(b"b", 0, LINE % number)


def publish(files: Files) -> Iterator[int]:
    """A log, and a file renamed into place that says how long it is."""
    files.create(b"log")
    number = 0
    while True:
        yield number
        number += 1
        if number % LOG_LINES_MAX == 0:  # so that a long run stays small
            files.unlink(b"pointer")
            files.unlink(b"log")
            files.create(b"log")
            number = 1
        files.write(b"log", (number - 1) * LINE_BYTES, LINE % number)
        files.create(b"pointer.new")
        files.write(b"pointer.new", 0, LINE % number)
        files.rename(b"pointer.new", b"pointer")


def appearing(files: Files) -> Iterator[int]:
    """A log, and a file that says how long it is: made without a name, linked, and renamed into place."""
    files.create(b"log")
    number = 0
    while True:
        yield number
        number += 1
        files.write(b"log", (number - 1) * LINE_BYTES, LINE % number)
        files.appear(b"fresh", dict.fromkeys(APPEARING_AT, LINE % number))
        files.rename(b"fresh", b"current")


def names(files: Files) -> Iterator[int]:
    """Numbered files, created under one name and renamed to another; old ones are deleted."""
    number = 0
    while True:
        yield number
        number += 1
        files.create(b"new-%d" % number)
        files.rename(b"new-%d" % number, b"done-%d" % number)
        if number > NAMES_KEPT:
            files.unlink(b"done-%d" % (number - NAMES_KEPT))


def generations(files: Files) -> Iterator[int]:
    """Directories of files that are all of one generation, renamed into place when they are complete."""
    number = 0
    while True:
        yield number
        number += 1
        files.mkdir(b"building")
        for index in range(GENERATION_FILES):
            path = b"building/%d" % index
            files.create(path)
            files.write(path, 0, LINE % number)
        files.rename(b"building", b"ready-%d" % number)
        if number > 1:
            old = b"ready-%d" % (number - 1)
            files.rename(old, b"old")
            for index in range(GENERATION_FILES):
                files.unlink(b"old/%d" % index)
            files.rmdir(b"old")


# --- checks: what is wrong with a directory, for people ---


def check_alternate(directory: Path) -> list[str]:
    a, b = _number(directory / "a"), _number(directory / "b")
    if a is None:
        return [] if b is None else [f"b is {b} and a is not there"]
    return [] if (b or 0) <= a <= (b or 0) + 1 else [f"a is {a}, b is {b}"]


def check_publish(directory: Path) -> list[str]:
    try:
        log = (directory / "log").read_bytes()
    except FileNotFoundError:
        log = None
    pointer, coming = _number(directory / "pointer"), _number(directory / "pointer.new")
    lines = log or b""
    length = len(lines) // LINE_BYTES
    wrong = []
    if lines != b"".join(LINE % number for number in range(1, length + 1)):
        wrong.append(f"the log of {length} lines is not what was written")
    if log is None and (pointer, coming) != (None, None):
        wrong.append(f"the pointer is at {pointer} and there is no log")
    if (directory / "pointer").exists() and pointer is None:
        wrong.append("the pointer was renamed into place empty")
    if pointer is not None and not pointer <= length <= pointer + 1:
        wrong.append(f"the pointer is at {pointer}, the log has {length} lines")
    if coming is not None and coming != length:
        wrong.append(f"the next pointer is {coming}, the log has {length} lines")
    if coming is None and (directory / "pointer.new").exists() and length != (pointer or 0) + 1:
        wrong.append(f"a pointer is made, while the log has {length} lines and the last pointer is {pointer}")
    return wrong


def check_appearing(directory: Path) -> list[str]:
    try:
        length = (directory / "log").stat().st_size // LINE_BYTES
    except FileNotFoundError:
        length = 0
    fresh, current = _appeared(directory / "fresh"), _appeared(directory / "current")
    if fresh is None:
        return [] if length - 1 <= (current or 0) <= length else [f"{length} lines, and current is {current}"]
    right = fresh == length == (current or 0) + 1
    return [] if right else [f"{length} lines, fresh is {fresh}, current is {current}"]


def _appeared(path: Path) -> int | None:
    """The number that stands at all places of such a file; -1 if it is not whole."""
    try:
        with open(path, "rb") as file:
            found = {os.pread(file.fileno(), LINE_BYTES + 1, place) for place in APPEARING_AT[1:]}
            found.add(os.pread(file.fileno(), LINE_BYTES, 0))
    except FileNotFoundError:
        return None
    (line, *others) = found
    return -1 if others or len(line) != LINE_BYTES else int(line)


def check_names(directory: Path) -> list[str]:
    found = _listing(directory)
    new = [int(name[4:]) for name in found if name.startswith("new-")]
    done = sorted(int(name[5:]) for name in found if name.startswith("done-"))
    last = done[-1] if done else 0
    if new not in ([], [last + 1]):
        return [f"new are {new}, done are {done}"]
    if done and done != list(range(done[0], last + 1)):
        return [f"a gap: {done}"]
    expected = [min(last, NAMES_KEPT)] if last <= NAMES_KEPT or new else [NAMES_KEPT, NAMES_KEPT + 1]
    return [] if len(done) in expected else [f"{len(done)} are done ({done}), new are {new}"]


def check_generations(directory: Path) -> list[str]:
    found = _listing(directory)
    ready = sorted(int(name[6:]) for name in found if name.startswith("ready-"))
    last = ready[-1] if ready else 0
    building, old = "building" in found, "old" in found
    wrong = []
    allowed = [[], [last]] if last <= 1 else [[last]]
    if not building and not old and last > 1:
        allowed.append([last - 1, last])
    if ready not in allowed or (building and old):
        wrong.append(f"{sorted(found)} at once")
    for number in ready:
        wrong += _generation(directory / f"ready-{number}", number, complete=True)
    if building:
        wrong += _generation(directory / "building", last + 1, complete=False)
    if old:  # deleted in the order in which it was made
        left = sorted(os.listdir(directory / "old"))
        if left != [str(index) for index in range(GENERATION_FILES)][GENERATION_FILES - len(left) :]:
            wrong.append(f"old has {left}")
        wrong += [f"old/{n} is not of {last - 1}" for n in left if _number(directory / "old" / n) != last - 1]
    return wrong


def _generation(directory: Path, number: int, *, complete: bool) -> list[str]:
    found = sorted(os.listdir(directory))
    values = [_number(directory / name) for name in found]
    if not complete and values and values[-1] is None:
        values[-1] = number  # created and not yet written
    if found != [str(index) for index in range(len(found))] or any(value != number for value in values):
        return [f"{directory.name}, of generation {number}, has {found} with {values}"]
    if complete and len(found) != GENERATION_FILES:
        return [f"{directory.name} is ready and has only {found}"]
    return []


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none yet."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    assert len(data) in (0, LINE_BYTES), f"{path} has {len(data)} bytes"
    return int(data) if data else None


def _listing(directory: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return set(os.listdir(directory))
    return set()


WORKLOADS: dict[str, Callable[[Files], Iterator[int]]] = {
    "alternate": alternate,
    "publish": publish,
    "appearing": appearing,
    "names": names,
    "generations": generations,
}
CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "alternate": check_alternate,
    "publish": check_publish,
    "appearing": check_appearing,
    "names": check_names,
    "generations": check_generations,
}


def main() -> None:
    name, directory, *pause = sys.argv[1:]
    pause_s = float(pause[0]) if pause else 0.0
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    os.makedirs(directory, exist_ok=True)
    rounds = 0
    for _ in WORKLOADS[name](PlainFiles(directory)):
        rounds += 1
        if stopping:
            break
        time.sleep(pause_s)
    print(rounds)


if __name__ == "__main__":
    main()
