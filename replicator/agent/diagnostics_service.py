"""What connections to nowhere have measured, as an administrator asks for it. Their senders know."""

import msgspec

from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.diagnostics import NOWHERE, DiagnosticsReport, is_nowhere
from replicator.errors import ReplicatorError, UsageError


class DiagnosticsService:
    """See the module."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    async def report(self, key: str, *, reset: bool = False) -> DiagnosticsReport:
        """`reset`: measure anew from now on."""
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
        return msgspec.convert(await child.call("diagnostics", reset=reset), DiagnosticsReport)
