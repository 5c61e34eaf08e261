"""What agents say to one another about failover: see `agent_calls.py`.

A call has an action, and a body that only its action knows. Each part registers who answers its actions;
none knows of another's. Who may ask at all is settled before: an agent that is trusted, or one with whom
plain text is spoken. What somebody may ask for is the affair of who answers.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import trio

from replicator import limits
from replicator.addresses import Address
from replicator.agent import agent_calls
from replicator.agent.agent_calls import Answer, Conversation
from replicator.agent.peers import Peers
from replicator.bounds import MALFORMED, Id
from replicator.errors import ReplicatorError, UnreachableError, UsageError
from replicator.security.channel import Channel
from replicator.security.tls import transport_of
from replicator.security.trust import Peer

PURPOSE = "failover"

B = TypeVar("B", bound=msgspec.Struct)
T = TypeVar("T")


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request about a group; the greeting says which. `body`: JSON of the action's own struct."""

    action: Id
    body: msgspec.Raw = msgspec.Raw(b"{}")


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request, or an answer, that has nothing to say."""


class Caller(NamedTuple):
    """Who asks. `peer` None: in plain text, as the configuration allows. `host`: the IP address that it comes
    from; "": none.
    """

    peer: Peer | None
    host: str

    @property
    def name(self) -> str:
        return self.peer.name if self.peer is not None else self.host or "?"


Handler = Callable[[str, B, Caller], Awaitable[object]]
"""Answers one action, about a group (a uuid). What it returns goes back as JSON, so do ReplicatorErrors."""


class Calls:
    """Of one agent: who answers which action, and how to ask others."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._handlers: dict[str, tuple[type[msgspec.Struct], Handler[Any]]] = {}

    def register(self, action: str, body: type[B], handler: Handler[B]) -> None:
        assert action not in self._handlers, action
        self._handlers[action] = body, handler

    async def ask(
        self,
        address: Address,
        action: str,
        group: str,
        body: msgspec.Struct,
        answer: type[T],
        timeout_s: float = limits.FAILOVER_CALL_S,
    ) -> T:
        """What the agent at an address answers. Raises UnreachableError, also if it says what nobody
        understands, and what it refuses.
        """
        call = Call(action=action, body=msgspec.Raw(msgspec.json.encode(body)))
        found = await agent_calls.ask(self._peers, address, PURPOSE, group, call, timeout_s)
        try:
            return msgspec.convert(found, answer)
        except MALFORMED as error:
            raise UnreachableError(f"{address} answers {action} in an unknown way: {error}") from None

    async def serve(self, group: str, channel: Channel) -> str:
        """One call. Returns what to log if it was refused."""
        conversation = Conversation(channel)
        line = b""
        with trio.move_on_after(limits.GREETING_TIMEOUT_S):
            line = await conversation.receive_line(limits.FAILOVER_CALL_BYTES)
        if not line:
            return f"did not say what it wants of failover within {limits.GREETING_TIMEOUT_S:.0f} s"
        try:
            result = await self._answer(group, line, Caller(channel.peer, _host(channel)))
            await conversation.send_line(Answer(result=result))
        except MALFORMED as error:
            await conversation.send_line(Answer(error=f"this agent does not understand that: {error}"))
            return f"asked about failover in an unknown way: {error}"
        except ReplicatorError as error:
            await conversation.send_line(Answer(error=str(error), exit_code=int(error.exit_code)))
        except OSError as error:  # of this host: its disk, its network
            await conversation.send_line(Answer(error=f"this agent cannot do that now: {error.strerror}"))
        return ""

    async def _answer(self, group: str, line: bytes, caller: Caller) -> object:
        call = msgspec.json.decode(line, type=Call)
        if call.action not in self._handlers:
            raise UsageError(f"this agent does not know {call.action!r} about failover")
        type_, handler = self._handlers[call.action]
        return await handler(group, msgspec.json.decode(call.body, type=type_), caller)


def _host(channel: Channel) -> str:
    stream = transport_of(channel.stream)
    if not isinstance(stream, trio.SocketStream):
        return ""
    return cast(str, stream.socket.getpeername()[0]).removeprefix("::ffff:")
