"""Which addresses a target takes, on which interface, and taking them: probed, added, announced.

Several addresses are probed at the same time; they are added one after the other. Nothing here is remembered:
`address_book.py` does that.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import trio

from replicator.errors import ReplicatorError, UsageError
from replicator.failover import arp
from replicator.failover.neighbours import Sign, shown_mac
from replicator.failover.netlink import HostAddress, IpInterface, Link, Netlink
from replicator.failovers import FailWhen, MonitorSettings

Say = Callable[[str], None]


class ConflictError(ReplicatorError):
    """Somebody else has an address that is to be taken, or may have."""


class Wanted(NamedTuple):
    """An address that is to be here. `interface`: "": the one whose network it is in."""

    address: IpInterface
    interface: str = ""


class Place(NamedTuple):
    """Where it goes."""

    address: IpInterface
    link: Link

    def __str__(self) -> str:
        return f"{self.address} on {self.link.name}"


class Host(NamedTuple):
    """What this host has at the moment."""

    links: Sequence[Link]
    addresses: Sequence[HostAddress]

    @property
    def macs(self) -> frozenset[bytes]:
        return frozenset(link.mac for link in self.links)

    def link(self, index: int) -> Link | None:
        return next((link for link in self.links if link.ifindex == index), None)

    def has(self, address: IpInterface) -> Link | None:
        """The interface that has the address, whatever the length of its prefix is there."""
        for own in self.addresses:
            if own.address.ip == address.ip:
                return self.link(own.ifindex)
        return None


# --- what is wanted ---


def parse(text: str) -> IpInterface:
    """ADDRESS/PREFIX. Raises UsageError."""
    if "/" not in text:
        raise UsageError(f"address {text!r}: say its network, as in 10.0.0.5/24 or 2001:db8::5/64")
    try:
        address = ipaddress.ip_interface(text)
    except ValueError:
        raise UsageError(
            f"address {text!r}: must be an IP address with its prefix, as in 10.0.0.5/24"
        ) from None
    ip = address.ip
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
        raise UsageError(f"address {text!r}: must be one that clients can reach a host by")
    return address


def wanted(settings: MonitorSettings) -> list[Wanted]:
    """FO-06. Raises UsageError."""
    return [Wanted(parse(watched.address), watched.interface) for watched in settings.taken]


def risks(settings: MonitorSettings) -> list[str]:
    """FO-07: what a person should know of these settings, a line each."""
    taken = wanted(settings)
    monitored = [w for w in settings.addresses if w.monitored]
    if len(taken) < 2:
        return []
    if settings.fail_when is FailWhen.ANY and len(monitored) > 1:
        return [
            f"one of {len(monitored)} addresses that fails makes this host take {len(taken)}: the others may"
            " exist twice then, unless a fence command or a witness stops the source"
        ]
    if len(taken) > len(monitored):
        names = ", ".join(w.address for w in settings.addresses if not w.monitored)
        return [
            f"{names} will be taken without being monitored: if the source is still there by them, they exist"
            " twice"
        ]
    return []


def place_of(item: Wanted, host: Host) -> Place:
    """FO-03: where an address goes: the interface that was named, or else the one whose network it is in (of
    several the narrowest). Raises ReplicatorError: there is none, or it is down.
    """
    link = _named(item, host) if item.interface else _in_network_of(item, host)
    if not link.is_up:
        raise ReplicatorError(f"{item.address}: interface {link.name} of this host is down")
    return Place(item.address, link)


def _named(item: Wanted, host: Host) -> Link:
    for link in host.links:
        if link.name == item.interface:
            return link
    names = ", ".join(link.name for link in host.links)
    raise ReplicatorError(f"{item.address}: this host has no interface {item.interface}, but {names}")


def _in_network_of(item: Wanted, host: Host) -> Link:
    candidates = [
        (own.address.network.prefixlen, link)
        for own in host.addresses
        if own.address.version == item.address.version
        and item.address.ip in own.address.network
        and own.address.ip != item.address.ip
        and (link := host.link(own.ifindex)) is not None
        and not link.is_loopback
    ]
    if not candidates:
        raise ReplicatorError(
            f"{item.address}: no interface of this host is in its network: name one, or do not take this"
            " address (across networks: a script that changes routes or DNS)"
        )
    return max(candidates, key=lambda c: (c[0], c[1].is_up, -c[1].ifindex))[1]


# --- here ---


async def look() -> Host:
    """OSError."""
    return await trio.to_thread.run_sync(_look)


def _look() -> Host:
    with Netlink() as netlink:
        return Host(netlink.links(), netlink.addresses())


async def places(items: Iterable[Wanted], host: Host) -> list[Place]:
    """Where they go. Raises ReplicatorError with all that is wrong."""
    found, wrong = [], []
    for item in items:
        try:
            found.append(place_of(item, host))
        except ReplicatorError as error:
            wrong.append(str(error))
    if wrong:
        raise ReplicatorError("; ".join(wrong))
    return found


async def probe(found: Sequence[Place], host: Host) -> None:
    """Raises ConflictError: somebody else has one of them, or more, or it cannot be told.

    What is here already is not asked for.
    """
    found_out: dict[int, str] = {}

    async def ask(number: int, place: Place) -> None:
        if not place.link.has_carrier:  # nobody would hear the question, nor come by this address
            found_out[number] = f"{place}: no link there: is it this host that is cut off?"
            return
        try:
            sign = await arp.conflict(place.address.ip, place.link, host.macs)
        except OSError as error:
            found_out[number] = f"{place}: it cannot be told whether it is in use: {error.strerror}"
        else:
            if sign is not None:
                found_out[number] = _answers(place, sign)

    async with trio.open_nursery() as nursery:
        for number, place in enumerate(found):
            if host.has(place.address) is None:
                nursery.start_soon(ask, number, place)
    if found_out:
        raise ConflictError("; ".join(text for _, text in sorted(found_out.items())))


def _answers(place: Place, sign: Sign) -> str:
    mac = shown_mac(sign.mac)
    if sign.probes:
        return f"{place.address}: {mac} is about to take it, too (on {place.link.name})"
    return f"{place.address} is in use: {mac} answers on {place.link.name}"


async def add(place: Place, host: Host) -> bool:
    """Add one, and announce it. Returns False if it was here already: then it is announced all the same.
    Raises ReplicatorError: it is on another interface. OSError.
    """
    present = host.has(place.address)
    if present is not None and present.ifindex != place.link.ifindex:
        raise ReplicatorError(f"{place.address} is on {present.name} of this host already")
    added = present is None and await trio.to_thread.run_sync(_add, place)
    await arp.announce(place.address.ip, place.link)
    return added


def _add(place: Place) -> bool:
    with Netlink() as netlink:
        return netlink.add(place.link.ifindex, place.address)


async def announce_again(found: Sequence[Place]) -> None:
    """For some seconds after they were added: an announcement may be lost, and switches learn slowly. What
    this host has given up meanwhile is not announced: another one has it.
    """
    for pause_s in arp.pauses_s():
        await trio.sleep(pause_s)
        with suppress(OSError):  # no descriptors, no memory; the next time may do
            host = await look()
            for place in found:
                if host.has(place.address) is not None:
                    with suppress(OSError):  # the interface is gone, or down
                        await arp.announce(place.address.ip, place.link)


async def remove(addresses: Iterable[IpInterface]) -> list[str]:
    """Remove them from wherever they are on this host. Returns those that were there, as ADDRESS on
    INTERFACE. OSError.
    """
    return await trio.to_thread.run_sync(_remove, list(addresses))


def _remove(addresses: Sequence[IpInterface]) -> list[str]:
    unwanted = {address.ip for address in addresses}
    removed = []
    with Netlink() as netlink:
        host = Host(netlink.links(), netlink.addresses())
        # The last ones first: with the first of a network the kernel removes the others.
        for own in reversed(host.addresses):
            link = host.link(own.ifindex)
            if own.address.ip in unwanted and netlink.remove(own.ifindex, own.address) and link is not None:
                removed.append(str(Place(own.address, link)))
    return removed[::-1]
