"""Copies that are kept here."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Routes, check_action, read_body
from replicator.agent.service import Service
from replicator.errors import UsageError


class TargetsBody(ActionBody, frozen=True, kw_only=True):
    uuid: str | None = None


class TargetRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def targets(self, request: Request) -> object:
        return await self._service.targets.all()

    async def act_on_targets(self, request: Request) -> object:
        body = await read_body(request, TargetsBody)
        action = check_action(body, "pause", "resume", "use", "forget")
        if action in ("use", "forget") and body.uuid is None:
            raise UsageError(f"{action}: name the connection's uuid")
        return {"count": await self._service.targets.act(body.uuid, action)}

    def routes(self) -> Routes:
        return {
            "/v1/targets": {"GET": self.targets, "POST": self.act_on_targets},
        }
