"""What a sender reads from: the journals and trees of its mounts."""

import os
import sys
from functools import partial

import trio

from replicator import limits
from replicator.child import control
from replicator.errors import ReplicatorError
from replicator.fs.bare_files import BareFiles
from replicator.mirror.scan import Source
from replicator.paths import Home
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings
from replicator.repset import compile_filter
from replicator.sender.arguments import SenderArguments
from replicator.sender.flow import Flow
from replicator.world import World


async def open_flows(world: World, arguments: SenderArguments) -> list[Flow]:
    """Journals, cursors and source trees of a connection; waits for captures that are not up yet."""
    flows: list[Flow] = []
    for index, journal in enumerate(arguments.journals):
        settings = JournalSettings(journal.memory_directory, journal.disk_directory)
        while True:
            try:
                root_fd = await _capture_root(journal.capture_socket)
                cursor = Cursor.open(
                    world, settings, journal.mount_id, arguments.connection_uuid, create=True
                )
                lookahead = Cursor.open(world, settings, journal.mount_id, None)
                checking = Cursor.open(world, settings, journal.mount_id, None)
                break
            except (OSError, ReplicatorError) as error:
                print(f"waiting for the mount {journal.root}: {error}", file=sys.stderr, flush=True)
                await trio.sleep(limits.RECONNECT_FIRST_S)
        make_filter = partial(compile_filter, arguments.repset, os.fsencode(journal.root))
        bare = BareFiles(Home(arguments.home).bare_files, world.clock.boot_id())
        source = Source(root_fd, make_filter, bare)
        flows.append(Flow(index, journal.mount_id, cursor, lookahead, make_filter(), source, checking))
    return flows


async def _capture_root(socket_path: str) -> int:
    async with control.Control(socket_path) as capture:
        _, descriptors = await capture.call_with_descriptors("root")
    return descriptors[0]
