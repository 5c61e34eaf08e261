"""A long line that loses packets, between two hosts: what TCP really makes of it.

    with lan("alpha", "beta") as (alpha, beta), long_line(alpha, beta, LongLine(loss=0.01)) as line:
        ...                            # what they send each other goes over it
        line.cut()                     # nothing goes either way, and nobody is told
        line.mend()

A process carries the packets between a TUN device on each host (Documentation/networking/tuntap.rst): with
half a round trip of delay, at a rate, through a queue that drops what it has no room for, and some are lost.
The kernel's own netem is not everywhere.
"""

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from kit.hosts import Host

_DEVICE = "line"
_MTU_BYTES = 1500
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_CUT, _MEND = b"-", b"+"
_LIBC = ctypes.CDLL(None, use_errno=True)
_PACKETS = 64  # at most, before what is due is looked at


@dataclass(frozen=True)
class LongLine:
    """`loss`: share of packets, either way. `queue_bytes`: what waits for the line, in one direction."""

    round_trip_s: float = 0.05
    bytes_per_s: float = 12_500_000.0
    loss: float = 0.01
    queue_bytes: int = 1 << 20
    seed: int = 1


class _Way:
    """One direction. What is sent at a moment arrives later, in order."""

    def __init__(self, line: LongLine, seed: int) -> None:
        self._line = line
        self._random = random.Random(seed)
        self._free_s = 0.0  # the line has sent what it was given
        self._packets: deque[tuple[float, bytes]] = deque()

    def send(self, packet: bytes, now_s: float) -> None:
        line = self._line
        waits_bytes = (self._free_s - now_s) * line.bytes_per_s
        if waits_bytes > line.queue_bytes or self._random.random() < line.loss:
            return
        self._free_s = max(self._free_s, now_s) + len(packet) / line.bytes_per_s
        self._packets.append((self._free_s + line.round_trip_s / 2, packet))

    def due_s(self) -> float:
        return self._packets[0][0] if self._packets else float("inf")

    def arrived(self, now_s: float) -> Iterator[bytes]:
        while self._packets and self._packets[0][0] <= now_s:
            yield self._packets.popleft()[1]


def _carry(tunnels: tuple[int, int], line: LongLine) -> None:
    """Until standard input ends. A byte there cuts or mends the line."""
    near, far = tunnels
    to_far, to_near = _Way(line, line.seed), _Way(line, line.seed + 1)
    routes = ((near, far, to_far), (far, near, to_near))
    is_cut = False
    while True:
        wait_s = max(min(to_far.due_s(), to_near.due_s()) - time.monotonic(), 0.0)
        readable, _, _ = select.select([near, far, 0], [], [], min(wait_s, 1.0))
        if 0 in readable:
            said = os.read(0, 1)
            if not said:
                return
            is_cut = said == _CUT
        for source, destination, way in routes:
            if source in readable:
                for _ in range(_PACKETS):
                    try:
                        packet = os.read(source, _MTU_BYTES)
                    except BlockingIOError:
                        break
                    if not is_cut:
                        way.send(packet, time.monotonic())
            for packet in way.arrived(time.monotonic()):
                try:
                    os.write(destination, packet)
                except OSError:
                    pass  # the device is down, or has no room: lost


def _tunnel(pid: int) -> int:
    """A device in the network of that process; it belongs to where it is opened."""
    with open(f"/proc/{pid}/ns/net", "rb") as network:
        if _LIBC.setns(network.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


class Carrier:
    """Carries the packets of a line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._orders = process.stdin

    def cut(self) -> None:
        self._order(_CUT)

    def mend(self) -> None:
        self._order(_MEND)

    def _order(self, order: bytes) -> None:
        self._orders.write(order)
        self._orders.flush()


@contextmanager
def long_line(one: Host, other: Host, line: LongLine) -> Iterator[Carrier]:
    """The way between both hosts."""
    words = [str(value) for value in (one.pid, other.pid, *astuple(line))]
    process = subprocess.Popen(
        [sys.executable, "-m", "kit.long_line", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for host, peer in ((one, other), (other, one)):
            host.ip("link", "set", _DEVICE, "mtu", str(_MTU_BYTES), "txqueuelen", "1000", "up")
            host.ip("route", "replace", f"{peer.address}/32", "dev", _DEVICE, "src", host.address)
        yield Carrier(process)
    finally:
        process.communicate(timeout=20)


def main() -> None:
    one, other, round_trip_s, bytes_per_s, loss, queue_bytes, seed = sys.argv[1:]
    tunnels = _tunnel(int(one)), _tunnel(int(other))
    print("ready", flush=True)
    line = LongLine(float(round_trip_s), float(bytes_per_s), float(loss), int(queue_bytes), int(seed))
    _carry(tunnels, line)


if __name__ == "__main__":
    main()
