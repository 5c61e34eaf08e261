"""Sessions with the source of a copy, one at a time: a newer socket replaces an older session."""

import sys
from collections.abc import Callable

import trio

from replicator import limits
from replicator.errors import ProtocolError, RemoteProtocolError
from replicator.net.engine import Engine, Event, Role
from replicator.net.frames import Disconnect, OrphanTask, RefusedConnection, Secure
from replicator.net.session import PeerLeft, Session, SessionEnded
from replicator.receiver.acceptance import Refused, accept
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.intake import Intake
from replicator.receiver.replica import Replica
from replicator.receiver.reporter import Reporter


class Sessions:
    """`deleted` is called when the source has ended its connection for good."""

    def __init__(
        self,
        arguments: ReceiverArguments,
        replica: Replica,
        intake: Intake,
        reporter: Reporter,
        deleted: Callable[[], None],
    ) -> None:
        self.connected = False
        """Whether a source is there now, and was accepted."""
        self._arguments = arguments
        self._replica = replica
        self._intake = intake
        self._reporter = reporter
        self._deleted = deleted
        self._adopted: tuple[trio.abc.Stream, bytes, tuple[str, ...]] | None = None
        self._adoption = trio.Event()
        self._scope: trio.CancelScope | None = None  # of the session that is there
        self._peer_uuid = ""  # who has proved to be at its other end
        self._lost = ""  # why it ends
        self._ending = ""  # why all of them end

    def adopt(
        self, stream: trio.abc.Stream, first_bytes: bytes = b"", other_targets: tuple[str, ...] = ()
    ) -> None:
        """Carry on with this stream; a session that is there ends. `first_bytes`: what was read from it
        already, the greeting included. `other_targets`: where other connections of this agent write.
        """
        if self._adopted is not None:
            _close_now(self._adopted[0])
        if self._ending:
            _close_now(stream)
            return
        self._adopted = (stream, first_bytes, other_targets)
        self.connected = False  # until it is accepted
        self._adoption.set()
        if self._scope is not None:
            self._scope.cancel()

    def break_off(self, reason: str) -> None:
        """The session that is there ends, if there is one; another may come."""
        if self._scope is not None:
            self._lost = reason
            self._scope.cancel()

    def drop_peer(self, uuid: str) -> None:
        """That agent is trusted no more: a session with it ends at once."""
        if self._peer_uuid == uuid:
            self.break_off("the certificate of this source is revoked")

    def end(self, reason: str) -> None:
        """`run` returns; the source is told why."""
        self._ending = self._ending or reason
        self._adoption.set()
        if self._scope is not None:
            self._scope.cancel()

    def close(self) -> None:
        """After `run`."""
        if self._adopted is not None:
            _close_now(self._adopted[0])

    # --- sessions ---

    async def run(self) -> None:
        """Serve one after the other, until `end`."""
        while not self._ending:
            if self._adopted is None:
                self._adoption = trio.Event()
                await self._adoption.wait()
                continue
            (stream, first_bytes, others), self._adopted = self._adopted, None
            session = Session(stream, Engine(Role.TARGET), first_bytes=first_bytes)
            self._peer_uuid = session.peer_uuid
            reason = self._lost = ""
            with trio.CancelScope() as self._scope:
                reason = await self._run_session(session, others)
            self.connected = False
            self._scope = None
            reason = reason or self._lost
            replaced = not reason and not self._ending
            await session.close(
                reason or self._ending or "replaced by a newer connection", linger=not replaced
            )

    async def _run_session(self, session: Session, others: tuple[str, ...]) -> str:
        """Returns what to tell the peer at the end."""
        reason = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.heartbeat)
            try:
                with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                    connect, features = await accept(
                        session, self._arguments, self._replica, self._intake, others
                    )
                self.connected = True
                _log(f"connected to {self._replica.state.source_name}")
                nursery.start_soon(self._reporter.run, session, connect, features)
                while True:
                    await self._handle(await session.receive())
            except PeerLeft as end:
                reason = "goodbye"
                _log(f"the source ended the session: {end}")
            except SessionEnded as end:
                reason = str(end)
                _log(reason)
            except ProtocolError as error:
                reason = f"protocol error: {error}"
                _log(reason)
            except Refused as refused:
                reason = str(refused)
                _log(f"refused: {refused}")
                try:
                    await session.send(RefusedConnection(reason[:1000], refused.retry, refused.promotion))
                except SessionEnded:
                    pass
            except trio.TooSlowError:
                reason = "the source did not introduce itself in time"
                _log(reason)
            nursery.cancel_scope.cancel()
        return reason

    async def _handle(self, event: Event) -> None:
        if isinstance(event, OrphanTask):
            self._replica.orphans.act(event.action)
            return
        if isinstance(event, Secure):
            journals = self._intake.received.journals
            self._replica.durability.want_secured(dict(zip(journals, event.durable, strict=False)))
            self._reporter.hurry()  # that it was received is an answer, too
            return
        if not isinstance(event, Disconnect):
            await self._intake.take(event)
            return
        if event.connection_uuid != self._arguments.connection_uuid:
            raise RemoteProtocolError("a source deletes another connection than its own")
        self._deleted()
        await trio.lowlevel.checkpoint()  # ends this session


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _close_now(stream: trio.abc.Stream) -> None:
    """Close without waiting, outside of a task that could."""
    trio.lowlevel.spawn_system_task(trio.aclose_forcefully, stream)
