"""Changes of names that are done and not answered yet, because their targets have not received them: in
mapped memory, for the successor of a killed capture.

The kernel hands their requests out again, and none of them can be done twice. `Intent` has room for the one
that is under way; here are those before it that wait (a mount with `sync=all`). One slot each:

    unique (8 bytes, 0: free; stored last) | bytes of the reply (8) | the reply
"""

import mmap
import os
import struct

SLOTS = 1024  # more at a time would not be known to a successor: their programs get errors after a kill
_SLOT_BYTES = 256
_WORD = struct.Struct("<Q")
_REPLY_BYTES_MAX = _SLOT_BYTES - 2 * _WORD.size


class HeldNotes:
    """Written by one process at a time. Raises OSError if there is no room for it."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, SLOTS * _SLOT_BYTES)  # takes memory when it is used
            self._map = mmap.mmap(descriptor, SLOTS * _SLOT_BYTES)
        finally:
            os.close(descriptor)
        self._path = path
        self._slots: dict[int, int] = {}  # offset, by unique
        self._free: list[int] = []
        for offset in reversed(range(0, SLOTS * _SLOT_BYTES, _SLOT_BYTES)):
            (unique,) = _WORD.unpack_from(self._map, offset)
            if unique:
                self._slots[unique] = offset
            else:
                self._free.append(offset)

    def note(self, unique: int, reply: bytes) -> None:
        """It is done and journaled, and will be answered so."""
        if unique in self._slots or not self._free or len(reply) > _REPLY_BYTES_MAX:
            return
        offset = self._slots[unique] = self._free.pop()
        start = offset + 2 * _WORD.size
        self._map[start : start + len(reply)] = reply
        _WORD.pack_into(self._map, offset + _WORD.size, len(reply))
        _WORD.pack_into(self._map, offset, unique)

    def find(self, unique: int) -> bytes | None:
        """The answer to a request that a predecessor has done."""
        offset = self._slots.get(unique)
        if offset is None:
            return None
        (length,) = _WORD.unpack_from(self._map, offset + _WORD.size)
        start = offset + 2 * _WORD.size
        return self._map[start : start + length]

    def answered(self, unique: int) -> None:
        """The kernel has it: the request will not come again."""
        offset = self._slots.pop(unique, None)
        if offset is not None:
            _WORD.pack_into(self._map, offset, 0)
            self._free.append(offset)

    def remove(self) -> None:
        self._map.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
