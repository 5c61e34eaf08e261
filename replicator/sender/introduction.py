"""The beginning and the end of a sender's session: how it introduces itself, and what ended it."""

import os

import msgspec
import trio

from replicator.bounds import one_line
from replicator.errors import ProtocolError, RemoteProtocolError, ReplicatorError
from replicator.failovers import Promotion
from replicator.net.frames import (
    DRIFT_FEATURE,
    ORPHANS_FEATURE,
    PACKED_FEATURE,
    PROTOCOL_VERSION,
    Connect,
    Connected,
    Hello,
    JournalInfo,
    PathMap,
    RefusedConnection,
)
from replicator.net.session import Session, SessionEnded
from replicator.security.tls import transport_of
from replicator.sender.arguments import SenderArguments
from replicator.sender.root_guard import RootChanged
from replicator.status import TargetDataState


class CopyInUse(ReplicatorError):
    """The copy was taken into use on its host, and the source goes on: a person chooses (DC-24)."""

    retry = False

    def __init__(self) -> None:
        super().__init__(
            "the copy was taken into use on its host, and both sides may have changed: choose the one that"
            " survives with `dtctl recovery force`"
        )


class ConnectionRefused(ReplicatorError):
    """The target does not accept this connection.

    `retry`: trying again by itself may help.
    """

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


class Superseded(ConnectionRefused):
    """Another agent owns the copy since: this source may not transmit. `promotion` None: it did not say more
    than its epoch. `retry`: the next session will.
    """

    def __init__(self, reason: str, promotion: Promotion | None = None, *, retry: bool = False) -> None:
        super().__init__(reason, retry=retry)
        self.promotion = promotion


def check_epoch(own: int, epoch: int, *, retry: bool = False) -> None:
    """`epoch`: as the target says. Raises Superseded."""
    if epoch > own:
        reason = f"restore required: the copy is of epoch {epoch}, and this source of {own}"
        raise Superseded(reason, retry=retry)


async def introduce(session: Session, arguments: SenderArguments) -> tuple[Connected, frozenset[str]]:
    """Greet, and ask for the connection. Returns the answer, and what the target understands. Raises
    ConnectionRefused, and what ends a session.
    """
    await session.greet(arguments.connection_uuid)
    features = (DRIFT_FEATURE, ORPHANS_FEATURE, PACKED_FEATURE)
    await session.send(Hello(PROTOCOL_VERSION, arguments.agent_uuid, arguments.agent_name, features))
    hello = await session.receive()
    if isinstance(hello, RefusedConnection):
        raise _refusal(hello)
    assert isinstance(hello, Hello)
    if session.peer_uuid and hello.agent_uuid != session.peer_uuid:
        raise RemoteProtocolError("the target says that it is another agent than it has proved to be")
    await session.send(
        Connect(
            arguments.connection_uuid,
            arguments.repset.name,
            arguments.repset.generation,
            msgspec.json.encode(arguments.repset).decode(),
            tuple(
                JournalInfo(j.mount_id, os.fsencode(j.root), os.fsencode(j.rules_root))
                for j in arguments.journals
            ),
            tuple(PathMap(m.journal, os.fsencode(m.source), os.fsencode(m.target)) for m in arguments.maps),
            arguments.options.remap_links,
            arguments.options.lock,
            arguments.epoch,
        )
    )
    answer = await session.receive()
    if isinstance(answer, RefusedConnection):
        raise _refusal(answer)
    assert isinstance(answer, Connected)
    check_epoch(arguments.epoch, answer.epoch)
    marks = (answer.received, answer.applied, answer.durable)
    if any(len(row) != len(arguments.journals) for row in marks):
        raise RemoteProtocolError("the target knows other journals than those of the connection")
    if answer.data_state not in list(TargetDataState):
        raise RemoteProtocolError(f"the target's data is in no known state: {answer.data_state}")
    return answer, frozenset(hello.features)


def _refusal(frame: RefusedConnection) -> ConnectionRefused:
    if frame.promotion is not None:
        return Superseded(one_line(frame.reason), frame.promotion)
    return ConnectionRefused(one_line(frame.reason), retry=frame.retry)


def peer_address(stream: trio.abc.Stream) -> str:
    """The target's IP address (ST-01); "" if it is no socket."""
    stream = transport_of(stream)
    if not isinstance(stream, trio.SocketStream):
        return ""
    try:
        peer = stream.socket.getpeername()
        return str(peer[0]) if isinstance(peer, tuple) else ""  # of a pair of Unix sockets
    except OSError:
        return ""


def what_ended(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended a session: RootChanged before what only followed from it, a bug before all; the group if it
    is cancelled.
    """
    leaves: list[BaseException] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        elif not isinstance(error, trio.Cancelled):
            leaves.append(error)

    collect(group)
    bug = any(not isinstance(e, SessionEnded | ProtocolError | OSError | ReplicatorError) for e in leaves)
    if bug or not leaves:
        return group
    return next((e for e in leaves if isinstance(e, RootChanged)), leaves[0])


def reason_of(error: BaseException, target: str) -> str:
    """One line for people."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and not isinstance(error, ReplicatorError):
        return f"{target}: {error.strerror or text}"
    return text
