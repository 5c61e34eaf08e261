"""Routes of divergence bundles. As in `agent/routes`, nothing is decided here."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Handler, check_action, read_body
from replicator.agent.failover.divergences import Divergences
from replicator.agent.service import Service


class DivergenceBody(ActionBody, frozen=True, kw_only=True):
    """`directory`: of export; `confirm`: of drop, the whole id."""

    directory: str = ""
    confirm: str = ""


class DivergenceApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def _divergences(self) -> Divergences:
        return self._service.failover.divergences

    async def all(self, request: Request) -> object:
        return await self._divergences.all()

    async def get(self, request: Request) -> object:
        return await self._divergences.get(request.path_params["bundle"])

    async def act(self, request: Request) -> object:
        body = await read_body(request, DivergenceBody)
        bundle = request.path_params["bundle"]
        if check_action(body, "export", "drop") == "export":
            return await self._divergences.export(bundle, body.directory)
        return await self._divergences.drop(bundle, body.confirm)

    async def differences(self, request: Request) -> object:
        path = request.query_params.get("path", "")
        return await self._divergences.compare(request.path_params["bundle"], path)

    def routes(self) -> dict[str, dict[str, Handler]]:
        return {
            "/v1/divergence": {"GET": self.all},
            "/v1/divergence/{bundle}": {"GET": self.get, "POST": self.act},
            "/v1/divergence/{bundle}/differences": {"GET": self.differences},
        }
