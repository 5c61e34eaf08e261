"""Whether an address means this very host: then source and target share one file system, and loops are
possible.
"""

import os
import socket

from replicator.addresses import Address

_LISTEN_STATE = "0A"  # TCP_LISTEN in /proc/net/tcp


def reaches_this_host(address: Address) -> bool:
    """Whether a copy sent to `address` would be written on this host. Blocks while the name is resolved.

    A local port on which another program listens is a tunnel (ssh -L, a container's port): its end is
    elsewhere.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return False  # the connection will fail and say why
    if not any(_is_own(family, place) for family, _, _, _, place in found):
        return False
    programs = _programs_listening(address.port)
    return not programs or any(b"replicator" in program or b"dtd" in program for program in programs)


def _is_own(family: int, place: tuple[object, ...]) -> bool:
    """Only an address of this host can be bound to."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((place[0], 0, *place[2:]))
        except OSError:
            return False
    return True


def _programs_listening(port: int) -> list[bytes]:
    """Command lines of the processes that listen on a TCP port here, as far as we may see them."""
    inodes = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            with open(table) as file:
                next(file)
                for line in file:
                    fields = line.split()
                    if fields[3] == _LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port:
                        inodes.add(f"socket:[{fields[9]}]")
        except OSError:
            continue
    found = []
    for entry in os.listdir("/proc") if inodes else []:
        if not entry.isdigit():
            continue
        try:
            for descriptor in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{descriptor}") in inodes:
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        found.append(file.read())
                    break
        except OSError:
            continue  # it ended, or closed it, while we looked
    return found
