"""What a file system may have lost of a tree when its host loses power.

It keeps what was synced. Of what came later it may keep the names and not the contents, the contents and not
the names, or a part: sizes and times say nothing about it.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from random import Random

from kit.trees import data_extents

_BLOCK_BYTES = 4096


class Synced:
    """A tree as it was when it was last synced."""

    def __init__(self, tree: Path, image: Path) -> None:
        self._tree = tree
        self._image = image
        self._states: dict[str, tuple[int, ...]] = {}
        self.note()

    def note(self) -> None:
        """All that is in the tree now is on the medium."""
        shutil.rmtree(self._image, ignore_errors=True)
        _copy(self._tree, self._image)
        self._states = {name: _state(state) for name, state in _files(self._tree)}

    def lose_power(self, chance: Random) -> str:
        """Leave of the tree what a power cut may leave. Returns what was done, for people."""
        names = chance.choice(("newest names", "synced names"))
        changed = [(name, state) for name, state in _files(self._tree) if self._differs(name, state)]
        if names == "newest names":
            synced = {number: name for name, (number, *_) in self._states.items()}
            for name, state in changed:
                old = self._image / synced[state.st_ino] if state.st_ino in synced else None
                self._tear(name, old.read_bytes() if old is not None else b"", chance)
        else:
            newest = {name: (self._tree / name).read_bytes() for name, _ in changed}
            for child in self._tree.iterdir():
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
            _copy(self._image, self._tree)
            for name, state in changed:
                same = name in self._states and self._states[name][0] == state.st_ino
                if same and chance.random() < 0.5:
                    content = newest[name]
                    _overwrite(self._tree / name, content[: chance.randrange(len(content) + 1)])
        self.note()  # what there is after it was read from the medium: the next power loss does not take it
        return f"{names}, {len(changed)} files torn"

    def _differs(self, name: str, state: os.stat_result) -> bool:
        return self._states.get(name) != _state(state)

    def _tear(self, name: str, old: bytes, chance: Random) -> None:
        """Only of what was written since: what was on the medium before stays there."""
        path = self._tree / name
        new = path.read_bytes()
        how = chance.choice(("kept", "zeros", "old"))
        if how == "kept":
            return
        old += bytes(max(len(new) - len(old), 0))
        lost = old if how == "old" else bytes(len(new))
        torn = bytes(n if n == o else x for n, o, x in zip(new, old, lost, strict=False))
        _overwrite(path, torn)


def _state(state: os.stat_result) -> tuple[int, ...]:
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _files(tree: Path) -> list[tuple[str, os.stat_result]]:
    found = []
    for path in sorted(tree.rglob("*")):
        state = path.lstat()
        if stat.S_ISREG(state.st_mode):
            found.append((str(path.relative_to(tree)), state))
    return found


def _overwrite(path: Path, data: bytes) -> None:
    """The first bytes of it, and not its size and times."""
    state = path.lstat()
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        now = os.pread(descriptor, state.st_size, 0)
        for offset in range(0, min(len(data), len(now)), _BLOCK_BYTES):  # no hole becomes zeros
            block = data[offset : offset + _BLOCK_BYTES][: len(now) - offset]
            if block != now[offset : offset + len(block)]:
                os.pwrite(descriptor, block, offset)
        os.utime(descriptor, ns=(state.st_atime_ns, state.st_mtime_ns))
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)
    for name, _ in _files(source):
        _fill(source / name, target / name)


def _fill(source: Path, target: Path) -> None:
    """`cp` takes blocks of zeros for holes in a file that has others, and a small hole for zeros."""
    state = source.lstat()
    with source.open("rb") as whole, target.open("r+b") as copy:
        extents = data_extents(whole.fileno(), state.st_size)
        if extents == data_extents(copy.fileno(), state.st_size):
            return
        copy.truncate(0)
        copy.truncate(state.st_size)
        for start, end in extents:
            os.pwrite(copy.fileno(), os.pread(whole.fileno(), end - start, start), start)
        os.utime(copy.fileno(), ns=(state.st_atime_ns, state.st_mtime_ns))
