"""The tree model of the tests must not change what it looks at."""

import os
from pathlib import Path

from kit.trees import snapshot


def test_reading_a_file_does_not_fill_its_holes(tmp_path: Path) -> None:
    """On ext4 blocks that were preallocated, and never written, count as data while they are cached."""
    with open(tmp_path / "file", "wb") as file:
        os.pwrite(file.fileno(), b"data", 1 << 20)
        os.posix_fallocate(file.fileno(), 0, 64 * 1024)
    for _ in range(2):
        assert snapshot(tmp_path)[b"file"].holes == ((1 << 20, (1 << 20) + 4),)
