"""A host that has too much to do: processors and disk.

python -m kit.overload FILE    # until SIGTERM; one busy loop per processor and two that write and sync
"""

import itertools
import os
import signal
import sys

BLOCK_BYTES = 1 << 20
FILE_BYTES = 64 << 20


def burn() -> None:
    for number in itertools.count():
        number * number


def write(path: str) -> None:
    block = os.urandom(BLOCK_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    for number in itertools.count():
        os.pwrite(descriptor, block, number * BLOCK_BYTES % FILE_BYTES)
        os.fsync(descriptor)


def main() -> None:
    path = sys.argv[1]
    children = []
    for work in [burn] * (2 * (os.cpu_count() or 1)) + [lambda: write(path), lambda: write(f"{path}.2")]:
        if (child := os.fork()) == 0:
            work()
        children.append(child)

    def end(number: int, frame: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
