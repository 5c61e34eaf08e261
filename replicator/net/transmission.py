"""How a session's frames are written: compressed or not, and no faster than a limit allows.

One `Transmission` belongs to a sender and outlives its sessions: what was learnt of the line, and the limits,
stay; the zstd stream is one session's. Settings may change at any time, also in the middle of a frame.
"""

from collections.abc import Awaitable, Callable

import trio

from replicator import limits
from replicator.net import line
from replicator.net.auto_level import AutoLevel, Look
from replicator.net.buffers import cut, joined
from replicator.net.engine import Buffer, Engine
from replicator.net.limiter import Limiter
from replicator.net.packing import Packer, is_compressible
from replicator.security.tls import TlsStream
from replicator.transmission import AUTO, OFF
from replicator.world import Clock

InThread = Callable[[Callable[[], bytes]], Awaitable[bytes]]
Write = Callable[[Buffer], Awaitable[None]]


class Transmission:
    """`write` for one task at a time."""

    def __init__(self, clock: Clock, in_thread: InThread) -> None:
        self.limiter = Limiter(clock)
        self.compression = OFF
        """off, auto, or a level of the slider."""
        self.packing: bool | None = None
        """Whether the peer of the present session understands it."""
        self._clock = clock
        self._in_thread = in_thread
        self._auto = AutoLevel()
        self._load: line.OtherLoad | None = None
        self._packer = Packer()
        self._socket: trio.SocketStream | None = None
        self._secured: TlsStream | None = None
        self._plain_bytes = 0
        self._sent_bytes = 0
        self._blocked_ns = 0  # in writes, where the kernel does not tell more
        self._recent = (0.0, 0.0)  # plain and written bytes, older ones fading

    def begin(self, stream: trio.abc.Stream, *, packing: bool) -> None:
        """A session, with a zstd stream of its own."""
        self.packing = packing
        self._packer = Packer()
        self._auto = AutoLevel()
        self._socket = line.socket_of(stream)
        self._secured = stream if isinstance(stream, TlsStream) else None

    def over(self) -> None:
        """The session has ended."""
        self.packing = None
        self._socket = self._secured = None

    @property
    def level(self) -> int:
        """Of the slider, as it is now; 0: off."""
        if not self.packing or self.compression == OFF:
            return 0
        return self._auto.level if self.compression == AUTO else int(self.compression)

    @property
    def ratio(self) -> float:
        """Bytes before compression for each byte after it, lately."""
        plain, written = self._recent
        return plain / written if written >= 1 else 1.0

    async def write(self, engine: Engine, buffers: list[Buffer], write: Write) -> None:
        """Write this frame, piece by piece, each when it may go."""
        size = sum(map(len, buffers))
        packs = self.packing and self.compression != OFF and size >= limits.PACKED_MIN_BYTES
        if packs and self.compression == AUTO and size >= limits.PACKED_THREAD_BYTES:
            self._look()
        # Decided for the whole frame: its bytes go one way.
        level = self._next_level(buffers, size) if packs else 0
        if not level:
            self._count(size, size)
            await self._write(buffers, write)
            return
        packed_bytes = took_ns = 0
        for row in cut(buffers, limits.PACKED_PLAIN_BYTES):
            packed, row_ns = await self._pack(row, level)
            row_bytes = sum(map(len, row))
            packed_bytes, took_ns = packed_bytes + len(packed), took_ns + row_ns
            self._count(row_bytes, len(packed))
            await self._write(engine.packed(packed, row_bytes), write)
        if self.compression == AUTO:
            self._auto.packed(level, size, packed_bytes, took_ns)

    async def _write(self, buffers: list[Buffer], write: Write) -> None:
        for buffer in joined(buffers):
            view = memoryview(buffer)
            while len(view):
                limited = self.limiter.bytes_per_s is not None
                count = await self.limiter.grant(len(view)) if limited else len(view)
                began_ns = self._clock.monotonic_ns()
                secured = self._secured
                before = secured.written_bytes if secured is not None else 0
                await write(view[:count])
                if limited and secured is not None:  # its records have heads and seals
                    self.limiter.charge(secured.written_bytes - before - count)
                self._blocked_ns += self._clock.monotonic_ns() - began_ns
                view = view[count:]

    def _next_level(self, buffers: list[Buffer], size: int) -> int:
        if self.compression != AUTO or size < limits.AUTO_SAMPLE_BYTES:
            return self.level
        compressible = is_compressible(buffers)
        self._auto.sampled(compressible=compressible)
        return self._auto.next_level() if compressible else 0

    async def _pack(self, row: list[Buffer], level: int) -> tuple[bytes, int]:
        """These bytes compressed, and how long that took."""
        took_ns = 0

        def timed() -> bytes:
            nonlocal took_ns
            began_ns = self._clock.monotonic_ns()
            packed = self._packer.pack(row, level)
            took_ns = self._clock.monotonic_ns() - began_ns
            return packed

        beside = sum(map(len, row)) > limits.PACKED_THREAD_BYTES
        return (await self._in_thread(timed) if beside else timed()), took_ns

    def _count(self, plain: int, written: int) -> None:
        self._plain_bytes += plain
        self._sent_bytes += written
        kept = 1 - min(plain / (4 * limits.MIB), 1.0)
        self._recent = (self._recent[0] * kept + plain, self._recent[1] * kept + written)

    def _look(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if not self._auto.is_due(now_ns):
            return
        if self._load is None:
            self._load = line.OtherLoad()
        known = line.delivered(self._socket) if self._socket is not None else None
        delivered, busy_ns = known if known is not None else (self._sent_bytes, self._blocked_ns)
        limit = self.limiter.bytes_per_s
        if limit is not None:  # the limit is the line
            busy_ns += self.limiter.waited_ns
        look = Look(self._plain_bytes, delivered, busy_ns, limit, self._load.look())
        self._auto.look(now_ns, look)
