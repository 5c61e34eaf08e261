"""A file that is built before it gets its name: nobody ever sees a part of it.

It has no name at all meanwhile (O_TMPFILE), so that nothing is left of it after a kill. Where the file system
has no files without name it has a hidden one, which whoever builds there next removes.
"""

import errno
import os

from replicator.fs import calls
from replicator.fs.attributes import proc_path
from replicator.ops import RENAME_NOREPLACE

CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
UNFINISHED_MODE = 0o600
_NAMELESS_FLAGS = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


def begin(directory: int, hidden: bytes) -> tuple[int, bytes | None]:
    """A descriptor of an empty file for reading and writing, and `hidden` if it has that name. OSError."""
    try:
        return begin_nameless(directory), None
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    unlink_quietly(directory, hidden)
    return os.open(hidden, CREATE_FLAGS, UNFINISHED_MODE, dir_fd=directory), hidden


def begin_nameless(directory: int) -> int:
    """The same without a name. OSError: also where there are no such files."""
    return os.open(b".", _NAMELESS_FLAGS, UNFINISHED_MODE, dir_fd=directory)


def finish(descriptor: int, hidden: bytes | None, directory: int, name: bytes) -> None:
    """It is complete, and gets `name`. FileExistsError: something has that name; nothing is changed then."""
    if hidden is None:
        os.link(proc_path(descriptor).encode(), name, dst_dir_fd=directory, follow_symlinks=True)
        return
    try:
        calls.renameat2(directory, hidden, directory, name, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        return
    # A file system that knows no such flag. Nobody but us makes names in a target.
    if exists(name, directory):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)


def exists(name: bytes, directory: int) -> bool:
    """Whether there is a name, whatever it refers to."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def unlink_quietly(directory: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
