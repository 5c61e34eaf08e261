"""Create objects as their owner in one step, so that no chown afterwards is needed (or seen half done).

The file-system ids of a thread (setfsuid(2)) decide who owns what it creates, and whether a set-group-id
directory passes on its group. Leaving uid 0 also takes the file-system capabilities out of the effective set;
they are raised again, because permission was already decided by the kernel above (capture) or on the source.

A thread returns to its own ids at the end of the block. Staying would save calls, but what the thread creates
next may be a segment of a journal, and that must never belong to a user.
"""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import NamedTuple

_CAPABILITY_VERSION_3 = 0x20080522
_OWN_THREAD = 0

_libc = ctypes.PyDLL(None)  # keeps the interpreter lock: these calls take less time than handing it over


class Caller(NamedTuple):
    """Who asks for an operation: file-system ids, and the umask the kernel has not applied yet."""

    uid: int
    gid: int
    process_id: int = 0
    umask: int = 0

    def is_in_group(self, gid: int) -> bool:
        """Also by a supplementary group, as far as the process still exists."""
        if gid == self.gid:
            return True
        try:
            with open(f"/proc/{self.process_id}/status", "rb") as file:
                for line in file:
                    if line.startswith(b"Groups:"):
                        return str(gid).encode() in line.split()[1:]
        except OSError:
            pass
        return False


ROOT = Caller(0, 0)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_header = _Header(_CAPABILITY_VERSION_3, _OWN_THREAD)
_capabilities = (_Data * 2)()
_setfsuid = _libc.setfsuid
_setfsgid = _libc.setfsgid
_setfsuid.argtypes = _setfsgid.argtypes = (ctypes.c_uint32,)
_capset = _libc.capset

_IS_ROOT = os.geteuid() == 0
_OWN_UID = os.geteuid()
_OWN_GID = os.getegid()

_header_argument = ctypes.byref(_header)
_libc.capget(_header_argument, _capabilities)  # cannot fail for the own thread and a known version


class _AsOwner:
    __slots__ = ("_gid", "_uid")

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def __enter__(self) -> None:
        _setfsgid(self._gid)
        if self._uid != _OWN_UID:
            _setfsuid(self._uid)
            _capset(_header_argument, _capabilities)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._uid != _OWN_UID:
            _setfsuid(_OWN_UID)  # raises the effective capabilities again by itself
        _setfsgid(_OWN_GID)


_nothing: AbstractContextManager[None] = nullcontext()


def as_owner(uid: int, gid: int) -> AbstractContextManager[None]:
    """Within the block, what this thread creates belongs to `uid` and `gid` (or a set-gid directory's group).

    Costs nothing for the process's own ids, and does nothing without root, where nobody else's objects can be
    made. There must be no checkpoint within the block.
    """
    if not _IS_ROOT or (uid == _OWN_UID and gid == _OWN_GID):
        return _nothing
    return _AsOwner(uid, gid)


class CreatedBy:
    """Within the block, what this thread creates belongs to `caller`, with its umask.

    The umask is the whole process's: no other thread may create anything meanwhile.
    """

    __slots__ = ("_owner", "_umask")

    def __init__(self, caller: Caller) -> None:
        self._owner = as_owner(caller.uid, caller.gid)
        self._umask = caller.umask

    def __enter__(self) -> None:
        os.umask(self._umask)
        self._owner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner.__exit__(kind, error, traceback)
        os.umask(0)


def prepare_process() -> None:
    """Call once, before anything is created for others: their modes come in full, nothing is masked."""
    os.umask(0)
