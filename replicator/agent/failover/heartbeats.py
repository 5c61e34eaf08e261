"""Heartbeats between agents (`failover/heartbeat.py`): answered on the source, asked for by whoever watches.

The call `heartbeat` hands the key over. It is itself a sign of life, over TCP and TLS: where datagrams get no
answer (a firewall, an agent that was started anew and has forgotten the key) it takes their place.
"""

import os
import socket
from collections.abc import Awaitable, Callable

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Caller, Calls
from replicator.bounds import Count, Id
from replicator.errors import ReplicatorError, UnreachableError, UsageError
from replicator.failover.heartbeat import (
    DATAGRAM_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    Answerer,
    Beat,
    Kind,
    decode,
    encode,
)
from replicator.failover.heartbeat_port import HeartbeatPort
from replicator.failover.probes import Silent, Unable, judged
from replicator.failover_settings import ip_of
from replicator.failovers import Monitor, WatchedAddress

ACTION = "heartbeat"


class Begin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Call `heartbeat`, whoever watches → source. `key`: hexadecimal, of this group."""

    key: Id


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer. `port`: where datagrams are answered; 0: nowhere."""

    agent_uuid: Id
    agent_name: Id
    port: Count


class HeartbeatKeeper:
    """On the source. The port is opened when somebody wants to watch, and not before."""

    def __init__(self, core: Core, calls: Calls) -> None:
        self._core = core
        self._answerer = Answerer(limits.MONITORS)
        self._port: HeartbeatPort | None = None
        self._refused = ""
        calls.register(ACTION, Begin, self._begin)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            if self._port is not None:
                self._port.close()
                self._port = None

    async def _begin(self, group: str, call: Begin, caller: Caller) -> Begun:
        try:
            key = bytes.fromhex(call.key)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise UsageError(f"a heartbeat's key has {KEY_BYTES} bytes")
        await self._open()
        if self._answerer.watch(group, key):
            self._core.events.add(events.WATCHED_BY, name=caller.name, address=caller.host or "?")
        return Begun(
            agent_uuid=self._core.identity.uuid,
            agent_name=self._core.identity.name,
            port=self._core.listen.port if self._port is not None else 0,
        )

    async def _open(self) -> None:
        if self._port is not None:
            return
        listen = self._core.listen
        try:
            places = await _places(listen)
            if self._port is None:
                self._port = HeartbeatPort(self._answerer, places)
                self._refused = ""
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._refused:
                self._core.events.add(events.NO_HEARTBEATS, listen=listen, reason=reason)
            self._refused = reason


async def _places(listen: Address) -> list[tuple[str, int]]:
    """Where the agent listens, as addresses: as `open_listeners` understands it."""
    if listen.host == "::":
        return (
            [("::", listen.port), ("0.0.0.0", listen.port)] if socket.has_ipv6 else [("0.0.0.0", listen.port)]
        )
    found = await trio.socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys((str(each[4][0]), listen.port) for each in found))


class _Line:
    """What is known of one address of a group."""

    def __init__(self) -> None:
        self.port = 0  # 0: its key is not handed over, or datagrams are not answered there
        self.calling = False


class HeartbeatAsker:
    """Of whoever watches."""

    def __init__(
        self,
        calls: Calls,
        found: Callable[[Monitor, Begun], Awaitable[None]],
        key: Callable[[], bytes] | None = None,
    ) -> None:
        """`found(monitor, begun)`: which agent answers."""
        self._calls = calls
        self._found = found
        self._make_key = key or (lambda: os.urandom(KEY_BYTES))
        self._keys: dict[str, bytes] = {}
        self._lines: dict[tuple[str, str], _Line] = {}

    def forget(self, group: str) -> None:
        self._keys.pop(group, None)
        self._lines = {known: line for known, line in self._lines.items() if known[0] != group}

    async def ask(self, monitor: Monitor, address: WatchedAddress, timeout_s: float) -> None:
        """Return when the agent at the address has answered. Raises `Silent` or `Unable`."""
        reasons: list[Silent | Unable] = []
        answered = False
        line = self._lines.setdefault((monitor.uuid, address.address), _Line())

        async def try_(way: Callable[[], Awaitable[None]]) -> None:
            nonlocal answered
            try:
                await way()
            except (Silent, Unable) as reason:
                reasons.append(reason)
            else:
                answered = True
                nursery.cancel_scope.cancel()

        async def call() -> None:
            if line.port:  # otherwise there is nothing to wait for
                await trio.sleep(min(address.interval_s * limits.HEARTBEAT_PATIENCE, timeout_s))
            if line.calling:
                await trio.sleep_forever()  # one at a time: a host that is gone takes long to say so
            await self._call(monitor, address, line)

        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                if line.port:
                    nursery.start_soon(try_, lambda: self._datagram(monitor.uuid, address, line.port))
                nursery.start_soon(try_, call)
        if answered:
            return
        raise reasons[-1] if reasons else Silent(f"no answer within {timeout_s:g} s")

    async def _datagram(self, group: str, address: WatchedAddress, port: int) -> None:
        key = self._keys[group]
        nonce = os.urandom(NONCE_BYTES)
        ip = ip_of(address.address)
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        try:
            with trio.socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
                await asking.connect((ip, port))
                await asking.send(encode(Beat(Kind.QUESTION, group, nonce), key))
                while True:
                    beat = decode(await asking.recv(DATAGRAM_BYTES + 1), key)
                    if beat == Beat(Kind.ANSWER, group, nonce):
                        return
        except OSError as error:
            raise judged(error) from None

    async def _call(self, monitor: Monitor, address: WatchedAddress, line: _Line) -> None:
        key = self._keys.setdefault(monitor.uuid, self._make_key())
        where = Address(ip_of(address.address), monitor.settings.source_port)
        line.calling = True
        try:
            begun = await self._calls.ask(where, ACTION, monitor.uuid, Begin(key=key.hex()), Begun)
        except UnreachableError as error:
            raise Silent(str(error)) from None
        except ReplicatorError as error:
            raise Silent(f"its agent refuses: {error}") from None
        finally:
            line.calling = False
        if monitor.source_uuid and begun.agent_uuid != monitor.source_uuid:
            line.port = 0
            raise Silent(f"another agent answers there: {begun.agent_name}")
        line.port = begun.port
        await self._found(monitor, begun)
