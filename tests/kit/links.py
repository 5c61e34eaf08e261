"""In-memory streams that behave like TCP over a bad network, under trio's (mock) clock, reproducible by seed.

    link = Link(random.Random(7), latency_s=0.01)
    source_side, target_side = link.streams()
    link.cut_after(1000)      # breaks both ends once the left side has sent 1000 more bytes
    link.stall()              # nothing arrives any more, nobody notices: a pulled cable

`Network` adds addresses: `listen`, `connect` (fits World.connect), partitions between hosts.
"""

import random
from collections import deque
from collections.abc import Iterator

import trio


class _Pipe:
    """One direction: chunks with the time at which they arrive."""

    def __init__(self, rng: random.Random, latency_s: float, window_bytes: int, split: float) -> None:
        self.rng = rng
        self.latency_s = latency_s
        self.bytes_per_s = float("inf")
        self.free_at = 0.0  # when the last chunk will have gone through
        self.window_bytes = window_bytes
        self.split = split
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.buffered_bytes = 0
        self.sent_bytes = 0
        self.cut_at: int | None = None
        self.flowing = True
        self.eof = False
        self.broken = False
        self.reader_closed = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def break_off(self) -> None:
        """As RST does: what has not been read is lost."""
        self.broken = True
        self.chunks.clear()
        self.buffered_bytes = 0
        self.wake()


class LinkStream(trio.abc.HalfCloseableStream):
    """One end of a `Link`."""

    def __init__(self, link: "Link", outgoing: _Pipe, incoming: _Pipe) -> None:
        self._link = link
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False
        self._sending = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task sends")
        self._sending = True
        try:
            # As a socket: a send that need not wait is not cut in two by a cancellation.
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._send(bytes(data))
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._sending = False

    async def _send(self, data: bytes) -> None:
        pipe = self._outgoing
        while data:
            self._check_usable(pipe)
            room = pipe.window_bytes - pipe.buffered_bytes
            if room <= 0:
                await pipe.changed.wait()
                continue
            count = min(room, len(data))
            if pipe.split and (pipe.split == 1 or pipe.rng.random() < pipe.split):
                count = pipe.rng.randint(1, count)
            if pipe.cut_at is not None:
                count = min(count, pipe.cut_at - pipe.sent_bytes)
            if count:
                pipe.free_at = max(pipe.free_at, trio.current_time()) + count / pipe.bytes_per_s
                arrival = pipe.free_at + pipe.latency_s
                pipe.chunks.append((arrival, data[:count]))
                pipe.buffered_bytes += count
                pipe.sent_bytes += count
                data = data[count:]
                pipe.wake()
            if pipe.cut_at is not None and pipe.sent_bytes >= pipe.cut_at:
                pipe.eof = True  # what was sent before the cut may still be read
                self._incoming.break_off()
                pipe.wake()
                raise trio.BrokenResourceError("cut")

    def _check_usable(self, pipe: _Pipe) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if pipe.broken or pipe.reader_closed or pipe.eof:
            raise trio.BrokenResourceError("the other side is gone")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if pipe.broken:
                raise trio.BrokenResourceError("cut")
            if pipe.flowing and pipe.chunks:
                arrival, chunk = pipe.chunks[0]
                if arrival <= trio.current_time():
                    break
                with trio.move_on_at(arrival):
                    await pipe.changed.wait()
                continue
            if pipe.flowing and pipe.eof:
                return b""
            await pipe.changed.wait()
        pipe.chunks.popleft()
        limit = len(chunk) if max_bytes is None else min(max_bytes, len(chunk))
        if limit < len(chunk):
            pipe.chunks.appendleft((arrival, chunk[limit:]))
            chunk = chunk[:limit]
        pipe.buffered_bytes -= len(chunk)
        pipe.wake()
        return chunk

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._outgoing.eof = True
        self._outgoing.wake()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outgoing.eof = True
            self._incoming.reader_closed = True
            self._incoming.chunks.clear()
            self._outgoing.wake()
            self._incoming.wake()


class Link:
    """A pair of connected streams and the faults between them. `split`: the share of sends that arrive in
    pieces of random size.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        latency_s: float = 0.0,
        window_bytes: int = 1 << 20,
        split: float = 0,
    ) -> None:
        self._pipes = (
            _Pipe(rng, latency_s, window_bytes, split),
            _Pipe(rng, latency_s, window_bytes, split),
        )
        left, right = self._pipes
        self._streams = (LinkStream(self, left, right), LinkStream(self, right, left))

    def streams(self) -> tuple[LinkStream, LinkStream]:
        return self._streams

    def cut_after(self, count: int, *, side: int = 0) -> None:
        """Break the link as soon as `side` has sent `count` more bytes: the last of them still arrives."""
        pipe = self._pipes[side]
        pipe.cut_at = pipe.sent_bytes + count

    def limit(self, bytes_per_s: float) -> None:
        """So much passes in each direction from now on."""
        for pipe in self._pipes:
            pipe.bytes_per_s = bytes_per_s

    def cut(self) -> None:
        """Break both directions now: what is under way is lost."""
        for pipe in self._pipes:
            pipe.break_off()

    def stall(self) -> None:
        """Nothing arrives any more; senders can go on until the window is full."""
        for pipe in self._pipes:
            pipe.flowing = False

    def resume(self) -> None:
        for pipe in self._pipes:
            pipe.flowing = True
            pipe.wake()

    @property
    def sent_bytes(self) -> tuple[int, int]:
        return self._pipes[0].sent_bytes, self._pipes[1].sent_bytes


class Network:
    """Hosts by name. `connect` has the signature of World.connect once bound to a host with `from_host`."""

    def __init__(self, seed: int, *, latency_s: float = 0.0005, split: float = 1) -> None:
        self.rng = random.Random(seed)
        self.latency_s = latency_s
        self.split = split
        self.bytes_per_s = float("inf")  # of each new connection
        self._listeners: dict[tuple[str, int], trio.MemorySendChannel[LinkStream]] = {}
        self._links: list[tuple[str, str, Link]] = []
        self._parted: set[frozenset[str]] = set()
        self._healed = trio.Event()

    def listen(self, host: str, port: int) -> trio.MemoryReceiveChannel[LinkStream]:
        sending, receiving = trio.open_memory_channel[LinkStream](64)
        self._listeners[host, port] = sending
        return receiving

    def close_listener(self, host: str, port: int) -> None:
        self._listeners.pop((host, port)).close()

    async def connect(self, origin: str, host: str, port: int) -> LinkStream:
        """Raises OSError as trio.open_tcp_stream does; hangs while the hosts are parted."""
        await trio.sleep(2 * self.latency_s)
        while frozenset((origin, host)) in self._parted:
            await self._healed.wait()
        listener = self._listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(111, "Connection refused")
        link = Link(self.rng, latency_s=self.latency_s, split=self.split)
        link.limit(self.bytes_per_s)
        near, far = link.streams()
        await listener.send(far)
        self._links.append((origin, host, link))
        return near

    def part(self, one: str, other: str) -> None:
        """Nothing passes between two hosts until `heal`; nobody is told."""
        self._parted.add(frozenset((one, other)))
        for link in self._between(one, other):
            link.stall()

    def heal(self, one: str, other: str) -> None:
        self._parted.discard(frozenset((one, other)))
        self._healed.set()
        self._healed = trio.Event()
        for link in self._between(one, other):
            link.resume()

    def cut(self, one: str, other: str) -> None:
        """Break every connection between two hosts; new ones may be made at once."""
        for link in self._between(one, other):
            link.cut()
        self._links = [entry for entry in self._links if {entry[0], entry[1]} != {one, other}]

    def _between(self, one: str, other: str) -> Iterator[Link]:
        return (link for a, b, link in self._links if {a, b} == {one, other})
