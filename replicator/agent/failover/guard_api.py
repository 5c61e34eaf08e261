"""Routes of groups in which this host is the source. As in `agent/routes`, nothing is decided here."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Handler, check_action, read_body
from replicator.agent.service import Service


class GuardActionBody(ActionBody, frozen=True, kw_only=True):
    even_if_two_masters: bool = False


class GuardApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def guards(self, request: Request) -> object:
        guards = self._service.failover.guards
        return [guards.view(guard) for guard in guards.all()]

    async def guard(self, request: Request) -> object:
        guards = self._service.failover.guards
        return guards.view(guards.find(request.path_params["guard"]))

    async def act(self, request: Request) -> object:
        body = await read_body(request, GuardActionBody)
        check_action(body, "open", "follow", "release")
        failover, key = self._service.failover, request.path_params["guard"]
        if body.action == "follow":
            return failover.guards.view(await failover.following.follow(key))
        if body.action == "release":
            return await failover.releasing.release(key, even_if_two_masters=body.even_if_two_masters)
        opened = await failover.returning.open(key, even_if_two_masters=body.even_if_two_masters)
        return failover.guards.view(opened)

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {
            "/v1/failover/guards": {"GET": self.guards},
            "/v1/failover/guards/{guard}": {"GET": self.guard, "POST": self.act},
        }
