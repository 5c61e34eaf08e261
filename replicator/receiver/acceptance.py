"""How a session begins on the target: who is there, and whether the connection is accepted."""

import os
from datetime import datetime

import msgspec

from replicator import limits
from replicator.bounds import one_line
from replicator.errors import RemoteProtocolError, ReplicatorError
from replicator.failovers import Promotion
from replicator.net.frames import PACKED_FEATURE, PROTOCOL_VERSION, Connect, Connected, Greeting, Hello, Mark
from replicator.net.session import Session
from replicator.ops import shown
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.intake import Intake
from replicator.receiver.replica import Replica
from replicator.receiver.replica_paths import RefusedTarget, check_lock, check_targets, make_targets
from replicator.receiver.replica_state import Marks, fingerprint, journal_ids


class Refused(Exception):
    """This connection is not accepted. `retry`: trying again by itself may help. `promotion`: why not."""

    def __init__(self, reason: str, *, retry: bool, promotion: Promotion | None = None) -> None:
        super().__init__(reason)
        self.retry = retry
        self.promotion = promotion


async def accept(
    session: Session, arguments: ReceiverArguments, replica: Replica, intake: Intake, others: tuple[str, ...]
) -> tuple[Connect, frozenset[str]]:
    """Up to CONNECTED, and what the source understands. `others`: where other connections of this agent
    write.

    Raises Refused, and what ends a session.
    """
    greeting = await session.receive()
    assert isinstance(greeting, Greeting)
    if greeting.connection_uuid != arguments.connection_uuid:
        raise RemoteProtocolError(f"{greeting.connection_uuid} is not the connection of this receiver")
    hello = await session.receive()
    if not isinstance(hello, Hello) or hello.version != PROTOCOL_VERSION:
        raise Refused(f"this agent speaks version {PROTOCOL_VERSION} of the protocol only", retry=False)
    _check_closed(arguments, replica)
    _check_source(session.peer_uuid, hello, replica)
    features = (PACKED_FEATURE,)
    await session.send(Hello(PROTOCOL_VERSION, arguments.agent_uuid, arguments.agent_name, features))
    connect = await session.receive()
    if not isinstance(connect, Connect) or connect.connection_uuid != arguments.connection_uuid:
        raise RemoteProtocolError("the source names another connection than in its greeting")
    ids = journal_ids(connect)
    if not 0 < len(ids) <= limits.JOURNALS or len(set(ids)) != len(ids):
        raise RemoteProtocolError(f"{len(ids)} journals, or one of them twice")
    _check_epoch(connect, replica)
    _check_places(connect, arguments, replica, others, same_host=hello.agent_uuid == arguments.agent_uuid)
    await replica.ownership.learn_epoch(connect.epoch)
    await replica.ownership.know_source(hello.agent_uuid, one_line(hello.agent_name, limits.NAME_CHARS))
    intake.open(connect.epoch)
    if fingerprint(connect) != intake.received.connect:
        await intake.append(connect)
    received = intake.received
    await session.send(
        Connected(
            _marks(received.marks, ids),
            _marks(replica.applied.marks, ids),
            _marks(replica.durability.durable, ids),
            replica.state.data_state,
            received.mirroring,
            received.batches,
            received.mirror_id,
            os.getpid(),
            replica.state.power_lost and not received.mirroring,
            replica.orphans.settings.automatic,
            True,
            True,
            replica.state.epoch,
        )
    )
    return connect, frozenset(hello.features)


def _check_source(proved: str, hello: Hello, replica: Replica) -> None:
    """A source that has proved who it is has its own connections, and no others. In plain text nobody has."""
    if not proved:
        return
    if hello.agent_uuid != proved:
        raise RemoteProtocolError("the source says that it is another agent than it has proved to be")
    owner = replica.state.source_uuid
    if owner and owner != proved:
        raise Refused(f"this connection belongs to another source ({replica.state.source_name})", retry=False)


def _check_closed(arguments: ReceiverArguments, replica: Replica) -> None:
    if replica.state.closed and not replica.ownership.is_promoted:
        raise Refused(f"{arguments.agent_name} is taking over", retry=True)


def _moment(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s).astimezone().isoformat(sep=" ", timespec="seconds")


def _check_epoch(connect: Connect, replica: Replica) -> None:
    """Two writers never merge silently: a source whose place another has taken may not transmit."""
    epoch, promotion = replica.state.epoch, replica.state.promotion
    if connect.epoch > epoch and replica.ownership.is_promoted:
        raise Refused(
            f"this copy is in use since epoch {epoch}: what owns it has to follow the source of epoch"
            f" {connect.epoch} first",
            retry=True,
        )
    if connect.epoch < epoch and promotion is not None and promotion.epoch == epoch:
        raise Refused(
            f"restore required: {promotion.owner_name} has taken over at {_moment(promotion.time)} (epoch"
            f" {epoch}): what this source (epoch {connect.epoch}) has written since is not replicated",
            retry=False,
            promotion=msgspec.structs.replace(
                promotion,
                copies=tuple(c for c in promotion.copies if c.connection == connect.connection_uuid),
            ),
        )
    seen = replica.state.source_epoch
    if connect.epoch < seen:
        raise Refused(
            f"restore required: a source of epoch {seen} has taken the place of this one ({connect.epoch})",
            retry=False,
        )
    if connect.epoch < epoch:
        raise Refused(
            f"restore required: this copy belongs to {replica.state.source_name} since a restore (epoch"
            f" {epoch}); this source is of epoch {connect.epoch}, and what it has counts no more: disconnect"
            " it, or restore it from this copy",
            retry=False,
        )


def _check_places(
    connect: Connect,
    arguments: ReceiverArguments,
    replica: Replica,
    others: tuple[str, ...],
    *,
    same_host: bool,
) -> None:
    """The directories that the connection writes to, made if they are missing. Raises Refused."""
    queues = (arguments.memory_directory, arguments.disk_directory)
    orphans = replica.orphans.settings.directory
    private = (
        arguments.home,
        *([orphans] if orphans else ()),
        *(os.path.dirname(directory) for directory in queues if directory),
    )
    try:
        check_targets(connect, others=others, private=private, same_host=same_host)
        check_lock(connect)
    except RefusedTarget as error:
        raise Refused(str(error), retry=False) from None
    try:
        make_targets(connect, replica.state.connect)
    except OSError as error:
        raise Refused(f"{shown(os.fsencode(error.filename or ''))}: {error.strerror}", retry=True) from None
    except ReplicatorError as error:
        raise Refused(str(error), retry=True) from None


def _marks(marks: Marks, ids: tuple[str, ...]) -> tuple[Mark | None, ...]:
    return tuple(Mark(*marks[i]) if i in marks else None for i in ids)
