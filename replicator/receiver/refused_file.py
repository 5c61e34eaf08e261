"""Refusals that a source may not have heard of, over a kill: in memory, beside the spool's memory tier."""

import os

import msgspec

from replicator.queue.durable_file import read_if_there, replace
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
        replace(disk, self._path, [msgspec.msgpack.encode(refused)])

    def load(self) -> list[RefusedBatch]:
        data = read_if_there(self._disk, self._path)
        return msgspec.msgpack.decode(data, type=list[RefusedBatch]) if data is not None else []
