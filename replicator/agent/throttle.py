"""Failed logins make the next ones wait: longer each time, for the address and for the user's name.

Pure: time is an argument, in seconds of any clock that does not jump back.

- An attempt is counted as failed when it begins, and forgiven when it succeeds: who tries many at once gains
  nothing.
- The name counts too, so that many addresses do not help. It does not count where this user has logged in
  from before: nobody can keep others out by failing in their name.
- What is remembered is bounded: beyond, the oldest is forgotten.
"""

import ipaddress
from collections import OrderedDict
from typing import Any

from replicator import limits


class _Failures:
    def __init__(self) -> None:
        self.count = 0
        self.last_s = 0.0

    @property
    def open_s(self) -> float:
        """When the next attempt is looked at."""
        beyond = self.count - limits.LOGIN_FREE_FAILURES
        if beyond < 0:
            return self.last_s
        return self.last_s + min(
            limits.LOGIN_DELAY_FIRST_S * 2.0 ** min(beyond, 30), limits.LOGIN_DELAY_MAX_S
        )


class Throttle:
    def __init__(self, kept: int = limits.LOGIN_FAILURES_KEPT) -> None:
        self._kept = kept
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()
        self._at_home: OrderedDict[tuple[str, str], None] = OrderedDict()  # (user, address) that succeeded

    def __len__(self) -> int:
        """What is remembered."""
        return len(self._failures) + len(self._at_home)

    def begin(self, user: str, address: str, now_s: float) -> float:
        """How long this attempt has to wait, in seconds; then it is not counted. 0: look at it."""
        keys = self._keys(user, address)
        wait_s = 0.0
        for key in keys:
            known = self._failures.get(key)
            if known is not None and now_s - known.last_s > limits.LOGIN_FORGET_S:
                del self._failures[key]
            elif known is not None:
                wait_s = max(wait_s, known.open_s - now_s)
        if wait_s > 0:
            return wait_s
        for key in keys:
            known = self._failures.setdefault(key, _Failures())
            known.count += 1
            known.last_s = now_s
            self._failures.move_to_end(key)
        _shrink(self._failures, self._kept)
        return 0.0

    def succeeded(self, user: str, address: str) -> None:
        """The attempt that was begun was right."""
        for key in self._keys(user, address):
            self._failures.pop(key, None)
        pair = (user, network(address))
        self._at_home[pair] = None
        self._at_home.move_to_end(pair)
        _shrink(self._at_home, self._kept)

    def _keys(self, user: str, address: str) -> list[tuple[str, str]]:
        here = network(address)
        keys = [("address", here)]
        return keys if (user, here) in self._at_home else [*keys, ("user", user)]


def network(address: str) -> str:
    """What one person may have of addresses: one of IPv4, 2**64 of IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)


def _shrink(table: OrderedDict[tuple[str, str], Any], kept: int) -> None:
    while len(table) > kept:
        table.popitem(last=False)
