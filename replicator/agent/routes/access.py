"""Who asks, and logins."""

import msgspec
from starlette.requests import Request

from replicator.access import AccessView, Caller
from replicator.agent.api_body import Body, Empty, Routes, read_body
from replicator.agent.gate import Gate
from replicator.agent.routes.asked import peer_of, token_of
from replicator.agent.service import Service


class LoginBody(Body, frozen=True, kw_only=True):
    user: str
    password: str


class AccessRoutes:
    def __init__(self, service: Service, gate: Gate) -> None:
        self._service = service
        self._gate = gate

    async def ping(self, request: Request) -> object:
        gate = self._gate
        return {
            "agent": self._service.agent().name,
            "control": gate.control,
            "fingerprint": gate.tls.fingerprint if gate.tls is not None else "",
        }

    async def access(self, request: Request) -> object:
        return self._access(await self._gate.caller(peer_of(request), token_of(request)))

    async def login(self, request: Request) -> object:
        body = await read_body(request, LoginBody)
        token, caller = await self._gate.log_in(peer_of(request), body.user, body.password)
        return {"token": token, **msgspec.to_builtins(self._access(caller))}

    async def logout(self, request: Request) -> object:
        await read_body(request, Empty)
        self._gate.log_out(peer_of(request), token_of(request))
        return {}

    def _access(self, caller: Caller) -> AccessView:
        return AccessView(
            agent=self._service.agent().name,
            user=caller.user,
            origin=caller.origin,
            how=caller.how,
            access=caller.access,
            level=caller.access.label,
        )

    def routes(self) -> Routes:
        return {
            "/v1/ping": {"GET": self.ping},
            "/v1/access": {"GET": self.access},
            "/v1/login": {"POST": self.login},
            "/v1/logout": {"POST": self.logout},
        }
