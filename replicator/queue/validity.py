"""Whether a record that another host sent says something that can be. The codec proves that its bytes are
whole; this is about what they mean. Pure.

Only what no capture of ours could have recorded is refused, so that an honest source never is.
"""

import re

from replicator.bounds import FILE_BYTES_MAX
from replicator.ops import TWO_PATH_KINDS, Attributes, Kind, Record

ATTRIBUTES_BYTES = len(Attributes().encode())
_MODE_BYTES = 4  # of FALLOCATE

_NO_COMPONENT = re.compile(rb"\0|(?:^|/)\.{0,2}(?:/|$)")
"""Of a path that is not empty: NUL, or a component that is empty, "." or ".."."""

_DRESSED = frozenset({Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.MKNOD, Kind.SETATTR})
_AT_OFFSET = frozenset({Kind.WRITE, Kind.TRUNCATE, Kind.FALLOCATE})
_SHIPPED = frozenset(Kind) - {Kind.FRAME}
_ABOUT_ROOT = frozenset(
    {Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR, Kind.DOUBT, Kind.HOLE, Kind.REMOVE_TREE}
)
"""What may speak of the root itself; all others name something in it."""


def impossible(record: Record) -> str:
    """Why no source could have recorded it; "": it could."""
    kind = record.kind
    if kind not in _SHIPPED:
        return f"kind {kind} is never shipped"
    path = record.path
    if path:
        if _NO_COMPONENT.search(path):
            return "its path is not a plain path below the root"
    elif kind not in _ABOUT_ROOT:
        return "it has no path"
    if kind in _AT_OFFSET:
        extent = len(record.payload) if kind == Kind.WRITE else record.arg1 if kind == Kind.FALLOCATE else 0
        if record.arg0 + extent > FILE_BYTES_MAX:
            return "it reaches beyond the largest file"
        if kind == Kind.FALLOCATE and len(record.payload) != _MODE_BYTES:
            return "its mode is missing"
    elif kind in _DRESSED:
        if len(record.payload) != ATTRIBUTES_BYTES:
            return "its attributes are missing"
        if kind == Kind.SYMLINK and (not record.path2 or b"\0" in record.path2):
            return "its link text is none"
    elif kind in TWO_PATH_KINDS:
        if not record.path2 or _NO_COMPONENT.search(record.path2):
            return "its second path is not a plain path below the root"
    elif kind in (Kind.SETXATTR, Kind.REMOVEXATTR) and (not record.path2 or b"\0" in record.path2):
        return "it names no extended attribute"
    return ""
