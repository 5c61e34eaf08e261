"""`python small_operations.py DIRECTORY SEED`: a program that makes small changes in files of its own.

It reads counts, one a line, makes so many operations each time, and answers with a line. Each operation is
one call that changes something: mostly 4 KiB written to a random place of a file; files come, are renamed and
go as well. Those that are written stay open for a while, as programs have them.
"""

import os
import random
import sys

BLOCK_BYTES = 4096
BLOCKS = 16  # of a file, at most
FILES = 2_000
DIRECTORIES = 20
OPEN_FILES = 64
WRITES_PER_OPEN = 16  # then another file is open in place of one
# In a hundred operations; the others are writes. As many files go as come.
CREATED = 2
REMOVED = 2
RENAMED = 3


class Operations:
    """`FILES` files at any time, but for a few."""

    def __init__(self, root: str, seed: int) -> None:
        self._root = root
        self._chance = random.Random(seed)
        self._block = bytearray(self._chance.randbytes(BLOCK_BYTES))
        self._named = 0
        self._made = 0
        self._names: list[str] = []
        self._open: list[tuple[str, int]] = []  # those that are written, with their descriptors
        for number in range(DIRECTORIES):
            os.makedirs(os.path.join(root, f"d{number}"))
        for _ in range(FILES):
            self._create()

    def make(self, count: int) -> None:
        for _ in range(count):
            kind = self._chance.random() * 100
            if kind < CREATED:
                self._create()
            elif kind < CREATED + REMOVED:
                self._remove()
            elif kind < CREATED + REMOVED + RENAMED:
                self._rename()
            else:
                self._write()

    def _new_name(self) -> str:
        self._named += 1
        return os.path.join(self._root, f"d{self._chance.randrange(DIRECTORIES)}", f"f{self._named}")

    def _create(self) -> None:
        name = self._new_name()
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        self._names.append(name)

    def _take(self) -> str:
        """A name that is in use no more."""
        place = self._chance.randrange(len(self._names))
        name, self._names[place] = self._names[place], self._names[-1]
        self._names.pop()
        for index, (known, descriptor) in enumerate(self._open):
            if known == name:
                os.close(descriptor)
                del self._open[index]
                break
        return name

    def _remove(self) -> None:
        if len(self._names) > FILES // 2:
            os.unlink(self._take())

    def _rename(self) -> None:
        name, new = self._take(), self._new_name()
        os.rename(name, new)
        self._names.append(new)

    def _write(self) -> None:
        if self._made % WRITES_PER_OPEN == 0 or not self._open:
            self._open_another()
        self._made += 1
        _, descriptor = self._chance.choice(self._open)
        self._block[:8] = self._made.to_bytes(8, "big")
        os.pwrite(descriptor, self._block, self._chance.randrange(BLOCKS) * BLOCK_BYTES)

    def _open_another(self) -> None:
        name = self._chance.choice(self._names)
        if all(name != known for known, _ in self._open):
            self._open.append((name, os.open(name, os.O_WRONLY)))
        if len(self._open) > OPEN_FILES:
            os.close(self._open.pop(0)[1])


def main() -> None:
    root, seed = sys.argv[1:]
    operations = Operations(root, int(seed))
    print("ready", flush=True)
    for line in sys.stdin:
        operations.make(int(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
