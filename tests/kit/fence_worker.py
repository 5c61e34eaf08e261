"""A program that changes a directory in every way there is, each in a directory of its own, and says how each
attempt ended. What it needs beforehand (open files, a mapping) it gets before it says `ready`.

Usage: fence_worker.py DIRECTORY together|apart OPERATION...
A line of JSON per ended operation: [operation, errno]. `together`: all at the same time, one thread each.
"""

import json
import mmap
import os
import sys
import threading
from collections.abc import Callable

saying = threading.Lock()
OLD = b"old content\n" * 400


class Place:
    """Where one operation works."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        os.mkdir(directory)
        with open(f"{directory}/file", "wb") as file:
            file.write(OLD)
        os.mkdir(f"{directory}/empty")
        os.setxattr(f"{directory}/file", "user.old", b"old")
        self.written = os.open(f"{directory}/file", os.O_RDWR)
        self.other = os.open(f"{directory}/other", os.O_RDWR | os.O_CREAT)
        self.appended = os.open(f"{directory}/file", os.O_WRONLY | os.O_APPEND)
        self.mapped = mmap.mmap(self.written, len(OLD))
        self.mapped[0]  # in memory: a fault that fails ends a program

    def __truediv__(self, name: str) -> str:
        return f"{self.directory}/{name}"


def store(place: Place) -> None:
    place.mapped[:6] = b"mapped"
    place.mapped.flush()


OPERATIONS: dict[str, Callable[[Place], object]] = {
    "create": lambda p: os.close(os.open(p / "new", os.O_CREAT | os.O_WRONLY)),
    "mkdir": lambda p: os.mkdir(p / "directory"),
    "mkfifo": lambda p: os.mkfifo(p / "fifo"),
    "symlink": lambda p: os.symlink("file", p / "symlink"),
    "link": lambda p: os.link(p / "file", p / "link"),
    "unlink": lambda p: os.unlink(p / "file"),
    "rmdir": lambda p: os.rmdir(p / "empty"),
    "rename": lambda p: os.rename(p / "file", p / "renamed"),
    "write": lambda p: os.pwrite(p.written, b"new", 5),
    "append": lambda p: os.write(p.appended, b"more"),
    "truncate": lambda p: os.truncate(p / "file", 3),
    "ftruncate": lambda p: os.ftruncate(p.written, 7000),
    "chmod": lambda p: os.chmod(p / "file", 0o600),
    "chown": lambda p: os.chown(p / "file", 1, 1),
    "utime": lambda p: os.utime(p / "file", (1, 1)),
    "setxattr": lambda p: os.setxattr(p / "file", "user.new", b"new"),
    "removexattr": lambda p: os.removexattr(p / "file", "user.old"),
    "open and truncate": lambda p: os.close(os.open(p / "file", os.O_WRONLY | os.O_TRUNC)),
    "allocate": lambda p: os.posix_fallocate(p.written, 0, 20_000),
    "copy range": lambda p: os.copy_file_range(p.written, p.other, 3000),
    "nameless": lambda p: os.close(os.open(p.directory, os.O_TMPFILE | os.O_WRONLY)),
    "mapping": store,
    # Nothing is changed by these.
    "open for writing": lambda p: os.close(os.open(p / "file", os.O_RDWR)),
    "open": lambda p: os.close(os.open(p / "file", os.O_RDONLY)),
    "read": lambda p: os.pread(p.written, 100, 0),
    "list": lambda p: os.listdir(p.directory),
    "stat": lambda p: os.stat(p / "empty"),
    "sync": lambda p: os.fsync(p.written),
}
LOOKS = ("open for writing", "open", "read", "list", "stat", "sync")
CHANGES = tuple(name for name in OPERATIONS if name not in LOOKS)


def attempt(name: str, place: Place) -> None:
    try:
        OPERATIONS[name](place)
        number = 0
    except OSError as error:
        number = error.errno or -1
    with saying:
        print(json.dumps([name, number]), flush=True)


def main() -> None:
    directory, how, *names = sys.argv[1:]
    places = {name: Place(f"{directory}/{name}") for name in names}
    print("ready", flush=True)
    sys.stdin.readline()
    if how == "apart":
        for name, place in places.items():
            attempt(name, place)
        return
    threads = [threading.Thread(target=attempt, args=item) for item in places.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
