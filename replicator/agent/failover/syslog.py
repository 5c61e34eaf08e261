"""Events of failover in the system's log (FO-16), whoever started the agent. See syslog(3)."""

import os
import socket
from contextlib import suppress

from replicator.events import Event, Severity

SOCKET = "/dev/log"
_DAEMON = 3 << 3  # facility
_LEVELS = {Severity.INFO: 6, Severity.WARNING: 4, Severity.ERROR: 3}


def tell(event: Event, path: str = SOCKET) -> None:
    """Never raises, and never waits: a log that is not there or does not listen loses it."""
    if "JOURNAL_STREAM" in os.environ:
        return  # the event log has told it: `eventlog.py`
    text = f"<{_DAEMON | _LEVELS[event.severity]}>dtd[{os.getpid()}]: {event.id} {event.text}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log:
        log.sendto(text.encode(), path)
