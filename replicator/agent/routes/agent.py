"""The agent as a whole: its end, its events, its queues."""

from starlette.requests import Request

from replicator import limits
from replicator.agent.api_body import Body, Routes, read_body
from replicator.agent.routes.asked import since_and_most
from replicator.agent.service import Service


class StopBody(Body, frozen=True, kw_only=True):
    mounts: bool = False
    force: bool = False


class AgentRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def agent(self, request: Request) -> object:
        return self._service.agent()

    async def stop_agent(self, request: Request) -> object:
        body = await read_body(request, StopBody)
        await self._service.stop(mounts=body.mounts, force=body.force)
        return {"stopping": True}

    async def events(self, request: Request) -> object:
        return self._service.events.since(*since_and_most(request, limits.EVENTS_KEPT))

    async def queues(self, request: Request) -> object:
        return await self._service.queues.all()

    def routes(self) -> Routes:
        return {
            "/v1/agent": {"GET": self.agent},
            "/v1/agent/stop": {"POST": self.stop_agent},
            "/v1/events": {"GET": self.events},
            "/v1/queues": {"GET": self.queues},
        }
