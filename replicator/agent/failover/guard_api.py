"""Routes of groups in which this host is the source. As in `agent/api.py`, nothing is decided here."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, check_action, read_body
from replicator.agent.failover.following import Following
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.returning import Returning

Handler = Callable[[Request], Awaitable[object]]


class GuardActionBody(ActionBody, frozen=True, kw_only=True):
    even_if_two_masters: bool = False


class GuardApi:
    """Handlers, as `agent.api.Api`."""

    def __init__(self, guards: Guards, returning: Returning, following: Following) -> None:
        self._guards = guards
        self._returning = returning
        self._following = following

    async def guards(self, request: Request) -> object:
        return [self._guards.view(guard) for guard in self._guards.all()]

    async def guard(self, request: Request) -> object:
        return self._guards.view(self._guards.find(request.path_params["guard"]))

    async def act(self, request: Request) -> object:
        body = await read_body(request, GuardActionBody)
        check_action(body, "open", "follow")
        key = request.path_params["guard"]
        if body.action == "follow":
            return self._guards.view(await self._following.follow(key))
        return self._guards.view(
            await self._returning.open(key, even_if_two_masters=body.even_if_two_masters)
        )

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {
            "/v1/failover/guards": {"GET": self.guards},
            "/v1/failover/guards/{guard}": {"GET": self.guard, "POST": self.act},
        }
