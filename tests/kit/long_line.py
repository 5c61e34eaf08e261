"""A long, thin, lossy line between two programs on one machine, without privileges: a TCP proxy.

    with long_line.running(agent.port, LongLine(round_trip_s=0.05, loss=0.01)) as proxy:
        connect(proxy.port)

What passes arrives half a round trip later, at the line's rate. Of all segments a share of `loss` is "lost":
it and all behind it wait for its retransmission, one round trip longer (RTO_S where nothing follows that
would tell).
TCP itself ends at the proxy, so windows do not shrink by the loss; what this shows is what the product does
with delay, stalls and a window of `window_bytes`.
"""

import multiprocessing
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import trio

SEGMENT_BYTES = 1448
READ_BYTES = 32 * SEGMENT_BYTES
RTO_S = 0.2
_CUT, _MEND = "cut", "mend"


@dataclass(frozen=True)
class LongLine:
    """`window_bytes`: of what is on the line in one direction."""

    round_trip_s: float = 0.05
    bytes_per_s: float = 12_500_000.0
    loss: float = 0.01
    window_bytes: int = 8 << 20
    seed: int = 1


class Pipe:
    """When what is sent now arrives. Pure: the clock comes from outside."""

    def __init__(self, line: LongLine, seed: int) -> None:
        self._line = line
        self._random = random.Random(seed)
        self._free_at_s = 0.0  # the line has sent what it was given
        self._arrives_s = 0.0  # of the last: the order stays

    def arrival_s(self, size: int, now_s: float) -> float:
        line = self._line
        quiet = now_s > self._free_at_s
        self._free_at_s = max(self._free_at_s, now_s) + size / line.bytes_per_s
        arrives_s = self._free_at_s + line.round_trip_s / 2
        segments = -(-size // SEGMENT_BYTES)
        if self._random.random() < 1 - (1 - line.loss) ** segments:
            arrives_s += max(RTO_S, line.round_trip_s) if quiet and segments < 4 else line.round_trip_s
        self._arrives_s = max(self._arrives_s, arrives_s)
        return self._arrives_s


async def _forward(
    source: trio.SocketStream, sink: trio.SocketStream, line: LongLine, pipe: Pipe, scope: trio.CancelScope
) -> None:
    send, receive = trio.open_memory_channel[tuple[float, bytes]](max(line.window_bytes // READ_BYTES, 1))

    async def deliver() -> None:
        async for arrives_s, data in receive:
            await trio.sleep_until(arrives_s)
            await sink.send_all(data)
        await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            async with send:
                while data := await source.receive_some(READ_BYTES):
                    await send.send((pipe.arrival_s(len(data), trio.current_time()), data))
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        scope.cancel()


async def _serve(target_port: int, line: LongLine, control: Connection) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    control.send(listeners[0].socket.getsockname()[1])
    scopes: set[trio.CancelScope] = set()
    is_cut = False

    async def serve_one(client: trio.SocketStream) -> None:
        if is_cut:
            await trio.aclose_forcefully(client)
            return
        async with client, await trio.open_tcp_stream("127.0.0.1", target_port) as server:
            with trio.CancelScope() as scope:
                scopes.add(scope)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_forward, client, server, line, Pipe(line, line.seed), scope)
                    nursery.start_soon(_forward, server, client, line, Pipe(line, line.seed + 1), scope)
            scopes.discard(scope)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve_one, listeners)
        while True:
            order = await trio.to_thread.run_sync(control.recv, abandon_on_cancel=True)
            is_cut = order == _CUT
            for scope in list(scopes) if is_cut else ():
                scope.cancel()
            control.send(order)


def _main(target_port: int, line: LongLine, control: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trio.run(_serve, target_port, line, control)
    except* (EOFError, OSError):
        pass  # whoever started it is gone


class Proxy:
    """A line that is up. `port`: where to connect to."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self.port: int = control.recv()

    def cut(self) -> None:
        """All connections break, and none is let through."""
        self._control.send(_CUT)
        self._control.recv()

    def mend(self) -> None:
        self._control.send(_MEND)
        self._control.recv()


@contextmanager
def running(target_port: int, line: LongLine) -> Iterator[Proxy]:
    """In a process of its own, that delays nothing else."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_main, args=(target_port, line, there), daemon=True
    )
    process.start()
    try:
        yield Proxy(here)
    finally:
        process.kill()
        process.join()
        here.close()
        there.close()
