"""Routes of failover. As in `agent/api.py`, nothing is decided here."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from replicator.agent.failover.guard_api import GuardApi
from replicator.agent.service import Service

Handler = Callable[[Request], Awaitable[object]]


class FailoverApi:
    """Handlers, as `agent.api.Api`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def history(self, request: Request) -> object:
        return await self._service.failover.groups.history(request.query_params.get("group", ""))

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {
            "/v1/failover/history": {"GET": self.history},
            **GuardApi(self._service.failover.guards, self._service.failover.returning).routes(),
        }
