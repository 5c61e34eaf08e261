"""What the sender of a restore reads from: directories of a copy, which stand still meanwhile.

A restore is a mirror in the other direction. There is no capture, so each directory has a journal of its own
that nobody writes: places and ends in the stream mean what they mean in every mirror. Its streams come from
the agent: the host that gets the data has dialled, as sources always do.
"""

import os
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from replicator.errors import UsageError
from replicator.fs import target_lock
from replicator.mirror.scan import Source
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalWriter
from replicator.queue.settings import JournalSettings
from replicator.repset import compile_filter
from replicator.security.channel import Handover, take_over
from replicator.sender.arguments import SenderArguments
from replicator.sender.flow import Flow
from replicator.world import World


def open_copies(world: World, arguments: SenderArguments) -> tuple[list[Flow], list[JournalWriter]]:
    """A flow for each directory of the copy, and the journals, to be closed after them. OSError if a
    directory cannot be opened.
    """
    journals = arguments.journals
    descriptors = target_lock.open_beneath([journal.root for journal in journals])
    flows: list[Flow] = []
    writers: list[JournalWriter] = []
    for index, (journal, descriptor) in enumerate(zip(journals, descriptors, strict=True)):
        settings = JournalSettings(journal.memory_directory, journal.disk_directory)
        writers.append(JournalWriter.open(world, settings, journal.mount_id))
        opened = partial(Cursor.open, world, settings, journal.mount_id)
        cursor, lookahead = opened(arguments.connection_uuid, create=True), opened(None)
        make_filter = partial(compile_filter, arguments.repset, os.fsencode(journal.rules_root))
        source = Source(descriptor, make_filter)
        flows.append(Flow(index, journal.mount_id, cursor, lookahead, make_filter(), source))
    return flows, writers


class Adoption:
    """Streams that somebody else has opened: the newest one waits for the next session."""

    def __init__(self) -> None:
        self._stream: trio.abc.HalfCloseableStream | None = None
        self._there = trio.Event()

    def give(self, stream: trio.abc.HalfCloseableStream) -> None:
        if self._stream is not None:
            trio.lowlevel.spawn_system_task(trio.aclose_forcefully, self._stream)
        self._stream = stream
        self._there.set()

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        """As `World.connect`; `host` and `port` say nothing here. Waits as long as it takes."""
        while self._stream is None:
            self._there = trio.Event()
            await self._there.wait()
        stream, self._stream = self._stream, None
        return stream


def stream_of(descriptors: Sequence[int], handover: object = None) -> trio.abc.HalfCloseableStream:
    """The one socket among the descriptors of a control call, secured by `handover` if there is one. Raises
    UsageError.
    """
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise UsageError("adopt needs one socket")
    stream = trio.SocketStream(trio.socket.socket(fileno=descriptors[0]))
    return stream if handover is None else take_over(stream, msgspec.convert(handover, Handover))
