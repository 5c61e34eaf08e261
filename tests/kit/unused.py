"""A tree of files that nobody uses, which tells whether somebody compares everything.

    build_unused(source / "unused", seed)
    forget_reads(below / "unused")        # `below`: the storage below a mount, see `kit.snapshots.beneath`
    ...
    assert not was_read(below / "unused")

The kernel notes the read of a directory whose access time is not later than its last change (mount(8),
relatime). So nobody has to be believed who says what he has not read.
"""

import os
import random
from pathlib import Path

DIRECTORIES = 30
FILES = 20  # in each of them
FILE_BYTES_MAX = 20_000
LARGE_BYTES = 64 << 20


def build_unused(directory: Path, seed: int, large_bytes: int = LARGE_BYTES) -> None:
    """Small files, and a large one that nobody would like to send."""
    chance = random.Random(seed)
    for number in range(DIRECTORIES):
        (directory / str(number)).mkdir(parents=True)
        for index in range(FILES):
            content = chance.randbytes(chance.randrange(FILE_BYTES_MAX))
            (directory / str(number) / str(index)).write_bytes(content)
    with open(directory / "0" / "large", "wb") as file:
        for _ in range(large_bytes >> 20):
            file.write(chance.randbytes(1 << 20))


def forget_reads(directory: str) -> None:
    """Past the mount: no capture hears of it."""
    for number in range(DIRECTORIES):
        path = os.path.join(directory, str(number))
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns))


def was_read(directory: str) -> bool:
    """Whether anybody has listed a directory in it since then."""
    return any(os.stat(os.path.join(directory, str(number))).st_atime_ns for number in range(DIRECTORIES))
