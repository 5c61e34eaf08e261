"""Files of which a part is changed: what a failback has to bring, and what else it may not."""

import os
import random
from pathlib import Path

BULK_FILES, FILE_BYTES, BLOCK_BYTES = 64, 1 << 20, 4096
SHARE = 0.01


def build_bulk(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "bulk").mkdir()
    for number in range(BULK_FILES):
        (root / "bulk" / f"f{number}").write_bytes(os.urandom(FILE_BYTES))


def change_bulk(root: Path) -> int:
    """1 % of its blocks, at random places. Returns bytes changed."""
    places = [(file, block) for file in range(BULK_FILES) for block in range(FILE_BYTES // BLOCK_BYTES)]
    chosen = random.Random(1).sample(places, int(len(places) * SHARE))
    for file, block in chosen:
        with open(root / "bulk" / f"f{file}", "r+b") as target:
            target.seek(block * BLOCK_BYTES)
            target.write(os.urandom(BLOCK_BYTES))
    return len(chosen) * BLOCK_BYTES
