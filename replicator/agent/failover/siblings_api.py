"""Routes of other targets of a source. As in `agent/routes`, nothing is decided here."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Handler, check_action, read_body
from replicator.agent.service import Service


class SiblingBody(ActionBody, frozen=True, kw_only=True):
    host: str = ""  # HOST or HOST:PORT of the other target


class SiblingsApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self, request: Request) -> object:
        failover = self._service.failover
        return failover.siblings.known(failover.groups.find(request.path_params["name"]))

    async def act(self, request: Request) -> object:
        body = await read_body(request, SiblingBody)
        check_action(body, "adopt")
        connections = await self._service.failover.siblings.adopt(request.path_params["name"], body.host)
        return {"connections": connections}

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {"/v1/failover/monitors/{name}/siblings": {"GET": self.all, "POST": self.act}}
