"""A program that keeps changing files in one directory, as applications do, until it gets SIGTERM.

    demo_writer.py DIRECTORY SEED

Creates, appends, overwrites, truncates, renames (also over existing files), links, deletes, changes modes,
times and extended attributes, and calls fsync. Keeps the number of operations done at the start of its
standard output, which should be a file.
"""

import os
import random
import signal
import sys
import time

FILES_MAX = 200
PAUSE_S = 0.01  # a busy application, not a benchmark: the machine has other work to do
MOVE_DIRECTORY_EVERY = 200  # operations: all that moves is mirrored anew


class Writer:
    """Random changes below `directory`. Names are remembered, not listed: the tree is this writer's alone."""

    def __init__(self, directory: str, seed: int) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.files: list[str] = []
        self.made = 0
        self.operations = 0
        self.stopping = False

    def run(self) -> None:
        os.makedirs(self.directory, exist_ok=True)
        log = os.open(os.path.join(self.directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        actions = [self.create, self.create, self.append, self.overwrite, self.truncate, self.rename]
        actions += [self.replace, self.link, self.delete, self.attributes]
        while not self.stopping:
            if not self.files or len(self.files) < 5:
                self.create()
            elif len(self.files) > FILES_MAX:
                self.delete()
            elif self.operations % MOVE_DIRECTORY_EVERY == 0:
                self.move_directory()
            else:
                self.random.choice(actions)()
            self.operations += 1
            os.write(log, b"%d operations\n" % self.operations)
            if self.operations % 20 == 0:
                os.fsync(log)
                os.pwrite(sys.stdout.fileno(), b"%12d\n" % self.operations, 0)
            time.sleep(PAUSE_S)
        os.close(log)
        os.pwrite(sys.stdout.fileno(), b"%12d\n" % self.operations, 0)

    def some(self) -> str:
        return self.random.choice(self.files)

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice((10, 500, 4096, 50_000)))

    def new_name(self) -> str:
        self.made += 1
        directory = os.path.join(self.directory, f"d{self.made % 7}")
        os.makedirs(directory, exist_ok=True)
        return os.path.join(directory, f"file{self.made}")

    def create(self) -> None:
        name = self.new_name()
        with open(name, "xb") as file:
            file.write(self.data())
            if self.random.random() < 0.2:
                file.flush()
                os.fsync(file.fileno())
        self.files.append(name)

    def append(self) -> None:
        with open(self.some(), "ab") as file:
            file.write(self.data())

    def overwrite(self) -> None:
        with open(self.some(), "r+b") as file:
            file.seek(self.random.randrange(10_000))
            file.write(self.data())

    def truncate(self) -> None:
        os.truncate(self.some(), self.random.randrange(20_000))

    def rename(self) -> None:
        old, new = self.some(), self.new_name()
        os.rename(old, new)
        self.files[self.files.index(old)] = new

    def replace(self) -> None:
        """How careful programs save: write beside it, fsync, rename over."""
        name = self.some()
        with open(name + ".new", "wb") as file:
            file.write(self.data())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name + ".new", name)

    def link(self) -> None:
        old, new = self.some(), self.new_name()
        os.link(old, new)
        self.files.append(new)

    def delete(self) -> None:
        name = self.some()
        os.unlink(name)
        self.files.remove(name)

    def attributes(self) -> None:
        name = self.some()
        os.chmod(name, self.random.choice((0o600, 0o644, 0o755)))
        os.utime(name, ns=(self.random.randrange(2 * 10**18), self.random.randrange(2 * 10**18)))
        os.setxattr(name, "user.demo", self.data()[:200])

    def move_directory(self) -> None:
        """Rename a directory and back: everything in it moves twice."""
        name = os.path.join(self.directory, f"d{self.random.randrange(7)}")
        if os.path.isdir(name):
            os.rename(name, name + ".moved")
            os.rename(name + ".moved", name)


def main() -> None:
    writer = Writer(sys.argv[1], int(sys.argv[2]))

    def stop(signum: int, frame: object) -> None:
        writer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which stops its writers in order
    writer.run()


if __name__ == "__main__":
    main()
