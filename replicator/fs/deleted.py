"""What deletions take out of a copy, kept in another directory (RP-04).

A copy that kept deleted files in their places would be no state of its source. So deletions are applied, and
files that nobody has then any more are moved away instead of being removed: the copy is exact, and nothing is
lost.
"""

import errno
import os
import stat

from replicator.fs.beneath import MISSING, Root
from replicator.fs.relocate import Store


class Deleted:
    """One directory for one copy; it is made when something is kept. A keeper of `Root`s."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._store: Store | None = None

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def __call__(self, root: Root, path: bytes) -> bool:
        """The object at `path` is about to be removed, a directory with all below. Returns whether it is gone
        already. Who is killed half-way finds the rest where it was. OSError: it stays.
        """
        try:
            directory, name = root.parent(path)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in MISSING:
                return False
            raise
        if stat.S_ISDIR(state.st_mode):
            self._keep_below(root, path)
            return False
        return self._keep(root, path, state)

    def _keep(self, root: Root, path: bytes, state: os.stat_result) -> bool:
        if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
            return False  # it has no content, or another name of it has
        if self._store is None:
            self._store = Store(self._directory)
        for _ in self._store.move(root, path, path, lambda _: None):
            pass
        return True

    def _keep_below(self, root: Root, top: bytes) -> None:
        """All files of a directory. A stack of paths: a tree may be deeper than we have descriptors."""
        stack = [top]
        while stack:
            path = stack.pop()
            descriptor = root.open_directory(path)
            try:
                if os.fstat(descriptor).st_dev != root.device:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                with os.scandir(descriptor) as entries:
                    found = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
                for name, is_directory in found:
                    child = path + b"/" + name
                    if is_directory:
                        stack.append(child)
                    else:
                        self._keep(root, child, os.stat(name, dir_fd=descriptor, follow_symlinks=False))
            finally:
                os.close(descriptor)
