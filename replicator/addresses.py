"""How a user spells network addresses and destinations. Pure: nothing is resolved here."""

import ipaddress
import os
import re
from typing import NamedTuple

from replicator import limits
from replicator.diagnostics import NOWHERE, is_nowhere
from replicator.errors import UsageError

_HOST_PORT = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<host>[^\[\]:/]*))(?::(?P<port>[^:/]*))?")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_DESTINATION = re.compile(r"(?s)(?P<agent>(?:\[[^\]/]*\]|[^\[\]:/]+)(?::[^:/]*)?):(?P<path>/.*)")


class Address(NamedTuple):
    """Host name or IP address, and TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connectable_host(self) -> str:
        """The host to connect to from here, if this is where somebody listens on all addresses."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether only this host reaches it. A name is one only if it is `localhost`: others may resolve to
        anything.
        """
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


class Destination(NamedTuple):
    """Where a copy goes. `address` None: this same agent."""

    address: Address | None
    path: str


def parse_host_port(text: str, *, default_port: int = limits.PORT) -> Address:
    """`HOST`, `HOST:PORT` or `[V6]:PORT`. Raises UsageError."""
    if text.count(":") > 1 and not text.startswith("["):
        raise UsageError(f"address {text!r}: write an IPv6 address in brackets, as in [::1]:{default_port}")
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise UsageError(f"address {text!r}: must be HOST, HOST:PORT or [IPv6]:PORT")
    if match["bracketed"] is not None:
        host = match["bracketed"]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageError(f"address {text!r}: {host!r} is not an IPv6 address") from None
    else:
        host = match["host"]
        if not _HOST_NAME.fullmatch(host):
            raise UsageError(f"address {text!r}: {host!r} is not a host name or IP address")
    port = match["port"]
    if port is None:
        return Address(host, default_port)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise UsageError(f"address {text!r}: the port must be a number from 1 to 65535")
    return Address(host, int(port))


def normalise_path(path: str, what: str) -> str:
    """An absolute path without doubled slashes, `.` or `..`. `what` names it in errors. Raises UsageError."""
    if not path.startswith("/"):
        raise UsageError(f"{what} {path!r}: must be an absolute path (begin with /)")
    if "\0" in path or ".." in path.split("/"):
        raise UsageError(f"{what} {path!r}: must not contain .. or a NUL character")
    if len(os.fsencode(path)) > limits.PATH_BYTES:
        raise UsageError(
            f"{what}: path of {len(os.fsencode(path))} bytes; at most {limits.PATH_BYTES} are allowed"
        )
    return os.path.normpath("/" + path.lstrip("/"))


def parse_destination(text: str) -> Destination:
    """`HOST[:PORT]:/path`, `[V6][:PORT]:/path`, `/path` on this same agent, or `Diagnostics`. Raises
    UsageError.
    """
    if is_nowhere(text):
        return Destination(Address(NOWHERE, limits.PORT), "/")
    if text.startswith("/"):
        return Destination(None, normalise_path(text, "target path"))
    match = _DESTINATION.fullmatch(text)
    if match is None:
        raise UsageError(f"destination {text!r}: must be HOST[:PORT]:/path, or /path on this host")
    return Destination(parse_host_port(match["agent"]), normalise_path(match["path"], "target path"))
