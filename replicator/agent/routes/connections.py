"""Connections: made, steered, waited for and ended; what is known of them."""

import trio
from starlette.requests import ClientDisconnect, Request

from replicator import limits
from replicator.agent.api_body import RUN_ACTIONS, ActionBody, Body, Empty, Routes, check_action, read_body
from replicator.agent.connections import ConnectRequest
from replicator.agent.protect import ProtectRequest
from replicator.agent.routes.asked import since_and_most
from replicator.agent.service import Service
from replicator.errors import ReplicatorError, UsageError


class MirrorBody(ActionBody, frozen=True, kw_only=True):
    kind: str = "difference"
    newer: bool = False
    checksum: bool = False
    orphans: str = "keep"


class WaitBody(Body, frozen=True, kw_only=True):
    timeout_s: float | None = None


class ConnectionRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def connections(self, request: Request) -> object:
        return await self._service.connections.all()

    async def connect(self, request: Request) -> object:
        return await self._service.connections.connect(await read_body(request, ConnectRequest))

    async def protect(self, request: Request) -> object:
        return await self._service.protect(await read_body(request, ProtectRequest))

    async def connection(self, request: Request) -> object:
        return await self._service.connections.get(request.path_params["connection"])

    async def lag(self, request: Request) -> object:
        return await self._service.connections.lag(request.path_params["connection"])

    async def story(self, request: Request) -> object:
        since, count = since_and_most(request, limits.STORY_KEPT)
        return await self._service.connections.story(request.path_params["connection"], since, count)

    async def why(self, request: Request) -> object:
        path = request.query_params.get("path")
        if path is None or len(request.query_params) != 1:
            raise UsageError("say which path: ?path=/absolute/path, and nothing else")
        return await self._service.connections.why(path)

    async def disconnect(self, request: Request) -> object:
        await read_body(request, Empty)
        return await self._service.connections.disconnect(request.path_params["connection"])

    async def mirror(self, request: Request) -> object:
        body = await read_body(request, MirrorBody)
        return await self._service.connections.mirror(
            request.path_params["connection"],
            check_action(body, *RUN_ACTIONS),
            kind=body.kind,
            newer=body.newer,
            checksum=body.checksum,
            orphans=body.orphans,
        )

    async def replicate(self, request: Request) -> object:
        action = check_action(await read_body(request, ActionBody), "start", "stop")
        return await self._service.connections.replicate(request.path_params["connection"], action)

    async def transmit(self, request: Request) -> object:
        action = check_action(await read_body(request, ActionBody), *RUN_ACTIONS)
        return await self._service.connections.transmit(request.path_params["connection"], action)

    async def target(self, request: Request) -> object:
        action = check_action(await read_body(request, ActionBody), "pause", "resume")
        key = request.path_params["connection"]
        await self._service.targets.act(key, action)
        return {"connection": key, "action": action}

    async def wait(self, request: Request) -> object:
        body = await read_body(request, WaitBody)
        if body.timeout_s is not None and not 0 <= body.timeout_s <= limits.WAIT_TIMEOUT_MAX_S:
            raise UsageError(
                f"timeout_s {body.timeout_s:g}: must be from 0 to {limits.WAIT_TIMEOUT_MAX_S:.0f} seconds"
            )
        answer: object = None
        failure: ReplicatorError | None = None
        async with trio.open_nursery() as nursery:
            # Nobody waits for ever for a client that is gone.
            nursery.start_soon(_cancel_when_gone, request, nursery.cancel_scope)
            try:
                answer = await self._service.connections.wait(
                    request.path_params["connection"], body.timeout_s
                )
            except ReplicatorError as error:
                failure = error  # kept from becoming a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if answer is None:
            raise ClientDisconnect
        return answer

    def routes(self) -> Routes:
        return {
            "/v1/connections": {"GET": self.connections, "POST": self.connect},
            "/v1/connections/{connection}": {"GET": self.connection, "DELETE": self.disconnect},
            "/v1/connections/{connection}/lag": {"GET": self.lag},
            "/v1/connections/{connection}/story": {"GET": self.story},
            "/v1/connections/{connection}/disconnect": {"POST": self.disconnect},
            "/v1/connections/{connection}/mirror": {"POST": self.mirror},
            "/v1/connections/{connection}/replicate": {"POST": self.replicate},
            "/v1/connections/{connection}/transmit": {"POST": self.transmit},
            "/v1/connections/{connection}/target": {"POST": self.target},
            "/v1/connections/{connection}/wait": {"POST": self.wait},
            "/v1/why": {"GET": self.why},
            "/v1/protect": {"POST": self.protect},
        }


async def _cancel_when_gone(request: Request, scope: trio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
