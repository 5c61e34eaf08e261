"""Whose program is at the other end of a connection within this host: TCP itself does not say."""

import ipaddress
import os
import struct

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_LOCAL, _REMOTE, _UID = 1, 2, 7  # fields, see proc_net_tcp in the kernel's documentation


def is_ours(own: tuple[str, int], peer: tuple[str, int]) -> bool:
    """Whether the program at `peer`, which is connected to `own`, is root's, as this agent is. Both are (IP
    address, port). False if it is not there (any more). Blocks.

    Any user may connect to a port of the loopback device, and a copy is written with root's rights.
    """
    wanted = (peer, own)
    for table in _TABLES:
        try:
            with open(table) as file:
                next(file)
                for line in file:
                    fields = line.split()
                    if (_place(fields[_LOCAL]), _place(fields[_REMOTE])) == wanted:
                        return int(fields[_UID]) == os.geteuid()
        except (OSError, StopIteration):
            continue
    return False


def _place(text: str) -> tuple[str, int]:
    """`0100007F:05DC`: words of the address in this processor's order of bytes."""
    address, _, port = text.partition(":")
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    found = ipaddress.ip_address(packed)
    return str(getattr(found, "ipv4_mapped", None) or found), int(port, 16)
