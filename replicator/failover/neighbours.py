"""Packets by which hosts on one Ethernet find one another: built and understood. Pure.

IPv4 by ARP (RFC 826; probes and announcements: RFC 5227), IPv6 by neighbour discovery (RFC 4861 4.3, 4.4).
Whole Ethernet frames are built, because their senders have no address yet, or not the one that they speak of.
"""

import ipaddress
import struct
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0806, 0x86DD  # linux/if_ether.h
_BROADCAST = b"\xff" * 6
_NOBODY = bytes(6)
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # hardware, protocol, lengths, operation, sender, target (MAC, IP)
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ICMPV6, _HOP_LIMIT = 58, 255  # another hop limit: it came through a router
SOLICITATION, ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_SOURCE_MAC, _TARGET_MAC = 1, 2  # options: type, length in units of 8 bytes
_ALL_NODES = ipaddress.IPv6Address("ff02::1")


class Sign(NamedTuple):
    """Somebody has an address, or is about to take it (`probes`)."""

    address: Address
    mac: bytes
    probes: bool = False


def shown_mac(mac: bytes) -> str:
    return mac.hex(":") if mac else "an unknown host"


# --- asking ---


def probe(address: Address, mac: bytes) -> bytes:
    """Asks who has it, without anybody learning anything about the sender."""
    if isinstance(address, ipaddress.IPv4Address):
        return _arp(_ARP_REQUEST, mac, bytes(4), _NOBODY, address.packed)
    group = solicited_node(address)
    body = struct.pack("!BBHI", SOLICITATION, 0, 0, 0) + address.packed
    return _icmpv6(mac, _multicast_mac(group), ipaddress.IPv6Address(0), group, body)


def solicited_node(address: ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    """The multicast address on which its owner is asked (RFC 4291 2.7.1)."""
    return ipaddress.IPv6Address(ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:])


# --- telling ---


def announcements(address: Address, mac: bytes) -> list[bytes]:
    """Whoever remembers the address has it at this MAC from now on.

    For IPv4 as a request, as RFC 5227 has it, and as a reply, for hosts that learn from replies only.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return [
            _arp(_ARP_REQUEST, mac, address.packed, _NOBODY, address.packed),
            _arp(_ARP_REPLY, mac, address.packed, mac, address.packed),
        ]
    option = struct.pack("!BB", _TARGET_MAC, 1) + mac
    body = struct.pack("!BBHI", ADVERTISEMENT, 0, 0, _OVERRIDE) + address.packed + option
    return [_icmpv6(mac, _multicast_mac(_ALL_NODES), address, _ALL_NODES, body)]


# --- understanding ---


def understood(frame: bytes) -> Sign | None:
    """What a frame says about who has an address; None: nothing."""
    if len(frame) < 14:
        return None
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == ETHERTYPE_ARP:
        return _understood_arp(frame[14:])
    return _understood_icmpv6(frame) if ethertype == ETHERTYPE_IPV6 else None


def _understood_arp(packet: bytes) -> Sign | None:
    """RFC 5227 2.1.1: any sender with that address has it; who asks for it without having any probes it."""
    if len(packet) < _ARP.size:
        return None
    hardware, protocol, mac_bytes, ip_bytes, operation, mac, sender, _, target = _ARP.unpack_from(packet)
    if (hardware, protocol, mac_bytes, ip_bytes) != (1, 0x0800, 6, 4):
        return None
    if sender != bytes(4):
        return Sign(ipaddress.IPv4Address(sender), mac)
    if operation == _ARP_REQUEST:
        return Sign(ipaddress.IPv4Address(target), mac, probes=True)
    return None


def _understood_icmpv6(frame: bytes) -> Sign | None:
    """RFC 4862 5.4: an advertisement of it; or a solicitation from nowhere, of somebody who probes it."""
    packet = frame[14:]
    if len(packet) < 64 or packet[0] >> 4 != 6 or packet[6] != _ICMPV6 or packet[7] != _HOP_LIMIT:
        return None
    source, message = packet[8:24], packet[40:]
    target = ipaddress.IPv6Address(message[8:24])
    if message[0] == ADVERTISEMENT:
        return Sign(target, _option(message[24:], _TARGET_MAC) or frame[6:12])
    if message[0] == SOLICITATION and source == bytes(16):
        return Sign(target, frame[6:12], probes=True)
    return None


def _option(options: bytes, wanted: int) -> bytes:
    while len(options) >= 8:
        kind, size = options[0], options[1] * 8
        if not size:
            break
        if kind == wanted:
            return options[2:8]
        options = options[size:]
    return b""


# --- frames ---


def _arp(operation: int, mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    packet = _ARP.pack(1, 0x0800, 6, 4, operation, mac, sender, target_mac, target)
    return _BROADCAST + mac + struct.pack("!H", ETHERTYPE_ARP) + packet


def _icmpv6(
    mac: bytes, to_mac: bytes, source: ipaddress.IPv6Address, to: ipaddress.IPv6Address, body: bytes
) -> bytes:
    pseudo = source.packed + to.packed + struct.pack("!IHBB", len(body), 0, 0, _ICMPV6)
    message = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, _HOP_LIMIT) + source.packed + to.packed
    return to_mac + mac + struct.pack("!H", ETHERTYPE_IPV6) + header + message


def _multicast_mac(address: ipaddress.IPv6Address) -> bytes:
    """RFC 2464 7."""
    return b"\x33\x33" + address.packed[12:]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
