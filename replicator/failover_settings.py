"""Monitors as users write them, and what their settings may be. Pure."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from replicator import limits
from replicator.addresses import parse_host_port
from replicator.errors import UsageError
from replicator.failovers import Check, CheckKind, Lapse, MonitorSettings, Policy, WatchedAddress

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_INTERFACE_CHARS = 15  # IFNAMSIZ of linux/if.h, without its NUL
_COUNTED = re.compile(r"([0-9]{1,4})\*")
_ETCD = ("etcd://", "etcds://")  # in plain text, by TLS


def parse_address(text: str) -> WatchedAddress:
    """`IP/PREFIX[@INTERFACE]`; without prefix it is the whole of the address. Raises UsageError."""
    address, at, interface = text.partition("@")
    if at and not interface:
        raise UsageError(f"address {text!r}: an interface is missing behind @")
    try:
        found = ipaddress.ip_interface(address)
    except ValueError:
        raise UsageError(f"address {text!r}: must be IP/PREFIX[@INTERFACE], as in 10.0.0.5/24@eth0") from None
    return WatchedAddress(address=str(found), interface=interface)


def parse_check(text: str) -> Check:
    """`agent`, `ping`, `tcp:PORT`, `http:PATH`, `http:URL` or `command:LINE`; a URL alone is an HTTP check.
    `N*` in front of it: so many of its answers may be missing. Raises UsageError.
    """
    misses = 0
    if counted := _COUNTED.match(text):
        misses, text = int(counted[1]), text[counted.end() :]
        if misses == 0:
            raise UsageError(f"check {counted[0]}{text!r}: must begin with at least 1*")
    if text.startswith(("http://", "https://")):
        check = Check(CheckKind.HTTP, text, misses)
    else:
        kind, _, argument = text.partition(":")
        try:
            check = Check(CheckKind(kind), argument, misses)
        except ValueError:
            kinds = ", ".join(CheckKind)
            raise UsageError(f"check {text!r}: must be one of {kinds} (dtctl failover add --help)") from None
    _check_check(check)
    return check


def ip_of(address: str) -> str:
    """Without its prefix."""
    return address.partition("/")[0]


def check_name(name: str) -> None:
    """Raises UsageError."""
    if len(name) > limits.NAME_CHARS or not _NAME.fullmatch(name):
        raise UsageError(
            f"name {name!r}: must be letters, digits, '.', '-' and '_', at most {limits.NAME_CHARS} of them"
        )


def check_settings(settings: MonitorSettings) -> None:
    """Raises UsageError for what can never be right."""
    parse_host_port(f"{_bracketed(settings.source_host)}:{settings.source_port}")
    _check_addresses(settings.addresses)
    if not 0 <= settings.drain_s <= limits.FAILOVER_DRAIN_MAX_S:
        raise UsageError(f"drain: must be from 0 to {limits.FAILOVER_DRAIN_MAX_S:.0f} s")
    if not 0 <= settings.lag_max_s <= limits.LAG_MAX_S:
        raise UsageError(f"max-lag: must be from 0 (any) to {limits.LAG_MAX_S} s")
    if settings.policy is Policy.PREFER_NODE and not settings.prefer_node:
        raise UsageError("policy prefer-node: which agent is preferred? (--prefer-node AGENT)")
    if settings.witness.startswith(_ETCD):
        hosts, _, prefix = settings.witness.partition("://")[2].partition("/")
        if "@" in hosts:
            raise UsageError(
                f"witness {hosts.rpartition('@')[2]}: the user and the password of an etcd stand in the"
                " configuration (failover.etcd_user)"
            )
        if not prefix.strip("/"):
            raise UsageError(f"witness {settings.witness!r}: must be etcd://HOST:PORT[,HOST:PORT]/PREFIX")
        for host in hosts.split(","):
            parse_host_port(host)
    elif settings.witness:
        parse_host_port(settings.witness)
    if settings.host_name:
        parse_host_port(settings.host_name)
    stops = settings.lapse not in (None, Lapse.NONE)  # the source, when its target does not see it
    arbiter = settings.witness or settings.fence_command or settings.even_if_partitioned or stops
    if settings.automatic and not arbiter:
        raise UsageError(
            "automatic failover needs somebody who is certain that the source is gone: if only the line"
            " between the two were cut, both would write. Give it a witness (--witness HOST[:PORT]) or a"
            " command that switches the source off (--fence-command), have the source stop when"
            " it is cut off (--lapse), or accept two masters with --even-if-partitioned; with --manual a"
            " person decides"
        )


def _check_addresses(addresses: Sequence[WatchedAddress]) -> None:
    if not any(address.monitored for address in addresses):
        raise UsageError("at least one address has to be monitored (--address IP/PREFIX)")
    if len(addresses) > limits.MONITOR_ADDRESSES:
        raise UsageError(f"a monitor has at most {limits.MONITOR_ADDRESSES} addresses")
    known: set[str] = set()
    for address in addresses:
        _check_address(address)
        if ip_of(address.address) in known:
            raise UsageError(f"address {ip_of(address.address)}: is there twice")
        known.add(ip_of(address.address))


def _check_address(address: WatchedAddress) -> None:
    found = parse_address(address.address)
    if found.address != address.address:
        raise UsageError(f"address {address.address}: must be written as {found.address}")
    if len(address.interface) > _INTERFACE_CHARS or "/" in address.interface or " " in address.interface:
        raise UsageError(f"interface {address.interface!r}: is no name of an interface")
    low, high = limits.MONITOR_INTERVAL_MIN_S, limits.MONITOR_INTERVAL_MAX_S
    if not low <= address.interval_s <= high:
        raise UsageError(f"interval {address.interval_s:g}: must be from {low:g} to {high:.0f} s")
    if not 1 <= address.misses <= limits.MONITOR_MISSES_MAX:
        raise UsageError(f"misses {address.misses}: must be from 1 to {limits.MONITOR_MISSES_MAX}")
    if address.monitored and not 1 <= len(address.checks) <= limits.MONITOR_CHECKS:
        raise UsageError(f"{address.address}: must have from 1 to {limits.MONITOR_CHECKS} checks")
    if len({(check.kind, check.argument) for check in address.checks}) < len(address.checks):
        raise UsageError(f"{address.address}: a check is there twice")
    for check in address.checks:
        _check_check(check)


def _check_check(check: Check) -> None:
    """Raises UsageError."""
    _CHECKS[check.kind](check.argument)
    if check.misses > limits.MONITOR_MISSES_MAX:
        raise UsageError(f"check {check.kind}: at most {limits.MONITOR_MISSES_MAX} misses are allowed")


def _no_argument(argument: str) -> None:
    if argument:
        raise UsageError(f"check: {argument!r} is not needed there")


def _port(argument: str) -> None:
    if not (argument.isascii() and argument.isdigit() and len(argument) <= 5 and 1 <= int(argument) <= 65535):
        raise UsageError(f"check tcp:{argument}: the port must be a number from 1 to 65535")


def _url(argument: str) -> None:
    if not argument.isascii() or not argument.isprintable() or " " in argument:
        raise UsageError(f"check http:{argument}: a URL has ASCII characters only, others are written as %XX")
    if argument.startswith("/"):
        return
    try:
        url = urlsplit(argument)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"check http:{argument}: must be a path (/health) or a URL (http://HOST/PATH)")


def _line(argument: str) -> None:
    if not argument.strip() or "\0" in argument:
        raise UsageError(
            "check command: a line for the shell is missing, as in command:'/usr/bin/test -e /x'"
        )
    if len(argument) > limits.PATH_BYTES:
        raise UsageError(f"check command: at most {limits.PATH_BYTES} characters are allowed")


_CHECKS: dict[CheckKind, Callable[[str], None]] = {
    CheckKind.AGENT: _no_argument,
    CheckKind.PING: _no_argument,
    CheckKind.TCP: _port,
    CheckKind.HTTP: _url,
    CheckKind.COMMAND: _line,
}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def with_timing(address: WatchedAddress, interval_s: float | None, misses: int | None) -> WatchedAddress:
    """None: as it is."""
    return msgspec.structs.replace(
        address,
        interval_s=address.interval_s if interval_s is None else interval_s,
        misses=address.misses if misses is None else misses,
    )
