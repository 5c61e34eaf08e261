"""Interfaces of this host and their addresses, through the kernel's netlink (rtnetlink(7)).

Four kinds of messages of a stable interface: pyroute2 takes 22 MB and a quarter of a second to be
imported, at the moment in which everybody waits. Blocks, for about a millisecond.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address with the length of its prefix."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type of hardware, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type; padded to 4 bytes

# linux/netlink.h
_REQUEST, _ACK, _INTERRUPTED, _DUMP, _EXCLUSIVE, _CREATE = 1, 4, 0x10, 0x300, 0x200, 0x400
_ERROR, _DONE = 2, 3
# linux/rtnetlink.h, if_link.h, if_addr.h
_GETLINK, _NEWADDR, _DELADDR, _GETADDR = 18, 20, 21, 22
_IFLA_ADDRESS, _IFLA_IFNAME = 1, 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 0x02
# linux/if.h, if_arp.h
_UP, _LOOPBACK, _NOARP, _LOWER_UP = 0x1, 0x8, 0x80, 0x10000
_ETHERNET = 1

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_BUFFER_BYTES = 256 * 1024
_TRIES = 5  # while others change what is being listed


class Link(NamedTuple):
    """A network interface. `resolves`: neighbours are found by ARP or neighbour discovery on Ethernet."""

    ifindex: int
    name: str
    mac: bytes
    is_up: bool
    has_carrier: bool
    is_loopback: bool
    resolves: bool


class HostAddress(NamedTuple):
    """One address of this host. `flags`: IFA_F_* of linux/if_addr.h."""

    ifindex: int
    address: IpInterface
    flags: int = 0


class Netlink:
    """A socket to the kernel, of the network namespace of this thread. OSError with what the kernel says."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sequence = 0

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def links(self) -> list[Link]:
        found = []
        for body in self._list(_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
            _, hardware, index, flags, _ = _LINK.unpack_from(body)
            attributes = dict(_attributes(body[_LINK.size :]))
            found.append(
                Link(
                    ifindex=index,
                    name=os.fsdecode(attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0")),
                    mac=attributes.get(_IFLA_ADDRESS, b""),
                    is_up=bool(flags & _UP),
                    has_carrier=bool(flags & _LOWER_UP),
                    is_loopback=bool(flags & _LOOPBACK),
                    resolves=hardware == _ETHERNET and not flags & (_NOARP | _LOOPBACK),
                )
            )
        return found

    def addresses(self) -> list[HostAddress]:
        """IPv4 and IPv6."""
        found = []
        for body in self._list(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            family, prefix, flags, _, index = _ADDRESS.unpack_from(body)
            attributes = dict(_attributes(body[_ADDRESS.size :]))
            # IFA_ADDRESS is the other end of a point-to-point link, if there is an IFA_LOCAL besides.
            packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if family not in _FAMILIES.values() or packed is None:
                continue
            if _IFA_FLAGS in attributes:
                (flags,) = struct.unpack("=I", attributes[_IFA_FLAGS])
            address = ipaddress.ip_interface((packed, prefix))
            found.append(HostAddress(index, address, flags))
        return found

    def add(self, index: int, address: IpInterface) -> bool:
        """Usable at once. Returns False if it is there already.

        IPv6 without the kernel's duplicate address detection (RFC 4862): for one to two seconds no program
        could bind it. Nor optimistic (RFC 4429): then the kernel would not override what neighbours remember,
        which is what matters here. Whoever calls this has probed by himself.
        """
        attributes = _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        if isinstance(address, ipaddress.IPv4Interface):
            if address.network.prefixlen < 31:
                attributes += _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
        else:
            attributes += _attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
        try:
            self._ask(_NEWADDR, _CREATE | _EXCLUSIVE, _about(index, address) + attributes)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def remove(self, index: int, address: IpInterface) -> bool:
        """Returns False if it was not there.

        With the first IPv4 address of its network on an interface the kernel removes the others of that
        network, too (unless `promote_secondaries`, ip-sysctl): they are added again.
        """
        before = [a for a in self.addresses() if a.ifindex == index]
        attributes = _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        try:
            self._ask(_DELADDR, 0, _about(index, address) + attributes)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
                return False
            raise
        left = {a.address for a in self.addresses() if a.ifindex == index}
        for other in before:
            if other.address not in left and other.address != address:
                self.add(index, other.address)
        return True

    # --- messages ---

    def _list(self, type_: int, body: bytes) -> list[bytes]:
        for _ in range(_TRIES):
            found, whole = self._ask(type_, _DUMP, body)
            if whole:
                break
        return found

    def _ask(self, type_: int, flags: int, body: bytes) -> tuple[list[bytes], bool]:
        """Bodies of the answers, and whether nothing changed meanwhile."""
        self._sequence += 1
        flags |= _REQUEST if flags & _DUMP == _DUMP else _REQUEST | _ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), type_, flags, self._sequence, 0) + body)
        found: list[bytes] = []
        whole = True
        while True:
            data = self._socket.recv(_BUFFER_BYTES)
            while len(data) >= _HEADER.size:
                length, answer, how, sequence, _ = _HEADER.unpack_from(data)
                payload = data[_HEADER.size : length]
                data = data[_aligned(length) :]
                if sequence != self._sequence:  # of an earlier request that was given up
                    continue
                whole = whole and not how & _INTERRUPTED
                if answer in (_ERROR, _DONE):
                    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    return found, whole
                found.append(payload)


def _about(index: int, address: IpInterface) -> bytes:
    return _ADDRESS.pack(_FAMILIES[address.version], address.network.prefixlen, 0, 0, index)


def _attribute(type_: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, type_) + value + bytes(_aligned(length) - length)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, type_ = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield type_ & 0x3FFF, data[_ATTRIBUTE.size : length]  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
