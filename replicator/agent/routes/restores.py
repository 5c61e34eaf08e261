"""Restores to this host."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Body, Routes, check_action, read_body
from replicator.agent.service import Service
from replicator.restores import RestoreRequest


class CopiesBody(Body, frozen=True, kw_only=True):
    source: str = ""


class RestoreRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def copies(self, request: Request) -> object:
        return await self._service.restores.copies((await read_body(request, CopiesBody)).source)

    async def restores(self, request: Request) -> object:
        return self._service.restores.all()

    async def start_restore(self, request: Request) -> object:
        return await self._service.restores.start(await read_body(request, RestoreRequest))

    async def restore(self, request: Request) -> object:
        return self._service.restores.get(request.path_params["restore"])

    async def act_on_restore(self, request: Request) -> object:
        action = check_action(await read_body(request, ActionBody), "pause", "resume", "stop")
        return await self._service.restores.act(request.path_params["restore"], action)

    def routes(self) -> Routes:
        return {
            "/v1/restores": {"GET": self.restores, "POST": self.start_restore},
            "/v1/restores/copies": {"POST": self.copies},
            "/v1/restores/{restore}": {"GET": self.restore, "POST": self.act_on_restore},
        }
