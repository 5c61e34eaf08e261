"""Resolve paths strictly below one directory.

Paths come from another host. The kernel itself (openat2) refuses whatever would leave the root: "..",
absolute paths, symlinks anywhere in the path, magic links, and file systems mounted below the root. Where
openat2 is missing, the path is walked component by component. A name inside an open directory needs no
resolution at all, so directories (and files being written) are kept open.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.fs import calls

MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""Errors that mean: under this path is not what was looked for (nothing, or something of another type)."""

_RESOLVE = (
    calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS | calls.RESOLVE_NO_XDEV
)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OBJECT_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_BAD_NAMES = frozenset({b"", b".", b".."})
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class UnsafePathError(ReplicatorError):
    """A path no honest source sends: absolute, with "..", "." or empty components, NUL, or too long."""

    def __init__(self, path: bytes) -> None:
        super().__init__(f"refused path {path[:200]!r}: it is not a plain path below the root")


def check_name(name: bytes) -> bytes:
    """A single component, or UnsafePathError."""
    if name in _BAD_NAMES or b"/" in name or b"\0" in name:
        raise UnsafePathError(name)
    return name


def check_path(path: bytes) -> None:
    """A path below a root (the root itself is b""), or UnsafePathError."""
    if path and (
        len(path) > limits.PATH_BYTES or b"\0" in path or not _BAD_NAMES.isdisjoint(path.split(b"/"))
    ):
        raise UnsafePathError(path)


class Root:
    """An open directory, and everything strictly below it.

    `parent`, `directory` and `file` lend descriptors: they stay open until the next call that names another
    path. Whoever changes a name says so with `forget` or `forget_below`; a descriptor of a removed or moved
    object must never be lent again. Not thread-safe, except `open_directory`.
    """

    def __init__(
        self,
        path: str | bytes,
        *,
        directories_max: int = limits.DIRECTORY_DESCRIPTORS,
        files_max: int = limits.FILE_DESCRIPTORS,
        descriptor: int | None = None,
    ) -> None:
        """Open `path`, following symlinks: the administrator named it. OSError if it is no directory.

        `descriptor`: it is open already; this takes it over.
        """
        self.path = os.fsencode(path)
        if descriptor is None:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.descriptor = descriptor
        self.device = os.fstat(self.descriptor).st_dev
        self.keeper: Callable[[Root, bytes], bool] | None = None
        """Told of what is about to be removed as a whole; returns whether its name is gone already."""
        self._directories: OrderedDict[bytes, int] = OrderedDict()
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._directories_max = max(directories_max, 2)  # a rename borrows two at a time
        self._files_max = max(files_max, 1)
        self._hows = {
            flags: calls.open_how(flags, _RESOLVE) for flags in (_DIRECTORY_FLAGS, _FILE_FLAGS, _OBJECT_FLAGS)
        }
        self._openat2 = self._has_openat2()

    def close(self) -> None:
        if self.descriptor >= 0:
            self.forget_all()
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> "Root":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- lending descriptors ---

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The open directory that holds the last component of `path`, and that component. OSError if none."""
        head, slash, name = path.rpartition(b"/")
        if name in _BAD_NAMES or b"\0" in name or len(path) > limits.PATH_BYTES:
            raise UnsafePathError(path)
        if not slash:
            return self.descriptor, name
        if not head:
            raise UnsafePathError(path)
        return self.directory(head), name

    def directory(self, path: bytes) -> int:
        """A readable descriptor of a directory; b"" is the root."""
        if not path:
            return self.descriptor
        descriptor = self._directories.get(path)
        if descriptor is not None:
            self._directories.move_to_end(path)
            return descriptor
        descriptor = self.open_directory(path)
        self._directories[path] = descriptor
        if len(self._directories) > self._directories_max:
            os.close(self._directories.popitem(last=False)[1])
        return descriptor

    def file(self, path: bytes) -> int:
        """A descriptor of an existing regular file, for reading and writing. Else an OSError of `MISSING`."""
        descriptor = self._files.get(path)
        if descriptor is not None:
            self._files.move_to_end(path)
            return descriptor
        directory, name = self.parent(path)
        # Looking first: to open a device may already do something.
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        _expect_regular(state, path)
        descriptor = self._open(directory, name, _FILE_FLAGS)
        try:
            _expect_regular(os.fstat(descriptor), path)
        except OSError:
            os.close(descriptor)
            raise
        self.keep_file(path, descriptor)
        return descriptor

    def opened(self, path: bytes) -> int | None:
        """The descriptor of a file or directory if it is open already."""
        descriptor = self._files.get(path)
        return descriptor if descriptor is not None else self._directories.get(path)

    def keep_file(self, path: bytes, descriptor: int) -> None:
        """Take over a descriptor, open for writing, of the regular file at `path`."""
        previous = self._files.pop(path, None)
        if previous is not None:
            os.close(previous)
        self._files[path] = descriptor
        if len(self._files) > self._files_max:
            os.close(self._files.popitem(last=False)[1])

    # --- opening for the caller ---

    def open_directory(self, path: bytes) -> int:
        """A readable descriptor of a directory, to be closed by the caller. May be called from any thread."""
        if not path:
            return os.open(b".", _DIRECTORY_FLAGS, dir_fd=self.descriptor)
        check_path(path)
        return self._open(self.descriptor, path, _DIRECTORY_FLAGS)

    def open_object(self, path: bytes) -> int:
        """An O_PATH descriptor of whatever is at `path`, a symlink included, to be closed by the caller.

        Attributes are changed through its name in /proc/self/fd, which nobody can swap for something else
        meanwhile.
        """
        if not path:
            return os.open(b".", _OBJECT_FLAGS, dir_fd=self.descriptor)
        directory, name = self.parent(path)
        return self._open(directory, name, _OBJECT_FLAGS)

    # --- names that changed ---

    def forget(self, path: bytes) -> None:
        """The name of what is no directory changed hands or went away, or its file is to be closed."""
        descriptor = self._files.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def forget_below(self, path: bytes) -> None:
        """The name `path` of what may be a directory changed hands or went away, and with it all below."""
        below = path + b"/"
        for cache in (self._files, self._directories):
            for known in [k for k in cache if k == path or k.startswith(below)]:
                os.close(cache.pop(known))

    def forget_all(self) -> None:
        """Close everything lent. Done regularly, it bounds how long changes behind our back mislead us."""
        for cache in (self._files, self._directories):
            while cache:
                os.close(cache.popitem()[1])

    def look(self, path: bytes) -> os.stat_result | None:
        """The state of what is at `path` itself, not of what a symbolic link points to; None: nothing is."""
        try:
            directory, name = self.parent(path)
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in MISSING:
                return None
            raise

    # --- trees ---

    def remove(self, path: bytes) -> bool:
        """Remove whatever is at `path`, a directory with all below. False if there was nothing.

        OSError EXDEV if another file system is mounted below: its content is not ours.
        """
        try:
            directory, name = self.parent(path)
        except OSError as error:
            if error.errno in MISSING:
                return False
            raise
        kept = self.keeper is not None and self.keeper(self, path)
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return kept
        except IsADirectoryError:
            self._remove_directory(path)
            return True
        self.forget(path)
        return True

    def _remove_directory(self, top: bytes) -> None:
        self.forget_below(top)
        # A stack of paths and not of descriptors: a tree may be deeper than the number of descriptors we
        # have.
        stack = [top]
        while stack:
            path = stack[-1]
            descriptor = self.open_directory(path)
            try:
                subdirectories: list[bytes] = []
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            subdirectories.append(path + b"/" + name)
                            if len(subdirectories) >= limits.REMOVE_DIRECTORIES:
                                break  # the rest when these are gone
                        else:
                            os.unlink(name, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            if subdirectories:
                stack += subdirectories
            else:
                stack.pop()
                directory, name = self.parent(path)
                os.rmdir(name, dir_fd=directory)
                self.forget_below(path)

    def make_directories(self, path: bytes, mode: int = 0o700) -> None:
        """Make `path` a directory with all above it, replacing what is none on the way."""
        check_path(path)
        position = 0
        while position <= len(path):
            end = path.find(b"/", position)
            end = len(path) if end < 0 else end
            partial = path[:end]
            position = end + 1
            try:
                self.directory(partial)
            except OSError as error:
                if error.errno not in MISSING:
                    raise
                self.remove(partial)
                directory, name = self.parent(partial)
                os.mkdir(name, mode, dir_fd=directory)

    def sync(self) -> None:
        """Everything written so far is on stable storage on return (syncfs)."""
        calls.syncfs(self.descriptor)

    # --- resolution ---

    def _has_openat2(self) -> bool:
        try:
            os.close(calls.openat2(self.descriptor, b".", self._hows[_DIRECTORY_FLAGS]))
        except OSError as error:
            if error.errno in (
                errno.ENOSYS,
                errno.EPERM,
            ):  # an old kernel, or a container's filter of system calls
                return False
            raise
        return True

    def _open(self, directory: int, path: bytes, flags: int) -> int:
        open_: Callable[[int, bytes, int], int] = (
            self._open_by_kernel if self._openat2 else self._open_by_component
        )
        try:
            return open_(directory, path, flags)
        except OSError as error:
            if error.errno not in _OUT_OF_DESCRIPTORS or not (self._files or self._directories):
                if error.errno == errno.EXDEV:
                    raise OSError(errno.EXDEV, "another file system is mounted here", path) from None
                raise
        # The newest of each kind may be lent at this moment.
        for cache in (self._files, self._directories):
            while len(cache) > 1:
                os.close(cache.popitem(last=False)[1])
        return open_(directory, path, flags)

    def _open_by_kernel(self, directory: int, path: bytes, flags: int) -> int:
        return calls.openat2(directory, path, self._hows[flags])

    def _open_by_component(self, directory: int, path: bytes, flags: int) -> int:
        """What openat2 does, for kernels before 5.6: no component is a symlink, all on one file system."""
        device = os.fstat(directory).st_dev
        *above, last = path.split(b"/")
        current = directory
        try:
            for name in above:
                below = os.open(name, _DIRECTORY_FLAGS, dir_fd=current)
                if current != directory:
                    os.close(current)
                current = below
                _expect_device(current, device, path)
            descriptor = os.open(last, flags, dir_fd=current)
        finally:
            if current != directory:
                os.close(current)
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                _expect_device(descriptor, device, path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def _expect_device(descriptor: int, device: int, path: bytes) -> None:
    if os.fstat(descriptor).st_dev != device:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)


def _expect_regular(state: os.stat_result, path: bytes) -> None:
    mode = state.st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "a symlink stands where a regular file was expected", path)
    raise OSError(errno.ENXIO, "not a regular file", path)
