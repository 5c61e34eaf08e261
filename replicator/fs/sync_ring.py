"""Syncs of files that need no thread: the kernel does them and says when they are done.

A thread of ours that waits for a disk has to get the interpreter back from the one that serves requests, and
both lose more by that than many a disk takes. One thread owns a ring.

To link the reply behind the sync would save a wake, but a sync that fails does not break a link (Linux 6.18).

Source: io_uring(7), io_uring_setup(2), io_uring_enter(2), include/uapi/linux/io_uring.h.
"""

import ctypes
import errno
import mmap
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_SETUP, _ENTER = 425, 426  # the same numbers on every architecture
_PARAMETERS_BYTES = 120  # struct io_uring_params: counts and flags, then offsets within the map
_COUNTS = struct.Struct("<IIIIII")  # entries, entries of what is done, flags, -, -, features
_OFFSETS = struct.Struct("<IIIIIII")  # head, tail, mask, entries, -, and of the arrays: see below
_SUBMITTED_OFFSETS, _DONE_OFFSETS = 40, 80
_SINGLE_MAP = 1 << 0  # IORING_FEAT_SINGLE_MMAP, Linux 5.4
_ENTRIES_OFFSET = 0x1000_0000  # IORING_OFF_SQES
_ENTRY = struct.Struct("<BBHiQQIIQ24x")  # struct io_uring_sqe
_ENTRY_BYTES = 64
_FSYNC = 3  # IORING_OP_FSYNC
_DATA_ONLY = 1  # IORING_FSYNC_DATASYNC
_DONE = struct.Struct("<Qi4x")  # struct io_uring_cqe
_DONE_BYTES = 16
_MASK = 0xFFFF_FFFF


class SyncRing:
    """`fileno` is readable while something is done."""

    def __init__(self, entries: int) -> None:
        """At most so many syncs (a power of two) are under way. Raises OSError: there is no ring for us."""
        parameters = ctypes.create_string_buffer(_PARAMETERS_BYTES)
        descriptor: int = _libc.syscall(_SETUP, entries, parameters)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._descriptor = descriptor
        self._entries, done_entries, _, _, _, features = _COUNTS.unpack_from(parameters)
        _, tail, mask, _, _, _, array = _OFFSETS.unpack_from(parameters, _SUBMITTED_OFFSETS)
        done_head, done_tail, done_mask, _, _, self._done, _ = _OFFSETS.unpack_from(parameters, _DONE_OFFSETS)
        # Of these the words' numbers.
        self._tail, self._mask, self._array = tail // 4, mask // 4, array // 4
        self._done_head, self._done_tail, self._done_mask = done_head // 4, done_tail // 4, done_mask // 4
        size = max(array + self._entries * 4, self._done + done_entries * _DONE_BYTES)
        try:
            if not features & _SINGLE_MAP:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            self._entry_map = mmap.mmap(
                descriptor,
                self._entries * _ENTRY_BYTES,
                mmap.MAP_SHARED | mmap.MAP_POPULATE,
                offset=_ENTRIES_OFFSET,
            )
        except OSError:
            os.close(descriptor)
            raise
        self._words = memoryview(self._map).cast("I")
        self.under_way = 0
        """Syncs that were submitted and are not told by `done` yet."""

    def fileno(self) -> int:
        return self._descriptor

    def submit(self, descriptor: int, data_only: bool, key: int) -> bool:
        """Begin an fsync(2) or fdatasync(2); `done` tells its `key`, below 2**64. False: none more now."""
        if self.under_way >= self._entries:
            return False
        words = self._words
        tail = words[self._tail]
        index = tail & words[self._mask]
        _ENTRY.pack_into(
            self._entry_map,
            index * _ENTRY_BYTES,
            _FSYNC,
            0,
            0,
            descriptor,
            0,
            0,
            0,
            _DATA_ONLY if data_only else 0,
            key,
        )
        words[self._array + index] = index
        words[self._tail] = (tail + 1) & _MASK
        if _libc.syscall(_ENTER, self._descriptor, 1, 0, 0, None, 0) != 1:
            words[self._tail] = tail  # nobody has looked at it: the kernel does so within the call only
            return False
        self.under_way += 1
        return True

    def done(self) -> list[tuple[int, int]]:
        """(key, 0 or an errno) of what has ended since the last call. Quick if that is nothing."""
        words = self._words
        head, tail = words[self._done_head], words[self._done_tail]
        if head == tail:
            return []
        ended: list[tuple[int, int]] = []
        while head != tail:
            place = self._done + (head & words[self._done_mask]) * _DONE_BYTES
            key, result = _DONE.unpack_from(self._map, place)
            ended.append((key, -result if result < 0 else 0))
            head = (head + 1) & _MASK
        words[self._done_head] = head
        self.under_way -= len(ended)
        return ended

    def close(self) -> None:
        """What is under way goes on, and nobody hears of it."""
        self._words.release()
        self._map.close()
        self._entry_map.close()
        os.close(self._descriptor)
