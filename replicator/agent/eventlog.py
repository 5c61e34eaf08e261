"""The agent's log file: one line per event, kept small by rotation (LG-02)."""

import os
import sys

from replicator.events import Event, Severity

_SYSLOG = {Severity.INFO: 6, Severity.WARNING: 4, Severity.ERROR: 3}  # levels of syslog(3)


class EventLog:
    """Appends to `path`; when it has reached `bytes_max` it becomes `path`.1, and so on up to `files` files
    in all.

    A disk that takes no line must not stop an agent: the line goes to stderr, where the service manager sees
    it.
    """

    def __init__(self, path: str, bytes_max: int, files: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._files = files

    def write(self, event: Event) -> None:
        """Never raises."""
        line = event.line() + "\n"
        if "JOURNAL_STREAM" in os.environ:  # stderr is the system log (LG-06)
            print(f"<{_SYSLOG[event.severity]}>{event.id} {event.text}", file=sys.stderr, flush=True)
        try:
            self._rotate(len(line.encode()))
            with open(self._path, "a", opener=_private) as file:
                file.write(line)
        except OSError as error:
            print(f"{line.rstrip()} (not logged: {error.strerror})", file=sys.stderr, flush=True)

    def _rotate(self, more_bytes: int) -> None:
        try:
            size_bytes = os.stat(self._path).st_size
        except FileNotFoundError:
            return
        if not size_bytes or size_bytes + more_bytes <= self._bytes_max:
            return
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, self._files))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if os.path.exists(newer):
                os.replace(newer, older)
        if self._files == 1:
            os.unlink(self._path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
