"""A small value in shared memory that survives kill -9: after any interruption the last value stored whole is
found.

Two copies (see `two_copies.py`). Nothing is synced: the value is as old as the boot, which is what the
applied position of a target wants to be (after power loss it would be a lie).
"""

from replicator.receiver import two_copies
from replicator.world import World


class SharedValue:
    """`store` costs a checksum and a copy of the value, about a microsecond."""

    def __init__(self, world: World, path: str, value_bytes_max: int, *, create: bool) -> None:
        """Raises FileNotFoundError or ValueError if there is none and `create` is False."""
        self._copy_bytes = two_copies.HEAD_BYTES + value_bytes_max
        self._memory = world.shared_memory(path, 2 * self._copy_bytes, create)
        self._buffer = self._memory.buffer
        starts = (0, self._copy_bytes)
        self._number, self._value = two_copies.newest(
            self._buffer[start : start + self._copy_bytes] for start in starts
        )

    def load(self) -> bytes | None:
        """The last value stored whole; None: there was none yet."""
        return self._value

    def store(self, value: bytes) -> None:
        """Raises ValueError if it is too long."""
        size = len(value)
        if two_copies.HEAD_BYTES + size > self._copy_bytes:
            raise ValueError(f"a value of {size} bytes does not fit")
        number = self._number + 1
        start = (number & 1) * self._copy_bytes
        data = two_copies.encode(number, value)
        self._buffer[start : start + len(data)] = data
        self._number, self._value = number, value

    def claim(self) -> bool:
        """Be its only user until `close` or the end of the process; False: another process is."""
        return self._memory.claim()

    def close(self) -> None:
        self._memory.close()
