"""Recoveries: how fast they are, which comes first, which side survives."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Body, Routes, check_action, read_body
from replicator.agent.service import Service


class SpeedBody(Body, frozen=True, kw_only=True):
    speed: str


class PriorityBody(Body, frozen=True, kw_only=True):
    priority: str


class ForceBody(Body, frozen=True, kw_only=True):
    survivor: str
    confirm: str = ""


class RecoveryRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def recovery(self, request: Request) -> object:
        return self._service.recovery.view()

    async def set_speed(self, request: Request) -> object:
        return await self._service.recovery.set_speed((await read_body(request, SpeedBody)).speed)

    async def set_priority(self, request: Request) -> object:
        body = await read_body(request, PriorityBody)
        return await self._service.recovery.set_priority(request.path_params["name"], body.priority)

    async def act_on_recovery(self, request: Request) -> object:
        action = check_action(await read_body(request, ActionBody), "pause", "resume", "automatic", "manual")
        return await self._service.recovery.act(request.path_params["connection"], action)

    async def force(self, request: Request) -> object:
        body = await read_body(request, ForceBody)
        return await self._service.recovery.force(
            request.path_params["connection"], body.survivor, body.confirm
        )

    def routes(self) -> Routes:
        return {
            "/v1/connections/{connection}/recovery": {"POST": self.act_on_recovery},
            "/v1/connections/{connection}/force": {"POST": self.force},
            "/v1/recovery": {"GET": self.recovery, "POST": self.set_speed},
            "/v1/repsets/{name}/priority": {"POST": self.set_priority},
        }
