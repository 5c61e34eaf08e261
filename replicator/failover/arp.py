"""Asks whether an address is free, and tells neighbours who has it now: on packet sockets, see packet(7).

The names are ARP's; IPv6 does the same by neighbour discovery. What the packets say is in `neighbours.py`.
"""

import ipaddress
import itertools
import socket
import struct
from collections.abc import Collection
from contextlib import ExitStack
from ctypes import addressof, create_string_buffer

import trio

from replicator import limits
from replicator.failover import neighbours
from replicator.failover.neighbours import Address, Sign
from replicator.failover.netlink import Link

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 1, 0  # linux/if_packet.h
_SOL_PACKET = 263


async def conflict(address: Address, link: Link, own_macs: Collection[bytes]) -> Sign | None:
    """Who else on this link has the address, or is about to take it; None: nobody within
    `limits.ADDRESS_PROBE_S`. OSError: the link is down, …

    RFC 5227 and RFC 4862 take seconds, for hosts that come up by the thousand at the same time. Here the
    address was in use a moment ago, its clients wait, and who still has it answers within a millisecond:
    some probes in a fifth of a second.
    """
    if not link.resolves:
        return None
    frame = neighbours.probe(address, link.mac)
    with _packet_socket(address, link) as packets:
        for _ in range(limits.ADDRESS_PROBES):
            await packets.send(frame)
            with trio.move_on_after(limits.ADDRESS_PROBE_S / limits.ADDRESS_PROBES):
                return await _first_sign(packets, address, own_macs)
    return None


async def _first_sign(packets: trio.socket.SocketType, address: Address, own_macs: Collection[bytes]) -> Sign:
    while True:
        sign = neighbours.understood(await packets.recv(limits.ETHERNET_FRAME_BYTES))
        if sign is not None and sign.address == address and sign.mac not in own_macs:
            return sign


async def announce(address: Address, link: Link) -> None:
    """Once. OSError."""
    if not link.resolves:
        return
    with _packet_socket(address, link) as packets:
        for frame in neighbours.announcements(address, link.mac):
            await packets.send(frame)


def _packet_socket(address: Address, link: Link) -> trio.socket.SocketType:
    """Bound to the link; hears only what `neighbours.understood` may understand."""
    is_ipv4 = isinstance(address, ipaddress.IPv4Address)
    ethertype = neighbours.ETHERTYPE_ARP if is_ipv4 else neighbours.ETHERTYPE_IPV6
    with ExitStack() as stack:
        # Protocol 0: it hears nothing until it is bound, so nothing gets past the filter.
        raw = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0))
        if isinstance(address, ipaddress.IPv6Address):
            _filter_neighbour_discovery(raw)
            # Others that probe the same address send to its solicited-node group.
            group = b"\x33\x33" + neighbours.solicited_node(address).packed[12:]
            member = struct.pack("=iHH8s", link.ifindex, _PACKET_MR_MULTICAST, len(group), group)
            raw.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
        raw.setblocking(False)
        raw.bind((link.name, ethertype))
        stack.pop_all()
        return trio.socket.from_stdlib_socket(raw)


def _filter_neighbour_discovery(raw: socket.socket) -> None:
    """Classic BPF on the frame: IPv6, next header ICMPv6, solicitation or advertisement. On a busy link all
    else of IPv6 would have to be read and thrown away.
    """
    load, equal, give = 0x30, 0x15, 0x06  # BPF_LD|B|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    program = [
        (load, 0, 0, 20),
        (equal, 0, 4, 58),
        (load, 0, 0, 54),
        (equal, 1, 0, neighbours.SOLICITATION),
        (equal, 0, 1, neighbours.ADVERTISEMENT),
        (give, 0, 0, limits.ETHERNET_FRAME_BYTES),
        (give, 0, 0, 0),
    ]
    code = create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), addressof(code)))


def pauses_s() -> list[float]:
    """Between the announcements of an address that was taken: one may be lost, and switches learn slowly."""
    times = (0.0, *limits.ADDRESS_ANNOUNCED_S)
    return [later - earlier for earlier, later in itertools.pairwise(times)]
