"""Refusals that a source may not have heard of, over a kill: in memory, beside the spool's memory tier."""

import os

import msgspec

from replicator.receiver.replica_state import RefusedBatch
from replicator.world import World


class RefusedFile:
    """The file of one receiver."""

    def __init__(self, world: World, memory_directory: str) -> None:
        self._disk = world.disk
        self._path = os.path.join(memory_directory, "refused")

    def save(self, refused: list[RefusedBatch]) -> None:
        """Replace it; nothing is kept where nothing was refused. OSError."""
        disk = self._disk
        if not refused:
            if disk.exists(self._path):
                disk.unlink(self._path)
            return
        data = msgspec.msgpack.encode(refused)
        temporary = self._path + ".new"
        handle = disk.open_append(temporary)
        try:
            disk.append(handle, [data], 0)
        finally:
            disk.close(handle)
        disk.truncate(temporary, len(data))
        disk.replace(temporary, self._path)

    def load(self) -> list[RefusedBatch]:
        disk = self._disk
        if not disk.exists(self._path):
            return []
        handle = disk.open_read(self._path)
        try:
            data = disk.read(handle, disk.size(self._path), 0)
        finally:
            disk.close(handle)
        return msgspec.msgpack.decode(data, type=list[RefusedBatch])
