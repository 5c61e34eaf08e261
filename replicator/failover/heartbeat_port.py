"""Where a source answers heartbeats: UDP, at the agent's port, in a thread of its own.

The agent's event loop may be held up by a disk that is overloaded, or by others that want the processor; this
thread needs neither, and asks the scheduler to go first, as cluster managers do. So a busy host is not taken
for a dead one. An answer leaves from the address that was asked.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from replicator import limits
from replicator.failover.heartbeat import DATAGRAM_BYTES, Answerer

_PKTINFO_BYTES = 64
_IP_PKTINFO = 8  # include/uapi/linux/in.h


class HeartbeatPort:
    """Open from construction to `close`. The answerer may be changed meanwhile: its calls are short, and the
    interpreter's lock is theirs.
    """

    def __init__(self, answerer: Answerer, addresses: Sequence[tuple[str, int]]) -> None:
        """`addresses`: (IP, port) to listen at. Raises OSError."""
        self._answerer = answerer
        self._sockets: list[socket.socket] = []
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            for host, port in addresses:
                self._sockets.append(_listening(host, port))
        except BaseException:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._serve, name="heartbeats", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._woken, b"x")
        self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for each in self._sockets:
            each.close()
        os.close(self._wake)
        os.close(self._woken)

    def _serve(self) -> None:
        _go_first()
        poll = select.poll()
        by_number = {each.fileno(): each for each in self._sockets}
        for number in (self._wake, *by_number):
            poll.register(number, select.POLLIN)
        since_s, count = time.monotonic(), 0
        while True:
            for number, _ in poll.poll():
                if number == self._wake:
                    return
                _answer_one(by_number[number], self._answerer)
                count += 1
            if count >= limits.HEARTBEATS_PER_S:  # whoever floods us does not get the processor
                time.sleep(max(0.0, since_s + 1.0 - time.monotonic()))
            if time.monotonic() >= since_s + 1.0:
                since_s, count = time.monotonic(), 0


def _answer_one(listening: socket.socket, answerer: Answerer) -> None:
    with suppress(OSError):  # BlockingIOError, and what ICMP says of earlier answers
        data, ancillary, _, address = listening.recvmsg(
            DATAGRAM_BYTES + 1, socket.CMSG_SPACE(_PKTINFO_BYTES), socket.MSG_DONTWAIT
        )
        answer = answerer.answer(data)
        if answer is not None:
            listening.sendmsg([answer], [_from_there(*each) for each in ancillary], 0, address)


def _from_there(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """Where a datagram came to, as where another is to come from: ip(7), ipv6(7)."""
    if level == socket.IPPROTO_IP:
        # struct in_pktinfo: interface, local address, the header's destination. Routes choose the interface.
        return level, kind, bytes(4) + data[4:8] + bytes(4)
    return level, kind, data[:16] + bytes(4) if not _is_link_local(data) else data


def _is_link_local(data: bytes) -> bool:
    return data[0] == 0xFE and data[1] & 0xC0 == 0x80


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            found.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        found.bind((host, port))
    except BaseException:
        found.close()
        raise
    return found


def _go_first() -> None:
    """Of this thread only: sched(7). Where that is not allowed (a container), it goes with all others."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
