"""Routes of groups that this agent is the witness of. As in `agent/routes`, nothing is decided here."""

from starlette.requests import Request

from replicator.agent.api_body import Handler
from replicator.agent.service import Service


class WitnessApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def groups(self, request: Request) -> object:
        return self._service.failover.witness.list()

    async def group(self, request: Request) -> object:
        return self._service.failover.witness.find(request.path_params["group"])

    async def forget(self, request: Request) -> object:
        return await self._service.failover.witness.forget(request.path_params["group"])

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {
            "/v1/failover/witness": {"GET": self.groups},
            "/v1/failover/witness/{group}": {"GET": self.group, "DELETE": self.forget},
        }
