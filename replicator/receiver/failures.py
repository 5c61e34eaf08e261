"""How operations on a target fail, and what that means."""

import errno
import os
import struct

from replicator.errors import ReplicatorError
from replicator.ops import shown

TARGET_IS_ILL = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
        *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE),
    }
)
"""Errors that concern the whole target, not one path: also a tolerant target waits for their end."""

FAILURES = (OSError, ReplicatorError, ValueError, OverflowError, struct.error)
"""How an operation fails. The last three mean values that no honest source sends; they must not end this
process.
"""

IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})
"""Errors of an operation on names that meets something here which the source does not have there."""


def errno_of(error: BaseException) -> int:
    """0: the reason is not the operating system's."""
    number = getattr(error, "errno", 0)
    return number if isinstance(number, int) else 0


def reason_of(error: BaseException) -> str:
    """One line: what failed on which path, and why."""
    if isinstance(error, OSError):
        where = f"{shown(os.fsencode(error.filename))}: " if error.filename else ""
        return where + (error.strerror or str(error))
    return str(error)
