"""home/target/<connection>/position: up to where a target's copy is durable.

Two copies (see `two_copies.py`), each in a slot of `limits.POSITION_BYTES`; the value is a MessagePack array
of a map from journal id to [sequence, chain], and two times. A slot is overwritten in place and the file
keeps its size, so that a new position costs the device one block and no change of metadata. A file replaced
by rename costs seventeen (ext4), more than the change whose position it tells.

A crash while a slot is written leaves the other one: the position before, which is true as well, only older.
Without a whole slot nothing is known to be durable.
"""

import os

import msgspec

from replicator import limits
from replicator.receiver import two_copies
from replicator.receiver.replica_state import Marks
from replicator.world import World

_SLOTS = (0, limits.POSITION_BYTES)


class Durable(msgspec.Struct, frozen=True, array_like=True):
    """What is on stable storage."""

    marks: Marks = {}
    wall_ns: int = 0  # before the copy was synced: what its file system has stamped later may be lost
    done_ns: int = 0  # when the source did the last operation of it; 0: not known


class PositionFile:
    """The last position saved, durable itself."""

    def __init__(self, world: World, directory: str) -> None:
        """Opens the file, creates it if there is none. OSError."""
        self._disk = disk = world.disk
        path = os.path.join(directory, "position")
        self._handle = disk.open_append(path)
        try:
            self._number, value = two_copies.newest(
                disk.read(self._handle, limits.POSITION_BYTES, slot) for slot in _SLOTS
            )
            if value is None:
                disk.truncate(path, len(_SLOTS) * limits.POSITION_BYTES)
            # Whoever wrote this may have been killed before it was durable.
            disk.fsync(self._handle)
            disk.fsync_directory(directory)
        except BaseException:
            disk.close(self._handle)
            raise
        self._durable = Durable() if value is None else msgspec.msgpack.decode(value, type=Durable)

    @property
    def marks(self) -> Marks:
        return self._durable.marks

    @property
    def wall_ns(self) -> int:
        return self._durable.wall_ns

    @property
    def done_ns(self) -> int:
        return self._durable.done_ns

    def save(self, marks: Marks, wall_ns: int, done_ns: int = 0) -> None:
        """Everything up to `marks`, and what the copy was at `wall_ns`, is on stable storage. Blocks until
        this is so as well. OSError: the position is the former one.
        """
        durable = Durable(marks, wall_ns, done_ns)
        if durable == self._durable:
            return
        number = self._number + 1
        data = two_copies.encode(number, msgspec.msgpack.encode(durable))
        if len(data) > limits.POSITION_BYTES:
            raise ValueError(f"positions of {len(marks)} journals do not fit")
        self._disk.append(self._handle, [data], _SLOTS[number & 1])
        self._disk.fsync(self._handle)
        # Not before: until then the other slot is the one that counts, and must not be overwritten.
        self._number, self._durable = number, durable

    def close(self) -> None:
        self._disk.close(self._handle)
