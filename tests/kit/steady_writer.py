"""Writes at a steady rate, until it is told to stop: overwrites, appends, new files, renames, attributes.

`python steady_writer.py DIRECTORY OPERATIONS_PER_S`; prints how many operations it did, when its standard
input ends.
"""

import os
import random
import select
import sys
import time
from pathlib import Path

FILES = 40
STEP_S = 0.01
BURST = 100
SPREAD_BYTES = 1 << 20


def one(directory: Path, descriptors: list[int], chance: random.Random, count: int) -> None:
    act = chance.random()
    index = chance.randrange(FILES)
    if act < 0.9:
        os.pwrite(descriptors[index], chance.randbytes(500), chance.randrange(SPREAD_BYTES))
    elif act < 0.94:
        path = directory / f"new {count % 200}"
        path.write_bytes(chance.randbytes(200))
    elif act < 0.97:
        try:
            os.rename(directory / f"new {chance.randrange(200)}", directory / f"new {chance.randrange(200)}")
        except FileNotFoundError:
            pass
    elif act < 0.99:
        os.fchmod(descriptors[index], chance.choice((0o600, 0o644, 0o640)))
    else:
        os.ftruncate(descriptors[index], chance.randrange(SPREAD_BYTES))


def main(directory: Path, rate: int) -> None:
    directory.mkdir(exist_ok=True)
    chance = random.Random(rate)
    flags = os.O_RDWR | os.O_CREAT
    descriptors = [os.open(directory / f"file {n}", flags, 0o644) for n in range(FILES)]
    began_s, done = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        due = int((time.monotonic() - began_s) * rate)
        # On a machine that cannot do so many it is always late, and is to end all the same.
        for _ in range(min(due - done, BURST)):
            one(directory, descriptors, chance, done)
            done += 1
        if done >= due:
            time.sleep(STEP_S)
    print(done, time.monotonic() - began_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
