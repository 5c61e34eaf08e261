"""A line to a target that takes its time: a relay for TCP that adds to the round trip, can be cut and held.

    with slow_line(agent.port, round_trip_s=0.005) as line:
        ...                    # connect to 127.0.0.1:line.port
        line.hold()            # nothing passes, and nobody is told
        line.release()

    python -m kit.slow_line PORT ROUND_TRIP_MS     # prints the port it listens on; until its input ends

It runs as a process of its own, so that it does not share an interpreter with the test.
"""

import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

_CHUNK_BYTES = 1 << 18


class _Relay:
    def __init__(self, port: int, round_trip_s: float) -> None:
        self.delay_s = round_trip_s / 2
        self.port = port
        self.open = trio.Event()
        self.open.set()
        self.scopes: set[trio.CancelScope] = set()

    async def serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self.port)
        for stream in (near, far):
            stream.setsockopt(6, 1, 1)  # TCP_NODELAY
        with trio.CancelScope() as scope:
            self.scopes.add(scope)
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, near, far, scope)
                nursery.start_soon(self._pass_on, far, near, scope)
        self.scopes.discard(scope)

    async def _pass_on(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        chunks: deque[tuple[float, bytes]] = deque()
        arrived = trio.Event()

        async def deliver() -> None:
            nonlocal arrived
            while True:
                while not chunks:
                    arrived = trio.Event()
                    await arrived.wait()
                due, data = chunks.popleft()
                if due > trio.current_time():
                    await trio.sleep_until(due)
                await self.open.wait()
                if not data:
                    scope.cancel()
                    return
                await target.send_all(data)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deliver)
                while True:
                    data = await source.receive_some(_CHUNK_BYTES)
                    chunks.append((trio.current_time() + self.delay_s, bytes(data)))
                    arrived.set()
                    if not data:
                        break
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()

    async def obey(self) -> None:
        """Orders on standard input: hold, release, cut. Its end is the end."""
        async with trio.lowlevel.FdStream(0) as orders:
            async for data in orders:
                for order in data.decode().split():
                    if order == "hold":
                        self.open = trio.Event()
                    elif order == "release":
                        self.open.set()
                    elif order == "cut":
                        for scope in list(self.scopes):
                            scope.cancel()


async def _main(port: int, round_trip_s: float) -> None:
    relay = _Relay(port, round_trip_s)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, relay.serve, listeners)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await relay.obey()
        nursery.cancel_scope.cancel()


class SlowLine:
    """Use `slow_line`."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None and process.stdin is not None
        self.port = int(process.stdout.readline())
        self._orders = process.stdin

    def _order(self, order: bytes) -> None:
        self._orders.write(order + b"\n")
        self._orders.flush()

    def hold(self) -> None:
        """Nothing passes from here on."""
        self._order(b"hold")

    def release(self) -> None:
        self._order(b"release")

    def cut(self) -> None:
        """Break what is connected."""
        self._order(b"cut")


@contextmanager
def slow_line(port: int, round_trip_s: float = 0.0) -> Iterator[SlowLine]:
    command = [sys.executable, "-m", "kit.slow_line", str(port), str(round_trip_s * 1000)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    try:
        yield SlowLine(process)
    finally:
        process.communicate(timeout=20)


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]), float(sys.argv[2]) / 1000)
