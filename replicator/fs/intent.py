"""The change of a name that is under way, in mapped memory: for the successor of a killed capture.

The kernel hands out again what its predecessor had not answered. Most requests can simply be done once more:
their result is the same, and so is their record. A name that was made, moved or removed cannot: so before
such a request is handled it is noted here with the end of the journal, and afterwards with its reply.
"""

import mmap
import os
import struct
from typing import NamedTuple

_STATE = struct.Struct("<QQQIII")  # unique, sequence, inode, bytes of the reply + 1, errno, verdict
_WORD = struct.Struct("<Q")
_INODE_OFFSET = 16
_RESULT = struct.Struct("<II")
_RESULT_OFFSET = 24
_VERDICT = struct.Struct("<I")
_VERDICT_OFFSET = 32
_UNDECIDED, _RECORDED, _NOT_RECORDED = 0, 1, 2
_REPLY_OFFSET = 40
_BYTES = 4096


class Noted(NamedTuple):
    """The last request noted."""

    unique: int  # 0: none
    inode: int  # of the object whose name it moves or removes, as far as it came to that
    reply: bytes | int | None  # an int is an errno; None: it may have been done or not
    is_recorded: bool  # it was done, and journaled: see `decide`


class Intent:
    """Written by one process at a time. Raises OSError if there is no room for it."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self._path = path

    def read(self) -> Noted:
        unique, _, inode, length, error, verdict = _STATE.unpack_from(self._map)
        reply: bytes | int | None = error or None
        if length and not error:
            reply = self._map[_REPLY_OFFSET : _REPLY_OFFSET + length - 1]
        return Noted(unique, inode, reply, verdict == _RECORDED)

    def begin(self, unique: int, sequence: int, inode: int = 0) -> None:
        """The request is about to be handled; the journal ends with `sequence`."""
        # Not valid while it is half written: a successor must not take an old reply for the new request's.
        _WORD.pack_into(self._map, 0, 0)
        _STATE.pack_into(self._map, 0, 0, sequence, inode, 0, 0, _UNDECIDED)
        _WORD.pack_into(self._map, 0, unique)

    def decide(self, sequence: int) -> None:
        """By the end of the journal as a killed predecessor left it: whether what it noted is in there.

        For a successor, before it journals anything itself; what a predecessor of both has decided stands.
        """
        unique, before, _, _, _, verdict = _STATE.unpack_from(self._map)
        if unique and verdict == _UNDECIDED:
            verdict = _RECORDED if sequence > before else _NOT_RECORDED
            _VERDICT.pack_into(self._map, _VERDICT_OFFSET, verdict)

    def note(self, inode: int) -> None:
        """Which object it is about: it cannot be found by that name afterwards."""
        _WORD.pack_into(self._map, _INODE_OFFSET, inode)

    def done(self, reply: bytes) -> None:
        """It is done and journaled; this is the answer."""
        end = _REPLY_OFFSET + len(reply)
        if end <= _BYTES:
            self._map[_REPLY_OFFSET:end] = reply
            _RESULT.pack_into(self._map, _RESULT_OFFSET, len(reply) + 1, 0)

    def failed(self, error: int) -> None:
        """It was refused with this errno."""
        _RESULT.pack_into(self._map, _RESULT_OFFSET, 0, error)

    def close(self) -> None:
        self._map.close()

    def remove(self) -> None:
        self.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
