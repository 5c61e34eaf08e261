"""Congestion control of a TCP socket (tcp(7), TCP_CONGESTION): what a lost packet says of the line.

`cubic` takes each for a sign that the line is full: of a long line that loses 1 % one stream gets a fraction.
`bbr` measures the line instead, and fills it. Sockets that name none have the host's own
(net.ipv4.tcp_congestion_control).
"""

import socket
from pathlib import Path
from typing import Protocol

from replicator.errors import ConfigError

_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


class Socket(Protocol):
    """`socket.socket`, `trio.SocketStream`."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...


def use(connection: Socket, name: str) -> bool:
    """Whether the kernel has it, and lets this process use it. Loads its module if need be (as root)."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError:
        return False
    return True


def check(name: str) -> None:
    """Of the configuration; "": the host's own. Raises ConfigError: this kernel has no such thing."""
    if name and not is_usable(name):
        raise ConfigError(
            f'connection.congestion_control = "{name}": this kernel does not have it; it has:'
            f" {', '.join(available())}"
        )


def is_usable(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as scratch:
        return use(scratch, name)


def available() -> list[str]:
    """Those that are loaded."""
    try:
        return _AVAILABLE.read_text().split()
    except OSError:
        return []
