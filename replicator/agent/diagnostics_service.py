"""What connections to nowhere have measured, as an administrator asks for it. Their senders know."""

import msgspec

from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.diagnostics import NOWHERE, DiagnosticsReport, is_nowhere
from replicator.errors import ReplicatorError, UsageError
from replicator.transmission import parse_limit


class DiagnosticsService:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def report(self, key: str, *, reset: bool = False, line: str = "") -> DiagnosticsReport:
        """`reset`: measure anew from now on. `line`: one more that is judged, as `parse_limit` takes it."""
        connection = self._connections.find(key)
        if not is_nowhere(connection.target_host):
            raise UsageError(
                f"connection {connection.id} has a real target: only one to {NOWHERE} is measured (dtctl"
                f" protect DIR {NOWHERE})"
            )
        child = self._core.children.sender(connection)
        if child is None:
            raise ReplicatorError(f"connection {connection.id} does not run")
        await child.wait_running()
        lines = _bit_per_s(line) if line else {}
        found = await child.call("diagnostics", reset=reset, lines=lines)
        return msgspec.convert(found, DiagnosticsReport)


def _bit_per_s(line: str) -> dict[str, int]:
    """By its name, which is as it was written. Raises UsageError."""
    rate = parse_limit(line)
    if rate is None:
        raise UsageError(f'line {line!r}: write its rate, as "50 Mbit/s"')
    return {" ".join(line.split()): round(rate.bytes_per_s * 8)}
