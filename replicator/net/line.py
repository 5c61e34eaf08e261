"""What the kernel knows of a session's line: how much was delivered, and for how long something waited."""

import socket
import struct
import time

import trio

# Of struct tcp_info (linux/tcp.h): tcpi_bytes_acked, tcpi_busy_time (µs).
_COUNTERS = struct.Struct("<120xQ40xQ")


def socket_of(stream: trio.abc.Stream) -> trio.SocketStream | None:
    """The TCP socket at the bottom of a stream; None if there is none (in memory)."""
    while not isinstance(stream, trio.SocketStream):
        # Of TLS: trio's own stream, or another one.
        below = getattr(stream, "transport_stream", None) or getattr(stream, "transport", None)
        if below is None:
            return None
        stream = below
    return stream if stream.socket.family in (socket.AF_INET, socket.AF_INET6) else None


def delivered(stream: trio.SocketStream) -> tuple[int, int] | None:
    """(bytes acknowledged, ns in which some were on their way), ever; None if the kernel does not say."""
    try:
        info = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size)
    except OSError:
        return None
    if len(info) < _COUNTERS.size:
        return None
    acknowledged, busy_us = _COUNTERS.unpack(info)
    return acknowledged, busy_us * 1000


class OtherLoad:
    """How busy all processors are with what others do, since the last call."""

    def __init__(self) -> None:
        self._last = self._read()
        self.busy = 0.0

    def look(self) -> float:
        now = self._read()
        total, idle, own = (a - b for a, b in zip(now, self._last, strict=True))
        if total >= 0.2:  # a few ticks of the clock at least
            self._last = now
            self.busy = min(max((total - idle - own) / total, 0.0), 1.0)
        return self.busy

    def _read(self) -> tuple[float, float, float]:
        """(all, idle, ours), seconds of processor time."""
        try:
            with open("/proc/stat", "rb") as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0.0, 0.0, 0.0
        return sum(ticks) / 100, (ticks[3] + ticks[4]) / 100, time.process_time()
