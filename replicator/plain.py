"""Where plain text may be spoken. Pure."""

import ipaddress


def is_allowed(
    allow_plain: tuple[str, ...],
    loopback_plain: bool,
    own_address: str,
    peer_address: str,
    peer_name: str = "",
) -> bool:
    """Whether a connection between these addresses may be plain. `peer_name`: as it was dialled; "": it
    dialled us.

    Both ends must be loopback, if that is enough, or the peer is named in `allow_plain`.
    """
    if loopback_plain and _is_loopback(own_address) and _is_loopback(peer_address):
        return True
    return any(_matches(entry, peer_address, peer_name) for entry in allow_plain)


def is_entry(text: str) -> bool:
    """Whether `text` can stand in `allow_plain`: a network, an address or a host name."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return bool(text) and not set(text) & set(" /:[]\t\n") and text.isprintable()
    return True


def _matches(entry: str, address: str, name: str) -> bool:
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return bool(name) and entry.lower() == name.lower()
    found = _address(address)
    return found is not None and found.version == network.version and found in network


def _is_loopback(text: str) -> bool:
    address = _address(text)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Without its zone; an IPv4 address that came through an IPv6 socket is one."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
