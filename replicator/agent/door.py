"""Who may stand at the listening port without having said what they want: a bounded number of sockets in
all, and of one address. Pure: no sockets, no clock of its own.

An address is an IPv4 address, or the /64 network of an IPv6 address: that much is given to one host.
"""

import ipaddress
from collections import Counter, OrderedDict
from typing import NamedTuple

from replicator import limits


def neighbourhood(host: str) -> str:
    """What counts as one address; `host` as getpeername(2) tells it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False).network_address)


class Door:
    """Counts who stands there. There is always room for those who come from elsewhere."""

    def __init__(self) -> None:
        self._standing: Counter[str] = Counter()

    def enter(self, host: str) -> bool:
        """Whether one more may come in from there; if so, `leave` is due."""
        key = neighbourhood(host)
        if self._standing[key] >= limits.GREETINGS_PER_ADDRESS:
            return False
        self._standing[key] += 1
        return True

    def leave(self, host: str) -> None:
        key = neighbourhood(host)
        self._standing[key] -= 1
        if self._standing[key] <= 0:
            del self._standing[key]


class Refusal(NamedTuple):
    """What to log. `unlogged`: as many of that address were not, since the last that was."""

    reason: str
    unlogged: int


class RefusalLog:
    """Bounds what strangers can write into our logs: of one address some at once, then one in a while."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int, int]] = (
            OrderedDict()
        )  # (since when, logged, not logged)

    def note(self, host: str, reason: str, now_s: float) -> Refusal | None:
        """None: it is counted, and told with a later one."""
        key = neighbourhood(host)
        since_s, logged, unlogged = self._seen.pop(key, (now_s, 0, 0))
        if now_s - since_s >= limits.REFUSALS_WINDOW_S:
            since_s, logged = now_s, 0
        if logged < limits.REFUSALS_LOGGED:
            refusal = Refusal(reason, unlogged)
            self._seen[key] = (since_s, logged + 1, 0)
        else:
            refusal = None
            self._seen[key] = (since_s, logged, unlogged + 1)
        if len(self._seen) > limits.REFUSALS_REMEMBERED:
            self._seen.popitem(last=False)
        return refusal
