"""The name of this host, taken over and given back (sethostname(2)).

Only the running system's. /etc/hostname stays: it is what a reboot goes back to, and a host that comes up as
somebody else before anybody has asked whether it still is would be two masters in name. The agent sets the
name again when it finds that its group is still owned here.
"""

import re
import socket

from replicator.errors import UsageError

_HOST_NAME = re.compile(r"(?=.{1,64}\Z)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")  # HOST_NAME_MAX


def check(name: str) -> None:
    """Raises UsageError."""
    if not _HOST_NAME.fullmatch(name):
        raise UsageError(f"host name {name!r}: letters, digits, hyphens and dots, at most 64 characters")


def current() -> str:
    return socket.gethostname()


def set_name(name: str) -> None:
    """OSError: this process may not."""
    socket.sethostname(name)
