"""The whole job in one request: capture, make a set, connect, mirror, replicate."""

import os

import msgspec
import trio

from replicator import repset as sets
from replicator.addresses import Destination, parse_destination
from replicator.agent.connections import THIS_HOST, Connections, ConnectRequest
from replicator.agent.core import Core, real_path
from replicator.agent.mounts import Mounts
from replicator.agent.repsets import Repsets
from replicator.agent.state import Map
from replicator.diagnostics import NOWHERE, is_nowhere
from replicator.repset import Place, Rule
from replicator.status import ConnectionStatus, TargetLock


class ProtectRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str
    destination: str
    lock: str = TargetLock.NONE
    checksum: bool = False  # of files that are there already, and differ, only blocks that differ are sent
    route: str = ""  # these three as in ConnectRequest
    compression: str = ""
    bandwidth: str = ""


async def protect(
    core: Core,
    mounts: Mounts,
    repsets: Repsets,
    connections: Connections,
    request: ProtectRequest,
) -> ConnectionStatus:
    """One change: if a step fails, what was made before it is undone."""
    target = parse_destination(request.destination)
    nowhere = target.address is not None and is_nowhere(target.address.host)
    async with core.change() as change:
        source = await real_path(request.source, "source")
        if nowhere:
            target = Destination(target.address, source)
        if not any(
            sets.is_inside(source, root) for m in core.state.mounts for root in (m.mountpoint, m.path)
        ):
            # Refuse a loop before anything is mounted for it.
            host = await connections.host_of(target.address)
            sets.check_no_loop(
                [Place("", source, host, target.path)], await connections.places(), {THIS_HOST}
            )
            await mounts.make(change, source, None, "auto")
        name = sets.unique_name(source.strip("/").replace("/", "-"), repsets.names())
        repset = await repsets.make(change, name, [Rule(sets.escape(source))])
        connection = await connections.make(
            change,
            ConnectRequest(
                repset=repset.name,
                target=NOWHERE if nowhere else str(target.address) if target.address is not None else "",
                maps=(Map(source, target.path),),
                mirror="difference" if request.checksum else await _first_mirror(target),
                checksum=request.checksum,
                lock=request.lock,
                route=request.route,
                compression=request.compression,
                bandwidth=request.bandwidth,
            ),
        )
    return await connections.status(connection)


async def _first_mirror(target: Destination) -> str:
    """A full mirror into an empty place; what is there already need not be sent again."""
    if target.address is not None:
        return "difference"  # on an empty place it sends everything, too
    return await trio.to_thread.run_sync(
        lambda: "difference" if os.path.isdir(target.path) and os.listdir(target.path) else "full"
    )
