"""A small value in shared memory that survives kill -9: after any interruption the last value stored whole is
found.

Two copies, written in turn, each with a number and a checksum. Nothing is synced: the value is as old as the
boot, which is what the applied position of a target wants to be (after power loss it would be a lie).
"""

import struct

import xxhash

from replicator.world import World

_HEAD = struct.Struct("<QQI")  # checksum of all that follows, number, bytes of the value


class SharedValue:
    """`store` costs a checksum and a copy of the value, about a microsecond."""

    def __init__(self, world: World, path: str, value_bytes_max: int, *, create: bool) -> None:
        """Raises FileNotFoundError or ValueError if there is none and `create` is False."""
        self._copy_bytes = _HEAD.size + value_bytes_max
        self._memory = world.shared_memory(path, 2 * self._copy_bytes, create)
        self._buffer = self._memory.buffer
        self._number, self._value = self._newest()

    def load(self) -> bytes | None:
        """The last value stored whole; None: there was none yet."""
        return self._value

    def store(self, value: bytes) -> None:
        """Raises ValueError if it is too long."""
        size = len(value)
        if _HEAD.size + size > self._copy_bytes:
            raise ValueError(f"a value of {size} bytes does not fit")
        number = self._number + 1
        start = (number & 1) * self._copy_bytes
        covered = b"%b%b" % (_HEAD.pack(0, number, size)[8:], value)
        data = xxhash.xxh3_64_digest(covered) + covered
        self._buffer[start : start + len(data)] = data
        self._number, self._value = number, value

    def claim(self) -> bool:
        """Be its only user until `close` or the end of the process; False: another process is."""
        return self._memory.claim()

    def close(self) -> None:
        self._memory.close()

    def _newest(self) -> tuple[int, bytes | None]:
        best: tuple[int, bytes | None] = (0, None)
        for start in (0, self._copy_bytes):
            _, number, size = _HEAD.unpack_from(self._buffer, start)
            if number <= best[0] or _HEAD.size + size > self._copy_bytes:
                continue
            covered = bytes(self._buffer[start + 8 : start + _HEAD.size + size])
            if xxhash.xxh3_64_digest(covered) == self._buffer[start : start + 8]:
                best = (number, covered[_HEAD.size - 8 :])
        return best
